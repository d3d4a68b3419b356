//! Applications that speak HTTP/2, which is what a caller of HTTP/2 is connected to.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{RecvStream, server};
use hyper::http::{Request, Response};
use tokio::net::TcpListener;

/// What an application does with a request.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Does {
    /// Answers with 200, once it has read the body.
    Answers,
    /// Nothing, for ever.
    Nothing,
    /// Answers with so many frames of so many bytes.
    Sends(usize, usize),
}

/// What it has seen.
#[derive(Clone, Default)]
pub(crate) struct Seen(Arc<Mutex<Vec<String>>>);

impl Seen {
    /// How many requests.
    pub(crate) fn requests(&self) -> usize {
        self.0.lock().expect("not poisoned").len()
    }

    /// Their methods and targets, and what followed.
    pub(crate) fn heads(&self) -> String {
        self.0.lock().expect("not poisoned").join("\n")
    }

    /// The bodies that were read to their end, each.
    pub(crate) fn bodies(&self) -> Vec<String> {
        let whole = |text: &String| text.strip_prefix("whole:").map(str::to_owned);
        self.0.lock().expect("not poisoned").iter().filter_map(whole).collect()
    }
}

/// Starts an application.
pub(crate) async fn listen(does: Does) -> (Seen, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let seen = Seen::default();
    let noted = seen.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let noted = noted.clone();
            tokio::spawn(async move {
                // By itself it takes a few hundred small frames for an attack.
                let mut builder = server::Builder::new();
                let Ok(mut connection) = builder.data_frame_budget(64 << 20).handshake(stream).await else {
                    return;
                };
                while let Some(Ok((request, respond))) = connection.accept().await {
                    tokio::spawn(serve(request, respond, does, noted.clone()));
                }
            });
        }
    });
    (seen, address)
}

/// Serves one request; how it ends is its client's affair.
async fn serve(request: Request<RecvStream>, mut respond: SendResponse<Bytes>, does: Does, seen: Seen) {
    let at = {
        let mut seen = seen.0.lock().expect("not poisoned");
        seen.push(format!("{} {}", request.method(), request.uri()));
        seen.len() - 1
    };
    let mut body = request.into_body();
    let mut all = Vec::new();
    match does {
        Does::Nothing => std::future::pending().await,
        Does::Answers => {
            while let Some(data) = body.data().await {
                let Ok(data) = data else { return };
                let _ = body.flow_control().release_capacity(data.len());
                all.extend_from_slice(&data);
            }
            let Ok(trailers) = body.trailers().await else { return };
            let mut seen = seen.0.lock().expect("not poisoned");
            seen[at] = format!("whole:{}", String::from_utf8_lossy(&all));
            seen.extend(trailers.map(|trailers| format!("{trailers:?}")));
            drop(seen);
            let Ok(mut send) = respond.send_response(Response::new(()), false) else { return };
            let _ = send.send_data(Bytes::from_static(b"ok"), true);
        }
        Does::Sends(frames, size) => {
            let Ok(mut send) = respond.send_response(Response::new(()), false) else { return };
            for _ in 0..frames {
                if send.send_data(vec![b'x'; size].into(), false).is_err() {
                    return;
                }
            }
            let _ = send.send_data(Bytes::new(), true);
        }
    }
}
