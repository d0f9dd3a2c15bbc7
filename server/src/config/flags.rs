//! Arguments and environment variables into raw values, by the rules of Go's `flag` package and etcd's `pkg/flags`.
//!
//! **Contract.** One dash is two dashes; `--x=v` and `--x v`; a boolean is `--x` or `--x=v` and never takes the next argument; the last
//! occurrence wins; the first argument without a dash, a lone `-`, or `--` ends the flags, and what follows is an error. A variable counts
//! when it is not empty; a variable beside its flag is an error; an unknown `ETCD_*` is a notice.
//!
//! **Failure.** What Go's parser refuses is [`ConfigError::Usage`] (exit code 2), with Go's texts; everything later is
//! [`ConfigError::Invalid`] (exit code 1).
//!
//! **Why by hand**: no argument parser knows these rules, and over the table they are one short loop.
use super::options::{FEATURE_GATES, Kind, OPTIONS, OptionSpec, Status, position};
use super::url;
use super::{ConfigError, Notice};
use std::borrow::Cow;

/// The raw value of every option, by its index in [`OPTIONS`].
#[derive(Clone, Debug)]
pub struct Settings {
    given: Vec<Option<String>>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { given: vec![None; OPTIONS.len()] }
    }
}

impl Settings {
    /// The value as text, given or default. An unknown name is a bug: see [`Settings::index`].
    pub fn text(&self, name: &str) -> &str {
        let index = Self::index(name);
        self.given[index].as_deref().unwrap_or(OPTIONS[index].default)
    }

    /// True when a flag or a variable gave the value.
    pub fn is_given(&self, name: &str) -> bool {
        self.given[Self::index(name)].is_some()
    }

    /// Options that were given, in the order of the table.
    pub fn given(&self) -> impl Iterator<Item = (&'static OptionSpec, &str)> {
        OPTIONS.iter().zip(&self.given).filter_map(|(spec, value)| Some((spec, value.as_deref()?)))
    }

    /// Every option with its value in effect.
    pub fn effective(&self) -> impl Iterator<Item = (&'static OptionSpec, &str)> {
        OPTIONS.iter().zip(&self.given).map(|(spec, value)| (spec, value.as_deref().unwrap_or(spec.default)))
    }

    /// A boolean.
    pub fn flag(&self, name: &str) -> bool {
        parse_bool(self.text(name)).expect("checked when it was set")
    }

    /// A number without sign.
    pub fn uint(&self, name: &str) -> u64 {
        parse_uint(self.text(name)).expect("checked when it was set")
    }

    /// A number with sign.
    pub fn int(&self, name: &str) -> i64 {
        parse_int(self.text(name)).expect("checked when it was set")
    }

    /// A duration in nanoseconds; may be negative.
    pub fn duration_ns(&self, name: &str) -> i64 {
        parse_duration_ns(self.text(name)).expect("checked when it was set")
    }

    /// The non-empty words of a comma-separated list, without duplicates, sorted.
    pub fn list(&self, name: &str) -> Vec<String> {
        let mut words: Vec<String> =
            self.text(name).split(',').filter(|word| !word.is_empty()).map(String::from).collect();
        words.sort_unstable();
        words.dedup();
        words
    }

    fn index(name: &str) -> usize {
        position(name).unwrap_or_else(|| panic!("no option is named {name}"))
    }

    pub(super) fn set(&mut self, index: usize, value: String) {
        self.given[index] = Some(value);
    }
}

/// What the arguments ask for.
#[derive(Debug)]
pub enum Arguments {
    /// To run with these values.
    Run(Settings),
    /// To print the help.
    Help,
}

