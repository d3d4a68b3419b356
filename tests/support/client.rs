//! One request at a time, from inside a pod.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper::{HeaderMap, Request, StatusCode, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// No answer of a test takes longer, or it is none.
const PATIENCE: Duration = Duration::from_secs(10);

/// What came back.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    /// The status.
    pub(crate) status: StatusCode,
    /// The fields.
    pub(crate) headers: HeaderMap,
    /// The whole body.
    pub(crate) body: Bytes,
}

impl Answer {
    /// The pod whose application answered.
    pub(crate) fn pod(&self) -> Option<&str> {
        self.field("x-pod")
    }

    /// The refusal, where Pannier answered.
    pub(crate) fn refused(&self) -> Option<&str> {
        self.field("x-pannier-refused").map(|said| said.split(';').next().unwrap_or(said))
    }

    /// The limit that refused, as the same field names it.
    pub(crate) fn refused_by(&self) -> Option<&str> {
        let (_, limit) = self.field("x-pannier-refused")?.split_once(";limit=\"")?;
        limit.strip_suffix('"')
    }

    /// A field's text.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The body as text.
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("text")
    }

    /// The body as JSON.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("not JSON: {e}: {:?}", self.body))
    }
}

/// `GET`, over HTTP/1.1 and a new connection.
pub(crate) async fn get(to: SocketAddr, host: &str, path: &str) -> io::Result<Answer> {
    send(to, request("GET", host, path, "")).await
}

/// A request in origin form.
pub(crate) fn request(method: &str, host: &str, path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    let request = Request::builder().method(method).uri(path).header("host", host);
    request.body(Full::new(body.into())).expect("a valid request")
}

/// Sends a request over a new connection, by the HTTP version that it names.
pub(crate) async fn send(to: SocketAddr, request: Request<Full<Bytes>>) -> io::Result<Answer> {
    tokio::time::timeout(PATIENCE, exchange(to, request)).await?
}

async fn exchange(to: SocketAddr, request: Request<Full<Bytes>>) -> io::Result<Answer> {
    let io = TokioIo::new(TcpStream::connect(to).await?);
    let (parts, body) = if request.version() == Version::HTTP_2 {
        let (mut sender, connection) =
            http2::handshake(TokioExecutor::new(), io).await.map_err(io::Error::other)?;
        tokio::spawn(connection);
        sender.send_request(request).await.map_err(io::Error::other)?.into_parts()
    } else {
        let (mut sender, connection) = http1::handshake(io).await.map_err(io::Error::other)?;
        tokio::spawn(connection);
        sender.send_request(request).await.map_err(io::Error::other)?.into_parts()
    };
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    Ok(Answer { status: parts.status, headers: parts.headers, body })
}

/// The sum of a metric in the text of `/metrics`, over all series that carry every one of `labels`
/// (`key="value"`).
pub(crate) fn metric(text: &str, name: &str, labels: &[&str]) -> f64 {
    let series = text.lines().filter_map(|line| {
        let (series, value) = line.strip_prefix(name)?.rsplit_once(' ')?;
        let whole_name = series.is_empty() || series.starts_with('{');
        (whole_name && labels.iter().all(|label| series.contains(label)))
            .then(|| value.parse::<f64>().ok())?
    });
    series.sum()
}

/// Connects, sends `bytes`, and reads until `enough` says so or the peer closes.
pub(crate) async fn talk(
    to: SocketAddr,
    bytes: impl AsRef<[u8]>,
    enough: impl Fn(&[u8]) -> bool,
) -> io::Result<Vec<u8>> {
    let exchange = async {
        let mut stream = TcpStream::connect(to).await?;
        stream.write_all(bytes.as_ref()).await?;
        let mut got = Vec::new();
        while !enough(&got) && stream.read_buf(&mut got).await? > 0 {}
        Ok(got)
    };
    tokio::time::timeout(PATIENCE, exchange).await?
}
