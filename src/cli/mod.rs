//! The commands: each turns its arguments into one typed call, and says what came of it.

pub mod init;
