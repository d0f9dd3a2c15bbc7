//! Passwords: hashed and compared with bcrypt, on threads that may be busy, a few at a time.
//!
//! **Contract.** A password comes in as bytes that are overwritten when they are dropped, and does not come out: what does is a hash, or whether it is the right one.
//! Whether there is such a user does not show in the time: without one a password is compared with a hash that nothing has.
//!
//! **Bounds.** As many hashes at a time as half the processors; [`WAITING_MAX`] more may wait for one, any further is answered as overload. So who guesses passwords
//! takes half the machine at most, and no thread that serves others.
//!
//! **Source**: golang.org/x/crypto/bcrypt, as etcd 3.7.3 uses it: `$2a$`, 72 bytes at most.
use crate::wire::status::ApiError;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

/// Requests that may wait for a hash.
pub const WAITING_MAX: usize = 256;
/// Costs that bcrypt has; each step doubles the time.
pub const COST_RANGE: std::ops::RangeInclusive<u32> = 4..=31;
/// The cost if none is given, or one that bcrypt does not have.
pub const COST_DEFAULT: u32 = 10;
/// bcrypt looks at no more of a password.
const PASSWORD_BYTES_MAX: usize = 72;

/// A password in memory.
pub type Password = Zeroizing<String>;

/// See the module.
pub struct Passwords {
    cost: u32,
    running: Arc<Semaphore>,
    waiting: AtomicUsize,
    /// What is compared for users that do not exist.
    nobodys: Arc<OnceLock<String>>,
}

impl fmt::Debug for Passwords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Passwords").field("cost", &self.cost).finish_non_exhaustive()
    }
}

impl Passwords {
    /// Hashes of `cost`, of [`COST_RANGE`].
    pub fn new(cost: u32) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            cost,
            running: Arc::new(Semaphore::new((processors / 2).max(1))),
            waiting: AtomicUsize::new(0),
            nobodys: Arc::default(),
        }
    }

    /// The hash of a password with a salt of its own.
    ///
    /// # Errors
    /// [`ApiError::PasswordTooLong`], or that too many wait.
    pub async fn hash(&self, password: Password) -> Result<String, ApiError> {
        if password.len() > PASSWORD_BYTES_MAX {
            return Err(ApiError::PasswordTooLong);
        }
        let cost = self.cost;
        let hashed = self.run(move || hash(&password, cost)).await?;
        hashed.ok_or(ApiError::Stopped)
    }

    /// Whether `password` is the one behind `hash`; none stands for a user that has no hash, and takes as long.
    ///
    /// # Errors
    /// That too many wait.
    pub async fn is_right(
        &self,
        password: Password,
        hash_of_user: Option<bytes::Bytes>,
    ) -> Result<bool, ApiError> {
        let (cost, nobodys) = (self.cost, Arc::clone(&self.nobodys));
        self.run(move || match hash_of_user.as_deref().map(std::str::from_utf8) {
            // A hash that is none, which a client may have stored, fits no password.
            Some(Ok(hash)) if !hash.is_empty() => bcrypt::verify(password.as_bytes(), hash).unwrap_or(false),
            _ => {
                let nobodys = nobodys.get_or_init(|| hash("nobody", cost).unwrap_or_default());
                let _ = bcrypt::verify(password.as_bytes(), nobodys);
                false
            }
        })
        .await
    }

    /// Runs `work` on a thread that may be busy, when its turn has come.
    async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, ApiError> {
        let _place = Place::take(&self.waiting)?;
        let permit = Arc::clone(&self.running).acquire_owned().await.map_err(|_| ApiError::Stopped)?;
        let working = tokio::task::spawn_blocking(move || {
            // Held by the work: a caller that goes away does not make room for another one while the thread is still busy.
            let _permit = permit;
            work()
        });
        working.await.map_err(|_| ApiError::Stopped)
    }
}

/// One of the places of those who wait.
struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    fn take(waiting: &'a AtomicUsize) -> Result<Self, ApiError> {
        let place = Self(waiting);
        if waiting.fetch_add(1, Ordering::Relaxed) >= WAITING_MAX {
            return Err(ApiError::TooManyRequests);
        }
        Ok(place)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// In the form that Go writes.
fn hash(password: &str, cost: u32) -> Option<String> {
    let parts = bcrypt::hash_with_result(password.as_bytes(), cost).ok()?;
    Some(parts.format_for_version(bcrypt::Version::TwoA))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(text: &str) -> Password {
        Zeroizing::new(text.to_owned())
    }

    #[tokio::test]
    async fn the_right_password_fits_its_hash_and_no_other_does() {
        let passwords = Passwords::new(4);
        let hash = passwords.hash(password("secret")).await.unwrap();
        assert!(hash.starts_with("$2a$04$"), "as Go writes it");
        let hash = Some(bytes::Bytes::from(hash));
        assert_eq!(passwords.is_right(password("secret"), hash.clone()).await, Ok(true));
        assert_eq!(passwords.is_right(password("Secret"), hash.clone()).await, Ok(false));
        assert_eq!(passwords.is_right(password(""), hash).await, Ok(false));
        for none in [None, Some("".into()), Some("no hash".into()), Some(vec![0xff].into())] {
            assert_eq!(passwords.is_right(password("nobody"), none).await, Ok(false));
        }
    }

    /// One that the tests of golang.org/x/crypto/bcrypt name.
    #[tokio::test]
    async fn a_hash_that_go_made_is_understood() {
        let hash = "$2a$10$XajjQvNhvvRt5GSeFk1xFeyqRrsxkhBkUiQeg0dt.wU1qD4aFDcga";
        let passwords = Passwords::new(4);
        assert_eq!(passwords.is_right(password("allmine"), Some(hash.into())).await, Ok(true));
    }

    #[tokio::test]
    async fn what_bcrypt_would_not_look_at_is_refused() {
        let passwords = Passwords::new(4);
        assert!(passwords.hash(password(&"x".repeat(72))).await.is_ok());
        assert_eq!(passwords.hash(password(&"x".repeat(73))).await, Err(ApiError::PasswordTooLong));
    }

    #[tokio::test]
    async fn more_than_may_wait_is_overload() {
        let passwords = Passwords::new(4);
        passwords.waiting.store(WAITING_MAX, Ordering::Relaxed);
        assert_eq!(passwords.hash(password("x")).await, Err(ApiError::TooManyRequests));
        assert_eq!(passwords.waiting.load(Ordering::Relaxed), WAITING_MAX);
    }
}
