//! The directory of a local mesh, and objects in it as files.
//!
//! In: objects. Out: YAML files that pilot and mixer watch. Kept true: a file appears whole (written aside, then renamed), and is not
//! touched when nothing changed. Not here: what is written (`objects`).

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context;
use rustix::fs::{FlockOperation, flock};
use serde_json::Value;

/// Where everything of one local mesh lies.
#[derive(Debug, Clone)]
pub struct Layout {
    root: PathBuf,
    _lock: Arc<fs::File>,
}

impl Layout {
    /// Makes the directories below `root`. What an earlier run of the node wrote is removed; what people wrote stays.
    ///
    /// # Errors
    /// When the file system refuses, or another node runs in the directory.
    pub fn create(root: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(root).with_context(|| format!("cannot make {}", root.display()))?;
        let lock = fs::File::create(root.join(".lock"))?;
        let taken = || {
            format!(
                "another local mesh runs in {}: stop that one, or choose another directory",
                root.display()
            )
        };
        flock(&lock, FlockOperation::NonBlockingLockExclusive).with_context(taken)?;
        let layout = Self { root: root.canonicalize()?, _lock: Arc::new(lock) };
        for old in ["config/node", "secrets", "pods", "logs", "run"] {
            let path = layout.root.join(old);
            if path.exists() {
                fs::remove_dir_all(&path).with_context(|| format!("cannot clear {}", path.display()))?;
            }
            fs::create_dir_all(&path)?;
        }
        fs::create_dir_all(layout.mesh())?;
        Ok(layout)
    }

    /// The top.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What pilot and mixer watch.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.root.join("config")
    }

    /// Where people put YAML.
    #[must_use]
    pub fn mesh(&self) -> PathBuf {
        self.root.join("config/mesh")
    }

    /// Where only the node writes.
    #[must_use]
    pub fn node(&self) -> PathBuf {
        self.root.join("config/node")
    }

    /// Tokens, certificates, keys.
    #[must_use]
    pub fn secrets(&self) -> PathBuf {
        self.root.join("secrets")
    }

    /// The root certificate that citadel publishes.
    #[must_use]
    pub fn root_cert(&self) -> PathBuf {
        self.root.join("secrets/root-cert.pem")
    }

    /// Volumes of one pod.
    #[must_use]
    pub fn pod(&self, name: &str) -> PathBuf {
        self.root.join("pods").join(name)
    }

    /// Output of all processes.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// Everything else that a run needs.
    #[must_use]
    pub fn run(&self) -> PathBuf {
        self.root.join("run")
    }
}

/// Writes objects as one file; the file keeps its time when they are what it holds already.
///
/// # Errors
/// When the file system refuses.
pub fn write_objects(path: &Path, objects: &[Value]) -> anyhow::Result<()> {
    let mut text = String::new();
    for object in objects {
        text.push_str("---\n");
        text.push_str(&serde_saphyr::to_string(object)?);
        if !text.ends_with('\n') {
            text.push('\n');
        }
    }
    write_text(path, &text)
}

/// Writes a file so that readers see the old or the new one, never a part.
///
/// # Errors
/// When the file system refuses.
pub fn write_text(path: &Path, text: &str) -> anyhow::Result<()> {
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let aside = path.with_file_name(format!(".{name}.tmp"));
    let put = || {
        fs::write(&aside, text)?;
        fs::rename(&aside, path)
    };
    put().with_context(|| format!("cannot write {}", path.display()))
}

/// Removes a file, if it is there.
///
/// # Errors
/// When it is there and stays.
pub fn remove(path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// All documents of a YAML text; empty ones are left out, lists are taken apart.
///
/// # Errors
/// When it does not parse.
pub fn documents(text: &str) -> anyhow::Result<Vec<Value>> {
    let all: Vec<Value> = serde_saphyr::from_multiple(text)?;
    let mut found = Vec::new();
    for document in all {
        match document.get("items").and_then(Value::as_array) {
            Some(items) if document["kind"].as_str().is_some_and(|k| k.ends_with("List")) => {
                found.extend(items.iter().cloned());
            }
            _ if document.is_null() => {}
            _ => found.push(document),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_written_reads_back_and_is_not_touched_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("a.yaml");
        let objects = [json!({ "kind": "Pod", "data": { "yes": "on" } }), json!({ "kind": "Service" })];
        write_objects(&path, &objects).expect("written");
        let before = fs::metadata(&path).expect("a file").modified().expect("a time");
        write_objects(&path, &objects).expect("written");
        assert_eq!(fs::metadata(&path).expect("a file").modified().expect("a time"), before);
        assert_eq!(documents(&fs::read_to_string(&path).expect("text")).expect("YAML"), objects);
        assert_eq!(fs::read_dir(dir.path()).expect("a directory").count(), 1);
    }

    #[test]
    fn a_new_run_keeps_what_people_wrote() {
        let dir = tempfile::tempdir().expect("a directory");
        let layout = Layout::create(dir.path()).expect("made");
        fs::write(layout.mesh().join("mine.yaml"), "a: 1").expect("written");
        fs::write(layout.node().join("pod.yaml"), "a: 1").expect("written");
        let taken = Layout::create(dir.path()).expect_err("it is in use").to_string();
        assert!(taken.contains("another local mesh runs in"), "{taken}");
        drop(layout);
        let layout = Layout::create(dir.path()).expect("made again");
        assert!(layout.mesh().join("mine.yaml").exists() && !layout.node().join("pod.yaml").exists());
    }

    #[test]
    fn lists_are_taken_apart_and_empty_documents_left_out() {
        let text = "---\n# nothing\n---\nkind: List\nitems: [{kind: A}, {kind: B}]\n---\nkind: C\n";
        let kinds: Vec<_> = documents(text).expect("YAML").iter().map(|d| d["kind"].clone()).collect();
        assert_eq!(kinds, ["A", "B", "C"]);
    }
}
