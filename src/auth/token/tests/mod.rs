//! Tokens signed by another implementation, with keys made for the test.

mod hostile;
mod sets;
mod time;

use std::fs;
use std::sync::LazyLock;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm,
    Ed25519KeyPair, KeyPair, RsaKeyPair, RsaPublicKeyComponents,
};
use jsonwebtoken::{Algorithm, EncodingKey, Header as JwtHeader, crypto, encode};
use serde_json::{Value as Json, json};
use tempfile::TempDir;

use super::*;
use crate::config::units::Time;

const NOW: u64 = 1_800_000_000;
const ISSUER: &str = "https://id.example.com";

/// One who signs, and its public key as a JWK.
struct Signer {
    algorithm: Algorithm,
    key: EncodingKey,
    jwk: Json,
}

static RSA: LazyLock<Signer> = LazyLock::new(|| Signer::rsa(KeySize::Rsa2048, Algorithm::RS256));
static OTHER_RSA: LazyLock<Signer> = LazyLock::new(|| Signer::rsa(KeySize::Rsa2048, Algorithm::RS256));
static EC: LazyLock<Signer> = LazyLock::new(|| Signer::ec(Algorithm::ES256));
static ED: LazyLock<Signer> = LazyLock::new(Signer::ed);

fn base64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

impl Signer {
    fn rsa(size: KeySize, algorithm: Algorithm) -> Self {
        let pair = RsaKeyPair::generate(size).unwrap();
        let pkcs8: Pkcs8V1Der<'_> = pair.as_der().unwrap();
        let public = RsaPublicKeyComponents::<Vec<u8>>::from(pair.public_key());
        Self {
            algorithm,
            // The RSAPrivateKey (RFC 8017) inside, behind version, algorithm and the string's head.
            key: EncodingKey::from_rsa_der(&pkcs8.as_ref()[26..]),
            jwk: json!({ "kty": "RSA", "n": base64(public.n), "e": base64(public.e) }),
        }
    }

    fn ec(algorithm: Algorithm) -> Self {
        let (curve, signing): (&str, &'static EcdsaSigningAlgorithm) = match algorithm {
            Algorithm::ES256 => ("P-256", &ECDSA_P256_SHA256_FIXED_SIGNING),
            _ => ("P-384", &ECDSA_P384_SHA384_FIXED_SIGNING),
        };
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(signing, &SystemRandom::new()).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(signing, pkcs8.as_ref()).unwrap();
        let (x, y) = pair.public_key().as_ref()[1..].split_at(pair.public_key().as_ref().len() / 2);
        Self {
            algorithm,
            key: EncodingKey::from_ec_der(pkcs8.as_ref()),
            jwk: json!({ "kty": "EC", "crv": curve, "x": base64(x), "y": base64(y) }),
        }
    }

    fn ed() -> Self {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        let pair = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap();
        Self {
            algorithm: Algorithm::EdDSA,
            key: EncodingKey::from_ed_der(pkcs8.as_ref()),
            jwk: json!({ "kty": "OKP", "crv": "Ed25519", "x": base64(pair.public_key().as_ref()) }),
        }
    }

    /// Its JWK, with these members too.
    fn jwk(&self, more: Json) -> Json {
        let mut jwk = self.jwk.clone();
        jwk.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        jwk
    }

    /// A token, made by another implementation.
    fn token(&self, kid: Option<&str>, claims: &Json) -> String {
        let mut header = JwtHeader::new(self.algorithm);
        header.kid = kid.map(str::to_owned);
        encode(&header, claims, &self.key).unwrap()
    }

    /// A token of this very header and payload, whatever they are.
    fn sign(&self, header: &str, payload: impl AsRef<[u8]>) -> String {
        let signed = format!("{}.{}", base64(header), base64(payload));
        let signature = crypto::sign(signed.as_bytes(), &self.key, self.algorithm).unwrap();
        format!("{signed}.{signature}")
    }
}

/// Claims that are good, with these too; `null` takes one out.
fn claims(more: Json) -> Json {
    let mut claims =
        json!({ "iss": ISSUER, "aud": "orders", "sub": "jane", "iat": NOW - 5, "exp": NOW + 300 });
    for (name, value) in more.as_object().unwrap() {
        match value {
            Json::Null => claims.as_object_mut().unwrap().remove(name),
            value => claims.as_object_mut().unwrap().insert(name.clone(), value.clone()),
        };
    }
    claims
}

/// A configuration of issuers with their audiences and keys, in files.
struct World {
    directory: TempDir,
    jwt: Jwt,
}

