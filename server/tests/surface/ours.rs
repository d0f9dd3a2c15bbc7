//! What is here, held against what is recorded: a row for each name.
use super::document::Section;
use super::recorded::{Recorded, Verdict, Verdicts, text_of};
use prost_reflect::{Cardinality, FieldDescriptor, Kind, MessageDescriptor, MethodDescriptor};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use sternpost_server::config::file;
use sternpost_server::config::options::{OPTIONS, Status, position};
use sternpost_server::gateway::routes::{descriptors, routes};
use sternpost_server::metrics::names::{ABSENT, METRICS};

/// One name of etcd's.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) kind: &'static str,
    pub(crate) name: String,
    pub(crate) verdict: Verdict,
    pub(crate) why: String,
    /// Where it is shown, shortly.
    pub(crate) shown: String,
}

/// Fields and methods by the case files that have them, and flags by the tests that give them.
struct Evidence {
    fields: BTreeMap<String, Vec<String>>,
    tests: Vec<String>,
}

impl Evidence {
    fn read() -> Self {
        let fields = text_of("fields.txt");
        let fields = fields.lines().filter_map(|line| line.split_once(": "));
        let fields = fields
            .map(|(name, files)| (name.to_owned(), files.split(' ').map(str::to_owned).collect()))
            .collect();
        let mut tests = Vec::new();
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for folder in ["server/tests", "tools/tests"] {
            texts_below(&root, Path::new(folder), &mut tests);
        }
        Self { fields, tests }
    }

    fn cases(&self, name: &str) -> String {
        self.fields.get(name).map_or_else(String::new, |files| shortened(files))
    }

    /// Whether a test gives the flag; which one would change with every test.
    fn tests_with(&self, flag: &str) -> String {
        let text = format!("--{flag}");
        let gives = |content: &str| {
            content.match_indices(&text).any(|(at, _)| {
                let next = content[at + text.len()..].chars().next();
                !next.is_some_and(|next| next.is_ascii_alphanumeric() || next == '-' || next == '.')
            })
        };
        if self.tests.iter().any(|content| gives(content)) { "tests".to_owned() } else { String::new() }
    }
}

/// Sources and case files below a folder, but for this test's own.
fn texts_below(root: &Path, folder: &Path, into: &mut Vec<String>) {
    for entry in std::fs::read_dir(root.join(folder)).expect("a folder of tests") {
        let path = folder.join(entry.expect("readable").file_name());
        let name = path.to_string_lossy().into_owned();
        if name.contains("tests/surface") {
            continue;
        }
        if root.join(&path).is_dir() {
            texts_below(root, &path, into);
        } else if [".rs", ".txt"].iter().any(|ending| name.ends_with(ending)) {
            into.push(std::fs::read_to_string(root.join(&path)).expect("text"));
        }
    }
}

fn shortened(files: &[String]) -> String {
    match files {
        [..] if files.len() <= 3 => files.join(", "),
        [first, second, ..] => format!("{first}, {second} and {} more", files.len() - 2),
        _ => String::new(),
    }
}

pub(crate) fn rows(recorded: &Recorded, verdicts: &mut Verdicts) -> Vec<(Section, Vec<Row>)> {
    let evidence = Evidence::read();
    let judge = Judge { verdicts, evidence: &evidence };
    let mut sections = Vec::new();
    let methods = recorded.of("method");
    let fields = recorded.of("field");
    let mut told = BTreeSet::new();
    for words in &methods {
        let mut rows = vec![judge.method(words)];
        let [name, _, input, output] = words[..] else { panic!("{words:?}") };
        for message in [input, output] {
            rows.extend(judge.fields_of(message, &fields, &mut told));
        }
        sections.push((Section::Method(name.to_owned()), rows));
    }
    // What stands in messages that stand in these, and in nothing else.
    let inner: BTreeSet<&str> = fields.iter().map(|words| message_of(words[0])).collect();
    for message in inner {
        let rows = judge.fields_of(message, &fields, &mut told);
        if !rows.is_empty() {
            sections.push((Section::Message(message.to_owned()), rows));
        }
    }
    let judged = |kind: &str, judge_one: &dyn Fn(&[&str]) -> Row| -> Vec<Row> {
        recorded.of(kind).iter().map(|words| judge_one(words)).collect()
    };
    sections.push((Section::Values, judged("value", &|words| judge.value(words))));
    sections.push((Section::Routes, judged("route", &|words| judge.route(words))));
    sections.push((Section::Paths, judged("path", &|words| judge.path(words))));
    let mut flags = judged("flag", &|words| judge.flag(words));
    flags.extend(judged("dropped", &|words| judge.dropped(words)));
    sections.push((Section::Flags, flags));
    sections.push((Section::Keys, judged("key", &|words| judge.key(words))));
    sections.push((Section::Metrics, judged("metric", &|words| judge.metric(words))));
    sections
}

