//! Values and their types.
//!
//! In: any ingest protocol or a literal. Out: [`Value`], cheap to clone.
//! Kept true: a value knows its type; text is shared, never copied. Not here: names (`vocabulary`).

use std::{fmt, net::IpAddr, sync::Arc};

use serde::Deserialize;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::duration;

/// Shared text.
pub type Text = Arc<str>;

/// The types an attribute or expression can have, named as in `istio.policy.v1beta1.ValueType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ValueType {
    /// Text.
    String,
    /// A whole number.
    Int64,
    /// A real number.
    Double,
    /// Yes or no.
    Bool,
    /// A moment.
    Timestamp,
    /// An IPv4 or IPv6 address.
    IpAddress,
    /// An address of RFC 5322.
    EmailAddress,
    /// A URI.
    Uri,
    /// A domain name.
    DnsName,
    /// A length of time.
    Duration,
    /// Text by text.
    StringMap,
}

impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::String => "STRING",
            Self::Int64 => "INT64",
            Self::Double => "DOUBLE",
            Self::Bool => "BOOL",
            Self::Timestamp => "TIMESTAMP",
            Self::IpAddress => "IP_ADDRESS",
            Self::EmailAddress => "EMAIL_ADDRESS",
            Self::Uri => "URI",
            Self::DnsName => "DNS_NAME",
            Self::Duration => "DURATION",
            Self::StringMap => "STRING_MAP",
        })
    }
}

/// A moment, in nanoseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// Now.
    #[must_use]
    pub fn now() -> Self {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
    }

    /// From microseconds since the Unix epoch; later than 2262 becomes 2262.
    #[must_use]
    pub fn from_micros(micros: u64) -> Self {
        Self(i64::try_from(micros).ok().and_then(|micros| micros.checked_mul(1_000)).unwrap_or(i64::MAX))
    }

    /// Microseconds since the Unix epoch; before 1970 is 0.
    #[must_use]
    pub fn micros(self) -> u64 {
        u64::try_from(self.0 / 1_000).unwrap_or(0)
    }

    /// Reads RFC 3339.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let moment = OffsetDateTime::parse(text, &Rfc3339).ok()?;
        i64::try_from(moment.unix_timestamp_nanos()).ok().map(Self)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.0)).ok();
        f.write_str(&text.and_then(|moment| moment.format(&Rfc3339).ok()).unwrap_or_default())
    }
}

/// A small map of text, ordered by key.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct StringMap(Arc<[(Text, Text)]>);

impl StringMap {
    /// The value of `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Text> {
        let at = self.0.binary_search_by(|(name, _)| (**name).cmp(key)).ok()?;
        self.0.get(at).map(|(_, value)| value)
    }

    /// Entries by key.
    pub fn iter(&self) -> impl Iterator<Item = (&Text, &Text)> {
        self.0.iter().map(|(key, value)| (key, value))
    }
}

impl<K: Into<Text>, V: Into<Text>> FromIterator<(K, V)> for StringMap {
    /// Of entries with the same key the last one stays.
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut entries: Vec<(Text, Text)> =
            entries.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
        entries.reverse();
        entries.sort_by(|a, b| a.0.cmp(&b.0));
        entries.dedup_by(|b, a| a.0 == b.0);
        Self(entries.into())
    }
}

/// A typed value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Text.
    String(Text),
    /// A whole number.
    Int64(i64),
    /// A real number.
    Double(f64),
    /// Yes or no.
    Bool(bool),
    /// A moment.
    Timestamp(Timestamp),
    /// An IP address; an IPv4 address mapped into IPv6 is held as IPv4.
    Ip(IpAddr),
    /// An email address.
    Email(Text),
    /// A URI.
    Uri(Text),
    /// A domain name.
    Dns(Text),
    /// Nanoseconds.
    Duration(i64),
    /// Text by text.
    StringMap(StringMap),
}

impl Value {
    /// Text as a value.
    #[must_use]
    pub fn text(text: impl Into<Text>) -> Self {
        Self::String(text.into())
    }

    /// An address as a value, in its shortest form.
    #[must_use]
    pub fn ip(address: IpAddr) -> Self {
        Self::Ip(address.to_canonical())
    }

    /// The value's type.
    #[must_use]
    pub fn value_type(&self) -> ValueType {
        match self {
            Self::String(_) => ValueType::String,
            Self::Int64(_) => ValueType::Int64,
            Self::Double(_) => ValueType::Double,
            Self::Bool(_) => ValueType::Bool,
            Self::Timestamp(_) => ValueType::Timestamp,
            Self::Ip(_) => ValueType::IpAddress,
            Self::Email(_) => ValueType::EmailAddress,
            Self::Uri(_) => ValueType::Uri,
            Self::Dns(_) => ValueType::DnsName,
            Self::Duration(_) => ValueType::Duration,
            Self::StringMap(_) => ValueType::StringMap,
        }
    }

