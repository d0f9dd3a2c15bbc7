//! `recover`: after a quorum is lost for good, which of the members that are left has the most, and whether anything is lost with the others.
//! Offline; speaks to no server.
//!
//! **Contract.** `survey` reads one data directory, changes nothing, and prints what `choose` needs; with `-w json` into a file that can be carried
//! to another machine. `choose` takes such files, or directories, of as many members as there are, and names the one to go on with; exit code
//! 0 only if it is proved that this loses nothing that was acknowledged, or `--accept-loss` was given.
//!
//! **Does not know** how a member is judged: that is `sternpost_replication::raft::survey`; nor does it make the member the only one: the
//! server's `--force-new-cluster` does.
use crate::ctl::failure::{Exit, Failure};
use crate::ctl::options::GlobalOptions;
use crate::ctl::printer::Format;
use crate::inspect::report::{Cell, Report, Section};
use crate::inspect::{DirectoryOption, failure};
use crate::progress::ProgressLine;
use clap::{Args, Subcommand};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use sternpost_replication::raft::survey::{Judgement, Members, Survey, judge};

/// More than any survey has; what is longer is something else.
const FILE_BYTES_MAX: u64 = 1 << 20;

#[derive(Args)]
#[command(infer_subcommands = true, arg_required_else_help = true)]
pub(crate) struct RecoverCommand {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Say what a data directory knows of its member: term, log, members; with -w json for `choose`
    Survey {
        #[command(flatten)]
        directory: DirectoryOption,
    },
    /// Compare members, and name the one to go on with
    Choose {
        /// Data directories, or files that `survey -w json` has written
        #[arg(required = true)]
        members: Vec<PathBuf>,
        /// Choose also if acknowledged writes may be lost
        #[arg(long)]
        accept_loss: bool,
    },
}

pub(crate) fn run(command: &RecoverCommand, options: &GlobalOptions) -> Result<(), Failure> {
    let mut printer = options.printer()?;
    match &command.what {
        What::Survey { directory } => {
            printer.report(&survey_report(&survey(&directory.data_dir)?))?;
            printer.flush()
        }
        What::Choose { members, accept_loss } => {
            let surveys = members.iter().map(|place| read(place)).collect::<Result<Vec<_>, _>>()?;
            let judgement = judge(&surveys).map_err(|what| Failure::new(Exit::Error, what))?;
            let sentences = sentences(&surveys, &judgement, members);
            printer.report(&judgement_report(&surveys, &judgement, members))?;
            if printer.format != Format::Json {
                sentences.iter().for_each(|sentence| printer.line(sentence));
            }
            printer.flush()?;
            if judgement.is_proved || *accept_loss {
                return Ok(());
            }
            Err(Failure::new(
                Exit::Error,
                "acknowledged writes may be lost; survey more members, also those of broken machines whose disks can be read, or give \
                 --accept-loss",
            ))
        }
    }
}

fn survey(directory: &Path) -> Result<Survey, Failure> {
    let mut line = ProgressLine::new();
    let survey = Survey::of(directory, &mut |done, total| line.show("log", done, Some(total)));
    line.clear();
    survey.map_err(|error| failure(&error))
}

/// A directory, or a file of [`survey_report`].
fn read(place: &Path) -> Result<Survey, Failure> {
    if place.is_dir() {
        return survey(place);
    }
    let wrong = |what: String| Failure::new(Exit::Error, format!("{}: {what}", place.display()));
    let bytes = std::fs::metadata(place).map_err(|error| wrong(error.to_string()))?.len();
    if bytes > FILE_BYTES_MAX {
        return Err(wrong(format!("{bytes} bytes are no survey")));
    }
    let text = std::fs::read_to_string(place).map_err(|error| wrong(error.to_string()))?;
    decode(&text).map_err(wrong)
}

fn id(id: u64) -> String {
    format!("{id:x}")
}

fn ids(ids: &[u64]) -> String {
    ids.iter().map(|member| id(*member)).collect::<Vec<_>>().join(",")
}

fn survey_report(survey: &Survey) -> Report {
    let fields = vec![
        ("cluster_id", Cell::text(id(survey.cluster_id))),
        ("member_id", Cell::text(id(survey.member_id))),
        ("term", Cell::number(survey.term)),
        ("vote", Cell::text(id(survey.vote))),
        ("last_index", Cell::number(survey.last_index)),
        ("last_term", Cell::number(survey.last_term)),
        ("committed", Cell::number(survey.committed)),
        ("quarantine_reason", survey.quarantine_reason.map_or(Cell::None, Cell::number)),
    ];
    let rows = survey.configurations.iter().enumerate().map(|(number, members)| {
        vec![
            Cell::text(if number == 0 { "yes" } else { "perhaps" }),
            Cell::text(ids(&members.voters)),
            Cell::text(ids(&members.learners)),
        ]
    });
    let columns = &["in_force", "voters", "learners"];
    Report::new(vec![
        Section::fields("survey", fields),
        Section::list("configurations", columns, rows.collect()),
    ])
}

/// A survey as [`survey_report`] prints it.
#[derive(Deserialize)]
struct SurveyFile {
    survey: Fields,
    configurations: Vec<Configuration>,
}

#[derive(Deserialize)]
struct Fields {
    cluster_id: String,
    member_id: String,
    term: u64,
    vote: String,
    last_index: u64,
    last_term: u64,
    committed: u64,
    quarantine_reason: Option<u32>,
}

#[derive(Deserialize)]
struct Configuration {
    voters: String,
    learners: String,
}

