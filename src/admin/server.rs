//! A door: accepts connections, and lets none of them hold it.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use super::pages::Pages;

/// Connections that a door has open at once. The next one takes the place of the oldest: a probe
/// is answered within moments of its arrival, so whoever has been here longest is not one.
pub(super) const MOST_CONNECTIONS: usize = 64;

/// From accepting a connection to the last byte of its answer. As long as Prometheus waits.
pub(super) const LONGEST: Duration = Duration::from_secs(10);

/// The largest head; it holds what browsers and proxies send.
const LARGEST_HEAD: usize = 16 << 10;

/// How long to wait when the process has no file descriptor left.
const PAUSE: Duration = Duration::from_millis(100);

pub(super) async fn serve(listener: TcpListener, pages: Pages) {
    let pages = Arc::new(pages);
    // Dropped with this future, the set ends its connections.
    let mut connections = JoinSet::new();
    let mut oldest_first: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(e) if is_of_one_connection(&e) => continue,
            Err(e) => {
                warn!(error = %e, "admin: cannot accept a connection; trying again");
                sleep(PAUSE).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        oldest_first.retain(|connection| !connection.is_finished());
        if oldest_first.len() >= MOST_CONNECTIONS
            && let Some(oldest) = oldest_first.pop_front()
        {
            oldest.abort();
        }
        oldest_first.push_back(connections.spawn(converse(stream, pages.clone())));
    }
}

/// Errors that `accept` reports for a connection which is already gone.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}

/// One request and its answer. Without keep-alive, one deadline bounds all that a client can
/// delay: its request, its reading, its silence.
async fn converse(stream: TcpStream, pages: Arc<Pages>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = pages.answer(&request);
        async move { Ok::<_, Infallible>(answer) }
    });
    let conversation = http1::Builder::new()
        .keep_alive(false)
        .half_close(true)
        .header_read_timeout(None)
        .max_buf_size(LARGEST_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    match timeout(LONGEST, conversation).await {
        Ok(Ok(())) => {}
        Ok(Err(e)) => debug!(error = %e, "admin: a connection failed"),
        Err(_) => debug!("admin: a connection took longer than {} s", LONGEST.as_secs()),
    }
}
