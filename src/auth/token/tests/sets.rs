//! What a set of keys may be, and what is said of one that may not.

use super::*;

fn set(keys: &[Json]) -> Result<Keys, String> {
    Keys::read(json!({ "keys": keys }).to_string().as_bytes())
}

#[track_caller]
fn fault(key: Json, expected: &str) {
    let why = set(&[key]).unwrap_err();
    assert!(why.starts_with(expected), "expected `{expected}`, found `{why}`");
}

#[test]
fn what_is_not_for_us_is_passed_over() {
    let other = [
        RSA.jwk(json!({ "kid": "enc", "use": "enc", "alg": "RSA-OAEP" })),
        EC.jwk(json!({ "kid": "sign", "key_ops": ["sign"] })),
        RSA.jwk(json!({ "kid": "hs", "alg": "HS256" })),
        json!({ "kty": "OKP", "crv": "X25519", "x": "AAAA", "kid": "x" }),
        json!({ "kty": "EC", "crv": "secp256k1", "x": "AAAA", "y": "AAAA" }),
        json!({ "kty": "AKP", "alg": "ML-DSA-44", "pub": "AAAA" }),
    ];
    let keys = set(&[&other[..], &[EC.jwk(json!({ "kid": "a" }))]].concat()).unwrap();
    assert_eq!(keys.count(), 1);
    assert_eq!(keys.find(Some("a")).unwrap().algorithm(), "ES256");
    assert_eq!(keys.find(None).unwrap().algorithm(), "ES256");
    assert!(keys.find(Some("hs")).is_none());
    let why = set(&other).unwrap_err();
    assert_eq!(
        why,
        "holds no key that verifies tokens: key 1 (`enc`) is for `use: enc`, key 2 (`sign`) is not for `verify`, \
         key 3 (`hs`) is for `alg: HS256`, key 4 (`x`) is of the type `OKP`, `X25519`, \
         key 5 is of the type `EC`, `secp256k1`, key 6 is of the type `AKP`"
    );
}

#[test]
fn a_key_is_for_one_algorithm() {
    let of = |jwk: Json| set(&[jwk]).unwrap().find(None).unwrap().algorithm();
    assert_eq!(of(RSA.jwk.clone()), "RS256");
    assert_eq!(of(RSA.jwk(json!({ "alg": "PS256" }))), "PS256");
    assert_eq!(of(EC.jwk.clone()), "ES256");
    assert_eq!(of(Signer::ec(Algorithm::ES384).jwk), "ES384");
    assert_eq!(of(ED.jwk.clone()), "EdDSA");
    fault(RSA.jwk(json!({ "alg": "ES256" })), "key 1: `alg: ES256` does not fit a key of the type `RSA`");
    fault(EC.jwk(json!({ "alg": "ES384" })), "key 1: `alg: ES384` does not fit");
    fault(ED.jwk(json!({ "alg": "RS256" })), "key 1: `alg: RS256` does not fit");
}

#[test]
fn zeros_before_the_numbers_of_a_key_are_no_part_of_it() {
    let zero = |name: &str| {
        let number = URL_SAFE_NO_PAD.decode(RSA.jwk[name].as_str().unwrap()).unwrap();
        base64([&[0][..], &number].concat())
    };
    let key = RSA.jwk(json!({ "n": zero("n"), "e": zero("e") }));
    let keys = set(&[key]).unwrap();
    let token = RSA.token(None, &claims(json!({})));
    let (signed, signature) = token.rsplit_once('.').unwrap();
    assert!(keys.find(None).unwrap().verifies(signed.as_bytes(), signature));
}

