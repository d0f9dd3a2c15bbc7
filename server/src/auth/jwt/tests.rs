//! Every method signs and verifies; keys in the forms that openssl writes; what is no token.
use super::*;
use aws_lc_rs::encoding::{AsDer, EcPrivateKeyRfc5915Der, Pkcs8V1Der};
use aws_lc_rs::rsa::KeySize;
use std::path::{Path, PathBuf};

const NOW_MS: u64 = 1_800_000_000_500;

fn pem(label: &str, der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
}

struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

fn open(method: &str, public: Option<&Path>, private: Option<&Path>) -> Result<Jwt, String> {
    let text = |path: Option<&Path>| path.map(|path| path.to_str().unwrap().to_owned()).unwrap_or_default();
    let (public, private) = (text(public), text(private));
    let settings = [("sign-method", method), ("pub-key", &public), ("priv-key", &private), ("ttl", "10s")];
    Jwt::open(&settings.into_iter().collect())
}

fn identity() -> Identity {
    Identity { user: "ann \"ü\"".into(), revision: 7 }
}

fn round_trip(signer: &Jwt, verifier: &Jwt) -> String {
    let token = signer.sign(&identity(), NOW_MS).expect("it can sign").expect("it signs");
    assert_eq!(verifier.verify(&token, NOW_MS), Ok(identity()));
    assert_eq!(verifier.verify(&token, NOW_MS + 9_499), Ok(identity()));
    assert_eq!(verifier.verify(&token, NOW_MS + 9_500), Err("token is expired"));
    // Each byte of it counts.
    for place in (0..token.len()).step_by(token.len().div_ceil(200)) {
        let mut other = token.clone().into_bytes();
        other[place] = if other[place] == b'A' { b'B' } else { b'A' };
        let other = String::from_utf8(other).unwrap();
        let last = token.len() - 1;
        assert!(verifier.verify(&other, NOW_MS).is_err() || place == last, "byte {place} of {token}");
    }
    token
}

/// The pair in several forms: signing with one, verifying with each.
fn check_pair(method: &str, privates: &[String], publics: &[String]) {
    let files = Files::new();
    let publics: Vec<_> =
        publics.iter().enumerate().map(|(index, text)| files.write(&format!("pub{index}"), text)).collect();
    for (index, private) in privates.iter().enumerate() {
        let private = files.write(&format!("priv{index}"), private);
        let alone = open(method, None, Some(&private)).unwrap();
        round_trip(&alone, &alone);
        for public in &publics {
            let both = open(method, Some(public), Some(&private)).unwrap();
            let verifier = open(method, Some(public), None).unwrap();
            round_trip(&both, &verifier);
            assert!(verifier.sign(&identity(), NOW_MS).is_none(), "it has nothing to sign with");
        }
    }
    assert_eq!(open(method, None, None).unwrap_err(), MISSING_KEY);
    let nonsense = files.write("nonsense", "nonsense");
    assert_eq!(open(method, None, Some(&nonsense)).unwrap_err(), NOT_PEM);
    let no_key = files.write("no_key", &pem("PRIVATE KEY", b"nonsense"));
    assert!(open(method, None, Some(&no_key)).unwrap_err().contains("private key"));
    assert!(open(method, Some(&no_key), None).unwrap_err().contains("public key"));
}

#[test]
fn rsa() {
    let key = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    let other = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    let pkcs8: Pkcs8V1Der<'_> = key.as_der().unwrap();
    let spki: aws_lc_rs::encoding::PublicKeyX509Der<'_> = key.public_key().as_der().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["a".into()]).unwrap();
    let for_rcgen =
        rcgen::KeyPair::from_pem_and_sign_algo(&pem("PRIVATE KEY", pkcs8.as_ref()), &rcgen::PKCS_RSA_SHA256);
    let certificate = certificate.self_signed(&for_rcgen.unwrap()).unwrap();
    let privates = [pem("PRIVATE KEY", pkcs8.as_ref())];
    let publics = [
        pem("PUBLIC KEY", spki.as_ref()),
        pem("RSA PUBLIC KEY", key.public_key().as_ref()),
        pem("CERTIFICATE", certificate.der()),
    ];
    for method in ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"] {
        check_pair(method, &privates, &publics);
    }
    let files = Files::new();
    let (private, public) = (files.write("priv", &privates[0]), files.write("pub", &publics[0]));
    let others = files.write("other", &pem("RSA PUBLIC KEY", other.public_key().as_ref()));
    assert_eq!(open("RS256", Some(&others), Some(&private)).unwrap_err(), KEY_MISMATCH);
    assert!(open("ES256", Some(&public), None).is_err());
    // The method of the settings, not that of the token, and no other key.
    let token =
        |method| open(method, None, Some(&private)).unwrap().sign(&identity(), NOW_MS).unwrap().unwrap();
    let verifier = open("RS256", Some(&public), None).unwrap();
    assert_eq!(verifier.verify(&token("RS512"), NOW_MS), Err("invalid signing method"));
    let stranger = open("RS256", Some(&others), None).unwrap();
    assert_eq!(stranger.verify(&token("RS256"), NOW_MS), Err("token signature is invalid"));
}

