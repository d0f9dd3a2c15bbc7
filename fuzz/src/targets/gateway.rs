//! JSON of the gateway: whatever a body says, reading it ends, in one piece or in many, and what was read is what is written.
//!
//! The first byte says which message is wanted, the second in how large pieces the rest arrives.
use sternpost_engine::base::rng::Rng;
use sternpost_server::gateway::decode::decode;
use sternpost_server::gateway::encode::encode;
use sternpost_server::gateway::routes::{ROUTES, routes};
use sternpost_server::gateway::values::Values;

use prost::Message;

/// More than an input has.
const JSON_BYTES_MAX: usize = 1 << 20;

/// All values of a text that arrives in pieces, and whether it was JSON to its end.
fn values(text: &[u8], piece_bytes: usize) -> (Vec<Vec<u8>>, bool) {
    let mut values = Values::new(JSON_BYTES_MAX);
    let mut found = Vec::new();
    for piece in text.chunks(piece_bytes.max(1)) {
        if values.push(piece).is_err() {
            return (found, false);
        }
        loop {
            match values.next_value() {
                Ok(Some(value)) => found.push(value.to_vec()),
                Ok(None) => break,
                Err(_) => return (found, false),
            }
        }
    }
    match values.end() {
        Ok(last) => {
            found.extend(last.map(|last| last.to_vec()));
            (found, true)
        }
        Err(_) => (found, false),
    }
}

pub(super) fn json(input: &[u8]) {
    let [wanted, piece_bytes, text @ ..] = input else { return };
    let (path, _) = ROUTES[usize::from(*wanted) % ROUTES.len()];
    let kind = &routes()[path].input;
    let (found, is_json) = values(text, usize::from(*piece_bytes));
    assert_eq!((found.clone(), is_json), values(text, text.len()), "how bytes arrive shows");
    // Bytes that nobody has looked at, too.
    let _ = decode(kind, text);
    for value in found {
        let Ok(message) = decode(kind, &value) else { continue };
        let bytes = message.encode_to_vec();
        let written = encode(kind, bytes.clone().into()).expect("what was read can be written");
        let again = decode(kind, &written).expect("what was written can be read");
        assert_eq!(again.encode_to_vec(), bytes, "{}", String::from_utf8_lossy(&written));
        let (alone, is_json) = values(&written, 3);
        assert!(is_json && alone == [written], "what was written is one value");
    }
}

/// Requests with fields of every kind.
pub(super) fn json_seed(rng: &mut Rng) -> Vec<u8> {
    const BODIES: [(&str, &str); 8] = [
        (
            "/v3/kv/range",
            r#"{"key":"Zm9v","range_end":"AA","limit":"12","sort_order":"DESCEND","sortTarget":1}"#,
        ),
        ("/v3/kv/put", "{\"key\":\"_-8=\",\"value\":\"Zm9\\nv\",\"lease\":-1.50e2,\"prev_kv\":true} \n{}"),
        (
            "/v3/kv/txn",
            r#"{"compare":[{"target":"VERSION","version":"0"}],"success":[{"request_put":{}},{"requestTxn":{}}]}"#,
        ),
        (
            "/v3/watch",
            r#"{"create_request":{"filters":["NOPUT",1],"x":[{},[1.5e-3,null]]}}{"progress_request":{}}"#,
        ),
        ("/v3/lease/keepalive", r#"{"ID":"7"} {"ID":8}"#),
        (
            "/v3/auth/user/add",
            r#"{"name":"\ud83d\ude00\u00e9\"","password":"<&>","options":{"no_password":true}}"#,
        ),
        ("/v3/auth/role/grant", r#"{"name":"é","perm":{"permType":"READWRITE","key":"YQ=="}}"#),
        ("/v3/cluster/member/add", r#"{"peerURLs":["http://a:1",""],"isLearner":false}"#),
    ];
    let (wanted, body) = BODIES[rng.below(BODIES.len() as u64) as usize];
    let wanted = ROUTES.iter().position(|(path, _)| *path == wanted).expect("a path of the table");
    let mut input = vec![wanted as u8, rng.below(40) as u8];
    input.extend_from_slice(body.as_bytes());
    input
}
