//! The smallest honest rate-limit service for Envoy: `envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit`
//! over gRPC, in front of a Redis. A request costs what it costs envoyproxy/ratelimit as it is by default: one
//! pipeline of INCRBY and EXPIRE for each of its descriptors, on a key of the second that it comes in.
//!
//! It is ours, and does less than the real one: every descriptor has the same limit, and there are no rules, no
//! local cache, no statistics, no log and no tracing. So what is measured with it is no less than what Envoy's
//! limits cost.

mod wire;

use std::fmt::Write;
use std::io;
use std::net::SocketAddr;
use std::time::SystemTime;

use bytes::Bytes;
use clap::Parser;
use h2::server::{self, SendResponse};
use h2::{Reason, RecvStream};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Response};
use redis::aio::MultiplexedConnection;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, LocalOptions};
use tokio::task::spawn_local;

use self::wire::{Request, Status};

const STREAMS: u32 = 1000;
/// gRPC's frame before a message: one byte says whether it is compressed, four are its length.
const PREFIX: usize = 5;
/// Of gRPC.
const OK: HeaderValue = HeaderValue::from_static("0");
const UNAVAILABLE: HeaderValue = HeaderValue::from_static("14");

#[derive(Parser)]
struct Plan {
    /// Where it listens.
    #[arg(long)]
    listen: SocketAddr,
    /// Where counts are kept: `redis://host:port`.
    #[arg(long)]
    redis: String,
    /// What each descriptor admits in each second.
    #[arg(long, default_value_t = 100_000_000)]
    limit: u64,
}

/// What every request shares.
#[derive(Clone)]
struct Service {
    redis: MultiplexedConnection,
    limit: u64,
}

fn main() -> io::Result<()> {
    let plan = Plan::parse();
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default())?;
    runtime.block_on(async {
        let client = redis::Client::open(plan.redis).map_err(io::Error::other)?;
        let redis = client.get_multiplexed_async_connection().await.map_err(io::Error::other)?;
        let service = Service { redis, limit: plan.limit };
        let listener = TcpListener::bind(plan.listen).await?;
        loop {
            let (stream, _) = listener.accept().await?;
            let _ = stream.set_nodelay(true);
            spawn_local(service.clone().connection(stream));
        }
    })
}

impl Service {
    async fn connection(self, stream: TcpStream) {
        let handshake = server::Builder::new().max_concurrent_streams(STREAMS).handshake(stream).await;
        let Ok(mut connection) = handshake else { return };
        while let Some(Ok((request, respond))) = connection.accept().await {
            spawn_local(self.clone().call(request.into_body(), respond));
        }
    }

    /// Ends a stream by itself: the caller sees it fail.
    async fn call(self, body: RecvStream, mut respond: SendResponse<Bytes>) {
        if self.answer(body, &mut respond).await.is_err() {
            respond.send_reset(Reason::INTERNAL_ERROR);
        }
    }

    async fn answer(self, body: RecvStream, respond: &mut SendResponse<Bytes>) -> Result<(), h2::Error> {
        let message = read(body).await?;
        let request = message.get(PREFIX..).and_then(Request::read);
        let statuses = match request {
            Some(request) => self.count(&request).await.ok(),
            None => None,
        };
        let mut head = Response::new(());
        head.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        let mut stream = respond.send_response(head, false)?;
        let mut trailers = HeaderMap::new();
        match statuses {
            Some(statuses) => {
                stream.send_data(wire::answer(&statuses).into(), false)?;
                trailers.insert("grpc-status", OK);
            }
            None => drop(trailers.insert("grpc-status", UNAVAILABLE)),
        }
        stream.send_trailers(trailers)
    }

    /// Counts a request on each of its descriptors, in one round trip.
    async fn count(mut self, request: &Request) -> redis::RedisResult<Vec<Status>> {
        let second = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut pipeline = redis::Pipeline::with_capacity(2 * request.descriptors.len());
        for descriptor in &request.descriptors {
            let mut key = request.domain.clone();
            for (name, value) in descriptor {
                let _ = write!(key, "_{name}_{value}");
            }
            let _ = write!(key, "_{second}");
            pipeline.cmd("INCRBY").arg(&key).arg(request.hits);
            pipeline.cmd("EXPIRE").arg(&key).arg(1).ignore();
        }
        let counts: Vec<u64> = pipeline.query_async(&mut self.redis).await?;
        let status = |count: u64| Status {
            over: count > self.limit,
            limit: self.limit,
            remaining: self.limit.saturating_sub(count),
        };
        Ok(counts.into_iter().map(status).collect())
    }
}

/// A request's body.
async fn read(mut body: RecvStream) -> Result<Vec<u8>, h2::Error> {
    let mut message = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        message.extend(data);
    }
    Ok(message)
}
