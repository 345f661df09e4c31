//! Small files that others read while we write them.
//!
//! In: a path and its new content. Out: the old content or the new one for every reader, never a part.
//! Kept true: a private file is private from its first byte on.
//! Not here: what the files mean.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

/// Who may read a file.
#[derive(Clone, Copy)]
pub(crate) enum Readers {
    /// The owner: 0600.
    Owner,
    /// Everybody: 0644.
    All,
}

/// Replaces a file in one step: temporary name beside it, flushed to disk, renamed.
pub(crate) fn replace(path: &Path, content: &[u8], readers: Readers) -> io::Result<()> {
    let name = path.file_name().ok_or_else(|| io::Error::other("not a file name"))?;
    let temporary = path.with_file_name(format!(".{}.{}.tmp", name.to_string_lossy(), std::process::id()));
    let mode = match readers {
        Readers::Owner => 0o600,
        Readers::All => 0o644,
    };
    let write = || {
        let mut file: File = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    // One of an earlier process of the same id that was killed while writing.
    let _ = std::fs::remove_file(&temporary);
    write().inspect_err(|_| {
        let _ = std::fs::remove_file(&temporary);
    })
}
