//! The side of a connection that takes streams: each request is served by a task of its own.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::spawn_local;

use super::driver::Driver;
use super::link::{Shared, Side, State};
use super::stream::{Hold, Incoming, Sink, leaving};
use super::{Code, frame};
use crate::http::deadline::Deadline;
use crate::http::h1::parse::Refused;
use crate::http::pump::taken;
use crate::http::{
    Body, Bounds, Fields, Handler, Length, Next, RequestHead, Responder, ResponseHead, UPGRADE_FIELD, h1,
};

/// Serves one connection until it ends, and says why it did.
pub async fn serve<H: Handler + 'static>(
    io: impl AsyncRead + AsyncWrite + Unpin,
    handler: Rc<H>,
) -> Arc<str> {
    let shared = Shared::new(Side::Server, handler.bounds());
    let announcer = handler.clone();
    let mut driver = Driver::new(io, shared.clone(), Box::new(move || announcer.announces()));
    let mut closing = handler.closing();
    let mut told = false;
    let mut lifetime = Deadline::new(handler.bounds().lifetime());
    poll_fn(|cx| {
        let ended = driver.poll(cx);
        while let Some((id, payload, ends)) = shared.within(|state| state.accepted.pop_front()) {
            // In memory of its own: a task's is copied from place to place while it begins and ends.
            spawn_local(Box::pin(stream(Hold::new(shared.clone(), id), payload, ends, handler.clone())));
        }
        if ended.is_ready() {
            return ended;
        }
        if !told && (Pin::new(&mut closing).poll(cx).is_ready() || lifetime.poll(cx).is_ready()) {
            told = true;
            shared.with(State::say_goodbye);
        }
        if shared.within(|state| state.has_parted()) { driver.poll_leave(cx) } else { Poll::Pending }
    })
    .await
}

async fn stream<H: Handler>(hold: Hold, payload: Bytes, ends: bool, handler: Rc<H>) {
    let head = request(payload, ends, &hold.link.bounds);
    let method = head.as_ref().map_or(Method::GET, |head| head.method.clone());
    let mut responder = Responder::Mesh(Answer { hold: hold.clone(), method, sink: None });
    match head {
        Ok(mut head) => {
            let length = if asks_for_tunnel(&head) { Length::Stream } else { head.length };
            let mut body = if ends { Body::Empty } else { Body::Mesh(Incoming::new(hold, length)) };
            if let Next::Tunnel(other) = handler.handle(&mut head, &mut body, &mut responder).await {
                handler.tunnel(other, &mut body, &mut responder).await;
            }
        }
        Err(refused) => {
            let error = h1::refusal(refused);
            handler.refused(&error);
            let _ = taken(responder.refusal(&error, false), handler.bounds().body_timeout).await;
        }
    }
}

fn request(payload: Bytes, ends: bool, bounds: &Bounds) -> Result<RequestHead, Refused> {
    let head = frame::request(payload, bounds)?;
    if ends && !head.length.is_empty() {
        return Err(Refused::Malformed("a body was announced and does not follow"));
    }
    if asks_for_tunnel(&head) && !head.length.is_empty() {
        // What comes is held against no length, so none may go on to the next hop.
        return Err(Refused::Malformed("a tunnel has no length"));
    }
    Ok(head)
}

/// Whether what follows is a tunnel's, if it is granted.
fn asks_for_tunnel(head: &RequestHead) -> bool {
    head.method == Method::CONNECT || head.fields.get(UPGRADE_FIELD).is_some()
}

/// The answer on one stream. Dropped before its end, it resets the stream.
#[derive(Debug)]
pub struct Answer {
    hold: Hold,
    method: Method,
    sink: Option<Sink>,
}

impl Answer {
    pub(in crate::http) fn interim(&mut self, status: StatusCode, fields: Fields) -> io::Result<()> {
        let head = ResponseHead { fields, ..ResponseHead::new(status) };
        self.put(|out, id| frame::put_response(out, id, &head, &HeaderMap::new(), false))
    }

    pub(in crate::http) fn head(&mut self, head: &ResponseHead) -> io::Result<()> {
        let ends = !head.may_have_body(&self.method) || head.length.is_empty();
        self.put(|out, id| frame::put_response(out, id, head, &HeaderMap::new(), ends))?;
        self.sink = Some(leaving(self.hold.clone(), ends));
        Ok(())
    }

    /// Sends the head that makes the stream a tunnel. The switch of an upgrade is told by a field of
    /// our own.
    pub(in crate::http) fn tunnel(&mut self, mut head: ResponseHead) -> io::Result<()> {
        let mut own = HeaderMap::new();
        if let Some(protocol) = head.upgrade.take() {
            own.insert(UPGRADE_FIELD, *protocol);
            head.status = StatusCode::OK;
        }
        head.length = Length::Stream;
        self.put(|out, id| frame::put_response(out, id, &head, &own, false))?;
        self.sink = Some(leaving(self.hold.clone(), false));
        Ok(())
    }

    /// Writes a frame, as long as anybody wants it.
    fn put(&self, put: impl FnOnce(&mut BytesMut, u32)) -> io::Result<()> {
        self.hold.with(|state, id| match state.stream(id) {
            Some(stream) if stream.lost.is_none() => {
                put(&mut state.out.tail, id);
                Ok(())
            }
            _ => Err(io::ErrorKind::BrokenPipe.into()),
        })
    }

    /// Where the body goes, once the head has gone.
    pub(in crate::http) fn sink(&mut self) -> Option<&mut Sink> {
        self.sink.as_mut()
    }

    pub(in crate::http) fn has_begun(&self) -> bool {
        self.sink.is_some()
    }

    /// Resets the stream, if no answer has begun.
    pub(in crate::http) fn reset(&mut self, code: Code) -> bool {
        if self.sink.is_none() {
            self.hold.with(|state, id| state.reset(id, code));
        }
        self.sink.is_none()
    }

    pub(in crate::http) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.hold.poll_gone(cx)
    }
}
