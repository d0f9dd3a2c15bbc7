//! etcd's simple tokens: letters that somebody was given for a name and a password, known to every member, forgotten after a while.
//!
//! **Layout** of a token: 16 random letters · `.` · index of the log entry that gave it. The entry holds the SHA-256 of the letters, not the letters: who reads a log
//! or a backup has no token. 16 of 52 letters are 91 bits.
//!
//! **Contract.** The table is no part of the state: the state machine says who was given what and whose tokens are void, in the order of the log, and time comes
//! in with every call. A token lives for its TTL after it was last used *here*, as in etcd. A start begins without tokens.
//!
//! **Bounds.** [`TOKENS_MAX`] tokens; one more pushes out the one that would end first.
use aws_lc_rs::{digest, rand};
use std::collections::HashMap;
use std::sync::Arc;
use zeroize::Zeroizing;

/// Tokens known at a time.
pub const TOKENS_MAX: usize = 100_000;
const LETTERS: &[u8; 52] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
const LETTERS_COUNT: usize = 16;
/// How often those that ended are looked for.
const PURGE_INTERVAL_US: u64 = 1_000_000;

/// SHA-256 of a token's letters.
pub type LettersDigest = [u8; 32];

struct Token {
    user: Arc<str>,
    index: u64,
    deadline_us: u64,
}

/// See the module.
pub struct SimpleTokens {
    tokens: HashMap<LettersDigest, Token>,
    ttl_us: u64,
    purge_us: u64,
}

/// Draws the letters of a token; none if the system has no randomness.
pub fn draw() -> Option<Zeroizing<String>> {
    let mut letters = Zeroizing::new(String::with_capacity(LETTERS_COUNT));
    let mut random = Zeroizing::new([0_u8; 4 * LETTERS_COUNT]);
    while letters.len() < LETTERS_COUNT {
        rand::fill(&mut *random).ok()?;
        // Only as many values as each letter has the same number of.
        let fair = random.iter().filter(|byte| **byte < 208).map(|byte| LETTERS[usize::from(*byte) % 52]);
        let missing_count = LETTERS_COUNT - letters.len();
        letters.extend(fair.take(missing_count).map(char::from));
    }
    Some(letters)
}

/// What stands for the letters in the log.
pub fn digest_of(letters: &str) -> LettersDigest {
    let digest = digest::digest(&digest::SHA256, letters.as_bytes());
    let mut bytes = LettersDigest::default();
    bytes.copy_from_slice(digest.as_ref());
    bytes
}

/// Letters and index; none if it is no token of this kind.
pub fn split(token: &str) -> Option<(&str, u64)> {
    let (letters, index) = token.split_once('.')?;
    let number: u64 = index.parse().ok()?;
    // In one form only, as it was given.
    (number.to_string() == index).then_some((letters, number))
}

impl SimpleTokens {
    /// None yet; each will live for `ttl_us` after it was last used.
    pub fn new(ttl_us: u64) -> Self {
        Self { tokens: HashMap::new(), ttl_us, purge_us: 0 }
    }

    /// A user was given a token.
    pub fn assigned(&mut self, now_us: u64, user: Arc<str>, letters: LettersDigest, index: u64) {
        self.purge(now_us);
        if self.tokens.len() >= TOKENS_MAX {
            let first = self.tokens.iter().min_by_key(|(_, token)| token.deadline_us);
            if let Some(first) = first.map(|(letters, _)| *letters) {
                self.tokens.remove(&first);
            }
        }
        let deadline_us = now_us.saturating_add(self.ttl_us);
        self.tokens.insert(letters, Token { user, index, deadline_us });
    }

    /// All tokens of a user are void.
    pub fn dropped(&mut self, user: &str) {
        self.tokens.retain(|_, token| *token.user != *user);
    }

    /// All tokens are void.
    pub fn clear(&mut self) {
        self.tokens = HashMap::new();
    }

