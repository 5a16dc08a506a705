//! A client of the model: what it asked, what it was told, and what the oracle learns from both.
//!
//! Refuses to move bytes: the life feeds them and brings what came back.

use std::collections::{BTreeMap, VecDeque};

use orlop::host::sim::rng::Rng;
use orlop::host::sim::script::PeerId;

use crate::oracle::{Cells, Oracle, Puts, WriteNo};
use crate::probe::tags;
use crate::tag::{CELL, Tag};
use crate::wire::{ENOTSUP, ESHUTDOWN, Frame, Header, Part, Style, command, flag, frame};

/// What the reply to a request must be like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Read,
    /// A change; the oracle knows it once all of it has arrived.
    Change(Puts, bool),
    Flush,
    /// Nothing but success or failure.
    Cache,
    /// A map in both contexts.
    Status,
    /// It must be refused.
    Nonsense,
}

/// A request that was not answered yet.
struct Asked {
    header: Header,
    kind: Kind,
    /// The oracle's time when the last byte of it had arrived.
    issue: Option<u64>,
    write: Option<WriteNo>,
    /// Bytes of a read that were told, and which.
    data: Vec<u8>,
    known: Vec<bool>,
    maps: u32,
}

impl Asked {
    fn cells(&self) -> Cells {
        let first = (self.header.offset / CELL as u64) as u32;
        Cells { first, count: (self.header.length / CELL as u64) as u32 }
    }
}

/// How a peer has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gone {
    /// It has not.
    No,
    /// It said goodbye, and every byte of that arrived.
    Politely,
    /// In some other way: what it had asked may or may not be done.
    Rudely,
}

/// What a request is to be about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) command: u16,
    pub(crate) flags: u16,
    pub(crate) cells: Cells,
}

/// A client.
pub(crate) struct Peer {
    pub(crate) id: PeerId,
    pub(crate) style: Style,
    pub(crate) gone: Gone,
    /// Whether it takes what it is sent.
    pub(crate) listens: bool,
    /// The server was told to let it go.
    pub(crate) draining: bool,
    /// It sent what no server goes on after.
    pub(crate) doomed: bool,
    said_goodbye: bool,
    unsent: VecDeque<u8>,
    /// Bytes that were queued, and that were fed.
    queued: u64,
    fed: u64,
    /// Where the last whole request that was fed ended, and whether nothing came behind it.
    last_end: u64,
    whole: bool,
    /// Where requests end in the stream.
    ends: VecDeque<(u64, u64)>,
    asked: BTreeMap<u64, Asked>,
    unread: Vec<u8>,
    cookies: u64,
}

impl Peer {
    pub(crate) fn new(id: PeerId, style: Style) -> Self {
        Self {
            id,
            style,
            gone: Gone::No,
            listens: true,
            draining: false,
            doomed: false,
            said_goodbye: false,
            unsent: VecDeque::new(),
            queued: 0,
            fed: 0,
            last_end: 0,
            whole: true,
            ends: VecDeque::new(),
            asked: BTreeMap::new(),
            unread: Vec::new(),
            cookies: 0,
        }
    }

    /// Requests that wait for an answer.
    pub(crate) fn waiting(&self) -> usize {
        self.asked.len()
    }

    /// Bytes that were not fed yet.
    pub(crate) fn unsent(&self) -> usize {
        self.unsent.len()
    }

    /// Whether it may still say something.
    pub(crate) fn speaks(&self) -> bool {
        self.gone == Gone::No && !self.said_goodbye && !self.doomed
    }

    fn cookie(&mut self, rng: &mut Rng) -> u64 {
        // A client may choose any; some look alike.
        self.cookies += 1;
        if rng.chance(1, 2) { self.cookies } else { self.cookies << 32 | 0xFFFF }
    }

    fn queue(&mut self, bytes: &[u8]) {
        self.unsent.extend(bytes);
        self.queued += bytes.len() as u64;
    }

