//! The host on io_uring: one ring, owned by the shard's thread.
//!
//! Refuses everything but reads, writes, fsync, fallocate, recv, sendmsg, poll and cancel on
//! registered files, and where mounts are served commands: the ring itself is told so
//! (restrictions), since seccomp does not see what goes through.
//!
//! Memory: each operation in flight has a slot that owns, lends or keeps alive every byte the
//! kernel was told about, until its completion; the number of the slot is the user data. Slots are
//! emptied in one place, on a completion.
#![allow(unsafe_code)]

mod command;
mod ending;
mod enter;
mod inlets;
mod lending;
mod lone;
mod polls;
pub(super) mod ring;
mod sockets;

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use io_uring::types::{Fixed, FsyncFlags};
use io_uring::{opcode, squeue};
use nix::libc::{RWF_DSYNC, iovec, msghdr};
use rustix::event::EventfdFlags;
use rustix::io::Errno;

use super::Counters;
use super::blocking::{self, SLICES_MAX, erase_mode};
use super::event::{Event, ReceiveInto, SendList};
use super::files::{Descriptors, FileTable, OutOfFiles, kept_of};
use super::mapped::{Leftovers, Mapped};
use super::memory::Memory;
use super::ring_setup::{self, Setup};
use super::slab::{Numbers, Slab};
use super::task::{Call, Task, TaskName, Via, Work};
use super::wake::Waker;
use crate::engine::effect::{FileId, IoError, Outcome};
use crate::engine::units::ByteLen;
use lone::Lone;

use command::SUBMISSION_BYTES;
use inlets::Inlet;
use ring::Ring;

pub(super) use command::{ENTRY_BLOCK_BYTES, queues};

/// The longest single transfer asked of the kernel, which itself stops just below 2 GiB.
const TRANSFER_MAX: usize = 1 << 30;
/// The host on io_uring. See [`super::Host`] for the calls.
pub struct Uring {
    ring: Ring,
    memory: Arc<Memory>,
    registered_memory: bool,
    files: FileTable,
    /// Registered-file slots of each file: itself, and its cached twin.
    file_slots: Vec<[Option<Fixed>; 2]>,
    /// Size of the table of registered files.
    slots: u32,
    free_slots: Numbers,
    operations: Slab<Operation>,
    sockets: Slab<Socket>,
    polls: Slab<Poll>,
    inlets: Slab<Inlet>,
    /// Entries the submission queue had no room for.
    backlog: VecDeque<squeue::Entry>,
    command_backlog: VecDeque<[u8; SUBMISSION_BYTES]>,
    lone: Lone,
    mapped: Mapped,
    /// Events that happened and wait to be told.
    ready: Vec<Event>,
    /// Numbers of sockets whose `Closed` went out with the last batch. Whoever got it may still be
    /// looking at that batch, so they are given to others only from the next wait on.
    told_closed: Vec<u32>,
    completed: Vec<(u64, i32)>,
    waker: Waker,
    wake_slot: Fixed,
    wake_armed: bool,
    waiting_tasks: usize,
    /// Cancels in flight: operations, but nobody's.
    cancels: usize,
    /// Polls and commands in flight: nothing that ends by itself.
    polling: usize,
    /// Quiet sends whose end was not seen yet.
    quiet: Vec<u32>,
    /// Whether the kernel can be told to report failures only.
    can_skip: bool,
    /// The next wait need not end because quiet sends are over.
    may_defer: bool,
    counters: Counters,
}

/// An operation in flight and the memory it names.
enum Operation {
    File {
        task: Task,
        /// Names the slices of a gathered write until it completes.
        slices: Vec<iovec>,
    },
    Receive {
        socket: u32,
        into: ReceiveInto,
        received: u32,
    },
    Send {
        socket: u32,
        list: SendList,
        sent: ByteLen,
        message: Box<Message>,
        /// How often the kernel had been called when it was issued.
        since: u64,
    },
    /// The counter read from the waker's eventfd.
    Wake {
        _counter: Vec<u8>,
    },
    Poll {
        poll: u32,
    },
    Command {
        inlet: u32,
        entry: u32,
    },
    Cancel,
}

/// A descriptor that is watched.
struct Poll {
    /// Kept open for as long as the ring may look at it.
    _fd: OwnedFd,
    slot: Fixed,
    /// The poll in flight.
    waiting: Option<u32>,
    closing: bool,
}

/// What sendmsg is told; it stays at its address while in flight.
struct Message {
    header: msghdr,
    slices: Vec<iovec>,
}

