//! What finding a route costs: `cargo run --profile dist -p mesh-traffic --example lookup [SERVICES]…`.
//!
//! In: numbers of services. Out: nanoseconds per [`plan`] for each, the median of eleven rounds, with minimum and maximum.
//! Kept true: every request names another service, so that the table is not looked up in one hot line. Not here: what is done with the route.

use mesh_traffic::{
    filter::PerRoute,
    plan::{Facts, plan},
    route::{
        Action, Forward, HeaderOps, PathMatch, Route, RouteConfiguration, RouteMatch, Target, VirtualHost,
    },
    table::RouteTable,
};
use std::{hint::black_box, sync::Arc, time::Instant};

const REQUESTS: usize = 4096;
const LAPS: u32 = 50;
const ROUNDS: usize = 11;

fn route(name: &str, path: &str) -> Arc<Route> {
    let forward = Forward { target: Target::Cluster(name.into()), ..Forward::default() };
    Arc::new(Route {
        name: name.into(),
        matcher: RouteMatch { path: PathMatch::Prefix(path.into()), ..RouteMatch::default() },
        action: Action::Forward(Box::new(forward)),
        headers: HeaderOps::default(),
        filters: PerRoute::default(),
        source: None,
        operation: None,
    })
}

/// As many virtual hosts as services, with the names that Istio gives to one, and two routes each.
fn table(services: usize) -> Result<RouteTable, String> {
    let host = |number| {
        let name = format!("s{number}.default.svc.cluster.local");
        let short = [format!("s{number}"), format!("s{number}.default"), format!("s{number}.default.svc")];
        let domains =
            short.iter().chain([&name]).flat_map(|d| [d.as_str().into(), format!("{d}:8080").into()]);
        Arc::new(VirtualHost {
            name: format!("{name}:8080").into(),
            domains: domains.collect(),
            routes: vec![route(&name, "/v2/"), route(&name, "/")],
            ..VirtualHost::default()
        })
    };
    let virtual_hosts = (0..services).map(host).collect();
    RouteTable::new(RouteConfiguration { virtual_hosts, ..RouteConfiguration::default() })
}

fn main() -> Result<(), String> {
    let asked: Vec<usize> = std::env::args().skip(1).filter_map(|n| n.parse().ok()).collect();
    for services in if asked.is_empty() { vec![1, 200, 5000] } else { asked } {
        let table = table(services)?;
        // A stride that is prime to the number of services visits them out of order.
        let requests: Vec<Facts> = (0..REQUESTS)
            .map(|n| Facts::get(&format!("s{}.default.svc.cluster.local:8080", n * 7919 % services), "/api"))
            .collect();
        let mut nanoseconds: Vec<f64> = (0..ROUNDS)
            .map(|_| {
                let start = Instant::now();
                for request in (0..LAPS).flat_map(|_| &requests) {
                    black_box(plan(black_box(&table), black_box(request)).is_ok());
                }
                start.elapsed().as_secs_f64() * 1e9 / f64::from(LAPS) / 4096.0
            })
            .collect();
        nanoseconds.sort_by(f64::total_cmp);
        let (least, most) = (nanoseconds[0], nanoseconds[ROUNDS - 1]);
        println!("{services} services: {:.0} ns ({least:.0}–{most:.0})", nanoseconds[ROUNDS / 2]);
    }
    Ok(())
}
