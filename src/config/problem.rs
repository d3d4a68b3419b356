//! What is wrong with a configuration: where it stands, what it is, what was expected. Written
//! as compilers write, so that editors and people can jump to the place.

use std::fmt;

/// Everything that is wrong with one configuration; never empty where it is an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

/// One fault, and its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file's name.
    pub source: String,
    /// The line, from 1; none where the fault is the file's.
    pub line: Option<usize>,
    /// The column in characters, from 1.
    pub column: Option<usize>,
    /// The key or value concerned, as `routes[2].upstream`; empty where it is the whole file.
    pub path: String,
    /// What is wrong, and what was expected.
    pub message: String,
}

impl Problems {
    pub(super) fn new(mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|problem| (problem.line, problem.column));
        Self(problems)
    }

    /// The faults, in the order of their places.
    pub fn iter(&self) -> std::slice::Iter<'_, Problem> {
        self.0.iter()
    }
}

impl Problem {
    /// A fault of the file, rather than of a place in it.
    pub(super) fn of_file(source: &str, message: impl Into<String>) -> Self {
        Self { source: source.into(), line: None, column: None, path: String::new(), message: message.into() }
    }
}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Self(vec![problem])
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Plain(&self.source))?;
        for place in [self.line, self.column].into_iter().flatten() {
            write!(f, ":{place}")?;
        }
        if !self.path.is_empty() {
            write!(f, ": {}", Plain(&self.path))?;
        }
        write!(f, ": {}", Plain(&self.message))
    }
}

/// Text of a user as it may be shown on a terminal: what would move its cursor, colour it or turn
/// its direction is written as an escape.
#[derive(Debug, Clone, Copy)]
pub struct Plain<'a>(pub &'a str);

impl fmt::Display for Plain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Controls, and marks of direction (UAX #9).
        let unsafe_to_show = |c: char| {
            c.is_control()
                || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        };
        let mut rest = self.0;
        while let Some(at) = rest.find(unsafe_to_show) {
            let (before, from) = rest.split_at(at);
            let mut chars = from.chars();
            f.write_str(before)?;
            chars.next().map_or(Ok(()), |c| write!(f, "{}", c.escape_default()))?;
            rest = chars.as_str();
        }
        f.write_str(rest)
    }
}

impl std::error::Error for Problems {}
impl std::error::Error for Problem {}

/// `; did you mean `x`?` where one of the candidates is near the word, else nothing.
pub(super) fn did_you_mean<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    let word = word.to_lowercase();
    let allowed = (word.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&word, &candidate.to_lowercase()), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map_or_else(String::new, |(_, nearest)| format!("; did you mean `{nearest}`?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_moves_the_cursor() {
        assert_eq!(Plain("orders, \u{e9}\u{1f600}").to_string(), "orders, \u{e9}\u{1f600}");
        let shown = Plain("a\u{1b}[2J\r\nb\u{7f}\u{9b}\u{202e}c").to_string();
        assert_eq!(shown, r"a\u{1b}[2J\r\nb\u{7f}\u{9b}\u{202e}c");
    }

    #[test]
    fn suggests_what_is_near() {
        let known = ["orders", "payments", "x"];
        assert_eq!(did_you_mean("ordres", known), "; did you mean `orders`?");
        assert_eq!(did_you_mean("Orders", known), "; did you mean `orders`?");
        assert_eq!(did_you_mean("payment", known), "; did you mean `payments`?");
        assert_eq!(did_you_mean("catalogue", known), "");
    }
}
