//! Where lines of the audit stream go: a file that is rotated, or standard error.
//!
//! **Layout.** `PATH` is written to; when it has its most bytes it becomes `PATH.1`, that before it `PATH.2`, and so on up to as many as are kept. Whoever moves or removes `PATH` (logrotate) needs to
//! tell nobody: what is found missing at a look, once a second while lines come, is made anew.
//!
//! **Contract.** Lines are whole: what of a batch could not be written is taken off the file again and tried once more, for as long as it takes where writers wait, else it is counted as lost. Nothing
//! is synced: a line outlives the process, not the machine.
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Where lines go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Destination {
    /// Standard error.
    Stderr,
    /// A file.
    File {
        /// Its name.
        path: PathBuf,
        /// It is rotated when it has so many bytes.
        bytes_max: u64,
        /// Earlier ones that are kept.
        kept: u32,
    },
}

/// An open one.
pub struct Sink {
    destination: Destination,
    /// Of a file; with how many bytes it has.
    open: Option<(File, u64)>,
}

fn open(path: &Path) -> io::Result<(File, u64)> {
    // Who did what is not for everybody to read.
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
    let bytes = file.metadata()?.len();
    Ok((file, bytes))
}

fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

impl Sink {
    /// Opens it.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn open(destination: Destination) -> io::Result<Self> {
        let open = match &destination {
            Destination::Stderr => None,
            Destination::File { path, .. } => Some(open(path)?),
        };
        Ok(Self { destination, open })
    }

    /// Looks whether the file is still where it was, and makes it anew if not.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn look(&mut self) -> io::Result<()> {
        let Destination::File { path, .. } = &self.destination else { return Ok(()) };
        let is_same = |file: &File| -> io::Result<bool> {
            let (here, there) = (file.metadata()?, fs::metadata(path)?);
            Ok((here.dev(), here.ino()) == (there.dev(), there.ino()))
        };
        if self.open.as_ref().is_some_and(|(file, _)| is_same(file).unwrap_or(false)) {
            return Ok(());
        }
        self.open = Some(open(path)?);
        Ok(())
    }

    /// Writes whole lines, or none of them.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        let Destination::File { path, bytes_max, kept } = &self.destination else {
            return io::stderr().lock().write_all(lines);
        };
        let is_full = |bytes: u64| bytes > 0 && bytes.saturating_add(lines.len() as u64) > *bytes_max;
        if self.open.as_ref().is_some_and(|(_, bytes)| is_full(*bytes)) {
            rotate(path, *kept)?;
            self.open = None;
        }
        if self.open.is_none() {
            self.open = Some(open(path)?);
        }
        let Some((file, bytes)) = &mut self.open else { return Ok(()) };
        match file.write_all(lines) {
            Ok(()) => {
                *bytes += lines.len() as u64;
                Ok(())
            }
            Err(error) => {
                // Else half a line would stay. A disk that fails here too leaves it.
                let _ = file.set_len(*bytes);
                Err(error)
            }
        }
    }
}

/// Moves each file to the next number; the last one goes.
fn rotate(path: &Path, kept: u32) -> io::Result<()> {
    if kept == 0 {
        return fs::remove_file(path);
    }
    for number in (1..kept).rev() {
        match fs::rename(numbered(path, number), numbered(path, number + 1)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    fs::rename(path, numbered(path, 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sink(path: &Path, bytes_max: u64, kept: u32) -> Sink {
        Sink::open(Destination::File { path: path.to_owned(), bytes_max, kept }).unwrap()
    }

    #[test]
    fn files_are_rotated_between_lines_and_only_so_many_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit");
        let mut sink = sink(&path, 20, 2);
        for number in 0..10 {
            sink.write(format!("line {number}\n").as_bytes()).unwrap();
        }
        let text = |path: PathBuf| fs::read_to_string(path).unwrap();
        assert_eq!(text(path.clone()), "line 8\nline 9\n");
        assert_eq!(text(numbered(&path, 1)), "line 6\nline 7\n");
        assert_eq!(text(numbered(&path, 2)), "line 4\nline 5\n");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
        // One that is larger than a file has one of its own.
        sink.write(&[b'x'; 50]).unwrap();
        assert_eq!(text(path.clone()).len(), 50);
        assert_eq!(text(numbered(&path, 1)), "line 8\nline 9\n");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_file_that_was_moved_away_is_made_anew_and_one_that_is_there_is_continued() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit");
        let mut first = sink(&path, 1000, 1);
        first.write(b"a\n").unwrap();
        let moved = folder.path().join("moved");
        fs::rename(&path, &moved).unwrap();
        first.write(b"b\n").unwrap();
        first.look().unwrap();
        first.write(b"c\n").unwrap();
        assert_eq!(fs::read_to_string(&moved).unwrap(), "a\nb\n", "nothing is lost meanwhile");
        assert_eq!(fs::read_to_string(&path).unwrap(), "c\n");
        drop(first);
        sink(&path, 1000, 1).write(b"d\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "c\nd\n");
    }

    #[test]
    fn a_full_disk_leaves_no_half_line() {
        let mut sink = Sink::open(Destination::Stderr).unwrap();
        sink.destination = Destination::File { path: "/dev/full".into(), bytes_max: 1000, kept: 0 };
        assert_eq!(sink.write(b"line\n").unwrap_err().kind(), io::ErrorKind::StorageFull);
    }
}
