//! Counts what the `h2` crate does not: control frames, half frames, output that nobody reads.
//! In: the raw bytes of one HTTP/2 connection, seen as they pass. Out: [`Watch`], facts for whoever drives the connection.
//! Kept true: a peer has a credit of control frames that refills with time and real traffic; without credit nothing more is read.
//! Not here: answering a flood (`server`, `client`), frame contents (the `h2` crate).

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::codec::limits::Limits;
use crate::codec::message::Io;

/// Credit given back for each DATA frame that we send: window updates and pings answer it (Envoy allows ten updates).
const CREDIT_PER_DATA_SENT: u32 = 10;
/// Credit given back for each request or response that comes in: its updates, priority and reset.
const CREDIT_PER_HEADERS: u32 = 3;
/// Largest SETTINGS frame, in bytes: 32 parameters, as nghttp2 and so Envoy take. RFC 9113 and its extensions define ten.
const SETTINGS_BYTES: usize = 32 * 6;
/// Length of a client's connection preface.
const PREFACE: usize = 24;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// What the guard has seen. Shared with the connection's driver.
#[derive(Debug)]
pub(crate) struct Watch {
    credit: Cell<u32>,
    burst: u32,
    rate: u32,
    refilled: Cell<Instant>,
    flooded: Cell<bool>,
    unread_since: Cell<Option<Instant>>,
    partial_since: Cell<Option<Instant>>,
}

impl Watch {
    fn new(limits: &Limits) -> Watch {
        Watch {
            credit: Cell::new(limits.h2_control_burst),
            burst: limits.h2_control_burst,
            rate: limits.h2_control_rate,
            refilled: Cell::new(Instant::now()),
            flooded: Cell::new(false),
            unread_since: Cell::new(None),
            partial_since: Cell::new(None),
        }
    }

    /// Whether the peer has sent more control frames than it may.
    pub(crate) fn is_flooded(&self) -> bool {
        self.flooded.get()
    }

    /// Since when output has waited for the peer to read.
    pub(crate) fn unread_since(&self) -> Option<Instant> {
        self.unread_since.get()
    }

    /// Since when a header block or another control frame has been incomplete.
    pub(crate) fn partial_since(&self) -> Option<Instant> {
        self.partial_since.get()
    }

    fn earn(&self, credit: u32) {
        self.credit.set(self.credit.get().saturating_add(credit).min(self.burst));
    }

    /// No credit helps: the peer has sent what nobody sends.
    fn refuse(&self) {
        self.flooded.set(true);
    }

    /// Takes one from the credit. The clock is read only when it is empty.
    fn spend(&self) {
        if self.credit.get() == 0 {
            let now = Instant::now();
            let tenths = now.duration_since(self.refilled.get()).as_millis() / 100;
            let earned = u32::try_from(tenths).unwrap_or(u32::MAX).saturating_mul(self.rate) / 10;
            if earned > 0 {
                self.refilled.set(now);
                self.earn(earned);
            }
        }
        match self.credit.get().checked_sub(1) {
            Some(left) => self.credit.set(left),
            None => self.flooded.set(true),
        }
    }
}

/// Walks over frames without keeping them.
#[derive(Debug, Default)]
struct Walker {
    /// Bytes of the preface or of a payload that are still to pass.
    skip: usize,
    header: [u8; 9],
    have: usize,
    /// A header block is open.
    in_block: bool,
    /// The payload that is passing is DATA.
    in_data: bool,
}

impl Walker {
    /// Calls `seen(kind, flags, length)` for each frame header that completes.
    fn pass(&mut self, mut bytes: &[u8], mut seen: impl FnMut(u8, u8, usize)) {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let wanted = (self.header.len() - self.have).min(bytes.len());
            self.header[self.have..self.have + wanted].copy_from_slice(&bytes[..wanted]);
            self.have += wanted;
            bytes = &bytes[wanted..];
            if self.have == self.header.len() && self.skip == 0 {
                self.have = 0;
                let [high, middle, low, kind, flags, ..] = self.header;
                let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
                self.skip = length;
                self.in_data = kind == DATA;
                if matches!(kind, HEADERS | CONTINUATION | 5) {
                    self.in_block = flags & END_HEADERS == 0;
                }
                seen(kind, flags, length);
            }
        }
    }

    /// Whether something that must be whole to be acted on is not yet whole. A DATA payload may take its time.
    fn is_partial(&self) -> bool {
        self.have > 0 || self.in_block || (self.skip > 0 && !self.in_data)
    }
}

/// A connection's stream with the counting in it.
pub(crate) struct Guard {
    io: Box<dyn Io>,
    before: BytesMut,
    watch: Rc<Watch>,
    inbound: Walker,
    outbound: Walker,
}