    /// Whose token it is, which it then is for another TTL.
    pub fn find(&mut self, now_us: u64, letters: &str, index: u64) -> Option<Arc<str>> {
        // The digest is what is compared, so the time says nothing about the letters.
        let token = self.tokens.get_mut(&digest_of(letters))?;
        if token.index != index || token.deadline_us < now_us {
            return None;
        }
        token.deadline_us = now_us.saturating_add(self.ttl_us);
        Some(Arc::clone(&token.user))
    }

    fn purge(&mut self, now_us: u64) {
        if now_us >= self.purge_us {
            self.purge_us = now_us.saturating_add(PURGE_INTERVAL_US);
            self.tokens.retain(|_, token| token.deadline_us >= now_us);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(tokens: &mut SimpleTokens, now_us: u64, user: &str, index: u64) -> String {
        let letters = draw().unwrap();
        tokens.assigned(now_us, user.into(), digest_of(&letters), index);
        format!("{}.{index}", *letters)
    }

    fn find(tokens: &mut SimpleTokens, now_us: u64, token: &str) -> Option<String> {
        let (letters, index) = split(token)?;
        tokens.find(now_us, letters, index).map(|user| user.to_string())
    }

    #[test]
    fn a_token_lives_while_it_is_used() {
        let mut tokens = SimpleTokens::new(10);
        let token = given(&mut tokens, 0, "a", 7);
        assert_eq!(find(&mut tokens, 10, &token).as_deref(), Some("a"));
        assert_eq!(find(&mut tokens, 20, &token).as_deref(), Some("a"), "the use at 10 has prolonged it");
        assert_eq!(find(&mut tokens, 31, &token), None);
    }

    #[test]
    fn nothing_but_the_token_is_the_token() {
        let mut tokens = SimpleTokens::new(10);
        let token = given(&mut tokens, 0, "a", 7);
        let (letters, _) = token.split_once('.').unwrap();
        for other in [
            format!("{letters}.8"),
            format!("{letters}.07"),
            format!("{letters}.+7"),
            format!("{letters}.7.7"),
            format!("{letters}."),
            format!(".{letters}"),
            letters.to_owned(),
            letters.to_lowercase() + ".7",
            ".".to_owned(),
            String::new(),
        ] {
            assert_eq!(find(&mut tokens, 0, &other), None, "{other:?}");
        }
    }

    #[test]
    fn a_changed_user_has_no_tokens_and_others_keep_theirs() {
        let mut tokens = SimpleTokens::new(10);
        let (first, second, other) =
            (given(&mut tokens, 0, "a", 1), given(&mut tokens, 0, "a", 2), given(&mut tokens, 0, "b", 3));
        tokens.dropped("a");
        assert_eq!((find(&mut tokens, 0, &first), find(&mut tokens, 0, &second)), (None, None));
        assert_eq!(find(&mut tokens, 0, &other).as_deref(), Some("b"));
        tokens.clear();
        assert_eq!(find(&mut tokens, 0, &other), None);
    }

    #[test]
    fn tokens_that_ended_leave_the_table_and_it_has_a_bound() {
        let mut tokens = SimpleTokens::new(10);
        let first = given(&mut tokens, 0, "a", 1);
        for index in 1..TOKENS_MAX as u64 + 1 {
            tokens.assigned(index, "b".into(), digest_of(&index.to_string()), index);
        }
        assert_eq!(tokens.tokens.len(), TOKENS_MAX);
        assert_eq!(find(&mut tokens, 1, &first), None, "it would have ended first");
        tokens.assigned(PURGE_INTERVAL_US, "c".into(), digest_of("c"), 1);
        assert_eq!(tokens.tokens.len(), 1);
    }

    #[test]
    fn letters_are_drawn_from_all() {
        let drawn: String = (0..64).map(|_| draw().unwrap().to_string()).collect();
        assert_eq!(drawn.len(), 64 * LETTERS_COUNT);
        assert!(LETTERS.iter().all(|letter| drawn.contains(char::from(*letter))));
        assert!(drawn.bytes().all(|letter| LETTERS.contains(&letter)));
    }
}
