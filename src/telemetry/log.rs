//! The log: what happened, to stderr. Text for a person at a terminal, JSON for everything else.
//!
//! `PANNIER_LOG` chooses what is logged: a level (`debug`), or levels by module
//! (`info,pannier::dns=debug`). Default `info`.

use std::env;
use std::io::{self, IsTerminal};

use tracing::level_filters::LevelFilter;
use tracing::{Subscriber, warn};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

const VARIABLE: &str = "PANNIER_LOG";

#[derive(Debug, Clone, Copy)]
enum Format {
    Text,
    Json,
}

/// Starts the log of this process. A filter that cannot be read is said so in the log, which then
/// runs at `info`. Only the first call does anything.
pub fn init() {
    let format = if io::stderr().is_terminal() { Format::Text } else { Format::Json };
    let wanted = env::var(VARIABLE).unwrap_or_default();
    let (filter, problem) = match filter(&wanted) {
        Ok(filter) => (filter, None),
        Err(problem) => (default_filter(), Some(problem)),
    };
    if tracing::subscriber::set_global_default(subscriber(format, filter, io::stderr)).is_err() {
        return;
    }
    if let Some(problem) = problem {
        warn!(
            "{VARIABLE}={wanted:?} is no filter ({problem}); logging at info. \
             Expected a level, or levels by module, such as `info,pannier::dns=debug`"
        );
    }
}

fn filter(wanted: &str) -> Result<EnvFilter, String> {
    if wanted.trim().is_empty() {
        return Ok(default_filter());
    }
    // By its own, the parser takes a misspelt level for the name of a module, and logs nothing.
    let word = wanted.trim();
    if word.bytes().all(|b| b.is_ascii_alphanumeric()) && word.parse::<LevelFilter>().is_err() {
        return Err(format!("no level is named {word}"));
    }
    EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        .parse(wanted)
        .map_err(|e| e.to_string())
}

fn default_filter() -> EnvFilter {
    EnvFilter::default().add_directive(LevelFilter::INFO.into())
}

fn subscriber<W>(format: Format, filter: EnvFilter, to: W) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(to);
    match format {
        Format::Text => Box::new(log.finish()),
        Format::Json => {
            Box::new(log.json().flatten_event(true).with_current_span(false).with_span_list(false).finish())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use serde_json::Value;
    use tracing::{debug, error, info};

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("not poisoned").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn written(format: Format, filter: &str, log: impl FnOnce()) -> String {
        let to = Written::default();
        let writer = to.clone();
        let filter = super::filter(filter).expect("a filter");
        tracing::subscriber::with_default(subscriber(format, filter, move || writer.clone()), log);
        let bytes = to.0.lock().expect("not poisoned").clone();
        String::from_utf8(bytes).expect("UTF-8")
    }

    #[test]
    fn json_is_one_object_a_line_whatever_is_logged() {
        let hostile = "a\nb\"} \u{1b}[31m{\"level\":\"ERROR\"}";
        let text = written(Format::Json, "", || {
            info!(upstream = "orders", detail = hostile, "an endpoint left");
            error!("{hostile}");
        });
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0]["level"], "INFO");
        assert_eq!(lines[0]["message"], "an endpoint left");
        assert_eq!(lines[0]["upstream"], "orders");
        assert_eq!(lines[0]["detail"], hostile);
        assert_eq!(lines[1]["level"], "ERROR");
        assert!(lines[1]["timestamp"].is_string());
    }

    #[test]
    fn text_names_level_and_message() {
        let text = written(Format::Text, "", || info!("listening"));
        assert!(text.contains("INFO") && text.contains("listening"), "{text}");
    }

    #[test]
    fn the_filter_decides() {
        let both = || {
            debug!("fine");
            info!("coarse");
        };
        let seen = |filter| {
            let text = written(Format::Json, filter, both);
            (text.contains("fine"), text.contains("coarse"))
        };
        assert_eq!(seen(""), (false, true));
        assert_eq!(seen("debug"), (true, true));
        assert_eq!(seen("warn"), (false, false));
        assert_eq!(seen("warn,pannier::telemetry=debug"), (true, true));
    }

    #[test]
    fn a_filter_that_makes_no_sense_is_refused() {
        for wrong in ["inof", "pannier=loud", "verbose"] {
            filter(wrong).expect_err(wrong);
        }
        for right in ["off", "TRACE", "pannier::dns=debug", " info "] {
            filter(right).expect(right);
        }
    }
}
