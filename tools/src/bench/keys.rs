//! Keys and values of a load: which keys there are, in which order they come, what values look like.
//!
//! Keys are a prefix and the key's number, padded with zeros to the wanted length, so that order by number is order by
//! bytes. Values are windows into one pool of bytes, made once: a value costs no generating while the load runs.
use bytes::Bytes;
use sternpost_engine::base::rng::Rng;

/// Bytes in the pool: far more than processor caches would make cheap, few enough to be made in a moment.
const POOL_BYTES: usize = 4 << 20;

/// The keys of a load.
#[derive(Clone, Debug)]
pub(crate) struct KeySpace {
    prefix: String,
    /// How many keys there are; at least 1.
    pub(crate) keys: u64,
    /// Digits of a key's number.
    digits: usize,
    /// Key after key instead of at random.
    is_sequential: bool,
}

impl KeySpace {
    /// `keys` keys of `key_bytes` bytes, the prefix included.
    ///
    /// # Errors
    /// When the numbers do not fit into the length.
    pub(crate) fn new(
        prefix: &str,
        keys: u64,
        key_bytes: usize,
        is_sequential: bool,
    ) -> Result<Self, String> {
        let digits = key_bytes.saturating_sub(prefix.len());
        let needed = keys.saturating_sub(1).max(1).ilog10() as usize + 1;
        if keys == 0 {
            return Err("the key space must hold a key".to_owned());
        }
        if digits < needed {
            let least = prefix.len() + needed;
            return Err(format!("{keys} keys need at least {least} bytes a key"));
        }
        Ok(Self { prefix: prefix.to_owned(), keys, digits, is_sequential })
    }

    /// The key with this number.
    pub(crate) fn key(&self, number: u64) -> Bytes {
        format!("{}{:0digits$}", self.prefix, number, digits = self.digits).into()
    }

    /// First key, and the first key behind all of them.
    pub(crate) fn bounds(&self) -> (Bytes, Bytes) {
        let mut end = self.key(self.keys - 1).to_vec();
        end.push(0);
        (self.key(0), end.into())
    }

    /// Which key the operation with this number goes to.
    pub(crate) fn pick(&self, operation: u64, rng: &mut Rng) -> u64 {
        if self.is_sequential { operation % self.keys } else { rng.below(self.keys) }
    }
}

/// What values look like.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum ValueKind {
    /// Bytes that no compression makes smaller
    Random,
    /// Words as in manifests of Kubernetes, which compress about as well
    Text,
}

/// The pool that values are taken from. Clones share it.
#[derive(Clone)]
pub(crate) struct ValuePool {
    pool: Bytes,
    value_bytes: usize,
}

impl ValuePool {
    /// A pool for values of `value_bytes` bytes.
    pub(crate) fn new(kind: ValueKind, value_bytes: usize, seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let pool_bytes = POOL_BYTES.max(2 * value_bytes);
        let mut pool = Vec::with_capacity(pool_bytes);
        match kind {
            ValueKind::Random => {
                pool.resize(pool_bytes, 0);
                rng.fill(&mut pool);
            }
            ValueKind::Text => {
                while pool.len() < pool_bytes {
                    let word = WORDS[rng.below(WORDS.len() as u64) as usize];
                    // Names and checksums do not repeat: about a third of a manifest.
                    let line = if rng.chance(1, 3) {
                        format!("{word}: {:016x}\n", rng.next_u64())
                    } else {
                        format!("  {word}\n")
                    };
                    pool.extend_from_slice(line.as_bytes());
                }
            }
        }
        Self { pool: pool.into(), value_bytes }
    }

    /// A value.
    pub(crate) fn value(&self, rng: &mut Rng) -> Bytes {
        let start = rng.below((self.pool.len() - self.value_bytes + 1) as u64) as usize;
        self.pool.slice(start..start + self.value_bytes)
    }
}

const WORDS: [&str; 16] = [
    "apiVersion: v1",
    "kind: Pod",
    "metadata:",
    "labels: {app: front, tier: web}",
    "namespace: default",
    "uid",
    "containers:",
    "image: registry.example/front",
    "imagePullPolicy: IfNotPresent",
    "resources: {limits: {cpu: 500m, memory: 128Mi}}",
    "volumeMounts: [{mountPath: /var/run/secrets, name: token, readOnly: true}]",
    "terminationMessagePath: /dev/termination-log",
    "conditions: [{status: \"True\", type: Ready}]",
    "hostIP: 10.0.0.1",
    "resourceVersion",
    "ownerReferences: [{blockOwnerDeletion: true, controller: true, kind: ReplicaSet}]",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_the_wanted_length_and_sort_by_number() {
        let keys = KeySpace::new("k/", 100_000, 8, false).unwrap();
        assert_eq!(keys.key(0), "k/000000");
        assert_eq!(keys.key(99_999), "k/099999");
        let (start, end) = keys.bounds();
        assert!((0..100_000).step_by(997).all(|number| start <= keys.key(number) && keys.key(number) < end));
        assert!(KeySpace::new("k/", 100_000, 6, false).is_err());
        assert!(KeySpace::new("k/", 100_000, 7, false).is_ok());
        assert!(KeySpace::new("", 0, 8, false).is_err());
    }

    #[test]
    fn values_have_the_wanted_length_for_every_size() {
        for value_bytes in [0, 1, 256, 3 * POOL_BYTES] {
            let pool = ValuePool::new(ValueKind::Text, value_bytes, 1);
            let mut rng = Rng::new(2);
            assert!((0..100).all(|_| pool.value(&mut rng).len() == value_bytes));
        }
    }
}
