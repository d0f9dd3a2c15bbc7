//! `inspect`: what a data directory holds, byte for byte if wanted. Offline: reads files, speaks to no server.
//!
//! **Contract.** Read-only and without a lock, so a server may be running on the directory; what is shown is one state of it.
//! Each subcommand prints tables, or with `-w json` one object with the same names and numbers. Names are those of
//! `engine/docs/data_file.md`.
//!
//! **Does not know** how files are read and verified: that is `sternpost_engine::inspect`.
pub(crate) mod report;

use crate::ctl::failure::{Exit, Failure};
use crate::ctl::options::GlobalOptions;
use crate::progress::ProgressLine;
use clap::{Args, Subcommand};
use report::{Cell, Report, Section};
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use sternpost_engine::Error;
use sternpost_engine::inspect::{Inspection, RecordView, SegmentView, SuperblockView};
use sternpost_engine::segment::SegmentKind;
use sternpost_engine::tree::PageRef;
use sternpost_engine::wal::LogReport;

/// So many versions of a key are shown; each older one is a read more.
const VERSIONS_MAX: usize = 100;

#[derive(Args)]
#[command(infer_subcommands = true, arg_required_else_help = true)]
pub(crate) struct InspectCommand {
    #[command(flatten)]
    directory: DirectoryOption,
    #[command(subcommand)]
    what: What,
}

/// Which directory is looked at.
#[derive(Args)]
pub(crate) struct DirectoryOption {
    /// Data directory, as the server's flag of this name
    #[arg(long, global = true, env = "STERNCTL_DATA_DIR", default_value = "default.etcd")]
    pub(crate) data_dir: PathBuf,
}

#[derive(Subcommand)]
enum What {
    /// The superblock: identity, positions, roots
    Super,
    /// Segments of the checkpoint, oldest first, with what is alive in them
    Segments,
    /// The log behind the checkpoint: its end, and its newest records
    Wal {
        /// How many records are shown
        #[arg(long, default_value_t = 20)]
        newest: usize,
    },
    /// The trees: height, pages, bytes, keys
    Tree,
    /// One segment: its index blocks, or its live pages
    Segment {
        /// Number of the segment
        id: u32,
    },
    /// One page with its cells
    Page {
        /// Number of the k segment
        segment: u32,
        /// Block at which the page starts
        block: u32,
    },
    /// Records of a revision
    Record {
        /// Main revision, or main.sub
        revision: String,
    },
    /// A key: pages on its way, its cell, its versions
    Key {
        /// The key
        key: OsString,
    },
}

/// The message of the engine, with exit code 1.
pub(crate) fn failure(error: &Error) -> Failure {
    Failure::new(Exit::Error, error.to_string())
}

pub(crate) fn run(command: InspectCommand, options: &GlobalOptions) -> Result<(), Failure> {
    let mut printer = options.printer()?;
    let report = report_of(&command).map_err(|error| failure(&error));
    printer.report(&report?)?;
    printer.flush()
}

fn report_of(command: &InspectCommand) -> Result<Report, Error> {
    let directory = &command.directory.data_dir;
    let inspection = || Inspection::open(directory);
    match &command.what {
        What::Super => Ok(superblock(&inspection()?.superblock())),
        What::Segments => segments(&inspection()?),
        What::Wal { newest } => wal(directory, *newest),
        What::Tree => trees(&inspection()?),
        What::Segment { id } => segment(&inspection()?, *id),
        What::Page { segment, block } => page(&inspection()?, *segment, *block),
        What::Record { revision } => records(&inspection()?, revision),
        What::Key { key } => key_report(&inspection()?, key.as_bytes()),
    }
}

fn superblock(view: &SuperblockView) -> Report {
    let copies =
        view.copies.iter().map(|copy| copy.map_or("damaged".into(), |sequence| sequence.to_string()));
    let hex = view.database.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let (sync, device) = view.sync.clone().unwrap_or_default();
    let [keys, system, table, pending] = view.roots;
    let fields = vec![
        ("format_version", Cell::number(view.format_version)),
        ("sequence", Cell::number(view.sequence)),
        ("copies", Cell::text(copies.collect::<Vec<_>>().join(" "))),
        ("stage", Cell::text(if view.is_ready { "ready" } else { "creating" })),
        ("mode", Cell::text(if view.is_embedded { "embedded" } else { "replicated" })),
        ("database", Cell::text(hex)),
        ("cluster_id", Cell::text(format!("{:x}", view.cluster_id))),
        ("member_id", Cell::text(format!("{:x}", view.member_id))),
        ("wal_segment_bytes", Cell::number(view.wal_segment_bytes)),
        ("replay_lsn", Cell::number(view.replay_lsn)),
        ("applied_index", Cell::number(view.applied_index)),
        ("applied_term", Cell::number(view.applied_term)),
        ("revision", Cell::number(view.revision)),
        ("compact_revision", Cell::number(view.compact_revision)),
        ("swept_revision", Cell::number(view.swept_revision)),
        ("next_segment", Cell::number(view.next_segment)),
        ("key_tree", root_cell(keys)),
        ("system_tree", root_cell(system)),
        ("segment_table", root_cell(table)),
        ("pending_tree", root_cell(pending)),
        ("quarantine_reason", view.quarantine_reason.map_or(Cell::None, Cell::number)),
        ("wal_sync", Cell::text(sync)),
        ("wal_sync_device", Cell::text(device)),
    ];
    Report::new(vec![Section::fields("superblock", fields)])
}

