//! Tokens that are signed and not remembered: JSON Web Tokens, as etcd issues and takes them.
//!
//! **Data.** Claims: `username`, `revision` (of users and roles, when the token was given), `exp` in seconds since 1970. A token that others sign with the same key
//! is as good. Whoever has only the public key can verify and give none.
//!
//! **Contract.** [`Jwt::open`] reads `sign-method=…,pub-key=…,priv-key=…,ttl=…`; all methods of etcd: RS, PS, ES and HS with 256, 384 and 512, and EdDSA. The method in a
//! token's header must be the one that was configured. Time comes in with the call.
//!
//! **Why not a crate for JWT**: the well-kept ones have no ES512. What a token takes beside a signature is two base64 texts of JSON; the signatures are
//! AWS-LC's, which TLS brings already.
//!
//! **Differs from etcd**: a key that does not fit the method (another curve, RSA below 2,048 bits) is refused at start; etcd starts, and refuses every call.
//!
//! **Source**: `server/auth/jwt.go`, `server/auth/options.go` of etcd 3.7.3; github.com/golang-jwt/jwt v5.
use super::origin::Identity;
use crate::config::flags::parse_duration_ns;
use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    self, EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair, ParsedPublicKey, RsaEncoding,
    RsaKeyPair, VerificationAlgorithm,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt;
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

/// How long a token is good if the settings do not say.
const TTL_DEFAULT_MS: i64 = 300_000;
/// What etcd says of settings that cannot be read.
pub const INVALID_OPTIONS: &str = "auth: invalid auth options";
const MISSING_KEY: &str = "auth: missing key data";
const KEY_MISMATCH: &str = "auth: public and private keys don't match";
const NOT_PEM: &str = "invalid key: Key must be a PEM encoded PKCS1 or PKCS8 key";
const OPTIONS: [&str; 4] = ["sign-method", "pub-key", "priv-key", "ttl"];

