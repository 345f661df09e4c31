//! What the repository promises about itself: crates, licences, links, and paths in the docs.
//!
//! In: `cargo tree` (offline, from the lock file) and the files of the tree. Out: a list of what breaks a rule of `deny.toml`.
//! Kept true: `deny.toml` is the only list; this test and `cargo deny` read the same one.
//! Not here: advisories (they need a database that a build machine may not reach).

use std::{collections::BTreeMap, fs, path::Path, path::PathBuf, process::Command};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("e2e lies in the workspace").to_path_buf()
}

/// One crate that is really built, as `cargo tree` names it.
struct Built {
    name: String,
    version: String,
    licence: String,
}

fn built() -> Vec<Built> {
    let out = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--offline", "--workspace", "-e", "normal,build", "--prefix", "none"])
        .args(["-f", "{p}|{l}"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(out.status.success(), "cargo tree: {}", String::from_utf8_lossy(&out.stderr));
    let mut seen = BTreeMap::new();
    for line in String::from_utf8_lossy(&out.stdout).lines() {
        let Some((package, licence)) = line.split_once('|') else { continue };
        let mut words = package.split(' ');
        let (Some(name), Some(version)) = (words.next(), words.next()) else { continue };
        let licence = licence.trim_end_matches(" (*)");
        seen.insert((name.to_owned(), version.to_owned()), licence.to_owned());
    }
    seen.into_iter().map(|((name, version), licence)| Built { name, version, licence }).collect()
}

/// The quoted strings of `key = [ … ]` in `deny.toml`: all that this test needs of TOML.
fn deny_list(key: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join("deny.toml")).expect("deny.toml is readable");
    let start = text.find(&format!("\n{key} = [")).unwrap_or_else(|| panic!("deny.toml has no list {key}"));
    let body = &text[start..];
    let body = &body[..body.find("\n]").expect("the list ends")];
    let lines = body.lines().map(|line| line.split('#').next().unwrap_or_default());
    lines.flat_map(|line| line.split('"').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>()).collect()
}

/// True when every `AND` part of an SPDX expression has an allowed alternative.
fn licence_allowed(expression: &str, allowed: &[String]) -> bool {
    let flat = expression.replace(['(', ')'], "").replace('/', " OR ");
    flat.split(" AND ").all(|part| part.split(" OR ").any(|one| allowed.iter().any(|a| a == one.trim())))
}

#[test]
fn banned_crates_are_not_built() {
    let banned = deny_list("deny");
    let found: Vec<_> = built().into_iter().filter(|b| banned.contains(&b.name)).map(|b| b.name).collect();
    assert!(found.is_empty(), "banned crates are built: {found:?}");
}

#[test]
fn every_licence_is_on_the_list() {
    let allowed = deny_list("allow");
    let wrong: Vec<_> = built()
        .into_iter()
        .filter(|b| !licence_allowed(&b.licence, &allowed))
        .map(|b| format!("{} {}: {:?}", b.name, b.version, b.licence))
        .collect();
    assert!(wrong.is_empty(), "licences not on the list: {wrong:#?}");
}

#[test]
fn only_listed_crates_are_built_in_two_versions() {
    let skipped = deny_list("skip");
    let mut versions: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for b in built() {
        versions.entry(b.name).or_default().push(b.version);
    }
    let twice: Vec<_> = versions.iter().filter(|(n, v)| v.len() > 1 && !skipped.contains(n)).collect();
    assert!(twice.is_empty(), "built in more than one version: {twice:?}");
    let stale: Vec<_> = skipped.iter().filter(|s| versions.get(*s).is_none_or(|v| v.len() < 2)).collect();
    assert!(stale.is_empty(), "deny.toml skips what is no longer double: {stale:?}");
}

#[test]
fn no_binary_depends_on_another_and_mesh_depends_only_on_proto() {
    let rank = |dir: &str| match dir.split('/').next().unwrap_or_default() {
        "proto" => 0,
        "mesh" => 1,
        "e2e" => 3,
        _ => 2,
    };
    let members: BTreeMap<String, String> = members();
    for (name, dir) in &members {
        let manifest = fs::read_to_string(root().join(dir).join("Cargo.toml")).expect("a member's manifest");
        for line in manifest.lines() {
            let Some(dep) = line.split(['.', ' ']).next().filter(|d| members.contains_key(*d)) else {
                continue;
            };
            let (from, to) = (rank(dir), rank(&members[dep]));
            let fine = to < from || (from == to && (from == 1 || from == 3));
            assert!(fine, "{name} ({dir}) may not use {dep} ({})", members[dep]);
        }
    }
}

/// Package name → directory of every workspace member.
fn members() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let tops = ["proxy", "pilot", "citadel", "mixer", "injector", "e2e", "e2e/shop"].map(str::to_owned);
    let nested = ["proto", "mesh"].iter().flat_map(|top| {
        let dirs = fs::read_dir(root().join(top)).expect("a directory of crates");
        dirs.map(move |d| format!("{top}/{}", d.expect("an entry").file_name().to_string_lossy()))
            .collect::<Vec<_>>()
    });
    for dir in tops.into_iter().chain(nested) {
        let Ok(text) = fs::read_to_string(root().join(&dir).join("Cargo.toml")) else { continue };
        let name = text.lines().find_map(|l| l.strip_prefix("name = \"")).expect("a package name");
        found.insert(name.trim_end_matches('"').to_owned(), dir);
    }
    found
}

