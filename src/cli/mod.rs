//! The commands: arguments to one typed call each.

pub mod check;
pub mod schema;
