//! Processes of a local mesh: started, logged, started again when they end by themselves, and gone when the node is gone.
//!
//! In: what to run. Out: [`Process`], a handle. Kept true: a child dies with this process, however that ends (parent death signal, set by
//! a tiny first stage: `e2e exec-child`); output goes to one file per name. Not here: which processes there are (`mod`, `control`).

use std::{
    ffi::OsString,
    fmt,
    fs::{File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
    process::Stdio,
    sync::mpsc as std_mpsc,
    time::Duration,
};

use anyhow::Context;
use mesh_runtime::Backoff;
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    process::{Child, Command},
    sync::{mpsc, oneshot, watch},
    time::Instant,
};

/// How long a process may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(5);
/// How long a process may take to end by itself once it has a successor.
const RETIREMENT: Duration = Duration::from_secs(60);
/// A process that ran this long is not in a crash loop.
const STEADY: Duration = Duration::from_secs(10);

/// What to run.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Name of the process and of its log.
    pub name: String,
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Its whole environment, besides `PATH`.
    pub env: Vec<(String, OsString)>,
}

/// What a process is doing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// Its id while it runs.
    pub pid: Option<u32>,
    /// How often it has been started.
    pub starts: u32,
    /// How it ended last, in words.
    pub last_end: Option<String>,
}

enum Control {
    Signal(Signal),
    Hold(oneshot::Sender<()>),
    Replace(oneshot::Sender<anyhow::Result<()>>),
    Resume,
    Stop(oneshot::Sender<()>),
}

/// A handle on a supervised process. Dropping all of them stops it.
#[derive(Clone)]
pub struct Process {
    /// Name of the process and of its log.
    pub name: String,
    /// Where its output goes.
    pub log: PathBuf,
    control: mpsc::UnboundedSender<Control>,
    status: watch::Receiver<Status>,
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process").field("name", &self.name).field("status", &*self.status.borrow()).finish()
    }
}

impl Process {
    /// What it is doing now.
    #[must_use]
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// Sends a signal, if it runs.
    pub fn signal(&self, signal: Signal) {
        let _gone = self.control.send(Control::Signal(signal));
    }

    /// Ends it and keeps it ended until [`Process::resume`].
    pub async fn hold(&self) {
        let (done, wait) = oneshot::channel();
        if self.control.send(Control::Hold(done)).is_ok() {
            let _gone = wait.await;
        }
    }

    /// Starts it again after [`Process::hold`].
    pub fn resume(&self) {
        let _gone = self.control.send(Control::Resume);
    }

    /// Starts a successor beside it and follows that one from now on; this one has to end by itself, as proxies with a restart socket do.
    ///
    /// # Errors
    /// When it does not run, or no successor can be started.
    pub async fn replace(&self) -> anyhow::Result<()> {
        let (done, wait) = oneshot::channel();
        self.control.send(Control::Replace(done)).ok().context("the process was stopped for good")?;
        wait.await.context("the process was stopped for good")?
    }

    /// Ends it for good: SIGTERM, then SIGKILL after a grace time.
    pub async fn stop(&self) {
        let (done, wait) = oneshot::channel();
        if self.control.send(Control::Stop(done)).is_ok() {
            let _gone = wait.await;
        }
    }

    /// The end of its log, for messages.
    #[must_use]
    pub fn tail(&self, lines: usize) -> String {
        tail(&self.log, lines)
    }
}