    /// Queues a request; data is of this version.
    pub(crate) fn ask(&mut self, plan: Plan, version: u32, rng: &mut Rng) {
        let Plan { command, flags, cells } = plan;
        let cookie = self.cookie(rng);
        let flush = command == command::FLUSH;
        let offset = if flush { 0 } else { u64::from(cells.first) * CELL as u64 };
        let length = if flush { 0 } else { u64::from(cells.count) * CELL as u64 };
        let fua = flags & flag::FUA != 0;
        let kind = match command {
            command::READ => Kind::Read,
            command::WRITE => Kind::Change(Puts::Data(version), fua),
            command::WRITE_ZEROES => Kind::Change(Puts::Zeroes, fua),
            command::TRIM => Kind::Change(Puts::Maybe, fua),
            command::FLUSH => Kind::Flush,
            command::CACHE => Kind::Cache,
            _ => Kind::Status,
        };
        let header = Header { command, flags, cookie, offset, length };
        let mut payload = vec![0; if command == command::WRITE { length as usize } else { 0 }];
        for (cell, bytes) in cells.iter().zip(payload.chunks_exact_mut(CELL)) {
            Tag::new(1, cell, version).fill(bytes);
        }
        self.put(header, kind, &payload);
    }

    /// Queues a request that must be refused, with a payload that must be skipped.
    pub(crate) fn ask_nonsense(&mut self, header: Header, payload: &[u8], rng: &mut Rng) {
        let header = Header { cookie: self.cookie(rng), ..header };
        self.put(header, Kind::Nonsense, payload);
    }

    fn put(&mut self, header: Header, kind: Kind, payload: &[u8]) {
        self.queue(&header.bytes(self.style));
        self.queue(payload);
        self.ends.push_back((self.queued, header.cookie));
        let len = if kind == Kind::Read { header.length as usize } else { 0 };
        let asked = Asked {
            header,
            kind,
            issue: None,
            write: None,
            data: vec![0; len],
            known: vec![false; len],
            maps: 0,
        };
        assert!(self.asked.insert(header.cookie, asked).is_none(), "cookies are fresh");
    }

    /// Queues a goodbye.
    pub(crate) fn say_goodbye(&mut self) {
        let header =
            Header { command: command::DISC, flags: 0, cookie: 1 << 60, offset: 0, length: 0 };
        self.queue(&header.bytes(self.style));
        self.said_goodbye = true;
    }

    /// Queues bytes that are no request.
    pub(crate) fn say_rubbish(&mut self) {
        self.queue(&[0x55; 32]);
        self.doomed = true;
    }

    /// Takes the next bytes to feed; the oracle learns what has arrived whole with them.
    pub(crate) fn take(&mut self, most: usize, oracle: &mut Oracle) -> Vec<u8> {
        let count = most.min(self.unsent.len());
        self.fed += count as u64;
        while let Some((end, cookie)) = self.ends.front().copied() {
            if end > self.fed {
                break;
            }
            self.ends.pop_front();
            self.last_end = end;
            let asked = self.asked.get_mut(&cookie).expect("it was not answered before");
            asked.issue = Some(match asked.kind {
                Kind::Change(puts, fua) => {
                    asked.write = Some(oracle.issue(asked.cells(), puts, fua));
                    oracle.tick()
                }
                _ => oracle.tick(),
            });
        }
        if self.said_goodbye && self.fed == self.queued && self.gone == Gone::No {
            self.gone = Gone::Politely;
        }
        self.unsent.drain(..count).collect()
    }

    /// Says nothing more. `half`: it still listens, and everything it asked had arrived whole;
    /// that is as good as a goodbye.
    pub(crate) fn go(&mut self, half: bool) {
        self.listens &= half;
        if self.gone == Gone::No {
            self.gone = if half { Gone::Politely } else { Gone::Rudely };
        }
        self.unsent.clear();
        self.whole = self.fed == self.queued || self.last_end == self.fed;
        self.ends.clear();
    }

