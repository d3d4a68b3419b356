//! Where a value stands, for those who find out what is wrong with it only when they use it: a file that
//! the configuration names, and that does not hold what it should.

use super::problem::Problem;
use super::tree::{self, Kind, Node};

/// A fault of the value at `path`, as `jwt.issuers[0].jwks`, in a text that [`parse`](super::parse) has
/// taken. `source` names the text. Without a place where the text has no such value.
pub fn problem_at(text: &str, source: &str, path: &str, message: impl Into<String>) -> Problem {
    let root = tree::parse(text).ok().and_then(|(root, _)| root);
    let node = root.as_deref().and_then(|root| follow(root, path));
    Problem {
        source: source.into(),
        line: node.map(|node| node.at.line),
        column: node.map(|node| node.at.column),
        path: path.into(),
        message: message.into(),
    }
}

fn follow<'a>(root: &'a Node, path: &str) -> Option<&'a Node> {
    let steps = path.split(['.', '[']).map(|step| step.trim_end_matches(']'));
    let mut node = root;
    for step in steps {
        node = match &node.kind {
            Kind::Block(entries) => &entries.iter().find(|entry| entry.key == step)?.slot.value,
            Kind::List(slots) => &slots.get(step.parse::<usize>().ok()?)?.value,
            Kind::Scalar { .. } => return None,
        };
    }
    Some(node)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_found_by_its_path() {
        let text =
            "workers: 1\njwt:\n  issuers:\n    - { issuer: a, jwks: /a }\n    - issuer: b\n      jwks: /b\n";
        let at = |path: &str| problem_at(text, "t", path, "wrong").to_string();
        assert_eq!(at("jwt.issuers[0].jwks"), "t:4:26: jwt.issuers[0].jwks: wrong");
        assert_eq!(at("jwt.issuers[1].jwks"), "t:6:13: jwt.issuers[1].jwks: wrong");
        assert_eq!(at("workers"), "t:1:10: workers: wrong");
        for nowhere in ["jwt.issuers[2].jwks", "jwt.issuers[x]", "workers.x", "none"] {
            assert_eq!(at(nowhere), format!("t: {nowhere}: wrong"));
        }
    }
}
