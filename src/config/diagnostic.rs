//! What is wrong with a file, where, and how to mend it. Text and JSON are two
//! spellings of the same [`Diagnostic`].

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use annotate_snippets::{Annotation, AnnotationKind, Group, Level, Origin, Renderer, Snippet};
use serde::Serialize;

use super::Quotas;
use super::source::{Source, Span};
use super::suggest::nearest;

/// Beyond this many a file is not mistaken but hostile; the rest is not kept.
const MAX_DIAGNOSTICS: usize = 1000;
/// Most names compared with mistyped ones, in all; a file full of both must
/// not take minutes.
const MAX_COMPARED: usize = 300_000;
/// Lines longer than this are cut around the place in question when shown.
const MAX_SHOWN_LINE: usize = 400;
/// Two places of one file further apart than this are shown as two excerpts.
const MAX_SHOWN_GAP: usize = 16 * 1024;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The file is refused.
    Error,
    /// The file is accepted, but probably does not mean what its author thinks.
    Warning,
}

/// A second place that a diagnostic talks about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Related {
    /// The file as the user named it.
    pub file: String,
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
    /// The text there.
    pub text: String,
    /// What it has to do with the matter: `first defined here`.
    pub message: String,
    #[serde(skip)]
    excerpt: Option<Excerpt>,
}

/// One mistake, or one thing worth a second look.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// The file as the user named it.
    pub file: String,
    /// Line, from 1; 0 where the whole file is meant.
    pub line: u32,
    /// Column in characters, from 1; 0 where the whole file is meant.
    pub column: u32,
    /// The offending text.
    pub text: String,
    /// What is wrong.
    pub message: String,
    /// How to mend it.
    pub help: Option<String>,
    /// Other places that matter, the first definition of a duplicate for one.
    pub related: Vec<Related>,
    #[serde(skip)]
    excerpt: Option<Excerpt>,
}

impl Diagnostic {
    /// The diagnostic as rustc would lay it out, ending in a line break.
    pub fn render(&self, colour: bool) -> String {
        let level = match self.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let mut group = Group::with_title(level.primary_title(printable(&self.message)));
        match &self.excerpt {
            None => group = group.element(Origin::path(printable(&self.file))),
            Some(excerpt) => {
                let mut rest: Vec<&Related> = Vec::new();
                let mut here = vec![(excerpt.span.clone(), AnnotationKind::Primary, None)];
                for related in &self.related {
                    match &related.excerpt {
                        Some(other) if excerpt.is_near(other) => here.push((
                            other.span.clone(),
                            AnnotationKind::Context,
                            Some(related.message.as_str()),
                        )),
                        _ => rest.push(related),
                    }
                }
                group = excerpt.show(group, (self.line, self.column), &here);
                for related in rest {
                    if let Some(other) = &related.excerpt {
                        let label = Some(related.message.as_str());
                        let there = [(other.span.clone(), AnnotationKind::Context, label)];
                        group = other.show(group, (related.line, related.column), &there);
                    }
                }
            }
        }
        if let Some(help) = &self.help {
            group = group.element(Level::HELP.message(printable(help)));
        }
        let renderer = if colour {
            Renderer::styled()
        } else {
            Renderer::plain()
        };
        let mut text = renderer.render(&[group]);
        text.push('\n');
        text
    }

    /// A diagnostic about a file as a whole: it can't be read, or is no text.
    pub(super) fn whole_file(file: &str, message: String, help: &str) -> Self {
        Self {
            severity: Severity::Error,
            file: file.to_owned(),
            line: 0,
            column: 0,
            text: file.to_owned(),
            message,
            help: Some(help.to_owned()),
            related: Vec::new(),
            excerpt: None,
        }
    }
}

/// Everything that is wrong with a set of files: at least one error, and the
/// warnings that came up on the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostics(Vec<Diagnostic>);

impl Diagnostics {
    pub(super) fn new(list: Vec<Diagnostic>) -> Self {
        Self(list)
    }

    /// All of them, by file and place.
    pub fn iter(&self) -> std::slice::Iter<'_, Diagnostic> {
        self.0.iter()
    }

    /// How many are errors.
    pub fn errors(&self) -> usize {
        self.0
            .iter()
            .filter(|diagnostic| diagnostic.severity == Severity::Error)
            .count()
    }

    /// How many are warnings.
    pub fn warnings(&self) -> usize {
        self.0.len() - self.errors()
    }

    /// All of them as text with excerpts from the files, one blank line between.
    pub fn render(&self, colour: bool) -> String {
        let texts: Vec<String> = self.0.iter().map(|one| one.render(colour)).collect();
        texts.join("\n")
    }

    /// All of them as a JSON array.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!(self.0)
    }
}

