//! What is written to standard output: a table for people, or JSON for programs.

use comfy_table::{Attribute, Cell, CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;
use std::io::Write;

/// Which of the two.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Output {
    pub(crate) json: bool,
}

impl Output {
    /// JSON of `value`, or the text that `human` makes.
    pub(crate) fn show<T: Serialize>(self, value: &T, human: impl FnOnce() -> String) {
        if self.json {
            // A map with keys that are no strings is the only way to fail; ours have none.
            let text = serde_json::to_string_pretty(value).unwrap_or_else(|error| {
                unreachable!("output that is no JSON: {error}");
            });
            print_line(&text);
        } else {
            print_line(&human());
        }
    }

    /// A sentence for people only; programs see the JSON that follows.
    pub(crate) fn say(self, text: &str) {
        if !self.json {
            print_line(text);
        }
    }
}

/// A reader that went away (`| head`) is no error of ours.
pub(crate) fn print_line(text: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{}", text.trim_end());
}

/// A warning, on standard error.
pub(crate) fn warn(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "warning: {text}");
}

/// How a column stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Align {
    Left,
    Right,
}

/// A table with one line under its head and nothing else: it can be read and cut by `awk`.
pub(crate) fn table(columns: &[(&str, Align)], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(
        columns
            .iter()
            .map(|(name, _)| Cell::new(name.to_uppercase()).add_attribute(Attribute::Bold)),
    );
    for row in rows {
        assert_eq!(row.len(), columns.len(), "cells against columns");
        table.add_row(row);
    }
    for (column, (_, align)) in table.column_iter_mut().zip(columns) {
        column.set_padding((0, 2));
        column.set_cell_alignment(match align {
            Align::Left => CellAlignment::Left,
            Align::Right => CellAlignment::Right,
        });
    }
    table
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect::<Vec<_>>()
        .join("\n")
}

/// `name: value` lines with the values under each other.
pub(crate) fn fields(fields: &[(&str, String)]) -> String {
    let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let lines: Vec<String> = fields
        .iter()
        .map(|(name, value)| format!("{name:width$}  {value}"))
        .collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_plain_columns() {
        let text = table(
            &[("name", Align::Left), ("size", Align::Right)],
            vec![
                vec!["a".into(), "10GiB".into()],
                vec!["longer".into(), "1B".into()],
            ],
        );
        assert_eq!(text, "NAME     SIZE\na       10GiB\nlonger     1B");
    }

    #[test]
    fn fields_line_up() {
        assert_eq!(
            fields(&[("a", "1".into()), ("long", "2".into())]),
            "a     1\nlong  2"
        );
    }
}
