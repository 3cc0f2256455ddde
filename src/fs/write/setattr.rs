//! Changes attributes. Size is the store's; the rest is accepted in memory, so that tools which set
//! it do not fail, and shown until the kernel forgets the file.

use std::sync::Arc;
#[cfg(feature = "testing")]
use std::time::Instant;
use std::time::{Duration, SystemTime};

use super::content_type;
use crate::base::clock::Wait;
use crate::fs::attributes::apply_overrides;
use crate::fs::types::{Attr, AttrReply, By, FileKind, Ino, Shown};
#[cfg(feature = "testing")]
use crate::fs::types::{Fh, Resolved};
use crate::fs::xattr::{CONTENT_ENCODING, CONTENT_TYPE};
use crate::fs::{FsError, KvFs, Result};
use crate::store::Encoding;

/// The attributes to change.
#[derive(Clone, Copy, Debug, Default)]
pub struct SetAttr {
    /// The size in bytes.
    pub size: Option<u64>,
    /// Permission bits.
    pub mode: Option<u16>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Time of the last read.
    pub accessed: Option<Time>,
    /// Time of the last change.
    pub modified: Option<Time>,
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Time {
    /// The present.
    Now,
    /// This one.
    At(SystemTime),
}

impl KvFs {
    /// Changes attributes; `fh` is the open file that it was asked through, if any.
    ///
    /// # Errors
    /// [`FsError::ReadOnly`]; for sizes as [`KvFs::write`], and without `fh` the store's verdict.
    #[cfg(feature = "testing")]
    pub fn setattr(
        &self,
        ino: Ino,
        set: &SetAttr,
        fh: Option<Fh>,
        wait: Wait,
    ) -> Result<AttrReply> {
        let by = fh.map_or(By::Name(Resolved::Unknown(Instant::now())), By::Handle);
        self.setattr_by(ino, set, by, wait)
    }

    /// The same, of a file named so.
    ///
    /// # Errors
    /// Those of the store; [`FsError::Stale`] for a size if the name may lead to another file by now.
    pub fn setattr_by(&self, ino: Ino, set: &SetAttr, by: By, wait: Wait) -> Result<AttrReply> {
        let side = self.write_side()?;
        if let Some(size) = set.size {
            if ino == Ino::ROOT {
                return Err(FsError::WrongKind(libc::EISDIR));
            }
            self.set_size(ino, size, by, wait)?;
        }
        let now = self.clock.wall();
        let apply = |shown: &mut Shown| {
            let time = |time: Time| match time {
                Time::Now => now,
                Time::At(at) => at,
            };
            shown.mode = set.mode.or(shown.mode);
            shown.uid = set.uid.or(shown.uid);
            shown.gid = set.gid.or(shown.gid);
            shown.accessed = set.accessed.map(time).or(shown.accessed);
            shown.modified = set.modified.map(time).or(shown.modified);
            shown.changed = Some(now);
        };
        if ino == Ino::ROOT {
            apply(&mut side.root.lock().0);
        } else {
            let mut inodes = self.inodes.lock();
            inodes.get_mut(ino).ok_or(FsError::Stale)?.show(apply);
        }
        match (self.getattr(ino, wait), set.size) {
            // It was changed so, and what was journalled of it has been refused since.
            (Err(FsError::NoEntry), Some(size)) => Ok(self.gone_attributes(ino, size, now)),
            (reply, _) => reply,
        }
    }

    fn gone_attributes(&self, ino: Ino, size: u64, modified: SystemTime) -> AttrReply {
        let mut attr = Attr {
            ino,
            size,
            modified,
            kind: FileKind::File,
            links: 1,
            shown: Shown::default(),
        };
        apply_overrides(&mut attr, self.inodes.lock().get(ino));
        AttrReply {
            attr,
            ttl: Duration::ZERO,
        }
    }

    /// Sets an extended attribute: content type, and in raw mounts content encoding.
    ///
    /// # Errors
    /// [`FsError::NotSupported`] for others, `EINVAL` for values that cannot be sent, and the
    /// store's verdict where a record has to be stored again.
    pub fn setxattr(&self, ino: Ino, name: &str, value: &[u8], wait: Wait) -> Result<()> {
        self.write_side()?;
        if ino == Ino::ROOT {
            return Err(FsError::NotSupported);
        }
        let text = std::str::from_utf8(value)
            .map(str::trim)
            .unwrap_or_default();
        match name {
            CONTENT_TYPE if content_type::is_valid(text) => {
                let value: Arc<str> = text.into();
                self.set_stored_as(ino, Some(value), None, wait)
            }
            CONTENT_TYPE => Err(FsError::refused(
                libc::EINVAL,
                format!("'{text}' is not a content type"),
                "write for example text/plain; charset=utf-8",
            )),
            CONTENT_ENCODING if self.records.config().raw => {
                let token = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
                if !text.bytes().all(token) {
                    return Err(FsError::refused(
                        libc::EINVAL,
                        format!("'{text}' is not a content encoding"),
                        "write for example br, gzip or identity",
                    ));
                }
                let encoding = Encoding::from_header(Some(text));
                self.set_stored_as(ino, None, Some(encoding), wait)
            }
            _ => Err(FsError::NotSupported),
        }
    }

    /// Removes an extended attribute, which none of them can be.
    ///
    /// # Errors
    /// Always.
    pub fn removexattr(&self, ino: Ino, name: &str, wait: Wait) -> Result<()> {
        self.write_side()?;
        self.getxattr(ino, name, wait)?;
        Err(FsError::NotSupported)
    }
}
