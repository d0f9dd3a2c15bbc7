//! From a user to a token and back, of the kind that `--auth-token` names.
//!
//! **Contract.** [`Tokens`] is shared by the thread that applies, which says who was given a token, and by requests, which ask whose one is.
//! The lock is held for one look into a table.
//!
//! **Source**: `NewTokenProvider` in `server/auth/store.go` of etcd 3.7.3.
use super::jwt::{INVALID_OPTIONS, Jwt};
use super::origin::Identity;
use super::simple_token::{self, LettersDigest, SimpleTokens};
use crate::wire::status::ApiError;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use sternpost_engine::base::clock::Clock;
use zeroize::Zeroizing;

/// Life of a simple token, seconds, if none is given.
pub const SIMPLE_TTL_DEFAULT_S: u64 = 300;

/// See the module.
pub struct Tokens {
    kind: Kind,
    clock: Arc<dyn Clock>,
}

enum Kind {
    Simple(Mutex<SimpleTokens>),
    Jwt(Box<Jwt>),
    /// `--auth-token=`: nobody is given one, and none is valid.
    Off,
}

/// A token that is being given: what the log holds for it, and what the caller will get.
pub struct Draft {
    letters: Option<Zeroizing<String>>,
}

/// What was found out about a token.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Found {
    /// Whose it is.
    User(Identity),
    /// Nobody's.
    Invalid,
    /// Nobody's as far as this member has applied the log; it was given by a later entry, if it is one.
    Ahead,
}

impl Tokens {
    /// From `--auth-token` and `--auth-token-ttl` (seconds). May read files.
    ///
    /// # Errors
    /// etcd's words.
    pub fn open(specification: &str, ttl_s: u64, clock: Arc<dyn Clock>) -> Result<Self, String> {
        let mut parts = specification.split(',');
        let kind = parts.next().unwrap_or_default();
        let mut settings = BTreeMap::new();
        for part in parts {
            // Not in the log as a whole: it may name files, and nothing says that it holds no more.
            let pair = part.split_once('=').filter(|(_, value)| !value.contains('='));
            let Some((name, value)) = pair.filter(|(name, _)| !settings.contains_key(name)) else {
                tracing::error!("invalid token option");
                return Err(INVALID_OPTIONS.into());
            };
            settings.insert(name, value);
        }
        let kind = match kind {
            "simple" => {
                tracing::warn!("simple token is not cryptographically signed");
                let ttl_s = if ttl_s == 0 { SIMPLE_TTL_DEFAULT_S } else { ttl_s };
                Kind::Simple(Mutex::new(SimpleTokens::new(ttl_s.saturating_mul(1_000_000))))
            }
            "jwt" => Kind::Jwt(Box::new(Jwt::open(&settings)?)),
            "" => Kind::Off,
            unknown => {
                tracing::warn!(r#type = unknown, error = INVALID_OPTIONS, "unknown token type");
                return Err(INVALID_OPTIONS.into());
            }
        };
        Ok(Self { kind, clock })
    }

    /// etcd's default.
    pub fn simple(clock: Arc<dyn Clock>) -> Self {
        let tokens = SimpleTokens::new(SIMPLE_TTL_DEFAULT_S * 1_000_000);
        Self { kind: Kind::Simple(Mutex::new(tokens)), clock }
    }

    /// Begins a token, before its command is proposed.
    ///
    /// # Errors
    /// That the system has no randomness.
    pub fn draft(&self) -> Result<Draft, ApiError> {
        let letters = match &self.kind {
            Kind::Simple(_) => Some(simple_token::draw().ok_or(ApiError::Stopped)?),
            _ => None,
        };
        Ok(Draft { letters })
    }

    /// The token, after its command was applied at `index`; `now_ms` is the wall clock.
    ///
    /// # Errors
    /// etcd's, where there is nothing to sign with.
    pub fn finish(
        &self,
        draft: &Draft,
        index: u64,
        identity: &Identity,
        now_ms: u64,
    ) -> Result<String, ApiError> {
        match (&self.kind, &draft.letters) {
            (Kind::Jwt(jwt), _) => match jwt.sign(identity, now_ms) {
                None => Err(ApiError::VerifyOnlyKey),
                Some(signed) => signed.map_err(|_| ApiError::Stopped),
            },
            (Kind::Simple(_), Some(letters)) => Ok(format!("{}.{index}", **letters)),
            _ => Err(ApiError::AuthFailed),
        }
    }

    /// The state machine has given a user a token.
    pub fn assigned(&self, user: Arc<str>, letters: LettersDigest, index: u64) {
        if let Kind::Simple(tokens) = &self.kind {
            tokens.lock().assigned(self.clock.now_us(), user, letters, index);
        }
    }

    /// The user is gone or has another password.
    pub fn dropped(&self, user: &str) {
        if let Kind::Simple(tokens) = &self.kind {
            tokens.lock().dropped(user);
        }
    }

    /// Authentication was switched off.
    pub fn clear(&self) {
        if let Kind::Simple(tokens) = &self.kind {
            tokens.lock().clear();
        }
    }

    /// Whose token it is. `revision` is that of users and roles now, which a simple token goes by; `applied` the last index of the log
    /// that this member has applied; `now_ms` the wall clock.
    pub fn find(&self, token: &str, revision: u64, applied: u64, now_ms: impl FnOnce() -> u64) -> Found {
        match &self.kind {
            Kind::Simple(tokens) => {
                let Some((letters, index)) = simple_token::split(token) else { return Found::Invalid };
                // Looked up first: what is in the table was applied.
                let user = tokens.lock().find(self.clock.now_us(), letters, index);
                match user {
                    Some(user) => Found::User(Identity { user, revision }),
                    None if index > applied => Found::Ahead,
                    None => Found::Invalid,
                }
            }
            Kind::Jwt(jwt) => match jwt.verify(token, now_ms()) {
                Ok(identity) => Found::User(identity),
                Err(reason) => {
                    tracing::debug!(reason, "failed to parse a JWT token");
                    Found::Invalid
                }
            },
            Kind::Off => Found::Invalid,
        }
    }
}

impl Draft {
    /// What the command holds: empty for tokens that are signed.
    pub fn digest(&self) -> Vec<u8> {
        self.letters.as_ref().map_or_else(Vec::new, |letters| simple_token::digest_of(letters).to_vec())
    }
}
