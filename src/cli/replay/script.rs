//! What a list of packets says: one line each, with the time, the sender and
//! the bytes, and perhaps what is to become of them.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::config::{Diagnostics, Findings, in_quotes, read_text};
use crate::model::{EntityIx, Model};
use crate::policy::DropReason;

/// Most lines that are packets or changes.
const MAX_EVENTS: usize = 100_000;
/// Most lines that are changes: each is a lab file to read and compile.
const MAX_CHANGES: usize = 1000;
/// Longest IP packet: an IPv6 header and the most that it says follows.
const MAX_PACKET: usize = 40 + 65_535;
/// Most digits of a time before its point: some thirty years.
const MAX_SECONDS_DIGITS: usize = 9;
/// Digits of a time after its point: nanoseconds.
const MAX_FRACTION_DIGITS: usize = 9;

const LINE_FORMS: &str =
    "write `TIME INTERFACE HEX`, `TIME INTERFACE HEX = EXPECTED`, or `TIME @ FILE`";
const TIME_FORM: &str = "write seconds since the start, for example `0`, `1.5` or `86400.000001`";
const EXPECTED_FORMS: &str =
    "write `delivered to INTERFACE`, `dropped REASON at INTERFACE` or `held`";
const ADMISSION_FORM: &str =
    "write for example `(out by rule, in by flow)`; each is by `rule`, `flow` or `none`";

/// One line that isn't empty.
#[derive(Debug, Clone)]
pub struct Event {
    /// Where it stands, from 1.
    pub line: u32,
    /// Since the start; never less than the event's before.
    pub at: Duration,
    /// What happens.
    pub what: What,
}

/// What happens.
#[derive(Debug, Clone)]
pub enum What {
    /// Somebody sends a packet.
    Packet {
        /// `eni-…` of who sends.
        from: Arc<str>,
        /// All of the frame.
        bytes: Vec<u8>,
        /// What is to become of it, if that is written.
        expected: Option<Expected>,
    },
    /// Another lab file takes over, as one saved while a lab runs.
    Change {
        /// The file as it is written.
        file: String,
        /// What it declares.
        model: Arc<Model>,
    },
}

/// What is to become of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    /// It arrives.
    Delivered {
        /// `eni-…` of the receiver.
        to: Arc<str>,
        /// What lets it out, and in, if that is written.
        by: Option<(By, By)>,
    },
    /// It is dropped.
    Dropped {
        /// Why.
        reason: DropReason,
        /// `eni-…` of where.
        at: Arc<str>,
    },
    /// A fragment that waits for its first.
    Held,
}

/// What lets a packet pass a set of security groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// A rule.
    Rule,
    /// The flow that it belongs to.
    Flow,
    /// Nothing, as no groups stand there.
    None,
}

impl By {
    const ALL: [Self; 3] = [Self::Rule, Self::Flow, Self::None];
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rule => "rule",
            Self::Flow => "flow",
            Self::None => "none",
        })
    }
}

/// Reads the list in the file `path`, for a lab that begins as `model`. `load`
/// reads the lab files that it names.
///
/// # Errors
/// Everything that is wrong with it.
pub fn read(
    path: &Path,
    model: &Model,
    load: impl FnMut(&str) -> Result<Model, Diagnostics>,
) -> Result<Vec<Event>, Diagnostics> {
    parse(&path.display().to_string(), &read_text(path)?, model, load)
}

/// Likewise from memory; `name` stands for the file's in diagnostics.
///
/// # Errors
/// Everything that is wrong with it.
pub fn parse(
    name: &str,
    text: &str,
    model: &Model,
    load: impl FnMut(&str) -> Result<Model, Diagnostics>,
) -> Result<Vec<Event>, Diagnostics> {
    let mut reader = Reader {
        findings: Findings::new(name, text),
        names: Names::of(model),
        first: model,
        load,
        loaded: HashMap::new(),
        changes: 0,
        latest: None,
    };
    let mut events = Vec::new();
    let mut start = 0;
    for (number, line) in (1..).zip(text.split_inclusive('\n')) {
        let said = line.find('#').map_or(line, |comment| &line[..comment]);
        let line = Line { text: said, start };
        if let Some(first) = line.word(0) {
            if events.len() == MAX_EVENTS {
                reader.findings.error(
                    first.at,
                    format!("more than {MAX_EVENTS} packets and changes"),
                    "split the list into several",
                );
                break;
            }
            // A line with a mistake is counted too, or a file of nothing but
            // mistakes would have no end.
            events.push(reader.event(number, &line, &first));
        }
        start += line.length_of(text);
    }
    reader
        .findings
        .finish(events.into_iter().flatten().collect())
}

