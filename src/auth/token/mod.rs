//! JSON Web Tokens (RFC 7519, RFC 8725), verified by the keys that the configuration names and nothing
//! else: what a token says of itself finds a key among those, and is otherwise not believed.
//!
//! - A key is for one algorithm, its own. A token that names another is refused, as is every symmetric one
//!   and `none`.
//! - A header that says what must be understood (`crit`) is refused. Keys and places of keys in a header
//!   (`jwk`, `jku`, `x5c`, `x5u`) are not looked at.
//! - A token has one reading: a name that is twice in an object, padding, or bits beyond the last make it
//!   none.
//! - A token is out of date to the second, also one that was seen before.
//! - No token is in any message, log or cache.

mod cache;
mod claims;
mod json;
mod keys;

use std::collections::HashMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::str;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::config::model::{self, Jwt};
use cache::{Cache, Digest, Known, REMEMBERED};
use claims::Times;
use json::{Object, Value};
use keys::Keys;

pub use claims::Claims;

/// No token is longer, in bytes.
const LONGEST: usize = 16 << 10;
/// No key set is larger, in bytes.
const LARGEST_SET: u64 = 1 << 20;

/// Who is believed, and what is known of tokens that came before. All but that is immutable: a reload
/// compiles another.
#[derive(Debug, Default)]
pub struct Tokens {
    issuers: HashMap<Box<str>, Issuer>,
    times: Times,
    /// What this was compiled from: the configuration, and what the files held.
    source: (Option<Jwt>, Vec<Vec<u8>>),
    cache: Cache,
}

#[derive(Debug)]
struct Issuer {
    keys: Keys,
    /// None: any.
    audiences: Option<Vec<Box<str>>>,
}

/// Why an issuer's keys cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {message}", file.display())]
pub struct Error {
    /// Which issuer, in the order of the configuration, from 0.
    pub issuer: usize,
    /// The file at fault.
    pub file: PathBuf,
    /// What is wrong, and where one can tell, what to do.
    pub message: String,
}

/// Why there is no verified token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Invalid {
    /// There is no `Authorization`.
    Absent,
    /// It is of another scheme than `Bearer`.
    Scheme,
    /// The token is longer than 16 KiB.
    TooLarge,
    /// It is no JSON Web Token, or one with more than one reading.
    Malformed,
    /// Its header wants something understood that is not (`crit`).
    Critical,
    /// Its algorithm is none that is accepted, or not its key's.
    Algorithm,
    /// Its issuer is not believed, or it names none.
    Issuer,
    /// Its issuer has no such key; or it names none, and the issuer has several.
    Key,
    /// The signature is not its key's.
    Signature,
    /// It is for others.
    Audience,
    /// It has no end.
    NoExpiry,
    /// One of its times is no time.
    Time,
    /// It lives longer than `max_lifetime`, or does not say since when.
    Lifetime,
    /// Its time is over.
    Expired,
    /// Its time has not come.
    NotYetValid,
}

impl Invalid {
    /// Every one, in the order in which a token is looked at.
    pub const ALL: &[Invalid] = &[
        Invalid::Absent,
        Invalid::Scheme,
        Invalid::TooLarge,
        Invalid::Malformed,
        Invalid::Critical,
        Invalid::Algorithm,
        Invalid::Issuer,
        Invalid::Key,
        Invalid::Signature,
        Invalid::Audience,
        Invalid::NoExpiry,
        Invalid::Time,
        Invalid::Lifetime,
        Invalid::Expired,
        Invalid::NotYetValid,
    ];

    /// The name in metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Invalid::Absent => "absent",
            Invalid::Scheme => "scheme",
            Invalid::TooLarge => "too_large",
            Invalid::Malformed => "malformed",
            Invalid::Critical => "critical",
            Invalid::Algorithm => "algorithm",
            Invalid::Issuer => "issuer",
            Invalid::Key => "key",
            Invalid::Signature => "signature",
            Invalid::Audience => "audience",
            Invalid::NoExpiry => "no_expiry",
            Invalid::Time => "time",
            Invalid::Lifetime => "lifetime",
            Invalid::Expired => "expired",
            Invalid::NotYetValid => "not_yet_valid",
        }
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::error::Error for Invalid {}

