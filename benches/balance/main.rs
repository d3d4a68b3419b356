//! How well an endpoint is chosen: clients, servers and the network between them are simulated, and every way
//! to choose meets the same requests, the same servers and the same faults.
//!
//! `cargo run --release --example balance` simulates every case that its results do not have yet, and adds
//! a line of JSON for each; `report.py` makes tables and pictures of them. Read `world.rs` for what happens
//! in a run, `scenario.rs` for the worlds and `policy/` for what is compared.
//!
//! `--cost` measures what a choice costs, `--queue` in which order those who wait are served best.

mod ask;
mod cost;
mod events;
mod grid;
mod measure;
mod options;
mod plan;
mod policy;
mod queue;
mod requests;
mod results;
mod scenario;
mod server;
mod speed;
mod world;

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("--cost") {
        cost::print();
        return ExitCode::SUCCESS;
    }
    if std::env::args().nth(1).as_deref() == Some("--queue") {
        queue::print();
        return ExitCode::SUCCESS;
    }
    let done = options::Options::parse(std::env::args().skip(1)).and_then(|options| grid::run(&options));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests;
