//! A downstream connection that carries requests, in either direction: takes each through the
//! direction's stages, and answers what they refuse.

use std::future::Future;
use std::rc::Rc;

use futures_util::FutureExt;

use super::mesh::Mesh;
use super::tunnel::Tunnel;
use super::worker::Worker;
use crate::config::model::Direction;
use crate::error::{Error, Reason, Result, Retry};
use crate::http::closing::Closed;
use crate::http::h1::drain;
use crate::http::pump::taken;
use crate::http::{Announcement, Body, Bounds, Handler, Next, RequestHead, Responder, expiry};

/// One direction's stages.
pub(super) trait Stages {
    /// Which direction.
    const DIRECTION: Direction;

    /// Takes a request from route to answer.
    fn request(
        &self,
        worker: &Rc<Worker>,
        mesh: &Mesh,
        head: &mut RequestHead,
        body: &mut Body<'_>,
        respond: &mut Responder<'_>,
    ) -> impl Future<Output = Result<Next<Tunnel>>>;

    /// Whether the downstream is a sidecar, which sends elsewhere what is refused unprocessed.
    fn is_from_sidecar(&self) -> bool;
}

/// A connection with its direction's stages.
pub(super) struct Requests<S> {
    pub worker: Rc<Worker>,
    pub stages: S,
}

impl<S: Stages> Handler for Requests<S> {
    type Tunnel = Tunnel;

    async fn handle(
        &self,
        head: &mut RequestHead,
        body: &mut Body<'_>,
        respond: &mut Responder<'_>,
    ) -> Next<Tunnel> {
        let _busy = self.worker.busy();
        let mesh = self.worker.mesh();
        let (grpc, idempotent) = (head.is_grpc(), head.is_idempotent());
        let done = match expiry::take(head, self.stages.is_from_sidecar()) {
            Ok(()) => self.stages.request(&self.worker, &mesh, head, body, respond).await,
            Err(error) => Err(error),
        };
        match done {
            Ok(next) => next,
            Err(error) => {
                self.refused(&error);
                let answerable = error.reason != Reason::HttpDownstreamGone
                    && (!respond.has_begun() || respond.take_back());
                if answerable && !self.given_back(&error, idempotent, respond) {
                    // What has arrived of the body already costs nothing to skip.
                    if drain(body).now_or_never() != Some(true) {
                        respond.last();
                    }
                    // Whoever does not take even this is not waited for.
                    let limit = mesh.bounds(S::DIRECTION).body_timeout;
                    let _ = Box::pin(taken(respond.refusal(&error, grpc), limit)).await;
                }
                Next::Request
            }
        }
    }

    async fn tunnel(&self, other: Tunnel, body: &mut Body<'_>, respond: &mut Responder<'_>) {
        other.join_stream(body, respond).await;
    }

    fn refused(&self, error: &Error) {
        self.worker.refused(S::DIRECTION, error);
    }

    fn shares_connections(&self) -> bool {
        self.stages.is_from_sidecar()
    }

    fn bounds(&self) -> Bounds {
        *self.worker.mesh().bounds(S::DIRECTION)
    }

    fn announces(&self) -> Option<Announcement> {
        let sidecar = self.stages.is_from_sidecar();
        sidecar.then(|| self.worker.mesh().application.upstream.announces())
    }

    fn is_draining(&self) -> bool {
        self.worker.shared.drain.tells(S::DIRECTION)
    }

    fn closing(&self) -> Closed {
        self.worker.closing(S::DIRECTION)
    }
}

impl<S: Stages> Requests<S> {
    /// Gives a request that failed back to the sidecar it came from, which may send it to another
    /// endpoint: what the application never saw, whatever the method; what it may have seen, if
    /// that may be repeated.
    fn given_back(&self, error: &Error, idempotent: bool, respond: &mut Responder<'_>) -> bool {
        match error.retry {
            _ if !self.stages.is_from_sidecar() => false,
            Retry::Unprocessed => respond.refuse_stream(error.reason),
            Retry::Idempotent => idempotent && respond.fail_stream(),
            Retry::Never => false,
        }
    }
}