impl Tokens {
    /// Reads the keys of a configuration that has been checked; without one, no token is good. Where
    /// neither it nor the files differ from `before`, that goes on, with what it knows of tokens.
    pub fn compile(jwt: Option<&Jwt>, before: Option<&Arc<Tokens>>) -> Result<Arc<Self>, Error> {
        let written = jwt.map_or(&[][..], |jwt| &jwt.issuers);
        let wrong = |nth: usize, message| Error { issuer: nth, file: written[nth].jwks.clone(), message };
        let files =
            written.iter().enumerate().map(|(nth, one)| read(&one.jwks).map_err(|why| wrong(nth, why)));
        let source = (jwt.cloned(), files.collect::<Result<Vec<_>, _>>()?);
        if let Some(before) = before.filter(|before| before.source == source) {
            return Ok(before.clone());
        }
        let issuers = written.iter().zip(&source.1).enumerate().map(|(nth, (issuer, set))| {
            let keys = Keys::read(set).map_err(|why| wrong(nth, why))?;
            Ok((issuer.issuer.as_str().into(), Issuer::new(issuer, keys)))
        });
        let issuers = issuers.collect::<Result<_, _>>()?;
        let times = jwt.map_or_else(Times::default, Times::from);
        Ok(Arc::new(Self { issuers, times, source, cache: Cache::default() }))
    }

    /// How many keys of an issuer are of use.
    pub fn keys(&self, issuer: &str) -> usize {
        self.issuers.get(issuer).map_or(0, |issuer| issuer.keys.count())
    }

    /// The claims of the token that a request brings in `Authorization` (RFC 6750 section 2.1), if it is
    /// good at `now`, in seconds since 1970. A request with that field twice has brought no token.
    ///
    /// Costs a signature's verification the first time, on the caller's thread, and a digest of the token
    /// from then on. No lock is held but for a look into the cache.
    pub fn verify(&self, authorization: Option<&[u8]>, now: u64) -> Result<Arc<Claims>, Invalid> {
        let token = bearer(authorization.ok_or(Invalid::Absent)?)?;
        if self.issuers.is_empty() {
            return Err(Invalid::Issuer);
        }
        let digest = Digest::of(token);
        let (proven, is_new) = match self.cache.find(&digest, now) {
            Some(Known::Refused(why)) => return Err(why),
            Some(Known::Good(claims)) => (Ok(claims), false),
            None => (self.prove(token).map(Arc::new), true),
        };
        let forgotten = now.saturating_add(REMEMBERED);
        let (why, until) = match proven.map(|claims| (claims.in_time(now), claims)) {
            Ok((Ok(()), claims)) => {
                if is_new {
                    self.cache.keep(digest, &claims);
                }
                return Ok(claims);
            }
            Ok((Err(why @ Invalid::NotYetValid), claims)) => (why, claims.from().min(forgotten)),
            Ok((Err(why), _)) | Err(why) => (why, forgotten),
        };
        self.cache.refuse(digest, why, now, until);
        Err(why)
    }

    /// The claims of a token that one who is believed has signed for us, whether or not it is its time.
    fn prove(&self, token: &[u8]) -> Result<Claims, Invalid> {
        let parts = Parts::of(token)?;
        let header = Header::read(parts.header)?;
        let claims = object(parts.payload)?;
        let issuer = match claims.own("iss") {
            Some(Value::Text(issuer)) => self.issuers.get(issuer).ok_or(Invalid::Issuer)?,
            _ => return Err(Invalid::Issuer),
        };
        let key = issuer.keys.find(header.kid.as_deref()).ok_or(Invalid::Key)?;
        if key.algorithm() != &*header.algorithm {
            return Err(Invalid::Algorithm);
        }
        if !key.verifies(parts.signed, parts.signature) {
            return Err(Invalid::Signature);
        }
        if !issuer.is_for_us(&claims) {
            return Err(Invalid::Audience);
        }
        Claims::new(claims, self.times)
    }
}

