//! Becoming somebody with nothing: another user, no capabilities, no way to get any, no trace of a
//! guest's memory in a core dump.
//!
//! Refuses to be half another user: that either succeeds whole or is an error, whatever the mode.

use std::ffi::CString;
use std::fmt;
use std::io;
use std::str::FromStr;

use nix::unistd::{Gid, Uid};
use rustix::process::{DumpableBehavior, Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::{Mode, Report, SandboxError, refuse_company};

/// Capability numbers the kernel could have; the last known one is 40.
const CAPABILITIES_MAX: u32 = 64;

/// A user to become, as `NAME`, `NAME:GROUP`, or numbers instead of either.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    said: String,
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
}

/// Why a user is not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// No such name.
    #[error("there is no user named {0:?}")]
    NoUser(String),
    /// No such group.
    #[error("there is no group named {0:?}")]
    NoGroup(String),
    /// A number without an entry has no group of its own.
    #[error("user {0} has no entry that tells its group; say {0}:GROUP")]
    GroupUnknown(u32),
    /// The table of users cannot be read.
    #[error("the users of this system cannot be looked up: {0}")]
    Unreadable(String),
}

impl User {
    /// Its number, to give it what it must own, such as a socket.
    #[must_use]
    pub fn uid(&self) -> u32 {
        self.uid.as_raw()
    }

    /// The number of its group.
    #[must_use]
    pub fn gid(&self) -> u32 {
        self.gid.as_raw()
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.said)
    }
}

impl FromStr for User {
    type Err = UserError;

    fn from_str(said: &str) -> Result<Self, UserError> {
        let (name, group) = match said.split_once(':') {
            Some((name, group)) => (name, Some(group)),
            None => (said, None),
        };
        let unreadable = |error: nix::Error| UserError::Unreadable(error.to_string());
        let number = number_of(name);
        let entry = match number {
            Some(uid) => nix::unistd::User::from_uid(Uid::from_raw(uid)),
            None => nix::unistd::User::from_name(name),
        }
        .map_err(unreadable)?;
        let uid = match (&entry, number) {
            (Some(entry), _) => entry.uid,
            (None, Some(uid)) => Uid::from_raw(uid),
            (None, None) => return Err(UserError::NoUser(name.to_owned())),
        };
        let gid = match (group, &entry) {
            (Some(group), _) => group_of(group)?,
            (None, Some(entry)) => entry.gid,
            (None, None) => return Err(UserError::GroupUnknown(uid.as_raw())),
        };
        // A group that was said stands alone: who says it wants no others.
        let groups = match entry.and_then(|entry| CString::new(entry.name).ok()) {
            Some(name) if group.is_none() => {
                nix::unistd::getgrouplist(&name, gid).map_err(unreadable)?
            }
            _ => vec![gid],
        };
        Ok(Self { said: said.to_owned(), uid, gid, groups })
    }
}

/// A number, but not the one (-1) that means "leave as it is" to the kernel.
fn number_of(text: &str) -> Option<u32> {
    text.parse().ok().filter(|number| *number != u32::MAX)
}

fn group_of(text: &str) -> Result<Gid, UserError> {
    if let Some(number) = number_of(text) {
        return Ok(Gid::from_raw(number));
    }
    let entry = nix::unistd::Group::from_name(text)
        .map_err(|error| UserError::Unreadable(error.to_string()))?;
    entry.map(|entry| entry.gid).ok_or_else(|| UserError::NoGroup(text.to_owned()))
}

/// Becomes another user for good. Open descriptors stay open; every file opened later must be one
/// that user may open.
///
/// # Errors
/// When this process may not, or is not alone: threads would keep the old user's capabilities.
pub fn assume(user: &User) -> Result<(), SandboxError> {
    refuse_company("becoming another user")?;
    let failed = |what| {
        move |errno: nix::Error| SandboxError::User {
            user: user.to_string(),
            what,
            source: errno.into(),
        }
    };
    if is_wholly(user) {
        return Ok(());
    }
    keep_room_for_rings();
    empty_bounding_set().map_err(|source| SandboxError::User {
        user: user.to_string(),
        what: "giving up capabilities for good",
        source,
    })?;
    nix::unistd::setgroups(&user.groups).map_err(failed("taking its groups (must be root)"))?;
    nix::unistd::setresgid(user.gid, user.gid, user.gid).map_err(failed("taking its group"))?;
    nix::unistd::setresuid(user.uid, user.uid, user.uid).map_err(failed("taking its number"))
}

