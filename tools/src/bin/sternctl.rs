//! `sternctl`: the command-line client and load generator.
use std::process::ExitCode;

fn main() -> ExitCode {
    sternpost_tools::ctl::main(std::env::args_os())
}
