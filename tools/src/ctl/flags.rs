//! Flags as etcdctl's parser takes them, over clap: a truth may be written `--prefix=false`, a value may begin with a
//! hyphen, a flag may be given twice (the last counts), and what is wrong is said in the same words.
//!
//! Every flag that has a variable `STERNCTL_<NAME>` is also read from `ETCDCTL_<NAME>`, which scripts have set already.
//!
//! **Source**: etcdctl 3.7.3 as it answers (its parser is the Go package pflag).
use clap::builder::Resettable;
use clap::error::{ContextKind, ErrorKind};
use clap::{Arg, ArgAction, Command, CommandFactory, FromArgMatches};
use std::ffi::OsString;
use std::time::Duration;

const OUR_VARIABLES: &str = "STERNCTL_";
const THEIR_VARIABLES: &str = "ETCDCTL_";

/// Flags that have a letter of their own, which messages name before them.
const LETTERS: [(&str, char); 4] =
    [("--write-out", 'w'), ("--discovery-srv", 'd'), ("--interactive", 'i'), ("--listen", 'l')];

/// A command line, as etcdctl would read it.
pub(crate) fn parse<T: CommandFactory + FromArgMatches>(
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<T, clap::Error> {
    let mut command = command::<T>();
    let mut matches = command.try_get_matches_from_mut(arguments)?;
    T::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command))
}

/// A command whose flags are read as etcdctl reads them.
pub(crate) fn command<T: CommandFactory>() -> Command {
    as_etcdctl(T::command().args_override_self(true))
}

fn as_etcdctl(command: Command) -> Command {
    command.mut_args(flag).mut_subcommands(as_etcdctl)
}

fn flag(argument: Arg) -> Arg {
    if argument.is_positional() {
        return argument;
    }
    let argument = match argument.get_action() {
        ArgAction::SetTrue => argument
            .action(ArgAction::Set)
            .num_args(0..=1)
            .require_equals(true)
            .default_value("false")
            .default_missing_value("true")
            .hide_default_value(true)
            .value_name("BOOL")
            .value_parser(truth),
        ArgAction::Set | ArgAction::Append => argument.allow_hyphen_values(true),
        _ => return argument,
    };
    let Some(ours) = argument.get_env().map(|name| name.to_string_lossy().into_owned()) else {
        return argument;
    };
    // A variable without a value is none, for etcdctl.
    let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let theirs = ours.replacen(OUR_VARIABLES, THEIR_VARIABLES, 1);
    match (is_set(&ours), is_set(&theirs)) {
        (true, _) => argument,
        (false, true) => argument.env(theirs),
        (false, false) => argument.env(Resettable::Reset),
    }
}

/// `true`, `false` and Go's other words for them.
pub(crate) fn truth(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(format!("strconv.ParseBool: parsing {text:?}: invalid syntax")),
    }
}

/// An integer as Go writes them: a sign, `0x`, `0o`, `0b` or a zero for octal, underscores between digits.
pub(crate) fn integer(text: &str) -> Result<i64, String> {
    let failed = |what: &str| Err(format!("strconv.ParseInt: parsing {text:?}: {what}"));
    let (is_negative, unsigned) = match (text.strip_prefix('-'), text.strip_prefix('+')) {
        (Some(rest), _) => (true, rest),
        (None, rest) => (false, rest.unwrap_or(text)),
    };
    match magnitude(unsigned) {
        None => failed("invalid syntax"),
        Some(value) => match i64::try_from(if is_negative { -value } else { value }) {
            Ok(value) => Ok(value),
            Err(_) => failed("value out of range"),
        },
    }
}

/// The same without a sign.
pub(crate) fn natural(text: &str) -> Result<u64, String> {
    let failed = |what: &str| Err(format!("strconv.ParseUint: parsing {text:?}: {what}"));
    match magnitude(text) {
        None => failed("invalid syntax"),
        Some(value) => u64::try_from(value).or_else(|_| failed("value out of range")),
    }
}

