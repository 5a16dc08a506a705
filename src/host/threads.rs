//! The host without io_uring: a few threads make the calls on files, the shard's own thread moves
//! the bytes of its sockets when epoll says so.
//!
//! Refuses to be fast; it is for systems that forbid io_uring. Holds no lock: each worker has its
//! own queue, and answers come back through one.

use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, Timespec, epoll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags};

use super::blocking::{self, SLICES_MAX};
use super::event::{Event, HangUp, PollId, ReceiveInto, SendList, SocketId};
use super::files::{Descriptors, FileTable};
use super::mapped::{Leftovers, Mapped};
use super::memory::Memory;
use super::slab::Slab;
use super::task::{Task, TaskName, Work};
use super::wake::Waker;
use super::{Counters, MAX_POLLS, MAX_SOCKETS};
use crate::engine::effect::{FileId, IoError, Outcome};
use crate::engine::units::ByteLen;

/// Worker threads per shard: enough to keep a disk busy, few enough not to trample on each other.
const WORKERS: usize = 6;

/// epoll data of the two eventfds; sockets use their number, watched descriptors theirs with a bit
/// above.
const WAKE: u64 = u64::MAX;
const ANSWERS: u64 = u64::MAX - 1;
const POLLS: u64 = 1 << 32;

/// The host without io_uring. See [`super::Host`] for the calls.
#[derive(Debug)]
pub struct Threads {
    memory: Arc<Memory>,
    files: FileTable,
    mapped: Mapped,
    pool: Pool,
    sockets: Slab<Socket>,
    polls: Slab<OwnedFd>,
    /// Events that happened during a call and wait to be told.
    ready: Vec<Event>,
    /// Numbers of sockets whose `Closed` went out with the last batch. Whoever got it may still be
    /// looking at that batch, so they are given to others only from the next wait on.
    told_closed: Vec<u32>,
    epoll: OwnedFd,
    waker: Waker,
    effects_in_flight: usize,
    counters: Counters,
}

#[derive(Debug)]
struct Socket {
    fd: OwnedFd,
    receiving: Option<ReceiveInto>,
    /// Bytes of the span being received that are there.
    received: u32,
    sending: Option<SendList>,
    sent: ByteLen,
}

