//! File descriptors where a process may have few: how much is done at once, and one that is kept in
//! reserve for when they run out.

use std::fs::File;
use std::io;

use parking_lot::Mutex;
use rustix::process::{Resource, getrlimit};

/// Descriptors that are not for requests, where a process may have few.
const OTHER_DESCRIPTORS: u64 = 32;
/// Descriptors that one request may take: its connection, and files for what it brings.
const OF_ONE: u64 = 4;

/// Returns how much of `most` requests, or jobs that make them one by one, may be under way at once.
pub fn at_once(most: usize) -> usize {
    within(most, getrlimit(Resource::Nofile).current)
}

fn within(most: usize, descriptors: Option<u64>) -> usize {
    let few = descriptors.map(|all| all.saturating_sub(OTHER_DESCRIPTORS) / OF_ONE);
    let few = few.and_then(|few| usize::try_from(few).ok());
    few.map_or(most, |few| few.min(most)).max(1)
}

/// A descriptor that can be given up when there are no others, for what must work even then.
#[derive(Debug)]
pub struct Spare(Mutex<Option<File>>);

impl Default for Spare {
    fn default() -> Self {
        Self(Mutex::new(File::open("/dev/null").ok()))
    }
}

impl Spare {
    /// Tries `open`; where descriptors have run out, once more without the spare one, which is taken
    /// back as soon as there are some again.
    ///
    /// # Errors
    /// What `open` fails with.
    pub fn with<T>(&self, mut open: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        match open() {
            Err(error) if has_run_out(&error) => {
                // Another thread may have it, and gives it back soon.
                let spare = self.0.lock().take();
                let opened = match spare {
                    Some(file) => {
                        drop(file);
                        open()
                    }
                    None => Err(error),
                };
                self.refill();
                opened
            }
            opened => {
                self.refill();
                opened
            }
        }
    }

    /// Takes a descriptor back if it was given up.
    pub fn refill(&self) {
        let mut spare = self.0.lock();
        if spare.is_none() {
            *spare = File::open("/dev/null").ok();
        }
    }
}

/// Returns whether an operation failed for want of descriptors.
pub fn has_run_out(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_few_descriptors_does_little_at_once() {
        for (descriptors, most) in [(0, 1), (64, 8), (128, 24), (1024, 64), (u64::MAX, 64)] {
            assert_eq!(within(64, Some(descriptors)), most, "{descriptors}");
        }
        assert_eq!((within(64, None), within(0, None)), (64, 1));
    }

    #[test]
    fn the_spare_helps_once_where_descriptors_have_run_out() {
        let spare = Spare::default();
        let tries = Mutex::new(0);
        let opened = spare.with(|| {
            *tries.lock() += 1;
            match *tries.lock() {
                1 => Err(io::Error::from_raw_os_error(libc::EMFILE)),
                _ => Ok(7),
            }
        });
        assert_eq!(opened.expect("the second time"), 7);
        assert!(spare.0.lock().is_some(), "taken back");
        let refused = spare.with(|| Err::<(), _>(io::Error::from_raw_os_error(libc::EACCES)));
        assert!(refused.is_err() && *tries.lock() == 2);
    }
}
