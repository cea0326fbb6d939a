//! YAML text to a tree of nodes that know where they stand.
//!
//! Only what a lab needs: no tags, one document, aliases expanded. Everything
//! is bounded, because the file may be anybody's.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle};

use super::diagnostic::{Report, quoted};
use super::source::{Source, Span};

/// Deepest nesting of lists and mappings; a lab needs seven.
const MAX_DEPTH: usize = 64;
/// Most nodes, those that aliases repeat included.
const MAX_NODES: usize = 2_000_000;
/// Most bytes of text that anchors and aliases may repeat.
const MAX_REPEATED_BYTES: usize = 16 * 1024 * 1024;

/// A node and where it stands.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) span: Span,
    pub(super) value: Value,
}

/// What a node is.
#[derive(Debug, Clone)]
pub(super) enum Value {
    /// A word, a number, a quoted text.
    Scalar {
        text: Box<str>,
        /// Without quotes, so that `null` and `true` have their meaning.
        plain: bool,
    },
    /// `[a, b]` or lines with `-`.
    List(Vec<Node>),
    /// `{a: b}` or lines with `key:`; repeated keys are still there.
    Map(Vec<(Node, Node)>),
}

impl Node {
    /// Whether nothing was written here, or `null`.
    pub(super) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar { text, plain: true }
            if matches!(&**text, "" | "~" | "null" | "Null" | "NULL"))
    }

    /// What this is, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match &self.value {
            _ if self.is_null() => "nothing",
            Value::Scalar { text, plain: true } if text.parse::<i64>().is_ok() => "a number",
            Value::Scalar { text, plain: true } if matches!(&**text, "true" | "false") => {
                "true or false"
            }
            Value::Scalar { .. } => "a string",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }
}

/// Reads the file; mistakes of syntax go to the report and give `None`.
pub(super) fn parse(report: &mut Report, file: usize) -> Option<Node> {
    let source = report.source(file);
    let mut builder = Builder {
        source: &source,
        file,
        stack: Vec::new(),
        anchors: HashMap::new(),
        nodes: 0,
        repeated: 0,
        root: None,
    };
    let mut documents = 0;
    for event in Parser::new_from_str(&source.text) {
        let (event, marks) = match event {
            Ok(event) => event,
            Err(error) => {
                syntax_error(report, &source, file, &error);
                return None;
            }
        };
        let span = builder.span(marks);
        if matches!(event, Event::DocumentStart(_)) {
            documents += 1;
            if documents > 1 {
                report
                    .error(span, "a second YAML document begins here")
                    .help("put each document into a file of its own; further rule files go to `--rules`");
                return None;
            }
        }
        if let Err(problem) = builder.event(report, event, span) {
            report.error(span, problem.message).help(problem.help);
            return None;
        }
    }
    match builder.root {
        Some(root) if !root.is_null() => Some(root),
        _ => {
            report.whole_file(
                &source.name,
                "the file is empty".into(),
                "write at least `security_groups: {}` in a rule file, or `vpc: { cidr: [10.0.0.0/16] }` in a lab file",
            );
            None
        }
    }
}

/// Why the tree can't be built.
struct Problem {
    message: String,
    help: &'static str,
}

/// A list or mapping that is still open.
struct Frame {
    span: Span,
    anchor: usize,
    height: usize,
    value: Open,
}

enum Open {
    List(Vec<Node>),
    Map(Vec<(Node, Node)>, Option<Node>),
}

struct Builder<'a> {
    source: &'a Source,
    file: usize,
    stack: Vec<Frame>,
    /// Finished nodes that aliases may repeat, with their height.
    anchors: HashMap<usize, (Node, usize)>,
    nodes: usize,
    repeated: usize,
    root: Option<Node>,
}

