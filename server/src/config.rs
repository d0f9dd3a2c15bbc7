//! Settings: flags and `ETCD_*` variables over one table of options, checked, as a plain [`Config`].
//!
//! **Reading order.** [`options`] is the table; [`flags`] turns arguments and variables into raw values by Go's rules, and [`file`] a YAML file; [`validate`] turns
//! raw values into a [`Config`], with etcd's complaints; [`tls`] those of TLS; [`url`] reads URLs.
//!
//! **Contract.** [`load`] is a function of arguments, environment and the configuration file, if one is named: it opens nothing else, and prints and logs nothing. What the user should hear comes
//! back as [`Notice`]s, because where to log is itself a setting.
//!
//! **Does not know** what the settings do.
mod audit;
mod discovery;
pub mod file;
pub mod flags;
pub mod options;
pub mod tls;
pub mod url;
pub mod validate;

pub use url::Url;
pub use validate::{Config, LogFormat, LogLevel, LogOutput};

use flags::{Arguments, Settings};
use options::{Group, OPTIONS, Status};
use std::fmt::Write;
use std::fs::File;
use std::io::Read;

/// The release of etcd whose behaviour this server reproduces, as reported wherever etcd reports its own.
pub const ETCD_VERSION: &str = "3.7.3";

/// etcd's cluster version for it.
pub const ETCD_CLUSTER_VERSION: &str = "3.7.0";

/// Something to tell the user once logging works.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Notice {
    /// True for a warning, false for information.
    pub warning: bool,
    /// What to say.
    pub message: String,
    /// Names and values beside it.
    pub fields: Vec<(String, String)>,
}

impl Notice {
    pub(crate) fn warning(message: &str) -> Self {
        Self { warning: true, message: message.into(), fields: Vec::new() }
    }

    pub(crate) fn info(message: &str) -> Self {
        Self { warning: false, ..Self::warning(message) }
    }

    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.fields.push((name.into(), value.into()));
        self
    }
}

/// Why the server cannot start with these settings.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ConfigError {
    /// The arguments cannot be parsed: print the text and the usage, exit with 2.
    Usage(String),
    /// The settings make no sense: log the text, exit with 1.
    Invalid(String),
}

/// What the user asked for.
#[derive(Debug)]
pub enum Request {
    /// To serve.
    Serve(Box<Loaded>),
    /// To have this printed.
    Print(String),
}

/// Settings ready to use.
#[derive(Debug)]
pub struct Loaded {
    /// Checked values.
    pub config: Config,
    /// Raw values, for the start log.
    pub settings: Settings,
    /// What the user should hear.
    pub notices: Vec<Notice>,
}

/// Reads arguments (without the program's name) and environment.
pub fn load(arguments: &[String], environment: &[(String, String)]) -> Result<Request, ConfigError> {
    let mut settings = match flags::parse_arguments(arguments)? {
        Arguments::Help => return Ok(Request::Print(help())),
        Arguments::Run(settings) => settings,
    };
    if settings.flag("version") {
        return Ok(Request::Print(version()));
    }
    let mut notices = Vec::new();
    match config_file(&settings, environment) {
        Some(path) => {
            settings = file::read(&path, &read_file(&path)?, &mut notices)?;
            notices.push(
                Notice::info("loaded server configuration, other configuration command line flags and environment variables will be ignored if provided")
                    .with("path", &path),
            );
        }
        None => flags::apply_environment(&mut settings, environment, &mut notices)?,
    }
    flags::check_status(&settings, &mut notices);
    let config = validate::validate(&settings, &mut notices)?;
    Ok(Request::Serve(Box::new(Loaded { config, settings, notices })))
}

/// The file that the flag names, or the variable if the flag does not.
fn config_file(settings: &Settings, environment: &[(String, String)]) -> Option<String> {
    let from_flag = settings.text("config-file");
    if !from_flag.is_empty() {
        return Some(from_flag.to_owned());
    }
    let variable = environment.iter().find(|(variable, _)| variable == "ETCD_CONFIG_FILE");
    variable.map(|(_, path)| path.clone()).filter(|path| !path.is_empty())
}

fn read_file(path: &str) -> Result<String, ConfigError> {
    let mut text = String::new();
    let read =
        File::open(path).and_then(|file| file.take(file::FILE_BYTES_MAX + 1).read_to_string(&mut text));
    match read {
        Err(error) => {
            Err(ConfigError::Invalid(format!("cannot read the configuration file {path}: {error}")))
        }
        Ok(bytes) if bytes as u64 > file::FILE_BYTES_MAX => {
            let most = file::FILE_BYTES_MAX;
            Err(ConfigError::Invalid(format!("the configuration file {path} has more than {most} bytes")))
        }
        Ok(_) => Ok(text),
    }
}

