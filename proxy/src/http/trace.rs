//! Trace context: B3 first, W3C second, one trace id whichever the application copies.
//!
//! In: a request's headers. Out: the same headers with this hop's span, and [`Span`] for the record. Kept true: a client's decision to
//! sample stands; without one the listener's share decides once, at the first hop. Not here: sending spans (`telemetry`).

use std::{fmt, ops::Deref};

use crate::codec::{Head, Known};

/// Up to 32 lower-case hex digits, kept in place: a request makes several.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Id {
    digits: [u8; 32],
    len: u8,
}

impl Id {
    /// The digits of a number, with leading zeros.
    pub(super) fn of(numbers: &[u64]) -> Self {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut id = Self::default();
        for byte in numbers.iter().flat_map(|number| number.to_be_bytes()) {
            id.push(DIGITS[usize::from(byte >> 4)]);
            id.push(DIGITS[usize::from(byte & 15)]);
        }
        id
    }

    fn push(&mut self, digit: u8) {
        if let Some(place) = self.digits.get_mut(usize::from(self.len)) {
            *place = digit;
            self.len += 1;
        }
    }

    /// The digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.digits.get(..usize::from(self.len)).and_then(|d| std::str::from_utf8(d).ok()).unwrap_or_default()
    }
}

impl Deref for Id {
    type Target = str;

    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self)
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

/// This hop's place in a trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// 16 or 32 digits.
    pub trace: Id,
    /// 16 digits.
    pub id: Id,
    /// 16 digits, empty at the root.
    pub parent: Id,
    /// Whether it is kept.
    pub sampled: bool,
}

struct Context {
    trace: Id,
    parent: Id,
    sampled: Option<bool>,
}

fn hex(text: &str, lengths: &[usize]) -> Option<Id> {
    let zero = text.bytes().all(|byte| byte == b'0');
    let fits = lengths.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit()) && !zero;
    fits.then(|| {
        let mut id = Id::default();
        text.bytes().for_each(|byte| id.push(byte.to_ascii_lowercase()));
        id
    })
}

fn sampled(text: &str) -> Option<bool> {
    match text {
        "1" | "d" | "true" => Some(true),
        "0" | "false" => Some(false),
        _ => None,
    }
}

/// What the client says: B3 in several fields, B3 in one, then W3C.
fn incoming(head: &Head) -> Option<Context> {
    if let Some(trace) = head.get_str(Known::XB3TraceId).and_then(|t| hex(t, &[16, 32])) {
        let parent = head.get_str(Known::XB3SpanId).and_then(|s| hex(s, &[16])).unwrap_or_default();
        let debug = head.get_str(Known::XB3Flags) == Some("1");
        let decided = head.get_str(Known::XB3Sampled).and_then(sampled);
        return Some(Context { trace, parent, sampled: if debug { Some(true) } else { decided } });
    }
    if let Some(single) = head.get_str(Known::B3) {
        let mut parts = single.split('-');
        if let (Some(trace), Some(parent)) =
            (parts.next().and_then(|t| hex(t, &[16, 32])), parts.next().and_then(|s| hex(s, &[16])))
        {
            return Some(Context { trace, parent, sampled: parts.next().and_then(sampled) });
        }
    }
    let mut parts = head.get_str(Known::Traceparent)?.split('-');
    let (_version, trace, parent) = (parts.next()?, hex(parts.next()?, &[32])?, hex(parts.next()?, &[16])?);
    let flags = u8::from_str_radix(parts.next()?.get(..2)?, 16).ok()?;
    Some(Context { trace, parent, sampled: Some(flags & 1 == 1) })
}

/// Makes this hop's span and writes it into the headers. `chosen`: this request falls into the listener's share.
pub fn propagate(head: &mut Head, mut random: impl FnMut() -> u64, chosen: bool) -> Span {
    let context = incoming(head);
    let decided = head.get_str(Known::XB3Sampled).and_then(sampled);
    let id = Id::of(&[random().max(1)]);
    let span = match context {
        Some(context) => Span {
            trace: context.trace,
            id,
            parent: context.parent,
            sampled: context.sampled.or(decided).unwrap_or(chosen),
        },
        None => Span {
            trace: Id::of(&[random().max(1), random()]),
            id,
            parent: Id::default(),
            sampled: decided.unwrap_or(chosen),
        },
    };
    head.set(Known::XB3TraceId, span.trace.as_bytes());
    head.set(Known::XB3SpanId, span.id.as_bytes());
    if span.parent.is_empty() {
        head.remove(Known::XB3ParentSpanId);
    } else {
        head.set(Known::XB3ParentSpanId, span.parent.as_bytes());
    }
    head.set(Known::XB3Sampled, if span.sampled { "1" } else { "0" });
    if head.contains(Known::B3) {
        let kept = u8::from(span.sampled);
        head.set(Known::B3, format!("{}-{}-{kept}", span.trace, span.id));
    }
    if head.contains(Known::Traceparent) {
        let kept = u8::from(span.sampled);
        head.set(Known::Traceparent, format!("00-{:0>32}-{}-{kept:02x}", span.trace, span.id));
    }
    span
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Method;

    const TRACE: &str = "463ac35c9f6413ad48485a3953bb6124";
    const SPAN: &str = "a2fb4a1d1a96d312";

    fn numbers() -> impl FnMut() -> u64 {
        let mut n = 0;
        move || {
            n += 1;
            n
        }
    }

    #[test]
    fn b3_wins_over_w3c_and_both_end_with_one_trace() {
        let mut head = Head::request(Method::GET, "a", "/");
        head.set("x-b3-traceid", TRACE);
        head.set("x-b3-spanid", SPAN);
        head.set("x-b3-sampled", "1");
        head.set("traceparent", "00-11111111111111111111111111111111-2222222222222222-00");
        let span = propagate(&mut head, numbers(), false);
        assert_eq!((span.trace.as_str(), span.parent.as_str(), span.sampled), (TRACE, SPAN, true));
        assert_eq!(head.get_str("x-b3-parentspanid"), Some(SPAN));
        let traceparent = format!("00-{TRACE}-{}-01", span.id);
        assert_eq!(head.get_str("traceparent"), Some(traceparent.as_str()));
    }

    #[test]
    fn the_clients_decision_stands_and_else_the_share_decides() {
        for (fields, chosen, want) in [
            (vec![], true, true),
            (vec![], false, false),
            (vec![("x-b3-sampled", "0")], true, false),
            (vec![("x-b3-traceid", TRACE), ("x-b3-spanid", SPAN)], true, true),
            (vec![("x-b3-traceid", TRACE), ("x-b3-sampled", "0")], true, false),
            (vec![("x-b3-traceid", TRACE), ("x-b3-flags", "1")], false, true),
            (vec![("b3", "463ac35c9f6413ad-a2fb4a1d1a96d312-0")], true, false),
            (vec![("traceparent", "00-463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-01")], false, true),
        ] {
            let mut head = Head::request(Method::GET, "a", "/");
            fields.iter().for_each(|(name, value)| head.set(*name, value));
            assert_eq!(propagate(&mut head, numbers(), chosen).sampled, want, "{fields:?} {chosen}");
        }
    }

    #[test]
    fn nonsense_starts_a_new_trace() {
        for bad in ["", "xyz", "0000000000000000", "463ac35c9f6413ad4848"] {
            let mut head = Head::request(Method::GET, "a", "/");
            head.set("x-b3-traceid", bad);
            let span = propagate(&mut head, numbers(), true);
            assert_eq!((span.trace.len(), span.parent.as_str()), (32, ""), "{bad:?}");
        }
    }
}
