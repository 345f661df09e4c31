//! Attributes in their compressed form, both ways.
//!
//! In: `CompressedAttributes` or name/value pairs. Out: the other one.
//! Kept true: an index that names no word is an error, never an empty string. Not here: types (`mixer::attributes`).

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::{
    dictionary,
    v1::{CompressedAttributes, ReportRequest, StringMap, report_request::RepeatedAttributesSemantics},
};

/// One attribute's value as the wire knows it.
#[derive(Clone, Debug, PartialEq)]
pub enum WireValue {
    /// Text.
    String(String),
    /// A whole number.
    Int64(i64),
    /// A real number.
    Double(f64),
    /// Yes or no.
    Bool(bool),
    /// A moment, in nanoseconds since the Unix epoch.
    Timestamp(i128),
    /// A length of time, in nanoseconds.
    Duration(i128),
    /// Bytes; an IP address when they are 4 or 16.
    Bytes(Vec<u8>),
    /// Text by text.
    StringMap(BTreeMap<String, String>),
}

/// Attributes by name, ordered so that encoding is repeatable.
pub type Attributes = BTreeMap<String, WireValue>;

/// Why a message could not be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CodecError {
    /// An index beyond both dictionaries.
    #[error("attribute word {0} is in neither the message's words nor the global dictionary")]
    UnknownWord(i32),
    /// The client counts more global words than this server has.
    #[error("inconsistent global dictionary versions used: mixer knows {ours} words, the client {theirs}")]
    Dictionary {
        /// Words here.
        ours: usize,
        /// Words there.
        theirs: u32,
    },
}

/// Refuses a client whose global dictionary is longer than ours, as Mixer does.
pub fn check_word_count(theirs: u32) -> Result<(), CodecError> {
    let ours = dictionary::WORDS.len();
    if usize::try_from(theirs).is_ok_and(|theirs| theirs <= ours) {
        Ok(())
    } else {
        Err(CodecError::Dictionary { ours, theirs })
    }
}

struct Words<'a>(&'a [String]);

impl Words<'_> {
    fn get(&self, index: i32) -> Result<&str, CodecError> {
        let found = if index < 0 {
            // -1 is word 0; `-(index + 1)` cannot overflow.
            usize::try_from(-(index + 1)).ok().and_then(|at| self.0.get(at)).map(String::as_str)
        } else {
            dictionary::word(index)
        };
        found.ok_or(CodecError::UnknownWord(index))
    }
}

const NANOS: i128 = 1_000_000_000;

/// Adds what `bag` holds to `into`, replacing values of the same name. `default_words` serves a bag without words.
pub fn decode_into(
    bag: &CompressedAttributes,
    default_words: &[String],
    into: &mut Attributes,
) -> Result<(), CodecError> {
    let words = Words(if bag.words.is_empty() { default_words } else { &bag.words });
    let mut put = |name: i32, value: WireValue| -> Result<(), CodecError> {
        into.insert(words.get(name)?.to_owned(), value);
        Ok(())
    };
    for (name, value) in &bag.strings {
        put(*name, WireValue::String(words.get(*value)?.to_owned()))?;
    }
    for (name, value) in &bag.int64s {
        put(*name, WireValue::Int64(*value))?;
    }
    for (name, value) in &bag.doubles {
        put(*name, WireValue::Double(*value))?;
    }
    for (name, value) in &bag.bools {
        put(*name, WireValue::Bool(*value))?;
    }
    for (name, value) in &bag.timestamps {
        put(*name, WireValue::Timestamp(i128::from(value.seconds) * NANOS + i128::from(value.nanos)))?;
    }
    for (name, value) in &bag.durations {
        put(*name, WireValue::Duration(i128::from(value.seconds) * NANOS + i128::from(value.nanos)))?;
    }
    for (name, value) in &bag.bytes {
        put(*name, WireValue::Bytes(value.clone()))?;
    }
    for (name, map) in &bag.string_maps {
        let entries = map
            .entries
            .iter()
            .map(|(key, value)| Ok((words.get(*key)?.to_owned(), words.get(*value)?.to_owned())))
            .collect::<Result<_, CodecError>>()?;
        put(*name, WireValue::StringMap(entries))?;
    }
    Ok(())
}

