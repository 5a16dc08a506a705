//! Any bytes as a whole connection: the handshake, then the real client of the real shard over a
//! host in memory. The bytes choose the image, the bounds, the cuts, the order and the farewell.
//!
//! An input is: a byte of choices, a seed, the length of a script, the script, and the stream.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use nbd::fuzz::OneDisk;
use nbd::handshake::{Handshake, HandshakeLimits, Progress, Session, TlsOffer};
use nbd::transmission::{Command, Parsed, Transmission};
use nbd::{Bytes, Exports};
use orlop::engine::Disk;
use orlop::engine::effect::IoError;
use orlop::engine::units::{ByteLen, DiskOffset, Extent};
use orlop::format::Flat;
use orlop::format::vhd::{Backing, VhdLeaf};
use orlop::host::memory::ArenaSize;
use orlop::host::sim::fault::{Fault, FaultPlan, Target};
use orlop::host::sim::fs::{Backing as Ground, SimFile};
use orlop::host::sim::script::{Leave, PeerId};
use orlop::host::{Descriptors, OpenMode};
use orlop::meter::{Meter, Rates, Throttle};
use orlop::shard::{DiskTag, ExportKey, Link, Mailbox, NewClient, Stepped};
use orlop::transport::nbd::{ClientLimits, ClientSettings, ExportShape, NbdClient, export_of};

use super::wire::{self, Style};

/// Bytes of the disk.
const SIZE: u64 = 64 << 10;
/// The longest list one send may carry: twice a batch, and a map.
const SEND_MAX: u64 = (4 << 20) + (512 << 10);
/// Moves within which anything must come to rest.
const PATIENCE: usize = 100_000;

mod choice {
    /// The image is a dynamic VHD, not a raw one.
    pub(super) const DYNAMIC: u8 = 1;
    /// One request in flight, and few bytes.
    pub(super) const NARROW: u8 = 2;
    /// No handshake: the next two bits tell the style.
    pub(super) const NO_HANDSHAKE: u8 = 4;
    pub(super) const STYLE_SHIFT: u8 = 3;
    /// A write fails.
    pub(super) const FAULT: u8 = 32;
    /// How the peer leaves: the upper two bits.
    pub(super) const LEAVE_SHIFT: u8 = 6;
}

struct Rig {
    mailbox: Mailbox,
    shard: Stepped,
    now: Instant,
    disk: DiskTag,
}

