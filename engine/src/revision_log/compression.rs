//! Values made smaller: zstd, one frame a value, with a dictionary that a segment's values share.
//!
//! **Why per value.** A reader of one value pays for one value; the dictionary gives back what blocks of many values
//! would have saved (measured on objects of 1.5 KiB: 11.3 times smaller alone with a dictionary, 7.1 times in blocks of
//! 13 KiB, at a tenth of the time to read one).
//!
//! **Rules.** Level 1. A value shorter than 128 bytes is stored as it is, and so is one that would not get
//! smaller by an eighth. Frames carry no checksum and no dictionary id: the record has a checksum, and the trailer
//! names the dictionary. The length of the value is known from the record before anything is decompressed.
//!
//! **Without feature `zstd`** nothing is compressed, and no C code is built. [`Decompressor`] then refuses.
//!
//! **Does not know** records and files.

/// Shorter values are not compressed: a frame and its literals take as much.
#[cfg(feature = "zstd")]
pub(super) const VALUE_BYTES_MIN: usize = 128;
/// Longest dictionary.
pub const DICTIONARY_BYTES_MAX: usize = 16 << 10;

pub(super) use implementation::{Compressor, Decompressor};
pub use implementation::{IS_SUPPORTED, train_dictionary};

#[cfg(feature = "zstd")]
mod implementation {
    use super::{DICTIONARY_BYTES_MAX, VALUE_BYTES_MIN};
    use std::cell::RefCell;
    use zstd::bulk;
    use zstd::dict::DecoderDictionary;
    use zstd::zstd_safe::{CParameter, DCtx};

    const LEVEL: i32 = 1;
    /// Training takes time in proportion to the sample: about 100 ms at this size.
    const SAMPLE_BYTES_MAX: usize = 1 << 20;
    /// No single value makes up the sample.
    const SAMPLE_VALUE_BYTES_MAX: usize = 8 << 10;
    /// Fewer values say nothing about the next one.
    const SAMPLE_VALUES_MIN: usize = 64;
    /// One value in so many is kept from training and judges the dictionary.
    const JUDGES_PART: usize = 8;

    /// Is this build able to read compressed values?
    pub const IS_SUPPORTED: bool = true;

    /// Makes values smaller, and keeps its context and its buffer from one to the next. The default one leaves them as
    /// they are.
    #[derive(Default)]
    pub(in super::super) struct Compressor {
        /// None if zstd found no memory: then nothing is compressed.
        context: Option<bulk::Compressor<'static>>,
        buffer: Vec<u8>,
    }

    impl Compressor {
        pub(in super::super) fn new(dictionary: &[u8]) -> Self {
            let context = bulk::Compressor::with_dictionary(LEVEL, dictionary).and_then(|mut context| {
                context.set_parameter(CParameter::DictIdFlag(false))?;
                Ok(context)
            });
            Self { context: context.ok(), buffer: Vec::new() }
        }

        /// The compressed value, if that is worth it.
        pub(in super::super) fn compress(&mut self, value: &[u8]) -> Option<&[u8]> {
            if value.len() < VALUE_BYTES_MIN {
                return None;
            }
            // No room for more than what is worth it: zstd gives up when it is used up.
            let room = value.len() - value.len().div_ceil(8);
            if self.buffer.len() < room {
                self.buffer.resize(room, 0);
            }
            let written = self.context.as_mut()?.compress_to_buffer(value, &mut self.buffer[..room]).ok()?;
            Some(&self.buffer[..written])
        }
    }

    /// Gives back what a [`Compressor`] with the same dictionary took. Shared by threads.
    pub(in super::super) struct Decompressor {
        dictionary: Option<DecoderDictionary<'static>>,
    }

    thread_local! {
        /// One context per thread, made at first use.
        static CONTEXT: RefCell<Option<DCtx<'static>>> = const { RefCell::new(None) };
    }