/// Reads the arguments (without the program's name).
pub fn parse_arguments(arguments: &[String]) -> Result<Arguments, ConfigError> {
    let mut settings = Settings::default();
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let Some(flag) = argument.strip_prefix('-').filter(|flag| !flag.is_empty()) else {
            return Err(not_a_flag(argument));
        };
        if flag == "-" {
            match rest.next() {
                Some(operand) => return Err(not_a_flag(operand)),
                None => break,
            }
        }
        let flag = flag.strip_prefix('-').unwrap_or(flag);
        if flag.is_empty() || flag.starts_with('-') || flag.starts_with('=') {
            return Err(ConfigError::Usage(format!("bad flag syntax: {argument}")));
        }
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (flag, None),
        };
        let Some(index) = position(name) else {
            if name == "help" || name == "h" {
                return Ok(Arguments::Help);
            }
            return Err(ConfigError::Usage(format!("flag provided but not defined: -{name}")));
        };
        let spec = &OPTIONS[index];
        let value = match (spec.kind, value) {
            (Kind::Flag | Kind::Ignored, None) => "true",
            (_, Some(value)) => value,
            (_, None) => rest
                .next()
                .map(String::as_str)
                .ok_or_else(|| ConfigError::Usage(format!("flag needs an argument: -{name}")))?,
        };
        check(spec.kind, value).map_err(|reason| {
            ConfigError::Usage(if spec.kind == Kind::Flag {
                format!("invalid boolean value {value:?} for -{name}: {reason}")
            } else {
                format!("invalid value {value:?} for flag -{name}: {reason}")
            })
        })?;
        settings.set(index, value.to_string());
    }
    Ok(Arguments::Run(settings))
}

fn not_a_flag(argument: &str) -> ConfigError {
    ConfigError::Invalid(format!("{argument:?} is not a valid flag"))
}

/// Variables that launchers of etcd set and that mean nothing to this server.
const TOLERATED: &[&str] = &["ETCD_UNSUPPORTED_ARCH", "ETCD_VERIFY"];

/// Adds what the environment gives.
pub fn apply_environment(
    settings: &mut Settings,
    environment: &[(String, String)],
    notices: &mut Vec<Notice>,
) -> Result<(), ConfigError> {
    let from_flags = settings.clone();
    for (variable, value) in environment.iter().filter(|(variable, _)| variable.starts_with("ETCD_")) {
        if TOLERATED.contains(&variable.as_str()) {
            continue;
        }
        if variable == "ETCD_VERSION" {
            if !value.is_empty() {
                notices.push(
                    Notice::warning("cannot set special environment variable")
                        .with("key", variable)
                        .with("value", value),
                );
            }
            continue;
        }
        let Some(index) = OPTIONS.iter().position(|spec| spec.variable() == *variable) else {
            notices.push(
                Notice::warning("unrecognized environment variable")
                    .with("environment-variable", &format!("{variable}={value}")),
            );
            continue;
        };
        let spec = &OPTIONS[index];
        if from_flags.given[index].is_some() {
            return Err(ConfigError::Invalid(format!(
                "conflicting environment variable {variable:?} is shadowed by corresponding command-line flag (either unset environment variable or disable flag)"
            )));
        }
        if value.is_empty() {
            continue;
        }
        check(spec.kind, value).map_err(|reason| {
            ConfigError::Invalid(format!("invalid value {value:?} for {variable}: {reason}"))
        })?;
        notices.push(
            Notice::info("recognized and used environment variable")
                .with("variable-name", variable)
                .with("variable-value", value),
        );
        settings.set(index, value.clone());
    }
    Ok(())
}

/// One notice for each given option that has no effect.
pub fn check_status(settings: &Settings, notices: &mut Vec<Notice>) {
    for (spec, value) in settings.given() {
        match spec.status {
            Status::Served => {}
            Status::Warned(_) if spec.kind == Kind::Ignored => notices
                .push(Notice::warning("flag is no longer supported and is ignored").with("flag", spec.name)),
            Status::Warned(reason) => notices.push(
                Notice::warning(&format!("--{} is accepted and has no effect: {reason}", spec.name))
                    .with("flag", spec.name)
                    .with("value", value),
            ),
        }
        // Two lines that etcd prints for these flags and that its own tests look for.
        match spec.name {
            "max-snapshots" => notices.push(Notice::warning(
                "--max-snapshots is deprecated in 3.6 and will be decommissioned in 3.8.",
            )),
            "v2-deprecation" => notices.push(Notice::warning(
                "--v2-deprecation is deprecated and scheduled for removal in v3.8. The default value is enforced, ignoring user input.",
            )),
            _ => {}
        }
    }
}

