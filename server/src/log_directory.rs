//! `--wal-dir`: the log in a directory of its own, on another device perhaps.
//!
//! **Data.** In the data directory `wal` is then a symbolic link to that directory, absolute. So the data directory says where its log is, and whoever
//! works on it finds the log with no word of it: a start without the flag, backups, transfers, `sternctl inspect`, `verify` and `salvage`.
//!
//! **Contract.**
//! - The link is made, durably, before there is any data; nothing is moved that is there.
//! - A pair that does not belong together is refused: a flag that names another place than the link; a log in the data directory itself; a new data
//!   directory with a place that is not empty; a link to nothing, whose device may not be there. A log of another database is refused by the engine,
//!   which finds the database's id in each of its segments.
//! - Only the data directory is locked. Two with one place for their logs do not get by: to the second the place is not empty, or of another database.
//!
//! **Does not know** what is in a log.
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};
use sternpost_engine::wal::DIRECTORY;

/// Puts the log of a data directory, which exists, where `given` says, or looks whether it is there already. `is_new`: there is no data yet. Without
/// `given` it looks whether a link, if there is one, leads somewhere.
///
/// # Errors
/// One line for the user: what does not fit, and what to do.
pub fn place(data_dir: &Path, given: Option<&Path>, is_new: bool) -> Result<(), String> {
    let link = data_dir.join(DIRECTORY);
    let found = match fs::symlink_metadata(&link) {
        Ok(metadata) => Some(metadata.is_symlink()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(format!("cannot look at {}: {error}", link.display())),
    };
    if found == Some(true) && !link.is_dir() {
        let to = fs::read_link(&link).unwrap_or_default();
        return Err(format!(
            "the log of {} is in {} ({} says so), and that is no directory now: is its device there?",
            data_dir.display(),
            to.display(),
            link.display()
        ));
    }
    let Some(given) = given else { return Ok(()) };
    let given = made(given).map_err(|error| format!("--wal-dir {}: {error}", given.display()))?;
    let resolved = |path: &Path| {
        fs::canonicalize(path).map_err(|error| format!("cannot look at {}: {error}", path.display()))
    };
    if found.is_some() {
        let there = resolved(&link)?;
        if there == given {
            return Ok(());
        }
        return Err(misplaced(&link, &there, &given, found == Some(true)));
    }
    if given == resolved(data_dir)? {
        return Err(format!("--wal-dir {} is the data directory itself", given.display()));
    }
    if !is_new {
        // A backup that was restored without its log, or something worse: the engine says what is missing.
        return Ok(());
    }
    let entries = fs::read_dir(&given).map_err(|error| format!("--wal-dir {}: {error}", given.display()))?;
    let foreign = entries.flatten().find(|entry| entry.file_name() != "lost+found");
    if let Some(entry) = foreign {
        return Err(format!(
            "the data directory {} is new, and --wal-dir {} is not empty ({} is there): it may be the log of another member; \
             give the data directory that belongs to it, or an empty place",
            data_dir.display(),
            given.display(),
            entry.file_name().to_string_lossy()
        ));
    }
    let linked = symlink(&given, &link).and_then(|()| File::open(data_dir)?.sync_all());
    linked.map_err(|error| format!("cannot link {} to {}: {error}", link.display(), given.display()))
}

/// Why a data directory with its log elsewhere is not taken.
fn misplaced(link: &Path, there: &Path, given: &Path, is_link: bool) -> String {
    let (link, there, given) = (link.display(), there.display(), given.display());
    let how = match is_link {
        true => format!("move what is in it to {given} and let the link {link} lead there"),
        false => format!("move {there} to {given} and put a symbolic link to it in its place"),
    };
    format!(
        "the log of this data directory is in {there}, and --wal-dir says {given}: leave the flag out, or, while nothing runs, {how}"
    )
}

/// The directory, made if it is missing, with those above it, their names durable; without links in its path.
fn made(directory: &Path) -> io::Result<PathBuf> {
    let is_missing = |above: &&Path| !above.as_os_str().is_empty() && !above.is_dir();
    let missing: Vec<&Path> = directory.ancestors().take_while(is_missing).collect();
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    for made in missing {
        if let Some(parent) = fs::canonicalize(made)?.parent() {
            File::open(parent)?.sync_all()?;
        }
    }
    fs::canonicalize(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_made_once_and_looked_at_afterwards() {
        let folder = tempfile::tempdir().unwrap();
        let (data, log) = (folder.path().join("data"), folder.path().join("deep/log"));
        fs::create_dir(&data).unwrap();
        place(&data, None, true).unwrap();
        assert!(!data.join("wal").exists(), "nothing is done that nobody asks for");
        place(&data, Some(&log), true).unwrap();
        assert_eq!(fs::read_link(data.join("wal")).unwrap(), fs::canonicalize(&log).unwrap());
        // Cut short before there was data, and later, with and without the flag.
        place(&data, Some(&log), true).unwrap();
        fs::write(log.join("00000001.wal"), "x").unwrap();
        place(&data, Some(&log), false).unwrap();
        place(&data, None, false).unwrap();
        let other = place(&data, Some(&folder.path().join("other")), false).unwrap_err();
        assert!(
            other.contains("the log of this data directory is in") && other.contains("let the link"),
            "{other}"
        );
        fs::remove_dir_all(&log).unwrap();
        for given in [None, Some(&log)] {
            let gone = place(&data, given.map(PathBuf::as_path), false).unwrap_err();
            assert!(gone.contains("is its device there?"), "{gone}");
        }
    }

    #[test]
    fn what_does_not_belong_together_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (data, log) = (folder.path().join("data"), folder.path().join("log"));
        fs::create_dir_all(&log).unwrap();
        fs::create_dir_all(log.join("lost+found")).unwrap();
        fs::create_dir_all(data.join("wal")).unwrap();
        let inside = place(&data, Some(&log), false).unwrap_err();
        assert!(inside.contains("put a symbolic link to it in its place"), "{inside}");
        place(&data, Some(&data.join("wal")), false).unwrap();
        fs::remove_dir(data.join("wal")).unwrap();
        let itself = place(&data, Some(&data), true).unwrap_err();
        assert!(itself.contains("is the data directory itself"), "{itself}");
        fs::write(log.join("00000001.wal"), "x").unwrap();
        let taken = place(&data, Some(&log), true).unwrap_err();
        assert!(taken.contains("is not empty (00000001.wal is there)"), "{taken}");
        let no_directory = place(&data, Some(&log.join("00000001.wal")), true).unwrap_err();
        assert!(no_directory.starts_with("--wal-dir "), "{no_directory}");
        fs::remove_file(log.join("00000001.wal")).unwrap();
        place(&data, Some(&log), true).unwrap();
    }
}
