//! What an explicit proxy does besides routing: CONNECT, hosts that the mesh does not know, and tunnels in general.
//!
//! In: CONNECT requests, names of hosts. Out: byte streams to clusters or addresses. Kept true: only listeners that ask for CONNECT have
//! it; the host's loopback services and our own ports are never reached. Not here: plain TCP listeners (`tcp`).

use std::{
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use mesh_traffic::{
    Reply, ResponseFlags, RouteTable,
    cluster::Discovery,
    listener::{HttpManager, RouteSource},
    plan,
    route::Action,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Flow, exchange::Exchange, local, run};
use crate::{
    balance::{Failure, Kind, dns},
    codec::{BodyEnd, BodyWatch, Request, Response, Upgraded},
    http::exchange::{Received, Sent, Upstream},
    listen::Downstream,
    tcp,
    worker::View,
};

/// True for listeners that applications use as their HTTP proxy.
#[must_use]
pub fn is_explicit(manager: &HttpManager) -> bool {
    let connect = manager.upgrades.iter().any(|name| name.eq_ignore_ascii_case("connect"));
    connect || matches!(&manager.routes, RouteSource::Rds(name) if &**name == "http_proxy")
}

/// Answers a CONNECT.
pub async fn serve(
    exchange: &Rc<Exchange>,
    view: &Rc<View>,
    table: &RouteTable,
    mut request: Request,
) -> Response {
    let (conn, manager) = (&exchange.conn, &exchange.manager);
    let worker = &conn.worker;
    let refused = |status, why| local(exchange, Reply::new(status, ResponseFlags::NONE, why, why));
    if !is_explicit(manager) {
        return refused(405, "connect_not_allowed");
    }
    let authority = request.head.authority().to_owned();
    let host = table.find(&authority);
    // A CONNECT route, else the service's last resort: a tunnel has no path to match.
    let route = host.and_then(|host| {
        let connect = host.routes.iter().find(|route| plan::matches(&route.matcher, &request.head));
        connect.or_else(|| host.routes.iter().find(|route| route.matcher.is_catch_all()))
    });
    let (Some(host), Some(route)) = (host, route) else { return local(exchange, Reply::no_route()) };
    let choice = mesh_traffic::Choice { host, route };
    exchange.story.borrow_mut().route = Some(route.clone());
    for filter in &manager.filters {
        if let Flow::Reply(response) = run(exchange, view, Some(&choice), &filter.config, &mut request).await
        {
            return response;
        }
    }
    let Action::Forward(forward) = &route.action else { return refused(405, "connect_not_allowed") };
    let (name, _) = plan::target(forward, worker.random());
    exchange.story.borrow_mut().cluster = Some(name.clone());
    let Some(state) = worker.cluster(view, name) else { return local(exchange, Reply::no_cluster(503)) };
    exchange.story.borrow_mut().service = state.cluster().service.clone();
    let opening = async {
        let target = match state.cluster().discovery {
            Discovery::OriginalDst => Some(original_destination(conn, &authority, true).await?),
            _ => None,
        };
        tcp::open(worker, view, &state, target).await
    };
    match opening.await {
        Ok(opened) => {
            exchange.story.borrow_mut().upstream = Some(Upstream {
                address: opened.ends.remote,
                local: opened.ends.local,
                principal: opened.ends.principal.clone(),
                mutual: opened.ends.mutual,
            });
            exchange.detail("via_upstream");
            Response::connected(Upgraded::new(opened))
        }
        Err(failure) => {
            exchange.story.borrow_mut().transport_failure.clone_from(&failure.why);
            local(exchange, failure.reply())
        }
    }
}

/// Where a connection or request is really meant to go: the address it was captured from, or, for an explicit proxy, the host asked for.
///
/// # Errors
/// When there is no such address, or it may not be reached.
pub async fn original_destination(
    conn: &Downstream,
    authority: &str,
    tunnel: bool,
) -> Result<SocketAddr, Failure> {
    if let Some(captured) = conn.captured {
        return Ok(captured);
    }
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !host.ends_with(':') && port.bytes().all(|b| b.is_ascii_digit()) => {
            (host, port.parse().unwrap_or(0))
        }
        _ => (authority, if tunnel { 443 } else { 80 }),
    };
    let addresses = dns::lookup(host)
        .await
        .map_err(|why| Failure::new(Kind::Connect, format!("DNS resolution failed: {why}")))?;
    let own = conn.worker.shared.local_ip;
    let ports = &conn.worker.shared.settings.own_ports;
    let allowed = |ip: &IpAddr| may_reach(*ip, port, own, ports);
    let found = addresses.into_iter().find(allowed);
    found.map(|ip| SocketAddr::new(ip, port)).ok_or_else(|| {
        Failure::new(Kind::NoHealthyUpstream, format!("{host}:{port} is not reachable through this proxy"))
    })
}

