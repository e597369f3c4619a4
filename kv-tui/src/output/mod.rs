//! Results and how they are printed: for people, as JSON, or raw.

pub mod bytes;
pub mod table;
pub mod time;

use std::io::{self, Write};

use clap::ValueEnum;
use serde_json::Value;

use crate::error::{Class, CommandError};
use table::Table;

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// One JSON object a line.
    Json,
    /// Bytes as they are stored, and bare numbers and words.
    Raw,
}

/// One result in all forms.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// The JSON object.
    pub json: Value,
    /// The bytes of raw output, complete with line ends where there are any.
    pub raw: Vec<u8>,
    /// What people see.
    pub human: Human,
}

/// What people see of one result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Human {
    /// A row of a table. Rows with the same header in a row form one table.
    Row {
        /// The column names; one that starts with `>` is aligned to the right.
        header: &'static [&'static str],
        /// The cells.
        cells: Vec<String>,
    },
    /// Lines.
    Text(String),
}

/// Where results go.
pub trait Sink {
    /// Takes one result.
    ///
    /// # Errors
    /// If it cannot be written.
    fn item(&mut self, item: Item) -> Result<(), CommandError>;

    /// Writes what is held back to line up columns, and goes on with the same table.
    ///
    /// # Errors
    /// If it cannot be written.
    fn pass(&mut self) -> Result<(), CommandError>;

    /// Writes what is held back to line up columns, and ends the table.
    ///
    /// # Errors
    /// If it cannot be written.
    fn flush(&mut self) -> Result<(), CommandError>;

    /// The format, for commands whose meaning depends on it.
    fn format(&self) -> Format;

    /// Says something beside the results, such as progress.
    fn note(&mut self, text: &str);
}

/// Prints results to a writer.
#[derive(Debug)]
pub struct Printer<W, E> {
    format: Format,
    out: W,
    notes: E,
    table: Table,
}

impl<W: Write, E: Write> Printer<W, E> {
    /// Prints in `format` to `out`, and notes to `notes`.
    pub fn new(format: Format, out: W, notes: E) -> Self {
        Self { format, out, notes, table: Table::default() }
    }

    /// Changes the format between commands.
    pub fn set_format(&mut self, format: Format) {
        self.format = format;
    }
}

impl<W: Write, E: Write> Sink for Printer<W, E> {
    fn item(&mut self, item: Item) -> Result<(), CommandError> {
        let written = match self.format {
            Format::Json => writeln!(self.out, "{}", item.json),
            Format::Raw => self.out.write_all(&item.raw),
            Format::Table => match item.human {
                Human::Text(text) => self.table.write(&mut self.out).and_then(|()| writeln!(self.out, "{text}")),
                Human::Row { header, cells } => self.table.add(header, cells, &mut self.out),
            },
        };
        written.map_err(|error| closed(&error))
    }

    fn pass(&mut self) -> Result<(), CommandError> {
        self.table.pass(&mut self.out).and_then(|()| self.out.flush()).map_err(|error| closed(&error))
    }

    fn flush(&mut self) -> Result<(), CommandError> {
        self.table.write(&mut self.out).and_then(|()| self.out.flush()).map_err(|error| closed(&error))
    }

    fn format(&self) -> Format {
        self.format
    }

    fn note(&mut self, text: &str) {
        // Notes are a courtesy; the result does not depend on them.
        drop(writeln!(self.notes, "{text}"));
    }
}

/// Prints a text that is no result of a command, such as help.
///
/// # Errors
/// If it cannot be written.
pub fn print(text: &[u8]) -> Result<(), CommandError> {
    let mut out = io::stdout().lock();
    out.write_all(text).and_then(|()| out.flush()).map_err(|error| closed(&error))
}

/// An output that cannot be written.
pub(crate) fn closed(error: &io::Error) -> CommandError {
    if error.kind() == io::ErrorKind::BrokenPipe {
        CommandError::new(Class::OutputClosed, "standard output is closed")
    } else {
        CommandError::failed(format!("cannot write the output: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const HEADER: &[&str] = &["NAME", ">KEYS"];

    fn item(name: &str, keys: u64) -> Item {
        Item {
            json: json!({"schema": 1, "name": name, "keys": keys}),
            raw: format!("{keys}\n").into_bytes(),
            human: Human::Row { header: HEADER, cells: vec![name.to_owned(), keys.to_string()] },
        }
    }

    fn check(format: Format, expected: &str) {
        let (mut out, mut notes) = (Vec::new(), Vec::new());
        let mut printer = Printer::new(format, &mut out, &mut notes);
        printer.item(item("n1", 10_000)).expect("written");
        printer.item(item("강남점", 7)).expect("written");
        printer.flush().expect("written");
        assert_eq!(String::from_utf8_lossy(&out), expected);
    }

    #[test]
    fn every_format_shows_the_same() {
        check(Format::Table, "NAME     KEYS\nn1      10000\n강남점      7\n");
        let json = "{\"schema\":1,\"name\":\"n1\",\"keys\":10000}\n{\"schema\":1,\"name\":\"강남점\",\"keys\":7}\n";
        check(Format::Json, json);
        check(Format::Raw, "10000\n7\n");
    }
}
