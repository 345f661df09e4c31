//! One attack against one proxy: what it pinned, what it cost either side, what got through, and what a bystander felt.
//!
//! In: an [`Attack`], a [`Target`], the application's record. Out: a [`Row`]. Kept true: processor time and memory come from the kernel's
//! accounting of the proxy and of the attacker's own thread. Not here: the attacks (`rows`), the table (`report`).

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::Context;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
};

use super::{recorder::Recorder, rows::Attack, world::Target};

/// What an attack did to a proxy.
#[derive(Debug, Clone)]
pub struct Row {
    /// [`Attack::id`].
    pub id: &'static str,
    /// [`Attack::what`].
    pub what: &'static str,
    /// Whom it hit.
    pub target: &'static str,
    /// Connections.
    pub connections: usize,
    /// Bytes that the attacker could write.
    pub sent: u64,
    /// Connections that the proxy closed before the attacker did.
    pub closed: usize,
    /// How the first one ended, as far as bytes tell.
    pub ending: String,
    /// When the last of the closed ones was closed, counted from connecting.
    pub after: Duration,
    /// Whole requests of the attacker at the application.
    pub upstream: usize,
    /// Bytes at the application that were no request.
    pub misread: usize,
    /// Growth of the proxy's memory at its worst, in bytes per connection.
    pub pinned: u64,
    /// Growth of the proxy's memory five seconds after the attacker left, in bytes.
    pub left: u64,
    /// Processor time of the proxy, less what the bystander costs.
    pub proxy_cpu: Duration,
    /// Processor time of the attacker.
    pub attacker_cpu: Duration,
    /// The bystander's 99th percentile, before and meanwhile.
    pub bystander: [Duration; 2],
    /// The bystander's requests without the right answer.
    pub errors: usize,
}

/// Plays one attack.
///
/// # Errors
/// When the proxy is gone, or does not serve the bystander before the attack.
pub async fn play(attack: &Attack, target: &Target, recorder: &Recorder, quick: bool) -> anyhow::Result<Row> {
    let pid = target.pid();
    let (before, share) = calm(target).await?;
    let _before = recorder.take();
    let (memory, work, since) = (resident(pid)?, processor(pid)?, Instant::now());
    let bystander = Bystander::start(target.sidecar);
    let peak = Peak::start(pid);
    let hold = Duration::from_secs(if attack.patient && !quick { 35 } else { 5 });
    let (thread, at, attack_now) = (tokio::sync::oneshot::channel(), target.gateway, attack.clone());
    let (done, wait) = thread;
    std::thread::Builder::new().name("attacker".into()).spawn(move || {
        let _receiver_gone = done.send(attacker(&attack_now, at, hold));
    })?;
    let (ends, attacker_cpu) = wait.await.context("the attacker's thread ended early")??;
    let peak = peak.stop().await;
    let (during, errors) = bystander.stop().await?;
    // Without what the bystander costs.
    let own = share.mul_f64(since.elapsed().as_secs_f64());
    let proxy_cpu = processor(pid)?.saturating_sub(work).saturating_sub(own);
    tokio::time::sleep(Duration::from_secs(5)).await;
    let left = resident(pid)?.saturating_sub(memory);
    let record = recorder.take();
    let closed: Vec<&End> = ends.iter().filter(|end| end.closed.is_some()).collect();
    let count = u64::try_from(attack.connections)?;
    Ok(Row {
        id: attack.id,
        what: attack.what,
        target: target.name,
        connections: attack.connections,
        sent: ends.iter().map(|end| end.sent).sum(),
        closed: closed.len(),
        ending: closed.first().or(ends.first().as_ref()).map(|end| ending(&end.answer)).unwrap_or_default(),
        after: closed.iter().filter_map(|end| end.closed).max().unwrap_or_default(),
        upstream: record.seen.iter().filter(|seen| seen.line.contains("/attack")).count(),
        misread: record.misread.len(),
        pinned: peak.saturating_sub(memory) / count.max(1),
        left,
        proxy_cpu,
        attacker_cpu,
        bystander: [before, during],
        errors,
    })
}