/// Reads one bag.
pub fn decode(bag: &CompressedAttributes) -> Result<Attributes, CodecError> {
    let mut out = Attributes::new();
    decode_into(bag, &[], &mut out)?;
    Ok(out)
}

/// Reads every bag of a report, in either encoding: independent, or each bag as a change to the one before.
pub fn decode_report(report: &ReportRequest) -> Result<Vec<Attributes>, CodecError> {
    check_word_count(report.global_word_count)?;
    let delta = report.repeated_attributes_semantics() == RepeatedAttributesSemantics::DeltaEncoding;
    let mut current = Attributes::new();
    let mut out = Vec::with_capacity(report.attributes.len());
    for bag in &report.attributes {
        if !delta {
            current.clear();
        }
        decode_into(bag, &report.default_words, &mut current)?;
        out.push(current.clone());
    }
    Ok(out)
}

/// Builds the words of one message.
#[derive(Default, Debug)]
pub struct Encoder {
    words: Vec<String>,
    index: HashMap<String, i32>,
}

impl Encoder {
    /// Index of `word`, global if it can be, else of this message.
    pub fn word(&mut self, word: &str) -> i32 {
        if let Some(index) = dictionary::index(word) {
            return index;
        }
        if let Some(index) = self.index.get(word) {
            return *index;
        }
        // A message with two thousand million words does not exist.
        let index = -1 - i32::try_from(self.words.len()).unwrap_or(i32::MAX - 1);
        self.words.push(word.to_owned());
        self.index.insert(word.to_owned(), index);
        index
    }

    /// The words that this message adds to the global ones.
    #[must_use]
    pub fn into_words(self) -> Vec<String> {
        self.words
    }

    fn bag(&mut self, attributes: &Attributes) -> CompressedAttributes {
        let mut bag = CompressedAttributes::default();
        for (name, value) in attributes {
            let name = self.word(name);
            match value {
                WireValue::String(text) => drop(bag.strings.insert(name, self.word(text))),
                WireValue::Int64(number) => drop(bag.int64s.insert(name, *number)),
                WireValue::Double(number) => drop(bag.doubles.insert(name, *number)),
                WireValue::Bool(truth) => drop(bag.bools.insert(name, *truth)),
                WireValue::Timestamp(nanos) => {
                    let (seconds, nanos) = split(*nanos);
                    bag.timestamps.insert(name, prost_types::Timestamp { seconds, nanos });
                }
                WireValue::Duration(nanos) => {
                    let (seconds, nanos) = split(*nanos);
                    bag.durations.insert(name, prost_types::Duration { seconds, nanos });
                }
                WireValue::Bytes(bytes) => drop(bag.bytes.insert(name, bytes.clone())),
                WireValue::StringMap(map) => {
                    let entries = map.iter().map(|(key, value)| (self.word(key), self.word(value))).collect();
                    bag.string_maps.insert(name, StringMap { entries });
                }
            }
        }
        bag
    }
}

fn split(nanos: i128) -> (i64, i32) {
    let seconds = i64::try_from(nanos.div_euclid(NANOS)).unwrap_or(i64::MAX);
    (seconds, i32::try_from(nanos.rem_euclid(NANOS)).unwrap_or(0))
}

/// Writes one bag.
#[must_use]
pub fn encode(attributes: &Attributes) -> CompressedAttributes {
    let mut encoder = Encoder::default();
    let mut bag = encoder.bag(attributes);
    bag.words = encoder.into_words();
    bag
}

