//! A file that is appended to, and rotated by size and age.
//!
//! In: whole lines. Out: the file, and older ones beside it named `.1`, `.2`, …
//! Kept true: at most the given number of old files. Not here: what lines say (`mod`).

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::PathBuf,
    time::{Duration, SystemTime},
};

pub(super) struct Rotating {
    path: PathBuf,
    file: Option<File>,
    /// Size at which the file is rotated; 0 for never.
    most_bytes: u64,
    /// Age after which rotated files are removed, in days; 0 for never.
    days: u64,
    /// Most rotated files.
    files: usize,
}

impl Rotating {
    pub(super) fn new(path: PathBuf, most_bytes: u64, days: u64, files: usize) -> Self {
        Self { path, file: None, most_bytes, days, files }
    }

    pub(super) fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        if self.most_bytes > 0 && fs::metadata(&self.path).is_ok_and(|meta| meta.len() >= self.most_bytes) {
            self.rotate()?;
        }
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(OpenOptions::new().create(true).append(true).open(&self.path)?),
        };
        let written = file.write_all(lines);
        if written.is_err() {
            // Opened anew at the next try, in case the file system has changed beneath.
            self.file = None;
        }
        written
    }

    fn old(&self, number: usize) -> PathBuf {
        let mut name = self.path.as_os_str().to_owned();
        name.push(format!(".{number}"));
        name.into()
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.file = None;
        let newest_free =
            (1..=self.files).find(|number| !self.old(*number).exists()).unwrap_or(self.files.max(1));
        for number in (1..newest_free).rev() {
            fs::rename(self.old(number), self.old(number + 1))?;
        }
        if self.files == 0 {
            return fs::remove_file(&self.path);
        }
        fs::rename(&self.path, self.old(1))?;
        if self.days > 0 {
            let oldest = SystemTime::now().checked_sub(Duration::from_secs(self.days.saturating_mul(86_400)));
            for number in 1..=newest_free {
                let modified = fs::metadata(self.old(number)).and_then(|meta| meta.modified());
                if oldest.is_some_and(|oldest| modified.is_ok_and(|modified| modified < oldest)) {
                    fs::remove_file(self.old(number))?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_file_becomes_dot_one_and_the_oldest_goes() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        let mut file = Rotating::new(path.clone(), 4, 30, 2);
        for line in ["one\n", "two\n", "three\n", "four\n"] {
            file.write(line.as_bytes()).expect("written");
        }
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).ok();
        assert_eq!(read("log").as_deref(), Some("four\n"));
        assert_eq!(read("log.1").as_deref(), Some("three\n"));
        assert_eq!(read("log.2").as_deref(), Some("two\n"));
        assert_eq!(read("log.3"), None);
    }
}