/// The last `lines` lines of a file.
#[must_use]
pub fn tail(path: &Path, lines: usize) -> String {
    let text = std::fs::read(path).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default();
    let all: Vec<_> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Starts processes. The thread that calls `fork` lives as long as this, which is what the parent death signal follows.
#[derive(Debug, Clone)]
pub struct Spawner {
    requests: std_mpsc::Sender<(Command, oneshot::Sender<std::io::Result<Child>>)>,
    logs: PathBuf,
    first_stage: Option<PathBuf>,
}

impl Spawner {
    /// A spawner whose children log into `logs`; `first_stage` is the `e2e` binary.
    ///
    /// # Errors
    /// When the thread cannot be started. Must be called inside a tokio runtime.
    pub fn new(logs: PathBuf, first_stage: Option<PathBuf>) -> anyhow::Result<Self> {
        let (requests, queue) = std_mpsc::channel::<(Command, oneshot::Sender<std::io::Result<Child>>)>();
        let runtime = tokio::runtime::Handle::current();
        let work = move || {
            let _entered = runtime.enter();
            for (mut command, answer) in queue {
                let _asker_gone = answer.send(command.spawn());
            }
        };
        std::thread::Builder::new().name("spawner".into()).spawn(work)?;
        Ok(Self { requests, logs, first_stage })
    }

    /// Runs `spec` and keeps it running.
    ///
    /// # Errors
    /// When it cannot be started the first time.
    pub async fn start(&self, spec: Spec) -> anyhow::Result<Process> {
        let log = self.logs.join(format!("{}.log", spec.name));
        let child = self.spawn(&spec, &log).await?;
        let (control, commands) = mpsc::unbounded_channel();
        let (status, seen) = watch::channel(Status { pid: child.id(), starts: 1, last_end: None });
        let name = spec.name.clone();
        tokio::spawn(supervise(self.clone(), spec, log.clone(), child, commands, status));
        Ok(Process { name, log, control, status: seen })
    }

    async fn spawn(&self, spec: &Spec, log: &Path) -> anyhow::Result<Child> {
        let file = append(log)?;
        let mut command = match &self.first_stage {
            Some(e2e) => {
                let mut command = Command::new(e2e);
                command
                    .args(["exec-child", "--parent", &std::process::id().to_string(), "--"])
                    .arg(&spec.program);
                command
            }
            None => Command::new(&spec.program),
        };
        command
            .args(&spec.args)
            .env_clear()
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .env("RUST_BACKTRACE", "1")
            .env("RUST_LIB_BACKTRACE", "0")
            .envs(spec.env.iter().map(|(k, v)| (k, v)))
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            // A Ctrl-C at the terminal is for the node; it ends its children in order.
            .process_group(0)
            .kill_on_drop(true);
        let (answer, child) = oneshot::channel();
        self.requests.send((command, answer)).ok().context("the spawner has ended")?;
        child
            .await
            .context("the spawner has ended")?
            .with_context(|| format!("starting {}", spec.program.display()))
    }
}

fn append(log: &Path) -> anyhow::Result<File> {
    let file = OpenOptions::new().create(true).append(true).open(log);
    file.with_context(|| format!("cannot write {}", log.display()))
}

async fn supervise(
    spawner: Spawner,
    spec: Spec,
    log: PathBuf,
    first: Child,
    mut commands: mpsc::UnboundedReceiver<Control>,
    status: watch::Sender<Status>,
) {
    let mut child = Some(first);
    let mut held = false;
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(3));
    let mut started = Instant::now();
    loop {
        let command = match &mut child {
            Some(running) => tokio::select! {
                command = commands.recv() => command,
                end = running.wait() => {
                    let how = end.map_or_else(|e| e.to_string(), |s| s.to_string());
                    note(&log, &format!("ended: {how}"));
                    if started.elapsed() > STEADY {
                        backoff.reset();
                    }
                    child = None;
                    status.send_modify(|s| {
                        s.pid = None;
                        s.last_end = Some(how);
                    });
                    continue;
                }
            },
            None if held => commands.recv().await,
            None => tokio::select! {
                command = commands.recv() => command,
                () = backoff.wait() => {
                    match spawner.spawn(&spec, &log).await {
                        Ok(again) => {
                            started = Instant::now();
                            status.send_modify(|s| {
                                s.pid = again.id();
                                s.starts += 1;
                            });
                            child = Some(again);
                        }
                        Err(error) => note(&log, &format!("cannot be started: {error:#}")),
                    }
                    continue;
                }
            },
        };
        match command {
            Some(Control::Signal(signal)) => send(child.as_ref(), signal),
            Some(Control::Resume) => {
                held = false;
                backoff.reset();
            }
            Some(Control::Hold(done)) => {
                held = true;
                end(child.take()).await;
                status.send_modify(|s| s.pid = None);
                let _asker_gone = done.send(());
            }
            Some(Control::Replace(done)) => {
                let _asker_gone = done.send(match (&child, spawner.spawn(&spec, &log).await) {
                    (None, _) => Err(anyhow::anyhow!("{} does not run", spec.name)),
                    (_, Err(error)) => Err(error),
                    (Some(_), Ok(successor)) => {
                        started = Instant::now();
                        status.send_modify(|s| {
                            s.pid = successor.id();
                            s.starts += 1;
                        });
                        if let Some(old) = child.replace(successor) {
                            tokio::spawn(retire(old, log.clone()));
                        }
                        Ok(())
                    }
                });
            }
            Some(Control::Stop(done)) => {
                end(child.take()).await;
                status.send_modify(|s| s.pid = None);
                let _asker_gone = done.send(());
                return;
            }
            None => return end(child.take()).await,
        }
    }
}