impl Builder<'_> {
    fn span(&self, marks: saphyr_parser::Span) -> Span {
        let start = self.source.byte_of(marks.start.index());
        let end = self.source.byte_of(marks.end.index()).max(start);
        Span {
            file: self.file,
            start,
            end,
        }
    }

    fn event(&mut self, report: &mut Report, event: Event<'_>, span: Span) -> Result<(), Problem> {
        match event {
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd => Ok(()),
            Event::Scalar(text, style, anchor, tag) => {
                refuse_tag(report, tag.as_deref(), span);
                let value = Value::Scalar {
                    text: text.into(),
                    plain: style == ScalarStyle::Plain,
                };
                self.count(1)?;
                self.finish(Node { span, value }, anchor, 0)
            }
            Event::SequenceStart(anchor, tag) => {
                refuse_tag(report, tag.as_deref(), span);
                self.open(span, anchor, Open::List(Vec::new()))
            }
            Event::MappingStart(anchor, tag) => {
                refuse_tag(report, tag.as_deref(), span);
                self.open(span, anchor, Open::Map(Vec::new(), None))
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(span),
            Event::Alias(anchor) => {
                let Some((node, height)) = self.anchors.get(&anchor) else {
                    return Err(Problem {
                        message: "this alias stands inside what it repeats".into(),
                        help: "write the repeated part out",
                    });
                };
                let height = *height;
                if self.stack.len() + height > MAX_DEPTH {
                    return Err(too_deep());
                }
                let (nodes, bytes) = weight(node);
                self.nodes += nodes;
                self.repeated += bytes;
                self.count(0)?;
                let Some((node, _)) = self.anchors.get(&anchor) else {
                    return Ok(());
                };
                // Its parts keep the place where they are written.
                let mut node = node.clone();
                node.span = span;
                self.finish(node, 0, height)
            }
        }
    }

    fn open(&mut self, span: Span, anchor: usize, value: Open) -> Result<(), Problem> {
        if self.stack.len() >= MAX_DEPTH {
            return Err(too_deep());
        }
        self.count(1)?;
        self.stack.push(Frame {
            span,
            anchor,
            height: 0,
            value,
        });
        Ok(())
    }

    fn close(&mut self, end: Span) -> Result<(), Problem> {
        let Some(frame) = self.stack.pop() else {
            return Ok(());
        };
        let span = Span {
            end: end.end.max(frame.span.end),
            ..frame.span
        };
        let value = match frame.value {
            Open::List(items) => Value::List(items),
            Open::Map(pairs, _) => Value::Map(pairs),
        };
        self.finish(Node { span, value }, frame.anchor, frame.height)
    }

    /// Hands a finished node to its parent.
    fn finish(&mut self, node: Node, anchor: usize, height: usize) -> Result<(), Problem> {
        if anchor != 0 {
            let (nodes, bytes) = weight(&node);
            self.nodes += nodes;
            self.repeated += bytes;
            self.count(0)?;
            self.anchors.insert(anchor, (node.clone(), height));
        }
        let Some(frame) = self.stack.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        frame.height = frame.height.max(height + 1);
        match &mut frame.value {
            Open::List(items) => items.push(node),
            Open::Map(pairs, key) => match key.take() {
                None => *key = Some(node),
                Some(key) => pairs.push((key, node)),
            },
        }
        Ok(())
    }

    fn count(&mut self, more: usize) -> Result<(), Problem> {
        self.nodes += more;
        if self.nodes <= MAX_NODES && self.repeated <= MAX_REPEATED_BYTES {
            return Ok(());
        }
        Err(Problem {
            message: format!(
                "the file has more than {MAX_NODES} values, those repeated by aliases included"
            ),
            help: "split the file, or repeat less with aliases",
        })
    }
}

/// Nodes in a tree and bytes of its text; the tree is no deeper than `MAX_DEPTH`.
fn weight(node: &Node) -> (usize, usize) {
    let add = |(nodes, bytes): (usize, usize), part: &Node| {
        let (more, text) = weight(part);
        (nodes + more, bytes + text)
    };
    match &node.value {
        Value::Scalar { text, .. } => (1, text.len()),
        Value::List(items) => items.iter().fold((1, 0), add),
        Value::Map(pairs) => pairs
            .iter()
            .flat_map(|(key, value)| [key, value])
            .fold((1, 0), add),
    }
}

fn too_deep() -> Problem {
    Problem {
        message: format!("lists and mappings are nested more than {MAX_DEPTH} deep"),
        help: "a lab file needs a handful of levels; look for a bracket that is never closed",
    }
}

fn refuse_tag(report: &mut Report, tag: Option<&saphyr_parser::Tag>, span: Span) {
    if let Some(tag) = tag {
        report
            .error(
                span,
                format!(
                    "YAML tags are not supported, here {}",
                    quoted(&tag.to_string())
                ),
            )
            .help("remove the tag; every value is read as its key requires");
    }
}

fn syntax_error(
    report: &mut Report,
    source: &Source,
    file: usize,
    error: &saphyr_parser::ScanError,
) {
    let start = source.byte_of(error.marker().index());
    let line = source.line_of(start.min(source.text.len()));
    let rest = &source.text[start.min(line.end)..line.end];
    let indent = &source.text[line.start..start.clamp(line.start, line.end)];
    let help = if source.text[line.clone()]
        .chars()
        .take_while(|c| c.is_whitespace())
        .any(|c| c == '\t')
    {
        "YAML is indented with spaces; replace the tab at the start of the line"
    } else if rest.starts_with('\0') || error.info().contains("unprintable") {
        "remove the character that can't be printed; is this a text file?"
    } else if rest.trim().is_empty() && indent.trim().is_empty() {
        "something above this line is not finished: look for a missing bracket, quote or colon"
    } else {
        "look at the brackets, quotes, colons and indentation here and just above"
    };
    let span = Span {
        file,
        start,
        end: line.end.max(start),
    };
    report
        .error(span, format!("not valid YAML: {}", error.info()))
        .help(help);
}
