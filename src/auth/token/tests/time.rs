//! When a token is good, and how long that is known.

use super::*;

/// A world with one key, and its tokens.
fn world() -> (World, Arc<Tokens>) {
    let world = World::of_one(&ED);
    let tokens = world.tokens();
    (world, tokens)
}

fn at(tokens: &Tokens, token: &str, now: u64) -> Result<(), Invalid> {
    tokens.verify(Some(format!("Bearer {token}").as_bytes()), now).map(|_| ())
}

/// What is remembered of a token.
fn known(tokens: &Tokens, token: &str, now: u64) -> Option<Known> {
    tokens.cache.find(&Digest::of(token.as_bytes()), now)
}

#[test]
fn a_token_is_good_within_its_time_and_the_leeway() {
    let (_world, tokens) = world();
    let token = |more| ED.token(None, &claims(more));
    let expires = token(json!({ "exp": NOW }));
    // Known or not, it makes no difference, and time may be set back.
    for (now, expected) in [
        (NOW + 60, Err(Invalid::Expired)),
        (NOW - 5 - 61, Err(Invalid::NotYetValid)),
        (NOW - 5 - 60, Ok(())),
        (NOW + 59, Ok(())),
        (NOW + 60, Err(Invalid::Expired)),
        (NOW + 59, Ok(())),
        (u64::MAX, Err(Invalid::Expired)),
        (0, Err(Invalid::NotYetValid)),
        (NOW, Ok(())),
    ] {
        assert_eq!(at(&tokens, &expires, now), expected, "{now}");
    }
    let later = token(json!({ "nbf": NOW + 100 }));
    assert_eq!(at(&tokens, &later, NOW + 39), Err(Invalid::NotYetValid));
    assert_eq!(at(&tokens, &later, NOW + 40), Ok(()));
    let parts = token(json!({ "exp": NOW as f64 + 0.9, "nbf": NOW as f64 - 0.1 }));
    assert_eq!(at(&tokens, &parts, NOW - 60), Ok(()));
    assert_eq!(at(&tokens, &parts, NOW - 61), Err(Invalid::NotYetValid));
    assert_eq!(at(&tokens, &parts, NOW + 60), Err(Invalid::Expired));
}

#[test]
fn times_that_are_none() {
    let (_world, tokens) = world();
    let with = |name: &str, value: &str| {
        let claims = claims(json!({ name: null })).to_string();
        ED.sign(r#"{"alg":"EdDSA"}"#, format!("{},\"{name}\":{value}}}", &claims[..claims.len() - 1]))
    };
    assert_eq!(verify(&tokens, &ED.token(None, &claims(json!({ "exp": null })))), Err(Invalid::NoExpiry));
    for value in [
        "\"1900000000\"",
        "-1",
        "-0.5",
        "1e300",
        "-1e300",
        "18446744073709551615",
        "18446744073709551616",
        "253402300800",
        "9007199254740993",
        "null",
        "true",
        "[]",
        "{}",
        "\"\"",
    ] {
        for name in ["exp", "nbf", "iat"] {
            assert_eq!(verify(&tokens, &with(name, value)), Err(Invalid::Time), "{name}: {value}");
        }
    }
    assert_eq!(verify(&tokens, &with("exp", "0")), Err(Invalid::Expired));
    assert_eq!(verify(&tokens, &with("exp", "1.9e9")).map(|_| ()), Ok(()));
    assert_eq!(verify(&tokens, &with("exp", "253402300799")).map(|_| ()), Ok(()));
    assert_eq!(verify(&tokens, &with("nbf", "253402300799")), Err(Invalid::NotYetValid));
}

#[test]
fn a_life_may_be_too_long() {
    let (mut world, _) = world();
    world.jwt.max_lifetime = Some(Time(std::time::Duration::from_secs(600)));
    world.jwt.leeway = Time(std::time::Duration::ZERO);
    let tokens = world.tokens();
    let living = |iat: Json, exp: u64| {
        verify(&tokens, &ED.token(None, &claims(json!({ "iat": iat, "exp": exp })))).map(|_| ())
    };
    assert_eq!(living(json!(NOW), NOW + 600), Ok(()));
    assert_eq!(living(json!(NOW), NOW + 601), Err(Invalid::Lifetime));
    assert_eq!(living(Json::Null, NOW + 1), Err(Invalid::Lifetime));
    assert_eq!(living(json!(NOW), NOW), Err(Invalid::Expired));
}

#[test]
fn a_known_token_is_refused_once_its_time_is_over() {
    let (_world, tokens) = world();
    let token = ED.token(None, &claims(json!({ "exp": NOW + 10 })));
    assert_eq!(at(&tokens, &token, NOW), Ok(()));
    assert!(matches!(known(&tokens, &token, NOW + 1000), Some(Known::Good(_))));
    assert_eq!(at(&tokens, &token, NOW + 70), Err(Invalid::Expired));
    // It has gone from among the good ones, and costs nothing more.
    assert_eq!(known(&tokens, &token, NOW + 70), Some(Known::Refused(Invalid::Expired)));
}

#[test]
fn a_refusal_is_remembered_for_seconds() {
    let (_world, tokens) = world();
    let good = ED.token(None, &claims(json!({})));
    let bad = format!("{}AAAA", &good[..good.len() - 4]);
    assert_eq!(at(&tokens, &bad, NOW), Err(Invalid::Signature));
    let refused = Some(Known::Refused(Invalid::Signature));
    assert_eq!(known(&tokens, &bad, NOW), refused);
    assert_eq!(known(&tokens, &bad, NOW + 9), refused);
    assert_eq!(known(&tokens, &bad, NOW + 10), None);
    assert_eq!(known(&tokens, &bad, NOW - 1), None, "the clock was set back");

    // What is only early is taken when its time has come, to the second.
    let early = ED.token(None, &claims(json!({ "nbf": NOW + 63 })));
    assert_eq!(at(&tokens, &early, NOW), Err(Invalid::NotYetValid));
    assert_eq!(known(&tokens, &early, NOW + 2), Some(Known::Refused(Invalid::NotYetValid)));
    assert_eq!(at(&tokens, &early, NOW + 3), Ok(()));
}

#[test]
fn bad_tokens_do_not_drive_out_good_ones() {
    let (_world, tokens) = world();
    let good: Vec<_> = (0..50).map(|n| ED.token(None, &claims(json!({ "n": n })))).collect();
    for token in &good {
        assert_eq!(at(&tokens, token, NOW), Ok(()));
    }
    for n in 0..20_000 {
        assert_eq!(at(&tokens, &format!("{}.{n}", good[0]), NOW), Err(Invalid::Malformed));
    }
    for token in &good {
        assert!(matches!(known(&tokens, token, NOW), Some(Known::Good(_))));
    }
}
