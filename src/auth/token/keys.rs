//! An issuer's public keys, read from a JWK set (RFC 7517): each with the one algorithm that it is for. A
//! set may hold keys that are not for us, which are passed over as the RFC says; what would be dangerous
//! to pass over, or to take, is a fault.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, ParsedPublicKey, VerificationAlgorithm,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, crypto};

use super::json::{Object, Value};

/// Moduli of RSA, in bits: less can be broken, more is a cost without a use.
const LEAST_RSA: usize = 2048;
const MOST_RSA: usize = 8192;
/// The most bits of an exponent of RSA that its implementations take.
const MOST_EXPONENT: usize = 33;

/// The algorithms of signatures that are accepted, by their names in JOSE, and the keys they are of. The
/// first of a kind of key is what it is for where it does not say. None is symmetric.
const ACCEPTED: [(&str, Kind, Algorithm); 9] = [
    ("RS256", Kind::Rsa, Algorithm::RS256),
    ("RS384", Kind::Rsa, Algorithm::RS384),
    ("RS512", Kind::Rsa, Algorithm::RS512),
    ("PS256", Kind::Rsa, Algorithm::PS256),
    ("PS384", Kind::Rsa, Algorithm::PS384),
    ("PS512", Kind::Rsa, Algorithm::PS512),
    ("ES256", Kind::P256, Algorithm::ES256),
    ("ES384", Kind::P384, Algorithm::ES384),
    ("EdDSA", Kind::Ed25519, Algorithm::EdDSA),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Rsa,
    P256,
    P384,
    Ed25519,
}

/// The keys of one issuer, those of use.
#[derive(Debug, Default)]
pub(super) struct Keys {
    named: HashMap<Box<str>, Key>,
    nameless: Vec<Key>,
}

/// A key, and what it is for.
pub(super) struct Key {
    algorithm: &'static str,
    verifies: Algorithm,
    public: DecodingKey,
}

/// What a key of a set is to us.
enum Read {
    Key(Key),
    /// Not for us, and why.
    Other(String),
}

/// Whether signatures by this algorithm are accepted of any key.
pub(super) fn is_accepted(algorithm: &str) -> bool {
    ACCEPTED.iter().any(|(name, ..)| *name == algorithm)
}

impl Keys {
    /// Reads a set. The error says which key is at fault, and why.
    pub(super) fn read(json: &[u8]) -> Result<Self, String> {
        let set = Object::read(json).map_err(|error| format!("is no JWK set: {error}"))?;
        let Some(Value::List(list)) = set.own("keys") else {
            return Err("is no JWK set: expected an object with a list `keys`".into());
        };
        let mut keys = Keys::default();
        let mut others = Vec::new();
        for (nth, jwk) in (1..).zip(list) {
            let Value::Object(jwk) = jwk else { return Err(format!("key {nth}: expected an object")) };
            let kid = match jwk.own("kid") {
                None => None,
                Some(Value::Text(kid)) => Some(kid),
                Some(_) => return Err(format!("key {nth}: `kid` is not text")),
            };
            let name = || match kid {
                Some(kid) => format!("key {nth} (`{kid}`)"),
                None => format!("key {nth}"),
            };
            match read(jwk).map_err(|why| format!("{}: {why}", name()))? {
                Read::Other(why) => others.push(format!("{} {why}", name())),
                Read::Key(key) => match kid {
                    None => keys.nameless.push(key),
                    Some(kid) => match keys.named.entry(kid.clone()) {
                        Entry::Vacant(place) => drop(place.insert(key)),
                        Entry::Occupied(_) => {
                            return Err(format!("{}: another key has this `kid` already", name()));
                        }
                    },
                },
            }
        }
        match keys.count() {
            0 if others.is_empty() => Err("holds no key".into()),
            0 => Err(format!("holds no key that verifies tokens: {}", others.join(", "))),
            _ => Ok(keys),
        }
    }

    /// The key that a token names; where it names none, the issuer's only one.
    pub(super) fn find(&self, kid: Option<&str>) -> Option<&Key> {
        match kid {
            Some(kid) => self.named.get(kid),
            None if self.count() == 1 => self.named.values().chain(&self.nameless).next(),
            None => None,
        }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.named.len() + self.nameless.len()
    }
}

impl Key {
    /// The one algorithm that it is for, by its name in JOSE.
    pub(super) fn algorithm(&self) -> &'static str {
        self.algorithm
    }

    /// Whether `signature`, in base64url, is the key's under `message`.
    pub(super) fn verifies(&self, message: &[u8], signature: &str) -> bool {
        crypto::verify(signature, message, &self.public, self.verifies).unwrap_or(false)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.algorithm)
    }
}

