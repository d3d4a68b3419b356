//! Configuration: what the user writes, read and checked. What the proxy runs is compiled from
//! it in `proxy::mesh`.
//!
//! [`parse`] reports everything that is wrong at once, each with line, column and what was
//! expected; only a text that is not YAML ends at its first fault. A [`Model`] that it returns
//! is sound: names resolve, hosts, paths, ids and URLs are well-formed, nothing is ambiguous.

mod check;
mod defaults;
mod effective;
mod locate;
pub mod model;
mod problem;
mod read;
mod syntax;
mod text;
mod tree;
pub mod units;
mod warn;
pub mod watch;

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

pub use effective::LimitTerms;
pub use locate::problem_at;
pub use model::Model;
pub use problem::{Plain, Problem, Problems};
pub use syntax::HostPattern;
pub use warn::{Warning, warnings};

use tree::Fault;

/// A file larger than this is not a configuration.
const LARGEST: u64 = 8 << 20;

/// Reads a configuration from its text. `source` names it in messages.
pub fn parse(text: &str, source: &str) -> Result<Model, Problems> {
    let problem = |fault: Fault| Problem {
        source: source.into(),
        line: Some(fault.at.line),
        column: Some(fault.at.column),
        path: fault.path,
        message: fault.message,
    };
    let (root, mut faults) = tree::parse(text).map_err(&problem)?;
    let model = match &root {
        None => Some(Model::default()),
        Some(root) => {
            let model = read::model(root, &mut faults);
            if let Some(model) = &model {
                check::check(model, root, &mut faults);
            }
            model
        }
    };
    match model {
        Some(model) if faults.is_empty() => Ok(model),
        _ => Err(Problems::new(faults.into_iter().map(problem).collect())),
    }
}

/// What is wrong with the values at these paths, as `redis.tls.ca`, of a text that was read: faults that
/// only who uses a value finds.
pub fn problems_at(text: &str, source: &str, found: Vec<(String, String)>) -> Problems {
    let root = tree::parse(text).ok().and_then(|(root, _)| root);
    let problem = |(path, message): (String, String)| {
        let at = root.as_ref().map(|root| check::place(root, &path));
        let (line, column) = (at.map(|at| at.line), at.map(|at| at.column));
        Problem { source: source.into(), line, column, path, message }
    };
    Problems::new(found.into_iter().map(problem).collect())
}

/// Reads a configuration from a file.
pub fn load(path: &Path) -> Result<Model, Problems> {
    parse(&read_text(path)?, &path.display().to_string())
}

/// Reads a configuration file's text: UTF-8, at most 8 MiB.
pub fn read_text(path: &Path) -> Result<String, Problem> {
    let source = path.display().to_string();
    let wrong = |message: String| Problem::of_file(&source, message);
    let unreadable = |error: io::Error| wrong(format!("cannot read the file: {error}"));

    let file = File::open(path).map_err(unreadable)?;
    if file.metadata().map_err(unreadable)?.is_dir() {
        return Err(wrong("this is a directory; expected a file".into()));
    }
    let mut bytes = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > LARGEST {
        return Err(wrong(format!("the file is larger than {} MiB", LARGEST >> 20)));
    }
    String::from_utf8(bytes).map_err(|error| {
        let good = error.utf8_error().valid_up_to();
        let good = String::from_utf8_lossy(&error.as_bytes()[..good]).into_owned();
        let line = good.matches('\n').count() + 1;
        let column = good.rsplit('\n').next().map_or(0, |last| last.chars().count()) + 1;
        Problem { line: Some(line), column: Some(column), ..wrong("the byte here is not UTF-8".into()) }
    })
}

/// The JSON schema of a configuration, for editors and other tools.
pub fn schema() -> serde_json::Value {
    let mut schema = schemars::SchemaGenerator::new(schemars::generate::SchemaSettings::draft2020_12())
        .into_root_schema_for::<Model>();
    schema.insert("title".into(), "Pannier's configuration".into());
    let mut schema = schema.to_value();
    leave_out_null(&mut schema);
    schema
}

/// A key without a value is an error, so that the schema knows no `null`: fields that may be
/// left out are the ones not required.
fn leave_out_null(schema: &mut serde_json::Value) {
    use serde_json::Value;
    match schema {
        Value::Array(list) => list.iter_mut().for_each(leave_out_null),
        Value::Object(object) => {
            if object.get("default").is_some_and(Value::is_null) {
                object.remove("default");
            }
            if let Some(Value::Array(types)) = object.get_mut("type") {
                types.retain(|name| name != "null");
                if let [one] = types.as_slice() {
                    let one = one.clone();
                    object.insert("type".into(), one);
                }
            }
            if let Some(Value::Array(choices)) = object.get_mut("anyOf") {
                choices.retain(|choice| choice.get("type").is_none_or(|name| name != "null"));
                if let [Value::Object(one)] = choices.as_mut_slice() {
                    let one = std::mem::take(one);
                    object.remove("anyOf");
                    object.extend(one);
                }
            }
            object.values_mut().for_each(leave_out_null);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests;
