//! What the subcommands' output has in common: colour on terminals only, JSON.

use std::io::IsTerminal;
use std::time::Duration;

use crossbeam::channel::{self, Receiver, Sender};
use serde::Serialize;

use super::CliError;
use crate::lab::Stream;

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

/// Prints text to standard output.
pub(super) fn print(text: &str) -> Result<(), CliError> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    written(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
}

/// Converts the result of a write to standard output. A closed pipe (`| head`) is not an error,
/// and the exit code stays that of the answer. A decision: tools that die of SIGPIPE give the
/// shell no answer at all.
pub(super) fn written(result: std::io::Result<()>) -> Result<(), CliError> {
    match result {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(CliError::System(
            format!("writing to standard output: {error}"),
        )),
        _ => Ok(()),
    }
}

/// Writes lines on a thread of its own. A lab goes on when nobody listens: a
/// reader that has gone away, or doesn't read, must not hold it up.
#[derive(Debug, Clone)]
pub(super) struct Printer {
    lines: Sender<(Stream, String)>,
}

/// Tells when a printer and all its clones are gone and everything is written.
#[derive(Debug)]
pub(super) struct Printed {
    ended: Receiver<()>,
}

/// Lines that wait for a slow reader.
const LINES: usize = 4096;
/// How long a line may hold up whoever has it; then it is lost.
const LINE_WAITS: Duration = Duration::from_millis(100);
/// How long the end waits for a reader.
const END_WAITS: Duration = Duration::from_millis(500);

impl Printer {
    /// Starts the thread.
    pub(super) fn start() -> Result<(Self, Printed), CliError> {
        let (lines, waiting) = channel::bounded::<(Stream, String)>(LINES);
        let (ends, ended) = channel::bounded(0);
        std::thread::Builder::new()
            .name("sgwall-printer".to_owned())
            .spawn(move || {
                for (stream, line) in waiting {
                    match stream {
                        Stream::Stdout => write_line(&mut std::io::stdout().lock(), &line),
                        Stream::Stderr => write_line(&mut std::io::stderr().lock(), &line),
                    }
                }
                drop(ends);
            })
            .map_err(|error| CliError::System(format!("starting a thread: {error}")))?;
        Ok((Self { lines }, Printed { ended }))
    }

    /// Writes a line, or gives up on it when the reader doesn't read.
    pub(super) fn line(&self, stream: Stream, line: String) {
        // Nothing can be said about a line that can't be said.
        let _ = self.lines.send_timeout((stream, line), LINE_WAITS);
    }
}

impl Printed {
    /// Waits until all is written, for as long as a reader may take.
    pub(super) fn wait(&self) {
        let _ = self.ended.recv_timeout(END_WAITS);
    }
}

/// Writes a line to standard error. Errors are ignored: there is nowhere left to report them.
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
