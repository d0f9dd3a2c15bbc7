//! `sternpost`: parse, start, wait, stop. What each of these is: `config`, `run`.
//!
//! **Exit codes**, as etcd: 2 for arguments that cannot be parsed, 1 for everything that prevents the start, 0 for `--help` and
//! `--version`, and for a member that was removed from its cluster. After SIGTERM or SIGINT the process ends by that signal, or with 0 if it is process 1
//! of its container.
#![forbid(unsafe_code)]
use std::io::Write;
use std::process::ExitCode;
use sternpost_server::config::{self, ConfigError, Request};
use sternpost_server::logging::Value;
use sternpost_server::run::Stopped;
use sternpost_server::{log_line, logging, run};

fn main() -> ExitCode {
    let lossy = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
    let arguments: Vec<String> = std::env::args_os().skip(1).map(lossy).collect();
    let environment: Vec<(String, String)> =
        std::env::vars_os().map(|(name, value)| (lossy(name), lossy(value))).collect();
    let loaded = match config::load(&arguments, &environment) {
        Ok(Request::Print(text)) => {
            let _ = std::io::stdout().write_all(text.as_bytes());
            return ExitCode::SUCCESS;
        }
        Ok(Request::Serve(loaded)) => *loaded,
        Err(ConfigError::Usage(text)) => {
            eprintln!("{text}\n{}", config::usage());
            return ExitCode::from(2);
        }
        Err(ConfigError::Invalid(text)) => {
            log_line!(Warn, "failed to verify flags", "error" => Value::Text(&text));
            return ExitCode::FAILURE;
        }
    };
    if let Err(text) = logging::start(&loaded.config) {
        log_line!(Fatal, "logging cannot be started", "error" => Value::Text(&text));
        return ExitCode::FAILURE;
    }
    log_panics();

    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if loaded.config.worker_threads > 0 {
        runtime.worker_threads(loaded.config.worker_threads);
    }
    let runtime = match runtime.thread_name("worker").enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            log_line!(Fatal, "no threads can be started", "error" => Value::Text(&error.to_string()));
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(run::run(loaded));
    // A connection that does not end must not keep the process.
    runtime.shutdown_background();
    match outcome {
        Ok(Stopped::StateFetched) => start_again(),
        Ok(_) if std::process::id() == 1 => ExitCode::SUCCESS,
        Ok(stopped) => match stopped.signal() {
            Some(signal) => {
                let _ = signal_hook::low_level::emulate_default_handler(signal);
                ExitCode::FAILURE
            }
            None => ExitCode::SUCCESS,
        },
        Err(text) => {
            log_line!(Fatal, "the server cannot go on", "error" => Value::Text(&text));
            ExitCode::FAILURE
        }
    }
}

/// The same process with the same arguments from its beginning: nothing of the replaced state is left in memory, and supervisors see the
/// process that they know.
fn start_again() -> ExitCode {
    use std::os::unix::process::CommandExt;
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_else(|| "sternpost".into());
    let error = std::process::Command::new("/proc/self/exe").arg0(name).args(arguments).exec();
    log_line!(Fatal, "cannot start again; start the server by hand", "error" => Value::Text(&error.to_string()));
    ExitCode::FAILURE
}

/// A panic is a broken invariant; it is logged where people look for it.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let message = panic.to_string().replace('\n', " ");
        let (file, line) = panic.location().map_or(("", 0), |place| (place.file(), place.line()));
        logging::emit(config::LogLevel::Panic, file, line, &message, &[]);
    }));
}
