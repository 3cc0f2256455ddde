//! The log file: private to its owner, rotated when it grows large, and never another user's file.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

/// A log file that is larger is put aside as `….1`, in place of the one that was put aside before.
const ROTATE_ABOVE: u64 = 10 << 20;

/// A log file that is open. Clones write to the same one.
#[derive(Clone, Debug)]
pub struct LogFile(Arc<Mutex<Open>>);

#[derive(Debug)]
struct Open {
    path: PathBuf,
    file: File,
    /// Bytes in it, as far as this process has written them.
    size: u64,
    /// Whether standard error goes there as well.
    has_stderr: bool,
}

impl LogFile {
    /// Opens a log file for appending, readable for its owner only.
    ///
    /// # Errors
    /// That the file or its folder cannot be made, or that it is a link or another user's.
    pub fn open(path: &Path) -> io::Result<Self> {
        if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(dir)?;
        }
        let (mut file, mut size) = open(path)?;
        if size > ROTATE_ABOVE {
            put_aside(path)?;
            (file, size) = open(path)?;
        }
        Ok(Self(Arc::new(Mutex::new(Open {
            path: path.to_owned(),
            file,
            size,
            has_stderr: false,
        }))))
    }

    /// Opens the file of that name again, whichever has it now: programs that rotate logs rename them.
    pub fn reopen(&self) {
        let mut log = self.0.lock();
        // Where that is impossible the old file still takes lines.
        if let Ok((file, size)) = open(&log.path) {
            (log.file, log.size) = (file, size);
            if log.has_stderr {
                let _ = rustix::stdio::dup2_stderr(&log.file);
            }
        }
    }

    /// Redirects standard error to the file, for panics above all.
    ///
    /// # Errors
    /// That it cannot be redirected.
    pub fn take_stderr(&self) -> io::Result<()> {
        let mut open = self.0.lock();
        rustix::stdio::dup2_stderr(&open.file)?;
        open.has_stderr = true;
        Ok(())
    }
}

impl Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut open = self.0.lock();
        open.make_room(bytes.len() as u64);
        let written = open.file.write(bytes)?;
        open.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.lock().file.flush()
    }
}

impl Open {
    /// Begins another file if this one is large enough.
    fn make_room(&mut self, more: u64) {
        if self.size + more <= ROTATE_ABOVE {
            return;
        }
        self.size = 0;
        match put_aside(&self.path).and_then(|()| open(&self.path)) {
            Ok((file, size)) => (self.file, self.size) = (file, size),
            // The folder may not be written to any more: old lines make way in place. That fails
            // for devices, which are never full.
            Err(_) => drop(self.file.set_len(0)),
        }
        if self.has_stderr {
            // Else it goes on into the file that was put aside.
            let _ = rustix::stdio::dup2_stderr(&self.file);
        }
    }
}

/// Opens the file at a path, and tells how large it is.
fn open(path: &Path) -> io::Result<(File, u64)> {
    let opened = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path);
    let file = opened.map_err(|error| match error.raw_os_error() {
        // In a folder that others write to it may be theirs.
        Some(libc::ELOOP) => io::Error::other("it is a symbolic link; name the file itself"),
        _ => error,
    })?;
    let found = file.metadata()?;
    if found.uid() != rustix::process::geteuid().as_raw() && !found.file_type().is_char_device() {
        let message = format!("it belongs to the user with id {}", found.uid());
        return Err(io::Error::other(message));
    }
    Ok((file, found.len()))
}

fn put_aside(path: &Path) -> io::Result<()> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".1");
    fs::rename(path, aside)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_log_file_is_private_appended_to_and_put_aside_when_large() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("logs/a.log");
        for line in ["one\n", "two\n"] {
            LogFile::open(&path)
                .and_then(|mut file| file.write_all(line.as_bytes()))
                .expect("a log file");
        }
        assert_eq!(fs::read_to_string(&path).expect("it"), "one\ntwo\n");
        let mode = fs::metadata(&path).expect("it").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        File::options()
            .write(true)
            .open(&path)
            .and_then(|file| file.set_len(ROTATE_ABOVE + 1))
            .expect("a large file");
        LogFile::open(&path).expect("a log file");
        assert_eq!(fs::metadata(&path).expect("it").len(), 0);
        assert!(dir.path().join("logs/a.log.1").exists());
    }

    #[test]
    fn a_log_file_is_put_aside_while_it_is_written_to() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("a.log");
        let mut file = LogFile::open(&path).expect("a log file");
        let line = vec![b'x'; 1 << 20];
        for _ in 0..35 {
            file.write_all(&line).expect("room");
        }
        let size = |path: &Path| fs::metadata(path).expect("it").len();
        assert!(size(&path) <= ROTATE_ABOVE);
        assert!(size(&dir.path().join("a.log.1")) <= ROTATE_ABOVE);
        assert_eq!(fs::read_dir(dir.path()).expect("it").count(), 2);
    }

    #[test]
    fn a_link_is_no_log_file() {
        let dir = tempfile::tempdir().expect("a folder");
        let victim = dir.path().join("victim");
        fs::write(&victim, "precious").expect("a file");
        let path = dir.path().join("a.log");
        symlink(&victim, &path).expect("a link");
        let error = LogFile::open(&path).expect_err("a link");
        assert!(error.to_string().contains("symbolic link"), "{error}");
        assert_eq!(fs::read(&victim).expect("it"), b"precious");
        LogFile::open(Path::new("/dev/null")).expect("a device");
    }
}