/// What the bystander feels and costs per second while nobody attacks; waits until the proxy has got over the last attack.
async fn calm(target: &Target) -> anyhow::Result<(Duration, Duration)> {
    for _ in 0..10 {
        let (work, since) = (processor(target.pid())?, Instant::now());
        let bystander = Bystander::start(target.sidecar);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let (percentile, errors) = bystander.stop().await?;
        if errors == 0 {
            let work = processor(target.pid())?.saturating_sub(work);
            return Ok((percentile, work.div_f64(since.elapsed().as_secs_f64())));
        }
    }
    anyhow::bail!("{} does not serve the bystander although nobody attacks", target.name)
}

/// How one hostile connection ended.
#[derive(Debug)]
struct End {
    sent: u64,
    /// The first bytes that came back.
    answer: Vec<u8>,
    /// When the proxy closed it.
    closed: Option<Duration>,
}

/// All connections of an attack, on the calling thread, and what they cost it.
fn attacker(attack: &Attack, at: SocketAddr, hold: Duration) -> anyhow::Result<(Vec<End>, Duration)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let all = (0..attack.connections).map(|_| hostile(attack, at, hold));
    let ends = runtime.block_on(futures::future::join_all(all));
    let cost = nanoseconds(&std::fs::read_to_string("/proc/thread-self/schedstat")?)?;
    Ok((ends.into_iter().collect::<anyhow::Result<_>>()?, cost))
}

async fn hostile(attack: &Attack, at: SocketAddr, hold: Duration) -> anyhow::Result<End> {
    let stream = TcpStream::connect(at).await.context("connecting")?;
    let started = Instant::now();
    let (mut from, mut to) = stream.into_split();
    let mut sent = 0;
    let mut answer = Vec::new();
    let write = async {
        if to.write_all(&attack.opening).await.is_err() {
            return;
        }
        sent += u64::try_from(attack.opening.len()).unwrap_or(0);
        for number in 0..attack.pieces {
            let piece = (attack.piece)(number);
            if to.write_all(&piece).await.is_err() {
                return;
            }
            sent += u64::try_from(piece.len()).unwrap_or(0);
            if !attack.every.is_zero() {
                tokio::time::sleep(attack.every).await;
            }
        }
        if attack.reads {
            // The reader knows when the proxy closes.
            std::future::pending::<()>().await;
        }
        // One that does not read learns of its end only by writing; it stays.
        tokio::time::sleep(hold).await;
    };
    let read = async {
        let mut buffer = [0; 16 * 1024];
        if !attack.reads {
            return std::future::pending().await;
        }
        loop {
            match from.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(read) if answer.len() < 64 * 1024 => answer.extend_from_slice(&buffer[..read]),
                Ok(_) => {}
            }
        }
    };
    let closed = tokio::select! {
        () = read => Some(started.elapsed()),
        () = write => None,
        () = tokio::time::sleep(hold) => None,
    };
    // A reader that was told nothing while it wrote: what is there now tells.
    let closed = match closed {
        None if Box::pin(closes(&mut from, &mut answer, &mut to)).await => Some(started.elapsed()),
        closed => closed,
    };
    Ok(End { sent, answer, closed })
}

/// True when the proxy has closed: everything that waits is read, then the end must follow.
async fn closes(
    from: &mut tokio::net::tcp::OwnedReadHalf,
    answer: &mut Vec<u8>,
    to: &mut tokio::net::tcp::OwnedWriteHalf,
) -> bool {
    let mut buffer = [0; 64 * 1024];
    let mut drained = 0;
    // A window's worth: a proxy that still has something to say is not gone.
    while drained < 8 << 20 {
        match tokio::time::timeout(Duration::from_millis(50), from.read(&mut buffer)).await {
            Ok(Ok(0) | Err(_)) => return true,
            Ok(Ok(read)) => {
                drained += read;
                if answer.len() < 64 * 1024 {
                    answer.extend_from_slice(&buffer[..read]);
                }
            }
            Err(_quiet) => break,
        }
    }
    to.write_all(b"\0").await.is_err()
}

