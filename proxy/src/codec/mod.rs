//! The HTTP engine: what arrives on a socket becomes a [`Head`] and a streaming [`Body`], and back.
//! In: bytes of HTTP/1.1 or HTTP/2. Out: [`Request`]s to a [`Handler`], [`Response`]s from upstream connections.
//! Kept true: framing is judged strictly and written anew, never copied; nothing is buffered whole; dropping a future cancels its exchange.
//! Not here: routing, policy, pools, TLS (`http`, `balance`, `mesh_identity`), and any spawned task.

mod body;
mod fields;
pub mod h1;
pub mod h2;
mod head;
mod limits;
mod message;
mod name;
mod relay;
mod scratch;
mod serve;
#[cfg(test)]
mod testkit;
mod timer;
mod tunnel;

pub use body::{Body, BodyEnd, BodyError, BodySender, BodyWatch, Frame, Source};
pub use fields::Fields;
pub use head::{Head, Scheme, Version};
pub use http::{Method, StatusCode};
pub use limits::{Limits, Phase, Refusal};
pub use message::{Handler, Home, Io, Request, Response, SendError, SendErrorKind};
pub use name::{BadName, FieldName, Known, Name};
pub(crate) use relay::relay;
pub use serve::{ConnEnd, Protocol, Serve};
pub use tunnel::Upgraded;
