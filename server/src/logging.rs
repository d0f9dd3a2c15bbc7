//! Log lines in the shape of etcd's zap logger, so that what people built around etcd's logs goes on working.
//!
//! **Layout of a line**, JSON: `{"level":"info","ts":"2026-11-22T21:23:00.123456Z","caller":"dir/file.rs:12","msg":"…",…fields}`;
//! console: the same parts separated by tabs, the fields as one JSON object. Field names are written with `-` for `_`, as etcd's are.
//! Every line is one write, unbuffered: launchers wait for lines. Times are UTC.
//!
//! **Contract.** Code logs with the `tracing` macros. [`emit`] is for what they cannot say: levels panic and fatal, and fields whose
//! names are only known at run time. Before [`start`], [`emit`] writes JSON to standard error. Libraries are heard from warn on.
//!
//! **Failure.** A line that cannot be written is dropped: a full log disk must not stop the server.
//!
//! **Why no tracing-subscriber**: one formatter and no spans need none of it.
use crate::config::{Config, LogFormat, LogLevel, LogOutput};
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::sync::{Mutex, OnceLock};
use std::time::SystemTime;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// Where lines go and which.
struct Logger {
    level: LogLevel,
    format: LogFormat,
    outputs: Mutex<Vec<Output>>,
}

enum Output {
    Stderr,
    Stdout,
    File(File),
}

static LOGGER: OnceLock<Logger> = OnceLock::new();

/// Opens the outputs and takes over the process's logging. Called once; fails with one line for the user.
pub fn start(config: &Config) -> Result<(), String> {
    let mut outputs = Vec::new();
    for output in &config.log_outputs {
        outputs.push(match output {
            LogOutput::Stderr => Output::Stderr,
            LogOutput::Stdout => Output::Stdout,
            LogOutput::File(path) => {
                Output::File(OpenOptions::new().create(true).append(true).open(path).map_err(|error| {
                    format!("couldn't open sink {:?}: {error}", path.display().to_string())
                })?)
            }
        });
    }
    let logger = Logger { level: config.log_level, format: config.log_format, outputs: Mutex::new(outputs) };
    if LOGGER.set(logger).is_err() || tracing::subscriber::set_global_default(ZapShape).is_err() {
        return Err("logging was started twice".into());
    }
    Ok(())
}

/// A value beside a message.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the names are the types")]
pub enum Value<'a> {
    Text(&'a str),
    Int(i64),
    Uint(u64),
    Bool(bool),
    List(Vec<String>),
}

