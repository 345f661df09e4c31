//! Files of YAML: the documents that hold pods are written anew, every other byte stays.
//!
//! In: text. Out: text and notices. Kept true: comments, separators and documents without pods come out byte for byte.
//! Not here: what is injected (`workload`).

use crate::{
    InjectError,
    workload::{Context, inject_object},
    yaml,
};

/// A part of a file: the separator line before a document, and the document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part<'a> {
    separator: &'a str,
    body: &'a str,
    /// Line of the body's first byte, from 1.
    line: usize,
}

/// Injects all documents of `text`; `name` stands for the file in messages.
///
/// # Errors
/// For a document that is not YAML, or whose pod cannot be injected; with file and line.
pub fn inject_text(
    text: &str,
    name: &str,
    context: &Context<'_>,
) -> Result<(String, Vec<String>), InjectError> {
    let mut out = String::with_capacity(text.len() * 2);
    let mut notices = Vec::new();
    for part in parts(text) {
        out.push_str(part.separator);
        match document(part, name, context, &mut notices)? {
            None => out.push_str(part.body),
            Some(written) => {
                if !out.is_empty() && !out.ends_with('\n') {
                    out.push('\n');
                }
                out.push_str(&written);
            }
        }
    }
    Ok((out, notices))
}

fn document(
    part: Part<'_>,
    name: &str,
    context: &Context<'_>,
    notices: &mut Vec<String>,
) -> Result<Option<String>, InjectError> {
    let meaning = part.body.lines().map(str::trim).find(|l| !l.is_empty() && !l.starts_with('#'));
    if meaning.is_none_or(|line| line.starts_with('%')) {
        return Ok(None);
    }
    let at = || format!("{name}:{}", part.line);
    let value = yaml::read(part.body).map_err(|why| {
        // The parser counts lines from where it begins; read once more with the lines before, it names those of the file.
        let padded = "\n".repeat(part.line - 1) + part.body;
        InjectError::Yaml { at: at(), why: yaml::read(&padded).err().unwrap_or(why) }
    })?;
    let injected =
        inject_object(&value, context).map_err(|e| InjectError::In { object: at(), why: Box::new(e) })?;
    notices.extend(injected.notices.into_iter().map(|n| format!("{}: {n}", at())));
    let Some(object) = injected.object else { return Ok(None) };
    if part.body.trim_start().starts_with('{') {
        let json = serde_json::to_string_pretty(&object)
            .map_err(|e| InjectError::Yaml { at: at(), why: e.to_string() })?;
        return Ok(Some(json + "\n"));
    }
    let written = yaml::write(&object).map_err(|why| InjectError::Yaml { at: at(), why })?;
    let (before, after) = comments_around(part.body);
    Ok(Some(format!("{before}{written}{after}")))
}

/// Comment and blank lines before the first and after the last line of content.
fn comments_around(body: &str) -> (&str, &str) {
    let idle = |line: &&str| line.trim().is_empty() || line.starts_with('#');
    let before: usize = body.split_inclusive('\n').take_while(idle).map(str::len).sum();
    let rest = &body[before..];
    let after: usize = rest.split_inclusive('\n').rev().take_while(idle).map(str::len).sum();
    (&body[..before], &rest[rest.len() - after..])
}

/// Cuts `text` at `---` and `...` lines; the parts put together are `text`.
fn parts(text: &str) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    let (mut separator, mut start, mut line, mut body_line) = (0..0, 0, 1, 1);
    let mut at = 0;
    for row in text.split_inclusive('\n') {
        if let Some(length) = separator_length(row) {
            parts.push(Part { separator: &text[separator], body: &text[start..at], line: body_line });
            separator = at..at + length;
            start = at + length;
            body_line = if length == row.len() { line + 1 } else { line };
        }
        at += row.len();
        line += 1;
    }
    parts.push(Part { separator: &text[separator], body: &text[start..], line: body_line });
    parts
}

/// How much of a line is a separator: all of it, or the dashes when a document begins on the same line.
fn separator_length(row: &str) -> Option<usize> {
    let rest = row.strip_prefix("---").or_else(|| row.strip_prefix("..."))?;
    if !rest.is_empty() && !rest.starts_with([' ', '\t', '\r', '\n']) {
        return None;
    }
    let content = rest.trim();
    Some(if content.is_empty() || content.starts_with('#') { row.len() } else { 3 })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{settings::Settings, template::Templates};

    fn inject(text: &str) -> Result<(String, Vec<String>), InjectError> {
        let (settings, templates) = (Settings::default(), Templates::default());
        let context = Context { settings: &settings, templates: &templates, namespace: "default" };
        inject_text(text, "f.yaml", &context)
    }

    const POD: &str =
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: a, image: \"yes\"}]}\n";

    #[test]
    fn everything_but_pods_comes_out_byte_for_byte() {
        let cases = [
            "",
            "---\n",
            "# only a comment",
            "kind: Service\napiVersion: v1   # odd   spacing\nspec: { a:   1 }",
            "---\n---\n--- # c\nkind: Service\n...\n# end\n",
            "%YAML 1.2\n---\nkind: ConfigMap\ndata:\n  a: |\n    ---\n    b\n",
            "--- {kind: Service}\r\n---\r\nkind: Service\r\n",
            "a: 1\n----\n: x\n",
        ];
        for text in cases {
            match inject(text) {
                Ok((out, _)) => assert_eq!(out, text),
                Err(error) => assert!(text.contains("----"), "{text:?}: {error}"),
            }
        }
    }

    #[test]
    fn a_pod_between_other_documents_is_the_only_change() {
        let (before, after) = (
            "# top\nkind: Service # s\n---\n# about the pod\n",
            "# below\n--- # next\nkind: Service\nx: 1 # odd",
        );
        let (out, _) = inject(&format!("{before}{POD}{after}")).expect("good");
        assert!(out.starts_with(before) && out.ends_with(after), "{out}");
        assert!(
            out.contains("name: istio-proxy") && out.contains("image: \"yes\"")
                || out.contains("image: 'yes'"),
            "{out}"
        );
        assert_eq!(inject(&out).expect("again").0, out);
    }

    #[test]
    fn a_json_document_stays_json() {
        let text = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p"},"spec":{"containers":[{"name":"a"}]}}"#;
        let (out, _) = inject(text).expect("good");
        assert!(
            serde_json::from_str::<serde_json::Value>(&out).is_ok() && out.contains("istio-proxy"),
            "{out}"
        );
    }

    #[test]
    fn errors_and_notices_name_file_and_line() {
        let error = inject("kind: Service\n---\na: [1\n").expect_err("broken").to_string();
        assert!(
            error.starts_with("f.yaml:3: ") && (error.contains("line 3") || error.contains("line 4")),
            "{error}"
        );
        let host = POD.replace("{containers", "{hostNetwork: true, containers");
        let (out, notices) = inject(&format!("---\n{host}")).expect("good");
        assert_eq!(out, format!("---\n{host}"));
        assert_eq!(notices, ["f.yaml:2: Pod default/p is not injected: it uses the host's network"]);
    }

    proptest! {
        #[test]
        fn parts_put_together_are_the_file(text in "(---|\\.\\.\\.|a: 1| |#|\n|\r\n|--- x|é){0,24}") {
            let parts = parts(&text);
            let whole: String = parts.iter().map(|p| format!("{}{}", p.separator, p.body)).collect();
            prop_assert_eq!(whole, text);
        }
    }
}
