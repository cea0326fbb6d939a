//! Where in which file something was declared.

use std::fmt;
use std::sync::Arc;

/// A place in a file: line and column count from 1, columns in characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Place {
    /// The file as the user named it.
    pub file: Arc<str>,
    /// Line, from 1; 0 where the thing has no line of its own (AWS's defaults).
    pub line: u32,
    /// Column in characters, from 1; 0 likewise.
    pub column: u32,
}

impl Place {
    /// The place of something that AWS adds by itself.
    pub fn implied(file: Arc<str>) -> Self {
        Self {
            file,
            line: 0,
            column: 0,
        }
    }

    /// Whether nothing in the file declares this; AWS's defaults do.
    pub fn is_implied(&self) -> bool {
        self.line == 0
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_implied() {
            write!(f, "{} (AWS default)", self.file)
        } else {
            write!(f, "{}:{}:{}", self.file, self.line, self.column)
        }
    }
}
