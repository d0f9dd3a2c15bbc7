//! What `inspect` and `verify` print: sections of fields or rows, as tables for people or as JSON for programs.
use crate::ctl::failure::Failure;
use crate::ctl::json::{self, Object};
use crate::ctl::printer::{Format, Printer, no_fields, no_protobuf};
use crate::ctl::quote::quote;
use crate::ctl::table;

/// Bytes of a key or value shown in a table; JSON has all of them.
const SHOWN_BYTES_MAX: usize = 48;

/// One value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Cell {
    /// Nothing to say.
    None,
    /// A number.
    Number(i128),
    /// A text.
    Text(String),
    /// A key or value: quoted in a table, base64 in JSON.
    Bytes(Vec<u8>),
}

impl Cell {
    pub(crate) fn number(number: impl Into<i128>) -> Self {
        Self::Number(number.into())
    }

    pub(crate) fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    pub(crate) fn bytes(bytes: &[u8]) -> Self {
        Self::Bytes(bytes.to_vec())
    }

    fn shown(&self) -> String {
        match self {
            Self::None => String::new(),
            Self::Number(number) => number.to_string(),
            Self::Text(text) => text.clone(),
            Self::Bytes(bytes) if bytes.len() > SHOWN_BYTES_MAX => {
                format!("{}… {} bytes", quote(&bytes[..SHOWN_BYTES_MAX]), bytes.len())
            }
            Self::Bytes(bytes) => quote(bytes),
        }
    }

    fn json(&self) -> String {
        match self {
            Self::None => "null".to_owned(),
            Self::Number(number) => number.to_string(),
            Self::Text(text) => json::text(text),
            Self::Bytes(bytes) => json::base64(bytes),
        }
    }
}

/// A table with a name: one object with fields, or rows.
#[derive(Debug)]
pub(crate) struct Section {
    name: &'static str,
    is_list: bool,
    columns: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

impl Section {
    /// One thing, shown as lines of name and value.
    pub(crate) fn fields(name: &'static str, fields: Vec<(&'static str, Cell)>) -> Self {
        let (columns, row) = fields.into_iter().unzip();
        Self { name, is_list: false, columns, rows: vec![row] }
    }

    /// Many things of one kind.
    pub(crate) fn list(name: &'static str, columns: &[&'static str], rows: Vec<Vec<Cell>>) -> Self {
        Self { name, is_list: true, columns: columns.to_vec(), rows }
    }

    fn table(&self) -> String {
        if self.is_list {
            let rows: Vec<_> = self.rows.iter().map(|row| row.iter().map(Cell::shown).collect()).collect();
            let header: Vec<_> = self.columns.iter().map(|name| name.replace('_', " ")).collect();
            return table::render(&header.iter().map(String::as_str).collect::<Vec<_>>(), &rows);
        }
        let fields = self.columns.iter().zip(self.rows.iter().flatten());
        let rows: Vec<_> = fields.map(|(name, cell)| vec![name.replace('_', " "), cell.shown()]).collect();
        table::render(&[self.name, ""], &rows)
    }

    fn json(&self) -> String {
        let objects = self.rows.iter().map(|row| {
            let fields = self.columns.iter().zip(row);
            fields.fold(Object::new(), |object, (name, cell)| object.raw(name, &cell.json())).end()
        });
        let mut objects: Vec<_> = objects.collect();
        if self.is_list { json::list(objects) } else { objects.pop().unwrap_or_default() }
    }
}

/// Everything that one command prints.
#[derive(Debug)]
pub(crate) struct Report {
    sections: Vec<Section>,
}

impl Report {
    pub(crate) fn new(sections: Vec<Section>) -> Self {
        Self { sections }
    }
}

impl Printer {
    /// Tables for `simple` and `table`, one line of JSON for `json`.
    pub(crate) fn report(&mut self, report: &Report) -> Result<(), Failure> {
        match self.format {
            Format::Simple | Format::Table => {
                for section in &report.sections {
                    if report.sections.len() > 1 && section.is_list {
                        self.line(section.name.replace('_', " "));
                    }
                    self.line(section.table().trim_end());
                }
            }
            Format::Json => {
                let object = report
                    .sections
                    .iter()
                    .fold(Object::new(), |object, section| object.raw(section.name, &section.json()));
                self.line(object.end());
            }
            Format::Fields => return Err(no_fields()),
            Format::Protobuf => return Err(no_protobuf()),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_values_are_cut_in_tables_and_whole_in_json() {
        let cell = Cell::bytes(&[b'x'; 100]);
        assert_eq!(cell.shown(), format!("\"{}\"… 100 bytes", "x".repeat(48)));
        assert_eq!(cell.json().len(), 136 + 2);
    }

    #[test]
    fn fields_are_an_object_and_rows_a_list() {
        let fields = Section::fields("a", vec![("x", Cell::number(1)), ("y", Cell::None)]);
        assert_eq!(fields.json(), r#"{"x":1,"y":null}"#);
        let list = Section::list("b", &["k"], vec![vec![Cell::bytes(b"foo")], vec![Cell::text("t\"")]]);
        assert_eq!(list.json(), r#"[{"k":"Zm9v"},{"k":"t\""}]"#);
        assert_eq!(Section::list("c", &["k"], vec![]).json(), "[]");
    }
}
