//! Two pods with captured traffic under the real pilot and citadel, in network namespaces: what a node of Kubernetes makes of a pod,
//! without Kubernetes.
//!
//! In: [`OBJECTS`], the binaries. Out: one trial per kind of traffic. Kept true: without root the trials show as ignored with the reason.
//! Not here: the rules of capture (`proxy/tests/capture`), real clusters (`e2e cluster`).

mod world;

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use world::{App, PAIR, Place, SHOP, World, six, terminate, until};

/// A service, the same pods without an address of their own, and the pods themselves.
const OBJECTS: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data: {mesh: "accessLogFile: /dev/stdout\n"}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: default, labels: {app: web, security.istio.io/tlsMode: istio}}
spec: {serviceAccountName: web, containers: [{name: app, image: app}]}
status: {phase: Running, podIP: 10.79.0.2, conditions: [{type: Ready, status: "True"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: shop, namespace: default, labels: {app: shop, security.istio.io/tlsMode: istio}}
spec: {serviceAccountName: shop, containers: [{name: app, image: app}]}
status: {phase: Running, podIP: 10.79.0.3, conditions: [{type: Ready, status: "True"}]}
---
apiVersion: v1
kind: Service
metadata: {name: shop, namespace: default}
spec:
  clusterIP: 10.96.0.10
  selector: {app: shop}
  ports:
  - {name: http, port: 80, targetPort: 8080}
  - {name: tcp-db, port: 3306, targetPort: 3306}
  - {name: mystery, port: 7000, targetPort: 7000}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
addressType: IPv4
metadata: {name: shop-1, namespace: default, labels: {kubernetes.io/service-name: shop}}
ports: [{name: http, port: 8080, protocol: TCP}, {name: tcp-db, port: 3306, protocol: TCP}, {name: mystery, port: 7000, protocol: TCP}]
endpoints: [{addresses: [10.79.0.3], conditions: {ready: true}, targetRef: {kind: Pod, name: shop, namespace: default}}]
---
apiVersion: v1
kind: Service
metadata: {name: peers, namespace: default}
spec:
  clusterIP: None
  selector: {app: shop}
  ports: [{name: http, port: 8080, targetPort: 8080}, {name: tcp-gossip, port: 7100, targetPort: 7100}]
---
apiVersion: v1
kind: Service
metadata: {name: six, namespace: default}
spec: {clusterIP: "fd96::10", ipFamilies: [IPv6], selector: {app: shop}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
addressType: IPv6
metadata: {name: six-1, namespace: default, labels: {kubernetes.io/service-name: six}}
ports: [{name: http, port: 8080, protocol: TCP}]
endpoints: [{addresses: ["fd79::3"], conditions: {ready: true}, targetRef: {kind: Pod, name: shop, namespace: default}}]
---
apiVersion: v1
kind: Service
metadata: {name: pair, namespace: default}
spec: {clusterIP: 10.96.0.20, selector: {app: pair}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
addressType: IPv4
metadata: {name: peers-1, namespace: default, labels: {kubernetes.io/service-name: peers}}
ports: [{name: http, port: 8080, protocol: TCP}, {name: tcp-gossip, port: 7100, protocol: TCP}]
endpoints: [{addresses: [10.79.0.3], conditions: {ready: true}, targetRef: {kind: Pod, name: shop, namespace: default}}]
"#;

/// The gateway's pod and service, and what it lets in: its server's port is the service's.
const EDGES: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: istio-ingressgateway, namespace: istio-system, labels: {app: istio-ingressgateway, istio: ingressgateway}}
spec: {serviceAccountName: istio-ingressgateway, containers: [{name: istio-proxy, image: proxy}]}
status: {phase: Running, podIP: 10.79.0.7, conditions: [{type: Ready, status: "True"}]}
---
apiVersion: v1
kind: Service
metadata: {name: istio-ingressgateway, namespace: istio-system}
spec: {clusterIP: 10.96.0.30, selector: {istio: ingressgateway}, ports: [{name: http2, port: 80, targetPort: 8080}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
addressType: IPv4
metadata: {name: edge-1, namespace: istio-system, labels: {kubernetes.io/service-name: istio-ingressgateway}}
ports: [{name: http2, port: 8080, protocol: TCP}]
endpoints: [{addresses: [10.79.0.7], conditions: {ready: true}, targetRef: {kind: Pod, name: istio-ingressgateway, namespace: istio-system}}]
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: shop, namespace: default}
spec: {selector: {istio: ingressgateway}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: [shop.example]}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop, namespace: default}
spec: {hosts: [shop.example], gateways: [shop], http: [{route: [{destination: {host: shop}}]}]}
"#;

const STRICT: &str = r"
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
";

/// What the shop hears of a caller that its sidecar has verified.
const AS_WEB: &str = "URI=spiffe://cluster.local/ns/default/sa/web";
const AS_SHOP: &str = "URI=spiffe://cluster.local/ns/default/sa/shop";

/// The endpoints of the pair: those of its pods that are ready.
fn pair(ready: [bool; 2]) -> String {
    let mut yaml = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\nmetadata: {name: pair-1, namespace: \
                    default, labels: {kubernetes.io/service-name: pair}}\nports: [{name: http, port: 8080, protocol: \
                    TCP}]\nendpoints:\n"
        .to_owned();
    for ((name, ip), ready) in ["left", "right"].iter().zip(PAIR).zip(ready) {
        yaml.push_str(&format!(
            "- {{addresses: [{ip}], conditions: {{ready: {ready}}}, targetRef: {{kind: Pod, name: {name}, namespace: default}}}}\n"
        ));
    }
    for (name, ip) in ["left", "right"].iter().zip(PAIR) {
        yaml.push_str(&format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: default, labels: {{app: pair, \
             security.istio.io/tlsMode: istio}}}}\nspec: {{serviceAccountName: {name}, containers: [{{name: app, image: \
             app}}]}}\nstatus: {{phase: Running, podIP: {ip}, conditions: [{{type: Ready, status: \"True\"}}]}}\n"
        ));
    }
    yaml
}

type Story = fn(&World) -> anyhow::Result<()>;

const STORIES: [(&str, Story); 11] = [
    ("a call to a service's address is mutual tls", to_a_service),
    ("a call to a pod of a headless service is mutual tls", to_a_headless_service),
    ("servers that speak first are heard, on declared and on undeclared ports", server_first),
    ("a caller without a sidecar is served while mutual tls is permissive", plaintext),
    ("a pod that calls its own service reaches itself", itself),
    ("strict mutual tls resets plaintext, and the kubelet's probes still answer", strict),
    ("unknown destinations pass through, or are refused by registry only", unknown),
    ("ipv6 is captured like ipv4, both ways", ipv6),
    ("a gateway serves at its service's port, and on while it drains", gateway),
    ("an application that connects in its first line is served, every time", first_line),
    ("pods that are replaced one after the other lose no request", replaced),
];

fn main() {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let missing = World::missing();
    let world: Arc<Mutex<Option<Result<World, String>>>> = Arc::default();
    let trials = STORIES
        .map(|(name, story)| match &missing {
            Some(why) => Trial::test(format!("{name} ({why})"), || Ok(())).with_ignored_flag(true),
            None => {
                let world = Arc::clone(&world);
                Trial::test(name, move || tell(&world, story))
            }
        })
        .into();
    let conclusion = libtest_mimic::run(&arguments, trials);
    // Processes end with the world, and `exit` drops nothing.
    world.lock().unwrap_or_else(PoisonError::into_inner).take();
    conclusion.exit();
}

fn tell(world: &Mutex<Option<Result<World, String>>>, story: Story) -> Result<(), Failed> {
    let mut world = world.lock().unwrap_or_else(PoisonError::into_inner);
    let world = world.get_or_insert_with(|| open().map_err(|error| format!("{error:#}")));
    let world = world.as_ref().map_err(|why| Failed::from(why.clone()))?;
    story(world).map_err(|error| Failed::from(format!("{error:#}\n{}", world.logs())))
}

/// The mesh, with applications in its pods and servers in the rest of the world.
fn open() -> anyhow::Result<World> {
    let mut world = World::start()?;
    let apps =
        [world.shop.http(8080, "shop")?, world.hub.http(8123, "world")?, world.hub.http(80, "web site")?];
    world.apps.extend(apps);
    for port in [3306, 7000, 7100, 9999] {
        world.shop.greeter(port, "hello ")?;
    }
    world.hub.greeter(9998, "welcome ")?;
    Ok(world)
}

/// Asks and compares: status, and parts that the answer has or has not.
fn expect(place: &Place, to: &str, url: &str, has: &[&str], lacks: &[&str]) -> anyhow::Result<()> {
    let (status, text) = place.get(to, url)?;
    ensure!(status == 200, "{url} at {to}: {text}");
    for part in has {
        ensure!(text.contains(part), "{url} at {to} lacks `{part}`: {text}");
    }
    for part in lacks {
        ensure!(!text.contains(part), "{url} at {to} has `{part}`: {text}");
    }
    Ok(())
}

fn to_a_service(world: &World) -> anyhow::Result<()> {
    for _ in 0..20 {
        expect(&world.web, "10.96.0.10:80", "shop", &["shop heard from 127.0.0.6", AS_WEB], &[])?;
    }
    expect(&world.web, "10.96.0.10:80", "shop.default.svc.cluster.local", &[AS_WEB], &[])
}

fn to_a_headless_service(world: &World) -> anyhow::Result<()> {
    expect(&world.web, &format!("{SHOP}:8080"), "peers:8080", &["shop heard from 127.0.0.6", AS_WEB], &[])?;
    let said = world.web.greeted(&format!("{SHOP}:7100"))?;
    ensure!(said == "hello more", "got {said}");
    Ok(())
}

fn server_first(world: &World) -> anyhow::Result<()> {
    for to in ["10.96.0.10:3306", "10.96.0.10:7000", &format!("{SHOP}:9999"), "192.0.2.80:9998"] {
        let said = world.web.greeted(to)?;
        ensure!(said.ends_with(" more"), "{to} said {said}");
    }
    Ok(())
}

fn plaintext(world: &World) -> anyhow::Result<()> {
    expect(&world.plain, &format!("{SHOP}:8080"), "shop", &["shop heard from 127.0.0.6"], &["spiffe://"])?;
    for port in [3306, 7000, 9999] {
        let said = world.plain.greeted(&format!("{SHOP}:{port}"))?;
        ensure!(said == "hello more", "port {port} said {said}");
    }
    Ok(())
}

fn itself(world: &World) -> anyhow::Result<()> {
    expect(&world.shop, "10.96.0.10:80", "shop", &["shop heard from 127.0.0.6", AS_SHOP], &[])?;
    // Its own address is its own business.
    expect(
        &world.shop,
        &format!("{SHOP}:8080"),
        "peers:8080",
        &["shop heard from 10.79.0.3"],
        &["spiffe://"],
    )?;
    expect(&world.shop, "127.0.0.1:8080", "anything", &["shop heard from 127.0.0.1"], &["spiffe://"])
}

fn strict(world: &World) -> anyhow::Result<()> {
    world.write("strict.yaml", STRICT)?;
    let direct = format!("{SHOP}:8080");
    until(|| world.plain.get(&direct, "shop").is_err())?;
    for port in [3306, 7000, 9999] {
        let said = world.plain.greeted(&format!("{SHOP}:{port}"));
        ensure!(said.is_err(), "port {port} said {said:?}");
    }
    expect(&world.web, "10.96.0.10:80", "shop", &[AS_WEB], &[])?;
    expect(&world.shop, "10.96.0.10:80", "shop", &[AS_SHOP], &[])?;
    for to in ["10.96.0.10:3306", "10.96.0.10:7000", &format!("{SHOP}:7100")] {
        let said = world.web.greeted(to)?;
        ensure!(said == "hello more", "{to} said {said}");
    }
    for port in [15020, 15021] {
        let probed = "kubelet/app-health/app/livez";
        expect(&world.hub, &format!("{SHOP}:{port}"), probed, &["shop heard from 127.0.0.6"], &[])?;
    }
    world.write("strict.yaml", "")?;
    until(|| world.plain.get(&direct, "shop").is_ok())
}

fn unknown(world: &World) -> anyhow::Result<()> {
    // A port that no service has, and one that belongs to HTTP services.
    let (there, http) = ("192.0.2.80:8123", "192.0.2.80:80");
    expect(&world.web, http, "elsewhere.example", &["web site heard from 10.79.0.2"], &["spiffe://"])?;
    expect(&world.web, there, "elsewhere.example", &["world heard from 10.79.0.2"], &["spiffe://"])?;
    let only =
        OBJECTS.replacen("accessLogFile", "outboundTrafficPolicy: {mode: REGISTRY_ONLY}\\naccessLogFile", 1);
    world.write("objects.yaml", &only)?;
    until(|| !world.web.get(there, "elsewhere.example").is_ok_and(|(status, _)| status == 200))?;
    until(|| world.web.get(http, "elsewhere.example").is_ok_and(|(status, _)| status == 502))?;
    ensure!(world.web.greeted("192.0.2.80:9998").is_err(), "an unknown server was reached");
    expect(&world.web, "10.96.0.10:80", "shop", &[AS_WEB], &[])?;
    world.write("objects.yaml", OBJECTS)?;
    until(|| world.web.get(there, "elsewhere.example").is_ok_and(|(status, _)| status == 200))?;
    until(|| world.web.get(http, "elsewhere.example").is_ok_and(|(status, _)| status == 200))
}

fn ipv6(world: &World) -> anyhow::Result<()> {
    let shop = format!("[{}]:8080", six(SHOP));
    expect(&world.web, "[fd96::10]:80", "six", &["shop heard from ::6", AS_WEB], &[])?;
    expect(&world.plain, &shop, "shop", &["shop heard from ::6"], &["spiffe://"])?;
    expect(&world.web, "[2001:db8::80]:8123", "elsewhere.example", &["world heard from fd79::2"], &[])?;
    expect(&world.shop, &shop, "shop", &["shop heard from fd79::3"], &["spiffe://"])?;
    let probed = format!("[{}]:15021", six(SHOP));
    expect(&world.hub, &probed, "kubelet/app-health/app/livez", &["shop heard from 127.0.0.6"], &[])
}

/// From a plain client to the shop over the edge, under STRICT; then the gateway drains and ends.
fn gateway(world: &World) -> anyhow::Result<()> {
    world.write("edge.yaml", EDGES)?;
    world.write("strict.yaml", STRICT)?;
    let by_gateway = "URI=spiffe://cluster.local/ns/istio-system/sa/istio-ingressgateway";
    let there = "10.79.0.7:8080";
    let first = world.gateway()?;
    world.edge.proxy(&["wait"])?;
    until(|| world.plain.get(there, "shop.example").is_ok_and(|(status, _)| status == 200))?;
    expect(&world.plain, there, "shop.example", &["shop heard from 127.0.0.6", by_gateway], &[])?;
    let (status, _) = world.plain.get(there, "other.example")?;
    ensure!(status == 404, "another host got {status}");
    // Pages for the kubelet are open, admin pages are not.
    expect(&world.plain, "10.79.0.7:15021", "kubelet/healthz/ready", &["ready"], &[])?;
    ensure!(world.plain.get("10.79.0.7:15000", "x/config_dump").is_err(), "admin pages are open to others");
    // Told to drain, it serves on until its clients have gone.
    world.edge.proxy(&["drain"])?;
    let (status, text) = world.plain.get(there, "shop.example")?;
    ensure!(status == 200 && text.to_lowercase().contains("connection: close"), "while draining: {text}");
    terminate(first)?;
    ensure!(world.plain.get(there, "shop.example").is_err(), "a gateway that has ended answers");
    world.write("strict.yaml", "")
}

/// The kubelet starts the application when the sidecar is ready, and not a moment later.
fn first_line(world: &World) -> anyhow::Result<()> {
    let place = &world.pair[0];
    for start in 1..=20 {
        let running = world.pod(place, "left", PAIR[0])?;
        place.proxy(&["wait"])?;
        let asked = expect(place, "10.96.0.10:80", "shop", &["shop heard from 127.0.0.6"], &[]);
        asked.with_context(|| format!("start {start} of 20"))?;
        drop(running);
    }
    Ok(())
}

/// What the cluster does to a pod of a rolling restart, in its worst order: the application dies before anybody has been told.
fn replaced(world: &World) -> anyhow::Result<()> {
    let names = ["left", "right"];
    let start = |at: usize| -> anyhow::Result<_> {
        let running = world.pod(&world.pair[at], names[at], PAIR[at])?;
        world.pair[at].proxy(&["wait"])?;
        // Slow enough that each dies with requests in its hands.
        Ok((running, world.pair[at].slow(8080, names[at], Duration::from_millis(20))?))
    };
    let mut pods: [Option<(_, App)>; 2] = [Some(start(0)?), Some(start(1)?)];
    world.write("pair.yaml", &pair([true, true]))?;
    let service = "10.96.0.20:80";
    let answers = |name: &str| {
        let heard = format!("{name} heard from 127.0.0.6");
        world.web.get(service, "pair").is_ok_and(|(_, text)| text.contains(&heard))
    };
    until(|| answers("left"))?;
    until(|| answers("right"))?;
    let stop = Arc::new(AtomicBool::new(false));
    let loads = [world.web.load(service, "pair", &stop)?, world.web.load(service, "pair", &stop)?];
    let mut rounds = || -> anyhow::Result<()> {
        for at in [0, 1, 0, 1] {
            let (running, app) = pods[at].take().expect("put back in every round");
            // Only this pod is known: its successor is announced when it is gone.
            world.write("pair.yaml", &pair([at == 0, at == 1]))?;
            until(|| (0..10).all(|_| answers(names[at])))?;
            drop(app);
            world.write("pair.yaml", &pair([at != 0, at != 1]))?;
            world.pair[at].proxy(&["drain"])?;
            terminate(running)?;
            pods[at] = Some(start(at)?);
            world.write("pair.yaml", &pair([true, true]))?;
            until(|| answers(names[at]))?;
        }
        Ok(())
    };
    let ended = rounds();
    stop.store(true, Ordering::Release);
    for load in loads {
        let (good, bad) = load.join().map_err(|_| anyhow::anyhow!("a panic under load"))??;
        ended.as_ref().map_err(|error| anyhow::anyhow!("{error:#}"))?;
        println!("{good} requests went well, {} did not", bad.len());
        ensure!(
            bad.is_empty() && good > 100,
            "{} of {} failed: {:?}",
            bad.len(),
            bad.len() + good,
            &bad[..bad.len().min(5)]
        );
    }
    Ok(())
}