enum Signer {
    Rsa(RsaKeyPair, &'static dyn RsaEncoding),
    Ecdsa(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

enum Keys {
    Hmac(Box<hmac::Key>),
    Pair { signer: Option<Signer>, public: ParsedPublicKey },
}

/// See the module.
pub struct Jwt {
    method: &'static str,
    keys: Keys,
    ttl_ms: i64,
}

impl fmt::Debug for Jwt {
    /// Without keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Jwt")
            .field("method", &self.method)
            .field("ttl_ms", &self.ttl_ms)
            .finish_non_exhaustive()
    }
}

/// How a method signs.
#[derive(Clone, Copy)]
enum Family {
    Rsa(&'static dyn RsaEncoding, &'static dyn VerificationAlgorithm),
    Ecdsa(&'static EcdsaSigningAlgorithm, &'static dyn VerificationAlgorithm),
    Ed25519,
    Hmac(hmac::Algorithm),
}

const METHODS: [(&str, Family); 13] = {
    use Family::{Ecdsa, Ed25519, Hmac, Rsa};
    [
        ("RS256", Rsa(&signature::RSA_PKCS1_SHA256, &signature::RSA_PKCS1_2048_8192_SHA256)),
        ("RS384", Rsa(&signature::RSA_PKCS1_SHA384, &signature::RSA_PKCS1_2048_8192_SHA384)),
        ("RS512", Rsa(&signature::RSA_PKCS1_SHA512, &signature::RSA_PKCS1_2048_8192_SHA512)),
        ("PS256", Rsa(&signature::RSA_PSS_SHA256, &signature::RSA_PSS_2048_8192_SHA256)),
        ("PS384", Rsa(&signature::RSA_PSS_SHA384, &signature::RSA_PSS_2048_8192_SHA384)),
        ("PS512", Rsa(&signature::RSA_PSS_SHA512, &signature::RSA_PSS_2048_8192_SHA512)),
        ("ES256", Ecdsa(&signature::ECDSA_P256_SHA256_FIXED_SIGNING, &signature::ECDSA_P256_SHA256_FIXED)),
        ("ES384", Ecdsa(&signature::ECDSA_P384_SHA384_FIXED_SIGNING, &signature::ECDSA_P384_SHA384_FIXED)),
        ("ES512", Ecdsa(&signature::ECDSA_P521_SHA512_FIXED_SIGNING, &signature::ECDSA_P521_SHA512_FIXED)),
        ("EdDSA", Ed25519),
        ("HS256", Hmac(hmac::HMAC_SHA256)),
        ("HS384", Hmac(hmac::HMAC_SHA384)),
        ("HS512", Hmac(hmac::HMAC_SHA512)),
    ]
};

impl Jwt {
    /// From the settings behind `jwt,`. May read files.
    ///
    /// # Errors
    /// etcd's words.
    pub fn open(settings: &BTreeMap<&str, &str>) -> Result<Self, String> {
        let unread = |error: String| {
            tracing::error!(error, "problem loading JWT options");
            INVALID_OPTIONS.to_owned()
        };
        let given = |name: &str| settings.get(name).copied().filter(|value| !value.is_empty());
        let ttl_ms = match given("ttl") {
            None => TTL_DEFAULT_MS,
            Some(ttl) => {
                let ns = parse_duration_ns(ttl);
                ns.ok_or_else(|| unread(format!("time: invalid duration {ttl:?}")))? / 1_000_000
            }
        };
        let read = |name: &str| -> Result<Option<Zeroizing<Vec<u8>>>, String> {
            let Some(path) = given(name) else { return Ok(None) };
            let bytes = std::fs::read(path).map_err(|error| unread(format!("open {path}: {error}")))?;
            Ok(Some(Zeroizing::new(bytes)).filter(|bytes| !bytes.is_empty()))
        };
        let (public, private) = (read("pub-key")?, read("priv-key")?);
        let wanted = given("sign-method").unwrap_or_default();
        let Some((method, family)) = METHODS.into_iter().find(|(method, _)| *method == wanted) else {
            if wanted == "none" {
                return Err("unsupported signing method: *jwt.signingMethodNone".into());
            }
            return Err(unread("auth: invalid auth signature method".into()));
        };
        let unknown: Vec<_> = settings.keys().filter(|name| !OPTIONS.contains(name)).collect();
        if !unknown.is_empty() {
            tracing::warn!(keys = ?unknown, "unknown JWT options");
        }
        let keys = match family {
            Family::Hmac(algorithm) => {
                Keys::Hmac(Box::new(hmac::Key::new(algorithm, &private.ok_or(MISSING_KEY)?)))
            }
            Family::Rsa(encoding, verification) => {
                let words = ("key is not a valid RSA private key", "key is not a valid RSA public key");
                pair(private, public, verification, words, |der| {
                    let key = RsaKeyPair::from_der(der).or_else(|_| RsaKeyPair::from_pkcs8(der)).ok()?;
                    Some((key.public_key().as_ref().to_vec(), Signer::Rsa(key, encoding)))
                })?
            }
            Family::Ecdsa(algorithm, verification) => {
                let words = ("key is not a valid ECDSA private key", "key is not a valid ECDSA public key");
                pair(private, public, verification, words, |der| {
                    let key = EcdsaKeyPair::from_pkcs8(algorithm, der)
                        .or_else(|_| EcdsaKeyPair::from_private_key_der(algorithm, der))
                        .ok()?;
                    Some((key.public_key().as_ref().to_vec(), Signer::Ecdsa(key)))
                })?
            }
            Family::Ed25519 => {
                let words =
                    ("key is not a valid Ed25519 private key", "key is not a valid Ed25519 public key");
                pair(private, public, &signature::ED25519, words, |der| {
                    let key = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).ok()?;
                    Some((key.public_key().as_ref().to_vec(), Signer::Ed25519(key)))
                })?
            }
        };
        Ok(Self { method, keys, ttl_ms })
    }

    /// A token for a user; none if there is no key to sign with. `now_ms` is the wall clock, since 1970.
    ///
    /// # Errors
    /// That signing failed.
    pub fn sign(
        &self,
        identity: &Identity,
        now_ms: u64,
    ) -> Option<Result<String, aws_lc_rs::error::Unspecified>> {
        let expires_s =
            i64::try_from(now_ms).unwrap_or(i64::MAX).saturating_add(self.ttl_ms).div_euclid(1_000);
        let header = json!({ "alg": self.method, "typ": "JWT" });
        let claims = json!({ "exp": expires_s, "revision": identity.revision, "username": &*identity.user });
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", encode(&header), encode(&claims));
        let signature = match &self.keys {
            Keys::Hmac(key) => Ok(hmac::sign(key, signed.as_bytes()).as_ref().to_vec()),
            Keys::Pair { signer: None, .. } => return None,
            Keys::Pair { signer: Some(signer), .. } => signer.sign(signed.as_bytes()),
        };
        Some(signature.map(|signature| format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))))
    }

    /// Who a token is for, or why it is none.
    ///
    /// # Errors
    /// What is wrong with it, without the token.
    pub fn verify(&self, token: &str, now_ms: u64) -> Result<Identity, &'static str> {
        let (signed, signature) = token.rsplit_once('.').ok_or("token is malformed")?;
        let (header, claims) = signed.split_once('.').ok_or("token is malformed")?;
        let header = object(header)?;
        if header.get("alg").and_then(Value::as_str) != Some(self.method) {
            return Err("invalid signing method");
        }
        let claims = object(claims)?;
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| "token is malformed")?;
        let is_signed = match &self.keys {
            Keys::Hmac(key) => hmac::verify(key, signed.as_bytes(), &signature).is_ok(),
            Keys::Pair { public, .. } => public.verify_sig(signed.as_bytes(), &signature).is_ok(),
        };
        if !is_signed {
            return Err("token signature is invalid");
        }
        let now_s = now_ms as f64 / 1_000.0;
        // A claim of 0 is none, for golang-jwt.
        let date = |name: &str| -> Result<Option<f64>, &'static str> {
            match claims.get(name) {
                None => Ok(None),
                Some(value) => {
                    let seconds = value.as_f64().ok_or("token has invalid claims")?;
                    Ok(Some(seconds.trunc()).filter(|_| seconds != 0.0))
                }
            }
        };
        if date("exp")?.is_some_and(|expires_s| now_s >= expires_s) {
            return Err("token is expired");
        }
        if date("nbf")?.is_some_and(|begins_s| now_s < begins_s) {
            return Err("token is not valid yet");
        }
        let user = claims.get("username").and_then(Value::as_str).ok_or("token names no user")?;
        let revision = claims.get("revision").and_then(Value::as_f64).ok_or("token names no revision")?;
        Ok(Identity { user: user.into(), revision: revision as u64 })
    }
}

