//! The application behind the proxies: it records every byte, reads HTTP/1.1 as strictly as the grammar, and answers with what it read.
//!
//! In: connections from a proxy. Out: [`Seen`] requests, and what of the bytes was no HTTP/1.1. Kept true: each answer's body is the target
//! that it read, so that a client with another's answer knows. Not here: an application for gRPC or TLS.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use super::hostile;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};

/// How many requests for `/slow` are served at once; the others wait their turn.
pub const SERVED_AT_ONCE: usize = 8;
/// How long each of them takes.
const SERVICE_TIME: Duration = Duration::from_millis(20);
static CAPACITY: Semaphore = Semaphore::const_new(SERVED_AT_ONCE);

/// One request as it arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Method and target, e.g. `GET /a?b`.
    pub line: String,
    /// Field lines as they came, names in lower case.
    pub fields: Vec<(String, String)>,
    /// The body, chunks joined; at most the first 64 KiB.
    pub body: Vec<u8>,
}

impl Seen {
    /// The values of a field.
    pub fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.fields.iter().filter(move |(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

/// What has been recorded since [`Recorder::take`].
#[derive(Debug, Clone, Default)]
pub struct Record {
    /// Requests in the order in which their heads were complete.
    pub seen: Vec<Seen>,
    /// Bytes that were no HTTP/1.1 request, escaped, with the reason.
    pub misread: Vec<String>,
    /// Requests that ended in the middle: the proxy gave them up.
    pub cut: u32,
}

/// The running application. Dropping it stops it.
#[derive(Debug)]
pub struct Recorder {
    /// Where it listens.
    pub address: SocketAddr,
    record: Arc<Mutex<Record>>,
    tasks: tokio::task::JoinSet<()>,
}

impl Recorder {
    /// Listens on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// When there is none.
    pub async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let record = Arc::<Mutex<Record>>::default();
        let mut tasks = tokio::task::JoinSet::new();
        let shared = Arc::clone(&record);
        tasks.spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                };
                tokio::spawn(connection(stream, Arc::clone(&shared)));
            }
        });
        Ok(Self { address, record, tasks })
    }

    /// What was recorded until now; from here on it records anew.
    #[must_use]
    pub fn take(&self) -> Record {
        debug_assert!(!self.tasks.is_empty());
        std::mem::take(&mut self.record.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn connection(mut stream: TcpStream, record: Arc<Mutex<Record>>) {
    let mut reader = Reader::default();
    loop {
        let seen = match reader.request(&mut stream).await {
            Ok(Some(seen)) => seen,
            Ok(None) => return,
            Err(Wrong::Cut) => {
                record.lock().unwrap_or_else(PoisonError::into_inner).cut += 1;
                return;
            }
            Err(Wrong::Not(why)) => {
                let rest = reader.buffer[..reader.buffer.len().min(300)].escape_ascii().to_string();
                let said = format!("{why}: {rest}");
                record.lock().unwrap_or_else(PoisonError::into_inner).misread.push(said);
                return;
            }
        };
        let target = seen.line.split(' ').nth(1).unwrap_or_default().to_owned();
        let upgrade = seen.values("upgrade").any(|v| v.eq_ignore_ascii_case("websocket"));
        let head_only = seen.line.starts_with("HEAD ");
        record.lock().unwrap_or_else(PoisonError::into_inner).seen.push(seen);
        if upgrade {
            let _ended = echo_frames(stream, reader.buffer).await;
            return;
        }
        if Box::pin(answer(&mut stream, &target, head_only)).await.is_err() {
            return;
        }
    }
}

/// `/slow` answers after its turn, `/size/N` with N bytes, `/answer/N` as the N-th hostile application, `/hold` never, everything else with the target itself.
async fn answer(stream: &mut TcpStream, target: &str, head_only: bool) -> std::io::Result<()> {
    let words: Vec<&str> = target.split(['/', '?']).skip(1).collect();
    if words.first() == Some(&"hold") {
        // Until the proxy gives up.
        let mut rest = [0; 1024];
        while stream.read(&mut rest).await? > 0 {}
        return Err(std::io::ErrorKind::ConnectionAborted.into());
    }
    if words.first() == Some(&"slow") {
        let _turn = CAPACITY.acquire().await.map_err(std::io::Error::other)?;
        tokio::time::sleep(SERVICE_TIME).await;
    }
    if let ["answer", number, ..] = words[..] {
        let case = number.parse().ok().and_then(|number: usize| hostile::cases().get(number));
        let case = case.ok_or(std::io::ErrorKind::NotFound)?;
        stream.write_all(&case.bytes).await?;
        return if case.closes { Err(std::io::ErrorKind::ConnectionAborted.into()) } else { Ok(()) };
    }
    let size = match words[..] {
        ["size", size, ..] => size.parse::<usize>().unwrap_or(0),
        _ => target.len(),
    };
    let head = format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {size}\r\n\r\n");
    if head_only || words.first() != Some(&"size") {
        let body = if head_only { "" } else { target };
        return stream.write_all(format!("{head}{body}").as_bytes()).await;
    }
    stream.write_all(head.as_bytes()).await?;
    let piece = [b'x'; 16 * 1024];
    let mut left = size;
    while left > 0 {
        let now = left.min(piece.len());
        stream.write_all(&piece[..now]).await?;
        left -= now;
    }
    Ok(())
}

/// A WebSocket echo: every unfragmented frame under 64 KiB comes back unmasked, a close frame ends it.
async fn echo_frames(mut stream: TcpStream, mut buffer: Vec<u8>) -> std::io::Result<()> {
    let head = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    stream.write_all(head.as_bytes()).await?;
    loop {
        while let Some((kind, payload, used)) = frame(&buffer) {
            stream.write_all(&framed(kind, &payload, None)).await?;
            buffer.drain(..used);
            if kind == 8 {
                return stream.shutdown().await;
            }
        }
        if stream.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
    }
}

/// The first WebSocket frame of these bytes: opcode, payload without mask, bytes used.
#[must_use]
pub fn frame(bytes: &[u8]) -> Option<(u8, Vec<u8>, usize)> {
    let (kind, short) = (bytes.first()? & 0x0f, bytes.get(1)? & 0x7f);
    let (length, mut at) = match short {
        126 => (usize::from(u16::from_be_bytes([*bytes.get(2)?, *bytes.get(3)?])), 4),
        127 => return None,
        short => (usize::from(short), 2),
    };
    let mask: [u8; 4] = if bytes[1] & 0x80 == 0 {
        [0; 4]
    } else {
        at += 4;
        bytes.get(at - 4..at)?.try_into().ok()?
    };
    let payload = bytes.get(at..at + length)?;
    let payload = payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
    Some((kind, payload, at + length))
}

/// A whole WebSocket frame of under 64 KiB.
#[must_use]
pub fn framed(kind: u8, payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
    let masked = if mask.is_some() { 0x80 } else { 0 };
    let mut out = vec![0x80 | kind];
    match u8::try_from(payload.len()) {
        Ok(short) if short < 126 => out.push(masked | short),
        _ => {
            out.push(masked | 126);
            out.extend_from_slice(&u16::try_from(payload.len()).unwrap_or(u16::MAX).to_be_bytes());
        }
    }
    out.extend_from_slice(&mask.unwrap_or_default()[..mask.map_or(0, |mask| mask.len())]);
    let mask = mask.unwrap_or_default();
    out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    out
}

/// Reads requests and nothing but requests.
#[derive(Default)]
struct Reader {
    buffer: Vec<u8>,
}

type Read<T> = Result<T, Wrong>;

/// Why there is no request.
#[derive(Debug)]
enum Wrong {
    /// The connection ended within it.
    Cut,
    /// These bytes are none.
    Not(&'static str),
}

impl Reader {
    async fn more(&mut self, stream: &mut TcpStream) -> bool {
        matches!(stream.read_buf(&mut self.buffer).await, Ok(read) if read > 0)
    }

    /// One line without its CRLF; `None` when the connection ended before it began.
    async fn line(&mut self, stream: &mut TcpStream) -> Read<Option<String>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                let line = line.strip_suffix(b"\r\n").ok_or(Wrong::Not("a line without CR"))?;
                if line.iter().any(|byte| matches!(byte, b'\r' | 0)) {
                    return Err(Wrong::Not("CR or NUL within a line"));
                }
                return Ok(Some(line.iter().copied().map(char::from).collect()));
            }
            if !self.more(stream).await {
                return if self.buffer.is_empty() { Ok(None) } else { Err(Wrong::Cut) };
            }
        }
    }

    async fn request(&mut self, stream: &mut TcpStream) -> Read<Option<Seen>> {
        let Some(start) = self.line(stream).await? else { return Ok(None) };
        let words: Vec<&str> = start.split(' ').collect();
        let [method, target, "HTTP/1.1"] = words[..] else { return Err(Wrong::Not("no request line")) };
        let token = |text: &str| {
            !text.is_empty()
                && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
        };
        if !token(method) || target.is_empty() || !target.bytes().all(|b| (0x21..0x7f).contains(&b)) {
            return Err(Wrong::Not("method or target"));
        }
        let mut seen = Seen { line: format!("{method} {target}"), fields: Vec::new(), body: Vec::new() };
        loop {
            let line = self.line(stream).await?.ok_or(Wrong::Cut)?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').ok_or(Wrong::Not("a field without colon"))?;
            if !token(name) {
                return Err(Wrong::Not("field name"));
            }
            seen.fields.push((name.to_ascii_lowercase(), value.trim_matches([' ', '\t']).to_owned()));
        }
        let lengths: Vec<&str> = seen.values("content-length").collect();
        let codings: Vec<&str> = seen.values("transfer-encoding").collect();
        if seen.values("host").count() != 1 {
            return Err(Wrong::Not("not one host"));
        }
        let body = match (&lengths[..], &codings[..]) {
            ([], []) => Vec::new(),
            ([length], []) if !length.is_empty() && length.bytes().all(|b| b.is_ascii_digit()) => {
                let length = length.parse().map_err(|_| Wrong::Not("a length too large"))?;
                self.bytes(stream, length).await?
            }
            ([], ["chunked"]) => self.chunks(stream).await?,
            _ => return Err(Wrong::Not("framing that is not one length or chunked")),
        };
        seen.body = body;
        Ok(Some(seen))
    }

    async fn bytes(&mut self, stream: &mut TcpStream, mut left: usize) -> Read<Vec<u8>> {
        let mut kept = Vec::new();
        while left > 0 {
            if self.buffer.is_empty() && !self.more(stream).await {
                return Err(Wrong::Cut);
            }
            let now = left.min(self.buffer.len());
            let room = (64_usize << 10).saturating_sub(kept.len());
            kept.extend(self.buffer.drain(..now).take(room));
            left -= now;
        }
        Ok(kept)
    }

    async fn chunks(&mut self, stream: &mut TcpStream) -> Read<Vec<u8>> {
        let mut kept = Vec::new();
        loop {
            let size = self.line(stream).await?.ok_or(Wrong::Cut)?;
            if size.is_empty() || size.len() > 16 || !size.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(Wrong::Not("a chunk size with more than hex digits"));
            }
            let size = usize::from_str_radix(&size, 16).map_err(|_| Wrong::Not("chunk size"))?;
            if size == 0 {
                break;
            }
            kept.extend(self.bytes(stream, size).await?);
            if self.line(stream).await?.as_deref() != Some("") {
                return Err(Wrong::Not("data longer than its chunk"));
            }
            kept.truncate(64 << 10);
        }
        while !self.line(stream).await?.ok_or(Wrong::Cut)?.is_empty() {}
        Ok(kept)
    }
}
