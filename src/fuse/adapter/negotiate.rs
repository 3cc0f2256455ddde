//! Negotiates capabilities with the kernel when the mount begins.

use fuser::{InitFlags, KernelConfig};

use super::Adapter;

/// Requests that the kernel may have in flight in the background: readahead, mostly.
const BACKGROUND: u16 = 64;
/// Bytes that the kernel writes at once at most.
const MAX_WRITE: u32 = 1 << 20;

impl Adapter {
    /// Asks the kernel for what it may offer.
    pub(super) fn negotiate(&self, config: &mut KernelConfig) {
        // Each is asked for by itself: an old kernel that lacks one still gives the others.
        for wanted in [
            // Without it one slow lookup stops all others of the directory.
            InitFlags::FUSE_PARALLEL_DIROPS,
            // `ls -l` and `find -size` get attributes with the names.
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_ATOMIC_O_TRUNC,
            // Without it every write asks for an attribute first.
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
        ] {
            if config.add_capabilities(wanted).is_err() {
                tracing::debug!("this kernel lacks {wanted:?}");
            }
        }
        if self.passthrough.negotiate(config) {
            self.fs.allow_direct();
        }
        if config.set_max_background(BACKGROUND).is_err()
            || config.set_congestion_threshold(BACKGROUND / 4 * 3).is_err()
        {
            tracing::debug!("the kernel keeps its own limit of background requests");
        }
        if config.set_max_write(MAX_WRITE).is_err() {
            tracing::debug!("writes come in smaller pieces");
        }
    }
}