/// What `--version` prints. The line `etcd Version:` is there for tools that ask which etcd they talk to.
pub fn version() -> String {
    format!(
        "sternpost Version: {}\netcd Version: {ETCD_VERSION}\nGit SHA: {}\nRust Version: {}\nRust OS/Arch: {}/{}\n",
        env!("CARGO_PKG_VERSION"),
        option_env!("STERNPOST_GIT_SHA").unwrap_or("Not provided (use a release build)"),
        env!("CARGO_PKG_RUST_VERSION"),
        std::env::consts::OS,
        std::env::consts::ARCH,
    )
}

/// The few lines that follow a mistake in the arguments.
pub fn usage() -> &'static str {
    "Usage:\n\n  sternpost [flags]\n    Start a server.\n\n  sternpost --version\n    Show the version.\n\n  sternpost -h | --help\n    Show all flags.\n"
}

/// What `--help` prints: every option under its heading.
pub fn help() -> String {
    let mut text = String::from(usage());
    text.push_str("\nEvery flag can be given as a variable: --data-dir is ETCD_DATA_DIR.\n");
    let mut heading = None;
    for spec in OPTIONS.iter().filter(|spec| spec.group != Group::Ignored) {
        if heading != Some(spec.group) {
            heading = Some(spec.group);
            let _ = write!(text, "\n{}:\n", spec.group.heading());
        }
        let _ = write!(text, "  --{} '{}'\n    {}", spec.name, spec.default, spec.help);
        match spec.status {
            Status::Served => {}
            Status::Warned(reason) => {
                let _ = write!(text, " No effect: {reason}.");
            }
        }
        text.push('\n');
    }
    text
}

/// `docs/config.md`, generated from the table.
pub fn document() -> String {
    let mut text = String::from(
        "# Options of the server\n\n\
         Generated from `server/src/config/options.rs`; the test `config_document_is_current` compares them.\n\n\
         Every option is a flag (`--name value`, `--name=value`, one dash or two) and a variable (`ETCD_` and the name in upper case\n\
         with `_` for `-`). The last flag wins; a flag and its variable together are an error. Options are etcd 3.7's, unless listed under\n\
         \"Sternpost's own\". *No effect* means: accepted, with one warning in the log.\n",
    );
    let mut heading = None;
    for spec in OPTIONS {
        if heading != Some(spec.group) {
            heading = Some(spec.group);
            let _ = write!(
                text,
                "\n## {}\n\n| Flag | Default | Meaning |\n|---|---|---|\n",
                spec.group.heading()
            );
        }
        let effect = match spec.status {
            Status::Served => String::new(),
            Status::Warned(reason) => format!(" *No effect: {reason}.*"),
        };
        let default = if spec.default.is_empty() { String::new() } else { format!("`{}`", spec.default) };
        let _ = writeln!(text, "| `--{}` | {default} | {}{effect} |", spec.name, spec.help);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_counts_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("etcd.yml");
        let path = path.to_str().unwrap().to_owned();
        let served = |arguments: &[&str], environment: &[(&str, &str)]| {
            let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
            let pair = |(name, value): &(&str, &str)| (name.to_string(), value.to_string());
            match load(&arguments, &environment.iter().map(pair).collect::<Vec<_>>()) {
                Ok(Request::Serve(loaded)) => Ok(loaded.config),
                Ok(Request::Print(text)) => panic!("{text}"),
                Err(ConfigError::Invalid(text) | ConfigError::Usage(text)) => Err(text),
            }
        };
        let flag = format!("--config-file={path}");
        let missing = served(&[&flag], &[]).unwrap_err();
        assert!(
            missing.starts_with(&format!("cannot read the configuration file {path}: No such file")),
            "{missing}"
        );
        std::fs::write(&path, "name: from-file\nmax-txn-ops: 7\n").unwrap();
        let config =
            served(&[&flag, "--name=from-flag", "--max-txn-ops=9"], &[("ETCD_DATA_DIR", "d")]).unwrap();
        assert_eq!((config.name.as_str(), config.txn_ops_max), ("from-file", 7));
        assert_eq!(config.data_dir, std::path::Path::new("from-file.etcd"));
        let config = served(&[], &[("ETCD_CONFIG_FILE", &path)]).unwrap();
        assert_eq!(config.name, "from-file");
        std::fs::write(&path, vec![b'#'; (1 << 20) + 1]).unwrap();
        let large = served(&[&flag], &[]).unwrap_err();
        assert_eq!(large, format!("the configuration file {path} has more than 1048576 bytes"));
    }

    #[test]
    fn version_has_the_line_that_tools_look_for() {
        let Ok(Request::Print(text)) = load(&["--version".into()], &[]) else { panic!("must print") };
        assert!(text.lines().any(|line| line == "etcd Version: 3.7.3"), "{text}");
        assert!(text.starts_with("sternpost Version: "), "{text}");
    }

    #[test]
    fn help_names_every_option_but_the_dropped_ones() {
        let text = help();
        for spec in OPTIONS {
            assert_eq!(
                text.contains(&format!("  --{} '", spec.name)),
                spec.group != Group::Ignored,
                "{}",
                spec.name
            );
        }
    }
}