    /// Whether what was fed ends with a whole request.
    pub(crate) fn ends_whole(&self) -> bool {
        self.whole
    }

    /// Reads what came. `excused`: something was made to fail.
    ///
    /// # Errors
    /// What the server did wrong.
    pub(crate) fn hear(
        &mut self,
        bytes: &[u8],
        oracle: &mut Oracle,
        excused: bool,
    ) -> Result<(), String> {
        self.unread.extend_from_slice(bytes);
        loop {
            let asked = &self.asked;
            let about = |cookie| {
                let asked: &Asked = asked.get(&cookie)?;
                let read = asked.kind == Kind::Read;
                Some((asked.header.offset, if read { asked.header.length } else { 0 }))
            };
            let Some(frame) = frame(&self.unread, self.style, about)? else { return Ok(()) };
            self.unread.drain(..frame.taken);
            self.judge(frame, oracle, excused)?;
        }
    }

    fn judge(&mut self, frame: Frame, oracle: &mut Oracle, excused: bool) -> Result<(), String> {
        let style = self.style;
        let asked = self.asked.get_mut(&frame.cookie).ok_or("a reply to nobody")?;
        let Some(issue) = asked.issue else {
            // A refusal may come before a payload that is skipped.
            if let (Part::Failed(_), true) = (&frame.part, frame.done) {
                return self.refused_early(frame.cookie, excused);
            }
            return Err(format!("{:?} was answered before it had arrived", asked.header));
        };
        match (&frame.part, asked.kind) {
            (Part::Failed(error), kind) => {
                let fast = asked.header.flags & flag::FAST_ZERO != 0 && *error == ENOTSUP;
                let leaving = self.draining && *error == ESHUTDOWN;
                if kind != Kind::Nonsense && !excused && !fast && !leaving {
                    return Err(format!("{:?} failed with {error}", asked.header));
                }
            }
            (Part::Data(at, data), Kind::Read) => asked.learn(*at, data)?,
            (Part::Hole(at, len), Kind::Read) => asked.learn(*at, &vec![0; *len as usize])?,
            (Part::Map(context, extents), Kind::Status) => {
                asked.judge_map(style, *context, extents, issue, oracle)?;
            }
            (Part::Plain, Kind::Change(..) | Kind::Flush | Kind::Cache) => {}
            // A read of nothing but errors has no such end; one whose chunks are all told may.
            (Part::Plain, Kind::Read) if asked.known.iter().all(|known| *known) => {}
            (part, _) => return Err(format!("{:?} was answered by {part:?}", asked.header)),
        }
        if frame.done {
            let asked = self.asked.remove(&frame.cookie).ok_or("it was there")?;
            asked.end(&frame.part, oracle)?;
        }
        Ok(())
    }

    fn refused_early(&mut self, cookie: u64, excused: bool) -> Result<(), String> {
        let asked = self.asked.remove(&cookie).ok_or("it was there")?;
        self.ends.retain(|(_, other)| *other != cookie);
        if asked.kind == Kind::Nonsense || excused || self.draining {
            return Ok(());
        }
        Err(format!("{:?} was refused", asked.header))
    }

    /// The connection is closed. `excused`: something was made to fail. `cut`: time ran out.
    ///
    /// # Errors
    /// What is missing, or is cut off in the middle.
    pub(crate) fn closed(
        &mut self,
        oracle: &mut Oracle,
        excused: bool,
        cut: bool,
    ) -> Result<(), String> {
        let sure = !cut && !self.draining && !self.doomed && self.gone == Gone::Politely;
        if sure && self.listens {
            if let Some(asked) = self.asked.values().find(|asked| asked.issue.is_some()) {
                return Err(format!("{:?} was never answered", asked.header));
            }
            if !self.unread.is_empty() {
                return Err(format!("{} bytes of half a reply", self.unread.len()));
            }
        }
        if self.gone == Gone::No && !cut && !self.draining && !self.doomed {
            return Err("the server hung up on a peer that did nothing wrong".into());
        }
        for asked in std::mem::take(&mut self.asked).into_values() {
            // A fast zero may have been refused.
            let fast = asked.header.flags & flag::FAST_ZERO != 0;
            if let (Some(no), true) = (asked.write, sure && !excused && !fast) {
                // Nobody was told, but a goodbye waits for what came before it.
                oracle.ack(no, true);
            }
        }
        self.unread.clear();
        Ok(())
    }
}

