//! Durations as Go and protobuf JSON write them: `0.5s`, `1m30s`, `10ms`.
//!
//! In: a YAML string. Out: [`GoDuration`], a non-negative time span; displayed again in Go's form.
//! Kept true: `parse` of a displayed duration gives the same duration back.
//! Not here: lower bounds of single fields (`validate`).

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{fmt, ops::Deref, str::FromStr, time::Duration};

/// A span of time written as a Go duration: decimal numbers with units `ns us µs ms s m h`, in sequence.
/// From 0 to about 584 years; negative spans are refused. `0` alone needs no unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GoDuration(pub Duration);

/// A text that is no duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a duration: write a number with a unit, such as \"0.5s\", \"10ms\" or \"1m30s\"")]
pub struct BadDuration(String);

impl GoDuration {
    /// A whole number of milliseconds.
    pub const fn from_millis(ms: u64) -> Self {
        Self(Duration::from_millis(ms))
    }

    /// A whole number of seconds.
    pub const fn from_secs(s: u64) -> Self {
        Self(Duration::from_secs(s))
    }
}

impl Deref for GoDuration {
    type Target = Duration;
    fn deref(&self) -> &Duration {
        &self.0
    }
}

impl From<GoDuration> for Duration {
    fn from(d: GoDuration) -> Self {
        d.0
    }
}

impl From<Duration> for GoDuration {
    fn from(d: Duration) -> Self {
        Self(d)
    }
}

impl FromStr for GoDuration {
    type Err = BadDuration;

    fn from_str(text: &str) -> Result<Self, BadDuration> {
        let bad = || BadDuration(text.chars().take(64).collect());
        let mut rest = text.strip_prefix('+').unwrap_or(text);
        if rest == "0" {
            return Ok(Self::default());
        }
        if rest.is_empty() {
            return Err(bad());
        }
        let mut nanos: u128 = 0;
        while !rest.is_empty() {
            let (whole, after) = digits(rest);
            let (fraction, after) = match after.strip_prefix('.') {
                Some(after) => digits(after),
                None => ("", after),
            };
            if whole.is_empty() && fraction.is_empty() {
                return Err(bad());
            }
            let end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
            let (unit, after) = after.split_at(end);
            let unit: u128 = match unit {
                "ns" => 1,
                "us" | "µs" | "μs" => 1_000,
                "ms" => 1_000_000,
                "s" => 1_000_000_000,
                "m" => 60_000_000_000,
                "h" => 3_600_000_000_000,
                _ => return Err(bad()),
            };
            let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| bad())? };
            nanos = whole.checked_mul(unit).and_then(|n| nanos.checked_add(n)).ok_or_else(bad)?;
            let mut scale = unit;
            for digit in fraction.bytes() {
                scale /= 10;
                nanos = nanos.checked_add(u128::from(digit - b'0') * scale).ok_or_else(bad)?;
            }
            rest = after;
        }
        u64::try_from(nanos).map(|nanos| Self(Duration::from_nanos(nanos))).map_err(|_| bad())
    }
}

fn digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.as_nanos();
        let (scale, unit) = match nanos {
            0 => return f.write_str("0s"),
            1..1_000 => (1, "ns"),
            1_000..1_000_000 => (1_000, "µs"),
            1_000_000..1_000_000_000 => (1_000_000, "ms"),
            _ => (1_000_000_000, "s"),
        };
        let (mut whole, fraction) = (nanos / scale, nanos % scale);
        if unit == "s" {
            let (hours, minutes) = (whole / 3600, whole / 60 % 60);
            if hours > 0 {
                write!(f, "{hours}h")?;
            }
            if hours > 0 || minutes > 0 {
                write!(f, "{minutes}m")?;
            }
            whole %= 60;
        }
        write!(f, "{whole}")?;
        if fraction > 0 {
            let width = scale.ilog10() as usize;
            write!(f, ".{}", format!("{fraction:0width$}").trim_end_matches('0'))?;
        }
        f.write_str(unit)
    }
}

impl Serialize for GoDuration {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Text;
        impl de::Visitor<'_> for Text {
            type Value = GoDuration;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration such as \"0.5s\"")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<GoDuration, E> {
                text.parse().map_err(E::custom)
            }
        }
        d.deserialize_str(Text)
    }
}

impl schemars::JsonSchema for GoDuration {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "GoDuration".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_durations_read_as_go_reads_them() {
        for (text, nanos) in [
            ("0.5s", 500_000_000),
            ("1m30s", 90_000_000_000),
            ("10ms", 10_000_000),
            ("0", 0),
            ("0s", 0),
            ("3m", 180_000_000_000),
            ("1.5h", 5_400_000_000_000),
            (".5s", 500_000_000),
            ("1.s", 1_000_000_000),
            ("100us", 100_000),
            ("100µs", 100_000),
            ("1h2m3.004s", 3_723_004_000_000),
            ("+1ns", 1),
        ] {
            assert_eq!(text.parse(), Ok(GoDuration(Duration::from_nanos(nanos))), "{text}");
        }
    }

    #[test]
    fn what_go_refuses_is_refused_with_the_form_to_use() {
        for text in
            ["", "+", "5", "-1s", "1 s", "s", ".s", "1x", "1s ", "1e3s", "99999999999h", "1m30", "1..5s"]
        {
            let err = text.parse::<GoDuration>().expect_err(text).to_string();
            assert!(err.contains("such as \"0.5s\""), "{text}: {err}");
        }
    }

    #[test]
    fn a_shown_duration_reads_back_the_same() {
        for (nanos, text) in [
            (0, "0s"),
            (500_000_000, "500ms"),
            (90_000_000_000, "1m30s"),
            (1_500_000, "1.5ms"),
            (3_600_000_000_000, "1h0m0s"),
            (7, "7ns"),
            (1_050_000_000, "1.05s"),
        ] {
            let d = GoDuration(Duration::from_nanos(nanos));
            assert_eq!(d.to_string(), text);
            assert_eq!(text.parse(), Ok(d));
        }
    }

    proptest::proptest! {
        #[test]
        fn any_duration_survives_being_shown(nanos: u64) {
            let d = GoDuration(Duration::from_nanos(nanos));
            proptest::prop_assert_eq!(d.to_string().parse(), Ok(d));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC*|[0-9.smhnu+]{0,40}") {
            drop(text.parse::<GoDuration>());
        }
    }
}