/// Writes bags as a report: independent, as proxies since 1.1 send them, with shared words.
#[must_use]
pub fn encode_report(bags: &[Attributes]) -> ReportRequest {
    let mut encoder = Encoder::default();
    let attributes = bags.iter().map(|bag| encoder.bag(bag)).collect();
    ReportRequest {
        attributes,
        default_words: encoder.into_words(),
        global_word_count: u32::try_from(dictionary::WORDS.len()).unwrap_or(u32::MAX),
        repeated_attributes_semantics: RepeatedAttributesSemantics::IndependentEncoding.into(),
    }
}

impl WireValue {
    /// An IP address as the wire wants it.
    #[must_use]
    pub fn ip(address: IpAddr) -> Self {
        Self::Bytes(match address {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        })
    }

    /// A moment; times before 1970 become 1970.
    #[must_use]
    pub fn time(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Self::Timestamp(i128::try_from(since.as_nanos()).unwrap_or(i128::MAX))
    }
}

impl From<&str> for WireValue {
    fn from(text: &str) -> Self {
        Self::String(text.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Attributes {
        Attributes::from([
            ("source.ip".to_owned(), WireValue::ip([127, 0, 0, 1].into())),
            ("request.path".to_owned(), "/api".into()),
            ("response.code".to_owned(), WireValue::Int64(404)),
            ("my.ratio".to_owned(), WireValue::Double(0.5)),
            ("connection.mtls".to_owned(), WireValue::Bool(true)),
            ("request.time".to_owned(), WireValue::Timestamp(1_500_000_000_000_000_001)),
            ("response.duration".to_owned(), WireValue::Duration(-1)),
            (
                "source.labels".to_owned(),
                WireValue::StringMap(BTreeMap::from([("app".to_owned(), "web".to_owned())])),
            ),
        ])
    }

    #[test]
    fn a_bag_survives_encoding_and_decoding() {
        assert_eq!(decode(&encode(&sample())), Ok(sample()));
    }

    #[test]
    fn global_words_are_not_repeated_in_the_message() {
        let bag = encode(&sample());
        assert!(
            bag.words.contains(&"my.ratio".to_owned()) && !bag.words.contains(&"request.path".to_owned())
        );
    }

    #[test]
    fn an_independent_report_keeps_bags_apart_and_a_delta_report_adds_them_up() {
        let first = sample();
        let second = Attributes::from([("response.code".to_owned(), WireValue::Int64(200))]);
        let mut report = encode_report(&[first.clone(), second.clone()]);
        assert_eq!(decode_report(&report), Ok(vec![first.clone(), second]));
        report.repeated_attributes_semantics = RepeatedAttributesSemantics::DeltaEncoding.into();
        let mut sum = first.clone();
        sum.insert("response.code".to_owned(), WireValue::Int64(200));
        assert_eq!(decode_report(&report), Ok(vec![first, sum]));
    }

    #[test]
    fn an_index_without_a_word_is_refused() {
        for index in [-1, 5_000, i32::MIN, i32::MAX] {
            let bag = CompressedAttributes { int64s: HashMap::from([(index, 1)]), ..Default::default() };
            assert_eq!(decode(&bag), Err(CodecError::UnknownWord(index)));
        }
    }

    #[test]
    fn a_longer_dictionary_than_ours_is_refused() {
        assert_eq!(check_word_count(111), Ok(()));
        assert!(check_word_count(221).is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            use prost::Message as _;
            if let Ok(report) = ReportRequest::decode(bytes.as_slice()) {
                let _ = decode_report(&report);
            }
        }

        #[test]
        fn text_survives_encoding(
            texts in proptest::collection::btree_map("[a-z.]{1,8}", "\\PC{0,12}", 0..8),
        ) {
            let bag: Attributes = texts.into_iter().map(|(name, text)| (name, WireValue::String(text))).collect();
            proptest::prop_assert_eq!(decode(&encode(&bag)), Ok(bag));
        }
    }
}