/// `segment:block`, as `inspect page` takes it.
fn place_text(reference: &PageRef) -> String {
    format!("{}:{}", reference.segment, reference.block)
}

/// Keys that exist, or, in the pending tree, what is to be added to those of the key tree: that may be below 0.
fn keys_cell(live_keys: u64) -> Cell {
    Cell::number(live_keys as i64)
}

fn root_cell(root: Option<PageRef>) -> Cell {
    root.map_or(Cell::None, |root| Cell::text(place_text(&root)))
}

fn kind_text(kind: SegmentKind) -> &'static str {
    match kind {
        SegmentKind::Revisions => "r",
        SegmentKind::Pages => "k",
    }
}

const SEGMENT_COLUMNS: &[&str] = &[
    "segment",
    "kind",
    "checkpoint",
    "bytes",
    "written_bytes",
    "live_bytes",
    "live_percent",
    "records",
    "dead_records",
    "first_revision",
    "last_revision",
    "age_revisions",
];

fn segment_row(view: &SegmentView) -> Vec<Cell> {
    let revision = |of: fn(&SegmentView) -> Option<String>| of(view).map_or(Cell::None, Cell::text);
    vec![
        Cell::number(view.id),
        Cell::text(kind_text(view.kind)),
        Cell::number(view.checkpoint),
        Cell::number(view.file_bytes),
        Cell::number(view.written_bytes),
        Cell::number(view.live_bytes),
        Cell::number(percent(view.live_bytes, view.written_bytes)),
        Cell::number(view.records),
        Cell::number(view.dead_records),
        revision(|view| view.revisions.map(|(first, _)| first.to_string())),
        revision(|view| view.revisions.map(|(_, last)| last.to_string())),
        Cell::number(view.age_revisions),
    ]
}

fn percent(part: u64, whole: u64) -> u64 {
    u64::try_from(u128::from(part) * 100 / u128::from(whole.max(1))).unwrap_or(u64::MAX)
}

fn wal(directory: &Path, newest: usize) -> Result<Report, Error> {
    let mut line = ProgressLine::new();
    let view = Inspection::log(directory, newest, &mut |progress| {
        line.show(progress.part, progress.bytes_done, Some(progress.bytes_total));
    });
    line.clear();
    let view = view?;
    let number =
        |of: fn(&LogReport) -> u64| view.report.as_ref().map_or(Cell::None, |it| Cell::number(of(it)));
    let fields = vec![
        ("replay_lsn", Cell::number(view.replay_lsn)),
        ("end_lsn", number(|log| log.end_lsn.0)),
        ("records", number(|log| log.records_count)),
        ("bytes", number(|log| log.bytes)),
        ("segments", number(|log| log.segments_count)),
        ("groups_behind", number(|log| log.groups_behind_count)),
    ];
    let rows = view.newest.iter().map(|record| {
        vec![
            Cell::number(record.lsn),
            Cell::number(record.segment),
            Cell::number(record.offset),
            Cell::text(format!("{:?}", record.kind)),
            Cell::number(record.term),
            Cell::number(record.index),
            Cell::number(record.body_bytes),
            Cell::bytes(&record.body),
        ]
    });
    let columns = &["lsn", "segment", "offset", "kind", "term", "index", "body_bytes", "body_begins"];
    let newest = Section::list("newest_records", columns, rows.collect());
    Ok(Report::new(vec![Section::fields("wal", fields), newest]))
}

