//! Files to models, with diagnostics.
//!
//! A lab file, and any number of rule files beside it, become one validated
//! [`Model`], or a list of everything that is wrong with them: each mistake
//! with its file, line, column, the offending text and a remedy. Reading goes
//! on after a mistake, so that one run shows them all.
//!
//! Files are read as YAML (JSON is YAML too) into a tree of nodes that know
//! their place, and the tree is walked key by key. Nothing here trusts a file:
//! size, depth, aliases and counts are bounded.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::model::{Model, PrefixList, SecurityGroup};

mod acl;
mod addresses;
mod diagnostic;
mod entities;
mod foreign;
mod groups;
mod kind;
mod members;
mod names;
mod net;
mod quotas;
mod reader;
mod route;
mod rules;
mod source;
mod suggest;
#[cfg(test)]
mod tests;
mod text;
mod tracking;
mod traffic;
mod vpc;
mod yaml;

pub use diagnostic::{Diagnostic, Diagnostics, Related, Severity};
pub use members::{DeclaredMember, MemberName};
pub use quotas::{GROUPS_PER_INTERFACE, MOST_GROUPS_PER_INTERFACE};
pub(crate) use suggest::nearest;
pub(crate) use text::{Findings, in_quotes, read_text};

use diagnostic::{Report, printable};
use entities::Scope;
use names::Names;
use reader::Entry;
use source::{Source, Span};
use vpc::VpcDecl;
use yaml::Node;

/// Largest file that is read.
const MAX_FILE_SIZE: u64 = 8 * 1024 * 1024;
/// What a lab file may hold.
const LAB_KEYS: [&str; 7] = [
    "vpc",
    "subnets",
    "security_groups",
    "prefix_lists",
    "network_acls",
    "route_tables",
    "entities",
];
/// What a rule file may hold.
const RULE_KEYS: [&str; 2] = ["security_groups", "prefix_lists"];

/// A valid set of files.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// What they declare.
    pub model: Model,
    /// What deserves a second look, by file and place.
    pub warnings: Vec<Diagnostic>,
    /// The lab file, then the rule files as given; empty for text in memory.
    pub files: Vec<PathBuf>,
}

/// A valid set of rule files, without a lab.
#[derive(Debug, Clone)]
pub struct LoadedRules {
    /// All groups, the VPC's `default` among them.
    pub security_groups: Vec<Arc<SecurityGroup>>,
    /// All prefix lists.
    pub prefix_lists: Vec<PrefixList>,
    /// Who carries the groups, as far as the files say it.
    pub members: Vec<DeclaredMember>,
    /// What deserves a second look, by file and place.
    pub warnings: Vec<Diagnostic>,
}

/// What exceeds AWS's quotas.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Quotas {
    /// Is an error, as on AWS where no quota was raised.
    #[default]
    Enforce,
    /// Is a warning.
    Warn,
}

/// How files are read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    /// What becomes of what exceeds AWS's quotas.
    pub quotas: Quotas,
}

/// Reads a lab file and its rule files.
///
/// # Errors
/// Everything that is wrong with them; a file that can't be read is one of
/// those things.
pub fn load(lab: &Path, rules: &[PathBuf]) -> Result<Loaded, Diagnostics> {
    load_with(lab, rules, Options::default())
}

/// Reads a lab file and its rule files, with options.
///
/// # Errors
/// As [`load`].
pub fn load_with(lab: &Path, rules: &[PathBuf], options: Options) -> Result<Loaded, Diagnostics> {
    let mut report = Report::new(options.quotas);
    let mut files = vec![lab.to_path_buf()];
    files.extend_from_slice(rules);
    let nodes = read_files(&mut report, &files);
    let name = shown(lab);
    finish(report, &name, &nodes, files)
}

/// Reads rule files that need no lab: groups, their rules and members, prefix lists.
///
/// # Errors
/// As [`load`].
pub fn load_rules(rules: &[PathBuf], options: Options) -> Result<LoadedRules, Diagnostics> {
    let mut report = Report::new(options.quotas);
    let nodes = read_files(&mut report, rules);
    let name = rules.first().map(|path| path.display().to_string());
    finish_rules(report, &name.unwrap_or_default(), &nodes)
}

/// Reads rules that need no lab from memory, each a name and a text.
///
/// # Errors
/// As [`load`].
pub fn load_rule_sources(
    sources: &[(&str, &str)],
    options: Options,
) -> Result<LoadedRules, Diagnostics> {
    let mut report = Report::new(options.quotas);
    let nodes: Vec<_> = sources
        .iter()
        .map(|(name, text)| parse(&mut report, name, (*text).to_owned()))
        .collect();
    finish_rules(report, sources.first().map_or("", |(name, _)| name), &nodes)
}