#[test]
fn ecdsa() {
    for (method, family) in METHODS {
        let Family::Ecdsa(algorithm, _) = family else { continue };
        let key = EcdsaKeyPair::generate(algorithm).unwrap();
        let pkcs8 = key.to_pkcs8v1().unwrap();
        let sec1: EcPrivateKeyRfc5915Der<'_> = key.private_key().as_der().unwrap();
        let spki: aws_lc_rs::encoding::PublicKeyX509Der<'_> = key.public_key().as_der().unwrap();
        let privates = [pem("PRIVATE KEY", pkcs8.as_ref()), pem("EC PRIVATE KEY", sec1.as_ref())];
        check_pair(method, &privates, &[pem("PUBLIC KEY", spki.as_ref())]);
    }
}

#[test]
fn eddsa() {
    let key = Ed25519KeyPair::generate().unwrap();
    let spki: aws_lc_rs::encoding::PublicKeyX509Der<'_> = key.public_key().as_der().unwrap();
    let privates = [
        pem("PRIVATE KEY", key.to_pkcs8v1().unwrap().as_ref()),
        pem("PRIVATE KEY", key.to_pkcs8().unwrap().as_ref()),
    ];
    check_pair("EdDSA", &privates, &[pem("PUBLIC KEY", spki.as_ref())]);
}

#[test]
fn hmac_takes_any_bytes_as_key() {
    let files = Files::new();
    let key = files.write("key", "any bytes\n");
    for method in ["HS256", "HS384", "HS512"] {
        let jwt = open(method, None, Some(&key)).unwrap();
        round_trip(&jwt, &jwt);
        assert_eq!(open(method, Some(&key), None).unwrap_err(), MISSING_KEY);
    }
}

/// Claims signed with a key that both know.
fn signed(header: &str, claims: &str) -> String {
    let text = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, b"key"), text.as_bytes());
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(tag.as_ref()))
}

#[test]
fn claims_are_read_as_golang_jwt_reads_them() {
    let files = Files::new();
    let jwt = open("HS256", None, Some(&files.write("key", "key"))).unwrap();
    let header = r#"{"alg":"HS256"}"#;
    let verify = |claims: &str| jwt.verify(&signed(header, claims), NOW_MS);
    let good = |revision| Ok(Identity { user: "a".into(), revision });
    assert_eq!(verify(r#"{"username":"a","revision":3}"#), good(3), "without an end it has none");
    assert_eq!(verify(r#"{"username":"a","revision":3.9,"exp":0,"nbf":0}"#), good(3));
    assert_eq!(verify(r#"{"username":"a","revision":-1}"#), good(0), "which is refused as nobody's");
    assert_eq!(verify(r#"{"username":"a","revision":3,"exp":1800000000.9}"#), Err("token is expired"));
    assert_eq!(verify(r#"{"username":"a","revision":3,"exp":1800000001}"#), good(3));
    assert_eq!(verify(r#"{"username":"a","revision":3,"nbf":1800000001}"#), Err("token is not valid yet"));
    assert_eq!(verify(r#"{"username":"a","revision":3,"exp":"soon"}"#), Err("token has invalid claims"));
    assert_eq!(verify(r#"{"username":7,"revision":3}"#), Err("token names no user"));
    assert_eq!(verify(r#"{"username":"a","revision":"3"}"#), Err("token names no revision"));
    assert_eq!(verify(r#"{"username":"a"}"#), Err("token names no revision"));
    assert_eq!(verify("[]"), Err("token is malformed"));
    let claims = r#"{"username":"a","revision":3}"#;
    for header in [r#"{"alg":"none"}"#, r#"{"alg":"HS512"}"#, r#"{"alg":7}"#, "{}"] {
        assert_eq!(jwt.verify(&signed(header, claims), NOW_MS), Err("invalid signing method"), "{header}");
    }
    let token = signed(header, claims);
    let (text, signature) = token.rsplit_once('.').unwrap();
    for other in [
        "",
        ".",
        "..",
        "...",
        text,
        &format!("{text}."),
        &format!("{token}.{signature}"),
        &format!("{token}="),
    ] {
        assert!(jwt.verify(other, NOW_MS).is_err(), "{other}");
    }
}

#[test]
fn settings_are_refused_with_etcds_words() {
    let files = Files::new();
    let key = files.write("key", "key");
    let key = key.to_str().unwrap();
    let open =
        |settings: &[(&str, &str)]| Jwt::open(&settings.iter().copied().collect()).map(drop).unwrap_err();
    assert_eq!(open(&[]), INVALID_OPTIONS);
    assert_eq!(open(&[("sign-method", "RS1")]), INVALID_OPTIONS);
    assert_eq!(open(&[("sign-method", "HS256"), ("priv-key", "/nowhere/key")]), INVALID_OPTIONS);
    assert_eq!(open(&[("sign-method", "HS256"), ("priv-key", key), ("ttl", "long")]), INVALID_OPTIONS);
    assert_eq!(open(&[("sign-method", "HS256")]), MISSING_KEY);
    assert_eq!(open(&[("sign-method", "none")]), "unsupported signing method: *jwt.signingMethodNone");
    let jwt =
        Jwt::open(&[("sign-method", "HS256"), ("priv-key", key), ("unknown", "x")].into_iter().collect());
    let jwt = jwt.unwrap();
    assert_eq!(jwt.ttl_ms, TTL_DEFAULT_MS);
    assert!(!format!("{jwt:?}").contains("key"), "without keys");
}