fn segments(inspection: &Inspection) -> Result<Report, Error> {
    let views = inspection.segments()?;
    let mut space = Vec::new();
    for kind in [SegmentKind::Revisions, SegmentKind::Pages] {
        let of_kind = || views.iter().filter(|view| view.kind == kind);
        let (written, live): (u64, u64) =
            (of_kind().map(|view| view.written_bytes).sum(), of_kind().map(|view| view.live_bytes).sum());
        space.push(vec![
            Cell::text(kind_text(kind)),
            Cell::number(of_kind().count() as u64),
            Cell::number(of_kind().map(|view| view.file_bytes).sum::<u64>()),
            Cell::number(live),
            Cell::number(percent(live, written)),
        ]);
    }
    let mut sections = vec![
        Section::list("segments", SEGMENT_COLUMNS, views.iter().map(segment_row).collect()),
        Section::list("space", &["kind", "segments", "bytes", "live_bytes", "live_percent"], space),
    ];
    let unreferenced: Vec<_> =
        inspection.unreferenced()?.into_iter().map(|name| vec![Cell::text(name)]).collect();
    if !unreferenced.is_empty() {
        sections.push(Section::list("unreferenced", &["file"], unreferenced));
    }
    Ok(Report::new(sections))
}

fn trees(inspection: &Inspection) -> Result<Report, Error> {
    let mut rows = Vec::new();
    for view in inspection.trees()? {
        let levels: Vec<_> = view.level_pages.iter().map(ToString::to_string).collect();
        rows.push(vec![
            Cell::text(view.name),
            Cell::number(view.height),
            Cell::number(view.level_pages.iter().sum::<u64>()),
            Cell::text(levels.join(" ")),
            Cell::number(view.bytes),
            Cell::number(percent(view.used_bytes, view.bytes)),
            Cell::number(view.cells),
            keys_cell(view.live_keys),
            Cell::number(view.segments.len() as u64),
        ]);
    }
    let columns = &[
        "tree",
        "height",
        "pages",
        "pages_by_level",
        "bytes",
        "used_percent",
        "cells",
        "live_keys",
        "segments",
    ];
    Ok(Report::new(vec![Section::list("trees", columns, rows)]))
}

fn segment(inspection: &Inspection, id: u32) -> Result<Report, Error> {
    let detail = inspection.segment(id)?;
    let mut fields: Vec<_> = SEGMENT_COLUMNS.iter().copied().zip(segment_row(&detail.segment)).collect();
    fields.insert(1, ("file", Cell::text(detail.segment.file.clone())));
    if detail.segment.kind == SegmentKind::Revisions {
        fields.push(("tombstones", Cell::number(detail.tombstones)));
        fields.push(("compressed", Cell::number(detail.compressed)));
        fields.push(("dictionary_bytes", Cell::number(detail.dictionary_bytes)));
        let blocks = detail.index_blocks.iter().map(|block| {
            vec![
                Cell::text(block.first.to_string()),
                Cell::number(block.first_ordinal),
                Cell::number(block.first_record_offset),
                Cell::number(block.offset),
                Cell::number(block.bytes),
            ]
        });
        let columns = &["first_revision", "first_record", "first_record_offset", "offset", "bytes"];
        let blocks = Section::list("index_blocks", columns, blocks.collect());
        return Ok(Report::new(vec![Section::fields("segment", fields), blocks]));
    }
    let pages = detail.pages.iter().map(|page| {
        vec![
            Cell::number(page.reference.block),
            Cell::number(page.reference.blocks),
            Cell::text(page.tree),
            Cell::number(page.reference.level),
            keys_cell(page.reference.aggregate.live_keys),
            Cell::bytes(&page.fence),
        ]
    });
    let columns = &["block", "blocks", "tree", "level", "live_keys", "fence"];
    let pages = Section::list("live_pages", columns, pages.collect());
    Ok(Report::new(vec![Section::fields("segment", fields), pages]))
}

