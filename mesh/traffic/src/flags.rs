//! Response flags: why a request ended as it did, in the letters that Envoy's users know.
//!
//! In: what went wrong. Out: a small set that prints as `UF,URX`, or `-` when empty. Kept true: one bit per flag.
//! Not here: the longer detail that names the object (`plan::Reply::detail`).

use std::fmt;

/// A set of response flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct ResponseFlags(u32);

macro_rules! flags {
    ($($bit:expr, $name:ident, $short:expr, $doc:expr;)*) => {
        impl ResponseFlags {
            $(#[doc = $doc] pub const $name: Self = Self(1 << $bit);)*
        }
        /// Every flag with its short form, in the order in which Envoy prints them.
        const TABLE: &[(ResponseFlags, &str)] = &[$((ResponseFlags::$name, $short),)*];
    };
}

flags! {
    0, FAILED_LOCAL_HEALTH_CHECK, "LH", "The local service failed its health check.";
    1, NO_HEALTHY_UPSTREAM, "UH", "No healthy endpoint in the cluster.";
    2, UPSTREAM_REQUEST_TIMEOUT, "UT", "The route's timeout passed.";
    3, LOCAL_RESET, "LR", "We reset the upstream stream.";
    4, UPSTREAM_REMOTE_RESET, "UR", "The upstream reset the stream.";
    5, UPSTREAM_CONNECTION_FAILURE, "UF", "No connection to the upstream.";
    6, UPSTREAM_CONNECTION_TERMINATION, "UC", "The upstream closed the connection before answering.";
    7, UPSTREAM_OVERFLOW, "UO", "A limit of the cluster was reached.";
    8, NO_ROUTE_FOUND, "NR", "No route, or no filter chain, matched.";
    9, DELAY_INJECTED, "DI", "A fault delayed the request.";
    10, FAULT_INJECTED, "FI", "A fault aborted the request.";
    11, RATE_LIMITED, "RL", "A rate limit refused the request.";
    12, UNAUTHORIZED_EXTERNAL, "UAEX", "The external authorization service denied the request.";
    13, DOWNSTREAM_CONNECTION_TERMINATION, "DC", "The client went away.";
    14, UPSTREAM_RETRY_LIMIT_EXCEEDED, "URX", "Every retry was used up.";
    15, STREAM_IDLE_TIMEOUT, "SI", "The stream was idle for too long.";
    16, DOWNSTREAM_PROTOCOL_ERROR, "DPE", "The client broke HTTP.";
    17, UPSTREAM_PROTOCOL_ERROR, "UPE", "The upstream broke HTTP.";
    18, UPSTREAM_MAX_STREAM_DURATION, "UMSDR", "The upstream stream lasted too long.";
    19, NO_CLUSTER_FOUND, "NC", "The route's cluster does not exist.";
    20, DURATION_TIMEOUT, "DT", "The connection or stream lasted too long.";
}

impl ResponseFlags {
    /// No flag.
    pub const NONE: Self = Self(0);

    /// Both sets together.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Adds `other`.
    pub fn insert(&mut self, other: Self) {
        self.0 |= other.0;
    }

    /// Takes `other` away.
    pub fn remove(&mut self, other: Self) {
        self.0 &= !other.0;
    }

    /// True when all of `other` is in the set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// True when no flag is set.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The bits, for use as a key.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }
}

impl fmt::Display for ResponseFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("-");
        }
        let mut first = true;
        for (_, short) in TABLE.iter().filter(|(flag, _)| self.contains(*flag)) {
            if !first {
                f.write_str(",")?;
            }
            first = false;
            f.write_str(short)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::ResponseFlags as Flags;

    #[test]
    fn flags_print_as_envoy_prints_them() {
        for (flags, want) in [
            (Flags::NONE, "-"),
            (Flags::NO_HEALTHY_UPSTREAM, "UH"),
            (Flags::UPSTREAM_RETRY_LIMIT_EXCEEDED.with(Flags::UPSTREAM_CONNECTION_FAILURE), "UF,URX"),
            (Flags::DELAY_INJECTED.with(Flags::FAULT_INJECTED), "DI,FI"),
        ] {
            assert_eq!(flags.to_string(), want);
        }
    }
}
