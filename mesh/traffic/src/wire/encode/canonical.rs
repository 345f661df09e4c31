//! Equal messages, equal bytes: protobuf maps are written in the order of a hash table, which differs from one encoding to the next.
//!
//! In: what prost has encoded, and where the maps are. Out: the same message with the entries of each map sorted. Kept true: nothing else is touched.
//! Not here: which maps a resource has (`super`, beside each type).

/// The fields of a message in which maps are found.
#[derive(Debug)]
pub struct Maps(pub &'static [(u32, Field)]);

/// A field that is looked into.
#[derive(Debug)]
pub enum Field {
    /// A message, or several.
    Message(&'static Maps),
    /// A map. Its entries are messages with the key in field 1 and the value in field 2.
    Map(&'static Maps),
}

use Field::{Map, Message};

/// A message without maps.
pub static NONE: Maps = Maps(&[]);
/// `google.protobuf.Struct`.
pub static STRUCT: Maps = Maps(&[(1, Map(&STRUCT_ENTRY))]);
static STRUCT_ENTRY: Maps = Maps(&[(2, Message(&VALUE))]);
static VALUE: Maps = Maps(&[(5, Message(&STRUCT)), (6, Message(&LIST))]);
static LIST: Maps = Maps(&[(1, Message(&VALUE))]);
/// `envoy.config.core.v3.Metadata`.
pub static METADATA: Maps = Maps(&[(1, Map(&METADATA_ENTRY))]);
static METADATA_ENTRY: Maps = Maps(&[(2, Message(&STRUCT))]);

/// Sorts the maps of an encoded message. Bytes that are not protobuf come back as they are; the caller has just encoded them.
pub fn sorted(bytes: Vec<u8>, maps: &Maps) -> Vec<u8> {
    if maps.0.is_empty() { bytes } else { rewrite(&bytes, maps).unwrap_or(bytes) }
}

fn rewrite(mut rest: &[u8], maps: &Maps) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(rest.len());
    // The entries of the map that is being read.
    let (mut run, mut run_tag) = (Vec::<Vec<u8>>::new(), 0);
    while !rest.is_empty() {
        let (tag, at) = varint(rest, 0)?;
        let (payload, end) = match tag & 7 {
            0 => (at, varint(rest, at)?.1),
            1 => (at, at.checked_add(8)?),
            2 => {
                let (length, start) = varint(rest, at)?;
                (start, start.checked_add(usize::try_from(length).ok()?)?)
            }
            5 => (at, at.checked_add(4)?),
            _ => return None,
        };
        if tag != run_tag {
            flush(&mut run, &mut out);
            run_tag = tag;
        }
        let body = rest.get(payload..end)?;
        let field = maps.0.iter().find(|(number, _)| tag == u64::from(*number) << 3 | 2).map(|(_, f)| f);
        match field {
            None => out.extend_from_slice(&rest[..end]),
            Some(Message(inner)) => delimited(tag, &rewrite(body, inner)?, &mut out),
            Some(Map(entry)) => {
                let mut one = Vec::with_capacity(end);
                delimited(tag, &rewrite(body, entry)?, &mut one);
                run.push(one);
            }
        }
        rest = rest.get(end..)?;
    }
    flush(&mut run, &mut out);
    Some(out)
}

fn flush(run: &mut Vec<Vec<u8>>, out: &mut Vec<u8>) {
    run.sort_unstable();
    run.drain(..).for_each(|one| out.extend(one));
}

fn delimited(tag: u64, body: &[u8], out: &mut Vec<u8>) {
    prost::encoding::encode_varint(tag, out);
    prost::encoding::encode_varint(u64::try_from(body.len()).unwrap_or(u64::MAX), out);
    out.extend_from_slice(body);
}

/// The number at `at`, and where it ends.
fn varint(bytes: &[u8], at: usize) -> Option<(u64, usize)> {
    let mut rest = bytes.get(at..)?;
    let before = rest.len();
    let number = prost::encoding::decode_varint(&mut rest).ok()?;
    Some((number, at + before - rest.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;
    use xds::google::protobuf::{ListValue, Struct, Value, value::Kind};

    fn object(depth: u32) -> Value {
        let value = |n: u32| match depth {
            0 => Value { kind: Some(Kind::NumberValue(f64::from(n))) },
            _ => Value { kind: Some(Kind::ListValue(ListValue { values: vec![object(depth - 1)] })) },
        };
        let fields = (0..12).map(|n| (format!("key{n}"), value(n))).collect();
        Value { kind: Some(Kind::StructValue(Struct { fields })) }
    }

    #[test]
    fn maps_are_written_in_one_order_at_every_depth() {
        let Some(Kind::StructValue(first)) = object(2).kind else { panic!("an object") };
        let bytes = sorted(first.encode_to_vec(), &STRUCT);
        assert_eq!(Struct::decode(&*bytes).as_ref(), Ok(&first), "the message stays the same");
        for _ in 0..20 {
            let Some(Kind::StructValue(again)) = object(2).kind else { panic!("an object") };
            assert_eq!(sorted(again.encode_to_vec(), &STRUCT), bytes);
        }
    }

    #[test]
    fn what_is_not_protobuf_comes_back_as_it_is() {
        for bytes in [vec![0xFF], vec![0x0A, 0x05, 0x01], vec![0x0F]] {
            assert_eq!(sorted(bytes.clone(), &STRUCT), bytes);
        }
    }
}
