//! An application that speaks gRPC's shape of HTTP/2, with prior knowledge: a request with one
//! message, an answer with one message, and its status in the trailers.

use std::io;
use std::net::SocketAddr;

use bytes::Bytes;
use h2::server::{self, SendResponse};
use h2::{Reason, RecvStream};
use http::{HeaderMap, HeaderValue, Response};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, LocalOptions};
use tokio::task::spawn_local;

/// Of the message: not compressed, 100 bytes.
const MESSAGE: [u8; 105] = message();

const STREAMS: u32 = 1000;

const fn message() -> [u8; 105] {
    let mut message = [b'x'; 105];
    message[0] = 0;
    let length = 100u32.to_be_bytes();
    let mut at = 0;
    while at < length.len() {
        message[1 + at] = length[at];
        at += 1;
    }
    message
}

/// Serves for ever.
pub(crate) fn run(listen: SocketAddr) -> io::Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default())?;
    runtime.block_on(async {
        let listener = TcpListener::bind(listen).await?;
        loop {
            let (stream, _) = listener.accept().await?;
            let _ = stream.set_nodelay(true);
            spawn_local(connection(stream));
        }
    })
}

async fn connection(stream: TcpStream) {
    let handshake = server::Builder::new().max_concurrent_streams(STREAMS).handshake(stream).await;
    let Ok(mut connection) = handshake else { return };
    while let Some(Ok((request, respond))) = connection.accept().await {
        spawn_local(call(request.into_body(), respond));
    }
}

/// Ends a stream by itself: the caller sees it fail.
async fn call(body: RecvStream, mut respond: SendResponse<Bytes>) {
    if answer(body, &mut respond).await.is_err() {
        respond.send_reset(Reason::INTERNAL_ERROR);
    }
}

async fn answer(mut body: RecvStream, respond: &mut SendResponse<Bytes>) -> Result<(), h2::Error> {
    while let Some(data) = body.data().await {
        let taken = data?.len();
        body.flow_control().release_capacity(taken)?;
    }
    let mut head = Response::new(());
    head.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    let mut stream = respond.send_response(head, false)?;
    stream.send_data(Bytes::from_static(&MESSAGE), false)?;
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    stream.send_trailers(trailers)
}