/// The part of a line before its comment.
#[derive(Debug, Clone, Copy)]
struct Line<'t> {
    text: &'t str,
    /// Where it begins in the file.
    start: usize,
}

/// A word and the bytes of the file that it is.
#[derive(Debug, Clone)]
struct Word<'t> {
    text: &'t str,
    at: Range<usize>,
}

impl<'t> Line<'t> {
    /// The first word from byte `from` of the line on.
    fn word(&self, from: usize) -> Option<Word<'t>> {
        let rest = self.text.get(from..)?;
        let begin = from + rest.find(|c: char| !c.is_whitespace())?;
        let length = self.text[begin..].find(char::is_whitespace);
        let end = length.map_or(self.text.len(), |length| begin + length);
        Some(Word {
            text: &self.text[begin..end],
            at: self.start + begin..self.start + end,
        })
    }

    /// Every word from byte `from` of the line on.
    fn words(&self, mut from: usize) -> Vec<Word<'t>> {
        let mut words = Vec::new();
        while let Some(word) = self.word(from) {
            from = word.at.end - self.start;
            words.push(word);
        }
        words
    }

    /// All of it from byte `from` on, without the blanks around.
    fn rest(&self, from: usize) -> Option<Word<'t>> {
        let first = self.word(from)?;
        let begin = first.at.start - self.start;
        let text = self.text[begin..].trim_end();
        Some(Word {
            text,
            at: first.at.start..first.at.start + text.len(),
        })
    }

    /// Where it ends in the file.
    fn end(&self) -> usize {
        self.start + self.text.trim_end().len()
    }

    /// Bytes from its beginning to that of the next line of `text`.
    fn length_of(&self, text: &str) -> usize {
        let rest = &text[self.start..];
        rest.find('\n').map_or(rest.len(), |end| end + 1)
    }
}

/// What an interface may be called.
#[derive(Debug)]
struct Names {
    /// `web-1`, `fw/eth1` or `eni-…` to `eni-…`.
    ids: HashMap<String, Arc<str>>,
    /// Entities with several interfaces, and what those are called.
    several: HashMap<String, Vec<String>>,
    /// The name of each interface, in the order of the lab file.
    labels: Vec<String>,
}

/// Maximum number of interfaces that one error names.
const MOST_NAMED: usize = 20;

impl Names {
    fn of(model: &Model) -> Self {
        let mut ids = HashMap::new();
        let mut several = HashMap::new();
        let mut all = Vec::new();
        for (at, entity) in model.entities.iter().enumerate() {
            let mut labels = Vec::new();
            for (at, interface) in model.interfaces_of(EntityIx::new(at)) {
                let id: Arc<str> = interface.id.as_str().into();
                let label = model.interface_label(at);
                ids.insert(
                    format!("{}/{}", entity.name, interface.device_name()),
                    Arc::clone(&id),
                );
                ids.insert(label.clone(), Arc::clone(&id));
                ids.insert(interface.id.clone(), id);
                labels.push(label);
            }
            all.extend_from_slice(&labels);
            if labels.len() > 1 {
                several.insert(entity.name.clone(), labels);
            }
        }
        let labels = all;
        Self {
            ids,
            several,
            labels,
        }
    }

    /// Returns the valid names, as many as fit in one line of help.
    fn list(&self) -> String {
        let (named, rest) = self.labels.split_at(self.labels.len().min(MOST_NAMED));
        let more = match rest.len() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        format!("the lab's interfaces are {}{more}", named.join(", "))
    }
}

struct Reader<'m, L> {
    findings: Findings,
    /// Interfaces are the same in every lab file that takes over.
    names: Names,
    first: &'m Model,
    load: L,
    /// Lab files read so far; `None` for one that can't be used.
    loaded: HashMap<String, Option<Arc<Model>>>,
    changes: usize,
    /// The time of the line before, and where it stands.
    latest: Option<(Duration, Range<usize>)>,
}

