//! Which system calls the process may still make, by seccomp, for all of its threads.
//!
//! Three answers, in three filters; of several, the kernel takes the strictest.
//!
//! * A call no library makes by itself (running programs, mounting, tracing, loading code into the
//!   kernel) kills the process: it has been taken over.
//! * Any other call that is not on the list fails with EPERM. It is as harmless to the outside as
//!   if it had killed; but a new version of a C library may try one and go on without, and a server
//!   that holds what guests have not flushed must not die of an update.
//! * `clone3` fails with ENOSYS: a filter cannot see its arguments, and the C library then makes
//!   its threads with `clone`, where it can.
//!
//! Refuses to look at paths and addresses, which a filter cannot: that is Landlock's.

use std::collections::BTreeMap;

use nix::libc::{self, c_int, c_long};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::list::{DEADLY, PLAIN};
use super::{Mode, Report, SandboxError};

const ANY_CALL: &str = "any system call can be made";

/// The one registration a ring takes after its start: exchanging files of its table.
const REGISTER_FILES_UPDATE: u64 = 6;

/// The name glibc gives its memory: PR_SET_VMA of prctl.
const SET_VMA: u64 = 0x5356_4d41;

/// What kind of process makes the calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Calls {
    /// Whether shards use io_uring. Without, nothing of it is allowed.
    pub ring: bool,
}

type Rules = BTreeMap<c_long, Vec<SeccompRule>>;
type Built<T> = Result<T, seccompiler::BackendError>;

/// Leaves all threads of the process, and those it will start, nothing but the calls of a server.
///
/// To be called when every ring and every listener exists: neither can be made afterwards.
///
/// # Errors
/// With [`Mode::Required`], what the kernel lacks.
pub fn confine_calls(calls: Calls, mode: Mode) -> Result<Report, SandboxError> {
    let mut report = Report::default();
    if mode == Mode::Off {
        return Ok(report);
    }
    match install(calls) {
        Ok(()) => report.hold("system calls by seccomp"),
        Err(error) => report.lack(ANY_CALL, reason(&error)),
    }
    report.judged(mode)
}

fn reason(error: &seccompiler::Error) -> String {
    match error {
        seccompiler::Error::Backend(error) => format!("no filter for this machine: {error}"),
        seccompiler::Error::Seccomp(error) => {
            format!("seccomp filters: {error}; the kernel lacks them, or forbids them here")
        }
        seccompiler::Error::ThreadSync(thread) => {
            format!("thread {thread} has a seccomp filter of its own")
        }
        other => other.to_string(),
    }
}

fn install(calls: Calls) -> Result<(), seccompiler::Error> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let programs = programs(calls, arch)?;
    for program in &programs {
        seccompiler::apply_filter_all_threads(program)?;
    }
    Ok(())
}

/// The filters in the order they are installed: the last one would keep out any later one.
fn programs(calls: Calls, arch: TargetArch) -> Built<[BpfProgram; 3]> {
    let absent = SeccompAction::Errno(libc::ENOSYS as u32);
    let refused = SeccompAction::Errno(libc::EPERM as u32);
    let always = |numbers: &[&[c_long]]| -> Rules {
        numbers.concat().into_iter().map(|number| (number, Vec::new())).collect()
    };
    let filter = |rules, miss, hit| SeccompFilter::new(rules, miss, hit, arch)?.try_into();
    let mut allowed = always(PLAIN);
    allowed.extend(conditional(calls)?);
    Ok([
        filter(always(&[&[libc::SYS_clone3]]), SeccompAction::Allow, absent)?,
        filter(always(DEADLY), SeccompAction::Allow, SeccompAction::KillProcess)?,
        filter(allowed, refused, SeccompAction::Allow)?,
    ])
}

/// An argument of a call, all of its 64 bits, compared.
fn argument(index: u8, op: SeccompCmpOp, value: u64) -> Built<SeccompCondition> {
    SeccompCondition::new(index, SeccompCmpArgLen::Qword, op, value)
}