impl World {
    fn new(issuers: &[(&str, Option<&[&str]>, &[Json])]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let issuers = issuers.iter().enumerate().map(|(i, (issuer, audiences, keys))| {
            let jwks = directory.path().join(format!("{i}.json"));
            fs::write(&jwks, json!({ "keys": keys }).to_string()).unwrap();
            let audiences = audiences.map(|list| list.iter().map(|one| (*one).to_owned()).collect());
            model::Issuer { issuer: (*issuer).into(), audiences, jwks }
        });
        let (issuers, leeway) = (issuers.collect(), Time(std::time::Duration::from_secs(60)));
        Self { directory, jwt: Jwt { leeway, max_lifetime: None, issuers } }
    }

    /// One issuer with these keys, for `orders`.
    fn of(keys: &[Json]) -> Self {
        Self::new(&[(ISSUER, Some(&["orders"]), keys)])
    }

    /// One issuer with this key, which has no name.
    fn of_one(signer: &Signer) -> Self {
        Self::of(std::slice::from_ref(&signer.jwk))
    }

    fn tokens(&self) -> Arc<Tokens> {
        Tokens::compile(Some(&self.jwt), None).unwrap()
    }
}

fn verify(tokens: &Tokens, token: &str) -> Result<Arc<Claims>, Invalid> {
    tokens.verify(Some(format!("Bearer {token}").as_bytes()), NOW)
}

#[test]
fn every_algorithm_is_verified_and_says_what_it_says() {
    let algorithms =
        [Algorithm::RS384, Algorithm::RS512, Algorithm::PS256, Algorithm::PS384, Algorithm::PS512];
    // One key pair suffices: a JWK says what it is for.
    let others = algorithms.map(|algorithm| Signer {
        algorithm,
        key: RSA.key.clone(),
        jwk: RSA.jwk(json!({ "alg": algorithm })),
    });
    let es384 = Signer::ec(Algorithm::ES384);
    for signer in others.iter().chain([&*RSA, &*EC, &es384, &*ED]) {
        let tokens =
            World::of(&[signer.jwk(json!({ "kid": "a", "use": "sig", "key_ops": ["verify"] }))]).tokens();
        let token = signer.token(Some("a"), &claims(json!({ "realm": { "tenant": "t1" } })));
        for _ in 0..2 {
            let found = verify(&tokens, &token).unwrap_or_else(|why| panic!("{:?}: {why}", signer.algorithm));
            assert_eq!((found.get("sub"), found.get("realm.tenant")), (Some("jane"), Some("t1")));
            assert!(found.any("aud", &|member| member == "orders"));
        }
        let mut broken = token.into_bytes();
        let middle = broken.len() - 20;
        broken[middle] = if broken[middle] == b'A' { b'B' } else { b'A' };
        assert_eq!(verify(&tokens, str::from_utf8(&broken).unwrap()), Err(Invalid::Signature));
    }
}

#[test]
fn the_example_of_rfc_7515_is_verified() {
    // Appendix A.3.
    let jwk = json!({
        "kty": "EC",
        "crv": "P-256",
        "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
        "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
    });
    let token = "Bearer eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxl\
                 LmNvbS9pc19yb290Ijp0cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQ\
                 xfKTUJqPP3-Kg6NU1Q";
    let tokens = World::new(&[("joe", None, &[jwk])]).tokens();
    let found = tokens.verify(Some(token.as_bytes()), 1_300_819_300).unwrap();
    assert_eq!(found.get("http://example.com/is_root"), Some("true"));
    assert_eq!(tokens.verify(Some(token.as_bytes()), NOW), Err(Invalid::Expired));
}

#[test]
fn the_field_is_read_as_rfc_6750_says() {
    let tokens = World::of_one(&EC).tokens();
    let token = EC.token(None, &claims(json!({})));
    let at = |field: &str| tokens.verify(Some(field.as_bytes()), NOW).map(|_| ());
    for scheme in ["Bearer", "bearer", "BEARER", "bEaReR"] {
        assert_eq!(at(&format!("{scheme} {token}")), Ok(()), "{scheme}");
    }
    assert_eq!(at(&format!("Bearer   {token} ")), Ok(()));
    assert_eq!(tokens.verify(None, NOW), Err(Invalid::Absent));
    for other in [
        "",
        " ",
        "Basic dTpw",
        "Bearerer x",
        &format!("Bearer\t{token}"),
        &token,
        &format!(" Bearer {token}"),
    ] {
        assert_eq!(at(other), Err(Invalid::Scheme), "{other:?}");
    }
    for none in ["Bearer", "Bearer ", "Bearer    "] {
        assert_eq!(at(none), Err(Invalid::Malformed), "{none:?}");
    }
    for two in
        [format!("Bearer {token}, {token}"), format!("Bearer {token} {token}"), format!("Bearer \"{token}\"")]
    {
        assert_eq!(at(&two), Err(Invalid::Malformed));
    }
}