#[test]
fn keys_that_protect_nothing() {
    fault(
        json!({ "kty": "oct", "k": "AAAA", "kid": "s" }),
        "key 1 (`s`): is a secret that both sides share (`kty: oct`)",
    );
    fault(json!({ "kty": "oct", "k": "AAAA", "use": "enc" }), "key 1: is a secret");
    fault(RSA.jwk(json!({ "d": "AAAA" })), "key 1: holds the private key too (`d`)");
    fault(ED.jwk(json!({ "d": "AAAA", "use": "enc" })), "key 1: holds the private key too");
    let n = |bytes: &[u8]| RSA.jwk(json!({ "n": base64(bytes) }));
    fault(n(&[0xff; 128]), "key 1: has 1024 bits; expected 2048 to 8192");
    fault(n(&[&[0x7f][..], &[0xff; 255]].concat()), "key 1: has 2047 bits");
    fault(n(&[&[0; 200][..], &[0xff; 128]].concat()), "key 1: has 1024 bits");
    fault(n(&[0xff; 1025]), "key 1: has 8200 bits");
    fault(n(&[]), "key 1: has 0 bits");
    fault(n(&[0xfe; 256]), "key 1: is no key of RSA");
    for e in [&[][..], &[0], &[1], &[0, 0, 1], &[2], &[1, 0, 0], &[1, 0, 0, 0, 0, 0, 1]] {
        fault(RSA.jwk(json!({ "e": base64(e) })), "key 1: is no key of RSA");
    }
}

#[test]
fn keys_that_are_none() {
    fault(json!("x"), "key 1: expected an object");
    fault(json!({}), "key 1: `kty` is missing");
    fault(json!({ "kty": 7 }), "key 1: `kty` is not text");
    fault(json!({ "kty": "RSA" }), "key 1: `n` is missing");
    fault(RSA.jwk(json!({ "n": "a+b=" })), "key 1: `n` is not base64url");
    fault(RSA.jwk(json!({ "kid": 1 })), "key 1: `kid` is not text");
    fault(EC.jwk(json!({ "x": "AAAA" })), "key 1: `x` has 3 bytes; expected 32");
    fault(EC.jwk(json!({ "y": base64([7; 32]) })), "key 1: is no point of its curve");
    fault(EC.jwk(json!({ "crv": "P-384" })), "key 1: `x` has 32 bytes; expected 48");
    fault(ED.jwk(json!({ "x": base64([7; 31]) })), "key 1: `x` has 31 bytes; expected 32");
    let twins = [RSA.jwk(json!({ "kid": "a" })), EC.jwk(json!({ "kid": "a" }))];
    assert_eq!(set(&twins).unwrap_err(), "key 2 (`a`): another key has this `kid` already");
    let apart = [RSA.jwk(json!({ "kid": "a", "use": "enc" })), EC.jwk(json!({ "kid": "a" }))];
    assert_eq!(set(&apart).unwrap().count(), 1);
}

#[test]
fn files_that_are_no_sets() {
    let why = |text: &str| Keys::read(text.as_bytes()).unwrap_err();
    for text in ["", "{", "[]", "-----BEGIN PUBLIC KEY-----", r#"{"keys":[],"keys":[]}"#] {
        assert!(why(text).starts_with("is no JWK set: "), "{text}: {}", why(text));
    }
    let key = EC.jwk.to_string();
    for text in ["{}", r#"{"keys":{}}"#, &key] {
        assert_eq!(why(text), "is no JWK set: expected an object with a list `keys`");
    }
    assert_eq!(why(r#"{"keys":[]}"#), "holds no key");
    let twice = format!(r#"{{"keys":[{},"kty":"EC"}}]}}"#, &key[..key.len() - 1]);
    assert!(why(&twice).contains("a name is there twice"), "{}", why(&twice));

    let mut world = World::of_one(&EC);
    let file = world.directory.path().join("large.json");
    fs::write(&file, vec![b' '; (1 << 20) + 1]).unwrap();
    world.jwt.issuers[0].jwks = file.clone();
    let error = Tokens::compile(Some(&world.jwt), None).unwrap_err();
    assert_eq!(error, Error { issuer: 0, file, message: "is larger than 1 MiB".into() });
    world.jwt.issuers[0].jwks = world.directory.path().into();
    assert_eq!(Tokens::compile(Some(&world.jwt), None).unwrap_err().message, "is no file");
    world.jwt.issuers[0].jwks = world.directory.path().join("none");
    assert!(Tokens::compile(Some(&world.jwt), None).unwrap_err().message.starts_with("cannot be read: "));
}