/// What the bytes that came back end with: HTTP/2 frames or an HTTP/1 status.
fn ending(answer: &[u8]) -> String {
    if answer.is_empty() {
        return "no answer".to_owned();
    }
    if answer.starts_with(b"HTTP/1.1 ") {
        return String::from_utf8_lossy(answer.get(9..12).unwrap_or_default()).into_owned();
    }
    let (mut at, mut resets) = (0, 0);
    while let Some(head) = answer.get(at..at + 9) {
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        match (head[3], answer.get(at + 13..at + 17)) {
            (3, _) => resets += 1,
            (7, Some(code)) => {
                let code = u32::from_be_bytes([code[0], code[1], code[2], code[3]]);
                return format!("GOAWAY {code}, {resets} × RST");
            }
            _ => {}
        }
        at += 9 + length;
    }
    format!("{resets} × RST")
}

/// A peaceful client: 200 requests a second on one connection.
struct Bystander {
    task: tokio::task::JoinHandle<(Vec<Duration>, usize)>,
    stop: watch::Sender<bool>,
}

impl Bystander {
    fn start(at: SocketAddr) -> Self {
        let (stop, stopped) = watch::channel(false);
        Self { task: tokio::spawn(peaceful(at, stopped)), stop }
    }

    /// The 99th percentile and the number of requests without the right answer.
    async fn stop(self) -> anyhow::Result<(Duration, usize)> {
        let _gone = self.stop.send(true);
        let (mut times, errors) = self.task.await?;
        times.sort_unstable();
        let at = (times.len() * 99 / 100).min(times.len().saturating_sub(1));
        Ok((times.get(at).copied().unwrap_or_default(), errors))
    }
}

async fn peaceful(at: SocketAddr, stopped: watch::Receiver<bool>) -> (Vec<Duration>, usize) {
    let (mut times, mut errors, mut stream, mut number) = (Vec::new(), 0, None, 0_u64);
    let mut tick = tokio::time::interval(Duration::from_millis(5));
    while !*stopped.borrow() {
        // The time counts from when it should have been sent: a stall is seen by every request that it delays.
        let due = tick.tick().await;
        number += 1;
        let exchange = tokio::time::timeout(Duration::from_secs(5), ask(&mut stream, at, number)).await;
        times.push(due.elapsed());
        if !matches!(exchange, Ok(Ok(true))) {
            errors += 1;
            stream = None;
        }
    }
    (times, errors)
}

async fn ask(stream: &mut Option<TcpStream>, at: SocketAddr, number: u64) -> std::io::Result<bool> {
    let connected = match stream {
        Some(connected) => connected,
        None => stream.insert(TcpStream::connect(at).await?),
    };
    let path = format!("/bystander/{number}");
    connected.write_all(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).await?;
    let mut answer = Vec::new();
    while !answer.ends_with(path.as_bytes()) {
        if connected.read_buf(&mut answer).await? == 0 || answer.len() > 4096 {
            return Ok(false);
        }
    }
    Ok(answer.starts_with(b"HTTP/1.1 200 "))
}

/// The largest memory of a process while this runs.
struct Peak {
    task: tokio::task::JoinHandle<u64>,
    stop: watch::Sender<bool>,
}

impl Peak {
    fn start(pid: u32) -> Self {
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(async move {
            let mut most = 0;
            while !*stopped.borrow() {
                most = most.max(resident(pid).unwrap_or(0));
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            most.max(resident(pid).unwrap_or(0))
        });
        Self { task, stop }
    }

    async fn stop(self) -> u64 {
        let _gone = self.stop.send(true);
        self.task.await.unwrap_or(0)
    }
}

/// Resident memory of a process, in bytes.
///
/// # Errors
/// When the process is gone.
pub fn resident(pid: u32) -> anyhow::Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("process {pid} is gone"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib << 10)
}

/// Processor time of a process's living threads.
fn processor(pid: u32) -> anyhow::Result<Duration> {
    let mut sum = Duration::ZERO;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end meanwhile.
        if let Ok(text) = std::fs::read_to_string(task?.path().join("schedstat")) {
            sum += nanoseconds(&text)?;
        }
    }
    Ok(sum)
}

fn nanoseconds(schedstat: &str) -> anyhow::Result<Duration> {
    let first = schedstat.split(' ').next().context("an empty schedstat")?;
    Ok(Duration::from_nanos(first.parse()?))
}
