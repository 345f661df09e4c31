//! HTTP/1 connections in motion: server and client over pipes, on a paused clock.
//! In: handlers and clients of `testkit`. Out: sentences about behaviour.
//! Kept true: nothing here waits on wall time.
//! Not here: what single heads and bodies mean (`tests/raw_bytes`).

#![allow(clippy::large_futures, reason = "whole meshes in one future, once per test")]

mod exchange;
mod lifetime;
mod upstream;

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::Instant;

use crate::codec::testkit::*;
use crate::codec::*;

fn http1() -> Serve {
    server(Protocol::Http1, Limits::sidecar())
}

async fn echo(request: Request) -> Response {
    let mut response = Response::new(StatusCode::OK);
    response.head.append("x-path", request.head.path());
    response.body = request.body;
    response
}

async fn hello(_: Request) -> Response {
    Response::text(StatusCode::OK, "hello")
}

fn post(path: &str, shape: Shape) -> Request {
    Request { head: Head::request(Method::POST, "app", path), body: body(shape) }
}
