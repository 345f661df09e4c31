//! gRPC over the mesh's own TLS: connections in for tonic servers, channels out for tonic clients.
//!
//! In: a listener or an address, and certificates. Out: [`Incoming`], [`channel`], and [`ConnInfo`] on each request.
//! Kept true: tonic never sees a byte of a client whose handshake failed, and no bad client ends a server.
//! Not here: the services themselves.

mod channel;
mod incoming;

pub use channel::{ChannelOptions, ServerCheck, Target, channel};
pub use incoming::{ConnInfo, Incoming, Io, Limits, incoming, incoming_plain};

use std::error::Error;

/// An error with its causes, on one line: tonic keeps the reason of a failed connection in the sources.
pub fn causes(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

/// What a failed call says, on one line: the message, and below it the reason of a lost connection.
pub fn reason(status: &tonic::Status) -> String {
    let message = status.message();
    let sources = status.source().map(causes).unwrap_or_default();
    match (message.is_empty(), sources.is_empty() || sources.contains(message)) {
        (true, _) => format!("{:?} {sources}", status.code()),
        (false, true) if sources.is_empty() => message.to_owned(),
        (false, true) => sources,
        (false, false) if sources == "transport error" || message.contains(&sources) => message.to_owned(),
        (false, false) => format!("{message}: {sources}"),
    }
}

#[cfg(test)]
mod tests;
