//! The first bytes of a connection: TLS with its server name and protocols, HTTP, or neither.
//!
//! In: an accepted stream. Out: [`Seen`], and the bytes to give again. Kept true: bounded in bytes and time; a client that waits for the
//! server to speak first is not made to wait long. Not here: choosing a chain (`mesh_traffic::listener`).

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use mesh_traffic::{
    Listener,
    listener::{Terminal, Transport},
};
use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncReadExt};

/// Most bytes that are read to know a ClientHello: one full TLS record and what belongs to it.
const MAX_HELLO: usize = 64 * 1024;
/// A server-first protocol is known by this much silence.
const SILENCE: Duration = Duration::from_millis(100);
/// When only an inspected connection can be served.
const PATIENCE: Duration = Duration::from_secs(15);

/// What the first bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// TLS or not.
    pub transport: Transport,
    /// Server name, lower case; empty for none.
    pub server_name: String,
    /// Protocols: of the ClientHello, or `http/1.1` or `h2c`.
    pub protocols: Vec<String>,
    /// The bytes that were read.
    pub before: Bytes,
}

/// How long to wait for the first bytes of a connection to `listener`.
#[must_use]
pub fn patience(listener: &Listener) -> Duration {
    let plain = |chain: &&std::sync::Arc<mesh_traffic::listener::FilterChain>| {
        let matcher = &chain.matcher;
        matches!(chain.terminal, Terminal::Tcp(_))
            && matcher.transport != Some(Transport::Tls)
            && matcher.protocols.is_empty()
    };
    match listener.inspect.timeout {
        Some(timeout) if !timeout.is_zero() => timeout,
        _ if listener.all_chains().any(|chain| plain(&chain)) => SILENCE,
        _ => PATIENCE,
    }
}

/// Looks at the first bytes. `None` when the connection closed before its first byte.
pub async fn look(io: &mut (impl AsyncRead + Unpin), wait: Duration, tls: bool, http: bool) -> Option<Seen> {
    let mut read = BytesMut::new();
    let looking = async {
        let mut hello = Acceptor::default();
        let mut fed = 0;
        loop {
            if let Some(verdict) = judge(&read, &mut hello, &mut fed, tls, http) {
                return Some(verdict);
            }
            if read.len() >= MAX_HELLO {
                return Some((Transport::Raw, String::new(), Vec::new()));
            }
            match io.read_buf(&mut read).await {
                Ok(0) | Err(_) if read.is_empty() => return None,
                // Whatever comes next belongs to whoever serves the connection.
                Ok(0) | Err(_) => return Some((Transport::Raw, String::new(), Vec::new())),
                Ok(_) => {}
            }
        }
    };
    let (transport, server_name, protocols) = match tokio::time::timeout(wait, looking).await {
        Ok(verdict) => verdict?,
        Err(_) => (Transport::Raw, String::new(), Vec::new()),
    };
    Some(Seen { transport, server_name, protocols, before: read.freeze() })
}

type Verdict = (Transport, String, Vec<String>);

/// `None` while more bytes are needed.
fn judge(read: &[u8], hello: &mut Acceptor, fed: &mut usize, tls: bool, http: bool) -> Option<Verdict> {
    let first = *read.first()?;
    let raw = |protocols: &[&str]| {
        Some((Transport::Raw, String::new(), protocols.iter().map(|p| (*p).to_owned()).collect()))
    };
    if tls && first == 0x16 {
        let mut new = &read[*fed..];
        while !new.is_empty() {
            match hello.read_tls(&mut new) {
                Ok(0) => break,
                Ok(size) => *fed += size,
                Err(_) => return raw(&[]),
            }
            match hello.accept() {
                Ok(None) => {}
                Ok(Some(accepted)) => {
                    let hello = accepted.client_hello();
                    let name = hello.server_name().unwrap_or("").to_ascii_lowercase();
                    let protocols = hello.alpn().into_iter().flatten();
                    let protocols = protocols.map(|p| String::from_utf8_lossy(p).into_owned()).collect();
                    return Some((Transport::Tls, name, protocols));
                }
                Err(_) => return raw(&[]),
            }
        }
        return None;
    }
    if !http {
        return raw(&[]);
    }
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n";
    let common = read.len().min(PREFACE.len());
    if read[..common] == PREFACE[..common] {
        return if common == PREFACE.len() { raw(&["h2c"]) } else { None };
    }
    // A request line begins with a method: a short token of capital letters, then a blank.
    let method = read.iter().take_while(|byte| byte.is_ascii_uppercase() || **byte == b'-').count();
    match read.get(method) {
        _ if method > 24 => raw(&[]),
        Some(b' ') if method > 0 => raw(&["http/1.1"]),
        Some(_) => raw(&[]),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    async fn seen(bytes: &[u8], wait: Duration) -> Option<Seen> {
        let (mut near, mut far) = tokio::io::duplex(1024);
        near.write_all(bytes).await.expect("room");
        let seen = look(&mut far, wait, true, true).await;
        drop(near);
        seen
    }

    #[tokio::test(start_paused = true)]
    async fn plain_protocols_are_told_apart() {
        for (bytes, want) in [
            (&b"GET / HTTP/1.1\r\n"[..], &["http/1.1"][..]),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &["h2c"]),
            (b"PROPFIND /", &["http/1.1"]),
            (b"SSH-2.0-OpenSSH\r\n", &[]),
            (b"\x00\x01", &[]),
            (b"get / HTTP/1.1", &[]),
            (b"GET", &[]),
            (b"", &[]),
        ] {
            let seen = seen(bytes, SILENCE).await.expect("open");
            assert_eq!(seen.protocols, want, "{bytes:?}");
            assert_eq!((seen.transport, &*seen.before), (Transport::Raw, bytes));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_hello_is_known_byte_by_byte() {
        let config = rustls::ClientConfig::builder_with_provider(mesh_identity::tls::provider().clone())
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let mut config = config;
        config.alpn_protocols = vec![b"istio".to_vec(), b"h2".to_vec()];
        let name = rustls_pki_types::ServerName::try_from("Reviews.example").expect("name");
        let mut client = rustls::ClientConnection::new(std::sync::Arc::new(config), name).expect("client");
        let mut hello = Vec::new();
        client.write_tls(&mut hello).expect("memory");
        let (mut near, mut far) = tokio::io::duplex(1);
        let copy = hello.clone();
        let writer = async move {
            let _ = near.write_all(&copy).await;
            near
        };
        let (seen, _near) = tokio::join!(look(&mut far, PATIENCE, true, true), writer);
        let seen = seen.expect("open");
        assert_eq!(seen.transport, Transport::Tls);
        assert_eq!(
            (seen.server_name.as_str(), seen.protocols),
            ("reviews.example", vec!["istio".to_owned(), "h2".to_owned()])
        );
        assert_eq!(&*seen.before, hello.as_slice());
    }
}