impl<L: FnMut(&str) -> Result<Model, Diagnostics>> Reader<'_, L> {
    /// One line; `None` if there is a mistake in it, which is noted.
    fn event(&mut self, number: u32, line: &Line<'_>, first: &Word<'_>) -> Option<Event> {
        let at = self.time(first);
        let after_time = first.at.end - line.start;
        let Some(second) = line.word(after_time) else {
            self.findings.error(
                first.at.start..line.end(),
                "nothing happens on this line",
                LINE_FORMS,
            );
            return None;
        };
        let after = second.at.end - line.start;
        let what = if second.text == "@" {
            self.change(line, after)
        } else {
            self.packet(line, &second, after)
        };
        Some(Event {
            line: number,
            at: at?,
            what: what?,
        })
    }

    fn time(&mut self, word: &Word<'_>) -> Option<Duration> {
        let Some(time) = seconds(word.text) else {
            self.findings.error(
                word.at.clone(),
                format!("{} is no time", in_quotes(word.text)),
                TIME_FORM,
            );
            return None;
        };
        if let Some((latest, place)) = &self.latest
            && time < *latest
        {
            self.findings.error_with(
                word.at.clone(),
                format!("{} is before the line above", in_quotes(word.text)),
                "time never runs backwards: put the lines in order",
                (place.clone(), "this was later"),
            );
            return None;
        }
        self.latest = Some((time, word.at.clone()));
        Some(time)
    }

    fn change(&mut self, line: &Line<'_>, from: usize) -> Option<What> {
        let Some(file) = line.rest(from) else {
            self.findings.error(
                line.start + from - 1..line.start + from,
                "no lab file is named after `@`",
                "write for example `1.5 @ lab-1.yaml`",
            );
            return None;
        };
        self.changes += 1;
        if self.changes > MAX_CHANGES {
            self.findings.error(
                file.at,
                format!("more than {MAX_CHANGES} changes"),
                "split the list into several",
            );
            return None;
        }
        let known = self.loaded.get(file.text).cloned();
        let model = match known {
            Some(known) => known,
            None => {
                let model = self.take_over(&file);
                self.loaded.insert(file.text.to_owned(), model.clone());
                model
            }
        };
        Some(What::Change {
            file: file.text.to_owned(),
            model: model?,
        })
    }

    /// The lab that `file` declares, if it may take over.
    fn take_over(&mut self, file: &Word<'_>) -> Option<Arc<Model>> {
        let quoted = in_quotes(file.text);
        match (self.load)(file.text) {
            Ok(model) => match self.first.same_topology(&model) {
                Ok(()) => return Some(Arc::new(model)),
                Err(change) => self.findings.error(
                    file.at.clone(),
                    format!("{quoted} can't take over: {change}"),
                    "leave everything else as it is in the first lab file",
                ),
            },
            Err(found) => {
                self.findings.error(
                    file.at.clone(),
                    format!("{quoted} is no valid lab file"),
                    "its mistakes are listed too; files are looked for beside the list of packets",
                );
                self.findings.add(&found);
            }
        }
        None
    }

    fn packet(&mut self, line: &Line<'_>, sender: &Word<'_>, after: usize) -> Option<What> {
        let from = self.interface(sender);
        let Some(hex) = line.word(after) else {
            self.findings
                .error(sender.at.start..line.end(), "no packet follows", LINE_FORMS);
            return None;
        };
        let bytes = self.bytes(&hex);
        let after = hex.at.end - line.start;
        let expected = match line.word(after) {
            None => Some(None),
            Some(sign) if sign.text == "=" => {
                let words = line.words(sign.at.end - line.start);
                self.expected(&sign, &words).map(Some)
            }
            Some(other) => {
                self.findings.error(
                    other.at.start..line.end(),
                    format!("{} follows the packet", in_quotes(other.text)),
                    LINE_FORMS,
                );
                None
            }
        };
        Some(What::Packet {
            from: from?,
            bytes: bytes?,
            expected: expected?,
        })
    }

    fn interface(&mut self, word: &Word<'_>) -> Option<Arc<str>> {
        if let Some(id) = self.names.ids.get(word.text) {
            return Some(Arc::clone(id));
        }
        let (message, help) = if let Some(labels) = self.names.several.get(word.text) {
            (
                format!("{} has several interfaces", in_quotes(word.text)),
                format!("name one of them: {}", labels.join(", ")),
            )
        } else {
            let names = self.names.ids.keys().map(String::as_str);
            let near = self.findings.nearest(word.text, names);
            (
                format!("there is no interface {}", in_quotes(word.text)),
                match near {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => self.names.list(),
                },
            )
        };
        self.findings.error(word.at.clone(), message, help);
        None
    }

    fn bytes(&mut self, word: &Word<'_>) -> Option<Vec<u8>> {
        const HELP: &str =
            "write the IP packet as two hexadecimal digits for each byte, without blanks";
        if let Some((at, odd)) = word
            .text
            .char_indices()
            .find(|(_, c)| !c.is_ascii_hexdigit())
        {
            let start = word.at.start + at;
            self.findings.error(
                start..start + odd.len_utf8(),
                format!("{} is no hexadecimal digit", in_quotes(&odd.to_string())),
                HELP,
            );
            return None;
        }
        if word.text.len() % 2 == 1 {
            let last = word.at.end - 1..word.at.end;
            self.findings
                .error(last, "half a byte: the number of digits is odd", HELP);
            return None;
        }
        if word.text.len() / 2 > MAX_PACKET {
            self.findings.error(
                word.at.clone(),
                format!("{} bytes are no IP packet", word.text.len() / 2),
                format!("no IP packet is longer than {MAX_PACKET} bytes"),
            );
            return None;
        }
        let digits = word.text.as_bytes();
        Some(
            digits
                .chunks_exact(2)
                .map(|pair| digit(pair[0]) << 4 | digit(pair[1]))
                .collect(),
        )
    }

    fn expected(&mut self, sign: &Word<'_>, words: &[Word<'_>]) -> Option<Expected> {
        let texts: Vec<&str> = words.iter().map(|word| word.text).collect();
        match (texts.as_slice(), words) {
            (["held"], _) => Some(Expected::Held),
            (["delivered", "to", _, ..], [_, _, to, by @ ..]) => {
                let to = self.interface(to);
                let by = self.admissions(by);
                Some(Expected::Delivered { to: to?, by: by? })
            }
            (["dropped", _, "at", _], [_, reason, _, at]) => {
                let reason = self.reason(reason);
                let at = self.interface(at);
                Some(Expected::Dropped {
                    reason: reason?,
                    at: at?,
                })
            }
            _ => {
                let start = words.first().unwrap_or(sign).at.start;
                let end = words.last().unwrap_or(sign).at.end;
                self.findings.error(
                    start..end,
                    "this is nothing that can be expected",
                    EXPECTED_FORMS,
                );
                None
            }
        }
    }

    fn reason(&mut self, word: &Word<'_>) -> Option<DropReason> {
        let all = DropReason::ALL;
        if let Some(reason) = all.into_iter().find(|reason| reason.as_str() == word.text) {
            return Some(reason);
        }
        let names = all.iter().map(|reason| reason.as_str());
        let help = match self.findings.nearest(word.text, names) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("they are {}", all.map(DropReason::as_str).join(", ")),
        };
        self.findings.error(
            word.at.clone(),
            format!("no packet is dropped for {}", in_quotes(word.text)),
            help,
        );
        None
    }

    /// `(out by rule, in by flow)`, or nothing at all.
    fn admissions(&mut self, words: &[Word<'_>]) -> Option<Option<(By, By)>> {
        let (Some(first), Some(last)) = (words.first(), words.last()) else {
            return Some(None);
        };
        let texts: Vec<&str> = words.iter().map(|word| word.text).collect();
        let named = |name: &str| By::ALL.into_iter().find(|by| by.to_string() == name);
        if let ["(out", "by", out, "in", "by", into] = texts.as_slice()
            && let (Some(out), Some(into)) = (out.strip_suffix(','), into.strip_suffix(')'))
            && let (Some(out), Some(into)) = (named(out), named(into))
        {
            return Some(Some((out, into)));
        }
        self.findings.error(
            first.at.start..last.at.end,
            "this doesn't say what lets a packet out and in",
            ADMISSION_FORM,
        );
        None
    }
}

