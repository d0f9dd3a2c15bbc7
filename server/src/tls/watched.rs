//! Files that are read again when they change, such as certificates that are renewed while the server runs.
//!
//! **Contract.** [`Watched::current`] looks at the files (one `stat` each) and reads them again if one is another than before: by inode, size
//! or time of change, so that a rename over it, a rewrite and a symbolic link that points elsewhere are all seen. What cannot be read or
//! does not fit is complained about once, in the log, and tried again at every call; what was read last stays in use until then.
//!
//! **Why no notification of changes**: a look costs less than the handshake that asks for it, and directories that are mounted
//! from elsewhere (of Kubernetes' secrets, of NFS) notify of nothing or of too much.
//!
//! **Does not know** what is in the files.
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of a file at most: a revocation list of a million certificates fits.
const FILE_BYTES_MAX: u64 = 64 << 20;

type Parse<T> = Box<dyn Fn(&[Vec<u8>]) -> Result<T, String> + Send + Sync>;

/// Device, inode, size and time of change; none if the file is not there.
type Stamp = Option<(u64, u64, u64, i64, i64)>;

/// See the module.
pub struct Watched<T> {
    /// Which files these are, for people.
    what: String,
    paths: Vec<PathBuf>,
    parse: Parse<T>,
    state: Mutex<State<T>>,
}

struct State<T> {
    stamps: Vec<Stamp>,
    current: Arc<T>,
    /// What was wrong with them last.
    complaint: Option<String>,
}

impl<T> fmt::Debug for Watched<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Watched({})", self.what)
    }
}

impl<T> Watched<T> {
    /// Reads the files for the first time. `what` says in a few words what they are.
    ///
    /// # Errors
    /// Go's text for a file that cannot be read; that of `parse`.
    pub fn open(
        what: String,
        paths: Vec<PathBuf>,
        parse: impl Fn(&[Vec<u8>]) -> Result<T, String> + Send + Sync + 'static,
    ) -> Result<Self, String> {
        let stamps = paths.iter().map(|path| stamp(path)).collect();
        let current = Arc::new(parse(&read_all(&paths)?)?);
        let state = Mutex::new(State { stamps, current, complaint: None });
        Ok(Self { what, paths, parse: Box::new(parse), state })
    }

    /// What is in them now, or was the last time that it fitted.
    pub fn current(&self) -> Arc<T> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // Before they are read: a change in between is seen the next time.
        let stamps: Vec<Stamp> = self.paths.iter().map(|path| stamp(path)).collect();
        if stamps == state.stamps && state.complaint.is_none() {
            return Arc::clone(&state.current);
        }
        let paths =
            || self.paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
        match read_all(&self.paths).and_then(|files| (self.parse)(&files)) {
            Ok(read) => {
                tracing::info!(files = paths(), "{} was read again", self.what);
                (state.current, state.complaint) = (Arc::new(read), None);
            }
            Err(error) => {
                if state.complaint.as_ref() != Some(&error) {
                    tracing::error!(
                        files = paths(),
                        error,
                        "{} has changed and cannot be used; what was read before stays in use, correct the files",
                        self.what
                    );
                }
                state.complaint = Some(error);
            }
        }
        state.stamps = stamps;
        Arc::clone(&state.current)
    }

    /// Which files these are.
    pub fn what(&self) -> &str {
        &self.what
    }

    /// The first of the files.
    pub fn path(&self) -> &Path {
        &self.paths[0]
    }
}

fn stamp(path: &Path) -> Stamp {
    let found = std::fs::metadata(path).ok()?;
    Some((found.dev(), found.ino(), found.size(), found.ctime(), found.ctime_nsec()))
}

fn read_all(paths: &[PathBuf]) -> Result<Vec<Vec<u8>>, String> {
    paths.iter().map(|path| read(path).map_err(|error| describe(path, &error))).collect()
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    // A pipe would wait for whoever writes to it.
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other(format!("it is larger than {FILE_BYTES_MAX} bytes")));
    }
    Ok(bytes)
}

/// As Go says it.
fn describe(path: &Path, error: &io::Error) -> String {
    let shown = path.display();
    match error.kind() {
        io::ErrorKind::NotFound => format!("open {shown}: no such file or directory"),
        io::ErrorKind::PermissionDenied => format!("open {shown}: permission denied"),
        _ => format!("read {shown}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_not_used_and_what_fits_again_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("number");
        let parse = |files: &[Vec<u8>]| {
            let text = String::from_utf8(files[0].clone()).map_err(|error| error.to_string())?;
            text.trim().parse::<u32>().map_err(|error| error.to_string())
        };
        let open = || Watched::open("the number".into(), vec![path.clone()], parse);
        assert_eq!(open().unwrap_err(), format!("open {}: no such file or directory", path.display()));
        std::fs::write(&path, "1").unwrap();
        let watched = open().unwrap();
        assert_eq!(*watched.current(), 1);
        std::fs::write(&path, "twenty").unwrap();
        assert_eq!(*watched.current(), 1);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(*watched.current(), 1);
        std::fs::write(&path, "22").unwrap();
        assert_eq!(*watched.current(), 22);
        // As secrets in Kubernetes change: a link to another file, which is there at once.
        let (link, other) = (folder.path().join("link"), folder.path().join("other"));
        std::fs::write(&other, "33").unwrap();
        std::os::unix::fs::symlink(&other, &link).unwrap();
        std::fs::rename(&link, &path).unwrap();
        assert_eq!(*watched.current(), 33);
        assert!(Watched::open("a folder".into(), vec![folder.path().into()], parse).is_err());
    }
}
