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
};

use ahash::AHashMap;
use mesh_traffic::{listener::LogFormat, names::Name};

use super::format::Compiled;

/// Lines that may wait per file.
const QUEUE: usize = 8192;

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
    let mut told = false;
    let mut out: Option<Box<dyn Write>> = None;
    while let Ok(line) = lines.recv() {
        if out.is_none() {
            match open(path) {
                Ok(file) => out = Some(file),
                Err(error) if !told => {
                    tracing::error!(path, %error, "cannot write the access log: its lines are lost until it can be opened");
                    told = true;
                }
                Err(_) => {}
            }
        }
        let Some(file) = &mut out else { continue };
        let mut written = file.write_all(&line);
        // Whatever waits goes out in one write, then the file is brought up to date.
        while let Ok(line) = lines.try_recv() {
            written = written.and_then(|()| file.write_all(&line));
        }
        if let Err(error) = written.and_then(|()| file.flush()) {
            if !told {
                tracing::error!(path, %error, "writing the access log failed");
            }
            told = true;
            out = None;
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