/// Writes a line whose fields are known only now. `caller` is `file!()`, `line` is `line!()`.
pub fn emit(level: LogLevel, caller: &str, line: u32, message: &str, fields: &[(&str, Value<'_>)]) {
    if LOGGER.get().is_some_and(|logger| level < logger.level) {
        return;
    }
    let mut json = String::new();
    for (name, value) in fields {
        write_name(&mut json, name);
        match value {
            Value::Text(text) => write_text(&mut json, text),
            Value::Int(number) => drop(write!(json, "{number}")),
            Value::Uint(number) => drop(write!(json, "{number}")),
            Value::Bool(yes) => drop(write!(json, "{yes}")),
            Value::List(words) => {
                json.push('[');
                for (index, word) in words.iter().enumerate() {
                    if index > 0 {
                        json.push(',');
                    }
                    write_text(&mut json, word);
                }
                json.push(']');
            }
        }
    }
    write_line(level, caller, line, message, &json);
}

/// [`emit`] with the place of the call.
#[macro_export]
macro_rules! log_line {
    ($level:ident, $message:expr $(, $name:expr => $value:expr)* $(,)?) => {
        $crate::logging::emit(
            $crate::config::LogLevel::$level,
            file!(),
            line!(),
            $message,
            &[$(($name, $value)),*],
        )
    };
}

/// The process's subscriber: formats events, ignores spans.
struct ZapShape;

impl Subscriber for ZapShape {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let Some(logger) = LOGGER.get() else { return false };
        let ours = metadata.target().starts_with("sternpost");
        metadata.is_event()
            && level_of(*metadata.level())
                .is_some_and(|level| level >= logger.level && (ours || level >= LogLevel::Warn))
    }

    fn max_level_hint(&self) -> Option<tracing::level_filters::LevelFilter> {
        use tracing::level_filters::LevelFilter;
        Some(match LOGGER.get().map_or(LogLevel::Info, |logger| logger.level) {
            LogLevel::Debug => LevelFilter::DEBUG,
            LogLevel::Info => LevelFilter::INFO,
            LogLevel::Warn => LevelFilter::WARN,
            LogLevel::Error => LevelFilter::ERROR,
            LogLevel::Panic | LogLevel::Fatal => LevelFilter::OFF,
        })
    }

    fn event(&self, event: &Event<'_>) {
        let metadata = event.metadata();
        let Some(level) = level_of(*metadata.level()) else { return };
        let mut fields = Fields::default();
        event.record(&mut fields);
        let caller = metadata.file().unwrap_or(metadata.target());
        write_line(level, caller, metadata.line().unwrap_or(0), &fields.message, &fields.json);
    }

    fn new_span(&self, _span: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _span: &Id, _values: &Record<'_>) {}
    fn record_follows_from(&self, _span: &Id, _follows: &Id) {}
    fn enter(&self, _span: &Id) {}
    fn exit(&self, _span: &Id) {}
}

fn level_of(level: tracing::Level) -> Option<LogLevel> {
    match level {
        tracing::Level::ERROR => Some(LogLevel::Error),
        tracing::Level::WARN => Some(LogLevel::Warn),
        tracing::Level::INFO => Some(LogLevel::Info),
        tracing::Level::DEBUG => Some(LogLevel::Debug),
        tracing::Level::TRACE => None,
    }
}

/// Collects the fields of an event: the message apart, the rest as `,"name":value` pairs.
#[derive(Default)]
struct Fields {
    message: String,
    json: String,
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.message.push_str(value);
        } else {
            write_name(&mut self.json, field.name());
            write_text(&mut self.json, value);
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        write_name(&mut self.json, field.name());
        let _ = write!(self.json, "{value}");
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        write_name(&mut self.json, field.name());
        let _ = write!(self.json, "{value}");
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        write_name(&mut self.json, field.name());
        let _ = write!(self.json, "{value}");
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        write_name(&mut self.json, field.name());
        if value.is_finite() {
            let _ = write!(self.json, "{value}");
        } else {
            write_text(&mut self.json, &value.to_string());
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            let _ = write!(self.message, "{value:?}");
        } else {
            write_name(&mut self.json, field.name());
            write_text(&mut self.json, &format!("{value:?}"));
        }
    }
}

fn write_name(json: &mut String, name: &str) {
    if !json.is_empty() {
        json.push(',');
    }
    write_text(json, &name.replace('_', "-"));
    json.push(':');
}

/// A JSON string with the escapes that JSON demands, and no others.
fn write_text(json: &mut String, text: &str) {
    json.push('"');
    for c in text.chars() {
        match c {
            '"' => json.push_str("\\\""),
            '\\' => json.push_str("\\\\"),
            '\n' => json.push_str("\\n"),
            '\r' => json.push_str("\\r"),
            '\t' => json.push_str("\\t"),
            c if u32::from(c) < 0x20 => drop(write!(json, "\\u{:04x}", u32::from(c))),
            c => json.push(c),
        }
    }
    json.push('"');
}

#[expect(clippy::disallowed_methods, reason = "a log line says when it was written; nothing depends on it")]
fn write_line(level: LogLevel, caller: &str, line: u32, message: &str, fields: &str) {
    let logger = LOGGER.get();
    let format = logger.map_or(LogFormat::Json, |logger| logger.format);
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let time = format_time(since_epoch.as_secs(), since_epoch.subsec_micros());
    let text = format_line(format, level, &time, caller, line, message, fields);
    match logger {
        None => drop(std::io::stderr().write_all(text.as_bytes())),
        Some(logger) => {
            let mut outputs = logger.outputs.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            for output in outputs.iter_mut() {
                let _ = match output {
                    Output::Stderr => std::io::stderr().write_all(text.as_bytes()),
                    Output::Stdout => {
                        let mut stdout = std::io::stdout().lock();
                        stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush())
                    }
                    Output::File(file) => file.write_all(text.as_bytes()),
                };
            }
        }
    }
}