/// Checks a value against its kind; the error is Go's text.
pub(super) fn check(kind: Kind, value: &str) -> Result<(), Cow<'static, str>> {
    match kind {
        Kind::Text | Kind::List | Kind::Ignored => Ok(()),
        Kind::Flag => parse_bool(value).map(drop).ok_or("parse error".into()),
        Kind::Uint => parse_uint(value).map(drop).map_err(NumberError::text),
        Kind::Int => parse_int(value).map(drop).map_err(NumberError::text),
        Kind::Uint32 => match parse_uint(value) {
            Ok(number) if u32::try_from(number).is_ok() => Ok(()),
            Err(NumberError::Syntax) => {
                Err(format!("strconv.ParseUint: parsing {value:?}: invalid syntax").into())
            }
            _ => Err(format!("strconv.ParseUint: parsing {value:?}: value out of range").into()),
        },
        Kind::Duration => parse_duration_ns(value).map(drop).ok_or("parse error".into()),
        Kind::Choice(choices) => choices.contains(&value).then_some(()).ok_or("invalid value".into()),
        Kind::FeatureGates => feature_gates(value).map(drop).map_err(Cow::from),
        Kind::Urls => url::parse_list(value).map(drop).map_err(Cow::from),
        Kind::UrlsOrAny => {
            if value == "*" {
                return Ok(());
            }
            url::parse_list(value).map(drop).map_err(Cow::from)
        }
    }
}

/// The gates that a text sets, in its order; the errors are those of etcd's feature gate package.
pub(crate) fn feature_gates(text: &str) -> Result<Vec<(&'static str, bool)>, String> {
    let mut gates = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let Some((name, value)) = part.split_once('=') else {
            return Err(format!("missing bool value for {part}"));
        };
        let (name, value) = (name.trim(), value.trim());
        let Some(on) = parse_bool(value) else {
            return Err(format!(
                "invalid value of {name}={value}, err: strconv.ParseBool: parsing {value:?}: invalid syntax"
            ));
        };
        match name {
            "AllAlpha" | "AllBeta" => {
                let stage = if name == "AllAlpha" { "ALPHA" } else { "BETA" };
                gates.extend(FEATURE_GATES.iter().filter(|gate| gate.1 == stage).map(|gate| (gate.0, on)));
            }
            _ => match FEATURE_GATES.iter().find(|gate| gate.0 == name) {
                Some(gate) => gates.push((gate.0, on)),
                None => return Err(format!("unrecognized feature gate: {name}")),
            },
        }
    }
    Ok(gates)
}

/// What Go's number parsers complain about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum NumberError {
    Syntax,
    Range,
}

impl NumberError {
    fn text(self) -> Cow<'static, str> {
        match self {
            NumberError::Syntax => "parse error".into(),
            NumberError::Range => "value out of range".into(),
        }
    }
}

fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// As Go with base 0: decimal, `0x`, `0o`, `0b`, a leading zero for octal, and single underscores between digits after a prefix.
fn parse_uint(text: &str) -> Result<u64, NumberError> {
    let (digits, radix) = match text.as_bytes() {
        [b'0', b'x' | b'X', ..] => (&text[2..], 16),
        [b'0', b'o' | b'O', ..] => (&text[2..], 8),
        [b'0', b'b' | b'B', ..] => (&text[2..], 2),
        [b'0', _, ..] => (&text[1..], 8),
        _ => (text, 10),
    };
    let digits: Cow<'_, str> = if radix != 10 && digits.contains('_') {
        if digits.ends_with('_') || digits.contains("__") {
            return Err(NumberError::Syntax);
        }
        digits.replace('_', "").into()
    } else {
        digits.into()
    };
    if digits.is_empty() || !digits.chars().all(|digit| digit.is_digit(radix)) {
        return Err(NumberError::Syntax);
    }
    u64::from_str_radix(&digits, radix).map_err(|_| NumberError::Range)
}

fn parse_int(text: &str) -> Result<i64, NumberError> {
    let (negative, digits) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let magnitude = i128::from(parse_uint(digits)?);
    i64::try_from(if negative { -magnitude } else { magnitude }).map_err(|_| NumberError::Range)
}

