//! Makes the ring: the best flags the kernel takes, registered files and memory, and the list of
//! what may ever go through it.
//!
//! Refuses a kernel that lacks an operation the host needs; the caller takes threads then.

use std::fmt::Write as _;
use std::io;
use std::iter::successors;

use io_uring::register::{Probe, Restriction};
use io_uring::squeue::EntryMarker;
use io_uring::{Builder, IoUring, opcode, squeue};

use super::files::open_files_limit;
use super::memory::Memory;
use super::uring::ring::Ring;

/// Entries of the submission queue.
const SUBMISSIONS: u32 = 512;
/// Entries of the completion queue: at least four times the submissions, so that a burst of
/// completions does not overflow while the shard is busy.
const COMPLETIONS: u32 = 4096;

/// Places in the table of registered files: at most so many, and as RLIMIT_NOFILE allows. The
/// kernel takes 8 bytes for each, or 16 if it is old; we take none before one is used.
const SLOTS_MOST: u32 = 1 << 16;
/// With fewer nothing can be done. A kernel that has less memory, or allows less, is
/// asked for half, and so on.
const SLOTS_LEAST: u32 = 256;

/// IORING_REGISTER_FILES_UPDATE: the one registration allowed after the start.
const REGISTER_FILES_UPDATE: u8 = 6;

/// A ring ready for use.
pub(super) struct Setup {
    pub(super) ring: Ring,
    /// Size of the registered-file table, all empty.
    pub(super) slots: u32,
    /// Whether region 0 is registered as buffer 0.
    pub(super) registered_memory: bool,
    /// What was achieved, for the log.
    pub(super) description: String,
}

/// What may go through the ring.
const OPERATIONS: [u8; 11] = [
    opcode::Read::CODE,
    opcode::ReadFixed::CODE,
    opcode::Write::CODE,
    opcode::WriteFixed::CODE,
    opcode::Writev::CODE,
    opcode::Fsync::CODE,
    opcode::Fallocate::CODE,
    opcode::Recv::CODE,
    opcode::SendMsg::CODE,
    opcode::AsyncCancel::CODE,
    opcode::PollAdd::CODE,
];

/// Makes a ring for the calling thread; one that takes commands, if that is wanted and the kernel
/// knows them.
pub(super) fn build(memory: &Memory, commands: bool) -> io::Result<Setup> {
    let (ring, mut description) = match commands.then(create) {
        Some(Ok((ring, description))) => (Ring::Wide(ring), description + ", commands"),
        Some(Err(_)) | None => create().map(|(ring, told)| (Ring::Plain(ring), told))?,
    };
    let submitter = ring.submitter();
    let params = ring.params();
    let unsupported = |what: &str| io::Error::new(io::ErrorKind::Unsupported, what.to_owned());
    if !params.is_feature_ext_arg() || !params.is_feature_nodrop() {
        return Err(unsupported("kernel too old for io_uring waits with timeouts"));
    }
    let mut probe = Probe::new();
    submitter.register_probe(&mut probe)?;
    if let Some(missing) = OPERATIONS.iter().find(|code| !probe.is_supported(**code)) {
        return Err(unsupported(&format!("io_uring lacks operation {missing}")));
    }
    let slots = register_files(&ring)?;
    let registered_memory = super::uring::ring::register_memory(&ring, memory).is_ok();
    if !registered_memory {
        description.push_str(", memory not registered");
    }
    // A ring that may do anything would be a way around every filter of system calls.
    restrict(&ring)
        .map_err(|error| unsupported(&format!("io_uring cannot be restricted: {error}")))?;
    submitter.register_enable_rings()?;
    let _infallible = write!(description, ", {slots} file slots");
    Ok(Setup { ring, slots, registered_memory, description })
}

/// Tries the flags from best to plain.
fn create<S: EntryMarker>() -> io::Result<(IoUring<S>, String)> {
    let common = |builder: &mut Builder<S>| {
        builder.setup_cqsize(COMPLETIONS).setup_r_disabled().dontfork();
    };
    let mut best = IoUring::<S>::builder();
    common(&mut best);
    best.setup_submit_all().setup_single_issuer().setup_defer_taskrun();
    best.setup_taskrun_flag();
    if let Ok(ring) = best.build(SUBMISSIONS) {
        return Ok((ring, "single issuer, deferred task work".to_owned()));
    }
    let mut good = IoUring::<S>::builder();
    common(&mut good);
    good.setup_submit_all().setup_coop_taskrun().setup_taskrun_flag();
    if let Ok(ring) = good.build(SUBMISSIONS) {
        return Ok((ring, "cooperative task work".to_owned()));
    }
    let mut plain = IoUring::<S>::builder();
    common(&mut plain);
    Ok((plain.build(SUBMISSIONS)?, "plain".to_owned()))
}

fn register_files(ring: &Ring) -> io::Result<u32> {
    let mut failure = None;
    let most = u32::try_from(open_files_limit()).map_or(SLOTS_MOST, |limit| limit.min(SLOTS_MOST));
    let half = |slots: &u32| Some(slots / 2).filter(|slots| *slots >= SLOTS_LEAST);
    for slots in successors(Some(most), half) {
        let sparse = ring.submitter().register_files_sparse(slots);
        // Kernels before 5.19 know no sparse table, but take one full of empty entries.
        let empty = || ring.submitter().register_files(&vec![-1; slots as usize]);
        match sparse.or_else(|_| empty()) {
            Ok(()) => return Ok(slots),
            Err(error) => failure = Some(error),
        }
    }
    Err(failure.unwrap_or_else(|| io::ErrorKind::Unsupported.into()))
}

fn restrict(ring: &Ring) -> io::Result<()> {
    let fixed = squeue::Flags::FIXED_FILE.bits();
    let skip = ring.params().is_feature_skip_cqe_on_success();
    let skip = if skip { squeue::Flags::SKIP_SUCCESS.bits() } else { 0 };
    let mut allowed: Vec<_> = OPERATIONS.iter().map(|code| Restriction::sqe_op(*code)).collect();
    if ring.takes_commands() {
        allowed.push(Restriction::sqe_op(opcode::UringCmd80::CODE));
    }
    allowed.push(Restriction::register_op(REGISTER_FILES_UPDATE));
    allowed.push(Restriction::sqe_flags_allowed(fixed | skip));
    allowed.push(Restriction::sqe_flags_required(fixed));
    ring.submitter().register_restrictions(&mut allowed)
}
