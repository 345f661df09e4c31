//! Finding configuration files, and reading each once it stands still.
//!
//! In: a directory, scanned again and again. Out: [`Scan`]: texts of new and changed files, names of vanished ones.
//! Kept true: a file is handed out only after it stood unchanged for the settle time, a removal likewise.
//! Not here: the clock and the waiting (`dir`), parsing.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

const ENDINGS: [&str; 3] = ["yaml", "yml", "json"];
/// Directories below the one given that are followed, at most: ends symlink loops.
const MAX_DEPTH: usize = 16;

/// What tells one state of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    modified: SystemTime,
    bytes: u64,
    inode: u64,
}

impl Stamp {
    fn of(meta: &Metadata) -> Self {
        let modified = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        Self { modified, bytes: meta.len(), inode: meta.ino() }
    }
}

#[derive(Debug)]
struct Watched {
    stamp: Option<Stamp>,
    since: Instant,
    taken: Option<Stamp>,
}

/// The files of a directory between two scans.
#[derive(Debug)]
pub(super) struct Scanner {
    dir: PathBuf,
    settle: Duration,
    files: BTreeMap<PathBuf, Watched>,
}

/// A file that was read: its text, or why there is none.
#[derive(Debug)]
pub(super) struct Taken {
    pub path: PathBuf,
    pub modified: SystemTime,
    pub text: Result<String, String>,
}

/// What a scan found.
#[derive(Debug, Default)]
pub(super) struct Scan {
    pub taken: Vec<Taken>,
    pub removed: Vec<PathBuf>,
    /// When the next file will have settled, from now.
    pub wait: Option<Duration>,
    /// Whether every file that is there has been handed out at least once.
    pub complete: bool,
}

impl Scanner {
    pub fn new(dir: PathBuf, settle: Duration) -> Self {
        Self { dir, settle, files: BTreeMap::new() }
    }

    /// Looks at all files. `wall` is only compared with modification times, to take old files at once.
    pub fn scan(&mut self, now: Instant, wall: SystemTime) -> io::Result<Scan> {
        let found = list(&self.dir)?;
        let mut scan = Scan::default();
        for path in found.keys() {
            if !self.files.contains_key(path) {
                self.files.insert(path.clone(), Watched { stamp: None, since: now, taken: None });
            }
        }
        for (path, file) in &mut self.files {
            let stamp = found.get(path).copied();
            if stamp != file.stamp {
                (file.stamp, file.since) = (stamp, now);
            }
            if file.stamp == file.taken {
                continue;
            }
            let old = stamp
                .and_then(|s| wall.duration_since(s.modified).ok())
                .is_some_and(|age| age >= self.settle);
            let stood = now.saturating_duration_since(file.since);
            if !old && stood < self.settle {
                let left = self.settle - stood;
                scan.wait = Some(scan.wait.map_or(left, |wait| wait.min(left)));
                continue;
            }
            let Some(stamp) = stamp else {
                scan.removed.push(path.clone());
                continue;
            };
            let text = read(path);
            match fs::metadata(path) {
                Ok(after) if Stamp::of(&after) == stamp => {
                    file.taken = Some(stamp);
                    scan.taken.push(Taken { path: path.clone(), modified: stamp.modified, text });
                }
                // It moved under our hands: it has not settled after all.
                _ => scan.wait = Some(self.settle),
            }
        }
        self.files.retain(|path, _| !scan.removed.contains(path));
        self.files.retain(|_, file| file.stamp.is_some() || file.taken.is_some());
        scan.complete = self.files.values().all(|file| file.taken.is_some());
        Ok(scan)
    }
}

/// Text of a file, or why it is none.
pub(crate) fn read(path: &Path) -> Result<String, String> {
    match fs::read(path) {
        Err(e) => Err(format!("cannot be read: {e}")),
        Ok(bytes) => String::from_utf8(bytes).map_err(|e| {
            let at = e.utf8_error().valid_up_to();
            let line = e.as_bytes()[..at].split(|b| *b == b'\n').count();
            format!("is not UTF-8 text on line {line}: save it as UTF-8")
        }),
    }
}

/// The configuration files below a directory, hidden ones left out.
fn list(dir: &Path) -> io::Result<BTreeMap<PathBuf, Stamp>> {
    let mut found = BTreeMap::new();
    walk(dir, MAX_DEPTH, &mut found)?;
    Ok(found)
}

/// The configuration files below a directory in the order in which they were modified, then by path.
pub(crate) fn list_by_age(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found: Vec<_> = list(dir)?.into_iter().map(|(path, stamp)| (stamp.modified, path)).collect();
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

fn walk(dir: &Path, depth: usize, found: &mut BTreeMap<PathBuf, Stamp>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let Ok(entry) = entry else { continue };
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let path = entry.path();
        let Ok(meta) = fs::metadata(&path) else { continue };
        if meta.is_dir() && depth > 0 {
            // A directory that vanished since it was listed has no files.
            let _ = walk(&path, depth - 1, found);
        } else if meta.is_file() && path.extension().is_some_and(|e| ENDINGS.iter().any(|known| e == *known))
        {
            found.insert(path, Stamp::of(&meta));
        }
    }
    Ok(())
}
