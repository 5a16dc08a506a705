//! Takes a mount away whose users have gone.

use std::time::{Duration, Instant};

use orlop_fuse::{Mounted, UnmountError, UnmountHow};

/// Unmounts. A child that another test is just starting has copies of all descriptors until it
/// becomes its program, also of files in the mount: that is waited for.
pub(crate) fn unmount(mounted: &Mounted) {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        match mounted.unmount(UnmountHow::Clean) {
            Err(UnmountError::Busy(_)) if Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(20));
            }
            ended => return ended.unwrap(),
        }
    }
}
