//! Loop devices over files of a mount: made, found and let go.
//!
//! What there is, is asked of the kernel each time and remembered nowhere, so nothing can be out of
//! date after a crash. Refuses to touch devices over any other file.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use orlop_fuse::Mount;

use super::tool::{self, ToolError};

/// Where the kernel lists block devices.
const BLOCK: &str = "/sys/block";
/// The sector size of every disk here.
const SECTOR: &str = "512";

/// A loop device over a file of a mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoopDevice {
    /// Its name: `loop3`.
    name: String,
    /// The file behind it.
    pub backing: PathBuf,
    /// Device numbers of it and its partitions, `major:minor`.
    numbers: Vec<String>,
}

impl LoopDevice {
    /// Its device node.
    #[must_use]
    pub fn node(&self) -> PathBuf {
        Path::new("/dev").join(&self.name)
    }

    /// Whether this mount's file system lies on it or on one of its partitions.
    #[must_use]
    pub fn holds(&self, mount: &Mount) -> bool {
        let source = mount.source.strip_prefix("/dev/").and_then(|s| s.strip_prefix(&*self.name));
        // Some file systems have numbers of their own and only name the device.
        let named = source.is_some_and(|rest| rest.is_empty() || rest.starts_with('p'));
        named || self.numbers.contains(&mount.device)
    }
}

/// The loop devices over files below this directory.
#[must_use]
pub(super) fn below(at: &Path) -> Vec<LoopDevice> {
    let Ok(entries) = fs::read_dir(BLOCK) else { return Vec::new() };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let found = names.filter(|name| name.starts_with("loop")).filter_map(look);
    found.filter(|device| device.backing.starts_with(at)).collect()
}

fn look(name: String) -> Option<LoopDevice> {
    let place = Path::new(BLOCK).join(&name);
    // Absent where the device is over nothing.
    let backing = fs::read_to_string(place.join("loop/backing_file")).ok()?;
    let backing = PathBuf::from(backing.trim_end_matches('\n'));
    let number = |of: &Path| fs::read_to_string(of.join("dev")).ok();
    let mut numbers: Vec<String> = number(&place).into_iter().collect();
    for part in fs::read_dir(&place).ok()?.flatten() {
        if part.file_name().to_string_lossy().starts_with(&name) {
            numbers.extend(number(&part.path()));
        }
    }
    let numbers = numbers.iter().map(|number| number.trim().to_owned()).collect();
    Some(LoopDevice { name, backing, numbers })
}

/// Makes a loop device over a file, without a cache of its own.
///
/// # Errors
/// What losetup says.
pub(super) fn attach(file: &Path, read_only: bool) -> Result<PathBuf, ToolError> {
    let mut arguments = ["--find", "--show", "--partscan", "--direct-io=on", "--sector-size"]
        .map(OsStr::new)
        .to_vec();
    arguments.push(OsStr::new(SECTOR));
    if read_only {
        arguments.push(OsStr::new("--read-only"));
    }
    arguments.push(file.as_os_str());
    tool::run("losetup", &arguments).map(PathBuf::from)
}

/// Lets a loop device go; one that is in use goes with its last user.
///
/// # Errors
/// What losetup says.
pub(super) fn detach(node: &Path) -> Result<(), ToolError> {
    tool::run("losetup", &[OsStr::new("--detach"), node.as_os_str()]).map(drop)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use orlop_fuse::Mount;

    use super::LoopDevice;

    #[test]
    fn a_file_system_is_told_by_number_or_by_name() {
        let numbers = vec!["7:1".to_owned(), "259:0".to_owned()];
        let device = LoopDevice { name: "loop1".to_owned(), backing: PathBuf::new(), numbers };
        let mount = |device: &str, source: &str| Mount {
            device: device.to_owned(),
            point: PathBuf::from("/mnt"),
            kind: "ext4".to_owned(),
            source: source.to_owned(),
        };
        assert!(device.holds(&mount("7:1", "/dev/root")));
        assert!(device.holds(&mount("259:0", "/dev/loop1p1")));
        assert!(device.holds(&mount("0:44", "/dev/loop1p2")), "btrfs has a number of its own");
        assert!(!device.holds(&mount("7:10", "/dev/loop10")));
        assert!(!device.holds(&mount("8:1", "/dev/sda1")));
    }
}