/// Reads a lab from memory; `name` stands for the file's in diagnostics.
///
/// # Errors
/// Everything that is wrong with it.
pub fn load_str(name: &str, text: &str) -> Result<Loaded, Diagnostics> {
    load_sources(&[(name, text)])
}

/// Reads a lab, the first source, and rules, the others, from memory, each a
/// name and a text.
///
/// # Errors
/// Everything that is wrong with them.
pub fn load_sources(sources: &[(&str, &str)]) -> Result<Loaded, Diagnostics> {
    load_sources_with(sources, Options::default())
}

/// Reads a lab and rules from memory, with options.
///
/// # Errors
/// As [`load_sources`].
pub fn load_sources_with(
    sources: &[(&str, &str)],
    options: Options,
) -> Result<Loaded, Diagnostics> {
    let mut report = Report::new(options.quotas);
    let mut nodes = Vec::with_capacity(sources.len());
    for (name, text) in sources {
        nodes.push(parse(&mut report, name, (*text).to_owned()));
    }
    let lab = sources.first().map_or("", |(name, _)| name);
    finish(report, lab, &nodes, Vec::new())
}

fn read_files(report: &mut Report, files: &[PathBuf]) -> Vec<Option<Node>> {
    let mut read = |path: &PathBuf| {
        let name = shown(path);
        match read_file(path) {
            Ok(text) => parse(report, &name, text),
            Err((message, help)) => {
                report.whole_file(&name, message, help);
                None
            }
        }
    };
    files.iter().map(&mut read).collect()
}

/// Returns a file's name as shown to users.
pub(crate) fn shown(file: &Path) -> String {
    if is_stdin(file) {
        return "<stdin>".to_owned();
    }
    file.display().to_string()
}

/// Returns true for `-`, which stands for standard input. Standard input can be read only once.
pub(crate) fn is_stdin(file: &Path) -> bool {
    file.as_os_str() == "-"
}

/// The text of a file, or what is wrong with it and what to do.
fn read_file(path: &Path) -> Result<String, (String, &'static str)> {
    const WHERE: &str = "check the name and the permissions";
    let cannot = |error: std::io::Error| (format!("the file can't be read: {error}"), WHERE);
    let mut bytes = Vec::new();
    if is_stdin(path) {
        let mut input = std::io::stdin().lock().take(MAX_FILE_SIZE + 1);
        input.read_to_end(&mut bytes).map_err(cannot)?;
        return text_of(bytes);
    }
    let kind = std::fs::metadata(path).map_err(cannot)?.file_type();
    if kind.is_dir() {
        return Err((
            "this is a directory, not a file".into(),
            "name a file in it; several rule files take one `--rules` each",
        ));
    }
    // A pipe is what the shell makes of `--rules <(command)`.
    if !kind.is_file() && !std::os::unix::fs::FileTypeExt::is_fifo(&kind) {
        return Err(("this is a device, not a file".into(), WHERE));
    }
    File::open(path)
        .and_then(|file| file.take(MAX_FILE_SIZE + 1).read_to_end(&mut bytes))
        .map_err(cannot)?;
    text_of(bytes)
}

fn text_of(bytes: Vec<u8>) -> Result<String, (String, &'static str)> {
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let before = &error.as_bytes()[..at];
        let line = before.iter().filter(|&&b| b == b'\n').count() + 1;
        (
            format!(
                "the file is not UTF-8 text: byte {at}, on line {line}, is part of no character"
            ),
            "save the file as UTF-8",
        )
    })
}

fn parse(report: &mut Report, name: &str, text: String) -> Option<Node> {
    if text.len() as u64 > MAX_FILE_SIZE {
        report.whole_file(
            name,
            format!("the file is larger than {} MiB", MAX_FILE_SIZE >> 20),
            "split it into several rule files",
        );
        return None;
    }
    let file = report.add_source(Source::new(name, text));
    yaml::parse(report, file)
}

/// Turns trees into a model, or everything found into diagnostics.
fn finish(
    mut report: Report,
    lab: &str,
    nodes: &[Option<Node>],
    files: Vec<PathBuf>,
) -> Result<Loaded, Diagnostics> {
    let model = assemble(&mut report, lab, nodes);
    if report.failed() {
        return Err(Diagnostics::new(report.finish()));
    }
    Ok(Loaded {
        model,
        warnings: report.finish(),
        files,
    })
}

