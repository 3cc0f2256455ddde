//! The letters of keys at each position, and others that may stand there.

/// Positions of keys with remembered letters.
const POSITIONS: usize = 64;
/// Places are smaller than this, so that they can be multiplied by numbers of keys.
const MOST_PLACES: u128 = 1 << 90;

/// Which ASCII characters keys have at each position.
#[derive(Debug)]
pub(super) struct Letters {
    seen: [u128; POSITIONS],
    is_new: bool,
    /// In order, those that may stand at each position.
    alphabets: Vec<Vec<u8>>,
}

impl Default for Letters {
    fn default() -> Self {
        Self {
            seen: [0; POSITIONS],
            is_new: false,
            alphabets: Vec::new(),
        }
    }
}

impl Letters {
    pub(super) fn notice(&mut self, key: &str) {
        for (seen, byte) in self.seen.iter_mut().zip(key.bytes()) {
            if byte.is_ascii() && *seen >> byte & 1 == 0 {
                *seen |= 1 << byte;
                self.is_new = true;
            }
        }
    }

    pub(super) fn refresh(&mut self) {
        if !std::mem::take(&mut self.is_new) {
            return;
        }
        // Where keys differ at all, are they hexadecimal there?
        let varied = self
            .seen
            .iter()
            .filter(|seen| seen.count_ones() > 1)
            .fold(0, |all, seen| all | seen);
        self.alphabets = self
            .seen
            .iter()
            .map(|seen| alphabet(*seen, varied))
            .collect();
    }

    /// Returns the alphabets from a position on, as many as make a place.
    pub(super) fn from(&self, position: usize) -> &[Vec<u8>] {
        let rest = self.alphabets.get(position..).unwrap_or_default();
        let mut places = 1u128;
        let used = rest
            .iter()
            .take_while(|letters| {
                places *= letters.len().max(1) as u128;
                !letters.is_empty() && places < MOST_PLACES
            })
            .count();
        &rest[..used]
    }
}

/// Returns the letters that may stand where these were seen, in order. Digits stand for all
/// digits, several letters for all of their case; `varied` is what was seen where keys differ.
fn alphabet(seen: u128, varied: u128) -> Vec<u8> {
    let of = |set: u128, class: fn(&u8) -> bool| {
        (0..128u8).filter(move |byte| set >> byte & 1 == 1 && class(byte))
    };
    let is_hex = |letter: u8| {
        of(varied, u8::is_ascii_digit).next().is_some()
            && of(varied, |_| true)
                .all(|byte| byte.is_ascii_digit() || (letter..letter + 6).contains(&byte))
            && of(varied, u8::is_ascii_alphabetic).next().is_some()
    };
    let (hex_lower, hex_upper) = (is_hex(b'a'), is_hex(b'A'));
    let digits = of(seen, u8::is_ascii_digit).next().is_some();
    let lower = of(seen, u8::is_ascii_lowercase).count() > 1;
    let upper = of(seen, u8::is_ascii_uppercase).count() > 1;
    (0..128u8)
        .filter(|byte| {
            let in_hex = |first: u8, is_hex: bool, any: bool| {
                if is_hex {
                    (digits || any) && (first..first + 6).contains(byte)
                } else {
                    any
                }
            };
            seen >> byte & 1 == 1
                || byte.is_ascii_digit() && (digits || (lower && hex_lower) || (upper && hex_upper))
                || byte.is_ascii_lowercase() && in_hex(b'a', hex_lower, lower)
                || byte.is_ascii_uppercase() && in_hex(b'A', hex_upper, upper)
        })
        .collect()
}
