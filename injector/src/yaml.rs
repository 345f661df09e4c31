//! YAML in and out, as `kubectl` understands it.
//!
//! In: text of one document. Out: JSON values; and back. Kept true: `yes`/`on` are booleans and `y` is text, as for Kubernetes;
//! what is written reads back the same there. Not here: finding documents in a file (`file`).

use serde_json::Value;

/// Reads one document. Anchors and merge keys are resolved; `0644` is octal.
///
/// # Errors
/// The parser's own message, with line and column within the document.
pub fn read(text: &str) -> Result<Value, String> {
    let with = |strict_booleans: bool| {
        let options = serde_saphyr::options! {
            legacy_octal_numbers: true,
            strict_booleans: strict_booleans,
            with_snippet: false,
        };
        serde_saphyr::from_str_with_options::<Value>(text, options).map_err(|e| e.to_string())
    };
    // The two readings differ exactly where a plain scalar is one of YAML 1.1's words for true and false.
    let mut value = with(true)?;
    choose_booleans(&mut value, &with(false)?);
    Ok(value)
}

/// Takes the boolean reading of `yes`, `no`, `on`, `off`; leaves `y` and `n` as text, as Kubernetes' own parser does.
fn choose_booleans(strict: &mut Value, loose: &Value) {
    match (strict, loose) {
        (Value::Object(strict), Value::Object(loose)) => {
            for (key, value) in strict {
                if let Some(other) = loose.get(key) {
                    choose_booleans(value, other);
                }
            }
        }
        (Value::Array(strict), Value::Array(loose)) => {
            strict.iter_mut().zip(loose).for_each(|(a, b)| choose_booleans(a, b));
        }
        (strict @ Value::String(_), Value::Bool(b)) if strict.as_str().is_some_and(|s| s.len() > 1) => {
            *strict = Value::Bool(*b);
        }
        _ => {}
    }
}

/// Writes one document in block style, without `---`.
///
/// # Errors
/// None that a JSON value can cause; the serializer's signature has one.
pub fn write(value: &Value) -> Result<String, String> {
    let options = serde_saphyr::ser_options! { prefer_block_scalars: true, folded_wrap_chars: 1_000_000 };
    let mut text = serde_saphyr::to_string_with_options(value, options).map_err(|e| e.to_string())?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn booleans_are_those_of_kubernetes() {
        let cases = [
            ("yes", json!(true)),
            ("On", json!(true)),
            ("no", json!(false)),
            ("off", json!(false)),
            ("y", json!("y")),
            ("N", json!("N")),
            ("\"yes\"", json!("yes")),
            ("true", json!(true)),
            ("0644", json!(420)),
            ("\"0644\"", json!("0644")),
            ("1.5", json!(1.5)),
            ("~", Value::Null),
            ("", Value::Null),
        ];
        for (text, want) in cases {
            assert_eq!(read(&format!("a: {text}")), Ok(json!({ "a": want })), "{text:?}");
        }
    }

    #[test]
    fn text_that_looks_like_something_else_is_quoted() {
        for text in [
            "yes", "on", "y", "NO", "0644", "1e3", "1_000", "null", "~", "", " x ", "a: b", "# c", "-",
            "12:30", "a\nb\n", "*x",
        ] {
            let written = write(&json!({ "k": text, "l": [text] })).expect("writable");
            assert_eq!(
                read(&written),
                Ok(json!({ "k": text, "l": [text] })),
                "{text:?} written as {written}"
            );
        }
        assert!(write(&json!({ "a": "yes" })).expect("writable").contains(['"', '\'']));
    }

    #[test]
    fn merge_keys_and_anchors_are_resolved() {
        let text = "base: &b {x: 1}\nmore:\n  <<: *b\n  y: 2\n";
        assert_eq!(read(text), Ok(json!({ "base": { "x": 1 }, "more": { "x": 1, "y": 2 } })));
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back_the_same(text in "[ -~\n\t\u{e9}]{0,40}", key in "[ -~]{1,20}") {
            let value = json!({ key: { "list": [text.clone(), { "inner": text }] } });
            let written = write(&value).expect("writable");
            prop_assert_eq!(read(&written), Ok(value), "{}", written);
        }
    }
}
