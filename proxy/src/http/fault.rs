//! Faults on purpose: a delay before anything else, then perhaps an answer instead of the upstream's.
//!
//! In: [`Fault`] settings, random draws. Out: time passes, or an answer. Kept true: a delay never trips the route's timeout, which
//! starts after it; an abort is not retried. Not here: which settings apply (`http`).

use mesh_traffic::{
    ResponseFlags,
    filter::{AbortWith, Fault},
};

use super::{Flow, exchange::Exchange};
use crate::codec::{Body, Head, Known, Request, Response, StatusCode};

/// Carries out a fault.
pub async fn run(exchange: &Exchange, fault: &Fault, request: &Request) -> Flow {
    if !fault.headers.iter().all(|header| header.matches(&request.head)) {
        return Flow::Continue;
    }
    let worker = &exchange.conn.worker;
    if let Some(delay) = fault.delay_for(worker.draw()) {
        exchange.flag(ResponseFlags::DELAY_INJECTED);
        tokio::time::sleep(delay).await;
    }
    let Some(with) = fault.abort_for(worker.draw()) else { return Flow::Continue };
    exchange.flag(ResponseFlags::FAULT_INJECTED);
    exchange.detail("fault_filter_abort");
    Flow::Reply(match with {
        AbortWith::Http(status) => {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            if mesh_traffic::plan::is_grpc(&request.head) {
                grpc(super::grpc_of(status.as_u16()))
            } else {
                Response::text(status, "fault filter abort")
            }
        }
        AbortWith::Grpc(code) => grpc(code),
    })
}

fn grpc(code: u16) -> Response {
    let mut head = Head::response(StatusCode::OK);
    head.set(Known::ContentType, "application/grpc");
    head.set(Known::GrpcStatus, code.to_string());
    head.set(Known::GrpcMessage, "fault filter abort");
    Response::from_head(head, Body::empty())
}
