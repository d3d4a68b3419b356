//! Upstreams: sets of endpoints with a known saturation, and the choice of the least saturated.
//!
//! Promises: counts are exact over all workers; `max_in_flight` is never exceeded; an endpoint
//! that is full, that has left, or that just failed is passed over; a choice takes no lock and
//! allocates nothing.

mod choice;
mod endpoint;
mod keep_alive;
mod room;
mod standing;
mod upstream;

pub use choice::{None, least_saturated, least_saturated_by_share};
pub use endpoint::Endpoint;
pub use keep_alive::{Configured, KeepAlive, KeepAliveReport};
pub use room::{Handed, Room, Wanted};
pub use standing::Standing;
pub use upstream::{InFlight, Open, Spec, Upstream};