impl Threads {
    pub(super) fn new(memory: Arc<Memory>) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let waker = Waker::new(EventfdFlags::NONBLOCK)?;
        let pool = Pool::new()?;
        let edge = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&epoll, waker.fd(), epoll::EventData::new_u64(WAKE), edge)?;
        epoll::add(&epoll, pool.bell.waker.fd(), epoll::EventData::new_u64(ANSWERS), edge)?;
        Ok(Self {
            memory,
            files: FileTable::new(),
            mapped: Mapped::default(),
            pool,
            sockets: Slab::new(),
            polls: Slab::new(),
            ready: Vec::new(),
            told_closed: Vec::new(),
            epoll,
            waker,
            effects_in_flight: 0,
            counters: Counters::default(),
        })
    }

    pub(super) fn add_file(&mut self, file: Descriptors) -> io::Result<FileId> {
        self.files.add(file)
    }

    pub(super) fn remove_file(&mut self, file: FileId) {
        self.mapped.forget(file);
        self.files.remove(file);
    }

    pub(super) fn take_leftovers(&mut self) -> Leftovers {
        self.mapped.take_leftovers()
    }

    pub(super) fn start(&mut self, name: TaskName, work: Work) {
        self.counters.effects += 1;
        self.effects_in_flight += 1;
        let made = match self.files.file(name.file) {
            None => Err(IoError(Errno::BADF.raw_os_error())),
            Some(file) => Task::new(name, Arc::clone(file), &self.memory, work),
        };
        match made {
            Err(error) => self.tell(name, Outcome::Failed(error)),
            Ok(task) => {
                if let Some(task) = self.files.admit(task) {
                    self.begin(task);
                }
            }
        }
    }

    /// Starts a task whose turn has come: at once if it is a read of what is in memory.
    fn begin(&mut self, mut task: Task) {
        let Some(outcome) = self.mapped.serve(&mut task, &self.files) else {
            return self.pool.give(task);
        };
        self.counters.mapped_reads += 1;
        self.tell(task.name(), outcome);
    }

    pub(super) fn add_socket(&mut self, fd: OwnedFd) -> io::Result<SocketId> {
        if self.sockets.len() >= MAX_SOCKETS {
            return Err(Errno::MFILE.into());
        }
        let (receiving, sending) = (None, None);
        let socket = Socket { fd, receiving, received: 0, sending, sent: ByteLen::ZERO };
        let index = self.sockets.insert(socket);
        let flags = epoll::EventFlags::IN
            | epoll::EventFlags::OUT
            | epoll::EventFlags::RDHUP
            | epoll::EventFlags::ET;
        let data = epoll::EventData::new_u64(u64::from(index));
        let added = match self.sockets.of(index) {
            Some(socket) => epoll::add(&self.epoll, &socket.fd, data, flags),
            None => Ok(()),
        };
        if let Err(error) = added {
            self.sockets.remove(index);
            return Err(error.into());
        }
        Ok(SocketId(index))
    }

    pub(super) fn close_socket(&mut self, socket: SocketId) {
        let Some(closed) = self.sockets.retire(socket.0) else { return };
        // A duplicate of the descriptor elsewhere would keep it in the epoll set.
        let _gone = epoll::delete(&self.epoll, &closed.fd);
        self.ready.retain(|event| match event {
            Event::Received { socket: of, .. } | Event::Sent { socket: of, .. } => *of != socket,
            _ => true,
        });
        self.ready.push(Event::Closed { socket });
    }

    pub(super) fn add_poll(&mut self, fd: OwnedFd) -> io::Result<PollId> {
        if self.polls.len() >= MAX_POLLS {
            return Err(Errno::MFILE.into());
        }
        let index = self.polls.insert(fd);
        let data = epoll::EventData::new_u64(POLLS | u64::from(index));
        let added = match self.polls.of(index) {
            Some(fd) => epoll::add(&self.epoll, fd, data, epoll::EventFlags::ONESHOT),
            None => Ok(()),
        };
        if let Err(error) = added {
            self.polls.remove(index);
            return Err(error.into());
        }
        Ok(PollId(index))
    }

    pub(super) fn arm_poll(&mut self, poll: PollId) {
        let Some(fd) = self.polls.of(poll.0) else { return };
        let data = epoll::EventData::new_u64(POLLS | u64::from(poll.0));
        let once = epoll::EventFlags::IN | epoll::EventFlags::ONESHOT;
        if epoll::modify(&self.epoll, fd, data, once).is_err() {
            // Its owner finds out what is wrong with it.
            self.ready.push(Event::Readable { poll });
        }
    }

    pub(super) fn remove_poll(&mut self, poll: PollId) {
        if let Some(fd) = self.polls.remove(poll.0) {
            // A duplicate of the descriptor elsewhere would keep it in the epoll set.
            let _gone = epoll::delete(&self.epoll, &fd);
        }
    }

    pub(super) fn receive(&mut self, socket: SocketId, into: ReceiveInto) {
        self.counters.transfers += 1;
        if let Some(state) = self.sockets.of_mut(socket.0) {
            debug_assert!(state.receiving.is_none(), "two receives on {socket:?}");
            state.receiving = Some(into);
            state.received = 0;
        }
        self.go_on_receiving(socket);
    }

    pub(super) fn send(&mut self, socket: SocketId, list: SendList) {
        self.counters.transfers += 1;
        if let Some(state) = self.sockets.of_mut(socket.0) {
            debug_assert!(state.sending.is_none(), "two sends on {socket:?}");
            state.sending = Some(list);
            state.sent = ByteLen::ZERO;
        }
        self.go_on_sending(socket);
    }

    pub(super) fn hang_up(&self, socket: SocketId) -> HangUp {
        self.sockets.of(socket.0).map_or(HangUp::Whole, |state| super::hang_up_of(&state.fd))
    }

    pub(super) fn wake_handle(&self) -> Waker {
        self.waker.clone()
    }

    pub(super) fn in_flight(&self) -> usize {
        let busy = |index| {
            let socket: Option<&Socket> = self.sockets.of(index);
            socket.map_or(0, |s| {
                usize::from(s.receiving.is_some()) + usize::from(s.sending.is_some())
            })
        };
        self.effects_in_flight + self.sockets.numbers().map(busy).sum::<usize>()
    }

    pub(super) const fn counters(&self) -> Counters {
        self.counters
    }

    pub(super) fn wait(
        &mut self,
        timeout: Option<Duration>,
        events: &mut Vec<Event>,
    ) -> io::Result<()> {
        for number in self.told_closed.drain(..) {
            self.sockets.release(number);
        }
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            let left = if self.ready.is_empty() {
                deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
            } else {
                Some(Duration::ZERO)
            };
            self.poll(left)?;
            if !self.ready.is_empty() || left.is_some_and(|left| left.is_zero()) {
                self.told_closed.extend(self.ready.iter().filter_map(Event::closed_number));
                events.append(&mut self.ready);
                return Ok(());
            }
        }
    }

    fn poll(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.counters.enters += 1;
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX).min(1 << 20),
            tv_nsec: i64::from(timeout.subsec_nanos()),
        });
        let mut happened = Vec::with_capacity(64);
        let room = rustix::buffer::spare_capacity(&mut happened);
        match epoll::wait(&self.epoll, room, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in happened {
            let (data, flags) = (event.data.u64(), event.flags);
            match data {
                WAKE => {
                    drain(&self.waker);
                    self.ready.push(Event::Woken);
                }
                ANSWERS => self.take_answers(),
                poll if poll & POLLS != 0 => {
                    self.ready.push(Event::Readable { poll: PollId(poll as u32) });
                }
                socket => self.socket_is_ready(SocketId(socket as u32), flags),
            }
        }
        Ok(())
    }

    fn socket_is_ready(&mut self, socket: SocketId, flags: epoll::EventFlags) {
        use epoll::EventFlags as Flags;
        let broken = Flags::ERR | Flags::HUP;
        if flags.intersects(Flags::IN | Flags::RDHUP | broken) {
            self.go_on_receiving(socket);
        }
        if flags.intersects(Flags::OUT | broken) {
            self.go_on_sending(socket);
        }
    }

    fn take_answers(&mut self) {
        // Silenced before the queue is emptied: a worker that answers after that rings again.
        drain(&self.pool.bell.waker);
        self.pool.bell.rung.store(false, Ordering::SeqCst);
        while let Ok(answer) = self.pool.answers.try_recv() {
            self.pool.load[answer.worker] -= 1;
            self.mapped.after(&answer.task);
            for task in self.files.release(&answer.task) {
                self.pool.give(task);
            }
            self.tell(answer.task.name(), answer.outcome);
        }
    }

    fn tell(&mut self, name: TaskName, outcome: Outcome) {
        self.effects_in_flight -= 1;
        self.ready.push(Event::Effect { tag: name.tag, id: name.id, outcome });
    }

    fn go_on_receiving(&mut self, socket: SocketId) {
        let Some(state) = self.sockets.of_mut(socket.0) else { return };
        let Some(mut into) = state.receiving.take() else { return };
        let result = match &mut into {
            ReceiveInto::Buffer { bytes, filled } => {
                let got = receive_some(&state.fd, &mut bytes[*filled..]);
                got.inspect(|got| *filled += *got as usize)
            }
            ReceiveInto::Span(span) => {
                let mut loan = self.memory.lend(*span);
                let whole = loan.bytes_mut();
                loop {
                    if state.received == span.len {
                        break Ok(span.len);
                    }
                    match receive_some(&state.fd, &mut whole[state.received as usize..]) {
                        Ok(0) => break Ok(0),
                        Ok(got) => state.received += got,
                        Err(error) => break Err(error),
                    }
                }
            }
        };
        match result {
            Err(Errno::AGAIN) => state.receiving = Some(into),
            Ok(_) | Err(_) => {
                let result = result.map_err(|error| IoError(error.raw_os_error()));
                self.ready.push(Event::Received { socket, into, result });
            }
        }
    }

    fn go_on_sending(&mut self, socket: SocketId) {
        let Some(state) = self.sockets.of_mut(socket.0) else { return };
        let Some(list) = state.sending.take() else { return };
        let result = loop {
            if state.sent == list.total() {
                break Ok(());
            }
            let mut slices = Vec::new();
            let see = &mut |bytes| slices.push(IoSlice::new(bytes));
            list.slices(&self.memory, state.sent, SLICES_MAX, see);
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            let none = &mut SendAncillaryBuffer::default();
            match rustix::net::sendmsg(&state.fd, &slices, none, flags) {
                Ok(sent) => state.sent += ByteLen::new(sent as u64),
                Err(Errno::INTR) => {}
                Err(error) => break Err(error),
            }
        };
        if result == Err(Errno::AGAIN) {
            state.sending = Some(list);
            return;
        }
        let result = result.map_err(|error| IoError(error.raw_os_error()));
        self.ready.push(Event::Sent { socket, list, result });
    }
}

