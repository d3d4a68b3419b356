//! How long one try is waited for: until another takes its place, if one may.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use pin_project_lite::pin_project;

use super::forward::{Asked, Try};
use super::retry::Failure;
use crate::error::{Error, Reason, Result, Retry};
use crate::http::deadline::Deadline;

pin_project! {
    /// A try; what [`unless_slow`] returns.
    pub(super) struct UnlessSlow<'a, 'b, 'c, F> {
        #[pin]
        work: F,
        asked: &'a Asked<'a, 'b, 'c>,
        this: &'a Try,
        // None: it may take all the time that is left.
        patience: Option<Deadline>,
    }
}

/// Waits for a try. One of which no answer has begun within `limit`, the route's `try_timeout`, fails if
/// the request may be sent again for it; while its body is waited for, that time does not begin.
pub(super) fn unless_slow<'a, 'b, 'c, F>(
    work: F,
    limit: Duration,
    asked: &'a Asked<'a, 'b, 'c>,
    this: &'a Try,
) -> UnlessSlow<'a, 'b, 'c, F> {
    UnlessSlow { work, asked, this, patience: Some(Deadline::new(limit)) }
}

impl<T, F: Future<Output = Result<T>>> Future for UnlessSlow<'_, '_, '_, F> {
    type Output = Result<T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Poll::Ready(done) = this.work.poll(cx) {
            return Poll::Ready(done);
        }
        let Some(patience) = this.patience else { return Poll::Pending };
        if this.this.answered.get() {
            return Poll::Pending;
        }
        if this.asked.body.is_awaited() {
            patience.reset();
            return Poll::Pending;
        }
        ready!(patience.poll(cx));
        match this.asked.tries.again(Failure::TOO_SLOW, false, this.asked.body) {
            Ok(pause) => {
                this.this.granted.set(Some(pause));
                let why = "no answer began within the route's try_timeout";
                Poll::Ready(Err(Error::new(Reason::UpstreamTimeout, why).retry(Retry::Idempotent)))
            }
            Err(_) => {
                // The last try has what time is left.
                *this.patience = None;
                Poll::Pending
            }
        }
    }
}
