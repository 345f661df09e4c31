//! Ordered header or trailer fields over the bytes as received.
//! In: spans of one received block, then edits. Out: lookups by [`Name`], iteration in order, HTTP/1 text.
//! Kept true: names are lower-case tokens, values hold no CR, LF or NUL; an edit never moves what was received.
//! Not here: the start line (`head`), what may be in a field (`h1::parse`, `h2::convert`).

use std::borrow::Cow;

use bytes::{BufMut, Bytes, BytesMut};

use super::name::{Known, MAX_NAME, Name, is_token};

/// A range of the received block, or of the bytes added since.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Span {
    /// Start; the top bit says that it counts in the added bytes.
    at: u32,
    len: u32,
}

const ADDED: u32 = 1 << 31;

/// What a proxied request gains in text (ids, trace, deadlines), so that it grows once.
const ADDED_AT_FIRST: usize = 256;

impl Span {
    /// A range of the received block. Blocks are capped far below 2 GiB, so a range that does not fit is cut to nothing.
    pub(crate) fn received(at: usize, len: usize) -> Span {
        match (u32::try_from(at), u32::try_from(len)) {
            (Ok(at), Ok(len)) if at < ADDED => Span { at, len },
            _ => Span::default(),
        }
    }

    fn added(at: usize, len: usize) -> Span {
        match (u32::try_from(at), u32::try_from(len)) {
            (Ok(at), Ok(len)) if at < ADDED => Span { at: at | ADDED, len },
            _ => Span { at: ADDED, len: 0 },
        }
    }

    /// Start within the bytes it counts in.
    pub(crate) fn start(self) -> usize {
        (self.at & !ADDED) as usize
    }

    /// Length in bytes.
    pub(crate) fn len(self) -> usize {
        self.len as usize
    }
}

/// One field: which name, where its text is (if not known), where its value is.
#[derive(Clone, Copy, Debug)]
struct Field {
    known: Option<Known>,
    name: Span,
    value: Span,
}

/// Ordered fields. Cloning shares the received block and copies a small list.
#[derive(Clone, Default)]
pub struct Fields {
    block: Bytes,
    added: Vec<u8>,
    list: Vec<Field>,
}

impl Fields {
    /// No fields.
    pub fn new() -> Fields {
        Fields::default()
    }

    pub(crate) fn with_capacity(fields: usize) -> Fields {
        Fields { list: Vec::with_capacity(fields), ..Fields::default() }
    }

    /// Sets the received block that `push_received` spans count in.
    pub(crate) fn set_block(&mut self, block: Bytes) {
        self.block = block;
    }

    /// Adds a received field. The caller has checked name (lower-case token) and value.
    pub(crate) fn push_received(&mut self, known: Option<Known>, name: Span, value: Span) {
        self.list.push(Field { known, name, value });
    }

    /// Adds bytes that are not a field (a path, an authority) beside the fields.
    pub(crate) fn add_text(&mut self, text: &[u8]) -> Span {
        if self.added.capacity() == 0 {
            self.added.reserve(ADDED_AT_FIRST);
        }
        let at = self.added.len();
        self.added.extend_from_slice(text);
        Span::added(at, text.len())
    }

    pub(crate) fn text(&self, span: Span) -> &[u8] {
        let at = span.start();
        let bytes: &[u8] = if span.at & ADDED == 0 { &self.block } else { &self.added };
        bytes.get(at..at + span.len()).unwrap_or_default()
    }

    fn name_of(&self, field: &Field) -> &str {
        match field.known {
            Some(known) => known.as_str(),
            None => std::str::from_utf8(self.text(field.name)).unwrap_or_default(),
        }
    }

    fn is(&self, field: &Field, name: Name<'_>) -> bool {
        match name {
            Name::Known(known) => field.known == Some(known),
            Name::Text(text) => {
                field.known.is_none() && self.text(field.name).eq_ignore_ascii_case(text.as_bytes())
            }
        }
    }

