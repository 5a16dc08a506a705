//! The words of `-o`, as fstab and mount(8) hand them on.
//!
//! Words that are for mount(8) itself, or say what is the case anyway, are passed over. Refuses
//! words it does not know: one that is misspelt must not mount a disk to write.

use std::path::PathBuf;

use super::{MountOptions, TransportArg};

/// What can be said, for the text of errors.
pub(super) const KNOWN: &str = "known are ro, rw, allow_other, partition=N, overlay=FILE|DIR|tmp, \
    nbd=SOCKET, passthrough, transport=auto|classic|uring, attach_loop, mount_fs=DIR, threads=N, \
    format=raw|vhd, force_rw_parent, allow_parent=DIR, allow_raw_parent, log=FILE; a comma cannot \
    be part of a value";

/// Words for mount(8), systemd and others, and words that say what is so anyway.
const PASSED_OVER: [&str; 32] = [
    "defaults",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "_netdev",
    "nofail",
    "rw",
    "suid",
    "nosuid",
    "dev",
    "nodev",
    "exec",
    "noexec",
    "async",
    "sync",
    "dirsync",
    "atime",
    "noatime",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
    "diratime",
    "nodiratime",
    "lazytime",
    "nolazytime",
    "iversion",
    "silent",
];
/// Of these, the words that are for the file system inside as well. It never has programs with
/// their owner's rights, nor devices.
const FOR_INSIDE: [&str; 14] = [
    "exec",
    "noexec",
    "async",
    "sync",
    "dirsync",
    "atime",
    "noatime",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
    "diratime",
    "nodiratime",
    "lazytime",
];
/// Words that mean `noexec` too (mount(8)).
const NOEXEC_TOO: [&str; 2] = ["user", "users"];
const PASSED_OVER_WITH_VALUE: [&str; 3] = ["user", "comment", "fsname"];

/// Takes over what the words say.
pub(super) fn apply(words: &str, into: &mut MountOptions) -> Result<(), String> {
    words.split(',').filter(|word| !word.is_empty()).try_for_each(|word| one(word, into))
}

fn one(word: &str, into: &mut MountOptions) -> Result<(), String> {
    let (key, value) = match word.split_once('=') {
        Some((key, value)) => (key, Some(value)),
        None => (word, None),
    };
    if key.starts_with("x-") || key.starts_with("X-") {
        return Ok(());
    }
    let needed =
        || value.filter(|v| !v.is_empty()).ok_or(format!("{key} needs a value: {key}=..."));
    let path = || needed().map(PathBuf::from);
    match (key, value) {
        ("ro", None) => into.read_only = true,
        ("allow_other", None) => into.allow_other = true,
        ("passthrough", None) => into.passthrough = true,
        ("attach_loop", None) => into.loop_device = true,
        ("force_rw_parent", None) => into.force_rw_parent = true,
        ("allow_raw_parent", None) => into.parents.allow_raw_parents(),
        ("partition", _) => into.partition = Some(number(key, needed()?)?),
        ("overlay", _) => into.overlay = Some(path()?),
        ("nbd", _) => into.nbd = Some(path()?),
        ("mount_fs", _) => into.mount_fs = Some(path()?),
        ("log", _) => into.log = Some(path()?),
        ("allow_parent", _) => into.parents.allow(path()?),
        ("format", _) => into.format = Some(needed()?.parse()?),
        ("threads", _) => {
            let threads = number(key, needed()?)?;
            into.threads = usize::try_from(threads).unwrap_or(usize::MAX);
            if !(1..=16).contains(&into.threads) {
                return Err(format!("threads={threads} is not in 1..=16"));
            }
        }
        ("transport", _) => into.transport = transport(needed()?)?,
        (_, None) if PASSED_OVER.contains(&key) => {
            if FOR_INSIDE.contains(&key) {
                into.file_system_options.push(key.to_owned());
            } else if NOEXEC_TOO.contains(&key) {
                into.file_system_options.push("noexec".to_owned());
            }
        }
        (_, Some(_)) if PASSED_OVER_WITH_VALUE.contains(&key) => {
            if NOEXEC_TOO.contains(&key) {
                into.file_system_options.push("noexec".to_owned());
            }
        }
        _ => return Err(format!("{word:?} means nothing here")),
    }
    Ok(())
}

fn number(key: &str, value: &str) -> Result<u32, String> {
    value.parse().map_err(|_| format!("{key}={value} is no whole number"))
}

fn transport(value: &str) -> Result<TransportArg, String> {
    match value {
        "auto" => Ok(TransportArg::Auto),
        "classic" => Ok(TransportArg::Classic),
        "uring" => Ok(TransportArg::Uring),
        _ => Err(format!("transport={value} is none of auto, classic, uring")),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::Parser;

    use super::apply;
    use crate::cli::mount::MountOptions;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: MountOptions,
    }

    fn with(words: &str) -> Result<MountOptions, String> {
        let mut options = Line::parse_from(["mount", "x.vhd", "/mnt"]).options;
        apply(words, &mut options).map(|()| options)
    }

    #[test]
    fn words_mean_what_the_options_mean() {
        let options = with(
            "ro,allow_other,partition=2,nbd=/s,mount_fs=/fs,attach_loop,threads=4,format=raw,\
             allow_parent=/a,allow_parent=/b,passthrough,log=/l",
        );
        let options = options.expect("all of them are known");
        assert!(options.read_only && options.allow_other && options.loop_device);
        assert!(options.passthrough);
        assert_eq!((options.partition, options.threads), (Some(2), 4));
        assert_eq!(options.mount_fs.as_deref(), Some(Path::new("/fs")));
        assert_eq!(options.overlay, None);
        assert_eq!(with("overlay=tmp").unwrap().overlay.as_deref(), Some(Path::new("tmp")));
    }

    #[test]
    fn what_fstab_says_to_others_is_passed_over() {
        let said = "defaults,rw,noauto,nofail,_netdev,user,user=me,nosuid,nodev,noexec,relatime,\
                    x-systemd.automount,x-systemd.idle-timeout=60,comment=mine,,dev,suid";
        let options = with(said).expect("all of them are passed over");
        assert!(!options.read_only);
        // The file system inside, if there is one, hears of them.
        assert_eq!(options.file_system_options, ["noexec", "noexec", "noexec", "relatime"]);
    }

    #[test]
    fn a_word_that_is_not_known_is_not_passed_over() {
        for (words, about) in [
            ("r0", "\"r0\" means nothing"),
            ("ro=1", "\"ro=1\" means nothing"),
            ("partition", "partition needs a value"),
            ("partition=x", "no whole number"),
            ("overlay=", "overlay needs a value"),
            ("threads=17", "1..=16"),
            ("transport=fast", "none of auto"),
            ("format=qcow2", "no format"),
        ] {
            let said = with(words).map(drop).expect_err(words);
            assert!(said.contains(about), "{words}: {said}");
        }
    }
}
