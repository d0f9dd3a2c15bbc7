//! All that somebody who uses or runs etcd can name, and what it is here: `docs/surface.md` is written by this test, row by row.
//!
//! **Data.** What etcd has is recorded in `surface/etcd.txt`, out of etcd's own descriptors, flags and registry (`benches/peers/surface` writes it), and in
//! `surface/paths.txt`, which a real etcd answered. What is here is taken from the same tables that the server is made of. Which fields were compared is in
//! `surface/fields.txt`, written by `api.rs`. What none of them can say, a reason above all, is a line of `surface/verdicts.txt`.
//!
//! **Contract.** Each name of etcd's has exactly one row; a row that names nothing, a verdict of nothing and a name without a verdict fail. *Same* is
//! said of what a comparison has shown, or of what the tables of both say alike; what nothing compares is counted as that.
//!
//! - `STERNPOST_REGENERATE=1` writes the document anew, `STERNPOST_RECORD=1` the paths, from the real etcd.

mod support;

#[path = "surface/document.rs"]
mod document;
#[path = "surface/ours.rs"]
mod ours;
#[path = "surface/paths.rs"]
mod paths;
#[path = "surface/recorded.rs"]
mod recorded;

use document::{Section, document};
use ours::{Row, rows};
use recorded::{Recorded, Verdict, Verdicts, folder};
use std::collections::BTreeSet;

/// What is absent, or has no effect, and should not be: this number goes down.
const OPEN_MAX: usize = 30;
/// Fields that no case shows in a request or in an answer: this number goes down too.
const NOT_COMPARED_MAX: usize = 40;

fn judged() -> Vec<(Section, Vec<Row>)> {
    let (recorded, mut verdicts) = (Recorded::read(), Verdicts::read());
    let sections = rows(&recorded, &mut verdicts);
    let unused = verdicts.unused();
    assert!(
        unused.is_empty(),
        "verdicts of what etcd does not have, or that need none:\n{}",
        unused.join("\n")
    );
    sections
}

#[test]
fn every_name_of_etcds_has_a_row() {
    let sections = judged();
    let rows: Vec<&Row> = sections.iter().flat_map(|(_, rows)| rows).collect();
    let names: BTreeSet<(&str, &str)> = rows.iter().map(|row| (row.kind, row.name.as_str())).collect();
    assert_eq!(names.len(), rows.len(), "no name twice");
    let unexplained: Vec<_> = rows
        .iter()
        .filter(|row| row.why.is_empty() && !matches!(row.verdict, Verdict::Same | Verdict::NotCompared))
        .map(|row| format!("{} {}: {:?}", row.kind, row.name, row.verdict))
        .collect();
    assert!(unexplained.is_empty(), "without a reason:\n{}", unexplained.join("\n"));
    let of = |verdict| {
        rows.iter().filter(|row| row.verdict == verdict).map(|row| row.name.as_str()).collect::<Vec<_>>()
    };
    let open = of(Verdict::Open);
    assert!(open.len() <= OPEN_MAX, "{} are open: {open:?}", open.len());
    let not_compared = of(Verdict::NotCompared);
    assert!(
        not_compared.len() <= NOT_COMPARED_MAX,
        "{} are not compared: {not_compared:?}",
        not_compared.len()
    );
}

#[test]
fn the_document_is_current() {
    let path = folder().join("../../docs/surface.md");
    let written = document(&judged());
    if std::env::var_os("STERNPOST_REGENERATE").is_some() {
        std::fs::write(&path, &written).expect("write the document");
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == written,
        "surface.md is not what its rows say: run with STERNPOST_REGENERATE=1 and commit the difference"
    );
}

/// A row too many, one too few, a reason for what needs none: each is noticed.
#[test]
fn what_does_not_fit_is_noticed() {
    let misfits = |recorded: &str, verdicts: &str| {
        let (recorded, mut verdicts) = (Recorded::parse(recorded), Verdicts::parse(verdicts));
        let rows: Vec<Row> = rows(&recorded, &mut verdicts).into_iter().flat_map(|(_, rows)| rows).collect();
        let unexplained = rows
            .iter()
            .filter(|row| row.verdict == Verdict::Missing)
            .map(|row| row.name.clone())
            .collect::<Vec<_>>();
        (unexplained, verdicts.unused().len())
    };
    let none = (Vec::new(), 0);
    assert_eq!(misfits("flag name \"default\"", ""), none);
    assert_eq!(misfits("flag nome \"default\"", ""), (vec!["--nome".to_owned()], 0), "a flag");
    assert_eq!(misfits("flag name \"other\"", ""), (vec!["--name".to_owned()], 0), "another default");
    assert_eq!(misfits("flag name \"other\"", "flag --name | different | why"), none);
    assert_eq!(misfits("flag name \"default\"", "flag --name | different | why"), none, "in what it means");
    assert_eq!(misfits("flag name \"default\"", "flag --nome | absent | why"), (Vec::new(), 1));
    let field = |field: &str| format!("field etcdserverpb.PutRequest.{field}");
    assert_eq!(misfits(&field("key 1 optional bytes"), ""), none);
    for wrong in
        ["key 2 optional bytes", "key 1 optional string", "key 1 repeated bytes", "kye 1 optional bytes"]
    {
        assert_eq!(misfits(&field(wrong), "").0.len(), 1, "{wrong}");
    }
    for wrong in [
        "method etcdserverpb.KV/Pat unary etcdserverpb.PutRequest etcdserverpb.PutResponse",
        "method etcdserverpb.KV/Put answers etcdserverpb.PutRequest etcdserverpb.PutResponse",
        "method etcdserverpb.KV/Put unary etcdserverpb.PutResponse etcdserverpb.PutResponse",
        "route /v3/kv/pat etcdserverpb.KV/Put",
        "route /v3/kv/put etcdserverpb.KV/Range",
        "value etcdserverpb.AlarmType.NOSPACE 2",
        "key nome",
        "key client-transport-security.name",
        "metric etcd_server_nothing gauge",
        "metric etcd_server_has_leader counter",
        "metric etcd_server_has_leader gauge label",
    ] {
        assert_eq!(misfits(wrong, "").0.len(), 1, "{wrong}");
    }
}

/// Each path, asked of what serves it.
#[test]
fn paths_answer_as_recorded() {
    paths::check();
}
