//! Upstreams: sets of endpoints with a known saturation, and the choice of the one that a request is
//! answered by first.
//!
//! Promises: counts are exact over all workers; `max_in_flight` is never exceeded; an endpoint
//! that is full, that has left, or that just failed is passed over; a choice takes no lock and
//! allocates nothing.

mod ask;
mod candidates;
mod choice;
mod crowd;
mod endpoint;
mod health;
mod keep_alive;
mod learned;
mod line;
mod live;
mod load;
mod now;
mod pick;
mod place;
mod ranks;
mod room;
mod standing;
mod sticky;
mod taken;
mod upstream;
mod waiting;

pub use ask::Asked;
pub use choice::{Chosen, None, Question, Uneven};
pub use crowd::Crowd;
pub use endpoint::Endpoint;
pub use health::{Ejection, Outcome};
pub use keep_alive::{Configured, KeepAlive, KeepAliveReport};
pub use learned::Learned;
pub use line::{Line, Ticket};
pub use load::Source;
pub use now::Now;
pub use pick::{Asks, Wait, Want};
pub use place::InFlight;
pub use ranks::Ranks;
pub use room::{Handed, Room, Wanted};
pub use standing::Standing;
pub use sticky::key;
pub use taken::Taken;
pub use upstream::{Open, Spec, Upstream};
pub use waiting::Patience;
