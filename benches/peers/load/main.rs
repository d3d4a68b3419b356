//! The load of the peers bench, and the applications behind what it measures. One thread, and per
//! request one read and one write beside a shared `epoll_wait`: it shares its core with the
//! application, and what it spends is missing there.
//!
//! A client opens its connections and uses each once. Then it prints `ready` and waits for a line
//! on its input, so that whoever measures reads its clocks between; after the time it prints one
//! JSON object, and keeps its connections until its input ends.

mod bytes;
mod grpc;
mod histogram;
mod http;
mod pace;
mod response;
mod serve;
mod session;
mod upstream;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// What there is to do.
#[derive(Parser)]
enum Command {
    /// Requests over HTTP/1.1 connections that are kept alive.
    Http(http::Plan),
    /// Bytes over connections that stay open.
    Bytes(bytes::Plan),
    /// New connections, each with one small exchange.
    Connect(bytes::Connect),
    /// An application.
    #[command(subcommand)]
    Serve(Application),
}

/// Whom to send to, and for how long.
#[derive(Args, Clone)]
struct Target {
    /// Where.
    #[arg(long)]
    to: SocketAddr,
    /// How many connections.
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// For how long.
    #[arg(long, default_value = "2", value_parser = seconds)]
    seconds: Duration,
}

/// An application to send to.
#[derive(Subcommand)]
enum Application {
    /// HTTP/1.1: `GET /N` answers with N bytes, `/` with 100; a body is read to its end first.
    Http { listen: SocketAddr },
    /// Bytes: a connection's first says whether it is read, written or echoed.
    Bytes { listen: SocketAddr },
    /// Unary gRPC over HTTP/2 with prior knowledge.
    Grpc { listen: SocketAddr },
}

/// Which way bytes go.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Way {
    /// To the application.
    Up,
    /// From it.
    Down,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

fn main() -> io::Result<()> {
    match Command::parse() {
        Command::Http(plan) => http::run(&plan),
        Command::Bytes(plan) => bytes::run(&plan),
        Command::Connect(plan) => bytes::connect(&plan),
        Command::Serve(Application::Http { listen }) => serve::run(listen, upstream::Requests::default),
        Command::Serve(Application::Bytes { listen }) => serve::run(listen, upstream::Bytes::default),
        Command::Serve(Application::Grpc { listen }) => grpc::run(listen),
    }
}
