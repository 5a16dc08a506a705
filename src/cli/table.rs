//! Rows for people and for programs that read lines: columns under a heading on a terminal, tabs
//! and nothing else in a pipe. Text of others is shown, never obeyed: control characters are
//! escaped.

use std::io::{self, IsTerminal, Write};

use crate::engine::units::ByteLen;
use crate::size::human;

/// Rows with a heading.
pub(super) struct Table {
    heading: Vec<&'static str>,
    rows: Vec<Vec<String>>,
    look: Look,
}

/// How values are shown.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    /// For people.
    pub(super) people: bool,
    /// Sizes in bytes.
    pub(super) bytes: bool,
}

impl Look {
    /// As standard output is: for people if it is a terminal.
    pub(super) fn of_output(bytes: bool) -> Self {
        let people = io::stdout().is_terminal();
        Self { people, bytes: bytes || !people }
    }

    /// A size.
    pub(super) fn size(self, bytes: u64) -> String {
        if self.bytes { bytes.to_string() } else { human(ByteLen::new(bytes)) }
    }
}

impl Table {
    /// No rows yet.
    pub(super) fn new(look: Look, heading: &[&'static str]) -> Self {
        Self { heading: heading.to_vec(), rows: Vec::new(), look }
    }

    /// One more row.
    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().map(|cell| printable(&cell)).collect());
    }

    /// Writes all of it.
    pub(super) fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        if !self.look.people {
            for row in &self.rows {
                writeln!(out, "{}", row.join("\t"))?;
            }
            return Ok(());
        }
        let heading: Vec<String> = self.heading.iter().map(|&word| word.to_owned()).collect();
        let all = || std::iter::once(&heading).chain(&self.rows);
        let width = |column: usize| {
            let cells = all().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or_default()
        };
        let widths: Vec<usize> = (0..heading.len()).map(width).collect();
        for row in all() {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(&format!("{cell:<width$}  "));
            }
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// Names and values, one on each line.
pub(super) fn facts(out: &mut dyn Write, facts: &[(&str, String)]) -> io::Result<()> {
    let width = facts.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    for (name, value) in facts.iter().filter(|(_, value)| !value.is_empty()) {
        writeln!(out, "{name:<width$}  {}", printable(value))?;
    }
    Ok(())
}

/// The same text without anything that a terminal would obey.
pub(super) fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for letter in text.chars() {
        if letter.is_control() {
            shown.extend(letter.escape_default());
        } else {
            shown.push(letter);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::{Look, Table, printable};

    fn written(people: bool) -> String {
        let mut table = Table::new(Look { people, bytes: true }, &["UUID", "LABEL"]);
        table.row(["1".to_owned(), "a\tb".to_owned()]);
        table.row(["234567".to_owned(), String::new()]);
        let mut out = Vec::new();
        table.write(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn people_get_columns_and_programs_tabs() {
        assert_eq!(written(true), "UUID    LABEL\n1       a\\tb\n234567\n");
        assert_eq!(written(false), "1\ta\\tb\n234567\t\n");
        assert_eq!(printable("\u{1b}[31mred"), "\\u{1b}[31mred");
    }
}
