//! What a program said, without what is random or must differ. The rules are listed in `README.md`, with their reasons.
use crate::cluster::Cluster;

/// Names for values that differ from run to run, longest values first.
pub(crate) struct Names {
    names: Vec<(String, String)>,
}

impl Names {
    pub(crate) fn of(cluster: &Cluster) -> Self {
        let mut names = Self { names: Vec::new() };
        names.add_id("cluster", cluster.id);
        for (index, member) in cluster.members.iter().enumerate() {
            let number = index + 1;
            names.add_id(&format!("member{number}"), member.id);
            names.add(&format!("name{number}"), &member.name);
            names.add(&format!("client{number}"), &member.client_port.to_string());
            names.add(&format!("peer{number}"), &member.peer_port.to_string());
        }
        names
    }

    /// An id is printed in hexadecimal, with and without zeros before it, and in decimal.
    pub(crate) fn add_id(&mut self, name: &str, id: u64) {
        self.add(name, &format!("{id:016x}"));
        self.add(name, &format!("{id:x}"));
        self.add(&format!("{name}.decimal"), &id.to_string());
    }

    pub(crate) fn add(&mut self, name: &str, value: &str) {
        self.names.push((value.to_owned(), format!("${name}")));
        self.names.sort_by_key(|(value, _)| std::cmp::Reverse(value.len()));
    }

    /// A text of a case file with values in the place of names.
    pub(crate) fn fill(&self, text: &str) -> String {
        let mut names: Vec<_> = self.names.iter().collect();
        names.sort_by_key(|(_, name)| std::cmp::Reverse(name.len()));
        names.iter().fold(text.to_owned(), |text, (value, name)| text.replace(name.as_str(), value))
    }

    fn hide(&self, text: &str) -> String {
        self.names.iter().fold(text.to_owned(), |text, (value, name)| text.replace(value.as_str(), name))
    }
}

/// Numbers that stand behind these words differ from server to server.
const NUMBERS: [&str; 16] = [
    "\"raft_term\":",
    "\"RaftTerm\" : ",
    "\"raftTerm\":",
    "\"raftIndex\":",
    "\"RaftIndex\" : ",
    "\"raftAppliedIndex\":",
    "\"RaftAppliedIndex\" : ",
    "\"dbSize\":",
    "\"DBSize\" : ",
    "\"dbSizeInUse\":",
    "\"DBSizeInUse\" : ",
    "\"dbSizeQuota\":",
    "\"DBSizeQuota\" : ",
    "remaining(",
    "\"ttl\":",
    // A response holds ids, which are longer or shorter.
    "received message larger than max (",
];

/// What is a time, up to the character that ends it.
const TIMES: [(&str, &[char]); 4] =
    [("took = ", &['\n']), ("\"took\":\"", &['"']), ("\"Took\" : ", &['\n']), (". took ", &['\n', '('])];

/// Columns of `endpoint status` and `endpoint health` that differ from server to server.
const COLUMNS: [&str; 8] = [
    "DB SIZE",
    "IN USE",
    "PERCENTAGE NOT IN USE",
    "QUOTA",
    "RAFT TERM",
    "RAFT INDEX",
    "RAFT APPLIED INDEX",
    "TOOK",
];
/// The same in the simple form, which has as many.
const STATUS_COLUMNS: usize = 16;
const STATUS_POSITIONS: [usize; 7] = [4, 5, 6, 7, 10, 11, 12];

/// Standard output, normalised.
pub(crate) fn output(text: &str, names: &Names) -> Vec<String> {
    // An id that begins with a zero is one digit shorter, with a blank in its place.
    let text = hide_numbers(&names.hide(text)).replace("│  $", "│ $").replace("sternctl", "etcdctl");
    let lines: Vec<String> = text.lines().map(hide_columns).collect();
    hide_cells(lines)
}

/// Standard error, normalised: no log lines, no usage.
pub(crate) fn errors(text: &str, names: &Names) -> Vec<String> {
    let is_log = |line: &&str| line.starts_with("{\"level\":");
    let lines = text.lines().filter(|line| !is_log(line));
    let mut is_usage = false;
    let mut kept: Vec<&str> = lines
        .filter(|line| {
            is_usage = *line == "Usage:" || is_usage && !line.starts_with("Error: ");
            !is_usage
        })
        .collect();
    if let Some(first) = kept.iter().position(|line| *line == "Did you mean this?") {
        let rest = kept.split_off(first);
        kept.extend(rest.into_iter().filter(|line| line.starts_with("Run ")));
    }
    let text = kept.into_iter().filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\n");
    output(&text, names)
}

/// The words of an output whose order hangs on an id that is drawn by lot, sorted, as one line.
pub(crate) fn sorted(lines: &[String]) -> Vec<String> {
    let is_between = |c: char| " \",={}[]".contains(c);
    let mut words: Vec<&str> = lines.iter().flat_map(|line| line.split(is_between)).collect();
    words.retain(|word| !word.is_empty());
    words.sort_unstable();
    vec![words.join(" ")]
}

fn hide_numbers(text: &str) -> String {
    let mut out = text.to_owned();
    for word in NUMBERS {
        out = hide_after(&out, word, |rest| rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len()));
    }
    for (word, ends) in TIMES {
        out = hide_after(&out, word, |rest| rest.find(ends).unwrap_or(rest.len()));
    }
    if out.contains("\"GrantedTTL\"") {
        out = hide_after(&out, "\"TTL\" : ", |rest| rest.find('\n').unwrap_or(rest.len()));
    }
    out
}

/// Puts `_` in the place of what follows each `word`, as long as `length` says.
fn hide_after(text: &str, word: &str, length: impl Fn(&str) -> usize) -> String {
    let mut parts = text.split(word);
    let mut out = parts.next().unwrap_or_default().to_owned();
    for rest in parts {
        out.push_str(word);
        out.push('_');
        out.push_str(&rest[length(rest)..]);
    }
    out
}

fn hide_columns(line: &str) -> String {
    // The texts of protobuf have one or two blanks between fields, as the day may be.
    // An id of a member that begins with a zero is printed with a blank in its place.
    if line.starts_with("memberID:") || line.starts_with("Member ") {
        return line.split_whitespace().collect::<Vec<_>>().join(" ");
    }
    let mut cells: Vec<&str> = line.split(", ").collect();
    if cells.len() != STATUS_COLUMNS {
        return line.to_owned();
    }
    for position in STATUS_POSITIONS {
        cells[position] = "_";
    }
    cells.join(", ")
}

/// Tables with a column that differs: its cells are hidden, and widths are not shown.
fn hide_cells(lines: Vec<String>) -> Vec<String> {
    let cells = |line: &str| -> Vec<String> {
        line.trim_matches('│').split('│').map(|cell| cell.trim().to_owned()).collect()
    };
    let Some(header) = lines.iter().find(|line| line.starts_with('│')).map(|line| cells(line)) else {
        return lines;
    };
    let hidden: Vec<bool> = header.iter().map(|title| COLUMNS.contains(&title.as_str())).collect();
    if !hidden.contains(&true) {
        return lines;
    }
    let mut is_header = true;
    let rewrite = |line: String| {
        if !line.starts_with('│') {
            return line.chars().filter(|c| *c != '─').collect();
        }
        let row = cells(&line);
        let is_title = std::mem::take(&mut is_header);
        let shown = row.iter().zip(&hidden).map(|(cell, is_hidden)| match *is_hidden && !is_title {
            true => "_".to_owned(),
            false => cell.clone(),
        });
        shown.collect::<Vec<_>>().join(" │ ")
    };
    lines.into_iter().map(rewrite).collect()
}
