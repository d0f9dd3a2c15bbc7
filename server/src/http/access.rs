//! What every HTTP request to a client URL passes before it is answered: whom it may name, who may ask, from which page.
//!
//! **Contract**, in etcd's order: paths under `/v3beta/` are those under `/v3/` · a request without TLS names a host of `--host-whitelist`
//! (the defence against DNS rebinding, CVE-2018-5702) · a certificate that would name a user is refused under `/v3/` while
//! authentication is on, because there it names nobody (CVE-2018-16886) · the headers that let pages of other origins read the answer
//! (`--cors`) · OPTIONS is answered · paths with empty or dotted parts are sent to the path they mean.
//!
//! **Source**: `server/embed/serve.go` of etcd 3.7.3.
use super::{ByTls, HttpState, plain_error};
use crate::auth::origin::CertificateName;
use crate::gateway;
use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, HOST, LOCATION,
    ORIGIN,
};
use http::{HeaderValue, Method, StatusCode, Uri};
use std::sync::Arc;
use tower::ServiceExt;

const BETA_PREFIX: &str = "/v3beta/";

/// Answers a request, from the gateway or from `others`.
pub(super) async fn answer(state: Arc<HttpState>, others: Router, mut request: Request) -> Response {
    rename_beta(&mut request);
    if let Some(refusal) = refusal(&state, &request) {
        return refusal;
    }
    let origin = allowed_origin(state.origins.as_deref(), request.headers().get(ORIGIN));
    let mut response = match *request.method() {
        Method::OPTIONS => Response::new(Body::empty()),
        _ => answer_allowed(&state, others, request).await,
    };
    if let Some(origin) = origin {
        let headers = response.headers_mut();
        headers.insert(
            ACCESS_CONTROL_ALLOW_METHODS,
            HeaderValue::from_static("POST, GET, OPTIONS, PUT, DELETE"),
        );
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(
            ACCESS_CONTROL_ALLOW_HEADERS,
            HeaderValue::from_static("accept, content-type, authorization"),
        );
    }
    response
}

async fn answer_allowed(state: &HttpState, others: Router, request: Request) -> Response {
    if let Some(path) = clean(request.uri().path(), state.gateway.is_some()) {
        return redirect(&path, request.uri().query());
    }
    match &state.gateway {
        Some(gateway) if request.uri().path().starts_with(gateway::PREFIX) => gateway.answer(request).await,
        _ => others.oneshot(request).await.unwrap_or_else(|never| match never {}),
    }
}

fn rename_beta(request: &mut Request) {
    let Some(rest) = request.uri().path().strip_prefix(BETA_PREFIX) else { return };
    let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
    let renamed = format!("{}{rest}{query}", gateway::PREFIX);
    let mut parts = request.uri().clone().into_parts();
    parts.path_and_query = renamed.parse().ok();
    if let Ok(uri) = Uri::from_parts(parts) {
        *request.uri_mut() = uri;
    }
}

fn refusal(state: &HttpState, request: &Request) -> Option<Response> {
    if request.extensions().get::<ByTls>().is_none() {
        let host = host(request);
        let allowed = state.host_whitelist.as_ref()?;
        if allowed.iter().any(|allowed| allowed == host) {
            return None;
        }
        tracing::warn!(host, "rejecting HTTP request to prevent DNS rebinding attacks");
        return Some(plain_error(StatusCode::MISDIRECTED_REQUEST, &rebinding(host)));
    }
    let names_user = request.extensions().get::<CertificateName>().is_some_and(|name| !name.0.is_empty());
    let is_gateways = state.gateway.is_some() && request.uri().path().starts_with(gateway::PREFIX);
    (names_user && is_gateways && state.health.is_auth_enabled()).then(|| {
        let text =
            "CommonName of client sending a request against gateway will be ignored and not used as expected";
        plain_error(StatusCode::BAD_REQUEST, text)
    })
}

/// The host that a request names, without a port.
fn host(request: &Request) -> &str {
    let named = request.uri().authority().map(|authority| authority.as_str());
    let named =
        named.or_else(|| request.headers().get(HOST).and_then(|host| host.to_str().ok())).unwrap_or("");
    match named.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => named,
    }
}

/// etcd's text.
fn rebinding(host: &str) -> String {
    format!(
        "\netcd received your request, but the Host header was unrecognized.\n\n\
         To fix this, choose one of the following options:\n\
         - Enable TLS, then any HTTPS request will be allowed.\n\
         - Add the hostname you want to use to the whitelist in settings.\n  - e.g. etcd --host-whitelist {host:?}\n\n\
         This requirement has been added to help prevent \"DNS Rebinding\" attacks (CVE-2018-5702).\n"
    )
}

/// The origin that the headers name, if a page of `origin` may read. `allowed` is none for any.
fn allowed_origin(allowed: Option<&[String]>, origin: Option<&HeaderValue>) -> Option<HeaderValue> {
    let Some(allowed) = allowed else { return Some(HeaderValue::from_static("*")) };
    origin.filter(|origin| allowed.iter().any(|allowed| allowed.as_bytes() == origin.as_bytes())).cloned()
}

/// The path that a path with empty or dotted parts means, none if it is that path already. The gateway's own name is a folder.
fn clean(path: &str, has_gateway: bool) -> Option<String> {
    if has_gateway && path == gateway::PREFIX.trim_end_matches('/') {
        return Some(gateway::PREFIX.to_owned());
    }
    if !path.starts_with('/') {
        return None;
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    let mut meant = format!("/{}", parts.join("/"));
    if path.ends_with('/') && meant.len() > 1 {
        meant.push('/');
    }
    (meant != path).then_some(meant)
}

fn redirect(path: &str, query: Option<&str>) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::TEMPORARY_REDIRECT;
    let target = query.map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
    if let Ok(target) = HeaderValue::from_str(&target) {
        response.headers_mut().insert(LOCATION, target);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned_as_gos_mux_does() {
        for (path, meant) in [
            ("/v3/kv/range", None),
            ("/", None),
            ("/health/", None),
            ("//v3/kv/range", Some("/v3/kv/range")),
            ("/v3/kv/../kv/./range", Some("/v3/kv/range")),
            ("/../..", Some("/")),
            ("/v3", Some("/v3/")),
        ] {
            assert_eq!(clean(path, true).as_deref(), meant, "{path}");
        }
        assert_eq!(clean("/v3", false), None);
    }

    #[test]
    fn origins_are_compared_as_they_are_written() {
        let only = ["http://a.example:80".to_owned()];
        let origin = HeaderValue::from_static;
        assert_eq!(
            allowed_origin(Some(&only), Some(&origin("http://a.example:80"))),
            Some(origin("http://a.example:80"))
        );
        assert_eq!(allowed_origin(Some(&only), Some(&origin("http://a.example"))), None);
        assert_eq!(allowed_origin(Some(&only), None), None);
        assert_eq!(allowed_origin(None, None), Some(origin("*")));
    }
}
