//! Attributes in the kernel's form, and those that all files of a mount share.

use fuser::{FileAttr, FileType, INodeNo};

use crate::fs::types::{Attr, FileKind};

/// Block size of the figures that `statfs` shows.
pub(super) const BLOCK: u32 = 4096;

/// What all files of the mount show alike.
#[derive(Clone, Copy, Debug)]
pub struct Appearance {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits of files.
    pub file_mode: u16,
    /// Permission bits of directories.
    pub dir_mode: u16,
}

pub(in crate::fuse) fn file_attr(appearance: Appearance, attr: &Attr) -> FileAttr {
    let (kind, perm, nlink) = match attr.kind {
        FileKind::Directory => (FileType::Directory, appearance.dir_mode, attr.links),
        FileKind::File => (FileType::RegularFile, appearance.file_mode, attr.links),
    };
    let shown = &attr.shown;
    FileAttr {
        ino: INodeNo(attr.ino.0),
        size: attr.size,
        blocks: attr.size.div_ceil(512),
        atime: shown.accessed.unwrap_or(attr.modified),
        mtime: attr.modified,
        ctime: shown.changed.unwrap_or(attr.modified),
        crtime: attr.modified,
        kind,
        perm: shown.mode.unwrap_or(perm),
        nlink,
        uid: shown.uid.unwrap_or(appearance.uid),
        gid: shown.gid.unwrap_or(appearance.gid),
        rdev: 0,
        blksize: BLOCK,
        flags: 0,
    }
}