    impl Decompressor {
        /// # Errors
        /// If zstd does not take the dictionary.
        pub(in super::super) fn new(dictionary: &[u8]) -> Result<Self, String> {
            if dictionary.is_empty() {
                return Ok(Self { dictionary: None });
            }
            let dictionary = DecoderDictionary::try_copy(dictionary).map_err(|error| error.to_string())?;
            Ok(Self { dictionary: Some(dictionary) })
        }

        /// Memory held, in bytes.
        pub(in super::super) fn bytes(&self) -> usize {
            size_of::<Self>()
                + self.dictionary.as_ref().map_or(0, |dictionary| dictionary.as_ddict().sizeof())
        }

        /// Fills `value`, which has the length that the record says.
        ///
        /// # Errors
        /// What was expected and what was found.
        pub(in super::super) fn decompress(&self, stored: &[u8], value: &mut [u8]) -> Result<(), String> {
            CONTEXT.with_borrow_mut(|slot| {
                if slot.is_none() {
                    *slot = DCtx::try_create();
                }
                let context = slot.as_mut().ok_or("zstd found no memory for a context")?;
                let expected = value.len();
                let written = match &self.dictionary {
                    Some(dictionary) => context.decompress_using_ddict(value, stored, dictionary.as_ddict()),
                    None => context.decompress(value, stored),
                };
                match written {
                    Ok(written) if written == expected => Ok(()),
                    Ok(written) => {
                        Err(format!("a value of {expected} bytes expected, {written} decompressed"))
                    }
                    Err(code) => Err(format!(
                        "a value of {expected} bytes expected, decompressing gave: {}",
                        zstd::zstd_safe::get_error_name(code)
                    )),
                }
            })
        }
    }

    /// Makes a dictionary for values like these, which should be a sample of those to be written, from all over them.
    /// At most 1 MiB of them is used, 8 KiB of each. `None` if there are too few, or it would not make them
    /// smaller by a sixteenth. Takes up to 100 ms or so.
    pub fn train_dictionary<S: AsRef<[u8]>>(samples: &[S]) -> Option<Vec<u8>> {
        let usable = samples.iter().map(AsRef::as_ref).filter(|value| value.len() >= VALUE_BYTES_MIN);
        let usable: Vec<&[u8]> =
            usable.map(|value| &value[..value.len().min(SAMPLE_VALUE_BYTES_MAX)]).collect();
        let usable_bytes: usize = usable.iter().map(|value| value.len()).sum();
        if usable.len() < SAMPLE_VALUES_MIN {
            return None;
        }
        // Every step-th value: the sample is as spread out as what was given.
        let step = usable_bytes.div_ceil(SAMPLE_BYTES_MAX).max(1);
        let (mut training, mut judges) = (Vec::new(), Vec::new());
        for (number, value) in usable.into_iter().step_by(step).enumerate() {
            let part = if number % JUDGES_PART == 0 { &mut judges } else { &mut training };
            part.push(value);
        }
        let dictionary = zstd::dict::from_samples(&training, DICTIONARY_BYTES_MAX).ok()?;
        let (with, without) = (stored_bytes(&dictionary, &judges), stored_bytes(&[], &judges));
        (with < without - without / 16).then_some(dictionary)
    }

    fn stored_bytes(dictionary: &[u8], values: &[&[u8]]) -> usize {
        let mut compressor = Compressor::new(dictionary);
        values.iter().map(|value| compressor.compress(value).map_or(value.len(), <[u8]>::len)).sum()
    }
}

#[cfg(not(feature = "zstd"))]
mod implementation {
    /// Is this build able to read compressed values?
    pub const IS_SUPPORTED: bool = false;

    /// Leaves values as they are.
    #[derive(Default)]
    pub(in super::super) struct Compressor;

    impl Compressor {
        pub(in super::super) fn new(_dictionary: &[u8]) -> Self {
            Self
        }

        pub(in super::super) fn compress(&mut self, _value: &[u8]) -> Option<&[u8]> {
            None
        }
    }

    /// Refuses; the reader asks [`IS_SUPPORTED`] before it needs one.
    pub(in super::super) struct Decompressor;

