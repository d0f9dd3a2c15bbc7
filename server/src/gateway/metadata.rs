//! Which headers of an HTTP request become metadata of the call, and its deadline.
//!
//! **Contract.** `Authorization` passes as it is; `Grpc-Metadata-X` passes as `x`, a binary one decoded from base64 as gRPC encodes it; the rest of
//! what etcd's gateway passes (headers of HTTP under the prefix `grpcgateway-`) is read by no service and stays behind. What gRPC keeps for
//! itself cannot be set.
//!
//! **Source**: `runtime/context.go` of grpc-gateway 2.29.0.
use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName, HeaderValue};
use std::time::Duration;
use tonic::Status;

const PREFIX: &str = "grpc-metadata-";
const TIMEOUT: &str = "grpc-timeout";

/// The metadata of the call.
///
/// # Errors
/// What a client is told of a header that cannot be read.
pub fn metadata_of(headers: &HeaderMap) -> Result<HeaderMap, Status> {
    let mut metadata = HeaderMap::new();
    for (name, value) in headers {
        if name == AUTHORIZATION {
            metadata.append(AUTHORIZATION, value.clone());
            continue;
        }
        let Some(inner) = name.as_str().strip_prefix(PREFIX) else { continue };
        let is_binary = inner.ends_with("-bin");
        if is_binary {
            check_binary(name, value)?;
        } else if !value.as_bytes().iter().all(|byte| (0x20..=0x7e).contains(byte)) {
            continue;
        }
        if let Ok(inner) = HeaderName::from_bytes(inner.as_bytes())
            && !is_reserved(inner.as_str())
        {
            metadata.append(inner, value.clone());
        }
    }
    Ok(metadata)
}

/// What grpc-go's client does not let a caller set.
fn is_reserved(name: &str) -> bool {
    matches!(name, "content-type" | "user-agent" | "te" | "connection" | "host") || name.starts_with("grpc-")
}

fn check_binary(name: &HeaderName, value: &HeaderValue) -> Result<(), Status> {
    const ANY: GeneralPurpose = GeneralPurpose::new(
        &STANDARD,
        GeneralPurposeConfig::new()
            .with_decode_padding_mode(DecodePaddingMode::Indifferent)
            .with_decode_allow_trailing_bits(true),
    );
    match ANY.decode(value.as_bytes()) {
        Ok(_) => Ok(()),
        Err(error) => {
            let at = match error {
                base64::DecodeError::InvalidByte(at, _)
                | base64::DecodeError::InvalidLastSymbol { offset: at, .. } => at,
                _ => value.len(),
            };
            let name = canonical(name.as_str());
            Err(Status::invalid_argument(format!(
                "invalid binary header {name}: illegal base64 data at input byte {at}"
            )))
        }
    }
}

/// A name as Go prints it: `grpc-metadata-a-bin` is `Grpc-Metadata-A-Bin`.
fn canonical(name: &str) -> String {
    let part = |part: &str| match part.split_at_checked(1) {
        Some((first, rest)) => format!("{}{rest}", first.to_ascii_uppercase()),
        None => String::new(),
    };
    name.split('-').map(part).collect::<Vec<_>>().join("-")
}

/// How long the call may take (`Grpc-Timeout`), none for as long as it likes.
///
/// # Errors
/// What a client is told of a time that is none.
pub fn timeout_of(headers: &HeaderMap) -> Result<Option<Duration>, Status> {
    let Some(text) = headers.get(TIMEOUT).map(HeaderValue::as_bytes).filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let text = String::from_utf8_lossy(text);
    let parsed = text.split_at_checked(text.len() - 1).and_then(|(number, unit)| {
        let unit_ns: u64 = match unit {
            "H" => 3_600_000_000_000,
            "M" => 60_000_000_000,
            "S" => 1_000_000_000,
            "m" => 1_000_000,
            "u" => 1_000,
            "n" => 1,
            _ => return None,
        };
        // A time before now has passed, as none is left.
        let number = number.parse::<i64>().ok()?;
        Some((number, Duration::from_nanos(u64::try_from(number).unwrap_or(0).saturating_mul(unit_ns))))
    });
    match parsed {
        Some((0, _)) => Ok(None),
        Some((_, timeout)) => Ok(Some(timeout)),
        None => Err(Status::invalid_argument(format!("invalid grpc-timeout: {text}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn tokens_and_metadata_pass_and_nothing_else_does() {
        let passed = metadata_of(&headers(&[
            ("authorization", "t.1"),
            ("grpc-metadata-token", "t.2"),
            ("grpc-metadata-hasleader", "true"),
            ("grpc-metadata-grpc-timeout", "1S"),
            ("grpc-metadata-content-type", "x"),
            ("grpc-metadata-a-bin", "AAE"),
            ("token", "t.3"),
            ("cookie", "c"),
            ("accept", "*/*"),
        ]))
        .unwrap();
        let expected = [("authorization", "t.1"), ("token", "t.2"), ("hasleader", "true"), ("a-bin", "AAE")];
        assert_eq!(passed, headers(&expected));
        let refused = metadata_of(&headers(&[("grpc-metadata-a-bin", "!!")])).unwrap_err();
        assert_eq!(
            refused.message(),
            "invalid binary header Grpc-Metadata-A-Bin: illegal base64 data at input byte 0"
        );
    }

    #[test]
    fn timeouts_are_read() {
        let read = |text| {
            timeout_of(&headers(&[("grpc-timeout", text)])).map_err(|status| status.message().to_owned())
        };
        assert_eq!(timeout_of(&HeaderMap::new()).unwrap(), None);
        assert_eq!(read("2S"), Ok(Some(Duration::from_secs(2))));
        assert_eq!(read("5m"), Ok(Some(Duration::from_millis(5))));
        assert_eq!(read("0S"), Ok(None));
        assert_eq!(read("-1S"), Ok(Some(Duration::ZERO)));
        assert_eq!(read("9223372036854775807H"), Ok(Some(Duration::from_nanos(u64::MAX))));
        for wrong in ["zz", "S", "1", "1.5S"] {
            assert_eq!(read(wrong), Err(format!("invalid grpc-timeout: {wrong}")));
        }
    }
}
