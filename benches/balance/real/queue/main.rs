//! Both ends of a balancer. `serve` is some applications with a few workers each, which take time but
//! no CPU. `ask` is their clients: requests come when they come, however those before them fare, and
//! a latency counts from when a request was meant to be sent.
//!
//! How much work a request is stands in its path, `/MICROSECONDS`, and is drawn by the client from its
//! seed, as its time is: whoever is sent the same seed meets the same requests at the same times.

mod ask;
// What the benches have in common.
#[path = "../../../peers/load/histogram.rs"]
mod histogram;
mod plan;
#[allow(dead_code, reason = "its tests need all of it, this program does not")]
#[path = "../../../peers/load/response.rs"]
mod response;
mod serve;
#[path = "../../../peers/load/session.rs"]
mod session;
mod station;
#[path = "../../../keepalive/edge/timer.rs"]
mod timer;

use std::io;

use clap::Parser;

/// The body of every answer.
const BODY: &str = "ok";

/// What there is to do.
#[derive(Parser)]
enum Command {
    /// Applications on ports of loopback. Each line of the input begins a slice: `{"begin": [...]}`,
    /// a list of changes for each. It is answered by their ports, and the requests that each has had
    /// in the slice before. Ends with the input.
    Serve(serve::Plan),
    /// Requests, to one place.
    Ask(ask::Plan),
}

fn main() -> io::Result<()> {
    match Command::parse() {
        Command::Serve(plan) => serve::run(&plan),
        Command::Ask(plan) => ask::run(&plan),
    }
}
