//! Keys and values of the benchmarks. The same number and seed give the same bytes.
//!
//! Every second value is text as in a Kubernetes object, which compresses; the others are random.
use sternpost_engine::base::rng::Rng;

/// Of ten overwrites so many go to one key in [`HOT_ONE_IN`].
const HOT_OF_TEN: u64 = 9;
const HOT_ONE_IN: u64 = 20;

pub(crate) fn key(number: u64) -> String {
    format!("/registry/pods/namespace-{:04}/pod-{number:012}", number % 997)
}

pub(crate) fn value(number: u64, bytes: usize, rng: &mut Rng) -> Vec<u8> {
    if number.is_multiple_of(2) {
        let mut value = vec![0; bytes];
        rng.fill(&mut value);
        return value;
    }
    let mut text = String::with_capacity(bytes + 200);
    while text.len() < bytes {
        text += &format!(
            "{{\"kind\":\"Pod\",\"metadata\":{{\"name\":\"pod-{number}\",\"uid\":\"{:016x}\",\"labels\":{{\"app\":\"web\",\
             \"tier\":\"{}\"}}}},\"status\":{{\"phase\":\"Running\",\"podIP\":\"10.0.{}.{}\"}}}}",
            rng.next_u64(),
            rng.below(4),
            rng.below(256),
            rng.below(256)
        );
    }
    text.truncate(bytes);
    text.into_bytes()
}

/// A key to overwrite, with skew.
pub(crate) fn skewed(keys: u64, rng: &mut Rng) -> u64 {
    let number = if rng.chance(HOT_OF_TEN, 10) {
        rng.below(keys / HOT_ONE_IN + 1) * HOT_ONE_IN
    } else {
        rng.below(keys)
    };
    number % keys
}
