//! Tokens that are made to be believed, or to hurt, each with the reason why they are not.

use proptest::prelude::*;

use super::*;

/// Two issuers with keys of several kinds. The first has two keys, the second one, without a name.
struct Attacked {
    tokens: Arc<Tokens>,
}

const OTHER: &str = "https://other.example.com";

impl Attacked {
    fn new() -> Self {
        let keys = [RSA.jwk(json!({ "kid": "rsa" })), EC.jwk(json!({ "kid": "ec" }))];
        let world = World::new(&[
            (ISSUER, Some(&["orders"]), &keys),
            (OTHER, Some(&["orders"]), std::slice::from_ref(&ED.jwk)),
        ]);
        Self { tokens: world.tokens() }
    }

    #[track_caller]
    fn refuses(&self, why: Invalid, what: &str, token: &str) {
        // The second time from what is remembered.
        for time in ["first", "second"] {
            assert_eq!(verify(&self.tokens, token), Err(why), "{what}, {time} time");
        }
    }
}

const RS256: &str = r#"{"alg":"RS256","kid":"rsa"}"#;
const ES256: &str = r#"{"alg":"ES256","kid":"ec"}"#;

fn payload(more: Json) -> String {
    claims(more).to_string()
}

#[test]
fn algorithms() {
    let attacked = Attacked::new();
    let good = RSA.sign(RS256, payload(json!({})));
    assert!(verify(&attacked.tokens, &good).is_ok());
    let (signed, _) = good.rsplit_once('.').unwrap();
    let body = signed.split_once('.').unwrap().1;
    for none in ["none", "None", "NONE", "nOnE", ""] {
        let header = base64(format!(r#"{{"alg":"{none}","kid":"rsa"}}"#));
        attacked.refuses(Invalid::Algorithm, none, &format!("{header}.{body}."));
        attacked.refuses(Invalid::Algorithm, none, &format!("{header}.{body}.AAAA"));
    }
    // The public key as the secret, in the forms that a verifier may have it in.
    let n = URL_SAFE_NO_PAD.decode(RSA.jwk["n"].as_str().unwrap()).unwrap();
    for secret in [&n[..], RSA.jwk["n"].as_str().unwrap().as_bytes(), RSA.jwk.to_string().as_bytes(), b""] {
        for (name, algorithm) in
            [("HS256", Algorithm::HS256), ("HS384", Algorithm::HS384), ("HS512", Algorithm::HS512)]
        {
            let signer = Signer { algorithm, key: EncodingKey::from_secret(secret), jwk: json!({}) };
            let token = signer.sign(&format!(r#"{{"alg":"{name}","kid":"rsa"}}"#), payload(json!({})));
            attacked.refuses(Invalid::Algorithm, name, &token);
        }
    }
    // Signed well by the key that it names, by an algorithm that is not the key's.
    for (name, algorithm) in
        [("RS384", Algorithm::RS384), ("RS512", Algorithm::RS512), ("PS256", Algorithm::PS256)]
    {
        let signer = Signer { algorithm, key: RSA.key.clone(), jwk: json!({}) };
        let token = signer.sign(&format!(r#"{{"alg":"{name}","kid":"rsa"}}"#), payload(json!({})));
        attacked.refuses(Invalid::Algorithm, name, &token);
    }
    attacked.refuses(
        Invalid::Algorithm,
        "case",
        &RSA.sign(r#"{"alg":"rs256","kid":"rsa"}"#, payload(json!({}))),
    );
    attacked.refuses(
        Invalid::Algorithm,
        "blank",
        &RSA.sign(r#"{"alg":"RS256 ","kid":"rsa"}"#, payload(json!({}))),
    );
    attacked.refuses(
        Invalid::Algorithm,
        "of the other key",
        &RSA.sign(r#"{"alg":"RS256","kid":"ec"}"#, payload(json!({}))),
    );
    attacked.refuses(
        Invalid::Algorithm,
        "ES512",
        &EC.sign(r#"{"alg":"ES512","kid":"ec"}"#, payload(json!({}))),
    );
    for header in [
        r#"{"kid":"rsa"}"#,
        r#"{"alg":null,"kid":"rsa"}"#,
        r#"{"alg":["RS256"],"kid":"rsa"}"#,
        r#"{"alg":256}"#,
    ] {
        attacked.refuses(Invalid::Malformed, header, &RSA.sign(header, payload(json!({}))));
    }
}

#[test]
fn keys() {
    let attacked = Attacked::new();
    let names = [
        "unknown",
        "",
        "RSA",
        "rsa ",
        "../../../../dev/null",
        "/etc/passwd",
        "file:///etc/passwd",
        "rsa' OR '1'='1",
        "rsa\\u0000",
        "https://evil.example.com/jwks.json",
        "0",
    ];
    for name in names {
        let token = RSA.sign(&format!(r#"{{"alg":"RS256","kid":"{name}"}}"#), payload(json!({})));
        attacked.refuses(Invalid::Key, name, &token);
    }
    for kid in ["1", "null", "true", r#"["rsa"]"#, r#"{"rsa":1}"#] {
        let token = RSA.sign(&format!(r#"{{"alg":"RS256","kid":{kid}}}"#), payload(json!({})));
        attacked.refuses(Invalid::Malformed, kid, &token);
    }
    attacked.refuses(Invalid::Key, "no kid, two keys", &RSA.sign(r#"{"alg":"RS256"}"#, payload(json!({}))));
    // The only key of the other issuer has no name: a token that names one means another.
    let others = payload(json!({ "iss": OTHER }));
    attacked.refuses(
        Invalid::Key,
        "a name for a nameless key",
        &ED.sign(r#"{"alg":"EdDSA","kid":"ed"}"#, &others),
    );
    assert!(verify(&attacked.tokens, &ED.sign(r#"{"alg":"EdDSA"}"#, &others)).is_ok());
    // Signed by one issuer in the name of the other.
    attacked.refuses(Invalid::Key, "the other's name", &RSA.sign(RS256, &others));
    attacked.refuses(Invalid::Algorithm, "without a kid", &RSA.sign(r#"{"alg":"RS256"}"#, &others));
    attacked.refuses(Invalid::Key, "ours", &ED.sign(r#"{"alg":"EdDSA"}"#, payload(json!({}))));

    // Whatever key a header brings along, or says where to find, is not looked at.
    let own = OTHER_RSA.jwk(json!({ "kid": "rsa", "alg": "RS256", "use": "sig" }));
    for more in [
        json!({ "jwk": own }),
        json!({ "jku": "https://evil.example.com/jwks.json" }),
        json!({ "x5u": "https://evil.example.com/x.pem" }),
        json!({ "x5c": ["MIIB"] }),
    ] {
        let mut header = more.clone();
        header
            .as_object_mut()
            .unwrap()
            .extend([("alg".into(), json!("RS256")), ("kid".into(), json!("rsa"))]);
        attacked.refuses(
            Invalid::Signature,
            "its own key",
            &OTHER_RSA.sign(&header.to_string(), payload(json!({}))),
        );
        assert!(verify(&attacked.tokens, &RSA.sign(&header.to_string(), payload(json!({})))).is_ok());
    }
}

#[test]
fn headers() {
    let attacked = Attacked::new();
    for crit in [r#"["exp"]"#, r#"["b64"]"#, "[]", "null", "7"] {
        let token = RSA
            .sign(&format!(r#"{{"alg":"RS256","kid":"rsa","b64":true,"crit":{crit}}}"#), payload(json!({})));
        attacked.refuses(Invalid::Critical, crit, &token);
    }
    for header in [
        r#"{"alg":"RS256","alg":"RS256","kid":"rsa"}"#,
        r#"{"alg":"none","alg":"RS256","kid":"rsa"}"#,
        r#"{"alg":"RS256","kid":"ec","kid":"rsa"}"#,
        r#"{"alg":"RS256","\u0061lg":"none","kid":"rsa"}"#,
        r#"{"alg":"RS256","kid":"rsa","x":{"y":1,"y":2}}"#,
        r#"{"alg":"RS256","kid":"rsa"} "x""#,
        r#"{"alg":"RS256","kid":"rsa",}"#,
        r#"{'alg':'RS256','kid':'rsa'}"#,
        "\u{feff}{\"alg\":\"RS256\",\"kid\":\"rsa\"}",
        r#"[{"alg":"RS256","kid":"rsa"}]"#,
        r#""RS256""#,
        "null",
        "{",
    ] {
        attacked.refuses(Invalid::Malformed, header, &RSA.sign(header, payload(json!({}))));
    }
}

#[test]
fn shapes() {
    let attacked = Attacked::new();
    let good = RSA.sign(RS256, payload(json!({})));
    let parts: Vec<_> = good.split('.').collect();
    let (header, body, signature) = (parts[0], parts[1], parts[2]);
    for bad in [
        "x".to_owned(),
        ".".into(),
        "..".into(),
        "...".into(),
        format!("{header}.{body}"),
        format!(".{body}.{signature}"),
        format!("{header}..{signature}"),
        format!("{header}.{body}.{signature}.{signature}"),
        format!("{header}.{body}.{signature}.x.y"),
        format!("{good}."),
        format!(".{good}"),
        format!("{header}=.{body}.{signature}"),
        format!("{header}.{body}==.{signature}"),
        format!("{}.{body}.{signature}", &header[..header.len() - 1]),
        format!("{header}.{}\u{e9}.{signature}", &body[..body.len() - 2]),
        format!("{header}. {body}.{signature}"),
        format!("{header}.{}+/.{signature}", &body[..body.len() - 2]),
    ] {
        attacked.refuses(Invalid::Malformed, &bad, &bad);
    }
    let last = signature.chars().last().unwrap();
    // 256 bytes are 342 digits: the last has bits beyond them, which must be zero.
    let next = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_".split_once(last).unwrap().1;
    let sloppy = format!("{}{}", &signature[..signature.len() - 1], next.chars().next().unwrap());
    for bad in [
        "",
        "AAAA",
        &signature[..signature.len() - 4],
        &signature[4..],
        &sloppy,
        &format!("{signature}="),
        &format!("{signature}AAAA"),
        &base64([0; 256]),
        &base64([255; 256]),
    ] {
        attacked.refuses(Invalid::Signature, bad, &format!("{header}.{body}.{bad}"));
    }
    let (_, other) = RSA
        .sign(RS256, payload(json!({ "sub": "joe" })))
        .rsplit_once('.')
        .map(|(a, b)| (a.len(), b.to_owned()))
        .unwrap();
    attacked.refuses(Invalid::Signature, "another token's", &format!("{header}.{body}.{other}"));
    let swapped = base64(payload(json!({ "sub": "root" })));
    attacked.refuses(Invalid::Signature, "another payload", &format!("{header}.{swapped}.{signature}"));
    let blank = base64(format!("{} ", payload(json!({}))));
    attacked.refuses(Invalid::Signature, "a blank more", &format!("{header}.{blank}.{signature}"));
    attacked.refuses(Invalid::Signature, "another key", &OTHER_RSA.sign(RS256, payload(json!({}))));

    // ECDSA: zeros (what one verifier took for a signature of anything), and DER instead of the two numbers.
    let ec = EC.sign(ES256, payload(json!({})));
    assert!(verify(&attacked.tokens, &ec).is_ok());
    let (signed, _) = ec.rsplit_once('.').unwrap();
    let der = [&[0x30, 0x06, 0x02, 0x01, 0x01, 0x02, 0x01, 0x01][..], &[0; 56]].concat();
    for bad in [&[0; 64][..], &der[..8], &der, &[1; 63], &[1; 65]] {
        attacked.refuses(Invalid::Signature, "no numbers", &format!("{signed}.{}", base64(bad)));
    }
}

#[test]
fn sizes() {
    let attacked = Attacked::new();
    let with = |filling: usize| RSA.sign(RS256, payload(json!({ "x": "y".repeat(filling) })));
    let most = (11_000..).map(with).take_while(|token| token.len() <= LONGEST).last().unwrap();
    assert!(most.len() > LONGEST - 4, "{}", most.len());
    assert!(verify(&attacked.tokens, &most).is_ok());
    attacked.refuses(Invalid::TooLarge, "a little too long", &format!("{most}AAAA"));
    attacked.refuses(Invalid::TooLarge, "much too long", &"a.".repeat(1 << 20));
    // What is as long as it may be, and as much to read as it may be.
    for payload in
        ["[".repeat(11_000), "{\"a\":".repeat(2_000), format!("{}{}", "[".repeat(200), "]".repeat(200))]
    {
        attacked.refuses(Invalid::Malformed, "deep", &RSA.sign(RS256, payload));
    }
    let deep = |depth: usize| format!("{{\"iss\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
    attacked.refuses(Invalid::Issuer, "as deep as it may be", &RSA.sign(RS256, deep(100)));
    attacked.refuses(Invalid::Malformed, "too deep", &RSA.sign(RS256, deep(200)));
    let many: Vec<_> = (0..900).map(|n| format!("\"{n}\":{{}}")).collect();
    attacked.refuses(Invalid::Issuer, "many", &RSA.sign(RS256, format!("{{{}}}", many.join(","))));
}

#[test]
fn payloads() {
    let attacked = Attacked::new();
    let good = payload(json!({}));
    let inside = &good[1..good.len() - 1];
    for bad in [
        format!("{{{inside},\"sub\":\"root\"}}"),
        format!("{{\"iss\":\"{OTHER}\",{inside}}}"),
        format!("{{{inside},\"exp\":9999999999}}"),
        format!("{{{inside},\"\\u0073ub\":\"root\"}}"),
        format!("{{{inside},\"realm\":{{\"tenant\":1,\"tenant\":2}}}}"),
        format!("{{{inside},\"list\":[{{\"a\":1,\"a\":1}}]}}"),
        format!("{good}{good}"),
        format!("{good}\0"),
        format!("[{good}]"),
        format!("{{{inside},\"x\":NaN}}"),
        format!("{{{inside},\"x\":01}}"),
        format!("{{{inside},\"x\":1e999}}"),
        format!("{{{inside},\"x\":\"\\ud800\"}}"),
        format!("{{{inside},\"x\":\"\n\"}}"),
        "7".into(),
        String::new(),
        base64(&good),
    ] {
        attacked.refuses(Invalid::Malformed, &bad, &RSA.sign(RS256, &bad));
    }
    let mut bytes = good.clone().into_bytes();
    bytes[10] = 0xff;
    attacked.refuses(Invalid::Malformed, "no UTF-8", &RSA.sign(RS256, bytes));

    let iss = ["", "https://id.example.com/", "HTTPS://ID.EXAMPLE.COM", "https://id.example.com ", "evil"];
    for iss in iss.map(|iss| json!(iss)).into_iter().chain([json!(1), json!([ISSUER]), json!({}), Json::Null])
    {
        attacked.refuses(Invalid::Issuer, &iss.to_string(), &RSA.sign(RS256, payload(json!({ "iss": iss }))));
    }
    for aud in [json!("payments"), json!(["payments"]), Json::Null] {
        attacked.refuses(
            Invalid::Audience,
            &aud.to_string(),
            &RSA.sign(RS256, payload(json!({ "aud": aud }))),
        );
    }
}

#[test]
fn not_even_utf_8() {
    let attacked = Attacked::new();
    for field in [&b"Bearer \xff\xfe.\xff.\xff"[..], b"Bearer a.b.\xff", b"Bearer \0.\0.\0", b"\xff\xff \xff"]
    {
        let why = attacked.tokens.verify(Some(field), NOW).unwrap_err();
        assert!(matches!(why, Invalid::Malformed | Invalid::Scheme), "{why}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn no_change_of_a_token_is_believed(at in 0usize..2_000, byte: u8, cut in prop::option::of(0usize..2_000)) {
        static PLACE: LazyLock<(Arc<Tokens>, String)> = LazyLock::new(|| {
            (World::of_one(&ED).tokens(), ED.token(None, &claims(json!({ "tenant": "t1" }))))
        });
        let (tokens, good) = &*PLACE;
        let mut changed = good.clone().into_bytes();
        let at = at % changed.len();
        changed[at] = byte;
        if let Some(cut) = cut {
            changed.truncate(cut % changed.len());
        }
        let field = [b"Bearer ", &changed[..]].concat();
        // Blanks around a token are none of it.
        let same = changed.trim_ascii() == good.as_bytes();
        prop_assert_eq!(tokens.verify(Some(&field), NOW).is_ok(), same);
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), json in "[{}\\[\\]\":,.0-9a-z\\\\ -]{0,80}") {
        let tokens = World::of_one(&ED).tokens();
        let _ = tokens.verify(Some(&bytes), NOW);
        let _ = tokens.verify(Some(&[b"Bearer ", &bytes[..]].concat()), NOW);
        let _ = verify(&tokens, &ED.sign(&json, &json));
        let _ = verify(&tokens, &ED.sign(r#"{"alg":"EdDSA"}"#, format!("{{\"iss\":\"{ISSUER}\",{json}}}")));
        let _ = Keys::read(json.as_bytes());
        let _ = Keys::read(&bytes);
    }
}
