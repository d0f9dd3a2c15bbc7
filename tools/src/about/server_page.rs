//! `sternpost.8`: the server's page, made from its table of options.
use clap_mangen::roff::{Inline, Roff, bold, italic, roman};
use sternpost_server::config::options::{Group, Kind, OPTIONS, OptionSpec, Status};

/// Files and signals of the server, as pairs of a term and what it is.
const FILES: [(&str, &str); 3] = [
    ("NAME.etcd", "the data directory where --data-dir is not given, NAME being --name"),
    ("FILE.yml", "flags as a file, named by --config-file; flags and variables count for nothing then"),
    (
        "SIGTERM, SIGINT",
        "hands the lead over, closes the database and ends by that signal; with code 0 as process 1 of a container",
    ),
];

/// The page in the language of troff.
pub(super) fn render() -> String {
    let mut page = Roff::new();
    let title = ["sternpost", "8", "", &format!("sternpost {}", env!("CARGO_PKG_VERSION"))];
    page.control("TH", title);
    page.control("SH", ["NAME"]);
    page.text([roman(
        "sternpost - a key-value store for the state of clusters, a drop-in replacement for etcd",
    )]);
    page.control("SH", ["SYNOPSIS"]);
    page.text([bold("sternpost"), roman(" [flags]")]);
    page.control("SH", ["DESCRIPTION"]);
    page.text([roman(
        "Serves etcd's API version 3. Flags may have one dash or two; values follow behind a blank or an equals sign. Every flag can be given \
         as a variable: --data-dir is ETCD_DATA_DIR. A flag and its variable together are an error.",
    )]);
    let mut heading = None;
    for option in OPTIONS.iter().filter(|option| option.group != Group::Ignored) {
        if heading != Some(option.group) {
            heading = Some(option.group);
            page.control("SH", [option.group.heading().to_uppercase().as_str()]);
        }
        page.control("TP", []);
        page.text(name(option));
        page.text([roman(meaning(option))]);
    }
    page.control("SH", ["FILES AND SIGNALS"]);
    for (term, meaning) in FILES {
        page.control("TP", []);
        page.text([italic(term)]);
        page.text([roman(meaning)]);
    }
    page.control("SH", ["SEE ALSO"]);
    page.text([bold("sternctl"), roman("(1)")]);
    page.render()
}

/// The flag, with its default where that says something.
fn name(option: &OptionSpec) -> Vec<Inline> {
    let mut parts = vec![bold(format!("--{}", option.name))];
    match option.kind {
        Kind::Choice(words) => parts.push(roman(format!(" {}", words.join("|")))),
        Kind::Flag if option.default == "false" => return parts,
        _ => {}
    }
    if !option.default.is_empty() {
        parts.extend([roman(" ["), italic(option.default), roman("]")]);
    }
    parts
}

fn meaning(option: &OptionSpec) -> String {
    let mut text = option.help.to_owned();
    match option.status {
        Status::Served => {}
        Status::Warned(reason) => text += &format!(" No effect: {reason}."),
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_names_every_option_that_is_not_dropped() {
        let page = render();
        let lines: Vec<&str> = page.lines().collect();
        assert!(lines.iter().any(|line| line.starts_with(".TH sternpost 8")), "{}", &page[..200]);
        for option in OPTIONS {
            // Dashes are written so that they can be searched for and copied.
            let flag = format!("\\fB\\-\\-{}\\fR", option.name.replace('-', "\\-"));
            let is_there = lines.iter().any(|line| line.starts_with(&flag));
            assert_eq!(is_there, option.group != Group::Ignored, "{flag}");
        }
    }
}
