//! HTTP/1.1: strict parsing, body framing, and the connection as server and as client.
//! In: a byte stream. Out: messages; and messages back to bytes with framing of our own making.
//! Kept true: what is ambiguous is refused; the next message is read only when the last one is over.
//! Not here: choosing the protocol (`serve`), HTTP/2 (`h2`).

mod client;
mod decode;
mod encode;
mod parse;
mod server;
mod target;
#[cfg(test)]
mod tests;
mod wire;

pub use client::ClientConn;
pub use decode::{Decoded, Decoder};
pub use parse::{Framing, HeadParser, Parsed, Side};
pub(crate) use server::serve;
pub(crate) use target::{valid_authority, valid_path};
pub(crate) use wire::H1Body;
