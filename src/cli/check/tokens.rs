//! Whose tokens are believed, and by how many keys.

use super::table::Table;
use crate::auth::token::Tokens;
use crate::config::model::Model;

/// Whose tokens are believed.
pub(super) fn table(model: &Model, keys: &Tokens) -> Table {
    let mut table = Table::new("TOKENS", &["issuer", "for", "keys", "of", "leeway", "living"]);
    let Some(jwt) = &model.jwt else { return table };
    for issuer in &jwt.issuers {
        table.row([
            issuer.issuer.clone(),
            issuer.audiences.as_ref().map_or("anyone".into(), |audiences| audiences.join(", ")),
            keys.keys(&issuer.issuer).to_string(),
            issuer.jwks.display().to_string(),
            jwt.leeway.to_string(),
            jwt.max_lifetime.map_or("as they say".into(), |time| format!("at most {time}")),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::outcome;

    fn check(directory: &Path, text: &str) -> (String, String, u8) {
        let file = directory.join("pannier.yaml");
        std::fs::write(&file, text).unwrap();
        outcome(&file)
    }

    #[test]
    fn the_keys_of_issuers_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let jwks = dir.path().join("jwks.json");
        let text = format!(
            "jwt:
  max_lifetime: 1h
  issuers:
    - {{ issuer: a, audiences: [x, y], jwks: {jwks} }}
    - {{ issuer: b, jwks: {jwks} }}
",
            jwks = jwks.display()
        );
        let (stdout, stderr, code) = check(dir.path(), &text);
        let fault = format!(
            ":4:{}: jwt.issuers[0].jwks: {}: cannot be read: No such file",
            "    - { issuer: a, audiences: [x, y], jwks: ".len() + 1,
            jwks.display()
        );
        assert!(code == 1 && stdout.is_empty() && stderr.contains(&fault), "{stderr}");
        let point = "\"x\":\"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU\",\"y\":\"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0\"";
        let key = |curve: &str| format!(r#"{{"keys":[{{"kty":"EC","crv":"{curve}",{point}}}]}}"#);
        std::fs::write(&jwks, key("P-384")).unwrap();
        let (_, stderr, code) = check(dir.path(), &text);
        assert!(code == 1 && stderr.contains("jwks.json: key 1: `x` has 32 bytes; expected 48"), "{stderr}");
        assert!(stderr.ends_with("1 fault\n"), "{stderr}");
        std::fs::write(&jwks, key("P-256")).unwrap();
        let (stdout, stderr, code) = check(dir.path(), &text);
        assert_eq!((stderr.as_str(), code), ("", 0));
        let row = format!(" 1 {} 1m at most 1h", jwks.display());
        let squeezed = stdout.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(squeezed.contains(&format!("a x, y{row} b anyone{row} ")), "{stdout}");
    }
}