/// Whether an explicit proxy may connect there. The host's own loopback services, link-local addresses (cloud metadata) and ports of the
/// proxy are out of bounds; where pods themselves have loopback addresses (the local environment), their /16 is in bounds.
fn may_reach(ip: IpAddr, port: u16, own: Option<IpAddr>, own_ports: &[u16]) -> bool {
    if port == 0 || own == Some(ip) && own_ports.contains(&port) {
        return false;
    }
    match ip {
        IpAddr::V4(v4) if v4.is_loopback() => match own {
            Some(IpAddr::V4(own)) if own.is_loopback() => {
                own.octets()[..2] == v4.octets()[..2] && !own_ports.contains(&port)
            }
            _ => false,
        },
        IpAddr::V4(v4) => !v4.is_unspecified() && !v4.is_link_local() && !v4.is_broadcast(),
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => may_reach(IpAddr::V4(v4), port, own, own_ports),
            None => !v6.is_loopback() && !v6.is_unspecified() && !v6.is_unicast_link_local(),
        },
    }
}

/// A tunnel whose bytes are counted, and whose end is the request's end.
pub fn counted(exchange: &Rc<Exchange>, io: Upgraded) -> Upgraded {
    Upgraded::new(Counted { io, sent: Sent(Rc::clone(exchange)), received: Received(Rc::clone(exchange)) })
}

struct Counted {
    io: Upgraded,
    sent: Sent,
    received: Received,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.sent.end(BodyEnd::Complete);
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let poll = Pin::new(&mut self.io).poll_read(cx, buf);
        self.sent.data(buf.filled().len() - before);
        poll
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.io).poll_write(cx, data);
        if let Poll::Ready(Ok(written)) = &poll {
            self.received.data(*written);
        }
        poll
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_explicit_proxy_never_reaches_loopback_services_or_its_own_ports() {
        let ports = [15000, 15021];
        for (target, port, own, want) in [
            ("127.0.0.1", 8080, "10.0.0.5", false),
            ("::1", 8080, "10.0.0.5", false),
            ("::ffff:127.0.0.1", 80, "10.0.0.5", false),
            ("169.254.169.254", 80, "10.0.0.5", false),
            ("0.0.0.0", 80, "10.0.0.5", false),
            ("10.0.0.5", 15000, "10.0.0.5", false),
            ("10.0.0.6", 8080, "10.0.0.5", true),
            ("93.184.216.34", 443, "10.0.0.5", true),
            ("127.0.0.1", 8080, "127.64.1.1", false),
            ("127.64.1.2", 8080, "127.64.1.1", true),
            ("127.64.1.2", 15000, "127.64.1.1", false),
            ("127.65.1.2", 8080, "127.64.1.1", false),
        ] {
            let (ip, own) = (target.parse().expect("address"), own.parse().expect("address"));
            assert_eq!(may_reach(ip, port, Some(own), &ports), want, "{target}:{port} from {own}");
        }
    }
}