/// The lower 32 bits of an argument, compared: what the kernel looks at for a C `int`.
fn int(index: u8, op: SeccompCmpOp, value: u64) -> Built<SeccompCondition> {
    SeccompCondition::new(index, SeccompCmpArgLen::Dword, op, value)
}

/// Calls allowed with certain arguments only.
fn conditional(calls: Calls) -> Built<Rules> {
    let one = |condition: Built<SeccompCondition>| SeccompRule::new(vec![condition?]);
    let any_of = |index, values: &[u64]| -> Built<Vec<SeccompRule>> {
        values.iter().map(|value| one(int(index, SeccompCmpOp::Eq, *value))).collect()
    };
    let bits = |flags: c_int| u64::from(flags.cast_unsigned());
    // Memory that is data never becomes code.
    let no_code = SeccompCmpOp::MaskedEq(bits(libc::PROT_EXEC));
    let mut rules = Rules::from([
        (libc::SYS_mmap, vec![one(argument(2, no_code.clone(), 0))?]),
        (libc::SYS_mprotect, vec![one(argument(2, no_code, 0))?]),
        (libc::SYS_clone, vec![one(a_thread())?]),
        // The end of an abort: a signal to oneself.
        (libc::SYS_tgkill, any_of(0, &[u64::from(std::process::id())])?),
        // Names of threads and of memory.
        (libc::SYS_prctl, any_of(0, &[bits(libc::PR_SET_NAME), bits(libc::PR_GET_NAME), SET_VMA])?),
        // Asking for limits; setting them would lift the one on core dumps.
        (libc::SYS_prlimit64, vec![one(argument(2, SeccompCmpOp::Eq, 0))?]),
        // Between our own threads, for TLS.
        (libc::SYS_socketpair, any_of(0, &[bits(libc::AF_UNIX)])?),
        (libc::SYS_ioctl, any_of(1, CONTROLS)?),
    ]);
    if calls.ring {
        rules.insert(libc::SYS_io_uring_enter, Vec::new());
        rules.insert(libc::SYS_io_uring_register, any_of(1, &[REGISTER_FILES_UPDATE])?);
    }
    Ok(rules)
}

/// What is asked of descriptors beside `fcntl`: by number, since C libraries differ in the type.
const CONTROLS: &[u64] = &[
    0x5421,      // FIONBIO: not to wait
    0x5401,      // TCGETS: is it a terminal
    0x802c_542a, // TCGETS2: the same, asked by newer libraries
    0x5413,      // TIOCGWINSZ: how wide it is
    0x1268,      // BLKSSZGET: bytes of a device's sector
    0x8008_1272, // BLKGETSIZE64: bytes of a device
];

/// A new thread of this process, in no namespace of its own.
fn a_thread() -> Built<SeccompCondition> {
    let namespaces = libc::CLONE_NEWNS
        | libc::CLONE_NEWCGROUP
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET;
    let thread = libc::CLONE_THREAD;
    let looked_at = u64::from((namespaces | thread).cast_unsigned());
    argument(0, SeccompCmpOp::MaskedEq(looked_at), u64::from(thread.cast_unsigned()))
}

#[cfg(test)]
mod tests {
    use seccompiler::TargetArch;

    use super::{Calls, DEADLY, PLAIN, conditional, programs};

    #[test]
    fn no_call_is_both_allowed_and_deadly() {
        let rules = conditional(Calls { ring: true }).unwrap();
        let deadly = DEADLY.concat();
        let plain = PLAIN.concat();
        for number in &deadly {
            assert!(!plain.contains(number) && !rules.contains_key(number), "call {number}");
        }
        for number in rules.keys() {
            assert!(!plain.contains(number), "call {number}: its conditions would mean nothing");
        }
    }

    #[test]
    fn every_machine_named_has_its_filters() {
        for arch in [TargetArch::x86_64, TargetArch::aarch64] {
            let all = programs(Calls { ring: true }, arch).unwrap();
            // What the kernel takes at most, less room for the filters of a container around us.
            assert!(all.iter().all(|program| program.len() < 2048), "{}", all[2].len());
        }
    }
}
