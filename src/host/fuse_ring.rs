//! Rings that carry FUSE requests: entries registered with each of the kernel's queues, requests
//! told as lent bytes, answers brought back from any thread.
//!
//! Refuses to know what a request means, and everything but those two commands and its own wake-up:
//! the rings are told so (restrictions). A ring serves one connection and lives as long as it.
//!
//! I6 here: an entry's memory belongs to the kernel from a submission to its completion, then to
//! this thread and the answer, then to the kernel again. `blocks` holds the tokens that say so.
#![allow(unsafe_code)]

mod blocks;
mod command;
mod home;

use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use io_uring::register::Restriction;
use io_uring::squeue::{Entry128, Flags};
use io_uring::types::Fixed;
use io_uring::{IoUring, opcode};
use rustix::event::{EventfdFlags, PollFlags};
use rustix::io::Errno;
use rustix::thread::CpuSet;

use blocks::{Block, Lent, Payload, Tokens};
use command::{QueueNo, Request};
use home::{Body, Done, Home};

use super::uring::endured;
use super::wake::Waker;

pub use home::Answer;

/// Registered files: the connection, and the wake-up's counter.
const FUSE: u32 = 0;
const CONNECTION: Fixed = Fixed(FUSE);
const BELL: Fixed = Fixed(1);
/// User data of the wake-up and of the watch for the connection's end; entries have their index.
const WAKE: u64 = u64::MAX;
const END: u64 = u64::MAX - 1;
/// Entries of a queue, from the least to the most. Few hold up requests that do not wait for the
/// same disk; many cost memory as soon as that many are under way.
pub const DEPTHS: RangeInclusive<u16> = 4..=32;
/// Entries of one ring at most.
const ENTRIES_MAX: usize = 4096;
/// Where the system says which processors may ever be there.
const POSSIBLE: &str = "/sys/devices/system/cpu/possible";

/// A request: lent bytes.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// The kernel's header of it, with room behind.
    pub head: &'a [u8],
    /// What belongs to its operation, with room behind.
    pub operation: &'a [u8],
    /// What came along.
    pub payload: &'a [u8],
}

/// Whoever answers.
pub trait Serve: Send + Sync + 'static {
    /// Answers a request now, or later and from any thread. Must not wait.
    fn serve(&self, frame: Frame<'_>, answer: Answer);

    /// The ring cannot go on: whoever waits for an answer would wait for ever.
    fn broken(&self, why: &io::Error);
}

/// How rings are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Rings, each with a thread of its own; at most one for each queue is made.
    pub rings: u16,
    /// Entries of all queues together. Each gets its share, within [`DEPTHS`].
    pub entries: u16,
    /// Bytes each entry has room for.
    pub payload_bytes: u32,
    /// Each thread stays on the processor of its first queue.
    pub pinned: bool,
}

/// Registers with every queue of a connection and serves it until the kernel ends it; then the
/// last thread lets go of `serve`. The kernel must have agreed to rings on it.
///
/// # Errors
/// When any entry could not be registered: the connection is of no use then. [`Serve::broken`] was
/// called.
pub fn start<S: Serve>(shape: Shape, fuse: BorrowedFd<'_>, serve: Arc<S>) -> io::Result<()> {
    let started = spawn(shape, fuse, &serve);
    if let Err(error) = &started {
        serve.broken(error);
    }
    started
}

fn spawn<S: Serve>(shape: Shape, fuse: BorrowedFd<'_>, serve: &Arc<S>) -> io::Result<()> {
    let possible = std::fs::read_to_string(POSSIBLE)?;
    let queues = command::queues(&possible)
        .ok_or_else(|| io::Error::other(format!("{POSSIBLE}: not a list: {possible:?}")))?;
    let rings = shape.rings.clamp(1, queues.max(1));
    let depth = (shape.entries / queues.max(1)).clamp(*DEPTHS.start(), *DEPTHS.end());
    let (tell, told) = sync_channel(usize::from(rings));
    for number in 0..rings {
        let own: Vec<QueueNo> = (number..queues).step_by(usize::from(rings)).map(QueueNo).collect();
        let (fuse, serve, tell) = (fuse.try_clone_to_owned()?, Arc::clone(serve), tell.clone());
        let run = move || run(shape, depth, &own, fuse, &*serve, &tell);
        let builder = std::thread::Builder::new().name(format!("orlop-fuse-{number}"));
        builder.spawn(run)?;
    }
    drop(tell);
    for _ in 0..rings {
        let gone = |_| Err(io::Error::other("a ring's thread has ended"));
        told.recv().unwrap_or_else(gone)?;
    }
    Ok(())
}

