//! A staged state in the place of what a directory is: decided once, then carried out, however often that is cut short.
//!
//! **Order.** Each step is durable before the next, and each may be done again from its beginning:
//!
//! | step | what | what is found after a crash in it |
//! |---|---|---|
//! | 1 | `install` | the old state, or `install` and `incoming.ready` |
//! | 2 | the segments and the log of the old state are removed; `incoming.ready` becomes `incoming.cleared` | `install`, one of the two |
//! | 3 | staged segments get their own names; an empty log is made; `super` is written over | `install`, `incoming.cleared` |
//! | 4 | `incoming.cleared` is removed | `install`, and perhaps `incoming.cleared` |
//! | 5 | the caller opens the directory and has in the log what belongs there; `install` is removed | the new state |
//!
//! Nothing is told from its content: until step 2 is over every segment under its own name is an old one, behind it none is.
//!
//! **The old `super`** stays until the new one is written over it: a release that knows nothing of this finds a state without its log, and
//! no empty directory to make a database in.
//!
//! **Does not know** what the notes say.
use super::manifest::Manifest;
use super::names::{
    CLEARED, INSTALL, INSTALL_PART, NOTE_BYTES_MAX, Name, READY, READY_PART, classify, list, read_side_file,
    remove, staged_path, sync_directory, write_side_file,
};
use super::{Place, planted};
use crate::base::codec::{Reader, Truncated, put_bytes};
use crate::base::envelope::{self, EnvelopeKind};
use crate::error::{Error, Result};
use crate::io::Operation;
use crate::io::disk::run;
use crate::io::{Files, Io};
use crate::segment;
use crate::wal;
use std::collections::BTreeSet;
use std::path::Path;

/// Version of `incoming.ready`: its body is manifest (length u32 and bytes, as sent) · member id u64 · note (length u32 and bytes).
const STAGED_FORMAT_VERSION: u16 = 1;
/// Version of `install`: its body is the note.
const INSTALL_FORMAT_VERSION: u16 = 1;

/// A state that was received as a whole.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ready {
    /// Index and term of the last entry that is in it.
    pub applied: (u64, u64),
    /// What the caller of [`super::Staging::complete`] left.
    pub note: Vec<u8>,
    manifest: Manifest,
    member_id: u64,
}

impl Ready {
    pub(super) fn new(manifest: Manifest, member_id: u64, note: Vec<u8>) -> Self {
        Self { applied: manifest.applied, note, manifest, member_id }
    }

    /// What the state is made of.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    pub(super) fn encode(&self) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        put_bytes(&mut body, &self.manifest.encode()?);
        body.extend_from_slice(&self.member_id.to_le_bytes());
        put_bytes(&mut body, &self.note);
        Ok(envelope::seal(EnvelopeKind::StagedState, STAGED_FORMAT_VERSION, &body))
    }

    fn decode(bytes: &[u8]) -> Result<Self, String> {
        let sealed = envelope::without_padding(bytes).map_err(|error| error.to_string())?;
        let body: Vec<u8> = envelope::open(EnvelopeKind::StagedState, STAGED_FORMAT_VERSION, sealed)
            .map_err(|error| error.to_string())?;
        let mut reader = Reader::new(&body);
        let fields = |reader: &mut Reader<'_>| -> Result<_, Truncated> {
            Ok((Manifest::read(reader.bytes()?), reader.u64()?, reader.bytes()?.to_vec()))
        };
        let (manifest, member_id, note) = fields(&mut reader).map_err(|Truncated| "it is cut short")?;
        if !reader.is_empty() {
            return Err("bytes behind its end".into());
        }
        Ok(Self::new(manifest?, member_id, note))
    }

    fn read(files: &dyn Files, name: &str) -> Result<Option<Self>> {
        let Some(bytes) = read_side_file(files, name)? else { return Ok(None) };
        Self::decode(&bytes).map(Some).map_err(|what| damaged(name, what))
    }
}

fn damaged(name: &str, what: String) -> Error {
    Error::Corruption { file: name.into(), offset: 0, what }
}

fn read_decision(files: &dyn Files) -> Result<Option<Vec<u8>>> {
    let Some(bytes) = read_side_file(files, INSTALL)? else { return Ok(None) };
    let opened = envelope::without_padding(&bytes)
        .and_then(|sealed| envelope::open(EnvelopeKind::Install, INSTALL_FORMAT_VERSION, sealed));
    opened.map(Some).map_err(|error| damaged(INSTALL, error.to_string()))
}

