//! Messages by name at run time: proto3 JSON both ways, and tags that no known field has.
//!
//! In: `descriptors.bin`, a descriptor set trimmed to what this proxy reads (made by `examples/trim.rs`). Out: JSON, bytes, paths.
//! Kept true: the set is loaded on first use only. Not here: typed messages (the crate's root).

use std::sync::OnceLock;

use prost_reflect::{
    DescriptorPool, DeserializeOptions, DynamicMessage, ReflectMessage, SerializeOptions, Value,
};

static DESCRIPTORS: &[u8] = include_bytes!("../descriptors.bin");

/// The known messages.
fn pool() -> Result<&'static DescriptorPool, String> {
    static POOL: OnceLock<Result<DescriptorPool, String>> = OnceLock::new();
    let pool =
        POOL.get_or_init(|| DescriptorPool::decode(DESCRIPTORS).map_err(|e| format!("descriptor set: {e}")));
    pool.as_ref().map_err(Clone::clone)
}

fn dynamic(type_url: &str, bytes: &[u8]) -> Result<DynamicMessage, String> {
    let name = type_url.rsplit('/').next().unwrap_or_default();
    let descriptor = pool()?.get_message_by_name(name).ok_or_else(|| format!("unknown message {name}"))?;
    DynamicMessage::decode(descriptor, bytes).map_err(|e| format!("{name} does not decode: {e}"))
}

/// A message as proto3 JSON, with field names as in the .proto files (Envoy's admin shows them so).
///
/// # Errors
/// When the message, or one packed inside it, is not in the descriptor set.
pub fn to_json(type_url: &str, bytes: &[u8]) -> Result<serde_json::Value, String> {
    let message = dynamic(type_url, bytes)?;
    let options = SerializeOptions::new().use_proto_field_name(true);
    let json = message.serialize_with_options(serde_json::value::Serializer, &options);
    json.map_err(|e| format!("{type_url}: {e}"))
}

/// A message's bytes from proto3 JSON. Both spellings of field names are taken.
///
/// # Errors
/// The path of the message that has an unknown field, a field of the wrong type, or an unknown message packed in it.
pub fn from_json(type_url: &str, json: &serde_json::Value) -> Result<Vec<u8>, String> {
    let name = type_url.rsplit('/').next().unwrap_or_default();
    let descriptor = pool()?.get_message_by_name(name).ok_or_else(|| format!("unknown message {name}"))?;
    let options = DeserializeOptions::new().deny_unknown_fields(true);
    let mut track = serde_path_to_error::Track::new();
    let reader = serde_path_to_error::Deserializer::new(json, &mut track);
    match DynamicMessage::deserialize_with_options(descriptor, reader, &options) {
        Ok(message) => Ok(prost::Message::encode_to_vec(&message)),
        Err(why) => {
            let why = worded(&why.to_string());
            Err(match track.path().to_string().as_str() {
                "." => format!("{name}: {why}"),
                path => format!("{path}: {why}"),
            })
        }
    }
}

/// The library's words, where they would puzzle an operator: a message that is not in the set is an extension that we lack.
fn worded(why: &str) -> String {
    let missing = why.strip_prefix("message '").and_then(|rest| rest.strip_suffix("' not found"));
    missing.map_or_else(|| why.to_owned(), |name| format!("{name} is not supported: take it out"))
}

/// The path of the first tag that no known field has, e.g. `rules.policies["a"].permissions[0].#99`; `None` when all are known.
///
/// # Errors
/// When the message is not in the descriptor set or does not decode.
pub fn unknown_tag(type_url: &str, bytes: &[u8]) -> Result<Option<String>, String> {
    Ok(unknown_in(&dynamic(type_url, bytes)?, ""))
}

fn unknown_in(message: &DynamicMessage, path: &str) -> Option<String> {
    if let Some(field) = message.unknown_fields().next() {
        return Some(format!("{path}{}#{}", if path.is_empty() { "" } else { "." }, field.number()));
    }
    message.fields().find_map(|(field, value)| {
        let path = if path.is_empty() { field.name().to_owned() } else { format!("{path}.{}", field.name()) };
        unknown_in_value(value, &path)
    })
}

fn unknown_in_value(value: &Value, path: &str) -> Option<String> {
    match value {
        Value::Message(inner) => unknown_in_message(inner, path),
        Value::List(items) => {
            items.iter().enumerate().find_map(|(i, item)| unknown_in_value(item, &format!("{path}[{i}]")))
        }
        Value::Map(entries) => {
            entries.iter().find_map(|(key, item)| unknown_in_value(item, &format!("{path}[{key:?}]")))
        }
        _ => None,
    }
}

fn unknown_in_message(inner: &DynamicMessage, path: &str) -> Option<String> {
    if inner.descriptor().full_name() == "google.protobuf.Any" {
        let text = |name: &str| inner.get_field_by_name(name).and_then(|v| v.as_str().map(str::to_owned));
        let bytes = inner.get_field_by_name("value").and_then(|v| v.as_bytes().cloned()).unwrap_or_default();
        return match dynamic(&text("type_url").unwrap_or_default(), &bytes) {
            Ok(packed) => unknown_in(&packed, path),
            // An unknown message inside an Any is judged where it is unpacked.
            Err(_) => None,
        };
    }
    unknown_in(inner, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;

    const FAULT: &str = "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault";

    #[test]
    fn json_survives_a_round_trip() {
        let json = serde_json::json!({"abort": {"http_status": 503, "percentage": {"numerator": 100}}});
        let bytes = from_json(FAULT, &json).expect("known fields");
        assert_eq!(to_json(FAULT, &bytes).expect("known message"), json);
        let camel = serde_json::json!({"abort": {"httpStatus": 503, "percentage": {"numerator": 100}}});
        assert_eq!(from_json(FAULT, &camel).expect("known fields"), bytes);
    }

    #[test]
    fn an_unknown_json_field_is_named() {
        let json = serde_json::json!({"abort": {"http_statuss": 503}});
        let error = from_json(FAULT, &json).expect_err("unknown field");
        assert_eq!(error, "abort: unrecognized field name 'http_statuss'");
    }

    #[test]
    fn an_extension_that_is_not_supported_is_named_at_its_path() {
        const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
        let json = serde_json::json!({"filter_chains": [{"filters": [{"typed_config": {"@type": "x.org/a.Lua", "code": "1"}}]}]});
        let error = from_json(LISTENER, &json).expect_err("unknown extension");
        assert_eq!(error, "filter_chains[0].filters[0].typed_config: a.Lua is not supported: take it out");
    }

    #[test]
    fn an_unknown_tag_is_found_at_its_path() {
        let known = crate::envoy::extensions::filters::http::fault::v3::HttpFault::default();
        let mut bytes = known.encode_to_vec();
        assert_eq!(unknown_tag(FAULT, &bytes), Ok(None));
        // abort (2) { #99: 1 }
        bytes.extend([0x12, 0x03, 0x98, 0x06, 0x01]);
        assert_eq!(unknown_tag(FAULT, &bytes), Ok(Some("abort.#99".to_owned())));
    }
}