fn message_of(field: &str) -> &str {
    field.rsplit_once('.').expect("a message and a field").0
}

struct Judge<'a> {
    verdicts: &'a Verdicts,
    evidence: &'a Evidence,
}

impl Judge<'_> {
    /// A row that says `found` of itself unless something was decided about it. What is as it is in etcd (`fits`) needs no verdict but where nothing
    /// compares it.
    fn row(&self, kind: &'static str, name: &str, found: Verdict, why: &str, shown: String) -> Row {
        let plain =
            || Row { kind, name: name.to_owned(), verdict: found, why: why.to_owned(), shown: shown.clone() };
        // What was compared and is the same can still be different in what it means; what is missing needs a reason.
        let Some(decided) = self.verdicts.about(kind, name) else { return plain() };
        let shown = if decided.test.is_empty() { shown } else { decided.test.clone() };
        Row { kind, name: name.to_owned(), verdict: decided.verdict, why: decided.why.clone(), shown }
    }

    fn method(&self, words: &[&str]) -> Row {
        let [name, kind, input, output] = words[..] else { panic!("{words:?}") };
        let found = method_named(name).is_some_and(|method| {
            let of = match (method.is_client_streaming(), method.is_server_streaming()) {
                (false, false) => "unary",
                (false, true) => "answers",
                (true, _) => "both",
            };
            of == kind && method.input().full_name() == input && method.output().full_name() == output
        });
        let cases = self.evidence.cases(name);
        self.row("method", name, compared(found, &cases), "", cases)
    }

    fn fields_of(&self, message: &str, fields: &[Vec<&str>], told: &mut BTreeSet<String>) -> Vec<Row> {
        let own = fields.iter().filter(|words| message_of(words[0]) == message);
        let mut own: Vec<(u32, Row)> = own
            .filter(|words| told.insert(words[0].to_owned()))
            .map(|words| (words[1].parse().expect("a number"), self.field(words)))
            .collect();
        own.sort_by_key(|(number, _)| *number);
        own.into_iter().map(|(_, row)| row).collect()
    }

    fn field(&self, words: &[&str]) -> Row {
        let [name, number, cardinality, kind] = words[..] else { panic!("{words:?}") };
        let message = descriptors().get_message_by_name(message_of(name));
        let own = name.rsplit_once('.').map_or(name, |(_, own)| own);
        let field = message.and_then(|message: MessageDescriptor| message.get_field_by_name(own));
        let found = field.is_some_and(|field| {
            field.number().to_string() == number
                && cardinality_of(&field) == cardinality
                && kind_of(&field) == kind
        });
        let cases = self.evidence.cases(name);
        self.row("field", name, compared(found, &cases), "", cases)
    }

    fn value(&self, words: &[&str]) -> Row {
        let [name, number] = words[..] else { panic!("{words:?}") };
        let (of, own) = name.rsplit_once('.').expect("an enum and a value");
        let value = descriptors().get_enum_by_name(of).and_then(|kind| kind.get_value_by_name(own));
        let found = value.is_some_and(|value| value.number().to_string() == number);
        self.row("value", name, by_table(found), "", String::new())
    }

    fn route(&self, words: &[&str]) -> Row {
        let [path, method] = words[..] else { panic!("{words:?}") };
        let found = routes().get(path).is_some_and(|route| route.grpc_path == format!("/{method}"));
        self.row("route", path, by_table(found), method, "api.rs, through the gateway".to_owned())
    }

    /// Recorded are the answers of etcd; `paths.rs` holds ours against them.
    fn path(&self, words: &[&str]) -> Row {
        let [listener, method, path, status] = words[..] else { panic!("{words:?}") };
        let name = format!("{listener} {method} {path}");
        self.row("path", &name, Verdict::Same, status, "surface.rs".to_owned())
    }

    fn flag(&self, words: &[&str]) -> Row {
        let name = words[0];
        // As Go quotes a text, and writes a time.
        let default = words[1..].join(" ");
        let default = default.strip_prefix('"').and_then(|text| text.strip_suffix('"')).expect("quotes");
        let default = default.replace("\\\"", "\"");
        let default = default.strip_suffix("h0m0s").map_or(default.clone(), |hours| format!("{hours}h"));
        let spec = position(name).map(|index| &OPTIONS[index]);
        let tests = self.evidence.tests_with(name);
        let (verdict, why) = match spec {
            None => (Verdict::Missing, ""),
            Some(spec) => match spec.status {
                Status::Served if spec.default == default => (compared(true, &tests), ""),
                Status::Served => (Verdict::Missing, ""),
                Status::Warned(reason) if reason.contains(" yet") => (Verdict::Open, reason),
                Status::Warned(reason) => (Verdict::Different, reason),
            },
        };
        self.row("flag", &format!("--{name}"), verdict, why, tests)
    }

    fn dropped(&self, words: &[&str]) -> Row {
        let spec = position(words[0]).map(|index| &OPTIONS[index]);
        let is_dropped = spec.is_some_and(|spec| matches!(spec.status, Status::Warned(_)));
        let why = "taken and dropped, as in etcd";
        self.row("flag", &format!("--{}", words[0]), by_table(is_dropped), why, String::new())
    }

    fn key(&self, words: &[&str]) -> Row {
        let parts: Vec<&str> = words[0].split('.').collect();
        let mut text = String::new();
        for (depth, part) in parts.iter().enumerate() {
            text.push_str(&format!("{}{part}:\n", "  ".repeat(depth)));
        }
        // Of no kind that any value has: what knows the key refuses it, or takes it as a text.
        let text = format!("{} '?'\n", text.trim_end());
        let mut notices = Vec::new();
        let read = file::read("keys.yml", &text, &mut notices);
        let found = read.is_err() || notices.is_empty();
        self.row("key", words[0], by_table(found), "", String::new())
    }

    fn metric(&self, words: &[&str]) -> Row {
        let (name, kind) = (words[0], words[1]);
        let labels: Vec<&str> = words.get(2).map_or(Vec::new(), |labels| labels.split(',').collect());
        let reason = ABSENT.iter().find(|(pattern, _)| match pattern.strip_suffix('*') {
            Some(beginning) => name.starts_with(beginning),
            None => *pattern == name,
        });
        let found = METRICS.iter().find(|spec| spec.name == name).is_some_and(|spec| {
            let mut own = spec.labels.to_vec();
            own.sort_unstable();
            (kind == "-" || spec.kind.name() == kind) && own == labels
        });
        let (verdict, why) = match reason {
            Some((_, reason)) if reason.contains(" yet") => (Verdict::Open, *reason),
            Some((_, reason)) => (Verdict::Absent, *reason),
            None => (by_table(found), ""),
        };
        self.row("metric", name, verdict, why, String::new())
    }
}

/// Told by tables on both sides.
fn by_table(found: bool) -> Verdict {
    if found { Verdict::Same } else { Verdict::Missing }
}

/// Told by cases.
fn compared(found: bool, cases: &str) -> Verdict {
    match (found, cases.is_empty()) {
        (false, _) => Verdict::Missing,
        (true, true) => Verdict::NotCompared,
        (true, false) => Verdict::Same,
    }
}

fn method_named(name: &str) -> Option<MethodDescriptor> {
    let (service, method) = name.split_once('/')?;
    descriptors().get_service_by_name(service)?.methods().find(|found| found.name() == method)
}

fn cardinality_of(field: &FieldDescriptor) -> &'static str {
    match field.cardinality() {
        Cardinality::Optional => "optional",
        Cardinality::Required => "required",
        Cardinality::Repeated => "repeated",
    }
}

fn kind_of(field: &FieldDescriptor) -> String {
    match field.kind() {
        Kind::Message(message) => message.full_name().to_owned(),
        Kind::Enum(kind) => kind.full_name().to_owned(),
        scalar => format!("{scalar:?}").to_ascii_lowercase(),
    }
}
