//! A table in plain text.

use std::fmt::Write as _;

use crate::config::Plain;

/// Rows under a title, in columns as wide as their widest cell.
pub(super) struct Table {
    title: &'static str,
    rows: Vec<Vec<String>>,
    has_head: bool,
}

impl Table {
    /// A table with these heads of columns; without any, its rows say what they are themselves.
    pub(super) fn new(title: &'static str, head: &[&str]) -> Self {
        let rows =
            if head.is_empty() { vec![] } else { vec![head.iter().map(|cell| cell.to_string()).collect()] };
        Self { title, rows, has_head: !head.is_empty() }
    }

    /// Adds a row.
    pub(super) fn row<const N: usize>(&mut self, cells: [impl Into<String>; N]) {
        self.rows.push(cells.into_iter().map(|cell| Plain(&cell.into()).to_string()).collect());
    }

    /// Writes the table; one that has no row but its head is left out.
    pub(super) fn write(&self, out: &mut String) {
        if self.rows.len() == usize::from(self.has_head) {
            return;
        }
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<_> = (0..columns).map(width).collect();
        let _ = writeln!(out, "{}", self.title);
        for row in &self.rows {
            let mut line = String::from(" ");
            for (cell, width) in row.iter().zip(&widths) {
                let _ = write!(line, " {cell:width$} ");
            }
            let _ = writeln!(out, "{}", line.trim_end());
        }
        out.push('\n');
    }
}