fn run<S: Serve>(
    shape: Shape,
    depth: u16,
    queues: &[QueueNo],
    fuse: OwnedFd,
    serve: &S,
    tell: &SyncSender<io::Result<()>>,
) {
    if shape.pinned
        && let Some(QueueNo(first)) = queues.first()
    {
        pin(*first);
    }
    let mut ring = match Ring::new(shape, depth, queues, &fuse) {
        Ok(ring) => ring,
        Err(error) => return drop(tell.send(Err(error))),
    };
    drop(fuse);
    // Other rings may live on: without this one, whoever asks on its processors would wait.
    let mut bound = Bound { serve, ended_well: false };
    // What was registered is served even when something else was not: until the connection is
    // ended there may be requests.
    let registered = ring.register();
    if tell.send(registered).is_err() {
        ring.fail(serve, &io::Error::other("another ring could not be started"));
    }
    if let Err(error) = ring.serve(serve) {
        ring.fail(serve, &error);
    }
    bound.ended_well = true;
}

/// Tells that a ring is broken when its thread ends by a panic.
struct Bound<'a, S: Serve> {
    serve: &'a S,
    ended_well: bool,
}

impl<S: Serve> Drop for Bound<'_, S> {
    fn drop(&mut self) {
        if !self.ended_well {
            self.serve.broken(&io::Error::other("a ring's thread has died"));
        }
    }
}

/// Leaves the choice to the system where it cannot be had.
fn pin(processor: u16) {
    let mut only = CpuSet::new();
    only.set(usize::from(processor));
    if let Err(error) = rustix::thread::sched_setaffinity(None, &only) {
        tracing::debug!(processor, %error, "a ring's thread is not pinned");
    }
}

struct Ring {
    ring: IoUring<Entry128>,
    entries: Vec<Entry>,
    /// Completions that were seen and not looked at.
    completed: Vec<(u64, i32)>,
    home: Arc<Home>,
    answers: Receiver<Done>,
    waker: Waker,
    counter: Box<[u8; 8]>,
    wake_armed: bool,
    /// The kernel has ended the connection.
    over: bool,
    /// That it cannot go on was told.
    failed: bool,
}

struct Entry {
    queue: QueueNo,
    state: State,
}

enum State {
    /// The kernel has it: it waits for a request, or hands one over.
    Kernel(Lent),
    /// A request in it is being answered. The payload is away where the answer is written into it.
    Asked { request: Request, block: Block, payload: Option<Payload> },
    /// The kernel has given it up.
    Over,
}