/// Turns trees into groups and prefix lists, or everything found into diagnostics.
fn finish_rules(
    mut report: Report,
    first: &str,
    nodes: &[Option<Node>],
) -> Result<LoadedRules, Diagnostics> {
    let mut sections = Sections::default();
    for node in nodes {
        match node {
            Some(node) => read_sections(&mut report, node, false, &mut sections),
            None => sections.incomplete = true,
        }
    }
    let mut names = Names {
        incomplete: sections.incomplete,
        ..Names::default()
    };
    let lists = groups::read_lists(&mut report, &sections.lists, &mut names);
    let mut groups = groups::read_groups(&mut report, &sections.groups, &first.into(), &mut names);
    // As for a VPC with blocks of both families.
    let rules = groups::read_rules(&mut report, &mut groups, &names, true);
    let members = members::read(&mut report, &groups);
    quotas::check(
        &mut report,
        &quotas::Declared {
            groups: &groups,
            lists: &lists,
            acls: &[],
            tables: &[],
            interfaces: &[],
        },
    );
    check_ids(&mut report, ids_of_rules(&groups, &lists, &rules));
    if report.failed() {
        return Err(Diagnostics::new(report.finish()));
    }
    Ok(LoadedRules {
        security_groups: groups
            .into_iter()
            .map(|decl| Arc::new(decl.group))
            .collect(),
        prefix_lists: lists.into_iter().map(|decl| decl.list).collect(),
        members,
        warnings: report.finish(),
    })
}

/// The sections of all files, as far as they could be read.
#[derive(Default)]
struct Sections<'n> {
    vpc: Option<&'n Node>,
    subnets: Vec<Entry<'n>>,
    groups: Vec<Entry<'n>>,
    lists: Vec<Entry<'n>>,
    acls: Vec<Entry<'n>>,
    tables: Vec<Entry<'n>>,
    entities: Vec<Entry<'n>>,
    /// Something is missing that may well be declared in what can't be read.
    incomplete: bool,
}

fn assemble(report: &mut Report, lab: &str, nodes: &[Option<Node>]) -> Model {
    let mut sections = Sections::default();
    for (i, node) in nodes.iter().enumerate() {
        match node {
            Some(node) => read_sections(report, node, i == 0, &mut sections),
            None => sections.incomplete = true,
        }
    }
    let lab: Arc<str> = lab.into();
    let vpc = match sections.vpc {
        Some(node) => vpc::read_vpc(report, node),
        None => VpcDecl::default(),
    };
    let (acls, acl_names) = acl::read(report, &sections.acls, &lab, vpc.vpc.has_ipv6());
    let (mut tables, table_names) = route::read_heads(report, &sections.tables, &lab);
    let scope = vpc::Scope {
        vpc: &vpc,
        acls: &acl_names,
        tables: &table_names,
        incomplete: sections.incomplete,
    };
    let subnets = vpc::read_subnets(report, &sections.subnets, &scope);
    let mut names = Names {
        incomplete: sections.incomplete,
        ..Names::default()
    };
    let lists = groups::read_lists(report, &sections.lists, &mut names);
    let mut groups = groups::read_groups(report, &sections.groups, &lab, &mut names);
    let rules = groups::read_rules(report, &mut groups, &names, vpc.vpc.has_ipv6());
    let scope = Scope::new(&subnets, &names);
    let (entities, mut interfaces) = entities::read(report, &sections.entities, &scope);
    addresses::assign(report, &mut interfaces, &subnets, &vpc);
    let scope = route::Scope::new(
        (&vpc, &subnets),
        &sections.entities,
        &entities,
        &interfaces,
        sections.incomplete,
    );
    route::read_routes(report, &mut tables, &scope);
    let declared = quotas::Declared {
        groups: &groups,
        lists: &lists,
        acls: &acls,
        tables: &tables,
        interfaces: &interfaces,
    };
    quotas::check(report, &declared);

    members::are_of_no_use(report, &groups);

    let ids = subnets
        .iter()
        .map(|decl| (decl.subnet.id.clone(), written(decl.key, decl.id)))
        .chain(ids_of_rules(&groups, &lists, &rules))
        .chain(
            acls.iter()
                .map(|decl| (decl.acl.id.clone(), if_declared(decl.key, decl.id))),
        )
        .chain(
            tables
                .iter()
                .map(|decl| (decl.table.id.clone(), if_declared(decl.key, decl.id))),
        )
        .chain(
            interfaces
                .iter()
                .map(|decl| (decl.interface.id.clone(), written(decl.span, decl.id))),
        );
    check_ids(report, ids);

    Model {
        vpc: vpc.vpc,
        network_acls: acls.into_iter().map(|decl| decl.acl).collect(),
        route_tables: tables.into_iter().map(|decl| decl.table).collect(),
        subnets: subnets.into_iter().map(|decl| decl.subnet).collect(),
        prefix_lists: lists.into_iter().map(|decl| decl.list).collect(),
        security_groups: groups
            .into_iter()
            .map(|decl| Arc::new(decl.group))
            .collect(),
        entities,
        interfaces: interfaces.into_iter().map(|decl| decl.interface).collect(),
        members: Vec::new(),
    }
}

