//! The request that is asked about: method, URL, headers.
//!
//! In: texts of a command line. Out: [`Request`]. Kept true: the Host is what a client would send, without a standard port.
//! Not here: the answer (`explain`).

use mesh_traffic::plan::Facts;

/// A request that exists only as a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Method, e.g. `GET`.
    pub method: String,
    /// `http` or `https`.
    pub scheme: String,
    /// Host without port.
    pub host: String,
    /// Port, the scheme's own if none is written.
    pub port: u16,
    /// Path with query.
    pub path: String,
    /// Headers.
    pub headers: Vec<(String, String)>,
    authority: String,
}

impl Request {
    /// Reads a method, a URL and `name: value` headers.
    ///
    /// # Errors
    /// What cannot be read, and the form expected.
    pub fn parse(method: &str, url: &str, headers: &[String]) -> Result<Self, String> {
        let wrong = |why: &str| format!("{url:?}: {why}; expected a URL such as http://reviews:8080/path");
        let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
        let scheme = scheme.to_ascii_lowercase();
        let standard = match scheme.as_str() {
            "http" => 80,
            "https" => 443,
            _ => return Err(wrong("unknown scheme")),
        };
        let at = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(at);
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && !port.ends_with(']') => {
                (host, port.parse().map_err(|_| wrong("not a port"))?)
            }
            _ => (authority, standard),
        };
        if host.is_empty() {
            return Err(wrong("no host"));
        }
        let mut request = Self {
            method: method.to_ascii_uppercase(),
            authority: if port == standard { host.to_owned() } else { format!("{host}:{port}") },
            scheme,
            host: host.to_owned(),
            port,
            path,
            headers: Vec::new(),
        };
        for header in headers {
            let (name, value) = header
                .split_once(':')
                .ok_or_else(|| format!("{header:?}: not a header; expected `name: value`"))?;
            let (name, value) = (name.trim().to_ascii_lowercase(), value.trim().to_owned());
            if name == "host" {
                request.authority = value;
            } else {
                request.headers.push((name, value));
            }
        }
        Ok(request)
    }

    /// As the decision takes it.
    pub fn facts(&self) -> Facts {
        Facts {
            method: self.method.clone(),
            path: self.path.clone(),
            authority: self.authority.clone(),
            scheme: self.scheme.clone(),
            headers: self.headers.clone(),
        }
    }
}