fn read(jwk: &Object) -> Result<Read, String> {
    let text = |name: &str| match jwk.own(name) {
        None => Ok(None),
        Some(Value::Text(text)) => Ok(Some(&**text)),
        Some(_) => Err(format!("`{name}` is not text")),
    };
    let kty = text("kty")?.ok_or("`kty` is missing")?;
    if kty == "oct" {
        return Err(
            "is a secret that both sides share (`kty: oct`): whoever verifies tokens with it can make \
                    them; expected public keys alone"
                .into(),
        );
    }
    if jwk.own("d").is_some() {
        return Err(
            "holds the private key too (`d`), with which anyone who reads this file can make tokens; \
                    expected public keys alone"
                .into(),
        );
    }
    let other = |why: &str| Ok(Read::Other(why.into()));
    match text("use")? {
        None | Some("sig") => {}
        Some(other) => return Ok(Read::Other(format!("is for `use: {other}`"))),
    }
    match jwk.own("key_ops") {
        None => {}
        Some(Value::List(operations)) if operations.iter().any(|one| one.text() == Some("verify")) => {}
        Some(_) => return other("is not for `verify`"),
    }
    let kind = match (kty, text("crv")?) {
        ("RSA", _) => Kind::Rsa,
        ("EC", Some("P-256")) => Kind::P256,
        ("EC", Some("P-384")) => Kind::P384,
        ("OKP", Some("Ed25519")) => Kind::Ed25519,
        (kty, None) => return Ok(Read::Other(format!("is of the type `{kty}`"))),
        (kty, Some(curve)) => return Ok(Read::Other(format!("is of the type `{kty}`, `{curve}`"))),
    };
    let written = text("alg")?;
    let is_it = |(name, of, _): &&(&str, Kind, Algorithm)| written.map_or(kind == *of, |alg| alg == *name);
    let Some(&(algorithm, of, verifies)) = ACCEPTED.iter().find(is_it) else {
        return Ok(Read::Other(format!("is for `alg: {}`", written.unwrap_or_default())));
    };
    if of != kind {
        return Err(format!("`alg: {algorithm}` does not fit a key of the type `{kty}`"));
    }
    let number = |name: &str| {
        let text = text(name)?.ok_or_else(|| format!("`{name}` is missing"))?;
        URL_SAFE_NO_PAD.decode(text).map_err(|_| format!("`{name}` is not base64url"))
    };
    let public = match kind {
        Kind::Rsa => rsa(&number("n")?, &number("e")?)?,
        Kind::P256 => DecodingKey::from_ec_der(&point(
            &ECDSA_P256_SHA256_FIXED,
            &[&[4], &*exactly(32, "x", number("x")?)?, &*exactly(32, "y", number("y")?)?],
        )?),
        Kind::P384 => DecodingKey::from_ec_der(&point(
            &ECDSA_P384_SHA384_FIXED,
            &[&[4], &*exactly(48, "x", number("x")?)?, &*exactly(48, "y", number("y")?)?],
        )?),
        Kind::Ed25519 => DecodingKey::from_ed_der(&point(&ED25519, &[&*exactly(32, "x", number("x")?)?])?),
    };
    Ok(Read::Key(Key { algorithm, verifies, public }))
}

/// A key of RSA, if it is one that protects: with `e: 1` every text is its own signature. Zeros before a number,
/// which RFC 7518 section 6.3.1.1 forbids and some issuers write, are no part of it.
fn rsa(n: &[u8], e: &[u8]) -> Result<DecodingKey, String> {
    let (n, e) = (&n[zeros(n)..], &e[zeros(e)..]);
    let size = bits(n);
    if !(LEAST_RSA..=MOST_RSA).contains(&size) {
        return Err(format!("has {size} bits; expected {LEAST_RSA} to {MOST_RSA}"));
    }
    let is_odd = |number: &[u8]| number.last().is_some_and(|last| last % 2 == 1);
    if !is_odd(n) || !is_odd(e) || !(2..=MOST_EXPONENT).contains(&bits(e)) {
        return Err("is no key of RSA: its modulus is even, or its exponent even, 1 or too large".into());
    }
    Ok(DecodingKey::from_rsa_raw_components(n, e))
}

fn zeros(number: &[u8]) -> usize {
    number.iter().take_while(|byte| **byte == 0).count()
}

/// The bits of a number, zeros before it not counted.
fn bits(number: &[u8]) -> usize {
    let zeros = zeros(number);
    let first = number.get(zeros).map_or(0, |byte| byte.leading_zeros() as usize);
    (number.len() - zeros) * 8 - first
}

fn exactly(length: usize, name: &str, number: Vec<u8>) -> Result<Vec<u8>, String> {
    match number.len() {
        found if found == length => Ok(number),
        found => Err(format!("`{name}` has {found} bytes; expected {length}")),
    }
}

/// The parts of a public key in a row, if it is a point of its curve.
fn point(curve: &'static dyn VerificationAlgorithm, parts: &[&[u8]]) -> Result<Vec<u8>, String> {
    let key = parts.concat();
    match ParsedPublicKey::new(curve, &key) {
        Ok(_) => Ok(key),
        Err(_) => Err("is no point of its curve".into()),
    }
}