fn read_sections<'n>(
    report: &mut Report,
    node: &'n Node,
    is_lab: bool,
    sections: &mut Sections<'n>,
) {
    let (what, known) = if is_lab {
        ("a lab file", &LAB_KEYS[..])
    } else {
        ("a rule file", &RULE_KEYS[..])
    };
    let Some(entries) = report.entries(node, what) else {
        sections.incomplete = true;
        return;
    };
    for entry in &entries {
        if known.contains(&entry.name) {
            continue;
        }
        if LAB_KEYS.contains(&entry.name) {
            report
                .error(entry.key, format!("a rule file has no `{}`", entry.name))
                .help(format!(
                    "move `{}` to the lab file; a rule file has `security_groups` and `prefix_lists` only",
                    entry.name
                ));
            continue;
        }
        // Where a section is misspelt, what refers into it is not.
        sections.incomplete = true;
        let help = match suggest::nearest(entry.name, known.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("the keys of {what} are {}", reader::list_of(known)),
        };
        report
            .error(
                entry.key,
                format!("{what} has no key {}", diagnostic::quoted(entry.name)),
            )
            .help(help);
    }
    let mut section = |report: &mut Report, name: &str| {
        let found = entries.iter().find(|entry| entry.name == name)?;
        if found.value.is_null() {
            return None;
        }
        let read = report.entries(found.value, &format!("`{name}`"));
        sections.incomplete |= read.is_none();
        read
    };
    let groups = section(report, "security_groups");
    let lists = section(report, "prefix_lists");
    sections.groups.extend(groups.into_iter().flatten());
    sections.lists.extend(lists.into_iter().flatten());
    if !is_lab {
        return;
    }
    let mut of_lab = |name: &str| section(report, name).unwrap_or_default();
    let (subnets, entities) = (of_lab("subnets"), of_lab("entities"));
    let (acls, tables) = (of_lab("network_acls"), of_lab("route_tables"));
    sections.subnets = subnets;
    sections.entities = entities;
    sections.acls = acls;
    sections.tables = tables;
    match entries.iter().find(|entry| entry.name == "vpc") {
        Some(found) => sections.vpc = Some(found.value),
        None if sections.incomplete => {}
        None => {
            report
                .error(node.span, "the lab file has no `vpc`")
                .help("write for example `vpc: { cidr: [10.0.0.0/16] }`");
        }
    }
}

/// Where an id is, and whether somebody wrote it: a derived one has the key's place.
type IdPlace = (Option<Span>, bool);

fn written(key: Span, id: Span) -> IdPlace {
    (Some(id), id != key)
}

fn if_declared(key: Option<Span>, id: Option<Span>) -> IdPlace {
    let place = key.zip(id).map(|(key, id)| written(key, id));
    place.unwrap_or((None, false))
}

fn ids_of_rules(
    groups: &[groups::GroupDecl<'_>],
    lists: &[groups::ListDecl],
    rules: &[rules::RuleSpan],
) -> impl Iterator<Item = (String, IdPlace)> {
    let lists = lists
        .iter()
        .map(|decl| (decl.list.id.clone(), written(decl.key, decl.id)));
    let groups = groups
        .iter()
        .map(|decl| (decl.group.id.clone(), if_declared(decl.key, decl.id)));
    let rules = rules
        .iter()
        .map(|rule| (rule.id.to_string(), (rule.span, rule.written)));
    lists.chain(groups).chain(rules)
}

/// Ids are unique; a clash is blamed on the id that somebody wrote. Two derived
/// ids clash only in the wake of a written one that is reported already.
fn check_ids(report: &mut Report, ids: impl Iterator<Item = (String, IdPlace)>) {
    let mut seen: HashMap<String, IdPlace> = HashMap::new();
    for (id, here) in ids {
        let Some(first) = seen.get(&id).copied() else {
            seen.insert(id, here);
            continue;
        };
        let (blamed, other) = match (first, here) {
            ((other, _), (Some(blamed), true)) | ((Some(blamed), true), (other, _)) => {
                (blamed, other)
            }
            _ => continue,
        };
        let draft = report
            .error(blamed, format!("the id `{}` is used twice", printable(&id)))
            .help("ids are unique: change one of the two, or remove it to have one derived");
        if let Some(other) = other {
            draft.also(other, "used here too");
        }
    }
}
