//! Options of the audit stream.
use super::flags::Settings;
use crate::audit::writer::Destination;
use crate::audit::{AuditOptions, WhenFull};

/// Least size of a file; a line is far smaller.
const FILE_BYTES_MIN: u64 = 64 << 10;
/// Most files: each is renamed at a rotation.
const FILES_KEPT_MAX: u64 = 1_000;

/// What the flags say; none where there shall be none.
///
/// # Errors
/// One line for the user.
pub(super) fn of(settings: &Settings) -> Result<Option<AuditOptions>, String> {
    let destination = match settings.text("audit-log") {
        "" => return Ok(None),
        "stderr" => Destination::Stderr,
        path => {
            let bytes_max = settings.uint("audit-log-file-bytes");
            if bytes_max < FILE_BYTES_MIN {
                return Err(format!(
                    "--audit-log-file-bytes must be at least {FILE_BYTES_MIN} (set to {bytes_max})"
                ));
            }
            let kept = settings.uint("audit-log-files-kept");
            if kept > FILES_KEPT_MAX {
                return Err(format!(
                    "--audit-log-files-kept must be at most {FILES_KEPT_MAX} (set to {kept})"
                ));
            }
            Destination::File { path: path.into(), bytes_max, kept: u32::try_from(kept).unwrap_or(0) }
        }
    };
    let when_full =
        if settings.text("audit-log-when-full") == "wait" { WhenFull::Wait } else { WhenFull::Lose };
    Ok(Some(AuditOptions { destination, with_reads: settings.flag("audit-log-reads"), when_full }))
}
