//! The kernel's table of mounts: what is mounted where. Never touches a mount, which may be dead
//! or hang.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

const TABLE: &str = "/proc/self/mountinfo";

/// One mount of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The device number, `major:minor`: one per mounted file system.
    pub device: String,
    /// Where it is mounted.
    pub point: PathBuf,
    /// The kind, with the subtype: `fuse.orlop`.
    pub kind: String,
    /// The source, as `fsname` said.
    pub source: String,
}

/// All mounts this process sees; later ones lie over earlier ones. Empty where nobody can tell.
#[must_use]
pub fn mounts() -> Vec<Mount> {
    table().split(|byte| *byte == b'\n').filter_map(parse).collect()
}

pub(crate) fn table() -> Vec<u8> {
    std::fs::read(TABLE).unwrap_or_default()
}

/// The topmost mount whose mount point is exactly this path.
pub(crate) fn topmost(table: &[u8], at: &Path) -> Option<Mount> {
    // Later lines lie over earlier ones.
    let lines = table.split(|byte| *byte == b'\n').rev();
    lines.filter_map(parse).find(|mount| mount.point == at)
}

/// Fields of a line: id, parent, device, root, mount point, options, [tags], "-", kind, source.
fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let device = text(fields.nth(2)?);
    let point = PathBuf::from(OsString::from_vec(unescape(fields.nth(1)?)));
    let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
    Some(Mount { device, point, kind: text(rest.next()?), source: text(rest.next()?) })
}

fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(&unescape(field)).into_owned()
}

/// The kernel writes space, tab, newline and backslash as a backslash and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        match (first, tail) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..]) => {
                out.push((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'));
                rest = after;
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::topmost;

    const TABLE: &[u8] = b"22 1 252:0 / / rw,relatime - ext4 /dev/vda rw\n\
        90 22 0:50 / /mnt/a\\040b rw,nosuid shared:7 master:2 - fuse.orlop disk.vhd rw,user_id=0\n\
        91 90 0:51 / /mnt/a\\040b rw - tmpfs none rw\n\
        broken line\n";

    #[test]
    fn the_topmost_mount_of_a_point_is_found() {
        let found = topmost(TABLE, Path::new("/mnt/a b")).expect("two are there");
        assert_eq!((found.device.as_str(), found.kind.as_str()), ("0:51", "tmpfs"));
        let lines: Vec<&[u8]> = TABLE.splitn(4, |byte| *byte == b'\n').collect();
        let found = topmost(&lines[..2].join(&b'\n'), Path::new("/mnt/a b")).expect("one is");
        assert_eq!((found.kind.as_str(), found.source.as_str()), ("fuse.orlop", "disk.vhd"));
        assert_eq!(topmost(TABLE, Path::new("/mnt")), None);
    }
}
