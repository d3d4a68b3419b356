//! A downstream connection that carries requests, in either direction: takes each through the
//! direction's stages, and answers what they refuse.

use std::future::Future;
use std::rc::Rc;

use super::mesh::Mesh;
use super::tcp::Opened;
use super::worker::Worker;
use crate::config::model::Direction;
use crate::error::{Error, Reason, Result, Retry};
use crate::http::{Body, Bounds, Handler, Next, RequestHead, Responder};

/// One direction's stages.
pub(super) trait Stages {
    /// Which direction.
    const DIRECTION: Direction;

    /// Takes a request from route to answer.
    fn request(
        &self,
        worker: &Rc<Worker>,
        mesh: &Mesh,
        head: RequestHead,
        body: &mut Body<'_>,
        respond: &mut Responder<'_>,
    ) -> impl Future<Output = Result<Next<Opened>>>;

    /// Whether the downstream is a sidecar, which sends elsewhere what is refused unprocessed.
    fn is_from_sidecar(&self) -> bool;
}

/// A connection with its direction's stages.
pub(super) struct Requests<S> {
    pub worker: Rc<Worker>,
    pub stages: S,
}

impl<S: Stages> Handler for Requests<S> {
    type Tunnel = Opened;

    async fn handle(
        &self,
        head: RequestHead,
        body: &mut Body<'_>,
        respond: &mut Responder<'_>,
    ) -> Next<Opened> {
        let mesh = self.worker.mesh();
        let grpc = head.is_grpc();
        match self.stages.request(&self.worker, &mesh, head, body, respond).await {
            Ok(next) => next,
            Err(error) => {
                self.refused(&error);
                // What the application never saw may go to another endpoint, whatever the method.
                let elsewhere = error.retry == Retry::Unprocessed && self.stages.is_from_sidecar();
                let answerable = !respond.has_begun() && error.reason != Reason::HttpDownstreamGone;
                if answerable && !(elsewhere && respond.refuse_stream()) {
                    let _ = respond.refusal(&error, grpc).await;
                }
                Next::Request
            }
        }
    }

    fn refused(&self, error: &Error) {
        tracing::debug!(direction = S::DIRECTION.name(), %error, "refused");
        self.worker.shared.ground.metrics.refused(S::DIRECTION, self.worker.index, error.reason);
    }

    fn bounds(&self) -> Bounds {
        self.worker.mesh().bounds
    }

    fn is_draining(&self) -> bool {
        self.worker.shared.drain.tells(S::DIRECTION)
    }

    fn closing(&self) -> impl Future<Output = ()> {
        self.worker.closing(S::DIRECTION)
    }
}