#[test]
fn paths_named_in_the_docs_exist() {
    let mut missing = Vec::new();
    let docs = fs::read_dir(root().join("docs")).expect("docs/");
    let pages =
        docs.map(|d| d.expect("an entry").path()).filter(|p| p.extension().is_some_and(|e| e == "md"));
    for page in pages.chain([root().join("README.md")]) {
        let text = fs::read_to_string(&page).expect("a page");
        let base = page.parent().expect("a page lies in a directory");
        for code in code_spans(&text).filter(|c| looks_like_a_path(c)) {
            if !root().join(code.trim_end_matches('/')).exists() {
                missing.push(format!("{}: `{code}`", page.display()));
            }
        }
        for link in links(&text).filter(|l| !l.contains("://") && !l.starts_with('#')) {
            let file = link.split('#').next().unwrap_or_default();
            if !base.join(file).exists() {
                missing.push(format!("{}: ({link})", page.display()));
            }
        }
    }
    assert!(missing.is_empty(), "the docs name what is not there: {missing:#?}");
}

fn code_spans(text: &str) -> impl Iterator<Item = &str> {
    let prose = text.split("```").step_by(2);
    prose.flat_map(|part| part.split('`').skip(1).step_by(2))
}

fn links(text: &str) -> impl Iterator<Item = &str> {
    text.split("](").skip(1).filter_map(|rest| rest.split(')').next())
}

/// A path of this repository: begins with one of its directories and has no placeholder in it.
fn looks_like_a_path(code: &str) -> bool {
    const TOPS: [&str; 12] = [
        "proto/",
        "mesh/",
        "proxy/",
        "pilot/",
        "citadel/",
        "mixer/",
        "injector/",
        "deploy/",
        "e2e/",
        "docs/",
        ".ci/",
        ".cargo/",
    ];
    let plain = code.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
    plain && TOPS.iter().any(|top| code.starts_with(top))
}

#[test]
fn unsafe_code_is_only_where_the_list_says() {
    let list = fs::read_to_string(root().join("docs/DEVELOPMENT.md")).expect("docs/DEVELOPMENT.md");
    let mut files = Vec::new();
    for dir in members().values() {
        rust_files(&root().join(dir), &mut files);
    }
    files.sort();
    files.dedup();
    let word = ["allow(", "unsafe_code"].concat();
    for file in files {
        let text = fs::read_to_string(&file).expect("a source file");
        let name = file.strip_prefix(root()).expect("below the root").display().to_string();
        assert!(!text.contains(&word) || list.contains(&name), "{name} uses unsafe and is not listed");
    }
}

fn rust_files(dir: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            rust_files(&path, into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
}
