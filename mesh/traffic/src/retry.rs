//! Retry policies: when another try is made, and how long until then.
//!
//! In: the field's condition words. Out: [`RetryPolicy`] and pure questions about an outcome. Kept true: unknown words are reported, not dropped.
//! Not here: counting and waiting (`proxy`).

use std::time::Duration;

/// Conditions of `retry_on`, as a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RetryOn(u32);

macro_rules! conditions {
    ($($bit:expr, $name:ident, $word:expr, $doc:expr;)*) => {
        impl RetryOn {
            $(#[doc = $doc] pub const $name: Self = Self(1 << $bit);)*
        }
        /// Every condition with its word.
        const WORDS: &[(RetryOn, &str)] = &[$((RetryOn::$name, $word),)*];
    };
}

conditions! {
    0, FIVE_XX, "5xx", "Any 5xx, a reset, a timeout of the try, or no connection.";
    1, GATEWAY_ERROR, "gateway-error", "502, 503 or 504.";
    2, RESET, "reset", "The upstream did not answer at all: reset or closed.";
    3, CONNECT_FAILURE, "connect-failure", "No connection could be made.";
    4, REFUSED_STREAM, "refused-stream", "The upstream refused the HTTP/2 stream.";
    5, RETRIABLE_4XX, "retriable-4xx", "409.";
    6, RETRIABLE_STATUS_CODES, "retriable-status-codes", "One of [`RetryPolicy::codes`].";
    7, RESET_BEFORE_REQUEST, "reset-before-request", "The stream was reset before the request was sent.";
    8, HTTP3_POST_CONNECT_FAILURE, "http3-post-connect-failure", "Accepted; HTTP/3 is not spoken.";
    16, CANCELLED, "cancelled", "gRPC status 1.";
    17, DEADLINE_EXCEEDED, "deadline-exceeded", "gRPC status 4.";
    18, INTERNAL, "internal", "gRPC status 13.";
    19, RESOURCE_EXHAUSTED, "resource-exhausted", "gRPC status 8.";
    20, UNAVAILABLE, "unavailable", "gRPC status 14.";
}

impl RetryOn {
    /// No condition.
    pub const NONE: Self = Self(0);

    /// Reads a comma-separated list. Numbers are status codes (Istio's form) and imply `retriable-status-codes`.
    ///
    /// # Errors
    /// The word that is neither a condition nor a status code.
    pub fn parse(list: &str) -> Result<(Self, Vec<u16>), String> {
        let (mut on, mut codes) = (Self::NONE, Vec::new());
        for word in list.split(',').map(str::trim).filter(|w| !w.is_empty()) {
            if let Some((condition, _)) = WORDS.iter().find(|(_, known)| *known == word) {
                on = on.with(*condition);
            } else if let Some(code) = word.parse().ok().filter(|c| (100..=599).contains(c)) {
                on = on.with(Self::RETRIABLE_STATUS_CODES);
                codes.push(code);
            } else {
                return Err(format!("unknown retry condition {word:?}"));
            }
        }
        Ok((on, codes))
    }

    /// The words, joined by commas.
    #[must_use]
    pub fn words(self) -> String {
        let known = WORDS.iter().filter(|(condition, _)| self.contains(*condition));
        known.map(|(_, word)| *word).collect::<Vec<_>>().join(",")
    }

    /// Both sets together.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// True when all of `other` is in the set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// True when no condition is set.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// How one try ended, as far as retries care.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// A response head with this status, and the gRPC status if it is in the head.
    Answered {
        /// HTTP status.
        status: u16,
        /// `grpc-status` of a trailers-only response.
        grpc: Option<u16>,
    },
    /// No connection was made.
    ConnectFailure,
    /// The stream was reset, or the connection closed, before a response.
    Reset {
        /// The request had not been sent yet.
        before_request: bool,
    },
    /// HTTP/2 `REFUSED_STREAM`.
    Refused,
    /// The try's own timeout passed.
    TryTimeout,
}

/// When and how often a request is tried again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Conditions.
    pub on: RetryOn,
    /// Status codes of `retriable-status-codes`.
    pub codes: Vec<u16>,
    /// Retries after the first try. 0 never retries.
    pub attempts: u32,
    /// Limit of one try; `None` leaves only the route's timeout.
    pub per_try: Option<Duration>,
    /// First back-off; the n-th waits a random part of `base * (2^n - 1)`, at most [`Self::max_backoff`]. Default 25 ms.
    pub base_backoff: Duration,
    /// Longest back-off. Default ten times the base.
    pub max_backoff: Duration,
    /// Prefers endpoints that this request has not tried.
    pub avoid_previous: bool,
    /// Picks made to find such an endpoint. Istio: 5.
    pub max_picks: u32,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            on: RetryOn::NONE,
            codes: Vec::new(),
            attempts: 1,
            per_try: None,
            base_backoff: Duration::from_millis(25),
            max_backoff: Duration::from_millis(250),
            avoid_previous: false,
            max_picks: 1,
        }
    }
}

impl RetryPolicy {
    /// What Istio gives every route that says nothing: two retries, only when the app has surely not answered.
    #[must_use]
    pub fn istio_default() -> Self {
        let on = RetryOn::CONNECT_FAILURE
            .with(RetryOn::REFUSED_STREAM)
            .with(RetryOn::UNAVAILABLE)
            .with(RetryOn::CANCELLED);
        Self { on, attempts: 2, avoid_previous: true, max_picks: 5, ..Self::default() }
    }