struct Socket {
    fd: OwnedFd,
    slot: Fixed,
    receiving: Option<u32>,
    sending: Option<u32>,
    closing: bool,
    /// Kept between sends to spare allocations.
    message: Option<Box<Message>>,
    /// The flag that asks for a whole payload, if the socket understands it.
    whole: i32,
    takes: Takes,
    /// Calls outside the ring return at once when it is full.
    waits_not: bool,
}

/// How a socket took the last send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Takes {
    /// While it was submitted.
    AtOnce,
    /// When its peer had made room.
    Later,
}

impl Uring {
    pub(super) fn new(memory: Arc<Memory>, commands: bool) -> io::Result<(Self, String)> {
        let waker = Waker::new(EventfdFlags::empty())?;
        let Setup { ring, slots, registered_memory, description } =
            ring_setup::build(&memory, commands)?;
        let mut free_slots = Numbers::below(slots);
        let wake_slot = Fixed(free_slots.take().unwrap_or(0));
        ring.submitter().register_files_update(wake_slot.0, &[waker.fd().as_raw_fd()])?;
        let can_skip = ring.params().is_feature_skip_cqe_on_success();
        let host = Self {
            ring,
            memory,
            registered_memory,
            files: FileTable::new(),
            file_slots: Vec::new(),
            slots,
            free_slots,
            operations: Slab::new(),
            sockets: Slab::new(),
            polls: Slab::new(),
            inlets: Slab::new(),
            backlog: VecDeque::new(),
            command_backlog: VecDeque::new(),
            lone: Lone::default(),
            mapped: Mapped::default(),
            ready: Vec::new(),
            told_closed: Vec::new(),
            completed: Vec::new(),
            waker,
            wake_slot,
            wake_armed: false,
            waiting_tasks: 0,
            cancels: 0,
            polling: 0,
            quiet: Vec::new(),
            can_skip,
            may_defer: false,
            counters: Counters::default(),
        };
        Ok((host, description))
    }

    pub(super) fn add_file(&mut self, file: Descriptors) -> io::Result<FileId> {
        let kept = kept_of(self.slots.into());
        if self.free_slots.left() as u64 <= kept {
            return Err(OutOfFiles::Slots { slots: self.slots, kept }.into());
        }
        let id = self.files.add(file)?;
        let Some(file) = self.files.file(id).map(Arc::clone) else {
            return Err(Errno::BADF.into());
        };
        let mut slots = [None, None];
        for (slot, fd) in slots.iter_mut().zip([Some(file.fd()), file.cached()]) {
            let Some(fd) = fd else { continue };
            match self.take_slot(fd.as_raw_fd()) {
                Ok(taken) => *slot = Some(taken),
                Err(error) => {
                    self.files.remove(id);
                    slots.into_iter().flatten().for_each(|taken| self.give_slot(taken));
                    return Err(error);
                }
            }
        }
        let index = usize::from(id.0);
        if index >= self.file_slots.len() {
            self.file_slots.resize(index + 1, [None, None]);
        }
        self.file_slots[index] = slots;
        Ok(id)
    }

    pub(super) fn remove_file(&mut self, file: FileId) {
        self.mapped.forget(file);
        self.files.remove(file);
        let Some(slots) = self.file_slots.get_mut(usize::from(file.0)) else { return };
        let slots = std::mem::take(slots);
        slots.into_iter().flatten().for_each(|slot| self.give_slot(slot));
    }

    pub(super) fn take_leftovers(&mut self) -> Leftovers {
        self.mapped.take_leftovers()
    }

    fn take_slot(&mut self, fd: i32) -> io::Result<Fixed> {
        let slot = self.free_slots.take().ok_or(Errno::MFILE)?;
        if let Err(error) = self.ring.submitter().register_files_update(slot, &[fd]) {
            self.free_slots.give(slot);
            return Err(error);
        }
        Ok(Fixed(slot))
    }

    fn give_slot(&mut self, slot: Fixed) {
        // Entries that name the slot and were not submitted yet must not meet the next file in it.
        let _kept_on_failure = self.submit_all();
        if self.ring.submitter().register_files_update(slot.0, &[-1]).is_ok() {
            self.free_slots.give(slot.0);
        }
    }

    pub(super) fn start(&mut self, name: TaskName, work: Work) {
        self.counters.effects += 1;
        let made = match self.files.file(name.file) {
            None => Err(IoError(Errno::BADF.raw_os_error())),
            Some(file) => Task::new(name, Arc::clone(file), &self.memory, work),
        };
        match made {
            Err(error) => self.tell(name, Outcome::Failed(error)),
            Ok(task) => match self.files.admit(task) {
                Some(task) => self.begin(task),
                None => self.waiting_tasks += 1,
            },
        }
    }

