//! Limit: the stage of both directions that asks a request for tokens.

use std::sync::Arc;
use std::time::SystemTime;

use http::header::AUTHORIZATION;
use smallvec::SmallVec;

use super::mesh::Mesh;
use crate::auth::token::Claims;
use crate::error::Result;
use crate::http::RequestHead;
use crate::limit::{Again, Decision, Facts, Limits, Said};

/// Tokens of one request that are looked at.
const MOST_TOKENS: usize = 4;

/// Takes tokens of each limit that holds for the request; says what it takes to send it again.
pub(super) async fn limit(
    mesh: &Mesh,
    limits: &Limits,
    head: &RequestHead,
    port: Option<u16>,
    caller: &str,
) -> Result<Again> {
    if limits.is_empty() {
        return Ok(Again::default());
    }
    let claims = if limits.has_claims() { claims(mesh, head) } else { SmallVec::new() };
    let said = Request { head, claims };
    let (host, path, method) = (head.host(), head.path.path(), head.method.as_str());
    let decision = limits.admit(&Facts { host, port, path, method, caller, said: &said });
    match decision {
        Decision::Admitted(again) => Ok(again),
        Decision::Refused(refusal) => Err(refusal.into()),
        Decision::Wait(wait) => Box::pin(wait.resolve()).await,
    }
}

/// The claims of the tokens that a request brings, as far as they are good. Whether it needs one is not a
/// question of limits.
fn claims(mesh: &Mesh, head: &RequestHead) -> SmallVec<[Arc<Claims>; 1]> {
    let mut found = SmallVec::new();
    let Ok(now) = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH) else { return found };
    head.fields.each_of(AUTHORIZATION.as_str(), |token| {
        if found.len() < MOST_TOKENS {
            let checked = mesh.tokens.verify(Some(token), now.as_secs());
            let checked = checked
                .inspect_err(|invalid| tracing::debug!(reason = invalid.name(), "a token is not good"));
            found.extend(checked);
        }
    });
    found
}

/// A request as limits see it.
///
/// Where a field is what counts, one that is there twice is not there: who adds a second could else choose
/// which of them is counted, and which the application reads. Where it is a condition, any value may fit.
struct Request<'a> {
    head: &'a RequestHead,
    claims: SmallVec<[Arc<Claims>; 1]>,
}

impl Said for Request<'_> {
    fn field(&self, name: &str) -> Option<&[u8]> {
        self.head.fields.only(name)
    }

    fn any_field(&self, name: &str, fits: &dyn Fn(&[u8]) -> bool) -> bool {
        let mut any = false;
        self.head.fields.each_of(name, |value| any |= fits(value));
        any
    }

    fn claim(&self, name: &str) -> Option<&str> {
        match &*self.claims {
            [claims] => claims.get(name),
            _ => None,
        }
    }

    fn any_claim(&self, name: &str, fits: &dyn Fn(&[u8]) -> bool) -> bool {
        self.claims.iter().any(|claims| claims.any(name, &|value| fits(value.as_bytes())))
    }
}
