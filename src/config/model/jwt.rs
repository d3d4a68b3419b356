//! Whose tokens are believed, and by which keys.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::super::units::Time;

/// Which JSON Web Tokens (RFC 7519) are believed: those of these issuers, signed by their keys, and in
/// their time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Jwt {
    /// How far the clocks of issuers may be from ours, in whole seconds, up to 10m. Default 60s.
    #[serde(default = "Jwt::default_leeway")]
    pub leeway: Time,
    /// The longest time from a token's `iat` to its `exp`; one that lives longer, or does not say, is
    /// refused. Default: no bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_lifetime: Option<Time>,
    /// Who issues tokens.
    pub issuers: Vec<Issuer>,
}

/// One who issues tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Issuer {
    /// What a token's `iss` must be, to the letter.
    pub issuer: String,
    /// Whom tokens are for: `aud` must name one of these. Default: anyone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audiences: Option<Vec<String>>,
    /// The file with the issuer's public keys, as a JWK set (RFC 7517).
    pub jwks: PathBuf,
}