/// The state that was received as a whole, if one was and nobody has decided yet.
///
/// # Errors
/// [`Error::Corruption`] if what says so does not verify: receive it again.
pub fn staged(place: &Place) -> Result<Option<Ready>> {
    let files = place.files()?;
    match read_decision(&*files)? {
        Some(_) => Ok(None),
        None => Ready::read(&*files, READY),
    }
}

/// Decides, durably, that the directory is the staged state from now on: whatever it held is gone for good. Nobody has it open.
/// [`continue_install`] gives `note` to every start until [`finish_install`].
///
/// # Errors
/// [`Error::Refused`] if no state is staged, another decision is being carried out, or `note` has more than [`NOTE_BYTES_MAX`] bytes. What
/// the device reports: then the next [`continue_install`] says which it was.
pub fn begin_install(place: &Place, note: &[u8]) -> Result<()> {
    if note.len() > NOTE_BYTES_MAX {
        return Err(Error::Refused(format!(
            "a note has at most {NOTE_BYTES_MAX} bytes, this one has {}",
            note.len()
        )));
    }
    let (mut io, files) = (place.open_io()?, place.files()?);
    refuse_install(&mut *io)?;
    if Ready::read(&*files, READY)?.is_none() {
        return Err(Error::Refused(format!("no state was received as a whole: there is no file {READY}")));
    }
    let sealed = envelope::seal(EnvelopeKind::Install, INSTALL_FORMAT_VERSION, &note.to_vec());
    write_side_file(place, &mut *io, INSTALL_PART, INSTALL, &sealed)
}

/// Carries the decision out, if there is one, and gives the note that was made with it; to be called at every start, before anybody opens
/// the directory, and again after whatever cut it short. Without a decision nothing is changed.
///
/// # Errors
/// [`Error::Corruption`] if what was staged is not there any more or does not verify: then the state is lost, and the member is to be
/// replaced by a new one. What the device reports: try again.
pub fn continue_install(place: &Place) -> Result<Option<Vec<u8>>> {
    let (mut io, files) = (place.open_io()?, place.files()?);
    // What is acted upon survives the next crash, even if whoever renamed it died before the sync.
    sync_directory(&mut *io, "")?;
    let Some(note) = read_decision(&*files)? else { return Ok(None) };
    if let Some(ready) = Ready::read(&*files, READY)? {
        check_staged(&mut *io, &ready)?;
        clear(place, &mut *io)?;
    }
    let cleared = if planted!(place, NeverCleared) { READY } else { CLEARED };
    if let Some(ready) = Ready::read(&*files, cleared)? {
        put_in_place(place, &mut *io, &ready)?;
    }
    Ok(Some(note))
}

/// Says that the directory holds all that belongs to its state: the note is not needed any more.
///
/// # Errors
/// [`Error::Refused`] if the decision was not carried out. What the device reports.
pub fn finish_install(place: &Place) -> Result<()> {
    let mut io = place.open_io()?;
    refuse_half_installed(&list(&mut *io, "")?)?;
    if remove(&mut *io, INSTALL)? {
        sync_directory(&mut *io, "")?;
    }
    Ok(())
}

/// Removes whatever was staged, whole or not.
///
/// # Errors
/// [`Error::Refused`] while a state is being installed. What the device reports.
pub fn discard(place: &Place) -> Result<()> {
    let mut io = place.open_io()?;
    refuse_install(&mut *io)?;
    withdraw(&mut *io)?;
    remove_staged(&mut *io)
}

/// What says that a state is whole goes before anything that it lists (N1).
pub(super) fn withdraw(io: &mut dyn Io) -> Result<()> {
    remove(io, READY_PART)?;
    if remove(io, READY)? {
        sync_directory(io, "")?;
    }
    Ok(())
}

/// Refuses a directory in whose root are these names, if a decision waits to be carried out.
///
/// # Errors
/// [`Error::Refused`], which says what to do.
pub(crate) fn refuse_half_installed(names: &[String]) -> Result<()> {
    let has = |name: &str| names.iter().any(|found| found == name);
    match has(INSTALL) && (has(READY) || has(CLEARED)) {
        false => Ok(()),
        true => Err(Error::Refused(format!(
            "a state that was received from another member is being put in place ({INSTALL} is there), so anything may be missing: \
             start the member on this directory, which ends that"
        ))),
    }
}