    fn tell(&mut self, name: TaskName, outcome: Outcome) {
        self.ready.push(Event::Effect { tag: name.tag, id: name.id, outcome });
    }

    /// Starts a task whose turn has come, and those whose turn comes when it is over at once.
    fn begin(&mut self, task: Task) {
        let mut started = vec![task];
        while let Some(mut task) = started.pop() {
            let mut outcome = task.start();
            if outcome.is_none() {
                outcome = self.mapped.serve(&mut task, &self.files);
                self.counters.mapped_reads += u64::from(outcome.is_some());
            }
            if outcome.is_none() && task.is_inline() {
                self.counters.inline_writes += 1;
                outcome = Some(blocking::run(&mut task));
            }
            match outcome {
                Some(outcome) => {
                    self.mapped.after(&task);
                    let freed = self.files.release(&task);
                    self.waiting_tasks -= freed.len();
                    started.extend(freed);
                    self.tell(task.name(), outcome);
                }
                None => {
                    let operation = Operation::File { task, slices: Vec::new() };
                    let index = self.operations.insert(operation);
                    self.issue_first(index);
                }
            }
        }
    }

    fn issue_file(&mut self, index: u32) {
        let Some(Operation::File { task, slices }) = self.operations.of_mut(index) else { return };
        let fds = self.file_slots.get(usize::from(task.file_id().0)).copied().unwrap_or_default();
        let registered = self.registered_memory && task.is_registered();
        // A file without a slot cannot be: `start` found it open. Slot numbers beyond the table
        // would fail with EBADF.
        let main = fds[0].unwrap_or(Fixed(u32::MAX));
        let entry = match task.call() {
            Call::Read { at } => {
                let into = task.read_into();
                let (bytes, len) = (into.as_mut_ptr(), into.len().min(TRANSFER_MAX) as u32);
                if registered {
                    opcode::ReadFixed::new(main, bytes, len, 0).offset(at.get()).build()
                } else {
                    opcode::Read::new(main, bytes, len).offset(at.get()).build()
                }
            }
            Call::Write { at, via, durable } => {
                let fd = if via == Via::Main { Some(main) } else { fds[1] };
                let fd = fd.unwrap_or(Fixed(u32::MAX));
                let flags = if durable { RWF_DSYNC } else { 0 };
                slices.clear();
                task.write_from(SLICES_MAX, &mut |bytes| slices.push(slice_of(bytes)));
                write_entry(fd, at.get(), slices, flags, registered)
            }
            Call::Erase { how, at, len } => opcode::Fallocate::new(main, len.get())
                .offset(at.get())
                .mode(erase_mode(how).bits() as i32)
                .build(),
            // Not the ring's: `begin` does it at once.
            Call::SetLength { .. } | Call::Extents { .. } => opcode::Nop::new().build(),
            Call::Sync => opcode::Fsync::new(main).flags(FsyncFlags::DATASYNC).build(),
        };
        self.push(entry, index);
    }

    fn cancel(&mut self, operation: u32) {
        self.cancels += 1;
        let index = self.operations.insert(Operation::Cancel);
        // The flag names no file here; the restrictions ask for it on every entry.
        let entry = opcode::AsyncCancel::new(u64::from(operation)).build();
        self.push(entry.flags(squeue::Flags::FIXED_FILE), index);
    }

    pub(super) fn wake_handle(&self) -> Waker {
        self.waker.clone()
    }

    pub(super) fn in_flight(&self) -> usize {
        let counts = |event: &&Event| {
            !matches!(event, Event::Woken | Event::Readable { .. } | Event::Asked { .. })
        };
        let told = self.ready.iter().filter(counts).count();
        let ours = usize::from(self.wake_armed) + self.cancels + self.polling;
        self.operations.len() + self.waiting_tasks + told - ours
    }

    pub(super) const fn counters(&self) -> Counters {
        self.counters
    }

    fn push(&mut self, entry: squeue::Entry, index: u32) {
        let entry = entry.user_data(u64::from(index));
        self.backlog.push_back(entry);
        self.fill_queue();
    }

    fn fill_queue(&mut self) {
        while let Some(entry) = self.backlog.front() {
            // SAFETY: every pointer in the entry leads to memory that the operation's slot owns,
            // lends (I6) or keeps at its address; the slot is emptied only on its completion, or
            // leaked when the ring breaks (`Drop`).
            if !unsafe { self.ring.push(entry) } {
                return;
            }
            self.backlog.pop_front();
        }
        while let Some(command) = self.command_backlog.front() {
            // SAFETY: a command leads to nothing but what its inlet was lent and keeps (I6), and
            // to the list of that, which the inlet keeps too; it goes only when the kernel has
            // none of its entries, or is leaked.
            if !unsafe { self.ring.push_command(command) } {
                return;
            }
            self.command_backlog.pop_front();
        }
    }