/// Whether the process is that user already and has no more rights than it.
fn is_wholly(user: &User) -> bool {
    let ids = nix::unistd::getresuid()
        .is_ok_and(|ids| [ids.real, ids.effective, ids.saved] == [user.uid; 3]);
    let groups = nix::unistd::getresgid()
        .is_ok_and(|ids| [ids.real, ids.effective, ids.saved] == [user.gid; 3]);
    ids && groups && capabilities().is_ok_and(|sets| sets.permitted.is_empty())
}

/// Gives up every privilege: no capability in any set, none to be had from any program, no core
/// dump, and no other process of the same user may look into this one's memory.
///
/// A root process stays the owner of root's files, but files of others refuse it like anybody.
///
/// # Errors
/// Other threads that run already; with [`Mode::Required`], what could not be given up.
pub fn drop_privileges(mode: Mode) -> Result<Report, SandboxError> {
    let mut report = Report::default();
    if mode == Mode::Off {
        return Ok(report);
    }
    refuse_company("dropping privileges")?;
    keep_room_for_rings();
    let steps: [(&'static str, io::Result<()>); 5] = [
        (
            "programs can be given privileges",
            rustix::thread::set_no_new_privs(true).map_err(Into::into),
        ),
        ("capabilities could be regained", empty_bounding_set()),
        ("capabilities are kept", drop_capabilities()),
        ("a core dump would hold guests' data", refuse_core_dumps()),
        (
            "programs of the same user can read this one's memory",
            rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
                .map_err(Into::into),
        ),
    ];
    for (possible, done) in steps {
        if let Err(error) = done {
            report.lack(possible, error.to_string());
        }
    }
    if report.lacks().is_empty() {
        report.hold("no privileges");
    }
    report.judged(mode)
}

fn capabilities() -> io::Result<CapabilitySets> {
    Ok(rustix::thread::capabilities(None)?)
}

/// Takes from the process what programs run by root would get. Without the right to do so there is
/// nothing to take: `no_new_privs` already keeps an unprivileged process as it is.
fn empty_bounding_set() -> io::Result<()> {
    if !capabilities()?.effective.contains(CapabilitySet::SETPCAP) {
        return Ok(());
    }
    for number in 0..CAPABILITIES_MAX {
        let one = CapabilitySet::from_bits_retain(1 << number);
        // The first number the kernel does not know ends its list.
        let Ok(is_set) = rustix::thread::capability_is_in_bounding_set(one) else { break };
        if is_set {
            rustix::thread::remove_capability_from_bounding_set(one)?;
        }
    }
    Ok(())
}

fn drop_capabilities() -> io::Result<()> {
    // Kernels before 4.3 have no ambient set to clear; emptying the others clears it as well.
    let _absent = rustix::thread::clear_ambient_capability_set();
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    rustix::thread::set_capabilities(None, sets)?;
    Ok(())
}

/// Memory registered with a ring counts as locked, for all processes of a user together, unless
/// the maker is privileged. Rings are made after this: a user's second server would go without.
fn keep_room_for_rings() {
    let all = Rlimit { current: None, maximum: None };
    if rustix::process::setrlimit(Resource::Memlock, all).is_err() {
        // As far as one may go; where that is too little, the host does without.
        let had = rustix::process::getrlimit(Resource::Memlock);
        let most = Rlimit { current: had.maximum, ..had };
        let _as_before = rustix::process::setrlimit(Resource::Memlock, most);
    }
}

fn refuse_core_dumps() -> io::Result<()> {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    Ok(rustix::process::setrlimit(Resource::Core, none)?)
}

#[cfg(test)]
mod tests {
    use super::{User, UserError};

    #[test]
    fn a_user_is_found_by_name_and_by_number() {
        let root: User = "root".parse().unwrap();
        assert_eq!((root.uid(), root.gid()), (0, 0));
        let by_number: User = "0:12345".parse().unwrap();
        assert_eq!((by_number.uid(), by_number.gid()), (0, 12345));
        assert_eq!(by_number.groups.len(), 1, "a group that was said stands alone");
        assert_eq!(by_number.to_string(), "0:12345");
    }

    #[test]
    fn who_is_not_there_is_named() {
        let unknown = "no-such-user".parse::<User>().unwrap_err();
        assert_eq!(unknown, UserError::NoUser("no-such-user".to_owned()));
        let group = "root:no-such-group".parse::<User>().unwrap_err();
        assert_eq!(group, UserError::NoGroup("no-such-group".to_owned()));
        assert_eq!("2000111222".parse::<User>(), Err(UserError::GroupUnknown(2_000_111_222)));
        // The kernel would take it for "leave everything as it is".
        assert!("4294967295:0".parse::<User>().is_err());
        assert!("".parse::<User>().is_err());
    }
}