/// Refuses a directory with a decision, carried out or not: another one may not take its place.
pub(super) fn refuse_install(io: &mut dyn Io) -> Result<()> {
    match list(io, "")?.iter().any(|name| name == INSTALL) {
        false => Ok(()),
        true => Err(Error::Refused(format!(
            "a state that was received from another member is being installed ({INSTALL} is there): that has to end before"
        ))),
    }
}

/// N1, before anything is removed for it.
fn check_staged(io: &mut dyn Io, ready: &Ready) -> Result<()> {
    let names: BTreeSet<String> = list(io, segment::DIRECTORY)?.into_iter().collect();
    for entry in &ready.manifest.files {
        let path = staged_path(entry.id, entry.kind());
        let is_there = path.file_name().and_then(|name| name.to_str()).is_some_and(|it| names.contains(it));
        if !is_there {
            return Err(lost(&path));
        }
    }
    Ok(())
}

fn lost(path: &Path) -> Error {
    damaged(&path.display().to_string(), "N1: a segment of the received state expected, none found".into())
}

/// Step 2. Before it no segment has its own name that is not an old one.
fn clear(place: &Place, io: &mut dyn Io) -> Result<()> {
    for name in list(io, segment::DIRECTORY)? {
        if let Name::Own(..) = classify(&name) {
            remove(io, Path::new(segment::DIRECTORY).join(name))?;
        }
    }
    sync_directory(io, segment::DIRECTORY)?;
    wal::remove_all(io)?;
    if planted!(place, NeverCleared) {
        return Ok(());
    }
    run(io, Operation::Rename { from: READY.into(), to: CLEARED.into() })?;
    sync_directory(io, "")
}

/// Steps 3 and 4. Whatever has its own name already got it here.
fn put_in_place(place: &Place, io: &mut dyn Io, ready: &Ready) -> Result<()> {
    let names: BTreeSet<String> = list(io, segment::DIRECTORY)?.into_iter().collect();
    let is_there = |path: &Path| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| names.contains(name))
    };
    for entry in &ready.manifest.files {
        let (from, to) = (staged_path(entry.id, entry.kind()), entry.path());
        if is_there(&from) {
            run(io, Operation::Rename { from, to })?;
        } else if !is_there(&to) {
            return Err(lost(&to));
        }
    }
    if !planted!(place, PlacedBeforeNames) {
        sync_directory(io, segment::DIRECTORY)?;
    }
    let Manifest { database, log_segment_bytes, .. } = ready.manifest;
    wal::make_empty(io, database, u64::from(log_segment_bytes), place.seed)?;
    // S3: what it refers to is durable.
    ready.manifest.superblock(ready.member_id).create(io)?;
    remove(io, if planted!(place, NeverCleared) { READY } else { CLEARED })?;
    sync_directory(io, "")?;
    // What was staged and is no part of the state; a crash leaves it to the next transfer.
    remove_staged(io)
}

fn remove_staged(io: &mut dyn Io) -> Result<()> {
    for name in list(io, segment::DIRECTORY)? {
        if let Name::Staged(..) | Name::Part = classify(&name) {
            remove(io, Path::new(segment::DIRECTORY).join(name))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::superblock::{Mode, Roots};

    fn ready() -> Ready {
        let manifest = Manifest {
            database: [3; 16],
            mode: Mode::Replicated,
            cluster_id: 1,
            member_id: 2,
            sequence: 9,
            log_segment_bytes: 64 << 10,
            applied: (7, 3),
            revision: 10,
            compact_revision: -1,
            swept_revision: -1,
            roots: Roots::default(),
            has_stations: false,
            next_segment: 5,
            files: Vec::new(),
        };
        Ready::new(manifest, 4, b"note".to_vec())
    }

    #[test]
    fn what_says_that_a_state_is_whole_is_read_and_damage_is_refused() {
        let mut bytes = ready().encode().expect("it is short");
        let sealed_bytes = bytes.len();
        bytes.resize(4096, 0);
        assert_eq!(Ready::decode(&bytes), Ok(ready()));
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Ready::decode(&bad).is_err(), "bit {bit}");
        }
        for cut in 0..sealed_bytes {
            assert!(Ready::decode(&bytes[..cut]).is_err(), "cut {cut}");
        }
    }
}
