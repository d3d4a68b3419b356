//! What `serve` is asked, in words of the one who asks. Times are in milliseconds.

use serde::Deserialize;

/// One order.
#[derive(Deserialize)]
pub(crate) struct Order {
    /// How each application fares from now on: changes in the order of their times. One without any
    /// goes on at a speed of 1.
    pub(crate) begin: Vec<Vec<Change>>,
}

/// Something that happens to an application.
#[derive(Clone, Deserialize)]
pub(crate) struct Change {
    /// When, after the order.
    pub(crate) at: f64,
    pub(crate) to: Turn,
}

#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Turn {
    /// It works so many times as fast; at 0 it pauses.
    Speed(f64),
    /// It answers 503 at once.
    Fails,
    /// It is gone, as if killed: the kernel closes what it had open, and refuses what comes.
    Dies,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order() {
        let text = r#"{"begin": [[], [{"at": 0, "to": {"speed": 0.5}}, {"at": 2.5, "to": "fails"}, {"at": 3, "to": "dies"}]]}"#;
        let order: Order = serde_json::from_str(text).unwrap();
        assert!(order.begin[0].is_empty());
        let turns: Vec<_> = order.begin[1].iter().map(|change| (change.at, change.to)).collect();
        assert_eq!(turns, [(0.0, Turn::Speed(0.5)), (2.5, Turn::Fails), (3.0, Turn::Dies)]);
    }
}