impl Guard {
    /// Guards a stream from which `before` has been read already.
    pub(crate) fn new(io: Box<dyn Io>, before: BytesMut, limits: &Limits, is_server: bool) -> Guard {
        let mut inbound = Walker::default();
        let mut outbound = Walker::default();
        if is_server {
            inbound.skip = PREFACE;
        } else {
            outbound.skip = PREFACE;
        }
        Guard { io, before, watch: Rc::new(Watch::new(limits)), inbound, outbound }
    }

    pub(crate) fn watch(&self) -> Rc<Watch> {
        Rc::clone(&self.watch)
    }

    fn saw_inbound(&mut self, bytes: &[u8]) {
        let watch = &self.watch;
        self.inbound.pass(bytes, |kind, flags, length| match kind {
            DATA if length > 0 || flags & END_STREAM != 0 => {}
            HEADERS => watch.earn(CREDIT_PER_HEADERS),
            CONTINUATION if length > 0 => {}
            SETTINGS if length > SETTINGS_BYTES => watch.refuse(),
            _ => watch.spend(),
        });
        watch.partial_since.set(match (self.inbound.is_partial(), watch.partial_since.get()) {
            (true, None) => Some(Instant::now()),
            (true, since) => since,
            (false, _) => None,
        });
    }

    fn saw_outbound(&mut self, bytes: &[u8]) {
        let watch = &self.watch;
        self.outbound.pass(bytes, |kind, _, _| {
            if kind == DATA {
                watch.earn(CREDIT_PER_DATA_SENT);
            }
        });
    }

    fn wrote<T>(&self, result: &Poll<io::Result<T>>) {
        match result {
            Poll::Ready(_) => self.watch.unread_since.set(None),
            Poll::Pending if self.watch.unread_since.get().is_none() => {
                self.watch.unread_since.set(Some(Instant::now()));
            }
            Poll::Pending => {}
        }
    }
}

impl AsyncRead for Guard {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.watch.is_flooded() {
            return Poll::Pending;
        }
        let filled = buf.filled().len();
        if this.before.has_remaining() {
            let size = this.before.len().min(buf.remaining());
            buf.put_slice(&this.before.split_to(size));
        } else {
            std::task::ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        }
        let fresh = &buf.filled()[filled..];
        this.saw_inbound(fresh);
        if this.watch.is_flooded() {
            // What came last is not handed on; the driver of the connection looks at the watch next.
            buf.set_filled(filled);
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Guard {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let result = Pin::new(&mut this.io).poll_write(cx, data);
        this.wrote(&result);
        if let Poll::Ready(Ok(size)) = result {
            this.saw_outbound(&data[..size.min(data.len())]);
        }
        result
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let result = Pin::new(&mut this.io).poll_write_vectored(cx, data);
        this.wrote(&result);
        if let Poll::Ready(Ok(mut size)) = result {
            for part in data {
                let written = size.min(part.len());
                this.saw_outbound(&part[..written]);
                size -= written;
            }
        }
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.io).poll_flush(cx);
        self.wrote(&result);
        result
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Since when, and for how long at most: the deadline of a fact.
pub(crate) fn due(since: Option<Instant>, timeout: Duration) -> Option<Instant> {
    since.map(|since| since + timeout)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: usize) -> Vec<u8> {
        let length = u32::try_from(payload).expect("short").to_be_bytes();
        let mut bytes = vec![length[1], length[2], length[3], kind, flags, 0, 0, 0, 1];
        bytes.resize(9 + payload, 0);
        bytes
    }

    #[test]
    fn frames_are_seen_however_the_bytes_are_cut() {
        let frames = [(6, 0, 8), (1, 4, 0), (0, 1, 0), (0, 0, 300), (4, 1, 0), (9, 0, 1)];
        let bytes: Vec<u8> = std::iter::repeat_n(b'P', PREFACE)
            .chain(frames.iter().flat_map(|f| frame(f.0, f.1, f.2)))
            .collect();
        for step in 1..bytes.len() {
            let mut walker = Walker { skip: PREFACE, ..Walker::default() };
            let mut seen = Vec::new();
            for part in bytes.chunks(step) {
                walker.pass(part, |kind, flags, length| seen.push((kind, flags, length)));
            }
            assert_eq!(seen, frames, "cut every {step}");
            assert!(walker.in_block && walker.skip == 0);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn control_credit_refills_with_time_and_with_traffic() {
        let watch = Watch::new(&Limits { h2_control_burst: 10, h2_control_rate: 10, ..Limits::sidecar() });
        (0..10).for_each(|_| watch.spend());
        assert!(!watch.is_flooded());
        watch.earn(1);
        watch.spend();
        tokio::time::advance(Duration::from_millis(500)).await;
        (0..5).for_each(|_| watch.spend());
        assert!(!watch.is_flooded());
        watch.spend();
        assert!(watch.is_flooded());
    }
}
