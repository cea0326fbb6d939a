//! Text files of other kinds than the lab file's, for the floors above: read
//! with the same bounds, and blamed in the same way.

use std::ops::Range;
use std::path::Path;

use super::diagnostic::{Diagnostic, Diagnostics, Report, quoted};
use super::source::{Source, Span};
use super::{MAX_FILE_SIZE, read_file};

/// What is wrong with one text file, as far as it was read.
#[derive(Debug)]
pub(crate) struct Findings {
    report: Report,
    file: usize,
    elsewhere: Vec<Diagnostic>,
}

impl Findings {
    /// Nothing yet; `name` stands for the file's in diagnostics.
    pub(crate) fn new(name: &str, text: &str) -> Self {
        let mut report = Report::default();
        let file = report.add_source(Source::new(name, text.to_owned()));
        Self {
            report,
            file,
            elsewhere: Vec::new(),
        }
    }

    /// Adds a mistake: the bytes of the text that it is about, what is wrong,
    /// and how to mend it.
    pub(crate) fn error(
        &mut self,
        at: Range<usize>,
        message: impl Into<String>,
        help: impl Into<String>,
    ) {
        let span = self.span(at);
        self.report.error(span, message).help(help);
    }

    /// Likewise, with another place that matters.
    pub(crate) fn error_with(
        &mut self,
        at: Range<usize>,
        message: impl Into<String>,
        help: impl Into<String>,
        (other, why): (Range<usize>, &str),
    ) {
        let (span, other) = (self.span(at), self.span(other));
        self.report.error(span, message).help(help).also(other, why);
    }

    /// Adds what is wrong with a file that this one names.
    pub(crate) fn add(&mut self, found: &Diagnostics) {
        self.elsewhere.extend(found.iter().cloned());
    }

    /// The name nearest to a mistyped one, if one is near enough.
    pub(crate) fn nearest<'a>(
        &mut self,
        word: &str,
        names: impl ExactSizeIterator<Item = &'a str>,
    ) -> Option<&'a str> {
        self.report.nearest(word, names)
    }

    /// `value`, unless something is wrong.
    ///
    /// # Errors
    /// Everything that is.
    pub(crate) fn finish<T>(self, value: T) -> Result<T, Diagnostics> {
        if !self.report.failed() {
            return Ok(value);
        }
        let mut list = self.report.finish();
        list.extend(self.elsewhere);
        Err(Diagnostics::new(list))
    }

    fn span(&self, at: Range<usize>) -> Span {
        Span {
            file: self.file,
            start: at.start,
            end: at.end,
        }
    }
}

/// The text of a file.
///
/// # Errors
/// Why it can't be read: it is missing, no text, or larger than a lab file
/// may be.
pub(crate) fn read_text(path: &Path) -> Result<String, Diagnostics> {
    let name = path.display().to_string();
    let refused =
        |message, help: &str| Diagnostics::new(vec![Diagnostic::whole_file(&name, message, help)]);
    let text = read_file(path).map_err(|(message, help)| refused(message, help))?;
    if text.len() as u64 > MAX_FILE_SIZE {
        return Err(refused(
            format!("the file is larger than {} MiB", MAX_FILE_SIZE >> 20),
            "split it into several",
        ));
    }
    Ok(text)
}

/// A word from a file for a message: short, in backticks, and without
/// characters that would do something to the terminal.
pub(crate) fn in_quotes(word: &str) -> String {
    quoted(word)
}