impl std::fmt::Debug for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peer")
            .field("id", &self.id)
            .field("style", &self.style)
            .field("gone", &self.gone)
            .field("listens", &self.listens)
            .field("draining", &self.draining)
            .field("doomed", &self.doomed)
            .field("fed", &(self.fed, self.queued))
            .field("unread_len", &self.unread.len())
            .field("asked", &self.asked.values())
            .finish()
    }
}

impl std::fmt::Debug for Asked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {:?} since {:?}", self.kind, self.header, self.issue)
    }
}

impl Asked {
    fn learn(&mut self, at: u64, data: &[u8]) -> Result<(), String> {
        let start = at.checked_sub(self.header.offset).ok_or("data before the request")? as usize;
        let end = start + data.len();
        let known = self.known.get_mut(start..end).ok_or("data behind the request")?;
        if known.iter().any(|known| *known) {
            return Err(format!("{:?}: bytes from {at} on were told twice", self.header));
        }
        known.fill(true);
        self.data[start..end].copy_from_slice(data);
        Ok(())
    }

    fn judge_map(
        &mut self,
        style: Style,
        context: u32,
        extents: &[(u64, u64)],
        issue: u64,
        oracle: &Oracle,
    ) -> Result<(), String> {
        if !(1..=2).contains(&context) || self.maps & 1 << context != 0 {
            return Err(format!("context {context} in style {style:?}"));
        }
        self.maps |= 1 << context;
        let one = self.header.flags & flag::REQ_ONE != 0;
        let total: u64 = extents.iter().map(|(len, _)| len).sum();
        if one && (extents.len() > 1 || total > self.header.length) {
            return Err(format!("{extents:?} for one extent of {:?}", self.header));
        }
        let mut at = self.header.offset;
        let end = self.header.offset + self.header.length;
        for (len, flags) in extents {
            let next = (at + len).min(end);
            if context == 1 && flags & 2 != 0 {
                for cell in at.div_ceil(CELL as u64)..next / CELL as u64 {
                    if !oracle.may_read(cell as u32, issue, Tag::ZERO) {
                        let story = oracle.story(cell as u32);
                        return Err(format!("the map says that cell {cell} is zero\n{story}"));
                    }
                }
            }
            if at >= end {
                return Err(format!("{extents:?} go on behind {:?}", self.header));
            }
            at += len;
        }
        Ok(())
    }

    fn end(self, last: &Part, oracle: &mut Oracle) -> Result<(), String> {
        let failed = matches!(last, Part::Failed(_));
        if !failed && self.kind == Kind::Nonsense {
            return Err(format!("{:?} was carried out", self.header));
        }
        match self.kind {
            Kind::Change(..) => {
                if let Some(no) = self.write {
                    oracle.ack(no, !failed);
                }
            }
            Kind::Flush if !failed => oracle.flushed(self.issue.unwrap_or(0)),
            Kind::Status if !failed && self.maps != 0b110 => {
                return Err("a context was left out".into());
            }
            Kind::Read if !failed => {
                if !self.known.iter().all(|known| *known) {
                    return Err(format!("{:?}: bytes were left out", self.header));
                }
                let cells = self.cells();
                for (cell, tag) in cells.iter().zip(tags(cells.first, &self.data)) {
                    if !oracle.may_read(cell, self.issue.unwrap_or(0), tag) {
                        let story = oracle.story(cell);
                        let what = format!("{:?} since {:?}", self.header, self.issue);
                        return Err(format!("{what} found {tag} in cell {cell}\n{story}"));
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }
}