fn page(inspection: &Inspection, segment: u32, block: u32) -> Result<Report, Error> {
    let view = inspection.page(segment, block)?;
    let reference = &view.page.reference;
    let fields = vec![
        ("segment", Cell::number(segment)),
        ("block", Cell::number(block)),
        ("blocks", Cell::number(reference.blocks)),
        ("tree", Cell::text(view.page.tree)),
        ("level", Cell::number(reference.level)),
        ("checkpoint", Cell::number(view.checkpoint)),
        ("checksum", Cell::text(format!("{:08x}", reference.crc))),
        ("used_bytes", Cell::number(view.used_bytes)),
        ("live_keys", keys_cell(reference.aggregate.live_keys)),
        ("newest_revision", Cell::number(reference.aggregate.max_mod_revision)),
        ("hash_sum", Cell::text(format!("{:016x}", reference.aggregate.hash_sum))),
        ("fence", Cell::bytes(&view.page.fence)),
        ("prefix", Cell::bytes(&view.prefix)),
        ("cells", Cell::number(view.cells.len() as u64)),
    ];
    let cells = view.cells.iter().map(|cell| {
        let mut row = vec![Cell::bytes(&cell.key)];
        if let Some(child) = &cell.child {
            row.extend([
                Cell::text(place_text(child)),
                Cell::number(child.blocks),
                keys_cell(child.aggregate.live_keys),
                Cell::number(child.aggregate.max_mod_revision),
            ]);
        } else if let Some(version) = &cell.version {
            row.extend(version_row(version));
        } else {
            row.push(Cell::bytes(&cell.payload));
        }
        row
    });
    let mut columns = vec!["key"];
    columns.extend_from_slice(match (reference.level, view.page.tree) {
        (0, "keys" | "pending") => VERSION_COLUMNS,
        (0, _) => &["payload"],
        _ => &["child", "blocks", "live_keys", "newest_revision"],
    });
    let cells = Section::list("cells", &columns, cells.collect());
    Ok(Report::new(vec![Section::fields("page", fields), cells]))
}

const VERSION_COLUMNS: &[&str] = &[
    "revision",
    "version",
    "create_revision",
    "lease",
    "value_bytes",
    "value",
    "replaces",
    "stations",
    "hash",
];

fn version_row(view: &RecordView) -> Vec<Cell> {
    vec![
        Cell::text(view.revision.to_string()),
        if view.version == 0 { Cell::text("tombstone") } else { Cell::number(view.version) },
        Cell::number(view.create_revision),
        Cell::text(if view.lease == 0 { String::new() } else { format!("{:016x}", view.lease) }),
        Cell::number(view.value_bytes),
        view.value.as_ref().map_or(Cell::None, |value| Cell::bytes(value)),
        view.prev.map_or(Cell::None, |prev| Cell::text(prev.to_string())),
        Cell::text(view.stations.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")),
        Cell::text(format!("{:016x}", view.hash)),
    ]
}

const RECORD_COLUMNS: &[&str] = &["segment", "record", "offset", "stored_bytes", "dead", "key"];

fn record_section(name: &'static str, views: &[RecordView]) -> Section {
    let rows = views.iter().map(|view| {
        let (segment, ordinal, offset, bytes) = view.place.unwrap_or_default();
        let mut row = vec![
            Cell::number(segment),
            Cell::number(ordinal),
            Cell::number(offset),
            Cell::number(bytes),
            Cell::text(if view.is_dead { "yes" } else { "no" }),
            Cell::bytes(&view.key),
        ];
        row.extend(version_row(view));
        row
    });
    Section::list(name, &[RECORD_COLUMNS, VERSION_COLUMNS].concat(), rows.collect())
}

fn records(inspection: &Inspection, revision: &str) -> Result<Report, Error> {
    let invalid = |_| Error::Refused(format!("{revision:?} is no revision: write it as 17 or 17.0"));
    let (main, sub) = match revision.split_once('.') {
        Some((main, sub)) => (main, Some(sub.parse().map_err(invalid)?)),
        None => (revision, None),
    };
    let views = inspection.records(main.parse().map_err(invalid)?, sub)?;
    if views.is_empty() {
        let newest = inspection.superblock().revision;
        return Err(Error::Refused(format!(
            "the checkpoint, which goes up to revision {newest}, has no record of revision {revision}: it was compacted, or is \
             in the log"
        )));
    }
    Ok(Report::new(vec![record_section("records", &views)]))
}

fn key_report(inspection: &Inspection, key: &[u8]) -> Result<Report, Error> {
    let view = inspection.key(key, VERSIONS_MAX)?;
    let path = |path: &[PageRef]| {
        let row = |reference: &PageRef| {
            vec![
                Cell::number(reference.level),
                Cell::number(reference.segment.0),
                Cell::number(reference.block),
                Cell::number(reference.blocks),
            ]
        };
        path.iter().map(row).collect()
    };
    const PATH_COLUMNS: &[&str] = &["level", "segment", "block", "blocks"];
    let cell = view.cell.iter().map(version_row).collect();
    let mut sections = vec![
        Section::list("path", PATH_COLUMNS, path(&view.path)),
        Section::list("pending_path", PATH_COLUMNS, path(&view.pending_path)),
        Section::list("cell", VERSION_COLUMNS, cell),
        record_section("versions", &view.versions),
    ];
    if view.is_cut {
        let fields = vec![("older", Cell::text("removed by a compaction"))];
        sections.push(Section::fields("end", fields));
    }
    Ok(Report::new(sections))
}