/// Its value, or `i128::MAX` for more than that.
fn magnitude(text: &str) -> Option<i128> {
    let lower = text.to_ascii_lowercase();
    let (digits, radix) = match lower.as_bytes() {
        [b'0', b'x', ..] => (&lower[2..], 16),
        [b'0', b'o', ..] => (&lower[2..], 8),
        [b'0', b'b', ..] => (&lower[2..], 2),
        [b'0', _, ..] => (&lower[1..], 8),
        _ => (&lower[..], 10),
    };
    let is_number = |c: char| c.is_digit(radix) || c == '_';
    // An underscore stands between digits, or behind the letter of the base.
    let is_well_placed = !digits.ends_with('_')
        && !digits.contains("__")
        && (radix != 10 || !digits.contains('_'))
        && (!digits.starts_with('_') || lower.len() > digits.len());
    if digits.is_empty() || !digits.chars().all(is_number) || !is_well_placed {
        return None;
    }
    let digits = digits.replace('_', "");
    Some(i128::from_str_radix(&digits, radix).unwrap_or(i128::MAX))
}

/// A duration in Go's form: `1h2m3s`, `1.5s`, `300ms`, `0`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let invalid = || format!("time: invalid duration {text:?}");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let number_end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(|| format!("time: missing unit in duration {text:?}"))?;
        let number: f64 = rest[..number_end].parse().map_err(|_| invalid())?;
        rest = &rest[number_end..];
        let unit_end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        seconds += number
            * match &rest[..unit_end] {
                "ns" => 1e-9,
                "us" | "µs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                unit => return Err(format!("time: unknown unit {unit:?} in duration {text:?}")),
            };
        rest = &rest[unit_end..];
    }
    if text.is_empty() { Err(invalid()) } else { Duration::try_from_secs_f64(seconds).map_err(|_| invalid()) }
}

