//! Extended attributes: the value of one, or the names of all.

use std::ffi::OsStr;

use fuser::{Errno, INodeNo, ReplyXattr, Request};

use super::Adapter;
use super::answer::Asked;
use crate::fs::types::Ino;

impl Adapter {
    pub(super) fn get_xattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        let name = name.to_string_lossy().into_owned();
        self.answer(
            Asked::new(request, "getxattr", ino),
            reply,
            move |fs, wait| fs.getxattr(Ino(ino.0), &name, wait),
            move |reply, value| send_xattr(reply, &value, size),
        );
    }

    pub(super) fn list_xattrs(
        &self,
        request: &Request,
        ino: INodeNo,
        size: u32,
        reply: ReplyXattr,
    ) {
        self.answer(
            Asked::new(request, "listxattr", ino),
            reply,
            move |fs, _| fs.listxattr(Ino(ino.0)),
            move |reply, names| {
                let list: Vec<u8> = names
                    .iter()
                    .flat_map(|name| name.bytes().chain([0]))
                    .collect();
                send_xattr(reply, &list, size);
            },
        );
    }
}

/// Sends an attribute, or how large it is when the caller asks that first.
fn send_xattr(reply: ReplyXattr, value: &[u8], size: u32) {
    match (size as usize, u32::try_from(value.len())) {
        (0, Ok(len)) => reply.size(len),
        (room, Ok(_)) if value.len() <= room => reply.data(value),
        _ => reply.error(Errno::ERANGE),
    }
}
