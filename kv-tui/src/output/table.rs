//! Tables whose columns line up, also with wide characters.

use std::io::{self, Write};

use unicode_width::UnicodeWidthStr;

/// Rows held back to find the widths. A longer table goes on with the widths of the rows before.
const ROWS_HELD_MAX: usize = 500;

/// Between columns.
const GAP: &str = "  ";

/// The rows of one table that are not written yet.
#[derive(Debug, Default)]
pub struct Table {
    header: &'static [&'static str],
    rows: Vec<Vec<String>>,
    widths: Vec<usize>,
    header_written: bool,
}

impl Table {
    /// Adds a row; one with another header starts a new table.
    ///
    /// # Errors
    /// If an earlier table cannot be written.
    pub fn add(&mut self, header: &'static [&'static str], cells: Vec<String>, out: &mut impl Write) -> io::Result<()> {
        if self.header != header {
            self.write(out)?;
            *self = Self { header, ..Self::default() };
        }
        self.rows.push(cells);
        if self.rows.len() >= ROWS_HELD_MAX { self.write_rows(out) } else { Ok(()) }
    }

    /// Writes the rows so far; the table goes on, with the widths that it has.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn pass(&mut self, out: &mut impl Write) -> io::Result<()> {
        self.write_rows(out)
    }

    /// Writes the rest of the table and ends it.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&mut self, out: &mut impl Write) -> io::Result<()> {
        self.write_rows(out)?;
        *self = Self::default();
        Ok(())
    }

    fn write_rows(&mut self, out: &mut impl Write) -> io::Result<()> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let names: Vec<String> = self.header.iter().map(|name| name.trim_start_matches('>').to_owned()).collect();
        self.widths.resize(names.len(), 0);
        for row in self.rows.iter().chain([&names]) {
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = (*width).max(cell.width());
            }
        }
        if !std::mem::replace(&mut self.header_written, true) {
            self.write_row(&names, out)?;
        }
        for row in std::mem::take(&mut self.rows) {
            self.write_row(&row, out)?;
        }
        Ok(())
    }

    fn write_row(&self, cells: &[String], out: &mut impl Write) -> io::Result<()> {
        let mut line = String::new();
        for ((cell, width), name) in cells.iter().zip(&self.widths).zip(self.header) {
            let padding = " ".repeat(width.saturating_sub(cell.width()));
            if !line.is_empty() {
                line.push_str(GAP);
            }
            if name.starts_with('>') {
                line.push_str(&padding);
                line.push_str(cell);
            } else {
                line.push_str(cell);
                line.push_str(&padding);
            }
        }
        writeln!(out, "{}", line.trim_end())
    }
}
