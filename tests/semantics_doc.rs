//! `docs/semantics.md` promises a test for each of its rows: they are there.
#![allow(
    clippy::unwrap_used,
    reason = "a test that can't read the documentation has failed"
)]

use std::fs;
use std::path::{Component, Path};

const DOCUMENT: &str = "docs/semantics.md";

/// How far above its `fn` a test's `#[test]` may stand, in lines.
const ATTRIBUTES: usize = 4;

/// A table's row below header and separator: where, and as it stands there.
struct Row<'a> {
    line: usize,
    text: &'a str,
}

impl Row<'_> {
    /// The cells between the outer bars. `\|` is no bar.
    fn cells(&self) -> Vec<String> {
        let hidden = self.text.trim().replace("\\|", "\0");
        let inner = hidden.trim_start_matches('|').trim_end_matches('|');
        let cells = inner.split('|');
        cells.map(|cell| cell.trim().replace('\0', "\\|")).collect()
    }

    /// What the last cell names, as path and function.
    fn tests(&self) -> Result<Vec<(String, String)>, String> {
        let cells = self.cells();
        let last = cells.last().map(String::as_str).unwrap_or_default();
        let mut pieces = last.split('`');
        let mut tests = Vec::new();
        // Outside of backticks there are commas, inside a name.
        while let Some(between) = pieces.next() {
            if !between.chars().all(|c| c == ',' || c.is_whitespace()) {
                return Err(format!("`{between}` is no test's name in backticks"));
            }
            if let Some(name) = pieces.next() {
                let (path, function) = name
                    .split_once(": ")
                    .ok_or_else(|| format!("`{name}` isn't `path: function`"))?;
                tests.push((path.to_owned(), function.to_owned()));
            }
        }
        if tests.is_empty() {
            return Err("names no test".to_owned());
        }
        Ok(tests)
    }
}

/// The rows of all tables of a Markdown text.
///
/// # Panics
///
/// If a table isn't header, separator and rows of as many cells, the last of
/// them the `test`.
fn rows(text: &str) -> Vec<Row<'_>> {
    let mut rows = Vec::new();
    let mut lines = text.lines().enumerate().peekable();
    while let Some((at, header)) = lines.next() {
        if !header.trim_start().starts_with('|') {
            continue;
        }
        let header = Row {
            line: at + 1,
            text: header,
        };
        let titles = header.cells();
        assert_eq!(titles.last().unwrap(), "test", "line {}", header.line);
        let (_, separator) = lines.next().unwrap_or_default();
        let is_separator = |c| matches!(c, '|' | '-' | ':' | ' ');
        assert!(
            separator.contains("---") && separator.chars().all(is_separator),
            "line {}: a header without its separator",
            header.line
        );
        let before = rows.len();
        while let Some((at, text)) = lines.next_if(|(_, text)| text.trim_start().starts_with('|')) {
            let row = Row { line: at + 1, text };
            let cells = row.cells();
            assert_eq!(cells.len(), titles.len(), "line {}: {text}", row.line);
            assert!(
                cells.iter().all(|cell| !cell.is_empty()) || cells.last().unwrap().is_empty(),
                "line {}: an empty cell: {text}",
                row.line
            );
            rows.push(row);
        }
        assert!(rows.len() > before, "line {}: no rows", header.line);
    }
    rows
}

/// Whether `function` is a test that runs: in `source`, or in `registry`, the
/// list of tests of a harness of its own.
fn is_test(source: &str, function: &str, registry: Option<(&str, &str)>) -> bool {
    let lines: Vec<&str> = source.lines().map(str::trim).collect();
    let definition = format!("fn {function}(");
    let mut found = lines.iter().enumerate().filter(|(_, line)| {
        line.strip_prefix("pub ")
            .unwrap_or(line)
            .starts_with(&definition)
    });
    if let Some((module, registry)) = registry {
        let entry = format!("{module}::{function},");
        return found.next().is_some() && registry.lines().any(|line| line.trim() == entry);
    }
    found.any(|(at, _)| {
        let above = lines[..at].iter().rev().take(ATTRIBUTES);
        // Nothing but attributes and comments stands between.
        let own: Vec<_> = above
            .take_while(|line| !line.is_empty() && !line.ends_with(['}', ';', '{']))
            .collect();
        own.iter().any(|line| **line == "#[test]")
            && !own.iter().any(|line| line.starts_with("#[ignore"))
    })
}

