//! Durations as Go writes them: `1h2m3.5s`, `19ms`, `-1.5h`, `0`.
//!
//! In: text or nanoseconds. Out: the other one.
//! Kept true: `parse(&format(d)) == d`. Not here: protobuf durations (`ingest`).

/// Nanoseconds in a unit, by the unit's name.
const UNITS: [(&str, i128); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// Reads a Go duration as nanoseconds; `None` if Go's `time.ParseDuration` would refuse it or it exceeds 292 years.
#[must_use]
pub fn parse(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (whole, after) = rest.split_at(digits);
        let (fraction, after) = match after.strip_prefix('.') {
            Some(tail) => {
                let digits = tail.len() - tail.trim_start_matches(|c: char| c.is_ascii_digit()).len();
                tail.split_at(digits)
            }
            None => ("", after),
        };
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let name_len = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (name, tail) = after.split_at(name_len);
        let (_, unit) = UNITS.iter().find(|(unit, _)| *unit == name)?;
        let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        total = total.checked_add(whole.checked_mul(*unit)?)?;
        let mut scale = *unit;
        for digit in fraction.bytes().take(18) {
            // Same as summing digit * unit / 10^n, truncated at nanoseconds.
            total = total.checked_add(i128::from(digit - b'0').checked_mul(scale)? / 10)?;
            scale /= 10;
            if scale == 0 {
                break;
            }
        }
        rest = tail;
    }
    i64::try_from(if negative { -total } else { total }).ok()
}

/// Writes nanoseconds as Go's `Duration.String` does.
#[must_use]
pub fn format(nanos: i64) -> String {
    let magnitude = u128::from(nanos.unsigned_abs());
    let sign = if nanos < 0 { "-" } else { "" };
    if magnitude == 0 {
        return "0s".to_owned();
    }
    for (unit, size, below) in [("ns", 1, 1_000), ("µs", 1_000, 1_000_000), ("ms", 1_000_000, 1_000_000_000)]
    {
        if magnitude < below {
            return format!("{sign}{}{unit}", decimal(magnitude, size));
        }
    }
    let (minutes, rest) = (magnitude / 60_000_000_000, magnitude % 60_000_000_000);
    let (hours, minutes_left) = (minutes / 60, minutes % 60);
    let seconds = decimal(rest, 1_000_000_000);
    match (hours, minutes) {
        (0, 0) => format!("{sign}{seconds}s"),
        (0, _) => format!("{sign}{minutes}m{seconds}s"),
        _ => format!("{sign}{hours}h{minutes_left}m{seconds}s"),
    }
}

fn decimal(value: u128, unit: u128) -> String {
    let (whole, rest) = (value / unit, value % unit);
    if rest == 0 {
        return whole.to_string();
    }
    let width = unit.ilog10();
    let digits = format!("{rest:0width$}", width = usize::try_from(width).unwrap_or(9));
    format!("{whole}.{}", digits.trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_go_reads_is_read_and_written_back_as_go_writes_it() {
        for (text, nanos, written) in [
            ("19ms", 19_000_000, "19ms"),
            ("0", 0, "0s"),
            ("0s", 0, "0s"),
            ("-1.5h", -5_400_000_000_000, "-1h30m0s"),
            ("1m30s", 90_000_000_000, "1m30s"),
            ("1h2m3.5s", 3_723_500_000_000, "1h2m3.5s"),
            (".5s", 500_000_000, "500ms"),
            ("1.s", 1_000_000_000, "1s"),
            ("15us", 15_000, "15µs"),
            ("1.001µs", 1_001, "1.001µs"),
            ("+7ns", 7, "7ns"),
            ("2562047h47m16.854775807s", i64::MAX, "2562047h47m16.854775807s"),
            ("0.000000001s", 1, "1ns"),
        ] {
            assert_eq!(parse(text), Some(nanos), "{text}");
            assert_eq!(format(nanos), written, "{text}");
            assert_eq!(parse(written), Some(nanos), "{text}");
        }
    }

    #[test]
    fn what_go_refuses_is_refused() {
        for text in ["", "1", "-", "s", "1x", "1 s", "ms", ".s", "1s2", "9999999h", "abc", "1e3s", "--1s"] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }
}