impl Ring {
    fn new(shape: Shape, depth: u16, queues: &[QueueNo], fuse: &OwnedFd) -> io::Result<Self> {
        let count = queues.len() * usize::from(depth);
        if count > ENTRIES_MAX {
            let text = format!("{count} entries are more than {ENTRIES_MAX}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let waker = Waker::new(EventfdFlags::empty())?;
        let (answer, answers) = sync_channel(count);
        let tokens = blocks::map(count, shape.payload_bytes as usize)?;
        let ring = build(count, [fuse.as_raw_fd(), waker.fd().as_raw_fd()])?;
        let entry = |(index, tokens): (usize, Tokens)| Entry {
            queue: queues[index % queues.len()],
            state: State::Kernel(tokens.lend()),
        };
        Ok(Self {
            ring,
            entries: tokens.into_iter().enumerate().map(entry).collect(),
            completed: Vec::with_capacity(count + 1),
            home: Arc::new(Home::new(answer, waker.clone())),
            answers,
            waker,
            counter: Box::new([0; 8]),
            wake_armed: false,
            over: false,
            failed: false,
        })
    }

    /// Registers all entries. A refusal is seen at once: the kernel decides as it takes each.
    fn register(&mut self) -> io::Result<()> {
        let mut iovecs = Vec::with_capacity(self.entries.len());
        for entry in &self.entries {
            if let State::Kernel(lent) = &entry.state {
                iovecs.push(lent.iovecs());
            }
        }
        for (index, iovecs) in iovecs.iter().enumerate() {
            let queue = self.entries[index].queue;
            // Read while the kernel takes the submission, and not after.
            let address = iovecs.as_ptr() as u64;
            self.push(entry_of(command::register(FUSE, queue, address, index as u64)))?;
        }
        while !self.ring.submission().is_empty() {
            endured(self.ring.submit())?;
        }
        self.reap();
        match self.completed.iter().find(|(_, result)| *result < 0) {
            None => Ok(()),
            Some((_, result)) => Err(io::Error::from_raw_os_error(-result)),
        }
    }

    /// Serves until the kernel has ended the connection.
    fn serve<S: Serve>(&mut self, serve: &S) -> io::Result<()> {
        // Entries that are being answered are not told of the end; the descriptor is.
        let watch = opcode::PollAdd::new(CONNECTION, PollFlags::ERR.bits().into()).build();
        self.push(watch.flags(Flags::FIXED_FILE).user_data(END).into())?;
        loop {
            while let Some((name, result)) = self.completed.pop() {
                self.completion(name, result, serve);
            }
            while let Ok(done) = self.answers.try_recv() {
                self.answered(done)?;
            }
            if self.over && !self.entries.iter().any(Entry::is_in_kernel) {
                return Ok(());
            }
            self.arm_wake()?;
            self.home.falls_asleep();
            if let Ok(done) = self.answers.try_recv() {
                self.home.is_awake();
                self.answered(done)?;
                continue;
            }
            let entered = endured(self.ring.submit_and_wait(1));
            self.home.is_awake();
            entered?;
            self.reap();
        }
    }

    fn reap(&mut self) {
        let entries = self.ring.completion();
        self.completed.extend(entries.map(|entry| (entry.user_data(), entry.result())));
    }

    fn completion<S: Serve>(&mut self, name: u64, result: i32, serve: &S) {
        if name == WAKE {
            self.wake_armed = false;
            return;
        }
        if name == END {
            self.over = true;
            return;
        }
        let index = name as usize;
        let Some(entry) = self.entries.get_mut(index) else { return };
        let State::Kernel(lent) = std::mem::replace(&mut entry.state, State::Over) else { return };
        // SAFETY: this is the completion of the entry's one submission, and the kernel touches its
        // memory again only after the next.
        let Tokens { block, payload } = unsafe { lent.take_back() };
        if result < 0 {
            let ended = [Errno::NOTCONN, Errno::CONNABORTED, Errno::NODEV];
            self.over |= ended.iter().any(|errno| errno.raw_os_error() == -result);
            if !self.over {
                self.fail(serve, &io::Error::from_raw_os_error(-result));
            }
            return;
        }
        let request = match command::request(block.bytes()) {
            Some(request) if request.payload_len <= payload.bytes().len() => request,
            _ => return self.fail(serve, &io::Error::other("a request that cannot be")),
        };
        // The payload goes with the answer where the request has none of its own; otherwise it is
        // lent to whoever answers, and the answer comes without.
        let (kept, given) =
            if request.payload_len > 0 { (Some(payload), None) } else { (None, Some(payload)) };
        let answer = Answer::new(index, given, Arc::clone(&self.home));
        let bytes = block.bytes();
        let frame = Frame {
            head: &bytes[command::HEAD],
            operation: &bytes[command::OPERATION],
            payload: kept.as_ref().map_or(&[], |p| &p.bytes()[..request.payload_len]),
        };
        serve.serve(frame, answer);
        entry.state = State::Asked { request, block, payload: kept };
    }

    /// Hands an entry back to the kernel with its answer.
    fn answered(&mut self, done: Done) -> io::Result<()> {
        let Some(entry) = self.entries.get_mut(done.index) else { return Ok(()) };
        let state = std::mem::replace(&mut entry.state, State::Over);
        let State::Asked { request, mut block, payload } = state else {
            entry.state = state;
            return Ok(());
        };
        let payload = payload.or(done.payload);
        let mut payload = payload.expect("it is kept, or with the answer");
        if self.over {
            return Ok(());
        }
        let room = payload.bytes_mut();
        let mut put = |bytes: &[u8]| match room.get_mut(..bytes.len()) {
            Some(place) => {
                place.copy_from_slice(bytes);
                (0, bytes.len())
            }
            None => (Errno::IO.raw_os_error(), 0),
        };
        let (errno, len) = match &done.body {
            Body::InPlace(len) => (0, *len),
            Body::Inline(bytes, len) => put(&bytes[..*len]),
            Body::Long(bytes) => put(bytes),
            Body::Failed(errno) => (*errno, 0),
        };
        command::answer(block.bytes_mut(), request, errno, len as u32);
        let queue = entry.queue;
        entry.state = State::Kernel(Tokens { block, payload }.lend());
        let name = done.index as u64;
        self.push(entry_of(command::commit(FUSE, queue, request.commit_id, name)))
    }

    fn fail<S: Serve>(&mut self, serve: &S, error: &io::Error) {
        if !std::mem::replace(&mut self.failed, true) {
            tracing::error!(%error, "a ring for FUSE cannot go on; its connection is ended");
            serve.broken(error);
        }
    }

    fn arm_wake(&mut self) -> io::Result<()> {
        if self.wake_armed {
            return Ok(());
        }
        let entry = opcode::Read::new(BELL, self.counter.as_mut_ptr(), 8).build();
        let entry = entry.flags(Flags::FIXED_FILE).user_data(WAKE);
        self.wake_armed = true;
        self.push(entry.into())
    }

    fn push(&mut self, entry: Entry128) -> io::Result<()> {
        // SAFETY: a command leads to memory whose tokens are locked away until its completion, or
        // to iovecs that are kept until it was taken; the read leads to the counter, which is kept
        // until its completion (`Drop`).
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.map_err(|_| io::Error::other("more submissions than entries"))
    }
}

impl Entry {
    fn is_in_kernel(&self) -> bool {
        matches!(self.state, State::Kernel(_))
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // The counter must not be freed under the kernel's hand. Entries see to themselves.
        for _ in 0..16 {
            if !self.wake_armed {
                return;
            }
            self.waker.wake();
            if endured(self.ring.submit_and_wait(1)).is_err() {
                break;
            }
            let woken = self.ring.completion().any(|entry| entry.user_data() == WAKE);
            self.wake_armed = !woken;
        }
        if self.wake_armed {
            std::mem::forget(std::mem::take(&mut self.counter));
        }
    }
}

/// A ring that takes commands, reads and polls on these files, and nothing else.
fn build(entries: usize, files: [i32; 2]) -> io::Result<IoUring<Entry128>> {
    let size = (entries + 3).next_power_of_two() as u32;
    let mut best = IoUring::builder();
    best.setup_r_disabled().dontfork().setup_submit_all();
    best.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
    let ring: IoUring<Entry128> = best.build(size)?;
    let submitter = ring.submitter();
    submitter.register_files(&files)?;
    let fixed = Flags::FIXED_FILE.bits();
    let mut allowed = [
        Restriction::sqe_op(opcode::UringCmd80::CODE),
        Restriction::sqe_op(opcode::Read::CODE),
        Restriction::sqe_op(opcode::PollAdd::CODE),
        Restriction::sqe_flags_allowed(fixed),
        Restriction::sqe_flags_required(fixed),
    ];
    submitter.register_restrictions(&mut allowed)?;
    submitter.register_enable_rings()?;
    Ok(ring)
}

fn entry_of(bytes: [u8; command::SUBMISSION_BYTES]) -> Entry128 {
    // SAFETY: an entry is 128 bytes of integers in the kernel's layout; any bytes are one.
    unsafe { std::mem::transmute::<[u8; command::SUBMISSION_BYTES], Entry128>(bytes) }
}
