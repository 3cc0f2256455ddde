//! Random texts for ids and secrets: from the kernel, so that they cannot be guessed.

use std::io;

use rustix::rand::{GetRandomFlags, getrandom};

/// What such texts are made of: as many kinds as the low bits of a byte tell apart, but for two.
const ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";

/// Returns `count` random letters and digits, about 5.95 bits each.
///
/// # Errors
/// That the kernel has no random numbers.
pub fn letters(count: usize) -> io::Result<String> {
    let mut text = String::with_capacity(count);
    while text.len() < count {
        let mut noise = [0; 64];
        let filled = getrandom(&mut noise, GetRandomFlags::empty())?;
        // Two of the 64 values are thrown away, so that no letter comes more often than others.
        let fair = noise[..filled].iter().map(|byte| usize::from(byte & 63));
        let letters = fair.filter_map(|index| ALPHABET.get(index));
        let missing = count - text.len();
        text.extend(letters.take(missing).map(|byte| char::from(*byte)));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_texts_have_their_length_and_are_never_the_same() {
        let text = letters(100).expect("random numbers");
        assert_eq!(text.len(), 100);
        assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric()));
        assert_ne!(text, letters(100).expect("random numbers"));
    }
}
