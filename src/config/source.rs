//! The text of one file, and the way from the parser's marks to places that a
//! person can find: line and column, both from 1, columns in characters.

use std::ops::Range;
use std::sync::Arc;

/// Characters between two remembered byte offsets of a text that is not ASCII.
const STRIDE: usize = 256;

/// Some bytes of one of the files being read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    /// Position of the file among the sources.
    pub(super) file: usize,
    /// First byte.
    pub(super) start: usize,
    /// The byte after the last.
    pub(super) end: usize,
}

/// A file's name and text.
#[derive(Debug)]
pub(super) struct Source {
    /// As the user named it.
    pub(super) name: Arc<str>,
    /// All of it.
    pub(super) text: String,
    /// Where each line begins.
    lines: Vec<usize>,
    /// Byte offset of every `STRIDE`-th character; empty for ASCII.
    strides: Vec<usize>,
}

impl Source {
    pub(super) fn new(name: &str, text: String) -> Self {
        let mut lines = vec![0];
        lines.extend(text.match_indices('\n').map(|(at, _)| at + 1));
        let strides = if text.is_ascii() {
            Vec::new()
        } else {
            text.char_indices()
                .step_by(STRIDE)
                .map(|(at, _)| at)
                .collect()
        };
        Self {
            name: name.into(),
            text,
            lines,
            strides,
        }
    }

    /// Byte offset of the `index`-th character, or the end of the text.
    pub(super) fn byte_of(&self, index: usize) -> usize {
        if self.strides.is_empty() {
            return index.min(self.text.len());
        }
        let Some(&base) = self.strides.get(index / STRIDE) else {
            return self.text.len();
        };
        self.text[base..]
            .char_indices()
            .nth(index % STRIDE)
            .map_or(self.text.len(), |(at, _)| base + at)
    }

    /// Line and column, from 1.
    pub(super) fn line_column(&self, byte: usize) -> (u32, u32) {
        let line = self.line_index(byte);
        let before = &self.text[self.lines[line]..byte];
        let column = before.chars().count() + 1;
        (
            u32::try_from(line + 1).unwrap_or(u32::MAX),
            u32::try_from(column).unwrap_or(u32::MAX),
        )
    }

    /// Bytes of the line that holds `byte`, without its line break.
    pub(super) fn line_of(&self, byte: usize) -> Range<usize> {
        let line = self.line_index(byte);
        let start = self.lines[line];
        let end = self
            .lines
            .get(line + 1)
            .map_or(self.text.len(), |next| next - 1);
        start..start + self.text[start..end].trim_end_matches('\r').len()
    }

    fn line_index(&self, byte: usize) -> usize {
        self.lines.partition_point(|&start| start <= byte) - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_count_characters_not_bytes() {
        let source = Source::new("x", "a: 1\r\né\u{1f600}: 2".into());
        let colon = source.text.rfind(':').unwrap();
        assert_eq!(source.line_column(colon), (2, 3));
        assert_eq!(source.byte_of(8), colon);
        assert_eq!(&source.text[source.line_of(0)], "a: 1");
    }

    #[test]
    fn characters_past_the_first_stride_are_found() {
        let source = Source::new("x", "é".repeat(1000) + "z");
        assert_eq!(source.byte_of(1000), 2000);
        assert_eq!(source.byte_of(9999), 2001);
        assert_eq!(source.line_column(2000), (1, 1001));
    }
}