fn answered<T>(asked: &mut Pin<Box<dyn Future<Output = T>>>) -> Option<T> {
    match asked.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

/// A fresh dynamic VHD, and its leaf.
fn dynamic() -> (Vec<u8>, VhdLeaf) {
    let block_bytes = vhd::ByteLen::new(4096);
    let options = vhd::CreateOptions {
        size: vhd::ByteLen::new(SIZE),
        layout: vhd::NewLayout::Dynamic { block_bytes },
        uuid: [1; 16],
        timestamp: 7,
    };
    let plan = vhd::create(&options).expect("the options are legal");
    let mut bytes = vec![0; plan.file_len.get() as usize];
    for piece in &plan.pieces {
        let (at, own) = match piece {
            vhd::Piece::Bytes { at, bytes } => (at.get(), bytes.clone()),
            vhd::Piece::Fill { at, len, byte } => (at.get(), vec![*byte; len.get() as usize]),
        };
        bytes[at as usize..][..own.len()].copy_from_slice(&own);
    }
    let file_len = vhd::ByteLen::new(bytes.len() as u64);
    let mut opening = vhd::Opening::new(file_len, vhd::Limits::default());
    let mut read = None;
    let image = loop {
        match opening.step(read).expect("a fresh image opens") {
            vhd::Step::Done(image) => break image,
            vhd::Step::Read { at, len } => read = Some(&bytes[at.get() as usize..][..len]),
        }
    };
    let leaf = VhdLeaf::new(&image, image.sparse().expect("it is dynamic"), Backing::File);
    (bytes, leaf)
}

impl Rig {
    fn new(choices: u8, seed: u8) -> Self {
        let size = ArenaSize { registered_bytes: 64 << 10, large_bytes: 128 << 10 };
        let made = Stepped::new(size, Duration::from_secs(10), u64::from(seed));
        let (mailbox, mut shard) = made.expect("a script needs no system");
        let is_dynamic = choices & choice::DYNAMIC != 0;
        let (bytes, vhd_leaf) = dynamic();
        let bytes = if is_dynamic { bytes } else { vec![0; SIZE as usize] };
        let ticket = shard.script().lay(SimFile::new(Ground::File, &bytes)).expect("an eventfd");
        if choices & choice::FAULT != 0 {
            let after = u32::from(seed % 16);
            let target =
                [Target::Write, Target::Sync, Target::Any, Target::Read][seed as usize % 4];
            let fault =
                Fault { target, after, error: IoError::EIO, sticky: seed.is_multiple_of(3) };
            shard.script().disk().set_faults(FaultPlan::new(&[fault]));
        }
        let sender = mailbox.clone();
        let mut attach: Pin<Box<dyn Future<Output = _>>> = Box::pin(async move {
            let make = Box::new(move |add: &mut dyn FnMut(_) -> _| {
                let file = add(Descriptors::new(ticket, OpenMode::BUFFERED))?;
                if is_dynamic {
                    return Ok(Disk::writable(Box::new(vhd_leaf), file, vec![]));
                }
                Ok(Disk::writable(Box::new(Flat::new(ByteLen::new(SIZE))), file, vec![]))
            });
            sender.attach(make).await
        });
        let now = Instant::now();
        assert!(answered(&mut attach).is_none());
        shard.turn(now).expect("a turn");
        let disk = answered(&mut attach).expect("one turn attaches").expect("and well");
        Self { mailbox, shard, now, disk }
    }

    fn admit(&mut self, session: &Session, choices: u8) -> PeerId {
        let (peer, socket) = self.shard.script().dial().expect("an eventfd");
        let narrow = choices & choice::NARROW != 0;
        let few = ClientLimits { requests: 1, bytes: 4096, ..ClientLimits::default() };
        let settings = ClientSettings {
            window: Extent::new(DiskOffset::new(0), ByteLen::new(SIZE)),
            whole: None,
            limits: if narrow { few } else { ClientLimits::default() },
            export_meter: Arc::<Meter>::default(),
            meter: Arc::default(),
            throttle: Arc::new(Throttle::new(Rates::default())),
        };
        let client = Box::new(NbdClient::new(session, settings));
        let (disk, guard) = (self.disk, Box::new(()));
        let new =
            NewClient { disk, export: ExportKey(1), link: Link::Socket(socket), client, guard };
        self.mailbox.connect(new).expect("the mailbox has room");
        peer
    }

    fn turn(&mut self) -> bool {
        self.shard.turn(self.now).expect("a turn")
    }

    fn settle(&mut self) -> bool {
        for _ in 0..PATIENCE {
            let moved = self.shard.script().step();
            if moved && self.shard.script().told() == 0 {
                continue;
            }
            let done = self.turn();
            let quiet = !moved && self.shard.script().told() == 0;
            if done || (quiet && !self.shard.script().step()) {
                return done;
            }
        }
        unreachable!("it does not come to rest");
    }

    /// Ends the shard; everything must be given back.
    fn end(mut self) {
        let mailbox = self.mailbox.clone();
        let mut asked: Pin<Box<dyn Future<Output = _>>> =
            Box::pin(async move { mailbox.shut_down().await });
        let mut result = None;
        for _ in 0..40 {
            result = result.or_else(|| answered(&mut asked));
            if result.is_some() {
                break;
            }
            self.settle();
            self.now += Duration::from_secs(1);
            self.turn();
        }
        let result = result.expect("the shard ends");
        let excused = self.shard.script().disk().struck() > 0;
        assert!(result.is_ok() || excused, "{result:?}");
        assert_eq!((self.shard.clients(), self.shard.lent(), self.shard.in_flight()), (0, 0, 0));
        assert!(self.shard.script().longest_send() <= SEND_MAX, "a send without bounds");
    }
}

/// The connection as its peer sees it.
struct Talk<'a> {
    stream: &'a [u8],
    at: usize,
    handshake: Handshake,
    exports: OneDisk,
    peer: Option<(PeerId, Session)>,
    /// The handshake came to another end.
    over: bool,
    said: Vec<u8>,
    choices: u8,
    /// The server may have lost its patience.
    waited: bool,
}

