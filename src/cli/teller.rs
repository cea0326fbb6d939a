//! Tells people, or a program, what happens.

use serde_json::{Value, json};

use super::Format;
use super::output::Printer;
use crate::lab::Stream;

/// Writes events. As text they go to standard error, so that standard output has the
/// commands' output alone; as JSON, one object a line, all of it goes to standard output.
#[derive(Debug, Clone)]
pub(super) struct Teller {
    printer: Printer,
    format: Format,
}

impl Teller {
    pub(super) fn new(printer: Printer, format: Format) -> Self {
        Self { printer, format }
    }

    pub(super) fn format(&self) -> Format {
        self.format
    }

    /// An event: its name and its details for programs, a text for people.
    pub(super) fn say(&self, event: &str, text: &str, details: Value) {
        match self.format {
            Format::Text => self.line(Stream::Stderr, format!("sgwall: {text}")),
            Format::Json => {
                let mut line = json!({ "event": event });
                if let (Some(line), Value::Object(details)) = (line.as_object_mut(), details) {
                    line.extend(details);
                }
                self.line(Stream::Stdout, line.to_string());
            }
        }
    }

    /// Reports the result of a reload: the generations in force before and after it.
    pub(super) fn reloaded(&self, before: u64, generation: u64) {
        let details = json!({ "generation": generation });
        if generation == before {
            let text = format!("unchanged: these rules are in force (generation {generation})");
            self.say("unchanged", &text, details);
        } else {
            let text = format!("new rules in force (generation {generation})");
            self.say("reloaded", &text, details);
        }
    }

    /// A line as it is.
    pub(super) fn line(&self, stream: Stream, line: String) {
        self.printer.line(stream, line);
    }
}
