//! Guests of a disk on other shards than its owner's: how one is made, how it hands over what it
//! does not answer, and how answers come home. What a guest answers itself is for the engine to
//! say.
//!
//! Refuses to choose shards: which may have guests of which is for the caller to say, see
//! [`Mailbox::share`].

use std::io;

use tokio::sync::oneshot;

use super::line::{GuestEnd, Outcome, Parcel, line, nobody};
use super::mailbox::{AddFile, DiskTag, ExportKey, Link, Mailbox, Message, NewClient};
use super::own::gone;
use super::run::Shard;
use super::steward::Steward;
use crate::engine::Disk;
use crate::engine::published::Published;
use crate::engine::request::{Answer, Request, RequestId, Segment};
use crate::engine::units::ByteLen;

/// Makes a guest of open files and of what its owner tells, on the guest's shard.
pub type GuestAttachment =
    Box<dyn FnOnce(std::sync::Arc<Published>, AddFile<'_>) -> io::Result<Disk> + Send>;

/// Told what a disk tells its guests.
pub(super) type Told = oneshot::Sender<io::Result<std::sync::Arc<Published>>>;

/// The export that stewards are there for: none is called so.
const NO_EXPORT: ExportKey = ExportKey(u64::MAX);
/// Told apart from the keys of clients in the hook of a bell.
const LINE: usize = 1 << 30;

impl Mailbox {
    /// Gives a disk of this shard a guest on another: there it can be read, and asked for anything
    /// else. It is detached as any disk; it goes before its owner, or what its clients ask fails.
    ///
    /// Requests of a guest hold memory there while they wait for memory here. So that no circle
    /// of shards waits for each other, the caller puts shards in an order, and guests only on
    /// shards behind their owner's.
    ///
    /// # Errors
    /// What the attachment said, that there is no such disk or nobody writes it, or that a shard
    /// does not answer or is ending.
    pub async fn share(
        &self,
        disk: DiskTag,
        with: &Self,
        attachment: GuestAttachment,
    ) -> io::Result<DiskTag> {
        let told = self.ask(|answer| Message::Publish(disk, answer)).await;
        let published = told.map_err(io::Error::other)??;
        let nudge = self.bell();
        let (owner, guest) = line(nudge.clone(), with.bell());
        self.connect(NewClient {
            disk,
            export: NO_EXPORT,
            link: Link::Local(nudge),
            client: Box::new(Steward::new(owner)),
            guard: Box::new(()),
        })
        .map_err(io::Error::other)?;
        let attachment = Box::new(move |add_file: AddFile<'_>| attachment(published, add_file));
        let asked = with.ask(|answer| Message::Attach(attachment, Some(guest), answer)).await;
        asked.map_err(io::Error::other)?
    }
}

impl Shard {
    /// Begins to tell guests of a disk what they need to know.
    pub(super) fn publish(&mut self, tag: DiskTag, answer: Told) {
        let published = match self.lasting(tag) {
            Some(disk) => self.disks.touch(disk).disk.publish().ok_or_else(|| {
                io::Error::new(io::ErrorKind::Unsupported, "nobody writes the disk")
            }),
            None => Err(gone()),
        };
        // Who asked may have gone; then nobody minds what is told here.
        let _ = answer.send(published);
    }

    /// Connects a guest that was attached with the shard of its owner.
    pub(super) fn hang_line(&mut self, disk: usize, line: GuestEnd) {
        line.bell().hang(LINE | disk);
        self.disks.touch(disk).line = Some(line);
    }

    /// Hands a request that a guest does not answer to its owner.
    pub(super) fn hand_over(&mut self, disk: usize, id: RequestId, request: Request) {
        let bytes = match request {
            Request::Write { from, .. } => self.arena.bytes(from).to_vec(),
            _ => Vec::new(),
        };
        let parcel = Parcel { id, request, bytes };
        let line = self.disks[disk].line.as_ref();
        if line.is_none_or(|line| line.post(parcel).is_err()) {
            self.disks.touch(disk).disk.answered(id, Err(nobody(&request)));
        }
    }

    /// Tells the owner of a guest that nothing more will be asked, so that its shard need not wait
    /// for this one's other disks.
    pub(super) fn let_owner_go(&mut self, disk: usize) {
        if self.disks[disk].is_quiet() {
            self.disks.touch(disk).line = None;
        }
    }

    /// Takes the answers of an owner, if it is a line's bell that was rung.
    pub(super) fn hear_line(&mut self, key: usize) -> bool {
        if key & LINE == 0 {
            return false;
        }
        let disk = key & !LINE;
        let outcomes = self.disks[disk].line.as_ref().map(GuestEnd::take).unwrap_or_default();
        for Outcome { id, request, result, bytes } in outcomes {
            let result = result.map(|answer| self.bring_home(request, answer, &bytes));
            self.disks.touch(disk).disk.answered(id, result);
        }
        true
    }

    /// Puts what was read where it was asked for, and says so in terms of this shard's memory.
    fn bring_home(&mut self, request: Request, answer: Answer, bytes: &[u8]) -> Answer {
        let (Request::Read { into, .. } | Request::Fetch { into, .. }) = request else {
            return answer;
        };
        let Answer::Segments(segments) = answer else {
            self.arena.copy_in(into, bytes);
            return Answer::Done;
        };
        let (mut skip, mut rest) = (ByteLen::ZERO, bytes);
        let mut home = |segment| match segment {
            Segment::Data(theirs) => {
                let mine = into.part(skip, theirs.bytes());
                let (here, later) = rest.split_at(mine.len as usize);
                self.arena.copy_in(mine, here);
                (skip, rest) = (skip + theirs.bytes(), later);
                Segment::Data(mine)
            }
            Segment::Hole(len) => {
                skip += len;
                Segment::Hole(len)
            }
        };
        Answer::Segments(segments.into_iter().map(&mut home).collect())
    }
}
