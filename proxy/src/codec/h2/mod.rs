//! HTTP/2 on the `h2` crate, as server and as client, meeting HTTP/1 in the same [`Head`](super::Head) and [`Body`](super::Body).
//! In: a byte stream. Out: messages; and messages back to frames, with flow control that follows the reader.
//! Kept true: what `h2` does not bound is bounded by `guard`; heads obey the same rules as HTTP/1 heads.
//! Not here: frames, HPACK, stream states (the `h2` crate).

mod body;
mod client;
mod convert;
mod guard;
mod server;
#[cfg(test)]
mod tests;

pub(crate) use body::H2Body;
pub use client::{ClientConn, Driver};
pub(crate) use server::serve;
