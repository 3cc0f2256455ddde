//! Hashes of a content's beginnings: proof that a second transfer begins as the first one did.
//!
//! Without a strong entity tag, nothing the server says proves that two answers are of one version:
//! dates count seconds, weak tags mean "as good as equal", and the platform sends neither. Only the
//! bytes prove it: those handed out from one transfer and from the next must hash to the same value.

use std::fmt;

use twox_hash::XxHash3_128;

use crate::base::units::MIB;

/// Bytes from one mark to the next: the most that a reader going back reads beyond its wish.
const STEP: u64 = MIB;

/// The hashes of a content's first bytes, at each mark and at its end so far.
///
/// 16 bytes for each MiB.
#[derive(Clone, Default)]
pub struct Prefix {
    hash: XxHash3_128,
    len: u64,
    marks: Vec<u128>,
    /// The hash of all of it, where that is all that is known.
    whole: Option<u128>,
}

/// A place up to which another transfer can be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof {
    /// This many bytes from the start.
    pub len: u64,
    /// Their hash.
    pub hash: u128,
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prefix")
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

impl Prefix {
    /// Returns what is known of a content of which `hash` is the checksum: nothing before its end.
    pub fn of_whole(len: u64, hash: u128) -> Self {
        Self {
            len,
            whole: Some(hash),
            ..Self::default()
        }
    }

    /// Adds the next bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let left = STEP - self.len % STEP;
            let len = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let (now, later) = bytes.split_at(len);
            self.hash.write(now);
            self.len += len as u64;
            if self.len.is_multiple_of(STEP) {
                self.marks.push(self.hash.finish_128());
            }
            bytes = later;
        }
    }

    /// Adds bytes that begin at `at`, as far as they are the next ones.
    pub fn update_at(&mut self, at: u64, bytes: &[u8]) {
        let known = self.len.checked_sub(at);
        let known = known.and_then(|known| usize::try_from(known).ok());
        if let Some(new) = known.and_then(|known| bytes.get(known..)) {
            self.update(new);
        }
    }

    /// Returns how many bytes there are.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Returns whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the hash of all bytes so far.
    pub fn hash(&self) -> u128 {
        self.whole.unwrap_or_else(|| self.hash.finish_128())
    }

    /// Returns the checksum of all bytes so far, as the disk cache writes it.
    pub fn checksum(&self) -> String {
        format!("{:032x}", self.hash())
    }

    /// Returns the first place at or after `wanted` up to which a transfer can be compared, else the
    /// last one.
    pub fn proof(&self, wanted: u64) -> Proof {
        let mark = usize::try_from(wanted.div_ceil(STEP)).unwrap_or(usize::MAX);
        match mark.checked_sub(1) {
            None => Proof {
                len: 0,
                hash: Self::default().hash(),
            },
            Some(at) => match self.marks.get(at) {
                Some(hash) => Proof {
                    len: (at as u64 + 1) * STEP,
                    hash: *hash,
                },
                None => Proof {
                    len: self.len,
                    hash: self.hash(),
                },
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_holds_for_the_same_bytes_however_they_came() {
        let bytes: Vec<u8> = (0..3 * STEP + 100).map(|at| (at % 251) as u8).collect();
        let (mut whole, mut parts) = (Prefix::default(), Prefix::default());
        whole.update(&bytes);
        for (at, piece) in bytes.chunks(70_001).enumerate() {
            let at = at * 70_001;
            // Some of it comes twice.
            let again = at.min(9);
            parts.update_at((at - again) as u64, &bytes[at - again..at + piece.len()]);
        }
        parts.update_at(5 * STEP, b"a gap");
        assert_eq!(parts.len(), bytes.len() as u64);
        for wanted in [0, 1, STEP, STEP + 1, 3 * STEP, 3 * STEP + 1, 9 * STEP] {
            let proof = whole.proof(wanted);
            assert_eq!(proof, parts.proof(wanted), "{wanted}");
            assert!(proof.len >= wanted.min(whole.len()));
            assert!(proof.len <= (wanted + STEP).min(whole.len()));
            let mut same = Prefix::default();
            same.update(&bytes[..proof.len as usize]);
            assert_eq!(same.hash(), proof.hash, "{wanted}");
        }
    }
}