    /// The value as JSON: times as RFC 3339, durations as Go writes them, addresses as text, maps as objects.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        match self {
            Self::Int64(number) => (*number).into(),
            Self::Double(number) => (*number).into(),
            Self::Bool(truth) => (*truth).into(),
            Self::StringMap(map) => {
                map.iter().map(|(key, value)| (key.to_string(), serde_json::Value::from(&**value))).collect()
            }
            other => other.to_string().into(),
        }
    }

    /// Reads JSON as a value of `kind`; the error says what was expected.
    pub fn from_json(kind: ValueType, json: &serde_json::Value) -> Result<Self, String> {
        let wrong = |what: &str| format!("expected {what} for {kind}, got {json}");
        let string = || json.as_str().ok_or_else(|| wrong("text"));
        Ok(match kind {
            ValueType::String => Self::text(string()?),
            ValueType::EmailAddress => Self::Email(string()?.into()),
            ValueType::Uri => Self::Uri(string()?.into()),
            ValueType::DnsName => Self::Dns(string()?.into()),
            ValueType::Int64 => Self::Int64(json.as_i64().ok_or_else(|| wrong("a whole number"))?),
            ValueType::Double => Self::Double(json.as_f64().ok_or_else(|| wrong("a number"))?),
            ValueType::Bool => Self::Bool(json.as_bool().ok_or_else(|| wrong("true or false"))?),
            ValueType::Timestamp => {
                Self::Timestamp(Timestamp::parse(string()?).ok_or_else(|| wrong("RFC 3339 text"))?)
            }
            ValueType::Duration => Self::Duration(
                duration::parse(string()?).ok_or_else(|| wrong("a duration such as \"19ms\""))?,
            ),
            ValueType::IpAddress => Self::ip(string()?.parse().map_err(|_| wrong("an IP address"))?),
            ValueType::StringMap => {
                let object = json.as_object().ok_or_else(|| wrong("an object of text"))?;
                let entries = object.iter().map(|(key, value)| {
                    let value = value.as_str().ok_or_else(|| wrong("an object of text"))?;
                    Ok((key.as_str(), value))
                });
                Self::StringMap(entries.collect::<Result<Vec<_>, String>>()?.into_iter().collect())
            }
        })
    }

    /// Bytes that this value holds in memory beyond its own size, for bounded queues.
    #[must_use]
    pub fn weight(&self) -> usize {
        match self {
            Self::String(text) | Self::Email(text) | Self::Uri(text) | Self::Dns(text) => text.len(),
            Self::StringMap(map) => map.iter().map(|(key, value)| key.len() + value.len() + 32).sum(),
            _ => 0,
        }
    }
}

/// Plain text, as labels and logs show it.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::String(text) | Self::Email(text) | Self::Uri(text) | Self::Dns(text) => f.write_str(text),
            Self::Int64(number) => number.fmt(f),
            Self::Double(number) => number.fmt(f),
            Self::Bool(truth) => truth.fmt(f),
            Self::Timestamp(time) => time.fmt(f),
            Self::Ip(address) => address.fmt(f),
            Self::Duration(nanos) => f.write_str(&duration::format(*nanos)),
            Self::StringMap(map) => {
                f.write_str("map[")?;
                for (i, (key, value)) in map.iter().enumerate() {
                    write!(f, "{}{key}:{value}", if i == 0 { "" } else { " " })?;
                }
                f.write_str("]")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_of_every_type_is_read_and_written_back() {
        for (kind, text) in [
            (ValueType::String, r#""a""#),
            (ValueType::Int64, "-7"),
            (ValueType::Double, "0.5"),
            (ValueType::Bool, "true"),
            (ValueType::Timestamp, r#""2026-11-23T10:00:00.5Z""#),
            (ValueType::IpAddress, r#""10.0.0.1""#),
            (ValueType::IpAddress, r#""2001:db8::1""#),
            (ValueType::EmailAddress, r#""a@b.c""#),
            (ValueType::Uri, r#""http://a/b""#),
            (ValueType::DnsName, r#""a.b""#),
            (ValueType::Duration, r#""1m30s""#),
            (ValueType::StringMap, r#"{"a":"b","c":""}"#),
        ] {
            let json: serde_json::Value = serde_json::from_str(text).expect("test data is JSON");
            let value = Value::from_json(kind, &json).expect(text);
            assert_eq!((value.value_type(), value.json()), (kind, json));
        }
    }

    #[test]
    fn json_of_the_wrong_type_names_what_was_expected() {
        let got = Value::from_json(ValueType::Duration, &"soon".into());
        assert_eq!(got, Err(r#"expected a duration such as "19ms" for DURATION, got "soon""#.to_owned()));
    }

    #[test]
    fn of_equal_keys_in_a_map_the_last_stays() {
        let map: StringMap = [("b", "1"), ("a", "2"), ("b", "3")].into_iter().collect();
        assert_eq!(map.get("b").map(|v| &**v), Some("3"));
        assert_eq!(map.iter().count(), 2);
    }
}
