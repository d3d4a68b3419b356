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
        f.write_str(&self.source)?;
        for place in [self.line, self.column].into_iter().flatten() {
            write!(f, ":{place}")?;
        }
        if !self.path.is_empty() {
            write!(f, ": {}", self.path)?;
        }
        write!(f, ": {}", self.message)
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
    fn suggests_what_is_near() {
        let known = ["orders", "payments", "x"];
        assert_eq!(did_you_mean("ordres", known), "; did you mean `orders`?");
        assert_eq!(did_you_mean("Orders", known), "; did you mean `orders`?");
        assert_eq!(did_you_mean("payment", known), "; did you mean `payments`?");
        assert_eq!(did_you_mean("catalogue", known), "");
    }
}