    /// The first value of a name.
    pub fn get<'a>(&self, name: impl Into<Name<'a>>) -> Option<&[u8]> {
        let name = name.into();
        self.list.iter().find(|field| self.is(field, name)).map(|field| self.text(field.value))
    }

    /// The first value of a name, if it is UTF-8.
    pub fn get_str<'a>(&self, name: impl Into<Name<'a>>) -> Option<&str> {
        self.get(name).and_then(|value| std::str::from_utf8(value).ok())
    }

    /// All values of a name, in order.
    pub fn get_all<'a>(&self, name: impl Into<Name<'a>>) -> impl Iterator<Item = &[u8]> {
        let name = name.into();
        self.list.iter().filter(move |field| self.is(field, name)).map(|field| self.text(field.value))
    }

    /// All values of a name joined with `,`, the form that header matching judges. Borrowed if there is only one.
    pub fn get_joined<'a>(&self, name: impl Into<Name<'a>>) -> Option<Cow<'_, [u8]>> {
        let mut values = self.get_all(name);
        let first = values.next()?;
        let Some(second) = values.next() else { return Some(Cow::Borrowed(first)) };
        let mut joined = first.to_vec();
        for value in std::iter::once(second).chain(values) {
            joined.push(b',');
            joined.extend_from_slice(value);
        }
        Some(Cow::Owned(joined))
    }

    /// Whether a name is there.
    pub fn contains<'a>(&self, name: impl Into<Name<'a>>) -> bool {
        self.get(name).is_some()
    }

    /// Replaces every field of this name by one, at the place of the first (else at the end).
    /// CR, LF, NUL and other controls in the value become spaces; a name that is no token is ignored.
    pub fn set<'a>(&mut self, name: impl Into<Name<'a>>, value: impl AsRef<[u8]>) {
        let name = name.into();
        let Some(first) = self.list.iter().position(|field| self.is(field, name)) else {
            return self.append(name, value);
        };
        let value = self.add_value(value.as_ref());
        self.list[first].value = value;
        let mut at = first + 1;
        while at < self.list.len() {
            if self.is(&self.list[at], name) {
                self.list.remove(at);
            } else {
                at += 1;
            }
        }
    }

    /// Adds a field at the end, whether or not the name is there. Values and names are treated as by [`Fields::set`].
    pub fn append<'a>(&mut self, name: impl Into<Name<'a>>, value: impl AsRef<[u8]>) {
        let (known, name) = match name.into() {
            Name::Known(known) => (Some(known), Span::default()),
            Name::Text(text) => {
                if text.is_empty() || text.len() > MAX_NAME || !text.bytes().all(is_token) {
                    return;
                }
                let span = self.add_text(text.as_bytes());
                let at = span.start();
                self.added[at..].make_ascii_lowercase();
                (None, span)
            }
        };
        let value = self.add_value(value.as_ref());
        self.list.push(Field { known, name, value });
    }

    /// Adds a field if the name is not there.
    pub fn set_if_absent<'a>(&mut self, name: impl Into<Name<'a>>, value: impl AsRef<[u8]>) {
        let name = name.into();
        if !self.contains(name) {
            self.append(name, value);
        }
    }

    /// Removes every field of this name; says whether there was one.
    pub fn remove<'a>(&mut self, name: impl Into<Name<'a>>) -> bool {
        let name = name.into();
        let before = self.list.len();
        let mut list = std::mem::take(&mut self.list);
        list.retain(|field| !self.is(field, name));
        self.list = list;
        self.list.len() != before
    }

    /// Keeps the fields that the function wants.
    pub fn retain(&mut self, mut keep: impl FnMut(&str, &[u8]) -> bool) {
        let mut list = std::mem::take(&mut self.list);
        list.retain(|field| keep(self.name_of(field), self.text(field.value)));
        self.list = list;
    }

    /// Keeps the fields that the function wants, by their number.
    pub(crate) fn retain_known(&mut self, mut keep: impl FnMut(Option<Known>, &[u8]) -> bool) {
        let mut list = std::mem::take(&mut self.list);
        list.retain(|field| keep(field.known, self.text(field.value)));
        self.list = list;
    }

    /// The fields in order, names lower-case.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.list.iter().map(|field| (self.name_of(field), self.text(field.value)))
    }

    /// The fields in order with the number of the known ones.
    pub fn iter_known(&self) -> impl Iterator<Item = (Option<Known>, &str, &[u8])> {
        self.list.iter().map(|field| (field.known, self.name_of(field), self.text(field.value)))
    }

    /// How many fields there are.
    pub fn field_count(&self) -> usize {
        self.list.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Their size as HTTP/1 text (`name: value` and line end each), in bytes.
    pub fn wire_size(&self) -> usize {
        self.list
            .iter()
            .map(|field| {
                let name = field.known.map_or(field.name.len(), |known| known.as_str().len());
                name + field.value.len() + 4
            })
            .sum()
    }

    /// Writes `name: value` lines for the fields that the function lets through.
    pub(crate) fn write_lines(&self, out: &mut BytesMut, mut pass: impl FnMut(Option<Known>, &[u8]) -> bool) {
        for field in &self.list {
            let value = self.text(field.value);
            if pass(field.known, value) {
                out.put_slice(self.name_of(field).as_bytes());
                out.put_slice(b": ");
                out.put_slice(value);
                out.put_slice(b"\r\n");
            }
        }
    }

    fn add_value(&mut self, value: &[u8]) -> Span {
        let is_blank =
            |byte: &u8| (*byte < 0x20 && *byte != b'\t') || *byte == 0x7f || matches!(byte, b' ' | b'\t');
        let lead = value.iter().take_while(|byte| is_blank(byte)).count();
        let tail = value[lead..].iter().rev().take_while(|byte| is_blank(byte)).count();
        let span = self.add_text(&value[lead..value.len() - tail]);
        for byte in &mut self.added[span.start()..] {
            if is_blank(byte) && *byte != b'\t' {
                *byte = b' ';
            }
        }
        span
    }
}

