//! What went wrong in a handshake, in words for the person who reads the log: whose certificate, what is the matter, what to do.
use super::pem::Facts;
use super::side::Side;
use rustls::{AlertDescription, CertificateError, Error};

/// Says what a failed handshake was about. `presented` is what the other side showed, if it came to that.
pub fn describe(error: &Error, presented: Option<&Facts>, side: &Side) -> String {
    match error {
        Error::InvalidCertificate(wrong) => {
            let shown = presented.map_or_else(|| "it".to_owned(), Facts::to_string);
            format!("its certificate ({shown}) is refused: {}", judge(wrong, presented, side))
        }
        Error::NoCertificatesPresented => {
            "it presents no certificate, and one is asked for (tls: client didn't provide a certificate)"
                .into()
        }
        Error::AlertReceived(alert) => match alert {
            AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::CertificateRequired
            | AlertDescription::AccessDenied => {
                let own = side.own().map_or_else(
                    || "none is presented".to_owned(),
                    |own| format!("{} of {}, {}", own.path, own.flag, own.facts),
                );
                format!("it refuses our certificate ({own}): {alert:?}; its log says why")
            }
            AlertDescription::NoApplicationProtocol => {
                "it speaks another protocol over TLS: this port is for other clients than it".into()
            }
            _ => format!("it ended the TLS handshake: {alert:?}"),
        },
        Error::InvalidMessage(_) | Error::InappropriateMessage { .. } => {
            format!(
                "it does not speak TLS, or not as it should ({error}); http and https URLs may have been mixed up"
            )
        }
        Error::NoApplicationProtocol => {
            "it offers none of the protocols that are served here over TLS".into()
        }
        other => format!("the TLS handshake failed: {other}"),
    }
}

fn judge(wrong: &CertificateError, presented: Option<&Facts>, side: &Side) -> String {
    match wrong {
        CertificateError::Other(error) => error.0.to_string(),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => match presented {
            Some(facts) => {
                format!("it expired on {}; it is to be replaced where it is used", facts.valid_until)
            }
            None => "it has expired; it is to be replaced where it is used".into(),
        },
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "it is not valid yet; or the clock of one of the two machines is wrong".into()
        }
        CertificateError::UnknownIssuer => {
            let ca = &side.settings().trusted_ca_file;
            match ca.as_os_str().is_empty() {
                true => "it is signed by nobody whom the system trusts, and no CA bundle is given".into(),
                false => {
                    format!("it is signed by no CA of {} ({})", ca.display(), side.settings().flags.ca)
                }
            }
        }
        other => other.to_string(),
    }
}
