//! xDS → the traffic model; the way back is [`encode`].
//!
//! In: Envoy's messages as received. Out: the model's types, or a [`Reject`] that names the path. Kept true: the unit is one resource;
//! a field, filter or message that cannot be honoured refuses it whole, never half. Not here: transport (`proxy::xds`), making xDS ([`encode`]).

mod cluster;
pub mod encode;
mod filter;
mod listener;
mod matchers;
mod rbac;
mod route;
#[cfg(test)]
mod tests;
mod tls;

use std::{fmt, time::Duration};

use prost::Message;
use xds::google::protobuf::{self, Any};

pub use cluster::{cluster, endpoints};
pub use listener::listener;
pub use route::{route_configuration, virtual_host};
pub use tls::secret;

/// Why a resource is refused. Its text becomes the NACK's detail.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Reject {
    /// Path of the field inside the resource, e.g. `filter_chains[0].filters[1].typed_config`.
    pub path: String,
    /// What is wrong with it.
    pub why: String,
}

impl Reject {
    /// A refusal of the message at hand.
    pub fn new(why: impl Into<String>) -> Self {
        Self { path: String::new(), why: why.into() }
    }

    /// The same, seen from one message further out.
    #[must_use]
    pub fn at(mut self, outer: impl AsRef<str>) -> Self {
        let outer = outer.as_ref();
        self.path = match self.path.is_empty() {
            true => outer.to_owned(),
            false if self.path.starts_with('[') => format!("{outer}{}", self.path),
            false => format!("{outer}.{}", self.path),
        };
        self
    }
}

impl fmt::Display for Reject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path.is_empty() {
            true => f.write_str(&self.why),
            false => write!(f, "{}: {}", self.path, self.why),
        }
    }
}

/// The result of a conversion.
pub type Decoded<T> = Result<T, Reject>;

/// Refuses a message in which one of the named fields is set: this proxy does not honour them.
macro_rules! refuse {
    ($message:expr, $($field:ident),+ $(,)?) => {
        $(if $crate::wire::is_set(&$message.$field) {
            return Err($crate::wire::Reject::new("this proxy does not honour this field").at(stringify!($field)));
        })+
    };
}
pub(crate) use refuse;

/// True when a field has another value than its default.
fn is_set<T: Default + PartialEq>(field: &T) -> bool {
    *field != T::default()
}

/// Converts every item, with its index in the path of an error.
fn each<A, B>(items: Vec<A>, field: &str, convert: impl Fn(A) -> Decoded<B>) -> Decoded<Vec<B>> {
    let convert = |(i, item)| convert(item).map_err(|e| e.at(format!("{field}[{i}]")));
    let mut all: Vec<B> = items.into_iter().enumerate().map(convert).collect::<Decoded<_>>()?;
    // Collecting reuses the memory of the messages, which are a hundred times larger than what is made of them.
    all.shrink_to_fit();
    Ok(all)
}

/// Unpacks an Any of a known type, and refuses tags that the type does not have: prost would drop them without a word.
fn strict<M: Message + prost::Name + Default>(any: &Any) -> Decoded<M> {
    let message: M = xds::unpack(any).map_err(Reject::new)?;
    // Equal lengths mean that nothing was dropped; only otherwise is the (larger) descriptor set asked what it was.
    if message.encoded_len() == any.value.len() {
        return Ok(message);
    }
    match xds::reflect::unknown_tag(&any.type_url, &any.value).map_err(Reject::new)? {
        Some(tag) => Err(Reject::new("unknown field: it may restrict what is allowed").at(tag)),
        None => Ok(message),
    }
}

/// Longest duration, in seconds: protobuf's own limit, about 10,000 years. Sums of such durations are far from overflow.
const LONGEST: u64 = 315_576_000_000;

fn duration(wire: Option<&protobuf::Duration>, field: &str) -> Decoded<Option<Duration>> {
    let Some(wire) = wire else { return Ok(None) };
    match (u64::try_from(wire.seconds), u32::try_from(wire.nanos)) {
        (Ok(LONGEST..), _) => Err(Reject::new("longer than 10,000 years").at(field)),
        (Ok(seconds), Ok(nanos)) if nanos < 1_000_000_000 => Ok(Some(Duration::new(seconds, nanos))),
        _ => Err(Reject::new("a duration may not be negative").at(field)),
    }
}

/// A duration for which zero means "none".
fn limit(wire: Option<&protobuf::Duration>, field: &str) -> Decoded<Option<Duration>> {
    Ok(duration(wire, field)?.filter(|d| !d.is_zero()))
}

fn u32_of(wire: Option<protobuf::UInt32Value>) -> Option<u32> {
    wire.map(|w| w.value)
}

fn bool_of(wire: Option<protobuf::BoolValue>, default: bool) -> bool {
    wire.map_or(default, |w| w.value)
}

fn port(number: u32, field: &str) -> Decoded<u16> {
    u16::try_from(number).map_err(|_| Reject::new(format!("{number} is not a port")).at(field))
}

fn status(number: u32, field: &str) -> Decoded<u16> {
    match u16::try_from(number) {
        Ok(status @ 200..=599) => Ok(status),
        _ => Err(Reject::new(format!("{number} is not a status from 200 to 599")).at(field)),
    }
}

/// The text at `filter_metadata[filter][key]`, when there is one.
fn metadata_text<'a>(
    metadata: Option<&'a xds::envoy::config::core::v3::Metadata>,
    filter: &str,
    key: &str,
) -> Option<&'a str> {
    text(metadata?.filter_metadata.get(filter)?.fields.get(key)?)
}

fn text(value: &protobuf::Value) -> Option<&str> {
    match value.kind.as_ref()? {
        protobuf::value::Kind::StringValue(text) => Some(text),
        _ => None,
    }
}