impl std::fmt::Debug for Fields {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map()
            .entries(self.iter().map(|(name, value)| (name, value.escape_ascii().to_string())))
            .finish()
    }
}

impl<'a, N: Into<Name<'a>>, V: AsRef<[u8]>> FromIterator<(N, V)> for Fields {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(fields: I) -> Fields {
        let mut all = Fields::new();
        for (name, value) in fields {
            all.append(name, value);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Fields {
        [("user-agent", "curl"), ("X-Odd", "1"), ("cookie", "a=1"), ("x-odd", "2")].into_iter().collect()
    }

    fn shown(fields: &Fields) -> String {
        fields.iter().map(|(name, value)| format!("{name}={};", String::from_utf8_lossy(value))).collect()
    }

    #[test]
    fn names_are_found_in_any_case_and_in_order() {
        let fields = sample();
        assert_eq!(fields.get_str("User-Agent"), Some("curl"));
        assert_eq!(fields.get_str(Known::UserAgent), Some("curl"));
        assert_eq!(fields.get_all("x-ODD").count(), 2);
        assert_eq!(fields.get_joined("x-odd").as_deref(), Some(&b"1,2"[..]));
        assert_eq!(fields.get("nope"), None);
    }

    #[test]
    fn edits_keep_order_and_leave_other_fields_alone() {
        let mut fields = sample();
        fields.set("x-odd", "3");
        assert_eq!(shown(&fields), "user-agent=curl;x-odd=3;cookie=a=1;");
        fields.set(Known::XRequestId, "r");
        fields.set_if_absent("cookie", "never");
        fields.append("Cookie", "b=2");
        assert!(fields.remove("USER-AGENT"));
        assert!(!fields.remove("user-agent"));
        assert_eq!(shown(&fields), "x-odd=3;cookie=a=1;x-request-id=r;cookie=b=2;");
    }

    #[test]
    fn a_value_cannot_smuggle_a_line_and_a_bad_name_is_ignored() {
        let mut fields = Fields::new();
        fields.set("x-a", "one\r\nx-evil: 1\0 ");
        fields.set("bad name", "x");
        fields.append("", "x");
        assert_eq!(shown(&fields), "x-a=one  x-evil: 1;");
    }
}