impl<'a> IntoIterator for &'a Diagnostics {
    type Item = &'a Diagnostic;
    type IntoIter = std::slice::Iter<'a, Diagnostic>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl std::error::Error for Diagnostics {}

/// Collects diagnostics while files are read.
#[derive(Debug, Default)]
pub(super) struct Report {
    sources: Vec<Arc<Source>>,
    files: Vec<Diagnostic>,
    drafts: Vec<Draft>,
    scrap: Draft,
    overflow: bool,
    /// Names compared so far in search of what a mistyped one means.
    compared: usize,
    quotas: Quotas,
}

impl Report {
    pub(super) fn new(quotas: Quotas) -> Self {
        Self {
            quotas,
            ..Self::default()
        }
    }

    /// Adds a file and gives its number for [`Span::file`].
    pub(super) fn add_source(&mut self, source: Source) -> usize {
        self.sources.push(Arc::new(source));
        self.sources.len() - 1
    }

    pub(super) fn source(&self, file: usize) -> Arc<Source> {
        Arc::clone(&self.sources[file])
    }

    /// The place where `span` begins.
    pub(super) fn place(&self, span: Span) -> crate::model::Place {
        let source = &self.sources[span.file];
        let (line, column) = source.line_column(span.start);
        crate::model::Place {
            file: Arc::clone(&source.name),
            line,
            column,
        }
    }

    /// Adds an error about a file as a whole.
    pub(super) fn whole_file(&mut self, file: &str, message: String, help: &str) {
        self.files.push(Diagnostic::whole_file(file, message, help));
    }

    /// Adds an error; the draft takes a remedy and further places.
    pub(super) fn error(&mut self, span: Span, message: impl Into<String>) -> &mut Draft {
        self.add(Severity::Error, span, message.into())
    }

    /// Adds a warning.
    pub(super) fn warning(&mut self, span: Span, message: impl Into<String>) -> &mut Draft {
        self.add(Severity::Warning, span, message.into())
    }

    /// Adds what exceeds a quota of AWS: an error, or a warning where quotas
    /// are ignored.
    pub(super) fn quota(
        &mut self,
        span: Span,
        message: impl Into<String>,
        remedy: &str,
    ) -> &mut Draft {
        match self.quotas {
            Quotas::Enforce => self.error(span, message).help(format!(
                "{remedy}; where AWS has raised the quota, `--ignore-quotas` makes this a warning"
            )),
            Quotas::Warn => self.warning(span, message).help(remedy),
        }
    }

    /// The declared name nearest to a mistyped one, if one is near enough.
    pub(super) fn nearest<'a>(
        &mut self,
        word: &str,
        names: impl ExactSizeIterator<Item = &'a str>,
    ) -> Option<&'a str> {
        if self.overflow || self.compared > MAX_COMPARED {
            return None;
        }
        self.compared += names.len();
        nearest(word, names)
    }

    /// Whether there was an error so far.
    pub(super) fn failed(&self) -> bool {
        self.overflow
            || !self.files.is_empty()
            || self
                .drafts
                .iter()
                .any(|draft| draft.severity == Severity::Error)
    }

    /// Everything that was found, by file and place.
    pub(super) fn finish(self) -> Vec<Diagnostic> {
        let Self {
            sources,
            files: mut list,
            mut drafts,
            overflow,
            ..
        } = self;
        drafts.sort_by_key(|draft| (draft.span.file, draft.span.start));
        list.extend(
            drafts
                .into_iter()
                .map(|draft| draft.into_diagnostic(&sources)),
        );
        if overflow {
            let file = sources.first().map_or("", |source| &*source.name);
            list.push(Diagnostic::whole_file(
                file,
                format!("more than {MAX_DIAGNOSTICS} mistakes; the rest is not listed"),
                "mend some of the mistakes above, then check again",
            ));
        }
        list
    }

    fn add(&mut self, severity: Severity, span: Span, message: String) -> &mut Draft {
        let draft = Draft {
            severity,
            span,
            message,
            help: None,
            related: Vec::new(),
        };
        // Errors need their room even after a thousand warnings.
        if self.drafts.len() >= MAX_DIAGNOSTICS {
            self.overflow |= severity == Severity::Error;
            self.scrap = draft;
            return &mut self.scrap;
        }
        let at = self.drafts.len();
        self.drafts.push(draft);
        &mut self.drafts[at]
    }
}

/// A diagnostic being written.
#[derive(Debug)]
pub(super) struct Draft {
    severity: Severity,
    span: Span,
    message: String,
    help: Option<String>,
    related: Vec<(Span, String)>,
}

impl Draft {
    /// How to mend it.
    pub(super) fn help(&mut self, help: impl Into<String>) -> &mut Self {
        self.help = Some(help.into());
        self
    }

    /// Another place that matters.
    pub(super) fn also(&mut self, span: Span, message: impl Into<String>) -> &mut Self {
        self.related.push((span, message.into()));
        self
    }

