//! The keys and values of the benchmark: each value names its run, key and write, so that every read can be checked.

use bytes::Bytes;

/// Bytes before the filler: run, key and sequence number.
const HEADER: usize = 24;

/// The fewest bytes of a value.
pub(super) const VALUE_MIN: u64 = 32;

/// What the keys of a run begin with. No other run writes them, so what is missing is lost.
pub(super) fn prefix(run: u64) -> String {
    format!("bench:{:08x}:", run & 0xffff_ffff)
}

/// The key with this number.
pub(super) fn key(run: u64, index: u64) -> Bytes {
    Bytes::from(format!("{}{index:08x}", prefix(run)))
}

/// The value that the `sequence`-th write of a key writes.
pub(super) fn value(run: u64, index: u64, sequence: u64, size: usize) -> Bytes {
    let mut out = Vec::with_capacity(size.max(HEADER));
    for word in [run, index, sequence] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    let mut filler = Xorshift::new(run ^ index.rotate_left(24) ^ sequence.rotate_left(48));
    while out.len() < size {
        let word = filler.next().to_le_bytes();
        let missing = (size - out.len()).min(word.len());
        out.extend_from_slice(&word[..missing]);
    }
    Bytes::from(out)
}

/// What a value that was read is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// The write with this number, whole.
    Write(u64),
    /// A value of another run, or of no benchmark.
    Foreign,
    /// It claims to be of this run but is not what was written.
    Damaged,
}

/// Judges a value that was read.
pub(super) fn classify(run: u64, index: u64, found: &[u8]) -> Seen {
    let word = |at: usize| found.get(at..at + 8).and_then(|word| word.try_into().ok()).map(u64::from_le_bytes);
    match (word(0), word(16)) {
        (Some(found_run), Some(sequence)) if found_run == run => {
            if value(run, index, sequence, found.len()) == found {
                Seen::Write(sequence)
            } else {
                Seen::Damaged
            }
        }
        _ => Seen::Foreign,
    }
}

/// Marsaglia's xorshift64*: filler that does not compress, and choices of keys.
#[derive(Debug)]
pub(super) struct Xorshift(u64);

impl Xorshift {
    pub(super) fn new(seed: u64) -> Self {
        Self((seed ^ 0x9e37_79b9_7f4a_7c15).max(1))
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`, which is above 0.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        // Lemire's multiplication; the bias is far below what a benchmark could see.
        let product = u128::from(self.next()) * u128::from(bound);
        u64::try_from(product >> 64).unwrap_or(0)
    }

    /// A number from 0 to 1.
    pub(super) fn share(&mut self) -> f64 {
        #[allow(clippy::cast_precision_loss, reason = "53 bits fit")]
        let number = (self.next() >> 11) as f64;
        number / 9_007_199_254_740_992.0
    }
}

/// What one client knows of a key that only it writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Known {
    /// The last write tried; 0: none.
    pub tried: u64,
    /// The last write acknowledged; 0: none.
    pub acknowledged: u64,
}

/// The verdict on a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// As it must be.
    Good,
    /// An acknowledged write is missing.
    Lost,
    /// Something that was never written.
    Wrong,
}

/// Judges all values of a key that were read after `known`.
pub(super) fn verdict<'a>(run: u64, index: u64, known: Known, values: impl Iterator<Item = &'a [u8]>) -> Verdict {
    let mut newest = 0;
    for found in values {
        match classify(run, index, found) {
            Seen::Write(sequence) if sequence <= known.tried => newest = newest.max(sequence),
            Seen::Write(_) | Seen::Damaged => return Verdict::Wrong,
            Seen::Foreign => {}
        }
    }
    if newest < known.acknowledged { Verdict::Lost } else { Verdict::Good }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_their_size_and_are_recognised() {
        for size in [32, 33, 100, 4096] {
            let written = value(7, 3, 9, size);
            assert_eq!(written.len(), size);
            assert_eq!(classify(7, 3, &written), Seen::Write(9));
            assert_eq!(classify(8, 3, &written), Seen::Foreign);
            assert_eq!(classify(7, 4, &written), Seen::Damaged);
            let mut damaged = written.to_vec();
            damaged[size - 1] ^= 1;
            assert_eq!(classify(7, 3, &damaged), Seen::Damaged);
        }
        assert_eq!(classify(7, 3, b"short"), Seen::Foreign);
    }

    #[test]
    fn lost_and_wrong_values_are_told_apart() {
        let write = |sequence| value(1, 2, sequence, 64);
        let check = |tried, acknowledged, values: &[Bytes], expected| {
            let known = Known { tried, acknowledged };
            assert_eq!(verdict(1, 2, known, values.iter().map(|value| &value[..])), expected);
        };
        check(0, 0, &[], Verdict::Good);
        check(5, 5, &[write(5)], Verdict::Good);
        check(6, 5, &[write(6)], Verdict::Good);
        check(6, 5, &[write(4), write(5)], Verdict::Good);
        check(5, 5, &[write(4)], Verdict::Lost);
        check(5, 5, &[], Verdict::Lost);
        check(5, 5, &[write(6)], Verdict::Wrong);
        check(0, 0, &[Bytes::from_static(b"something older")], Verdict::Good);
    }

    #[test]
    fn choices_are_spread() {
        let mut choices = Xorshift::new(1);
        let mut counts = [0_u32; 10];
        for _ in 0..10_000 {
            counts[usize::try_from(choices.below(10)).expect("small")] += 1;
            assert!((0.0..1.0).contains(&choices.share()));
        }
        assert!(counts.iter().all(|count| (800..1200).contains(count)), "{counts:?}");
    }
}