fn decode(text: &str) -> Result<Survey, String> {
    let file: SurveyFile = serde_json::from_str(text)
        .map_err(|error| format!("it is no survey (recover survey -w json): {error}"))?;
    let id = |text: &str| u64::from_str_radix(text, 16).map_err(|error| format!("the id {text:?}: {error}"));
    let ids =
        |text: &str| text.split(',').filter(|text| !text.is_empty()).map(id).collect::<Result<Vec<_>, _>>();
    let configurations: Vec<Members> = file
        .configurations
        .iter()
        .map(|members| Ok(Members { voters: ids(&members.voters)?, learners: ids(&members.learners)? }))
        .collect::<Result<_, String>>()?;
    if configurations.is_empty() {
        return Err("it names no members of the cluster".to_owned());
    }
    let fields = file.survey;
    Ok(Survey {
        cluster_id: id(&fields.cluster_id)?,
        member_id: id(&fields.member_id)?,
        term: fields.term,
        vote: id(&fields.vote)?,
        last_index: fields.last_index,
        last_term: fields.last_term,
        committed: fields.committed,
        configurations,
        quarantine_reason: fields.quarantine_reason,
    })
}

fn judgement_report(surveys: &[Survey], judgement: &Judgement, places: &[PathBuf]) -> Report {
    let rows = surveys.iter().zip(places).enumerate().map(|(number, (survey, place))| {
        let newest = survey.newest();
        let role = if newest.voters.contains(&survey.member_id) {
            "voter"
        } else if newest.learners.contains(&survey.member_id) {
            "learner"
        } else {
            "removed"
        };
        vec![
            Cell::text(id(survey.member_id)),
            Cell::text(place.display().to_string()),
            Cell::text(role),
            Cell::number(survey.last_term),
            Cell::number(survey.last_index),
            Cell::number(survey.committed),
            survey.quarantine_reason.map_or(Cell::None, Cell::number),
            Cell::text(if number == judgement.chosen { "yes" } else { "" }),
        ]
    });
    let columns = &[
        "member_id",
        "place",
        "role",
        "last_term",
        "last_index",
        "committed",
        "quarantine_reason",
        "chosen",
    ];
    let truth = |truth: bool| Cell::text(if truth { "yes" } else { "no" });
    let fields = vec![
        ("member_id", Cell::text(id(surveys[judgement.chosen].member_id))),
        ("loses_nothing_acknowledged", Cell::text(if judgement.is_proved { "proved" } else { "not proved" })),
        ("has_quorum", truth(judgement.has_quorum)),
        ("voters_not_seen", Cell::text(ids(&judgement.unseen))),
    ];
    Report::new(vec![Section::list("members", columns, rows.collect()), Section::fields("choice", fields)])
}

/// What a person should know and do.
fn sentences(surveys: &[Survey], judgement: &Judgement, places: &[PathBuf]) -> Vec<String> {
    let chosen = &surveys[judgement.chosen];
    let place = places[judgement.chosen].display();
    let mut sentences = Vec::new();
    sentences.push(match judgement.is_proved {
        true => format!(
            "Member {:x} ({place}) has every write that was acknowledged: one of these members has each, and nobody's log is further than its.",
            chosen.member_id
        ),
        false => format!(
            "Member {:x} ({place}) has the most of these. Writes that were acknowledged may be missing: of the voters, {} were not seen.",
            chosen.member_id,
            ids(&judgement.unseen)
        ),
    });
    if judgement.has_quorum {
        sentences.push(
            "These members are a quorum: start them as they are, without --force-new-cluster, and replace the others one by one."
                .to_owned(),
        );
    } else {
        let uncommitted = chosen.last_index.saturating_sub(chosen.committed);
        sentences.push(format!(
            "Start it once with --force-new-cluster added to its flags; keep the other members stopped, for what they have is then void, and add new \
             ones. Of its log, {uncommitted} entries are not known to be committed; they are kept."
        ));
    }
    sentences
}

#[cfg(test)]
mod tests {
    use super::*;

    fn survey() -> Survey {
        Survey {
            cluster_id: 0xca7f,
            member_id: 2,
            term: 9,
            vote: 3,
            last_index: 70,
            last_term: 8,
            committed: 66,
            configurations: vec![
                Members { voters: vec![1, 2, u64::MAX], learners: vec![] },
                Members { voters: vec![1, 2], learners: vec![0xab, 0xcd] },
            ],
            quarantine_reason: Some(4),
        }
    }

    fn as_json(survey: &Survey) -> String {
        let mut printer = crate::ctl::printer::Printer::new(Format::Json, false);
        printer.report(&survey_report(survey)).unwrap_or_else(|_| panic!("json is a form"));
        printer.text()
    }

    #[test]
    fn a_survey_comes_back_from_its_file() {
        for survey in [survey(), Survey { quarantine_reason: None, ..survey() }] {
            assert_eq!(decode(&as_json(&survey)), Ok(survey));
        }
    }

    #[test]
    fn what_is_no_survey_is_refused() {
        let text = as_json(&survey());
        for cut in 0..text.trim_end().len() {
            assert!(decode(&text[..cut]).is_err(), "cut at {cut}");
        }
        let none = text.split("\"configurations\"").next().unwrap().to_owned() + "\"configurations\":[]}";
        assert!(decode(&none).unwrap_err().contains("no members"));
        assert!(decode(&text.replace("ca7f", "xyz")).unwrap_err().contains("\"xyz\""));
    }
}
