//! Limits on HTTP messages: for all, and where one direction or route has its own.

use std::num::NonZeroU32;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::super::units::{ByteRate, Size, Time};

/// The most fields that a head can be allowed to have: room for them is on the stack.
pub const MOST_HEADERS: u32 = 256;

/// Limits on HTTP messages.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Http {
    /// The largest head, request line included. Default 64KiB.
    pub max_header_bytes: Size,
    /// The most fields in a head, at most 256. Default 100.
    pub max_headers: NonZeroU32,
    /// Requests that a client may have open at once on one HTTP/2 connection. Default 1000.
    pub max_streams: NonZeroU32,
    /// From a request's first byte to the end of its head. Default 10s.
    pub header_timeout: Time,
    /// The longest silence inside a body, or before an answer, and the longest that a piece of a
    /// body (at most 128KiB) may take to be taken. Default 5m.
    pub body_timeout: Time,
    /// The least that a request's body must bring, in bytes, of the time that is spent waiting for
    /// it: `600/m`, `240/s`, or `off`. Answers, and gRPC, may be as slow as they like. Default
    /// `600/m`.
    pub min_body_rate: ByteRate,
    /// How long a client's connection may idle between requests. Default 1h: longer than the
    /// application's own, so that it is the application that closes.
    pub idle_timeout: Time,
    /// How long a client's connection is kept, spread by a tenth: after that its next answer asks it
    /// to connect anew, so that connections spread over what has come since. Default 1h.
    pub max_connection_age: Time,
}

/// What differs from `http`, for one direction.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct HttpOverrides {
    /// As `http.max_header_bytes`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_header_bytes: Option<Size>,
    /// As `http.max_headers`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_headers: Option<NonZeroU32>,
    /// As `http.max_streams`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_streams: Option<NonZeroU32>,
    /// As `http.header_timeout`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub header_timeout: Option<Time>,
    /// As `http.body_timeout`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body_timeout: Option<Time>,
    /// As `http.min_body_rate`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_body_rate: Option<ByteRate>,
    /// As `http.idle_timeout`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<Time>,
    /// As `http.max_connection_age`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_connection_age: Option<Time>,
}

impl Http {
    /// These limits, with what a direction has of its own.
    #[must_use]
    pub fn with(&self, own: &HttpOverrides) -> Self {
        Self {
            max_header_bytes: own.max_header_bytes.unwrap_or(self.max_header_bytes),
            max_headers: own.max_headers.unwrap_or(self.max_headers),
            max_streams: own.max_streams.unwrap_or(self.max_streams),
            header_timeout: own.header_timeout.unwrap_or(self.header_timeout),
            body_timeout: own.body_timeout.unwrap_or(self.body_timeout),
            min_body_rate: own.min_body_rate.unwrap_or(self.min_body_rate),
            idle_timeout: own.idle_timeout.unwrap_or(self.idle_timeout),
            max_connection_age: own.max_connection_age.unwrap_or(self.max_connection_age),
        }
    }
}

impl HttpOverrides {
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
