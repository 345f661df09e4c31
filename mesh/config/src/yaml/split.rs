//! Cutting a text into YAML documents at `---` and `...` lines.
//!
//! In: text with any line ends, with or without byte-order mark. Out: [`Document`]s with their first line.
//! Kept true: text and line numbers are those of the file; documents of comments and blanks only are left out.
//! Not here: parsing. A parser stops at its first error, so cutting comes first and errors stay in one document.

/// One document of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Document<'a> {
    /// The text between two separators, as it stands in the file.
    pub text: &'a str,
    /// Line of the file on which `text` begins, from 1.
    pub first_line: u32,
    /// Line of the first thing in it that is no comment, from 1.
    pub line: u32,
}

/// Cuts a text into documents. `---` counts only in column 0 and before a blank or the end of its line; what
/// follows it on the line belongs to the next document (a comment, mostly).
pub fn split(text: &str) -> Vec<Document<'_>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut documents = Vec::new();
    let (mut start, mut first_line) = (0, 1u32);
    let (mut at, mut line) = (0, 1u32);
    for piece in text.split_inclusive('\n') {
        if marker(piece, "---") {
            keep(&mut documents, &text[start..at], first_line);
            (start, first_line) = (at + 3, line);
        } else if marker(piece, "...") {
            keep(&mut documents, &text[start..at], first_line);
            (start, first_line) = (at + piece.len(), line.saturating_add(1));
        }
        at += piece.len();
        line = line.saturating_add(1);
    }
    keep(&mut documents, &text[start..], first_line);
    documents
}

fn marker(line: &str, marker: &str) -> bool {
    line.strip_prefix(marker).is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

fn keep<'a>(documents: &mut Vec<Document<'a>>, text: &'a str, first_line: u32) {
    let content = text.lines().zip(0u32..).find(|(line, _)| {
        let line = line.trim_start();
        !(line.is_empty() || line.starts_with(['#', '%']) || line.starts_with('\u{feff}') && line.len() == 3)
    });
    if let Some((_, offset)) = content {
        documents.push(Document { text, first_line, line: first_line.saturating_add(offset) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(text: &str) -> Vec<(u32, String)> {
        split(text).iter().map(|d| (d.line, d.text.trim().replace("\r\n", "\n"))).collect()
    }

    #[test]
    fn documents_are_cut_where_kubectl_cuts_them() {
        for (text, want) in [
            ("", vec![]),
            ("a: 1", vec![(1, "a: 1")]),
            ("a: 1\n---\nb: 2\n", vec![(1, "a: 1"), (3, "b: 2")]),
            ("---\n---\na: 1\n---\n---", vec![(3, "a: 1")]),
            ("# only\n\n# comments\n---\n#\na: 1", vec![(6, "a: 1")]),
            ("a: 1\n--- # more\nb: 2", vec![(1, "a: 1"), (3, "b: 2")]),
            ("--- {a: 1}\n---\tb: 2", vec![(1, "{a: 1}"), (2, "b: 2")]),
            ("a: |\n  ---\n  x\n", vec![(1, "a: |\n  ---\n  x")]),
            ("a: 1\n----\n", vec![(1, "a: 1\n----")]),
            ("a: ---x\n---x\n", vec![(1, "a: ---x\n---x")]),
            ("\u{feff}a: 1\r\n---\r\nb: 2\r\n", vec![(1, "a: 1"), (3, "b: 2")]),
            ("%YAML 1.2\n---\na: 1\n...\nb: 2\n", vec![(3, "a: 1"), (5, "b: 2")]),
            ("---   \n\n\n  a: 1", vec![(4, "a: 1")]),
        ] {
            let want: Vec<_> = want.into_iter().map(|(line, text)| (line, text.to_owned())).collect();
            let got: Vec<_> = cut(text)
                .into_iter()
                .map(|(line, text)| {
                    (line, text.lines().filter(|l| !l.starts_with('#')).collect::<Vec<_>>().join("\n"))
                })
                .collect();
            assert_eq!(got, want, "{text:?}");
        }
    }
}