    fn has_backlog(&self) -> bool {
        !self.backlog.is_empty() || !self.command_backlog.is_empty()
    }

    fn push_command(&mut self, command: &[u8; SUBMISSION_BYTES]) {
        // SAFETY: as in `fill_queue`.
        if self.has_backlog() || !unsafe { self.ring.push_command(command) } {
            self.command_backlog.push_back(*command);
            self.fill_queue();
        }
    }

    fn arm_wake(&mut self) {
        if self.wake_armed {
            return;
        }
        let mut counter = vec![0; 8];
        let entry = opcode::Read::new(self.wake_slot, counter.as_mut_ptr(), 8).build();
        let index = self.operations.insert(Operation::Wake { _counter: counter });
        self.wake_armed = true;
        self.push(entry, index);
    }

    fn reap_into_list(&mut self) {
        let entries = self.ring.completion();
        self.completed.extend(entries.map(|entry| (entry.user_data(), entry.result())));
    }

    fn reap(&mut self) {
        self.reap_into_list();
        let mut completed = std::mem::take(&mut self.completed);
        for (user_data, result) in completed.drain(..) {
            let result = usize::try_from(result).map_err(|_| IoError(-result));
            self.completion(user_data as u32, result);
        }
        // Closing a socket may have reaped more meanwhile.
        if self.completed.is_empty() {
            self.completed = completed;
        } else {
            self.reap();
        }
    }

    fn completion(&mut self, index: u32, result: Result<usize, IoError>) {
        match self.operations.of_mut(index) {
            Some(Operation::File { task, .. }) => {
                let outcome = task.result(result);
                self.file_moved(index, outcome);
            }
            Some(Operation::Receive { .. }) => self.received(index, result),
            Some(Operation::Send { .. }) => self.sent(index, result),
            Some(Operation::Wake { .. }) => {
                self.operations.remove(index);
                self.wake_armed = false;
                if result.is_ok() {
                    self.ready.push(Event::Woken);
                }
            }
            Some(Operation::Poll { .. }) => self.polled(index),
            Some(Operation::Command { .. }) => self.commanded(index, result),
            Some(Operation::Cancel) => {
                self.cancels -= 1;
                self.operations.remove(index);
            }
            None => debug_assert!(false, "completion of nothing: {index}"),
        }
    }

    fn file_moved(&mut self, index: u32, outcome: Option<Outcome>) {
        let Some(outcome) = outcome else {
            self.issue_file(index);
            return;
        };
        if let Some(Operation::File { task, .. }) = self.operations.remove(index) {
            self.mapped.after(&task);
            let freed = self.files.release(&task);
            self.waiting_tasks -= freed.len();
            self.tell(task.name(), outcome);
            freed.into_iter().for_each(|task| self.begin(task));
        }
    }
}

impl fmt::Debug for Uring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Uring")
            .field("in_flight", &self.operations.len())
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

impl Message {
    fn new() -> Box<Self> {
        // SAFETY: all zeroes is the value msghdr is made to start from: no name, no control data,
        // no slices, no flags.
        let header = unsafe { std::mem::zeroed() };
        Box::new(Self { header, slices: Vec::new() })
    }
}

/// The same memory in the kernel's words. Writing calls only read through it.
fn slice_of(bytes: &[u8]) -> iovec {
    iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() }
}

fn write_entry(
    fd: Fixed,
    at: u64,
    slices: &[iovec],
    flags: i32,
    registered: bool,
) -> squeue::Entry {
    if let [one] = slices {
        let (bytes, len) = (one.iov_base.cast(), one.iov_len.min(TRANSFER_MAX) as u32);
        return if registered {
            opcode::WriteFixed::new(fd, bytes, len, 0).offset(at).rw_flags(flags).build()
        } else {
            opcode::Write::new(fd, bytes, len).offset(at).rw_flags(flags).build()
        };
    }
    let count = slices.len() as u32;
    opcode::Writev::new(fd, slices.as_ptr(), count).offset(at).rw_flags(flags).build()
}

/// Interruptions, timeouts and a full completion queue are no failures of an enter: whoever called
/// looks at the completions next.
pub(super) fn endured(entered: io::Result<usize>) -> io::Result<()> {
    match entered {
        Ok(_) => Ok(()),
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::INTR | Errno::TIME | Errno::BUSY | Errno::AGAIN) => Ok(()),
            _ => Err(error),
        },
    }
}