impl<'a> Talk<'a> {
    fn new(choices: u8, stream: &'a [u8], rig: &mut Rig) -> Self {
        let export = export_of(ExportShape {
            name: "disk".to_owned(),
            description: String::new(),
            size: ByteLen::new(SIZE),
            read_only: false,
            resize: true,
        });
        let handshake = Handshake::new(HandshakeLimits::default(), TlsOffer::None);
        let mut talk = Self {
            stream,
            at: 0,
            handshake,
            exports: OneDisk(export),
            peer: None,
            over: false,
            said: Vec::new(),
            choices,
            waited: false,
        };
        if choices & choice::NO_HANDSHAKE != 0 {
            let style = ["", "\u{8}", "\u{b}"][usize::from(choices >> choice::STYLE_SHIFT & 3) % 3];
            talk.agree_on(style, rig);
        }
        talk
    }

    /// Has a handshake that agrees on these options, and on every context.
    fn agree_on(&mut self, options: &str, rig: &mut Rig) {
        let mut bytes = 3_u32.to_be_bytes().to_vec();
        let mut option = |number: u32, data: &[u8]| {
            bytes.extend(nbd::wire::option_header(number, data.len() as u32));
            bytes.extend(data);
        };
        options.bytes().for_each(|number| option(u32::from(number), &[]));
        if !options.is_empty() {
            let names = ["base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:leaf"];
            option(10, &nbd::wire::context_request("disk", &names));
        }
        option(7, &nbd::wire::info_request("disk", &[]));
        self.hear_handshake(&bytes, rig);
        assert!(self.peer.is_some(), "a good handshake ends in a session");
    }

    fn hear_handshake(&mut self, bytes: &[u8], rig: &mut Rig) {
        let progress = self.handshake.receive(bytes, &self.exports as &dyn Exports);
        let _said = self.handshake.take_output();
        match progress {
            Ok(Progress::More) => {}
            Ok(Progress::Ready(mut session)) => {
                let peer = rig.admit(&session, self.choices);
                session.leftover.clear();
                self.peer = Some((peer, session));
            }
            Ok(Progress::Closed | Progress::StartTls) | Err(_) => self.over = true,
        }
    }

    fn feed(&mut self, most: usize, rig: &mut Rig) {
        let end = self.stream.len().min(self.at.saturating_add(most));
        let bytes = &self.stream[self.at..end];
        self.at = end;
        match &self.peer {
            Some((peer, _)) => rig.shard.script().feed(*peer, bytes),
            None if self.over => {}
            None => self.hear_handshake(bytes, rig),
        }
    }

    fn hear(&mut self, rig: &mut Rig) {
        if let Some((peer, _)) = &self.peer {
            self.said.extend(rig.shard.script().drain(*peer));
        }
    }

    /// One byte of the script.
    fn act(&mut self, byte: u8, rig: &mut Rig) {
        let much = usize::from(byte >> 3);
        match byte & 7 {
            0 | 1 => self.feed(much + 1, rig),
            2 => self.feed(much * 64 + 1, rig),
            3 => (0..=much).for_each(|_| _ = rig.shard.script().step()),
            4 => _ = rig.turn(),
            5 => {
                let room = if much == 31 { u64::MAX } else { much as u64 * 16 };
                if let Some((peer, _)) = &self.peer {
                    rig.shard.script().set_room(*peer, room);
                }
            }
            6 => rig.shard.script().reseed(u64::from(byte)),
            _ => {
                rig.now += Duration::from_secs(much as u64);
                self.waited |= much > 0;
            }
        }
    }
}

