//! Which requests a limit holds for, what they cost, and which keys have rates of their own: by one sidecar on
//! loopback. The rates are so slow that nothing accrues while a test runs.

use std::fs;
use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use hyper::header::{HeaderName, HeaderValue};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};

use crate::support::client::{Answer, request, send};
use crate::support::loopback::{HOST, Loopback, upstream};
use crate::support::raw::{Raw, listen};

/// An application that has an answer for everyone.
pub(crate) async fn app(answer: &'static str) -> SocketAddr {
    listen(move |mut raw: Raw| async move {
        while raw.next_or_gone().await.is_some() {
            raw.offer(answer).await;
        }
    })
    .await
}

pub(crate) const GOOD: &str = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ngood";

/// A sidecar with these limits before an application that is good.
pub(crate) async fn sidecar(limits: &str) -> Loopback {
    Loopback::start("caller", &(upstream(app(GOOD).await, "") + limits)).await
}

/// A request with these fields.
pub(crate) async fn ask(sidecar: &Loopback, path: &str, fields: &[(&'static str, &str)]) -> Answer {
    let mut request = request("GET", HOST, path, "");
    for (name, value) in fields {
        let value = HeaderValue::from_str(value).expect("a value");
        request.headers_mut().append(HeaderName::from_static(name), value);
    }
    send(sidecar.outbound(), request).await.expect("an answer")
}

/// How many of so many requests pass; the others are refused by a limit.
async fn pass(sidecar: &Loopback, requests: usize, path: &str, fields: &[(&'static str, &str)]) -> usize {
    let mut passed = 0;
    for _ in 0..requests {
        let answer = ask(sidecar, path, fields).await;
        match answer.status.as_u16() {
            200 => passed += 1,
            _ => assert_eq!(answer.refused(), Some("limit.exhausted"), "{answer:?}"),
        }
    }
    passed
}

#[tokio::test]
async fn a_limit_holds_for_the_fields_that_it_names() {
    let sidecar = sidecar(
        "limits:
  - { name: gold, header: { x-plan: gold, x-trace: '*' }, rate: 1/d, burst: 2, scope: pod }
  - { name: some, header: { X-Plan: [silver, 'br*'] }, rate: 1/d, burst: 3, scope: pod }
",
    )
    .await;
    assert_eq!(pass(&sidecar, 5, "/", &[("x-plan", "gold"), ("x-trace", "1")]).await, 2);
    assert_eq!(pass(&sidecar, 5, "/", &[("x-plan", "gold")]).await, 5, "no trace");
    assert_eq!(pass(&sidecar, 5, "/", &[("x-plan", "golden"), ("x-trace", "1")]).await, 5);
    assert_eq!(pass(&sidecar, 2, "/", &[("x-plan", "silver")]).await, 2);
    assert_eq!(pass(&sidecar, 5, "/", &[("x-plan", "bronze")]).await, 1, "one count for all of them");
    assert_eq!(pass(&sidecar, 5, "/", &[]).await, 5);
}

#[tokio::test]
async fn keys_are_of_paths_and_fields_together_and_a_field_twice_is_none() {
    let sidecar =
        sidecar("limits: [{ name: a, key: [path, \"header:x-tenant\"], rate: 1/d, burst: 2, scope: pod }]\n")
            .await;
    for (path, tenant) in [("/a", "t"), ("/b", "t"), ("/a", "u")] {
        assert_eq!(pass(&sidecar, 4, path, &[("x-tenant", tenant)]).await, 2, "{path} {tenant}");
    }
    assert_eq!(pass(&sidecar, 4, "/a?query", &[("x-tenant", "t")]).await, 0, "the query is no part of it");
    let mut passed = 0;
    for i in 0..5 {
        let fields = [("x-tenant", &*format!("new-{i}")), ("x-tenant", "t")];
        passed += pass(&sidecar, 1, "/a", &fields).await;
    }
    assert_eq!(passed, 2, "who sends another value beside the real one has the key of who sends none");
}

#[tokio::test]
async fn keys_have_rates_of_their_own() {
    let sidecar = sidecar(
        "limits:
  - name: tenants
    key: [\"header:x-tenant\", method]
    rate: 1/d
    burst: 1
    scope: pod
    keys:
      - { is: [gold, '*'], rate: 1/d, burst: 4 }
      - { is: ['s*', GET], rate: 1/d, burst: 2 }
",
    )
    .await;
    for (tenant, burst) in [("gold", 4), ("silver", 2), ("steel", 2), ("lead", 1)] {
        assert_eq!(pass(&sidecar, 6, "/", &[("x-tenant", tenant)]).await, burst, "{tenant}");
    }
    assert_eq!(pass(&sidecar, 6, "/", &[]).await, 1);
}

#[tokio::test]
async fn a_request_costs_what_its_field_says() {
    let sidecar = sidecar(
        "limits:
  - { name: a, path: /a, rate: 1/d, burst: 10, scope: pod, cost: { header: x-cost, default: 2 } }
  - { name: b, path: /b, rate: 1/d, burst: 10, scope: pod, cost: 3 }
  - { name: c, path: /c, rate: 1/d, burst: 10, scope: pod, cost: { header: x-cost } }
",
    )
    .await;
    assert_eq!(pass(&sidecar, 2, "/a", &[("x-cost", "4")]).await, 2);
    assert_eq!(pass(&sidecar, 1, "/a", &[("x-cost", "3")]).await, 0, "two are left");
    assert_eq!(pass(&sidecar, 2, "/a", &[("x-cost", "a lot")]).await, 1);
    assert_eq!(pass(&sidecar, 9, "/b", &[]).await, 3);
    assert_eq!(
        pass(&sidecar, 2, "/c", &[("x-cost", "99999999999999999999")]).await,
        1,
        "no more than there can be"
    );
    assert_eq!(pass(&sidecar, 2, "/c", &[("x-cost", "0")]).await, 0, "and never nothing");
}

#[tokio::test]
async fn a_limit_that_observes_refuses_nobody() {
    let sidecar = sidecar("limits: [{ name: new, rate: 1/d, burst: 3, scope: pod, observe: true }]\n").await;
    assert_eq!(pass(&sidecar, 10, "/", &[]).await, 10);
    let limits = sidecar.get("/limits").await.expect("the operator's page").json();
    let [ref one] = limits["limits"].as_array().expect("a list")[..] else { panic!("{limits}") };
    assert_eq!((one["admitted"].as_u64(), one["would_refuse"].as_u64()), (Some(10), Some(7)), "{limits}");
    assert_eq!(one["refused"], 0);
    sidecar.until_metric("pannier_limit_would_refuse_total", &["limit=\"new\""], 7.0).await;
}

#[tokio::test]
async fn tries_after_the_first_count_where_that_is_wanted() {
    let bad = app("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 3\r\n\r\nbad").await;
    let yaml = |count: bool| {
        format!(
            "upstreams: {{ orders: {{ address: \"{HOST}:80\", endpoints: [\"{bad}\"], \
             retry_budget: {{ least: 1000/s }}, ejection: {{ errors: 1000000, ratio: 100% }} }} }}
routes: [{{ host: {HOST}, upstream: orders, retries: {{ most: 5, on: [503], backoff: {{ first: 1ms }} }} }}]
limits: [{{ name: tries, rate: 1/d, burst: 3, scope: pod, count_retries: {count} }}]
"
        )
    };
    let counts = Loopback::start("counts", &yaml(true)).await;
    assert_eq!(ask(&counts, "/", &[]).await.text(), "bad", "the application's own answer");
    counts.until_metric("pannier_retries_total", &["outcome=\"sent\""], 2.0).await;
    assert_eq!(ask(&counts, "/", &[]).await.refused(), Some("limit.exhausted"));
    let not = Loopback::start("not", &yaml(false)).await;
    assert_eq!(ask(&not, "/", &[]).await.text(), "bad");
    not.until_metric("pannier_retries_total", &["outcome=\"sent\""], 5.0).await;
    assert_eq!(ask(&not, "/", &[]).await.text(), "bad");
}

/// Signs tokens, and says how they are checked.
struct Issuer(EcdsaKeyPair, EncodingKey);

impl Issuer {
    fn new() -> Self {
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new());
        let document = document.expect("a key");
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, document.as_ref());
        Self(pair.expect("the same key"), EncodingKey::from_ec_der(document.as_ref()))
    }

    fn jwks(&self) -> Value {
        let point = self.0.public_key().as_ref();
        let [x, y] = [&point[1..33], &point[33..]].map(|half| BASE64_URL_SAFE_NO_PAD.encode(half));
        json!({ "keys": [{ "kty": "EC", "crv": "P-256", "alg": "ES256", "kid": "one", "x": x, "y": y }] })
    }

    fn token(&self, claims: Value) -> String {
        let mut all = claims;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
        all["iss"] = json!("https://id.test");
        all["exp"] = json!(now + 600);
        let header = Header { kid: Some("one".into()), ..Header::new(Algorithm::ES256) };
        format!("Bearer {}", encode(&header, &all, &self.1).expect("a token"))
    }
}

#[tokio::test]
async fn claims_are_of_verified_tokens_alone() {
    let (issuer, stranger) = (Issuer::new(), Issuer::new());
    let dir = tempfile::TempDir::new().expect("a directory");
    let jwks = dir.path().join("jwks.json");
    fs::write(&jwks, issuer.jwks().to_string()).expect("our own directory");
    let sidecar = sidecar(&format!(
        "jwt: {{ issuers: [{{ issuer: \"https://id.test\", jwks: {} }}] }}
limits:
  - {{ name: tenants, key: [\"claim:tenant\"], rate: 1/d, burst: 2, scope: pod }}
  - {{ name: writers, path: /w, claim: {{ scope: write }}, rate: 1/d, burst: 1, scope: pod }}
",
        jwks.display()
    ))
    .await;
    let token = |claims| issuer.token(claims);
    for tenant in ["a", "b"] {
        let token = token(json!({ "tenant": tenant }));
        assert_eq!(pass(&sidecar, 4, "/", &[("authorization", &token)]).await, 2, "{tenant}");
    }
    // Another token of the same tenant.
    let again = token(json!({ "tenant": "a", "jti": "2" }));
    assert_eq!(pass(&sidecar, 1, "/", &[("authorization", &again)]).await, 0);
    // Whoever signs for himself, or not at all, is one of those without a tenant.
    let forged = stranger.token(json!({ "tenant": "c" }));
    assert_eq!(pass(&sidecar, 1, "/", &[("authorization", &forged)]).await, 1);
    let forged = stranger.token(json!({ "tenant": "d" }));
    assert_eq!(pass(&sidecar, 1, "/", &[("authorization", &forged)]).await, 1);
    assert_eq!(pass(&sidecar, 1, "/", &[]).await, 0);

    let writer = |tenant: &str| token(json!({ "tenant": tenant, "scope": "read write" }));
    assert_eq!(pass(&sidecar, 1, "/w", &[("authorization", &writer("e"))]).await, 1);
    assert_eq!(pass(&sidecar, 1, "/w", &[("authorization", &writer("f"))]).await, 0);
    let reader = token(json!({ "tenant": "g", "scope": "read" }));
    assert_eq!(pass(&sidecar, 1, "/w", &[("authorization", &reader)]).await, 1);
}
