//! `pannier schema`: the JSON schema of the configuration.

use std::io::{self, Write};
use std::process::ExitCode;

use crate::config;

/// Prints the schema.
pub fn run() -> ExitCode {
    let written = io::stdout().write_all(text().as_bytes());
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pannier schema: cannot write: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The schema as published: indented, with a final line feed.
fn text() -> String {
    format!("{:#}\n", config::schema())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_published_schema_is_the_current_one() {
        let same = super::text() == include_str!("../../deploy/pannier.schema.json");
        assert!(same, "publish it anew: pannier schema > deploy/pannier.schema.json");
    }
}