fn format_line(
    format: LogFormat,
    level: LogLevel,
    time: &str,
    caller: &str,
    line: u32,
    message: &str,
    fields: &str,
) -> String {
    let level = match level {
        LogLevel::Debug => "debug",
        LogLevel::Info => "info",
        LogLevel::Warn => "warn",
        LogLevel::Error => "error",
        LogLevel::Panic => "panic",
        LogLevel::Fatal => "fatal",
    };
    // As zap's short caller: the last folder and the file.
    let caller = caller.rsplit('/').take(2).collect::<Vec<_>>();
    let caller = caller.into_iter().rev().collect::<Vec<_>>().join("/");
    let mut text = String::with_capacity(128 + message.len() + fields.len());
    match format {
        LogFormat::Json => {
            let _ = write!(
                text,
                "{{\"level\":\"{level}\",\"ts\":\"{time}\",\"caller\":\"{caller}:{line}\",\"msg\":"
            );
            write_text(&mut text, message);
            if !fields.is_empty() {
                text.push(',');
                text.push_str(fields);
            }
            text.push_str("}\n");
        }
        LogFormat::Console => {
            let _ = write!(text, "{time}\t{level}\t{caller}:{line}\t{message}");
            if !fields.is_empty() {
                let _ = write!(text, "\t{{{fields}}}");
            }
            text.push('\n');
        }
    }
    text
}

/// RFC 3339 in UTC with microseconds.
pub(crate) fn format_time(seconds: u64, micros: u32) -> String {
    let (days, second_of_day) = (seconds / 86_400, seconds % 86_400);
    // Years are counted from 1 March 0000, so that the leap day is the last day of a year: then the day of a year gives the month by
    // one division (the months from March on have 153 days per five).
    let day = days + 719_468;
    let (era, day_of_era) = (day / 146_097, day % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day_of_month:02}T{:02}:{:02}:{:02}.{micros:06}Z",
        second_of_day / 3_600,
        second_of_day / 60 % 60,
        second_of_day % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_line_has_zaps_shape() {
        let mut fields = String::new();
        write_name(&mut fields, "data_dir");
        write_text(&mut fields, "a\"b\\c\n\u{1}é");
        let line = format_line(
            LogFormat::Json,
            LogLevel::Warn,
            "2026-11-22T00:00:00.000001Z",
            "server/src/watch/hub.rs",
            7,
            "ready",
            &fields,
        );
        assert_eq!(
            line,
            "{\"level\":\"warn\",\"ts\":\"2026-11-22T00:00:00.000001Z\",\"caller\":\"watch/hub.rs:7\",\"msg\":\"ready\",\"data-dir\":\"a\\\"b\\\\c\\n\\u0001é\"}\n"
        );
    }

    #[test]
    fn console_line_is_tab_separated() {
        let line = format_line(LogFormat::Console, LogLevel::Info, "T", "main.rs", 1, "m", "\"a\":1");
        assert_eq!(line, "T\tinfo\tmain.rs:1\tm\t{\"a\":1}\n");
    }

    #[test]
    fn times_are_calendar_times() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_399, "2000-02-28T23:59:59.000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000Z"),
            (1_709_164_800, "2024-02-29T00:00:00.000000Z"),
            (1_735_689_599, "2024-12-31T23:59:59.000000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000Z"),
        ] {
            assert_eq!(format_time(seconds, 0), text);
        }
    }
}
