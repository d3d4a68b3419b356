use super::*;

#[test]
fn whose_tokens_are_believed() {
    let with = |issuer: &str| format!("jwt:\n  issuers:\n    - {{ {issuer} }}\n");
    let model = parse(&with("issuer: a, jwks: /k"), "t").unwrap();
    assert_eq!(model.jwt.unwrap().leeway.to_string(), "1m");
    fault("jwt: {}", "1:6: jwt: `issuers` is missing");
    fault("jwt: { issuers: [] }", "1:17: jwt.issuers: an empty list believes no token");
    fault(&with("issuer: a"), "3:7: jwt.issuers[0]: `jwks` is missing");
    fault(&with("issuer: '', jwks: /k"), "3:17: jwt.issuers[0].issuer: nothing stands here");
    fault(&with("issuer: 'a ', jwks: /k"), "3:17: jwt.issuers[0].issuer: `a ` begins or ends with a blank");
    fault(&with("issuer: a, jwks: ''"), "3:26: jwt.issuers[0].jwks: expected a file's path");
    fault(
        &with("issuer: a, jwks: https://a/jwks.json"),
        "3:26: jwt.issuers[0].jwks: keys are read from a file and not fetched",
    );
    fault(&with("issuer: a, jwks: k, audiences: []"), "3:40: jwt.issuers[0].audiences: an empty list is for");
    fault(
        &with("issuer: a, jwks: k, audiences: [x, x]"),
        "3:44: jwt.issuers[0].audiences[1]: `x` is in the list already",
    );
    fault(&with("issuer: a, jwks: k, audiences: ['']"), "3:41: jwt.issuers[0].audiences[0]: nothing stands");
    fault(
        &with("issuer: a, jwks: k, audience: x"),
        "3:29: jwt.issuers[0].audience: `audience` is no key here",
    );
    fault(
        &format!("{}    - {{ issuer: a, jwks: l }}\n", with("issuer: a, jwks: k")),
        "4:17: jwt.issuers[1].issuer: `a` is here twice, the first is on line 3",
    );
    let with = |more: &str| format!("jwt: {{ {more}, issuers: [ {{ issuer: a, jwks: k }} ] }}");
    parse(&with("leeway: 0s, max_lifetime: 10m"), "t").unwrap();
    fault(&with("leeway: 11m"), "1:16: jwt.leeway: expected at most 10m");
    fault(&with("leeway: 1500ms"), "1:16: jwt.leeway: expected whole seconds");
    fault(&with("max_lifetime: 0s"), "1:22: jwt.max_lifetime: nothing is done in no time");
}
