//! Configuration: what the user writes, read and checked. What the proxy runs is compiled from
//! it in `proxy::mesh`.

mod defaults;
pub mod model;
pub mod units;

pub use model::Model;
