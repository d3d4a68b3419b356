//! Pannier: a service-mesh sidecar proxy. ARCHITECTURE.md draws the house; `proxy` is where a
//! request's path can be read from top to bottom.

pub mod admin;
pub mod config;
pub mod error;
pub mod http;
pub mod telemetry;
pub mod identity;
pub mod tls;