#[test]
fn without_configuration_no_token_is_good() {
    let tokens = Tokens::compile(None, None).unwrap();
    let token = EC.token(None, &claims(json!({})));
    assert_eq!(verify(&tokens, &token), Err(Invalid::Issuer));
    assert_eq!(tokens.verify(None, NOW), Err(Invalid::Absent));
}

#[test]
fn an_audience_is_one_of_ours_or_any() {
    let aud = |configured: Option<&[&str]>, aud: Json| {
        let tokens = World::new(&[(ISSUER, configured, std::slice::from_ref(&ED.jwk))]).tokens();
        verify(&tokens, &ED.token(None, &claims(json!({ "aud": aud })))).map(|_| ())
    };
    let ours: &[&str] = &["orders", "payments"];
    for good in [json!("payments"), json!(["x", "orders"])] {
        assert_eq!(aud(Some(ours), good), Ok(()));
    }
    let no_list =
        [json!("order"), json!("Orders"), json!("orders "), json!(7), json!({ "orders": true }), Json::Null];
    for bad in no_list.into_iter().chain([json!([]), json!(["x", ["orders"]])]) {
        assert_eq!(aud(Some(ours), bad.clone()), Err(Invalid::Audience), "{bad}");
        assert_eq!(aud(None, bad), Ok(()));
    }
}

#[test]
fn a_reload_keeps_what_has_not_changed_and_a_bad_file_changes_nothing() {
    let world = World::of(&[EC.jwk(json!({ "kid": "a" }))]);
    let before = world.tokens();
    let again = || Tokens::compile(Some(&world.jwt), Some(&before));
    assert!(Arc::ptr_eq(&before, &again().unwrap()));

    let other = Jwt { max_lifetime: Some(Time(std::time::Duration::from_secs(60))), ..world.jwt.clone() };
    assert!(!Arc::ptr_eq(&before, &Tokens::compile(Some(&other), Some(&before)).unwrap()));

    let old = EC.token(Some("a"), &claims(json!({})));
    let file = &world.jwt.issuers[0].jwks;
    fs::write(file, "{").unwrap();
    assert_eq!(again().unwrap_err().file, *file);
    let two = Jwt {
        issuers: [&*world.jwt.issuers, &*World::of_one(&ED).jwt.issuers].concat(),
        ..world.jwt.clone()
    };
    assert_eq!(Tokens::compile(Some(&two), None).unwrap_err().issuer, 1, "its directory has gone");
    fs::remove_file(file).unwrap();
    assert!(again().unwrap_err().to_string().contains("cannot be read: No such file"));
    assert!(verify(&before, &old).is_ok());

    // The issuer has taken the key out: a token that was good, and is known, is so no more.
    fs::write(file, json!({ "keys": [ED.jwk(json!({ "kid": "b" }))] }).to_string()).unwrap();
    let after = again().unwrap();
    assert_eq!(verify(&after, &old), Err(Invalid::Key));
    assert!(verify(&after, &ED.token(Some("b"), &claims(json!({})))).is_ok());
}

#[test]
fn threads_verify_at_once() {
    let tokens = World::of_one(&ED).tokens();
    let good: Vec<_> = (0..64).map(|n| ED.token(None, &claims(json!({ "n": n })))).collect();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (tokens, good) = (&tokens, &good);
            scope.spawn(move || {
                for round in 0..2_000 {
                    let nth = (round * 7 + thread) % good.len();
                    let found = verify(tokens, &good[nth]).unwrap();
                    assert_eq!(found.get("n"), Some(&*nth.to_string()));
                    let bad = format!("{}x{round}", good[nth]);
                    assert!(verify(tokens, &bad).is_err());
                }
            });
        }
    });
}

/// Says what a token costs; `--nocapture` shows it.
#[test]
fn what_a_token_costs() {
    let time = |rounds: u32, what: &mut dyn FnMut()| {
        let start = std::time::Instant::now();
        (0..rounds).for_each(|_| what());
        start.elapsed().as_nanos() / u128::from(rounds)
    };
    for signer in [&*RSA, &*EC, &*ED] {
        let tokens = World::of_one(signer).tokens();
        let token = signer.token(None, &claims(json!({ "scope": "read write", "tenant": "t".repeat(300) })));
        let field = format!("Bearer {token}");
        let first = time(200, &mut || assert!(tokens.prove(token.as_bytes()).is_ok()));
        let cached = time(20_000, &mut || assert!(tokens.verify(Some(field.as_bytes()), NOW).is_ok()));
        let bad = format!("{field}A");
        let refused = time(20_000, &mut || assert!(tokens.verify(Some(bad.as_bytes()), NOW).is_err()));
        println!(
            "{:?}, {} bytes: {first} ns at first, {cached} ns from then on, {refused} ns where refused",
            signer.algorithm,
            token.len()
        );
    }
}
