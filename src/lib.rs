//! Pannier: a service-mesh sidecar proxy. ARCHITECTURE.md draws the house; `proxy` is where a
//! request's path can be read from top to bottom.

pub mod config;
pub mod error;
pub mod limit;