/// What etcdctl says of a command line that is none, without the usage that it prints below; `program` is the name in the text.
pub(crate) fn usage_error_text(error: &clap::Error, arguments: &[OsString], program: &str) -> String {
    let context = |kind| error.get(kind).map(ToString::to_string).unwrap_or_default();
    let invalid = context(ContextKind::InvalidArg);
    let name = invalid.split([' ', '=', '[']).next().unwrap_or_default();
    let value = context(ContextKind::InvalidValue);
    match error.kind() {
        ErrorKind::InvalidSubcommand => {
            let command = context(ContextKind::InvalidSubcommand);
            format!("unknown command {command:?} for {program:?}\nRun '{program} --help' for usage.")
        }
        ErrorKind::UnknownArgument if name.starts_with("--") => format!("unknown flag: {name}"),
        ErrorKind::UnknownArgument if name.starts_with('-') => {
            let letter = name.chars().nth(1).unwrap_or_default();
            // Letters are given together, and the text quotes all of them.
            let is_it = |argument: &&OsString| {
                let text = argument.to_string_lossy();
                text.starts_with('-') && !text.starts_with("--") && text.contains(letter)
            };
            let typed = arguments.iter().find(is_it).map_or(name.into(), |it| it.to_string_lossy());
            format!("unknown shorthand flag: '{letter}' in {typed}")
        }
        ErrorKind::InvalidValue if value.is_empty() => {
            let last = arguments.last().map(|last| last.to_string_lossy()).unwrap_or_default();
            match last.strip_prefix('-').filter(|letter| letter.chars().count() == 1 && *letter != "-") {
                Some(letter) => format!("flag needs an argument: '{letter}' in -{letter}"),
                None => format!("flag needs an argument: {name}"),
            }
        }
        ErrorKind::ValueValidation => {
            let letter = LETTERS.iter().find(|(long, _)| *long == name);
            let shown = letter.map_or_else(|| name.to_owned(), |(_, letter)| format!("-{letter}, {name}"));
            let why = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
            format!("invalid argument {value:?} for {shown:?} flag: {why}")
        }
        _ => {
            let text = error.to_string();
            text.strip_prefix("error: ").unwrap_or(&text).trim_end().to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser, Debug)]
    #[command(name = "test")]
    struct Line {
        #[arg(long)]
        prefix: bool,
        #[arg(long, default_value_t = 0, value_parser = integer)]
        rev: i64,
        #[arg(long, short = 'w', default_value = "simple")]
        write_out: String,
        arguments: Vec<String>,
    }

    fn line(words: &[&str]) -> Result<Line, String> {
        let words: Vec<OsString> =
            std::iter::once("test").chain(words.iter().copied()).map(Into::into).collect();
        parse(words.clone()).map_err(|error| usage_error_text(&error, &words, "test"))
    }

    #[test]
    fn flags_are_read_as_etcdctl_reads_them() {
        let read =
            line(&["--prefix", "a", "--rev", "-1", "--rev=0x1F", "-w", "json", "-wfields", "b"]).unwrap();
        assert!(read.prefix);
        assert_eq!((read.rev, &*read.write_out, read.arguments.len()), (31, "fields", 2));
        assert!(!line(&["--prefix", "--prefix=false"]).unwrap().prefix);
        assert!(line(&["--prefix=T"]).unwrap().prefix);
        assert_eq!(line(&["--", "--prefix"]).unwrap().arguments, ["--prefix"]);
    }

    #[test]
    fn what_is_wrong_is_said_in_the_same_words() {
        for (words, text) in [
            (&["--nosuch"][..], "unknown flag: --nosuch"),
            (&["--nosuch=3"], "unknown flag: --nosuch"),
            (&["-x"], "unknown shorthand flag: 'x' in -x"),
            (&["-1"], "unknown shorthand flag: '1' in -1"),
            (&["a", "--rev"], "flag needs an argument: --rev"),
            (&["a", "-w"], "flag needs an argument: 'w' in -w"),
            (
                &["--rev", "x"],
                "invalid argument \"x\" for \"--rev\" flag: strconv.ParseInt: parsing \"x\": invalid syntax",
            ),
            (
                &["--prefix=maybe"],
                "invalid argument \"maybe\" for \"--prefix\" flag: strconv.ParseBool: parsing \"maybe\": invalid syntax",
            ),
        ] {
            assert_eq!(line(words).unwrap_err(), text, "{words:?}");
        }
    }

    #[test]
    fn integers_are_read_in_gos_forms() {
        for (text, value) in
            [("12", 12), ("-0x10", -16), ("+7", 7), ("010", 8), ("0b1_1", 3), ("0", 0), ("0o7", 7)]
        {
            assert_eq!(integer(text), Ok(value), "{text}");
        }
        for text in ["", "-", "1_0", "0x", "08", "1.5", "0x_1_", "--1", "１"] {
            assert!(integer(text).unwrap_err().ends_with("invalid syntax"), "{text}");
        }
        assert!(integer("9223372036854775808").unwrap_err().ends_with("value out of range"));
        assert_eq!(integer("-9223372036854775808"), Ok(i64::MIN));
        assert!(natural("-1").is_err() && natural("18446744073709551615") == Ok(u64::MAX));
        assert!(natural("99999999999999999999999999999999999999999").unwrap_err().ends_with("out of range"));
    }

    #[test]
    fn durations_are_read_in_gos_form() {
        for (text, ms) in [("5s", 5_000), ("1m30s", 90_000), ("1.5h", 5_400_000), ("300ms", 300), ("0", 0)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "5", "s", "5x", "-5s", "1s2", "1e400s", "..s"] {
            assert!(duration(text).is_err(), "{text}");
        }
        assert_eq!(duration("5").unwrap_err(), "time: missing unit in duration \"5\"");
        assert_eq!(duration("5x").unwrap_err(), "time: unknown unit \"x\" in duration \"5x\"");
        assert_eq!(duration("s").unwrap_err(), "time: invalid duration \"s\"");
    }
}
