//! The command line.

use std::process::ExitCode;

/// Gives memory back after a burst, and holds little for idle connections.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    pannier::cli::main()
}
