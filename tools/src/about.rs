//! `version`, `options`, `completion` and `man`: what this program says of itself; none speaks to a server.
mod server_page;

use crate::ctl::failure::{Exit, Failure};
use crate::ctl::printer::{Format, Printer};
use clap::{Args, Command};
use clap_complete::Shell;
use std::path::PathBuf;
use sternpost_server::config::ETCD_VERSION;

#[derive(Args)]
#[command(after_help = "Load it with:  source <(sternctl completion bash)
               sternctl completion zsh > \"${fpath[1]}/_sternctl\"
               sternctl completion fish | source
               sternctl completion powershell | Out-String | Invoke-Expression")]
pub(crate) struct CompletionOptions {
    /// bash, zsh, fish or powershell
    #[arg(value_name = "SHELL")]
    arguments: Vec<String>,
}

#[derive(Args)]
pub(crate) struct ManOptions {
    /// Where to write the pages; it is made if need be
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,
}

/// Our own version, and that of etcd's API, which is the first two numbers of the release whose API it is.
pub(crate) fn print_version() -> Result<(), Failure> {
    let mut printer = Printer::new(Format::Simple, false);
    let api: Vec<&str> = ETCD_VERSION.split('.').take(2).collect();
    printer.line(format_args!("sternctl version: {}", env!("CARGO_PKG_VERSION")));
    printer.line(format_args!("etcdctl version: {ETCD_VERSION}"));
    printer.line(format_args!("API version: {}", api.join(".")));
    printer.flush()
}

/// The flags that every command takes, from their definitions.
pub(crate) fn print_options(command: Command) -> Result<(), Failure> {
    let mut printer = Printer::new(Format::Simple, false);
    printer.line("The following options can be passed to any command:\n");
    let globals = command.get_arguments().filter(|argument| argument.is_global_set()).cloned();
    let list = Command::new("options")
        .disable_help_flag(true)
        .help_template("{options}")
        .args(globals.map(|argument| argument.help_heading(None).hide_env(false)));
    let mut list = list;
    printer.line(list.render_help().to_string().trim_end());
    printer.flush()
}

/// A script for one shell; the others that the generator knows are no part of etcdctl's.
pub(crate) fn print_completion(mut command: Command, options: CompletionOptions) -> Result<(), Failure> {
    let [name] = &options.arguments[..] else {
        let count = options.arguments.len();
        return Err(Failure::new(Exit::Error, format!("accepts 1 arg(s), received {count}")));
    };
    let shell = match name.as_str() {
        "bash" => Shell::Bash,
        "zsh" => Shell::Zsh,
        "fish" => Shell::Fish,
        "powershell" => Shell::PowerShell,
        other => {
            let message = format!("invalid argument {other:?} for \"sternctl completion\"");
            return Err(Failure::new(Exit::Error, message));
        }
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "sternctl", &mut script);
    let mut printer = Printer::new(Format::Simple, false);
    printer.line(String::from_utf8_lossy(&script).trim_end());
    printer.flush()
}

/// One page for the program and one for each command, in section 1, and the server's in section 8.
pub(crate) fn write_man_pages(command: Command, options: &ManOptions) -> Result<(), Failure> {
    std::fs::create_dir_all(&options.folder)?;
    clap_mangen::generate_to(command, &options.folder)?;
    Ok(std::fs::write(options.folder.join("sternpost.8"), server_page::render())?)
}