/// What the gate makes of a stream: the requests before its end, and whether that is a good one.
fn requests(session: &Session, stream: &[u8]) -> (Vec<(u64, u64, u64)>, bool) {
    let gate = Transmission::new(session);
    let (mut rest, mut found) = (stream, Vec::new());
    loop {
        let (echo, read, skip) = match gate.parse(rest) {
            Parsed::Incomplete => return (found, rest.is_empty()),
            Parsed::Disconnect => return (found, true),
            Parsed::Violation(_) => return (found, false),
            Parsed::Refused { echo, consumed, payload, .. } => {
                (echo, 0, consumed as u64 + u64::from(payload))
            }
            Parsed::Request { request, consumed } => {
                let Bytes(length) = request.length;
                let read = if matches!(request.command, Command::Read { .. }) { length } else { 0 };
                (request.echo(), read, consumed as u64 + request.payload().0)
            }
        };
        found.push((echo.cookie.0, echo.offset.0, read));
        match rest.get(skip as usize..) {
            Some(more) => rest = more,
            None => return (found, false),
        }
    }
}

/// Whether each request got one reply, and every frame was in its place.
fn judge_replies(said: &[u8], session: &Session, asked: &[(u64, u64, u64)], complete: bool) {
    let by_cookie: BTreeMap<u64, (u64, u64)> =
        asked.iter().map(|(cookie, at, len)| (*cookie, (*at, *len))).collect();
    if by_cookie.len() < asked.len() {
        return;
    }
    let style = match (session.structured, session.headers) {
        (_, nbd::HeaderFormat::Extended) => Style::Extended,
        (true, _) => Style::Structured,
        (false, _) => Style::Simple,
    };
    let (mut rest, mut open) = (said, by_cookie.clone());
    loop {
        let about = |cookie| by_cookie.get(&cookie).copied();
        let Some(frame) = wire::frame(rest, style, about).expect("replies stay in step") else {
            break;
        };
        rest = &rest[frame.taken..];
        assert!(open.contains_key(&frame.cookie), "{frame:?} behind the last");
        if frame.done {
            open.remove(&frame.cookie);
        }
    }
    if complete {
        assert!(rest.is_empty(), "half a reply");
        assert!(open.is_empty(), "{open:?} were never answered");
    }
}

/// Any bytes as a connection.
pub fn nbd_session(bytes: &[u8]) {
    let [choices, seed, count, rest @ ..] = bytes else { return };
    let (script, stream) = rest.split_at(usize::from(*count).min(rest.len()));
    let mut rig = Rig::new(*choices, *seed);
    let mut talk = Talk::new(*choices, stream, &mut rig);
    for byte in script {
        talk.act(*byte, &mut rig);
    }
    let leave = [Leave::No, Leave::Half, Leave::Closed, Leave::Reset]
        [usize::from(choices >> choice::LEAVE_SHIFT)];
    if leave == Leave::No || leave == Leave::Half {
        // Everything is said and heard; otherwise the peer goes where its script ends.
        talk.feed(usize::MAX, &mut rig);
    }
    let fed_from = talk.stream.len() - talk.at;
    if let Some((peer, _)) = &talk.peer {
        rig.shard.script().set_room(*peer, u64::MAX);
        rig.shard.script().leave(*peer, leave);
    }
    rig.settle();
    talk.hear(&mut rig);
    if let Some((peer, session)) = &talk.peer {
        // With a handshake in front, where the requests begin is the handshake's business.
        if *choices & choice::NO_HANDSHAKE != 0 {
            let (asked, whole) = requests(session, &talk.stream[..talk.stream.len() - fed_from]);
            let complete = leave == Leave::Half && whole && !talk.waited;
            judge_replies(&talk.said, session, &asked, complete);
        }
        let stays = rig.shard.script().is_connected(*peer);
        assert!(leave == Leave::No || talk.waited || !stays, "the connection outlives its peer");
    }
    rig.end();
}
