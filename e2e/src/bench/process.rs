//! Processes under measurement: pinned to a core, gone with this one, and what they have used so far.
//!
//! In: a command and a core. Out: a [`Child`] and its [`Usage`]. Kept true: figures come from the kernel's accounting of that process
//! (`/proc`), never from clocks here. Not here: what the processes are (`world`, `peers`).

use std::{
    ffi::OsStr,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::Context;

/// The core that proxies run on, alone.
pub const PROXY_CORE: &str = "0";
/// The core of everything else: generator, backend, control plane.
pub const OTHER_CORE: &str = "1";

/// A process that is killed and reaped when it goes out of scope, and dies with the thread that started it.
#[derive(Debug)]
pub struct Child {
    child: std::process::Child,
    /// Where its output goes.
    pub log: PathBuf,
}

impl Child {
    /// Starts `program` on `core` (a list as `taskset -c` takes it), in `dir`, with its output in `dir`/output.log.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start<S: AsRef<OsStr>>(
        core: &str,
        dir: &Path,
        program: &Path,
        args: impl IntoIterator<Item = S>,
    ) -> anyhow::Result<Self> {
        fs::create_dir_all(dir)?;
        let log = dir.join("output.log");
        let file = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
        let mut command = Command::new("taskset");
        command.args(["-c", core]).arg(std::env::current_exe()?);
        command
            .args(["exec-child", "--parent", &std::process::id().to_string(), "--"])
            .arg(program)
            .args(args);
        command.current_dir(dir).stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().with_context(|| format!("starting {}", program.display()))?;
        Ok(Self { child, log })
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The end of its output, for messages.
    #[must_use]
    pub fn tail(&self) -> String {
        let text = fs::read(&self.log).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default();
        let lines: Vec<String> = text.lines().rev().take(6).map(|l| l.chars().take(300).collect()).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Already gone is as good as killed.
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// What processes have used since they started.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// Time on a core, user and kernel, in nanoseconds.
    pub cpu_ns: u64,
    /// Of the user part alone, in clock ticks of 10 ms.
    pub user_ticks: u64,
    /// User and kernel part, in clock ticks of 10 ms.
    pub ticks: u64,
    /// Context switches, voluntary or not.
    pub switches: u64,
    /// Resident memory now, in KiB.
    pub rss_kib: u64,
}

impl Usage {
    /// Sum over `pids`.
    ///
    /// # Errors
    /// When one of them is gone.
    pub fn of(pids: &[u32]) -> anyhow::Result<Self> {
        let mut sum = Self::default();
        for pid in pids {
            sum.add(*pid).with_context(|| format!("process {pid} is gone; see its log"))?;
        }
        Ok(sum)
    }

    fn add(&mut self, pid: u32) -> anyhow::Result<()> {
        let root = PathBuf::from(format!("/proc/{pid}"));
        for task in fs::read_dir(root.join("task"))?.flatten() {
            let read = |name: &str| fs::read_to_string(task.path().join(name)).unwrap_or_default();
            self.cpu_ns += first_number(&read("schedstat"));
            let status = read("status");
            self.switches +=
                field(&status, "voluntary_ctxt_switches:") + field(&status, "nonvoluntary_ctxt_switches:");
        }
        self.rss_kib += field(&fs::read_to_string(root.join("status"))?, "VmRSS:");
        let stat = fs::read_to_string(root.join("stat"))?;
        // The name may hold blanks; what follows its bracket does not. utime and stime are fields 14 and 15 of all.
        let rest: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |at: usize| rest.get(at).and_then(|t| t.parse::<u64>().ok()).unwrap_or_default();
        self.user_ticks += ticks(11);
        self.ticks += ticks(11) + ticks(12);
        Ok(())
    }

    /// What was used since `before`; memory is as it is now.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            cpu_ns: self.cpu_ns.saturating_sub(before.cpu_ns),
            user_ticks: self.user_ticks.saturating_sub(before.user_ticks),
            ticks: self.ticks.saturating_sub(before.ticks),
            switches: self.switches.saturating_sub(before.switches),
            rss_kib: self.rss_kib,
        }
    }
}

fn first_number(text: &str) -> u64 {
    text.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or_default()
}

fn field(text: &str, name: &str) -> u64 {
    text.lines().find_map(|line| line.strip_prefix(name)).map(first_number).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::Usage;

    #[test]
    fn this_process_uses_memory_and_a_process_that_is_gone_is_an_error() {
        let usage = Usage::of(&[std::process::id()]).expect("this process is there");
        assert!(usage.rss_kib > 0);
        assert!(Usage::of(&[u32::MAX]).expect_err("no such process").to_string().contains("is gone"));
    }
}
