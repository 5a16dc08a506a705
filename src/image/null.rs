//! `null:SIZE`: an image that is no file. It reads as zeroes and keeps nothing, to measure what a
//! server costs by itself. Refuses to be a parent, and to be anything by accident: only a path that
//! begins so is one, and a file of that name is reached as `./null:...`.

use std::path::Path;

use rustix::event::{EventfdFlags, eventfd};

use super::error::{Cause, ImageError};
use super::layer::{Content, Notice, NoticeKind, OpenedChain, OpenedLayer};
use super::open::OpenOptions;
use crate::engine::units::ByteLen;
use crate::host::OpenMode;
use crate::size::parse_sectors;

/// What such a path begins with.
const PREFIX: &str = "null:";
/// NBD's offsets, and files as FUSE shows them, end here.
const MOST: ByteLen = ByteLen::new(i64::MAX as u64 / 512 * 512);

/// Whether a path is meant so, whatever size it names.
pub(super) fn is_null(path: &Path) -> bool {
    path.to_str().is_some_and(|path| path.starts_with(PREFIX))
}

/// Opens it. There is nothing to lock, and its descriptor stands for no bytes.
pub(super) fn open(options: &OpenOptions) -> Result<OpenedChain, ImageError> {
    let path = &options.path;
    let failed = |cause| ImageError::new(path, cause);
    let size = path.to_str().and_then(|path| path.strip_prefix(PREFIX)).unwrap_or_default();
    let size = parse_sectors(size).map_err(|why| failed(Cause::NullSize(why)))?;
    if size.is_zero() || size > MOST {
        return Err(failed(Cause::NullSize(format!("it has 512 to {MOST} bytes, not {size}"))));
    }
    let fd = eventfd(0, EventfdFlags::CLOEXEC)
        .map_err(|errno| failed(Cause::io("make its descriptor", errno)))?;
    let layer = OpenedLayer {
        path: path.clone(),
        fd,
        cached: None,
        mode: OpenMode::BUFFERED,
        content: Content::Null { size },
        file_bytes: ByteLen::ZERO,
        allocated_bytes: ByteLen::ZERO,
    };
    let notices = vec![Notice { path: path.clone(), kind: NoticeKind::KeepsNothing }];
    Ok(OpenedChain { size, read_only: !options.writes(), layers: vec![layer], notices })
}

#[cfg(test)]
mod tests {
    use super::{is_null, open};
    use crate::engine::units::ByteLen;
    use crate::image::{Cause, OpenOptions};

    #[test]
    fn only_a_whole_number_of_sectors_makes_a_null_disk() {
        let size = |path: &str| open(&OpenOptions::new(path)).map(|chain| chain.size);
        assert_eq!(size("null:64G").unwrap(), ByteLen::new(64 << 30));
        assert_eq!(size("null:512").unwrap(), ByteLen::new(512));
        for path in ["null:", "null:0", "null:513", "null:disk.vhd", "null:8E", "null:-1"] {
            let refused = size(path).unwrap_err();
            assert!(matches!(refused.cause, Cause::NullSize(_)), "{path}: {refused}");
        }
        assert!(!is_null("./null:64G".as_ref()) && !is_null("/null:64G".as_ref()));
    }
}
