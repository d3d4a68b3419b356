//! The proxy: a request's way through the stages, the threads that carry it, and the snapshot of
//! the configuration that it looks things up in.
//!
//! Read `outbound` and `inbound` first: each is one direction's stages, in order.

mod application;
mod budget;
mod child;
mod connection;
pub mod detect;
mod drain;
pub mod exchange;
mod forward;
mod hedge;
mod inbound;
mod limit;
mod listen;
mod mesh;
mod outbound;
mod patience;
mod place;
mod remaining;
mod retry;
mod sidecar;
mod sticky;
mod tcp;
mod tunnel;
mod view;
mod worker;

pub use child::NotStarted;
pub use sidecar::{Fatal, Sidecar, run, run_application};