impl Issuer {
    fn new(written: &model::Issuer, keys: Keys) -> Self {
        let boxed = |audiences: &Vec<String>| audiences.iter().map(|one| one.as_str().into()).collect();
        Self { keys, audiences: written.audiences.as_ref().map(boxed) }
    }

    fn is_for_us(&self, claims: &Object) -> bool {
        let Some(ours) = &self.audiences else { return true };
        let is_ours = |value: &Value| matches!(value, Value::Text(one) if ours.contains(one));
        match claims.own("aud") {
            Some(Value::List(list)) => list.iter().any(is_ours),
            Some(one) => is_ours(one),
            None => false,
        }
    }
}

impl From<&Jwt> for Times {
    fn from(jwt: &Jwt) -> Self {
        Self { leeway: jwt.leeway.0.as_secs(), max_lifetime: jwt.max_lifetime.map(|time| time.0.as_secs()) }
    }
}

/// A token's parts, in base64url.
struct Parts<'a> {
    header: &'a str,
    payload: &'a str,
    signature: &'a str,
    /// Header and payload, as they were signed.
    signed: &'a [u8],
}

impl<'a> Parts<'a> {
    fn of(token: &'a [u8]) -> Result<Self, Invalid> {
        let text = str::from_utf8(token).map_err(|_| Invalid::Malformed)?;
        let (signed, signature) = text.rsplit_once('.').ok_or(Invalid::Malformed)?;
        let (header, payload) = signed.split_once('.').ok_or(Invalid::Malformed)?;
        Ok(Self { header, payload, signature, signed: signed.as_bytes() })
    }
}

/// What of a token's header is looked at.
struct Header {
    algorithm: Box<str>,
    kid: Option<Box<str>>,
}

impl Header {
    fn read(part: &str) -> Result<Self, Invalid> {
        let header = object(part)?;
        if header.own("crit").is_some() {
            return Err(Invalid::Critical);
        }
        let algorithm = match header.own("alg") {
            Some(Value::Text(name)) if keys::is_accepted(name) => name.clone(),
            Some(Value::Text(_)) => return Err(Invalid::Algorithm),
            _ => return Err(Invalid::Malformed),
        };
        match header.own("kid") {
            None => Ok(Self { algorithm, kid: None }),
            Some(Value::Text(kid)) => Ok(Self { algorithm, kid: Some(kid.clone()) }),
            Some(_) => Err(Invalid::Malformed),
        }
    }
}

/// The object that a part of a token is.
fn object(part: &str) -> Result<Object, Invalid> {
    let json = URL_SAFE_NO_PAD.decode(part).map_err(|_| Invalid::Malformed)?;
    Object::read(&json).map_err(|_| Invalid::Malformed)
}

/// The token of `Bearer <token>`.
fn bearer(authorization: &[u8]) -> Result<&[u8], Invalid> {
    let end = authorization.iter().position(|byte| *byte == b' ').unwrap_or(authorization.len());
    let (scheme, rest) = authorization.split_at(end);
    if !scheme.eq_ignore_ascii_case(b"bearer") {
        return Err(Invalid::Scheme);
    }
    let token = rest.trim_ascii();
    match token.len() {
        0 => Err(Invalid::Malformed),
        length if length > LONGEST => Err(Invalid::TooLarge),
        _ => Ok(token),
    }
}

fn read(file: &Path) -> Result<Vec<u8>, String> {
    let unreadable = |error: io::Error| format!("cannot be read: {error}");
    // To open a pipe would wait for who writes to it.
    if !fs::metadata(file).map_err(unreadable)?.is_file() {
        return Err("is no file".into());
    }
    let mut bytes = Vec::new();
    File::open(file)
        .map_err(unreadable)?
        .take(LARGEST_SET + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    match bytes.len() as u64 {
        0..=LARGEST_SET => Ok(bytes),
        _ => Err(format!("is larger than {} MiB", LARGEST_SET >> 20)),
    }
}

#[cfg(test)]
mod tests;