    impl Decompressor {
        pub(in super::super) fn new(_dictionary: &[u8]) -> Result<Self, String> {
            Ok(Self)
        }

        pub(in super::super) fn bytes(&self) -> usize {
            0
        }

        pub(in super::super) fn decompress(&self, _stored: &[u8], _value: &mut [u8]) -> Result<(), String> {
            Err("the value is compressed, and this build has no zstd".to_string())
        }
    }

    /// Makes no dictionary: this build does not compress.
    pub fn train_dictionary<S: AsRef<[u8]>>(_samples: &[S]) -> Option<Vec<u8>> {
        None
    }
}

#[cfg(all(test, feature = "zstd"))]
mod tests {
    use super::*;
    use crate::base::rng::Rng;

    /// Values that have much in common, as objects of one kind do.
    fn object(rng: &mut Rng) -> Vec<u8> {
        let (name, node) = (rng.next_u64(), rng.below(50));
        format!(
            "{{\"kind\":\"Pod\",\"metadata\":{{\"name\":\"web-{name:x}\",\"namespace\":\"default\",\"labels\":\
             {{\"app\":\"web\"}}}},\"spec\":{{\"nodeName\":\"node-{node}\",\"restartPolicy\":\"Always\"}}}}"
        )
        .into_bytes()
    }

    #[test]
    fn a_dictionary_makes_alike_values_smaller_and_they_come_back() {
        let mut rng = Rng::new(1);
        let samples: Vec<Vec<u8>> = (0..500).map(|_| object(&mut rng)).collect();
        let dictionary = train_dictionary(&samples).expect("alike values");
        assert!(dictionary.len() <= DICTIONARY_BYTES_MAX);
        let mut compressor = Compressor::new(&dictionary);
        let decompressor = Decompressor::new(&dictionary).unwrap();
        for _ in 0..100 {
            let value = object(&mut rng);
            let stored = compressor.compress(&value).expect("smaller");
            assert!(stored.len() * 2 < value.len(), "{} of {}", stored.len(), value.len());
            let mut found = vec![0; value.len()];
            decompressor.decompress(stored, &mut found).unwrap();
            assert_eq!(found, value);
            assert!(decompressor.decompress(stored, &mut found[1..]).is_err(), "a shorter value is no value");
            let mut longer = vec![0; value.len() + 1];
            assert!(decompressor.decompress(stored, &mut longer).is_err(), "nor is a longer one");
        }
    }

    #[test]
    fn noise_is_left_alone_and_gives_no_dictionary() {
        let mut rng = Rng::new(2);
        let samples: Vec<Vec<u8>> = (0..200)
            .map(|_| {
                let mut value = vec![0; 500];
                rng.fill(&mut value);
                value
            })
            .collect();
        assert_eq!(train_dictionary(&samples), None);
        let mut compressor = Compressor::new(&[]);
        assert!(samples.iter().all(|value| compressor.compress(value).is_none()));
        assert!(compressor.compress(&[7; 500]).is_some(), "the context goes on after it has given up");
    }

    #[test]
    fn arbitrary_bytes_are_an_error_or_some_value() {
        let mut rng = Rng::new(3);
        let samples: Vec<Vec<u8>> = (0..100).map(|_| object(&mut rng)).collect();
        let dictionary = train_dictionary(&samples).unwrap();
        let mut compressor = Compressor::new(&dictionary);
        let decompressor = Decompressor::new(&dictionary).unwrap();
        for round in 0..2000 {
            let value = object(&mut rng);
            let mut stored = compressor.compress(&value).unwrap().to_vec();
            for _ in 0..1 + rng.below(4) {
                let at = rng.below(stored.len() as u64) as usize;
                stored[at] = rng.next_u64() as u8;
            }
            if round % 4 == 0 {
                stored.truncate(rng.below(stored.len() as u64) as usize);
            }
            let _ = decompressor.decompress(&stored, &mut vec![0; value.len()]);
        }
    }
}
