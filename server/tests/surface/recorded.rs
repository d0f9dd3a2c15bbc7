//! What is recorded of etcd, and what was decided about it.
use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Where the records are.
pub(crate) fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/surface")
}

pub(crate) fn text_of(file: &str) -> String {
    let path = folder().join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// How something is here.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Verdict {
    Same,
    Better,
    Different,
    /// There is nothing of the kind here, for good.
    Absent,
    /// It is not there, or without effect, and should be.
    Open,
    /// It is there, and nothing compares it.
    NotCompared,
    /// Nobody has said anything: fails.
    Missing,
}

impl Verdict {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Same => "same",
            Self::Better => "better",
            Self::Different => "different",
            Self::Absent => "absent",
            Self::Open => "open",
            Self::NotCompared => "not compared",
            Self::Missing => "missing",
        }
    }
}

/// Lines by their first word.
pub(crate) struct Recorded {
    by_kind: BTreeMap<String, Vec<String>>,
}

impl Recorded {
    pub(crate) fn read() -> Self {
        Self::parse(&[text_of("etcd.txt"), text_of("paths.txt")].concat())
    }

    pub(crate) fn parse(text: &str) -> Self {
        let mut by_kind = BTreeMap::<String, Vec<String>>::new();
        for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
            let (kind, rest) = line.split_once(' ').unwrap_or_else(|| panic!("a kind and a name: {line}"));
            by_kind.entry(kind.to_owned()).or_default().push(rest.to_owned());
        }
        Self { by_kind }
    }

    /// Lines of a kind, without that word, in words.
    pub(crate) fn of(&self, kind: &str) -> Vec<Vec<&str>> {
        self.by_kind.get(kind).into_iter().flatten().map(|line| line.split(' ').collect()).collect()
    }
}

/// The lines of `verdicts.txt`: `kind name | verdict | why | test`. A name that ends with `*` stands for all that begin so.
pub(crate) struct Verdicts {
    lines: Vec<Decided>,
}

pub(crate) struct Decided {
    kind: String,
    name: String,
    pub(crate) verdict: Verdict,
    pub(crate) why: String,
    /// A file of the repository that shows it, or nothing.
    pub(crate) test: String,
    used: Cell<bool>,
}

impl Verdicts {
    pub(crate) fn read() -> Self {
        Self::parse(&text_of("verdicts.txt"))
    }

    pub(crate) fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        Self { lines: lines.map(decided).collect() }
    }

    /// What was decided about something that does not speak for itself.
    pub(crate) fn about(&self, kind: &str, name: &str) -> Option<&Decided> {
        let covers = |pattern: &str| match pattern.strip_suffix('*') {
            Some(beginning) => name.starts_with(beginning),
            None => pattern == name,
        };
        let found = self.lines.iter().find(|line| line.kind == kind && covers(&line.name))?;
        found.used.set(true);
        Some(found)
    }

    /// Lines that nothing asked for.
    pub(crate) fn unused(&mut self) -> Vec<String> {
        let unused = self.lines.iter().filter(|line| !line.used.get());
        unused.map(|line| format!("{} {}", line.kind, line.name)).collect()
    }
}

fn decided(line: &str) -> Decided {
    let mut parts = line.split('|').map(str::trim);
    let (kind, name) = parts.next().and_then(|name| name.split_once(' ')).unwrap_or_else(|| panic!("{line}"));
    let verdict = match parts.next() {
        Some("same") => Verdict::Same,
        Some("better") => Verdict::Better,
        Some("different") => Verdict::Different,
        Some("absent") => Verdict::Absent,
        Some("open") => Verdict::Open,
        other => panic!("no verdict: {other:?} in {line}"),
    };
    let (why, test) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
    if !test.is_empty() {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(test);
        assert!(path.is_file(), "{line}: there is no {test}");
    }
    assert!(verdict != Verdict::Same || !test.is_empty(), "{line}: same, by what test?");
    Decided {
        kind: kind.to_owned(),
        name: name.to_owned(),
        verdict,
        why: why.to_owned(),
        test: test.to_owned(),
        used: Cell::new(false),
    }
}