/// Waits for the end of a process that has a successor; one that does not end is killed.
async fn retire(mut old: Child, log: PathBuf) {
    match tokio::time::timeout(RETIREMENT, old.wait()).await {
        Ok(end) => {
            note(
                &log,
                &format!("the old one ended: {}", end.map_or_else(|e| e.to_string(), |s| s.to_string())),
            );
        }
        Err(_) => {
            note(&log, "the old one did not end and is killed");
            let _gone = old.kill().await;
        }
    }
}

fn note(log: &Path, text: &str) {
    if let Ok(mut file) = append(log) {
        // A log that cannot be written is no reason to stop.
        let _written = writeln!(file, "--- {text}");
    }
}

fn send(child: Option<&Child>, signal: Signal) {
    // `id` is none once the child was reaped, and only this task reaps it: the id cannot be somebody else's.
    let pid = child.and_then(Child::id).and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    if let Some(pid) = pid {
        let _gone = kill_process(pid, signal);
    }
}

async fn end(child: Option<Child>) {
    let Some(mut child) = child else { return };
    send(Some(&child), Signal::TERM);
    // A stopped process cannot take the signal.
    send(Some(&child), Signal::CONT);
    if tokio::time::timeout(GRACE, child.wait()).await.is_err() {
        let _gone = child.kill().await;
    }
}

/// The first stage of every child: asks the kernel for SIGKILL at the parent's death, then becomes the program.
///
/// # Errors
/// Only returns when that fails.
pub fn exec_child(parent: u32, program: &Path, args: &[OsString]) -> anyhow::Result<()> {
    use std::os::unix::process::CommandExt;

    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    let real = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get());
    // The parent may have died before the line above.
    anyhow::ensure!(real == i32::try_from(parent).ok(), "the parent is gone");
    let error = std::process::Command::new(program).args(args).exec();
    Err(error).with_context(|| format!("starting {}", program.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_successor_runs_before_the_old_one_ends() {
        let dir = tempfile::tempdir().expect("a directory");
        let spawner = Spawner::new(dir.path().to_path_buf(), None).expect("a spawner");
        let process = spawner.start(shell("s", "sleep 60")).await.expect("started");
        let first = process.status().pid.expect("runs");
        process.replace().await.expect("a successor");
        let second = process.status();
        assert_eq!((second.starts, second.pid == Some(first)), (2, false));
        // The old one is no longer ours to signal, and still there.
        let old = i32::try_from(first).ok().and_then(Pid::from_raw).expect("an id");
        rustix::process::test_kill_process(old).expect("the old one runs");
        kill_process(old, Signal::KILL).expect("ours");
        process.stop().await;
        assert!(process.replace().await.is_err());
    }

    fn shell(name: &str, script: &str) -> Spec {
        Spec {
            name: name.into(),
            program: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
            env: vec![],
        }
    }

    async fn until(process: &Process, wanted: impl Fn(&Status) -> bool) {
        let mut status = process.status.clone();
        status.wait_for(|s| wanted(s)).await.expect("the supervisor lives");
    }

    #[tokio::test]
    async fn a_process_that_ends_is_started_again_until_stopped() {
        let logs = tempfile::tempdir().expect("a directory");
        let spawner = Spawner::new(logs.path().into(), None).expect("a spawner");
        let process = spawner.start(shell("short", "echo hello; exit 3")).await.expect("started");
        until(&process, |s| s.starts >= 3).await;
        process.stop().await;
        assert_eq!(process.status().pid, None);
        let log = process.tail(100);
        assert!(log.contains("hello") && log.contains("ended: exit status: 3"), "{log}");
    }

    #[tokio::test]
    async fn a_held_process_stays_away_until_resumed() {
        let logs = tempfile::tempdir().expect("a directory");
        let spawner = Spawner::new(logs.path().into(), None).expect("a spawner");
        let process = spawner.start(shell("long", "exec sleep 600")).await.expect("started");
        process.hold().await;
        assert_eq!(process.status(), Status { pid: None, starts: 1, last_end: None });
        process.resume();
        until(&process, |s| s.starts == 2 && s.pid.is_some()).await;
        process.signal(Signal::KILL);
        until(&process, |s| s.starts == 3).await;
        process.stop().await;
    }

    #[tokio::test]
    async fn a_program_that_does_not_exist_is_named() {
        let logs = tempfile::tempdir().expect("a directory");
        let spawner = Spawner::new(logs.path().into(), None).expect("a spawner");
        let spec = Spec { name: "x".into(), program: "/no/such/program".into(), args: vec![], env: vec![] };
        assert!(
            format!("{:#}", spawner.start(spec).await.expect_err("missing")).contains("/no/such/program")
        );
    }
}