impl Signer {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, aws_lc_rs::error::Unspecified> {
        let random = SystemRandom::new();
        match self {
            Self::Rsa(key, encoding) => {
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(*encoding, &random, message, &mut signature)?;
                Ok(signature)
            }
            Self::Ecdsa(key) => Ok(key.sign(&random, message)?.as_ref().to_vec()),
            Self::Ed25519(key) => Ok(key.sign(message).as_ref().to_vec()),
        }
    }
}

/// A base64 text of a JSON object.
fn object(text: &str) -> Result<serde_json::Map<String, Value>, &'static str> {
    let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| "token is malformed")?;
    serde_json::from_slice(&bytes).map_err(|_| "token is malformed")
}

/// The keys of a pair, of which one may be missing; `words` are for a private and a public key that is none.
fn pair(
    private: Option<Zeroizing<Vec<u8>>>,
    public: Option<Zeroizing<Vec<u8>>>,
    verification: &'static dyn VerificationAlgorithm,
    words: (&str, &str),
    read: impl FnOnce(&[u8]) -> Option<(Vec<u8>, Signer)>,
) -> Result<Keys, String> {
    let signer = match private {
        None => None,
        Some(pem) => {
            let der = first_block(&pem)?;
            let (its_public, signer) = read(&der).ok_or(words.0)?;
            let its_public = ParsedPublicKey::new(verification, its_public).map_err(|_| words.0)?;
            Some((its_public, signer))
        }
    };
    let public = match public {
        None => None,
        Some(pem) => {
            let der = first_block(&pem)?;
            let key = ParsedPublicKey::new(verification, &**der).or_else(|rejected| {
                let (_, certificate) = X509Certificate::from_der(&der).map_err(|_| rejected)?;
                ParsedPublicKey::new(verification, certificate.public_key().raw)
            });
            Some(key.map_err(|_| words.1)?)
        }
    };
    match (signer, public) {
        (None, None) => Err(MISSING_KEY.into()),
        (None, Some(public)) => Ok(Keys::Pair { signer: None, public }),
        (Some((public, signer)), None) => Ok(Keys::Pair { signer: Some(signer), public }),
        (Some((its_public, signer)), Some(public)) => {
            if in_one_form(&its_public) != in_one_form(&public) {
                return Err(KEY_MISMATCH.into());
            }
            Ok(Keys::Pair { signer: Some(signer), public })
        }
    }
}

/// A public key comes in several forms.
fn in_one_form(key: &ParsedPublicKey) -> Option<Vec<u8>> {
    use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
    let der: PublicKeyX509Der<'_> = key.as_der().ok()?;
    Some(der.as_ref().to_vec())
}

/// The bytes of the first block of a PEM file.
fn first_block(pem: &[u8]) -> Result<Zeroizing<Vec<u8>>, String> {
    let first = x509_parser::pem::Pem::iter_from_buffer(pem).next();
    first.and_then(Result::ok).map(|block| Zeroizing::new(block.contents)).ok_or_else(|| NOT_PEM.to_owned())
}

#[cfg(test)]
mod tests;