    fn into_diagnostic(self, sources: &[Arc<Source>]) -> Diagnostic {
        let excerpt = Excerpt::new(sources, self.span);
        let (line, column) = excerpt.line_column();
        let related = self.related.into_iter().map(|(span, message)| {
            let excerpt = Excerpt::new(sources, span);
            let (line, column) = excerpt.line_column();
            Related {
                file: excerpt.source.name.to_string(),
                line,
                column,
                text: excerpt.text(),
                message,
                excerpt: Some(excerpt),
            }
        });
        Diagnostic {
            severity: self.severity,
            file: excerpt.source.name.to_string(),
            line,
            column,
            text: excerpt.text(),
            message: self.message,
            help: self.help,
            related: related.collect(),
            excerpt: Some(excerpt),
        }
    }
}

impl Default for Draft {
    fn default() -> Self {
        Self {
            severity: Severity::Error,
            span: Span {
                file: 0,
                start: 0,
                end: 0,
            },
            message: String::new(),
            help: None,
            related: Vec::new(),
        }
    }
}

/// The part of a file that a diagnostic points at, never more than one line.
#[derive(Clone)]
struct Excerpt {
    source: Arc<Source>,
    span: Range<usize>,
}

impl Excerpt {
    fn new(sources: &[Arc<Source>], span: Span) -> Self {
        let source = Arc::clone(&sources[span.file]);
        let start = span.start.min(source.text.len());
        let line = source.line_of(start);
        let start = start.clamp(line.start, line.end);
        let end = span.end.clamp(start, line.end);
        let end = start + source.text[start..end].trim_end().len();
        Self {
            source,
            span: start..end,
        }
    }

    fn line_column(&self) -> (u32, u32) {
        self.source.line_column(self.span.start)
    }

    fn text(&self) -> String {
        let text = &self.source.text[self.span.clone()];
        match text.char_indices().nth(200) {
            None => text.to_owned(),
            Some((at, _)) => format!("{}…", &text[..at]),
        }
    }

    /// Whether both can be shown in one excerpt.
    fn is_near(&self, other: &Self) -> bool {
        let near = |here: &Range<usize>, there: &Range<usize>| {
            there.end.saturating_sub(here.start) < MAX_SHOWN_GAP
        };
        let short = |this: &Self| this.source.line_of(this.span.start).len() <= MAX_SHOWN_LINE;
        Arc::ptr_eq(&self.source, &other.source)
            && near(&self.span, &other.span)
            && near(&other.span, &self.span)
            && short(self)
            && short(other)
    }

    /// Adds the lines with `marks` to the group.
    fn show<'a>(
        &'a self,
        group: Group<'a>,
        (line, column): (u32, u32),
        marks: &[(Range<usize>, AnnotationKind, Option<&'a str>)],
    ) -> Group<'a> {
        let text = &self.source.text;
        let starts = marks.iter().map(|(span, ..)| span.start);
        let first = starts.clone().min().unwrap_or(self.span.start);
        let last = starts.max().unwrap_or(self.span.start);
        let mut window = self.source.line_of(first).start..self.source.line_of(last).end;
        let cut = marks.len() == 1 && window.len() > MAX_SHOWN_LINE;
        if cut {
            let near = |byte: usize| {
                (window.start..=byte)
                    .rev()
                    .find(|&at| text.is_char_boundary(at))
            };
            let start = near(self.span.start.saturating_sub(80).max(window.start));
            let end = near((self.span.start + 160).min(window.end));
            window = start.unwrap_or(window.start)..end.unwrap_or(window.end);
        }
        let (first_line, _) = self.source.line_column(window.start);
        let mut snippet = Snippet::source(&text[window.clone()]).line_start(first_line as usize);
        for (span, kind, label) in marks {
            let start = span.start.min(window.end) - window.start;
            let end = span.end.min(window.end) - window.start;
            let mark: Annotation<'a> = kind.span(start..end.max(start));
            snippet = snippet.annotation(match label {
                Some(label) => mark.label(*label),
                None => mark,
            });
        }
        if cut {
            // The excerpt does not begin where its line does, so the renderer
            // can't count the column.
            let origin = Origin::path(printable(&self.source.name))
                .line(line as usize)
                .char_column(column as usize);
            return group.element(origin).element(snippet);
        }
        group.element(snippet.path(printable(&self.source.name)))
    }
}

impl fmt::Debug for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{:?}", self.source.name, self.span)
    }
}

impl PartialEq for Excerpt {
    fn eq(&self, other: &Self) -> bool {
        self.source.name == other.source.name && self.span == other.span
    }
}

impl Eq for Excerpt {}

/// A word from a file, quoted for a message: short, and without characters
/// that would do something to the terminal.
pub(super) fn quoted(text: &str) -> String {
    let short: String = text.chars().take(60).collect();
    let dots = if short.len() < text.len() { "…" } else { "" };
    format!("`{}{dots}`", printable(&short))
}

/// The text with control and direction-changing characters spelled out.
pub(super) fn printable(text: &str) -> String {
    let unsafe_to_print = |c: char| {
        (c.is_control() && c != '\n')
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    text.chars()
        .flat_map(|c| {
            let escaped = unsafe_to_print(c).then(|| c.escape_unicode());
            let plain = escaped.is_none().then_some(c);
            escaped.into_iter().flatten().chain(plain)
        })
        .collect()
}
