//! Passwords from people and scripts: at the terminal without showing them, or a word of standard input.
use super::failure::{Exit, Failure};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};

/// Asks at the terminal; what is typed is not shown there.
pub(crate) fn ask(prompt: &str) -> Result<String, String> {
    let text = |error: std::io::Error| error.to_string();
    let mut terminal = File::options().read(true).write(true).open("/dev/tty").map_err(text)?;
    terminal.write_all(prompt.as_bytes()).map_err(text)?;
    let shown = tcgetattr(&terminal).map_err(|error| error.to_string())?;
    let mut hidden = shown.clone();
    hidden.local_modes.remove(LocalModes::ECHO);
    tcsetattr(&terminal, OptionalActions::Flush, &hidden).map_err(|error| error.to_string())?;
    let mut line = String::new();
    let read = BufReader::new(&terminal).read_line(&mut line);
    // Also when nothing could be read.
    let restored = tcsetattr(&terminal, OptionalActions::Flush, &shown);
    let _ = terminal.write_all(b"\n");
    read.map_err(text)?;
    restored.map_err(|error| error.to_string())?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

/// The first word of standard input's first line; nothing is no password, as in etcdctl.
pub(crate) fn read_word() -> Result<String, Failure> {
    let mut line = String::new();
    let read = std::io::stdin().lock().read_line(&mut line);
    read.map_err(|error| Failure::new(Exit::Io, error.to_string()))?;
    Ok(line.split_whitespace().next().unwrap_or_default().to_owned())
}
