//! Whose tokens are believed: what can be told without reading the keys.

use std::collections::HashMap;
use std::time::Duration;

use super::{Checker, Place};
use crate::config::model::{Issuer, Model};

/// A leeway beyond this is no clock's error, and lets tokens live on.
const MOST_LEEWAY: Duration = Duration::from_secs(600);

impl Checker<'_, '_> {
    pub(super) fn jwt(&mut self, model: &Model) {
        let Some(jwt) = &model.jwt else { return };
        let place = self.root.key("jwt");
        if jwt.leeway.0 > MOST_LEEWAY {
            let message =
                "expected at most 10m: a leeway is for clocks that differ, and tokens live on for it";
            self.fault(&place.key("leeway"), message);
        } else if jwt.leeway.0.subsec_nanos() > 0 {
            self.fault(&place.key("leeway"), "expected whole seconds, as tokens count them");
        }
        if let Some(time) = jwt.max_lifetime {
            self.not_zero(&place.key("max_lifetime"), time);
        }
        let place = place.key("issuers");
        if place.is_empty_list() {
            self.fault(&place, "an empty list believes no token; leave `jwt` out where none is looked at");
        }
        let mut seen: HashMap<&str, usize> = HashMap::new();
        for (issuer, place) in jwt.issuers.iter().zip(place.items()) {
            let name = place.key("issuer");
            if let Some(line) = seen.insert(&issuer.issuer, name.at.line) {
                let message = format!(
                    "`{}` is here twice, the first is on line {line}; put all its keys into one file",
                    issuer.issuer
                );
                self.fault(&name, message);
            }
            self.issuer(issuer, &place);
        }
    }

    fn issuer(&mut self, issuer: &Issuer, place: &Place<'_>) {
        self.claim(&issuer.issuer, &place.key("issuer"));
        if let Some(audiences) = &issuer.audiences {
            let place = place.key("audiences");
            if audiences.is_empty() {
                self.fault(&place, "an empty list is for nobody; leave it out for any audience");
            }
            for (i, (audience, place)) in audiences.iter().zip(place.items()).enumerate() {
                self.claim(audience, &place);
                if audiences[..i].contains(audience) {
                    self.fault(&place, format!("`{audience}` is in the list already"));
                }
            }
        }
        let (place, file) = (place.key("jwks"), &issuer.jwks);
        if file.as_os_str().is_empty() {
            self.fault(&place, "expected a file's path");
        } else if file.to_str().is_some_and(|text| text.contains("://")) {
            let message =
                "keys are read from a file and not fetched; expected the path of one with the JWK set";
            self.fault(&place, message);
        }
    }

    /// What a claim must be is compared to the letter, so that a blank at its end would refuse everything.
    fn claim(&mut self, text: &str, place: &Place<'_>) {
        if text.is_empty() {
            self.fault(place, "nothing stands here; expected what the tokens say");
        } else if text.trim() != text || text.contains(char::is_control) {
            self.fault(place, format!("`{text}` begins or ends with a blank, or has a control character"));
        }
    }
}
