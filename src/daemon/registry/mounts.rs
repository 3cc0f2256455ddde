//! The kernel's mounts, from `/proc/self/mountinfo`: reading it touches no filesystem.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// The type under which kvfs mounts appear.
pub const FS_TYPE: &str = "fuse.kvfs";

/// One line of `/proc/self/mountinfo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountInfo {
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// The device's minor number, by which `/sys/fs/fuse/connections` names FUSE connections.
    pub minor: u32,
    /// The filesystem's type.
    pub fs_type: String,
    /// What is mounted: `kvfs:` and the store, or what fstab says.
    pub source: String,
    /// The user who mounted it, for FUSE filesystems.
    pub user_id: Option<u32>,
}

impl MountInfo {
    /// Returns whether this is a mount of kvfs.
    pub fn is_kvfs(&self) -> bool {
        self.fs_type == FS_TYPE
    }
}

/// Returns everything mounted, in the order of mounting.
///
/// # Errors
/// That `/proc` cannot be read.
pub fn list() -> io::Result<Vec<MountInfo>> {
    Ok(parse(&fs::read("/proc/self/mountinfo")?))
}

/// Returns what is mounted at exactly `mount_point`; of several, the one on top.
///
/// # Errors
/// That `/proc` cannot be read.
pub fn find(mount_point: &Path) -> io::Result<Option<MountInfo>> {
    Ok(list()?
        .into_iter()
        .rfind(|mount| mount.mount_point == mount_point))
}

fn parse(text: &[u8]) -> Vec<MountInfo> {
    text.split(|byte| *byte == b'\n')
        .filter_map(parse_line)
        .collect()
}

/// Parses `36 35 98:0 /root /point rw,noatime master:1 - ext3 /dev/root rw`.
fn parse_line(line: &[u8]) -> Option<MountInfo> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let separator = fields.iter().skip(6).position(|field| *field == b"-")? + 6;
    let device = str::from_utf8(fields.get(2)?).ok()?;
    let options = String::from_utf8_lossy(fields.get(separator + 3).copied().unwrap_or_default());
    Some(MountInfo {
        mount_point: PathBuf::from(OsString::from_vec(unescape(fields.get(4)?))),
        minor: device.split_once(':')?.1.parse().ok()?,
        fs_type: String::from_utf8_lossy(fields.get(separator + 1)?).into_owned(),
        source: String::from_utf8_lossy(&unescape(
            fields.get(separator + 2).copied().unwrap_or_default(),
        ))
        .into_owned(),
        user_id: options
            .split(',')
            .find_map(|option| option.strip_prefix("user_id=")?.parse().ok()),
    })
}

/// Undoes the kernel's escapes: blank, tab, newline and backslash as `\` and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let digits = after
            .get(..3)
            .filter(|_| byte == b'\\')
            .and_then(|digits| u8::from_str_radix(str::from_utf8(digits).ok()?, 8).ok());
        if let Some(decoded) = digits {
            out.push(decoded);
            rest = &after[3..];
        } else {
            out.push(byte);
            rest = after;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_lines_are_read_with_and_without_optional_fields() {
        let text =
            b"36 35 0:98 / /mnt/a rw,nosuid - fuse.kvfs kvfs:~a rw,user_id=1000,group_id=100\n\
            37 35 98:0 /sub /mnt/b rw,noatime shared:1 master:2 - ext3 /dev/root rw\n\
            not a line\n";
        let mounts = parse(text);
        assert_eq!(mounts.len(), 2);
        assert_eq!(
            mounts[0],
            MountInfo {
                mount_point: "/mnt/a".into(),
                minor: 98,
                fs_type: "fuse.kvfs".into(),
                source: "kvfs:~a".into(),
                user_id: Some(1000),
            }
        );
        assert!(mounts[0].is_kvfs());
        assert_eq!(mounts[1].fs_type, "ext3");
        assert_eq!(mounts[1].user_id, None);
    }

    #[test]
    fn octal_escapes_are_decoded() {
        for (escaped, plain) in [
            (&b"/a\\040b"[..], &b"/a b"[..]),
            (b"/tab\\011nl\\012end", b"/tab\tnl\nend"),
            (b"/back\\134slash", b"/back\\slash"),
            (b"/hash\\043x", b"/hash#x"),
            (b"/not\\04", b"/not\\04"),
            (b"/not\\999", b"/not\\999"),
            (b"/end\\", b"/end\\"),
        ] {
            assert_eq!(unescape(escaped), plain);
        }
        let line = b"1 2 0:3 / /a\\040b\\134\xff rw - fuse.kvfs kvfs rw";
        let mount = parse_line(line).expect("a line");
        assert_eq!(
            mount.mount_point.as_os_str().as_encoded_bytes(),
            b"/a b\\\xff"
        );
    }

    #[test]
    fn the_kernels_own_list_is_read() {
        let root = find(Path::new("/")).expect("/proc").expect("a root");
        assert!(!root.fs_type.is_empty());
        assert!(find(Path::new("/no/such/mount")).expect("/proc").is_none());
    }
}