    /// True when this outcome is one of the conditions (Envoy's router filter, `x-envoy-retry-on`).
    #[must_use]
    pub fn wants(&self, outcome: Outcome) -> bool {
        let has = |condition| self.on.contains(condition);
        match outcome {
            Outcome::Answered { status, grpc } => {
                let listed = has(RetryOn::RETRIABLE_STATUS_CODES) && self.codes.contains(&status);
                (has(RetryOn::FIVE_XX) && (500..=599).contains(&status))
                    || (has(RetryOn::GATEWAY_ERROR) && matches!(status, 502..=504))
                    || (has(RetryOn::RETRIABLE_4XX) && status == 409)
                    || listed
                    || grpc.is_some_and(|code| self.wants_grpc(code))
            }
            Outcome::ConnectFailure => {
                has(RetryOn::CONNECT_FAILURE)
                    || has(RetryOn::RESET)
                    || has(RetryOn::RESET_BEFORE_REQUEST)
                    || has(RetryOn::FIVE_XX)
                    || has(RetryOn::GATEWAY_ERROR)
            }
            Outcome::Reset { before_request } => {
                has(RetryOn::RESET)
                    || has(RetryOn::FIVE_XX)
                    || has(RetryOn::GATEWAY_ERROR)
                    || (before_request && has(RetryOn::RESET_BEFORE_REQUEST))
            }
            Outcome::Refused => {
                has(RetryOn::REFUSED_STREAM)
                    || has(RetryOn::RESET)
                    || has(RetryOn::FIVE_XX)
                    || has(RetryOn::GATEWAY_ERROR)
            }
            Outcome::TryTimeout => {
                has(RetryOn::FIVE_XX) || has(RetryOn::GATEWAY_ERROR) || has(RetryOn::RESET)
            }
        }
    }

    fn wants_grpc(&self, code: u16) -> bool {
        let condition = match code {
            1 => RetryOn::CANCELLED,
            4 => RetryOn::DEADLINE_EXCEEDED,
            8 => RetryOn::RESOURCE_EXHAUSTED,
            13 => RetryOn::INTERNAL,
            14 => RetryOn::UNAVAILABLE,
            _ => return false,
        };
        self.on.contains(condition)
    }

    /// The wait before the `retry`-th retry (from 1), for a draw in `0.0..1.0`: fully jittered, exponential, capped.
    #[must_use]
    pub fn backoff(&self, retry: u32, draw: f64) -> Duration {
        let factor = 2_u32.saturating_pow(retry.min(16)).saturating_sub(1);
        self.base_backoff.saturating_mul(factor).min(self.max_backoff).mul_f64(draw.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_codes_are_read_and_unknown_words_are_named() {
        let (on, codes) = RetryOn::parse("5xx, 418,retriable-4xx").expect("known");
        assert!(
            on.contains(RetryOn::FIVE_XX.with(RetryOn::RETRIABLE_4XX).with(RetryOn::RETRIABLE_STATUS_CODES))
        );
        assert_eq!(codes, [418]);
        assert_eq!(RetryOn::parse("5xx,sometimes"), Err("unknown retry condition \"sometimes\"".to_owned()));
    }

    #[test]
    fn each_condition_retries_its_own_outcomes() {
        let answered = |status| Outcome::Answered { status, grpc: None };
        let grpc = |code| Outcome::Answered { status: 200, grpc: Some(code) };
        for (on, outcome, want) in [
            ("5xx", answered(500), true),
            ("5xx", answered(404), false),
            ("5xx", Outcome::ConnectFailure, true),
            ("gateway-error", answered(500), false),
            ("gateway-error", answered(503), true),
            ("retriable-4xx", answered(409), true),
            ("418", answered(418), true),
            ("connect-failure", Outcome::Reset { before_request: false }, false),
            ("connect-failure", Outcome::ConnectFailure, true),
            ("refused-stream", Outcome::Refused, true),
            ("reset-before-request", Outcome::Reset { before_request: true }, true),
            ("reset-before-request", Outcome::ConnectFailure, true),
            ("reset-before-request", Outcome::Refused, false),
            ("reset", Outcome::Refused, true),
            ("gateway-error", Outcome::TryTimeout, true),
            ("retriable-status-codes", answered(503), false),
            ("reset-before-request", Outcome::Reset { before_request: false }, false),
            ("unavailable", grpc(14), true),
            ("unavailable", answered(503), false),
            ("5xx", Outcome::TryTimeout, true),
            ("connect-failure", Outcome::TryTimeout, false),
        ] {
            let (on_set, codes) = RetryOn::parse(on).expect("known");
            let policy = RetryPolicy { on: on_set, codes, ..RetryPolicy::default() };
            assert_eq!(policy.wants(outcome), want, "{on} {outcome:?}");
        }
    }

    #[test]
    fn back_off_doubles_up_to_its_cap() {
        let policy = RetryPolicy::default();
        for (retry, ms) in [(1, 25), (2, 75), (3, 175), (4, 250), (20, 250)] {
            assert_eq!(policy.backoff(retry, 1.0), Duration::from_millis(ms), "retry {retry}");
        }
        assert_eq!(policy.backoff(3, 0.0), Duration::ZERO);
    }
}
