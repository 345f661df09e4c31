//! Writers of access logs: lines go into a bounded queue, a thread writes them.
//!
//! In: finished lines and the path they belong to. Out: bytes in a file or on standard output. Kept true: a request never waits for a
//! disk; lines that do not fit are counted. Not here: the line's form (`format`).

use std::{
    cell::RefCell,
    collections::HashMap,
    fs::OpenOptions,
    io::{self, Write},
    rc::Rc,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::Duration,
};

use ahash::AHashMap;
use mesh_traffic::{listener::LogFormat, names::Name};

use super::format::Compiled;

/// Lines that may wait per file.
const QUEUE: usize = 8192;

/// How long lines may gather once there are some: a busy log wakes its thread so often and not for each line.
const GATHER: Duration = Duration::from_millis(20);

/// The files that are written to, one thread each.
#[derive(Debug, Default)]
pub struct Files {
    open: Mutex<HashMap<Name, SyncSender<Vec<u8>>>>,
    /// Lines that did not fit.
    lost: Arc<AtomicU64>,
}

impl Files {
    /// Counts lost lines in `lost`.
    #[must_use]
    pub fn counting(lost: Arc<AtomicU64>) -> Self {
        Self { open: Mutex::default(), lost }
    }

    fn queue(&self, path: &Name) -> SyncSender<Vec<u8>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(queue) = open.get(path) {
            return queue.clone();
        }
        let (queue, lines) = sync_channel(QUEUE);
        let name = path.clone();
        let thread = std::thread::Builder::new().name("access-log".to_owned());
        if let Err(error) = thread.spawn(move || write_all(&name, &lines)) {
            tracing::error!(%path, %error, "no thread for the access log: its lines are lost");
        }
        open.insert(path.clone(), queue.clone());
        queue
    }
}

fn write_all(path: &str, lines: &Receiver<Vec<u8>>) {
    let mut file = Target { path, told: false, out: None };
    while let Ok(line) = lines.recv() {
        let mut next = Some(line);
        // Whatever waits goes out in one write; then more may gather, until a pause brings none.
        while let Some(line) = next {
            let rest = std::iter::from_fn(|| lines.try_recv().ok());
            file.write(std::iter::once(line).chain(rest));
            std::thread::park_timeout(GATHER);
            next = lines.try_recv().ok();
        }
    }
}

/// A file that is opened when there is something to write, and again after a failure.
struct Target<'a> {
    path: &'a str,
    told: bool,
    out: Option<Box<dyn Write>>,
}

impl Target<'_> {
    /// Writes these lines and brings the file up to date. Lines that cannot be written are gone.
    fn write(&mut self, mut lines: impl Iterator<Item = Vec<u8>>) {
        let path = self.path;
        if self.out.is_none() {
            match open(path) {
                Ok(file) => self.out = Some(file),
                Err(error) if !self.told => {
                    tracing::error!(path, %error, "cannot write the access log: its lines are lost until it can be opened");
                    self.told = true;
                }
                Err(_) => {}
            }
        }
        let Some(file) = &mut self.out else { return lines.for_each(drop) };
        let written = lines.try_for_each(|line| file.write_all(&line));
        if let Err(error) = written.and_then(|()| file.flush()) {
            if !self.told {
                tracing::error!(path, %error, "writing the access log failed");
            }
            self.told = true;
            self.out = None;
        }
    }
}

fn open(path: &str) -> io::Result<Box<dyn Write>> {
    Ok(match path {
        "/dev/stdout" => Box::new(io::BufWriter::new(io::stdout())),
        "/dev/stderr" => Box::new(io::BufWriter::new(io::stderr())),
        _ => Box::new(io::BufWriter::new(OpenOptions::new().create(true).append(true).open(path)?)),
    })
}

/// Most formats that a worker keeps compiled.
const MAX_FORMATS: usize = 64;

/// Equal by pointer where possible: formats are shared.
fn same(a: &LogFormat, b: &LogFormat) -> bool {
    match (a, b) {
        (LogFormat::Text(a), LogFormat::Text(b)) => Arc::ptr_eq(a, b) || a == b,
        _ => a == b,
    }
}

/// One worker's way to the files.
pub struct Writers {
    files: Arc<Files>,
    queues: RefCell<AHashMap<Name, SyncSender<Vec<u8>>>>,
    formats: RefCell<Vec<(LogFormat, Rc<Compiled>)>>,
}

impl Writers {
    /// Writes through `files`.
    #[must_use]
    pub fn new(files: Arc<Files>) -> Self {
        Self { files, queues: RefCell::default(), formats: RefCell::default() }
    }

    /// The compiled form of a format; compiled once per worker.
    #[must_use]
    pub fn format(&self, format: &LogFormat) -> Rc<Compiled> {
        let mut formats = self.formats.borrow_mut();
        if let Some((_, compiled)) = formats.iter().find(|(known, _)| same(known, format)) {
            return Rc::clone(compiled);
        }
        if formats.len() >= MAX_FORMATS {
            formats.clear();
        }
        let compiled = Rc::new(Compiled::new(format));
        formats.push((format.clone(), Rc::clone(&compiled)));
        compiled
    }

    /// Hands over a line, or counts it as lost.
    pub fn write(&self, path: &Name, line: Vec<u8>) {
        let mut queues = self.queues.borrow_mut();
        let queue = queues.entry(path.clone()).or_insert_with(|| self.files.queue(path));
        if queue.try_send(line).is_err() {
            self.files.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}
