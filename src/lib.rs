//! Pannier: a service-mesh sidecar proxy. ARCHITECTURE.md draws the house; `proxy` is where a
//! request's path can be read from top to bottom.

pub mod admin;
pub mod auth;
pub mod balance;
pub mod cli;
pub mod config;
pub mod control;
pub mod dns;
pub mod error;
pub mod http;
pub mod identity;
pub mod intercept;
pub mod limit;
mod listen;
pub mod pool;
pub mod proxy;
pub mod route;
pub mod telemetry;
pub mod tls;
