//! The forms in which mount(8) and umount(8) call a program for a kind of file system.
//!
//! Installed as `/sbin/mount.fuse.orlop`, it is called with the source, the directory, and flags;
//! without such a link, `mount.fuse3` runs `orlop SOURCE DIR -o OPTIONS`. Both are turned into the
//! ordinary command line; anything else is left alone.

use std::ffi::{OsStr, OsString};
use std::path::Path;

/// The commands there are: an image may not be called so in the short form.
const COMMANDS: [&str; 10] =
    ["serve", "export", "create", "info", "map", "check", "bench", "mount", "umount", "help"];

/// The ordinary command line, if this is one of those forms.
pub(in crate::cli) fn ordinary(arguments: &[OsString]) -> Option<Vec<OsString>> {
    let (called, rest) = arguments.split_first()?;
    let name = Path::new(called).file_name()?.to_str()?;
    match name {
        "mount.fuse.orlop" | "mount.orlop" => Some(mount(rest)),
        "umount.fuse.orlop" | "umount.orlop" => Some(umount(rest)),
        _ => match rest {
            [source, dir, flag, options] if flag == "-o" && is_source(source) => {
                let words = ["orlop", "mount", "--mount-codes", "-o"].map(OsString::from);
                let words = words.into_iter().chain([options.clone(), "--".into()]);
                Some(words.chain([source.clone(), dir.clone()]).collect())
            }
            _ => None,
        },
    }
}

fn is_source(text: &OsStr) -> bool {
    !text.as_encoded_bytes().starts_with(b"-") && !COMMANDS.iter().any(|command| text == *command)
}

/// `mount.TYPE SOURCE DIR [-sfnvrw] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]` (mount(8), "EXTERNAL
/// HELPERS").
fn mount(rest: &[OsString]) -> Vec<OsString> {
    let mut line = ["orlop", "mount", "--mount-codes"].map(OsString::from).to_vec();
    let mut places = Vec::new();
    let mut rest = rest.iter();
    while let Some(word) = rest.next() {
        match word.to_str() {
            Some("-o") => line.extend([word.clone(), rest.next().cloned().unwrap_or_default()]),
            Some("-r") => line.push("--read-only".into()),
            // All but the mount itself: there is nothing else to do.
            Some("-f") => line.push("--fake".into()),
            // Of no meaning here: sloppy, no mtab, verbose, and what is so anyway.
            Some("-s" | "-n" | "-v" | "-w") => {}
            Some("-t") => drop(rest.next()),
            // The rest, `-N` above all, is refused by who reads the ordinary line.
            _ => places.push(word.clone()),
        }
    }
    line.extend(places);
    line
}

/// `umount.TYPE DIR [-flnrv] [-N NAMESPACE] [-t TYPE]` (umount(8)).
fn umount(rest: &[OsString]) -> Vec<OsString> {
    let mut line = vec![OsString::from("orlop"), "umount".into()];
    let mut rest = rest.iter();
    while let Some(word) = rest.next() {
        match word.to_str() {
            Some("-l") => line.push("--lazy".into()),
            Some("-f" | "-n" | "-r" | "-v") => {}
            Some("-t") => drop(rest.next()),
            _ => line.push(word.clone()),
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::ordinary;

    fn told(line: &str) -> Option<String> {
        let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        let words = ordinary(&words)?;
        Some(words.join(" ".as_ref()).into_string().unwrap())
    }

    /// The lines are those that util-linux 2.38 and fuse3 3.14 were seen to run.
    #[test]
    fn what_mount_runs_is_understood() {
        for (line, ordinary) in [
            (
                "/sbin/mount.fuse.orlop /x/d.vhd /mnt/x -o ro,partition=2,user,_netdev",
                Some("orlop mount --mount-codes -o ro,partition=2,user,_netdev /x/d.vhd /mnt/x"),
            ),
            (
                "/sbin/mount.fuse.orlop /x/d.vhd /mnt/x -n -v -o rw -t fuse.orlop",
                Some("orlop mount --mount-codes -o rw /x/d.vhd /mnt/x"),
            ),
            (
                "orlop /x/d.vhd /mnt/x -o ro,partition=2,dev,suid",
                Some("orlop mount --mount-codes -o ro,partition=2,dev,suid -- /x/d.vhd /mnt/x"),
            ),
            (
                "/sbin/mount.fuse.orlop /x/d.vhd /mnt/x -f -o rw",
                Some("orlop mount --mount-codes --fake -o rw /x/d.vhd /mnt/x"),
            ),
            ("/sbin/umount.fuse.orlop /mnt/x -l", Some("orlop umount /mnt/x --lazy")),
            ("orlop mount x.vhd -o ro", None),
            ("orlop mount x.vhd /mnt -o ro", None),
            ("orlop info x.vhd", None),
            ("orlop", None),
        ] {
            assert_eq!(told(line).as_deref(), ordinary, "{line}");
        }
    }
}
