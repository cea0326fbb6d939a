//! What the subcommands' output has in common: colour on terminals only, JSON.

use std::io::IsTerminal;

use serde::Serialize;

use super::CliError;

/// Colours, or none.
#[derive(Debug, Clone, Copy)]
pub(super) struct Paint {
    on: bool,
}

impl Paint {
    /// Colours if standard output is a terminal and `NO_COLOR` is not set
    /// (<https://no-color.org>).
    pub(super) fn stdout() -> Self {
        Self {
            on: wanted(std::io::stdout().is_terminal()),
        }
    }

    /// Likewise for standard error.
    pub(super) fn stderr() -> Self {
        Self {
            on: wanted(std::io::stderr().is_terminal()),
        }
    }

    pub(super) fn is_on(self) -> bool {
        self.on
    }

    pub(super) fn good(self, text: &str) -> String {
        self.wrap("32", text)
    }

    pub(super) fn bad(self, text: &str) -> String {
        self.wrap("31", text)
    }

    pub(super) fn strong(self, text: &str) -> String {
        self.wrap("1", text)
    }

    pub(super) fn faint(self, text: &str) -> String {
        self.wrap("2", text)
    }

    /// The n-th of a few colours that are easy to tell apart.
    pub(super) fn tag(self, n: usize, text: &str) -> String {
        const HUES: [&str; 6] = ["36", "33", "35", "34", "32", "31"];
        self.wrap(HUES[n % HUES.len()], text)
    }

    fn wrap(self, code: &str, text: &str) -> String {
        if self.on {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

fn wanted(terminal: bool) -> bool {
    terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Prints a value as JSON for programs.
pub(super) fn print_json(value: &impl Serialize) -> Result<(), CliError> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| CliError::System(format!("writing JSON: {error}")))?;
    print(&format!("{text}\n"))
}

/// Prints text. A reader that has gone away (`| head`) is no error.
pub(super) fn print(text: &str) -> Result<(), CliError> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(CliError::System(
            format!("writing to standard output: {error}"),
        )),
        _ => Ok(()),
    }
}

/// Writes a line for whoever listens. A lab goes on when nobody does: a reader
/// that has gone away must not take it down.
pub(super) fn to_stdout(line: &str) {
    write_line(&mut std::io::stdout().lock(), line);
}

/// Likewise on standard error.
pub(super) fn to_stderr(line: &str) {
    write_line(&mut std::io::stderr().lock(), line);
}

fn write_line(out: &mut dyn std::io::Write, line: &str) {
    let written = out
        .write_all(line.as_bytes())
        .and_then(|()| out.write_all(b"\n"))
        .and_then(|()| out.flush());
    // There is no third place to say that this failed.
    drop(written);
}

/// `text` padded to `width` characters.
pub(super) fn pad(text: &str, width: usize) -> String {
    let missing = width.saturating_sub(text.chars().count());
    format!("{text}{}", " ".repeat(missing))
}
