//! Limit: the stage of both directions that asks a request for tokens.

use std::sync::Arc;
use std::time::SystemTime;

use http::header::AUTHORIZATION;

use super::mesh::Mesh;
use crate::auth::token::Claims;
use crate::error::Result;
use crate::http::RequestHead;
use crate::limit::{Again, Decision, Facts, Limits};

/// Takes tokens of each limit that holds for the request; says what it takes to send it again.
///
/// Where a field is what counts, one that is there twice is not there: who adds a second could else choose
/// which of them is counted, and which the application reads.
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
    let claims = if limits.has_claims() { claims(mesh, head) } else { None };
    let claims = claims.as_deref();
    let decision = limits.admit(&Facts {
        host: head.host(),
        port,
        path: head.path.path(),
        method: head.method.as_str(),
        caller,
        field: &|name| head.fields.only(name),
        claim: &|name| claims?.get(name),
        has_claim: &|name, value| claims.is_some_and(|claims| claims.has(name, value)),
    });
    match decision {
        Decision::Admitted(again) => Ok(again),
        Decision::Refused(refusal) => Err(refusal.into()),
        Decision::Wait(wait) => Box::pin(wait.resolve()).await,
    }
}

/// The claims of the request's token; none where it has none that is good. Whether it needs one is not a
/// question of limits.
fn claims(mesh: &Mesh, head: &RequestHead) -> Option<Arc<Claims>> {
    let token = head.fields.only(AUTHORIZATION.as_str())?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok()?;
    let checked = mesh.tokens.verify(Some(token), now.as_secs());
    checked.inspect_err(|invalid| tracing::debug!(reason = invalid.name(), "a token is not good")).ok()
}
