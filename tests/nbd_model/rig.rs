//! A shard that is stepped by hand, with the disk of a world attached. Judges nothing but leaks.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use nbd::handshake::{Context as Metadata, Session};
use nbd::wire::HeaderFormat;
use nbd::{ContextId, ContextName};
use orlop::engine::effect::FileId;
use orlop::engine::units::{ByteLen, DiskOffset, Extent};
use orlop::host::memory::ArenaSize;
use orlop::host::sim::fs::{Backing, SimFile};
use orlop::host::sim::script::{PeerId, ScriptHost};
use orlop::host::{Descriptors, OpenMode};
use orlop::meter::{Meter, Rates, Throttle};
use orlop::shard::{DiskTag, ExportKey, Link, Mailbox, NewClient, Stepped};
use orlop::transport::nbd::{ClientLimits, ClientSettings, ExportShape, NbdClient, export_of};

use crate::tag::CELL;
use crate::wire::Style;
use crate::world::World;

/// Steps within which anything must come to rest.
const PATIENCE: usize = 200_000;
/// The export of a rig.
pub(crate) const EXPORT: ExportKey = ExportKey(7);

/// Something that was asked of the shard.
pub(crate) type Asked<T> = Pin<Box<dyn Future<Output = T>>>;

/// What a connection is like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    pub(crate) style: Style,
    pub(crate) limits: ClientLimits,
}

/// A shard with one disk.
pub(crate) struct Rig {
    pub(crate) mailbox: Mailbox,
    pub(crate) shard: Stepped,
    pub(crate) now: Instant,
    pub(crate) disk: DiskTag,
    size: u64,
    meter: Arc<Meter>,
    pub(crate) throttle: Arc<Throttle>,
}

/// Whether something that was asked has been answered.
pub(crate) fn answered<T>(asked: &mut Asked<T>) -> Option<T> {
    match asked.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

impl Rig {
    pub(crate) fn new(world: &World, arena_bytes: u32, seed: u64) -> Self {
        let size = ArenaSize { registered_bytes: 64 << 10, large_bytes: arena_bytes };
        let (mailbox, mut shard) =
            Stepped::new(size, Duration::from_secs(10), seed).expect("a script needs no system");
        let leaf = SimFile::new(world.backing(), world.leaf());
        let parents = world.parents().iter().map(|bytes| SimFile::new(Backing::File, bytes));
        let files = std::iter::once(leaf).chain(parents);
        let tickets: Vec<_> =
            files.map(|file| shard.script().lay(file).expect("an eventfd")).collect();
        let mut disk = world.open(world.leaf(), None).expect("the world's own image opens");
        // As if it had guests.
        drop(disk.publish());
        let sender = mailbox.clone();
        let mut attach: Asked<_> = Box::pin(async move {
            let make = Box::new(move |add: &mut dyn FnMut(_) -> _| {
                for (no, ticket) in (0..).zip(tickets) {
                    assert_eq!(add(Descriptors::new(ticket, OpenMode::BUFFERED))?, FileId(no));
                }
                Ok(disk)
            });
            sender.attach(make).await
        });
        let now = Instant::now();
        assert!(answered(&mut attach).is_none());
        shard.turn(now).expect("a turn");
        let disk = answered(&mut attach).expect("one turn attaches").expect("and well");
        Self {
            mailbox,
            shard,
            now,
            disk,
            size: u64::from(world.cells()) * CELL as u64,
            meter: Arc::default(),
            throttle: Arc::new(Throttle::new(Rates::default())),
        }
    }

    pub(crate) fn script(&mut self) -> &mut ScriptHost {
        self.shard.script()
    }

    /// A turn of the loop; true when the shard has ended.
    pub(crate) fn turn(&mut self) -> bool {
        self.shard.turn(self.now).expect("a turn")
    }

    /// The session that a handshake would have agreed on.
    pub(crate) fn session(&self, style: Style) -> Session {
        let export = export_of(ExportShape {
            name: String::new(),
            description: String::new(),
            size: ByteLen::new(self.size),
            read_only: false,
            resize: false,
        });
        let names = [ContextName::Allocation, ContextName::AllocationDepth];
        let all = (1..).zip(names).map(|(id, name)| Metadata { id: ContextId(id), name });
        Session {
            export,
            structured: style != Style::Simple,
            contexts: if style == Style::Simple { vec![] } else { all.collect() },
            no_zeroes: true,
            headers: match style {
                Style::Extended => HeaderFormat::Extended,
                _ => HeaderFormat::Compact,
            },
            leftover: vec![],
        }
    }

    /// A client that speaks this style.
    pub(crate) fn connect(&mut self, setup: Setup) -> PeerId {
        let session = self.session(setup.style);
        self.admit(&session, setup.limits)
    }

    pub(crate) fn admit(&mut self, session: &Session, limits: ClientLimits) -> PeerId {
        let (peer, socket) = self.script().dial().expect("an eventfd");
        let settings = ClientSettings {
            window: Extent::new(DiskOffset::new(0), ByteLen::new(self.size)),
            whole: None,
            limits,
            export_meter: Arc::clone(&self.meter),
            meter: Arc::default(),
            throttle: Arc::clone(&self.throttle),
        };
        let client = Box::new(NbdClient::new(session, settings));
        let (disk, export, guard) = (self.disk, EXPORT, Box::new(()));
        let new = NewClient { disk, export, link: Link::Socket(socket), client, guard };
        self.mailbox.connect(new).expect("the mailbox has room");
        peer
    }

    /// Lets everything move until nothing does: true when the shard has ended.
    pub(crate) fn settle(&mut self) -> bool {
        for _ in 0..PATIENCE {
            let moved = self.script().step();
            if moved && self.script().told() == 0 {
                continue;
            }
            let done = self.turn();
            if done || (!moved && self.script().told() == 0 && !self.script().step()) {
                return done;
            }
        }
        panic!("it does not come to rest");
    }

    /// Ends the shard.
    pub(crate) fn shut_down(&mut self) -> Result<(), String> {
        let mailbox = self.mailbox.clone();
        self.outlast(Box::pin(async move { mailbox.shut_down().await }))
    }

    /// Takes the disk away, then ends the shard.
    pub(crate) fn detach(&mut self) -> Result<(), String> {
        let (mailbox, disk) = (self.mailbox.clone(), self.disk);
        let gone = self.outlast(Box::pin(async move { mailbox.detach(disk).await }));
        assert!(self.shut_down().is_ok(), "nothing is left that could fail");
        gone
    }

    fn outlast(&mut self, mut asked: Asked<Result<(), String>>) -> Result<(), String> {
        for _ in 0..100 {
            if let Some(result) = answered(&mut asked) {
                return result;
            }
            self.settle();
            // Clients that do not finish have their time, and are cut.
            self.now += Duration::from_secs(1);
            self.turn();
        }
        panic!("the end does not come");
    }

    /// Whatever was lent is back, and nothing is under way.
    pub(crate) fn judge_rest(&self) {
        assert_eq!(self.shard.clients(), 0, "connections are left");
        assert_eq!(self.shard.lent(), 0, "leases are out");
        assert_eq!(self.shard.in_flight(), 0, "something is in flight");
        let seen = self.meter.snapshot();
        assert_eq!((seen.in_flight, seen.connections), (0, 0), "the meter counts somebody");
    }
}
