//! Where an HTTP/1 body ends: by length, by chunks, or with the connection.
//! In: a growing buffer. Out: [`Decoded`] data, trailers, end, or the [`Refusal`] that ends the connection.
//! Kept true: chunk lines are strict; chunk extensions are dropped; trailers bring no framing, routing or identity names.
//! Not here: heads (`parse`), who waits for bytes (`wire`).

use bytes::{Bytes, BytesMut};
use http::StatusCode;

use super::parse::{FieldRules, Framing, field_line};
use crate::codec::fields::Fields;
use crate::codec::limits::{Limits, Refusal};

/// Longest chunk-size line with extensions, in bytes.
const CHUNK_LINE: usize = 256;
/// Most bytes of chunk extensions in one body (CVE-2023-39326: overhead without payload).
const EXTENSIONS: usize = 16 * 1024;
/// Small neighbouring chunks are handed out as one piece of up to this size.
const GATHER: usize = 16 * 1024;

/// The next thing of a body.
#[derive(Debug)]
pub enum Decoded {
    /// More bytes must come in first.
    NeedMore,
    /// Payload, never empty.
    Data(Bytes),
    /// Trailer fields (chunked only); the end follows.
    Trailers(Fields),
    /// There is nothing more.
    End,
}

/// Follows one body.
#[derive(Debug)]
pub struct Decoder {
    state: State,
    extensions: usize,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Length(u64),
    ChunkSize,
    ChunkData(u64),
    ChunkEnd,
    /// Line start and how far no line end was found, both within the buffer; lines so far.
    Trailers {
        line: usize,
        scanned: usize,
        lines: usize,
    },
    UntilClose,
    Done,
    /// What followed was no body: nobody knows where the next message would begin.
    Broken,
}

impl Decoder {
    /// A decoder for a body of this framing.
    pub fn new(framing: Framing) -> Decoder {
        let state = match framing {
            Framing::Empty => State::Done,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::ChunkSize,
            Framing::UntilClose => State::UntilClose,
        };
        Decoder { state, extensions: 0 }
    }

    /// Whether the body is over.
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// Bytes that are still to come, if the framing says.
    pub fn remaining(&self) -> Option<u64> {
        match self.state {
            State::Done => Some(0),
            State::Length(left) => Some(left),
            _ => None,
        }
    }

    /// The connection has closed: whether that is where this body ends.
    pub fn close(&mut self) -> bool {
        if matches!(self.state, State::UntilClose) {
            self.state = State::Done;
        }
        self.is_done()
    }

    /// Takes the next thing off the buffer.
    pub fn decode(&mut self, buffer: &mut BytesMut, limits: &Limits) -> Result<Decoded, Refusal> {
        let mut gathered: Option<BytesMut> = None;
        loop {
            match self.state {
                State::Broken => return Err(Refusal::bad("body is broken")),
                State::Done => return Ok(gathered.map_or(Decoded::End, |data| Decoded::Data(data.freeze()))),
                State::Length(left) => {
                    let Some(data) = take(buffer, left) else { return Ok(Decoded::NeedMore) };
                    let left = left - len64(&data);
                    self.state = if left == 0 { State::Done } else { State::Length(left) };
                    return Ok(Decoded::Data(data.freeze()));
                }
                State::UntilClose => {
                    return Ok(match take(buffer, u64::MAX) {
                        Some(data) => Decoded::Data(data.freeze()),
                        None => Decoded::NeedMore,
                    });
                }
                State::ChunkSize => match self.chunk_size(buffer)? {
                    None => return Ok(or_need_more(gathered)),
                    Some(0) => self.state = State::Trailers { line: 0, scanned: 0, lines: 0 },
                    Some(size) => self.state = State::ChunkData(size),
                },
                State::ChunkData(left) => {
                    let available = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    if gathered.as_ref().is_some_and(|data| data.len() + available > GATHER) {
                        return Ok(or_need_more(gathered));
                    }
                    let Some(data) = take(buffer, left) else { return Ok(or_need_more(gathered)) };
                    let left = left - len64(&data);
                    self.state = if left == 0 { State::ChunkEnd } else { State::ChunkData(left) };
                    match &mut gathered {
                        Some(all) => all.extend_from_slice(&data),
                        None => gathered = Some(data),
                    }
                }
                State::ChunkEnd => match buffer[..] {
                    [b'\r', b'\n', ..] => {
                        let _ = buffer.split_to(2);
                        self.state = State::ChunkSize;
                    }
                    [] | [b'\r'] => return Ok(or_need_more(gathered)),
                    _ => return Err(Refusal::bad("chunk does not end with crlf")),
                },
                State::Trailers { .. } if gathered.is_some() => return Ok(or_need_more(gathered)),
                State::Trailers { line, scanned, lines } => {
                    return self.trailers(buffer, limits, line, scanned, lines);
                }
            }
        }
    }

