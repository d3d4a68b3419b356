//! What a verified token says.

use std::fmt;
use std::mem;

use super::Invalid;
use super::json::{Object, Value};

/// The last second of the year 9999. What is beyond is no time, and a sum with it might overflow.
const LAST_SECOND: u64 = 253_402_300_799;

/// The claims of a token whose signature, issuer, audience and time were good when it was given out.
///
/// `sub`, and whatever else an issuer gives out, means one thing within that issuer alone: where several
/// are believed, `iss` belongs to any key that is made of it.
#[derive(Clone, PartialEq)]
pub struct Claims {
    object: Object,
    /// The token is good from this second on, and no more from that one; since 1970, the leeway included.
    from: u64,
    until: u64,
}

/// What the times of a token are held against.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Times {
    /// Seconds by which clocks may differ.
    pub(super) leeway: u64,
    /// The longest life, in seconds.
    pub(super) max_lifetime: Option<u64>,
}

impl Claims {
    /// The claims of a payload, if its times are times and its life is no longer than it may be.
    pub(super) fn new(object: Object, times: Times) -> Result<Self, Invalid> {
        // Fractions of a second are rounded to the token's disadvantage.
        let expires = seconds(&object, "exp", f64::floor)?.ok_or(Invalid::NoExpiry)?;
        let issued = seconds(&object, "iat", f64::ceil)?;
        let not_before = seconds(&object, "nbf", f64::ceil)?;
        if let Some(longest) = times.max_lifetime
            && issued.is_none_or(|issued| expires.saturating_sub(issued) > longest)
        {
            return Err(Invalid::Lifetime);
        }
        let from = issued.max(not_before).unwrap_or(0).saturating_sub(times.leeway);
        Ok(Self { object, from, until: expires.saturating_add(times.leeway) })
    }

    /// A claim: text as it is, numbers and truth values as JSON text. Dots lead into objects
    /// (`realm.tenant`); a claim that has dots in its own name is found too, but nothing where both are
    /// there. None for lists, and for whole numbers so large that a reader may take one for another.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.object.find(name)?.text()
    }

    /// Whether a claim fits, or is a list of which a member does. `scope` is a list too, separated by blanks
    /// (RFC 8693 section 4.2).
    pub fn any(&self, name: &str, fits: &dyn Fn(&str) -> bool) -> bool {
        match self.object.find(name) {
            Some(Value::List(list)) => list.iter().filter_map(Value::text).any(fits),
            Some(Value::Text(scopes)) if name == "scope" => {
                scopes.split(' ').filter(|scope| !scope.is_empty()).any(fits)
            }
            Some(claim) => claim.text().is_some_and(fits),
            None => false,
        }
    }

    /// Whether the token is good at `now`, in seconds since 1970.
    pub(super) fn in_time(&self, now: u64) -> Result<(), Invalid> {
        match now {
            _ if now >= self.until => Err(Invalid::Expired),
            _ if now < self.from => Err(Invalid::NotYetValid),
            _ => Ok(()),
        }
    }

    /// The second in which the token begins to be good.
    pub(super) fn from(&self) -> u64 {
        self.from
    }

    /// The bytes that these claims take.
    pub(super) fn bytes(&self) -> usize {
        mem::size_of::<Self>() + self.object.bytes()
    }
}

impl fmt::Debug for Claims {
    /// Without the claims themselves: they are about people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claims").field("from", &self.from).field("until", &self.until).finish_non_exhaustive()
    }
}

/// A claim that is a time, in seconds since 1970 (RFC 7519 section 2: a number, possibly a fraction).
fn seconds(object: &Object, name: &str, round: fn(f64) -> f64) -> Result<Option<u64>, Invalid> {
    let Some(value) = object.own(name) else { return Ok(None) };
    let Value::Number(text) = value else { return Err(Invalid::Time) };
    let part = || text.parse().ok().filter(|time| (0.0..=LAST_SECOND as f64).contains(time)).map(round);
    let whole = text.parse().ok().or_else(|| part().map(|time| time as u64));
    whole.filter(|time| *time <= LAST_SECOND).map(Some).ok_or(Invalid::Time)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(text: &str) -> Claims {
        let text = format!("{{\"exp\":1000,{text}}}");
        let times = Times { leeway: 0, max_lifetime: None };
        Claims::new(Object::read(text.as_bytes()).unwrap(), times).unwrap()
    }

    fn has(claims: &Claims, name: &str, value: &str) -> bool {
        claims.any(name, &|member| member == value)
    }

    #[test]
    fn claims_are_found_by_name() {
        let claims = claims(
            r#""sub":"a b","n":-7,"f":1.5,"big":18446744073709551615,"yes":true,"no":false,"null":null,
               "realm":{"tenant":"t1","deep":{"er":2}},"https://id.example.com/plan":"gold","list":["x"],"obj":{}"#,
        );
        for (name, value) in [
            ("sub", "a b"),
            ("n", "-7"),
            ("f", "1.5"),
            ("big", "18446744073709551615"),
            ("exp", "1000"),
            ("yes", "true"),
            ("no", "false"),
            ("realm.tenant", "t1"),
            ("realm.deep.er", "2"),
            ("https://id.example.com/plan", "gold"),
        ] {
            assert_eq!(claims.get(name), Some(value), "{name}");
            assert!(has(&claims, name, value), "{name}");
            assert!(!has(&claims, name, "other"), "{name}");
        }
        for name in
            ["", ".", "none", "null", "list", "obj", "realm", "realm.", ".realm", "realm.none", "sub.x"]
        {
            assert_eq!(claims.get(name), None, "{name}");
            assert!(!has(&claims, name, ""), "{name}");
        }
    }

    #[test]
    fn a_name_with_two_readings_is_nothing() {
        let claims = claims(r#""a.b":"own","a":{"b":"inside"},"c.d":{"e":"1"},"c":{"d":{"x":"2"}}"#);
        assert_eq!(claims.get("a.b"), None);
        assert!(!has(&claims, "a.b", "own") && !has(&claims, "a.b", "inside"));
        // Only one of these readings leads anywhere.
        assert_eq!((claims.get("c.d.e"), claims.get("c.d.x")), (Some("1"), Some("2")));
    }

    #[test]
    fn lists_and_scopes_have_their_members() {
        let claims = claims(
            r#""roles":["admin",7,true,null,["x"]],"scope":"read write","scp":"read write","in":{"scope":"a b"}"#,
        );
        for member in ["admin", "7", "true"] {
            assert!(has(&claims, "roles", member), "{member}");
        }
        for other in ["x", "null", "", "adm", "admin 7"] {
            assert!(!has(&claims, "roles", other), "{other}");
        }
        assert!(has(&claims, "scope", "read") && has(&claims, "scope", "write"));
        assert!(!has(&claims, "scope", "rea") && !has(&claims, "scope", "read write"));
        assert!(has(&claims, "scp", "read write") && !has(&claims, "scp", "read"));
        assert!(!has(&claims, "in.scope", "a"));
        assert_eq!(claims.get("scope"), Some("read write"));
    }

    #[test]
    fn numbers_that_others_may_round_are_nobodys() {
        let claims = claims(r#""a":123456789012345678901,"b":1e300,"c":100000000000000000000.5,"d":1e2"#);
        for name in ["a", "b", "c"] {
            assert_eq!(claims.get(name), None, "{name}");
        }
        assert_eq!(claims.get("d"), Some("100.0"));
    }

    #[test]
    fn nothing_of_the_claims_is_shown() {
        assert!(!format!("{:?}", claims(r#""sub":"jane@example.com""#)).contains("jane"));
    }
}