/// `12` or `12.000000345` as a time.
fn seconds(text: &str) -> Option<Duration> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str, most: usize| {
        (1..=most).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
    };
    if !digits(whole, MAX_SECONDS_DIGITS) || !digits(fraction, MAX_FRACTION_DIGITS) {
        return None;
    }
    let nanoseconds = format!("{fraction:0<MAX_FRACTION_DIGITS$}").parse().ok()?;
    Some(Duration::new(whole.parse().ok()?, nanoseconds))
}

fn digit(byte: u8) -> u8 {
    match byte {
        b'0'..=b'9' => byte - b'0',
        b'a'..=b'f' => byte - b'a' + 10,
        _ => byte.to_ascii_uppercase().saturating_sub(b'A') + 10,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_kept_to_the_nanosecond() {
        assert_eq!(seconds("0"), Some(Duration::ZERO));
        assert_eq!(seconds("1.5"), Some(Duration::from_millis(1500)));
        assert_eq!(seconds("0.000000001"), Some(Duration::from_nanos(1)));
        assert_eq!(
            seconds("999999999.999999999"),
            Some(Duration::new(999_999_999, 999_999_999))
        );
        for wrong in [
            "",
            ".",
            "1.",
            ".5",
            "-1",
            "1e3",
            "1.0000000001",
            "9999999999",
            "١",
        ] {
            assert_eq!(seconds(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn digits_are_hexadecimal_in_either_case() {
        assert_eq!(
            "09afAF".bytes().map(digit).collect::<Vec<_>>(),
            [0, 9, 10, 15, 10, 15]
        );
    }
}