    /// Reads `size[;extension]CRLF`. `None` if it is not complete.
    fn chunk_size(&mut self, buffer: &mut BytesMut) -> Result<Option<u64>, Refusal> {
        let window = &buffer[..buffer.len().min(CHUNK_LINE)];
        let mut size = 0u64;
        let mut at = 0;
        while let Some(digit) = window.get(at).and_then(|byte| char::from(*byte).to_digit(16)) {
            if at == 15 {
                return Err(Refusal::bad("chunk size too large"));
            }
            size = size * 16 + u64::from(digit);
            at += 1;
        }
        match window.get(at) {
            None => return Ok(None),
            Some(_) if at == 0 => return Err(Refusal::bad("invalid chunk size")),
            Some(b'\r' | b';') => {}
            Some(_) => return Err(Refusal::bad("invalid byte after chunk size")),
        }
        let extension =
            window[at..].iter().position(|byte| *byte != b'\t' && (*byte < 0x20 || *byte == 0x7f));
        let Some(end) = extension.map(|length| at + length) else {
            return match window.len() == CHUNK_LINE {
                true => Err(Refusal::bad("chunk line too long")),
                false => Ok(None),
            };
        };
        match window[end..] {
            [b'\r', b'\n', ..] => {
                self.extensions += end - at;
                if self.extensions > EXTENSIONS {
                    return Err(Refusal::bad("too many chunk extensions"));
                }
                let _ = buffer.split_to(end + 2);
                Ok(Some(size))
            }
            [b'\r'] if window.len() < CHUNK_LINE => Ok(None),
            [b'\r'] => Err(Refusal::bad("chunk line too long")),
            _ => Err(Refusal::bad("control byte in chunk line")),
        }
    }

    fn trailers(
        &mut self,
        buffer: &mut BytesMut,
        limits: &Limits,
        mut line: usize,
        mut scanned: usize,
        mut lines: usize,
    ) -> Result<Decoded, Refusal> {
        loop {
            let end = memchr::memchr(b'\n', &buffer[scanned..]).map(|at| scanned + at + 1);
            if end.unwrap_or(buffer.len()) > limits.head_bytes {
                return Err(too_large());
            }
            let Some(end) = end else {
                self.state = State::Trailers { line, scanned: buffer.len(), lines };
                return Ok(Decoded::NeedMore);
            };
            if end - line < 2 || buffer[end - 2] != b'\r' {
                return Err(Refusal::bad("trailer line ends without cr"));
            }
            let last = end - line == 2;
            if !last {
                lines += 1;
                if lines > limits.head_fields {
                    return Err(too_large());
                }
            }
            (line, scanned) = (end, end);
            if last {
                break;
            }
        }
        // Done only once every line has been judged: a connection is used again when its body is done.
        self.state = State::Broken;
        let mut block = buffer.split_to(line);
        let mut fields = Fields::new();
        let mut at = 0;
        while let Some(length) = memchr::memchr(b'\n', &block[at..]) {
            if length > 1 {
                let field = field_line(&mut block[at..at + length - 1], at, FieldRules::LENIENT)?;
                if !field.known.is_some_and(|known| known.is_forbidden_in_trailers()) {
                    fields.push_received(field.known, field.name, field.value);
                }
            }
            at += length + 1;
        }
        self.state = State::Done;
        fields.set_block(block.freeze());
        Ok(if fields.is_empty() { Decoded::End } else { Decoded::Trailers(fields) })
    }
}

fn too_large() -> Refusal {
    Refusal::with(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "trailer section too large")
}

fn or_need_more(gathered: Option<BytesMut>) -> Decoded {
    gathered.map_or(Decoded::NeedMore, |data| Decoded::Data(data.freeze()))
}

/// Splits up to `most` bytes off, if there are any.
fn take(buffer: &mut BytesMut, most: u64) -> Option<BytesMut> {
    let size = buffer.len().min(usize::try_from(most).unwrap_or(usize::MAX));
    (size > 0).then(|| buffer.split_to(size))
}

fn len64(data: &[u8]) -> u64 {
    u64::try_from(data.len()).unwrap_or(u64::MAX)
}