fn receive_some(fd: &OwnedFd, into: &mut [u8]) -> Result<u32, Errno> {
    loop {
        match rustix::net::recv(fd, &mut *into, RecvFlags::DONTWAIT) {
            Ok((got, _)) => return Ok(got as u32),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Sets the counter of an eventfd back, so that its next ring is an edge.
fn drain(waker: &Waker) {
    let _nothing_there = rustix::io::read(waker.fd(), &mut [0; 8]);
}

/// Rung by the workers when answers wait; once is enough until the shard has looked.
#[derive(Debug)]
struct Bell {
    waker: Waker,
    rung: AtomicBool,
}

#[derive(Debug)]
struct Answer {
    worker: usize,
    task: Task,
    outcome: Outcome,
}

#[derive(Debug)]
struct Pool {
    queues: Vec<Sender<Task>>,
    /// Tasks each worker has not answered.
    load: Vec<usize>,
    answers: Receiver<Answer>,
    bell: Arc<Bell>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    fn new() -> io::Result<Self> {
        let waker = Waker::new(EventfdFlags::NONBLOCK)?;
        let bell = Arc::new(Bell { waker, rung: AtomicBool::new(false) });
        let (answer, answers) = channel();
        let (mut queues, mut threads) = (Vec::new(), Vec::new());
        for worker in 0..WORKERS {
            let (queue, tasks) = channel();
            let (answer, bell) = (answer.clone(), Arc::clone(&bell));
            let work = move || work(worker, &tasks, &answer, &bell);
            let builder = std::thread::Builder::new().name(format!("orlop-io-{worker}"));
            threads.push(builder.spawn(work)?);
            queues.push(queue);
        }
        Ok(Self { queues, load: vec![0; WORKERS], answers, bell, threads })
    }

    fn give(&mut self, task: Task) {
        let worker = (0..WORKERS).min_by_key(|worker| self.load[*worker]).unwrap_or(0);
        self.load[worker] += 1;
        self.queues[worker].send(task).expect("workers run until their queue is dropped");
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // Without queues the workers end after what they have begun, which owns its memory.
        self.queues.clear();
        for thread in self.threads.drain(..) {
            let _panicked = thread.join();
        }
    }
}

fn work(worker: usize, tasks: &Receiver<Task>, answer: &Sender<Answer>, bell: &Bell) {
    while let Ok(mut task) = tasks.recv() {
        let outcome = task.start().unwrap_or_else(|| blocking::run(&mut task));
        if answer.send(Answer { worker, task, outcome }).is_err() {
            return;
        }
        if !bell.rung.swap(true, Ordering::SeqCst) {
            bell.waker.wake();
        }
    }
}
