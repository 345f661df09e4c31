//! `mixer eval` as a process: what it prints, and how it exits.
//!
//! In: files and arguments. Out: JSON on standard output, or an error and exit code 2. Kept true: nothing else is printed.
//! Not here: the language (`lang`).

use std::process::Command;

#[test]
fn prints_json_or_the_error_with_exit_code_two() {
    let dir = tempfile::tempdir().expect("a directory");
    let (manifest, attributes) = (dir.path().join("m.yaml"), dir.path().join("a.json"));
    let text = "apiVersion: config.istio.io/v1alpha2\nkind: attributemanifest\nmetadata: {name: m}\nspec: {attributes: {ai: {valueType: INT64}}}\n";
    std::fs::write(&manifest, text).expect("written");
    std::fs::write(&attributes, r#"{"ai": 7, "other": []}"#).expect("written");
    for (expression, code, stdout, stderr) in [
        ("ai + 1", 0, "{\"type\":\"INT64\",\"value\":8,\"referenced\":[\"ai\"]}\n", ""),
        ("-ai", 2, "", "unknown function: SUB\n"),
        (
            "ai ==",
            2,
            "",
            "unable to parse expression 'ai ==': 1:6: expected operand, found end of expression\n",
        ),
    ] {
        for dashes in [true, false] {
            let mut command = Command::new(env!("CARGO_BIN_EXE_mixer"));
            command.arg("eval").arg("--manifest").arg(&manifest).arg("--attributes").arg(&attributes);
            if dashes {
                command.arg("--");
            }
            let output = command.arg(expression).output().expect("mixer runs");
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            assert_eq!(
                (output.status.code(), text(&output.stdout), text(&output.stderr)),
                (Some(code), stdout.to_owned(), stderr.to_owned()),
                "{expression} {dashes}"
            );
        }
    }
}