/// Why that test of the row isn't there, if it isn't.
fn missing(path: &str, function: &str) -> Option<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let relative = Path::new(path);
    if !relative
        .components()
        .all(|part| matches!(part, Component::Normal(_)))
    {
        return Some(format!("`{path}` is no path inside the project"));
    }
    let Ok(source) = fs::read_to_string(root.join(relative)) else {
        return Some(format!("there is no file `{path}`"));
    };
    // tests/lab.rs runs its modules' functions from a list.
    let harness = fs::read_to_string(root.join("tests/lab.rs")).unwrap();
    let registry = relative
        .starts_with("tests/lab")
        .then(|| relative.file_stem().and_then(|stem| stem.to_str()))
        .flatten()
        .map(|module| (module, harness.as_str()));
    let there = is_test(&source, function, registry);
    (!there).then(|| format!("`{path}` has no test `{function}`"))
}

/// What is wrong with a row, each time with the row.
fn complaints(row: &Row<'_>) -> Vec<String> {
    let wrong = match row.tests() {
        Ok(tests) => tests
            .iter()
            .filter_map(|(path, function)| missing(path, function))
            .collect(),
        Err(why) => vec![why],
    };
    wrong
        .into_iter()
        .map(|why| format!("{DOCUMENT}:{}: {why}\n  {}", row.line, row.text))
        .collect()
}

#[test]
fn every_row_names_tests_that_exist() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(DOCUMENT);
    let text = fs::read_to_string(path).unwrap();
    let rows = rows(&text);
    assert!(rows.len() > 100, "only {} rows were found", rows.len());
    let bars = text.lines().filter(|line| line.starts_with('|')).count();
    let tables = text.lines().filter(|line| line.starts_with("|---")).count();
    assert_eq!(rows.len(), bars - 2 * tables, "every row is looked at");
    let wrong: Vec<String> = rows.iter().flat_map(complaints).collect();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// What is said of a table with that one row.
fn of_row(row: &str) -> Vec<String> {
    let text = format!("Words.\n\n| AWS | test |\n|---|---|\n{row}\n");
    let rows = rows(&text);
    assert_eq!(rows.len(), 1, "{row}");
    complaints(&rows[0])
}

#[test]
fn a_row_without_a_test_is_found_out() {
    let here = "`tests/semantics_doc.rs: a_row_without_a_test_is_found_out`";
    assert_eq!(of_row(&format!("| a | {here} |")), [""; 0]);
    assert_eq!(of_row(&format!("| a \\| b | {here}, {here} |")), [""; 0]);
    let lab = "`tests/lab/floor.rs: an_idle_lab_sends_nothing`";
    assert_eq!(of_row(&format!("| a | {lab} |")), [""; 0]);
    for (cell, why) in [
        ("", "names no test"),
        ("to be written", "no test's name"),
        (&format!("{here} and more") as &str, "no test's name"),
        (
            "`a_row_without_a_test_is_found_out`",
            "isn't `path: function`",
        ),
        ("`tests/none.rs: a`", "no file `tests/none.rs`"),
        ("`../x.rs: a`", "no path inside the project"),
        (
            "`tests/semantics_doc.rs: nothing_such`",
            "no test `nothing_such`",
        ),
        // A function that is there, and no test; and one that isn't run.
        ("`tests/semantics_doc.rs: of_row`", "no test `of_row`"),
        (
            "`tests/lab/floor.rs: nothing_such`",
            "no test `nothing_such`",
        ),
        ("`tests/lab/support.rs: up`", "no test `up`"),
    ] {
        let found = of_row(&format!("| the behaviour | {cell} |"));
        assert_eq!(found.len(), 1, "{cell}: {found:?}");
        assert!(found[0].contains(why), "{cell}: {found:?}");
        assert!(
            found[0].contains("| the behaviour |"),
            "the row is named: {found:?}"
        );
    }
    // One of several that isn't there is enough.
    let two = of_row(&format!("| a | {here}, `tests/none.rs: a` |"));
    assert_eq!(two.len(), 1, "{two:?}");
}

#[test]
fn attributes_may_stand_between_and_other_functions_may_not() {
    for (source, is) in [
        ("#[test]\nfn a() {", true),
        ("    #[test]\n    #[should_panic]\n    fn a() {", true),
        (
            "#[test]\n// Why.\n#[cfg(unix)]\n#[allow(x)]\nfn a()\n{",
            true,
        ),
        ("fn a() {", false),
        ("#[test]\nfn ab() {", false),
        ("#[test]\n\nfn a() {", false),
        ("#[test]\nfn b() {\n}\nfn a() {", false),
        ("#[test]\n#[ignore = \"slow\"]\nfn a() {", false),
        ("// #[test]\nfn a() {", false),
        ("#[test]\n#[b]\n#[c]\n#[d]\n#[e]\nfn a() {", false),
    ] {
        assert_eq!(is_test(source, "a", None), is, "{source}");
    }
    let list = Some(("m", "    m::b,\n    m::a,\n"));
    assert!(is_test("pub fn a() {", "a", list));
    assert!(!is_test("pub fn c() {", "c", list));
    assert!(!is_test("pub fn a() {", "a", Some(("n", "m::a,"))));
}