/// Go's `time.ParseDuration` in nanoseconds.
pub(crate) fn parse_duration_ns(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let number_len = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, tail) = rest.split_at(number_len);
        let unit_len = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_len);
        let unit_ns: i128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || whole.len() > 19 || fraction.contains('.') {
            return None;
        }
        let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        total += whole * unit_ns;
        let fraction = &fraction[..fraction.len().min(18)];
        if !fraction.is_empty() {
            total +=
                fraction.parse::<i128>().ok()? * unit_ns / 10_i128.pow(u32::try_from(fraction.len()).ok()?);
        }
        rest = tail;
    }
    i64::try_from(if negative { -total } else { total }).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(arguments: &[&str]) -> Settings {
        match parse_arguments(&arguments.iter().map(ToString::to_string).collect::<Vec<_>>()) {
            Ok(Arguments::Run(settings)) => settings,
            other => panic!("{arguments:?}: {other:?}"),
        }
    }

    fn refusal(arguments: &[&str]) -> ConfigError {
        parse_arguments(&arguments.iter().map(ToString::to_string).collect::<Vec<_>>())
            .expect_err("must be refused")
    }

    #[test]
    fn all_four_shapes_of_an_argument_mean_the_same() {
        for shape in [&["--name=a"][..], &["-name=a"], &["--name", "a"], &["-name", "a"]] {
            assert_eq!(settings(shape).text("name"), "a", "{shape:?}");
        }
    }

    #[test]
    fn last_occurrence_wins() {
        assert_eq!(settings(&["--name=a", "-name", "b"]).text("name"), "b");
    }

    #[test]
    fn empty_value_is_a_value() {
        let settings = settings(&["--data-dir="]);
        assert!(settings.is_given("data-dir"));
        assert_eq!(settings.text("data-dir"), "");
    }

    #[test]
    fn boolean_never_takes_the_next_argument() {
        assert!(settings(&["--socket-reuse-port"]).flag("socket-reuse-port"));
        assert!(!settings(&["--socket-reuse-port=F"]).flag("socket-reuse-port"));
        assert!(settings(&["--pre-vote", "--name", "a"]).flag("pre-vote"));
        assert_eq!(
            refusal(&["--pre-vote", "false"]),
            ConfigError::Invalid("\"false\" is not a valid flag".into())
        );
    }

    #[test]
    fn what_gos_parser_refuses_has_its_text() {
        for (arguments, text) in [
            (&["--nope"][..], "flag provided but not defined: -nope"),
            (&["-nope=3"], "flag provided but not defined: -nope"),
            (&["--name"], "flag needs an argument: -name"),
            (&["---name"], "bad flag syntax: ---name"),
            (&["--=a"], "bad flag syntax: --=a"),
            (&["--pre-vote=maybe"], "invalid boolean value \"maybe\" for -pre-vote: parse error"),
            (&["--max-txn-ops=x"], "invalid value \"x\" for flag -max-txn-ops: parse error"),
            (&["--max-txn-ops=-1"], "invalid value \"-1\" for flag -max-txn-ops: parse error"),
            (
                &["--max-txn-ops=99999999999999999999"],
                "invalid value \"99999999999999999999\" for flag -max-txn-ops: value out of range",
            ),
            (
                &["--max-concurrent-streams=a"],
                "invalid value \"a\" for flag -max-concurrent-streams: strconv.ParseUint: parsing \"a\": invalid syntax",
            ),
            (
                &["--grpc-keepalive-interval=5"],
                "invalid value \"5\" for flag -grpc-keepalive-interval: parse error",
            ),
            (
                &["--initial-cluster-state=old"],
                "invalid value \"old\" for flag -initial-cluster-state: invalid value",
            ),
            (
                &["--listen-client-urls", "localhost"],
                "invalid value \"localhost\" for flag -listen-client-urls: URL scheme must be http, https, unix, or unixs: localhost",
            ),
        ] {
            assert_eq!(refusal(arguments), ConfigError::Usage(text.into()), "{arguments:?}");
        }
    }

    #[test]
    fn words_that_are_no_flags_are_refused() {
        for arguments in [&["gateway"][..], &["--", "gateway"], &["--name=a", "gateway", "--nope"]] {
            assert_eq!(
                refusal(arguments),
                ConfigError::Invalid("\"gateway\" is not a valid flag".into()),
                "{arguments:?}"
            );
        }
        assert_eq!(refusal(&["-"]), ConfigError::Invalid("\"-\" is not a valid flag".into()));
        settings(&["--name=a", "--"]);
    }

    #[test]
    fn help_is_asked_for_in_four_ways() {
        for argument in ["-h", "--h", "-help", "--help"] {
            assert!(matches!(parse_arguments(&[argument.to_string()]), Ok(Arguments::Help)), "{argument}");
        }
    }

    #[test]
    fn variables_fill_what_flags_left_open() {
        let mut settings = settings(&["--name=a"]);
        let mut notices = Vec::new();
        let environment = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect::<Vec<_>>()
        };
        let given = environment(&[
            ("PATH", "/bin"),
            ("ETCD_DATA_DIR", "/d"),
            ("ETCD_WAL_DIR", ""),
            ("ETCD_UNSUPPORTED_ARCH", "arm"),
            ("ETCD_VERIFY", "all"),
            ("ETCD_NOPE", "1"),
        ]);
        apply_environment(&mut settings, &given, &mut notices).unwrap();
        assert_eq!(settings.text("data-dir"), "/d");
        assert!(!settings.is_given("wal-dir"));
        assert_eq!(notices.len(), 2);
        assert_eq!(notices[1].message, "unrecognized environment variable");
        assert_eq!(notices[1].fields, [("environment-variable".to_string(), "ETCD_NOPE=1".to_string())]);

        for (pair, text) in [
            (
                ("ETCD_NAME", "b"),
                "conflicting environment variable \"ETCD_NAME\" is shadowed by corresponding command-line flag (either unset environment variable or disable flag)",
            ),
            (("ETCD_MAX_TXN_OPS", "x"), "invalid value \"x\" for ETCD_MAX_TXN_OPS: parse error"),
        ] {
            assert_eq!(
                apply_environment(&mut settings, &environment(&[pair]), &mut notices),
                Err(ConfigError::Invalid(text.into()))
            );
        }
    }

    #[test]
    fn every_given_option_without_effect_is_named_once() {
        for spec in OPTIONS {
            let Status::Warned(_) = spec.status else { continue };
            let value = match spec.kind {
                Kind::Choice(choices) => choices[0],
                Kind::Text | Kind::List => "x",
                Kind::UrlsOrAny => "*",
                Kind::Flag | Kind::Ignored => "true",
                Kind::Duration => "1s",
                _ => "1",
            };
            let settings = settings(&[&format!("--{}={value}", spec.name)]);
            let mut notices = Vec::new();
            check_status(&settings, &mut notices);
            let naming =
                notices.iter().filter(|notice| notice.fields.iter().any(|(_, v)| v == spec.name)).count();
            assert_eq!(naming, 1, "--{}: {notices:?}", spec.name);
        }
    }

    #[test]
    fn durations_are_read_as_go_reads_them() {
        for (text, ns) in [
            ("0", Some(0)),
            ("100ms", Some(100_000_000)),
            ("1h2m3.5s", Some(3_723_500_000_000)),
            ("-1.5h", Some(-5_400_000_000_000)),
            (".5s", Some(500_000_000)),
            ("1.s", Some(1_000_000_000)),
            ("3µs", Some(3_000)),
            ("", None),
            ("5", None),
            ("s", None),
            (".s", None),
            ("1x", None),
            ("1s1", None),
            ("1.2.3s", None),
            ("-", None),
            ("9999999h", None),
        ] {
            assert_eq!(parse_duration_ns(text), ns, "{text:?}");
        }
    }

    #[test]
    fn numbers_are_read_as_go_reads_them() {
        for (text, number) in [
            ("0", Ok(0)),
            ("10", Ok(10)),
            ("0x1F", Ok(31)),
            ("0b101", Ok(5)),
            ("0o17", Ok(15)),
            ("017", Ok(15)),
            ("0x_f", Ok(15)),
            ("1_000", Err(NumberError::Syntax)),
            ("08", Err(NumberError::Syntax)),
            ("", Err(NumberError::Syntax)),
            ("+1", Err(NumberError::Syntax)),
            ("18446744073709551616", Err(NumberError::Range)),
        ] {
            assert_eq!(parse_uint(text), number, "{text:?}");
        }
        assert_eq!(parse_int("-9223372036854775808"), Ok(i64::MIN));
        assert_eq!(parse_int("9223372036854775808"), Err(NumberError::Range));
        assert_eq!(parse_int("+7"), Ok(7));
    }
}
