//! The client's side of the handshake, which checks on the way what holds for every reply.
//!
//! It can also say what no client should: nothing it sends is checked.

use std::io::{Read, Write};

use crate::case::{Outcome, Stop, during, ensure};
use crate::link::{Connector, Ending, Link};
use crate::wire::{
    Fields, IHAVEOPT, NBDMAGIC, OPTION_REPLY, STRING_MAX, context_request, hello, info,
    info_request, opt, option, rep,
};
use crate::world::Target;

/// No reply of a handshake is longer than this: a few strings.
const REPLY_MAX: u32 = 64 << 10;

/// No option has more replies than this here.
const REPLIES_MAX: usize = 4096;

/// One reply to an option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OptionReply {
    pub(crate) kind: u32,
    pub(crate) data: Vec<u8>,
}

impl OptionReply {
    /// Whether it says that an option failed.
    pub(crate) fn is_error(&self) -> bool {
        self.kind & rep::ERROR != 0
    }
}

/// All replies to one option; the last is the final one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer(pub(crate) Vec<OptionReply>);

impl Answer {
    /// The reply that ended it.
    pub(crate) fn verdict(&self) -> u32 {
        self.0.last().map_or(0, |reply| reply.kind)
    }

    /// The replies before the final one.
    pub(crate) fn items(&self) -> &[OptionReply] {
        self.0.split_last().map_or(&[], |(_, items)| items)
    }

    /// Expects success, and gives the replies before it.
    pub(crate) fn acked(&self) -> Outcome<&[OptionReply]> {
        ensure!(self.verdict() == rep::ACK, "expected an ACK, got {}", self.told());
        Ok(self.items())
    }

    /// Expects one of these errors and no other reply.
    pub(crate) fn refused(&self, with: &[u32]) -> Outcome {
        let right = self.items().is_empty() && with.contains(&self.verdict());
        ensure!(right, "expected one of {with:x?} alone, got {}", self.told());
        Ok(())
    }

    /// The words of an error reply.
    pub(crate) fn text(&self) -> &[u8] {
        self.0.last().map_or(&[], |reply| &reply.data)
    }

    fn told(&self) -> String {
        let kinds: Vec<_> = self.0.iter().map(|reply| format!("{:#x}", reply.kind)).collect();
        format!("{} {:?}", kinds.join(", "), String::from_utf8_lossy(self.text()))
    }

    /// The information of an INFO or GO that succeeded: type and payload.
    pub(crate) fn information(&self) -> Outcome<Vec<(u16, Vec<u8>)>> {
        let mut found = Vec::new();
        for item in self.acked()? {
            ensure!(item.kind == rep::INFO, "a reply of type {:#x} in between", item.kind);
            let mut fields = Fields(&item.data);
            let kind = fields.u16().ok_or("a REP_INFO without a type")?;
            found.push((kind, fields.0.to_vec()));
        }
        Ok(found)
    }

    /// Size and flags of an INFO or GO that succeeded.
    pub(crate) fn export(&self) -> Outcome<(u64, u16)> {
        let found = self.information()?;
        let export = found.iter().find(|(kind, _)| *kind == info::EXPORT);
        let (_, data) = export.ok_or("no INFO_EXPORT")?;
        ensure!(data.len() == 10, "INFO_EXPORT has {} bytes behind its type", data.len());
        let mut fields = Fields(data);
        Ok((fields.u64().ok_or("no size")?, fields.u16().ok_or("no flags")?))
    }

    /// Ids and names of the contexts of a metadata option that succeeded.
    pub(crate) fn contexts(&self) -> Outcome<Vec<(u32, String)>> {
        let mut found = Vec::new();
        for item in self.acked()? {
            ensure!(item.kind == rep::META_CONTEXT, "a reply of type {:#x}", item.kind);
            let mut fields = Fields(&item.data);
            let id = fields.u32().ok_or("a context without an id")?;
            found.push((id, a_string(fields.0)?.to_owned()));
        }
        Ok(found)
    }
}

/// What the protocol calls a string: UTF-8 without NUL, at most 4096 bytes.
pub(crate) fn a_string(bytes: &[u8]) -> Outcome<&str> {
    ensure!(bytes.len() <= STRING_MAX, "a string of {} bytes", bytes.len());
    ensure!(!bytes.contains(&0), "a string with a NUL");
    str::from_utf8(bytes).map_err(|error| Stop::Broken(format!("not UTF-8: {error}")))
}

/// A connection in its handshake.
pub(crate) struct Peer {
    pub(crate) link: Link,
    /// Flags of the greeting.
    pub(crate) greeting: u16,
}

impl Peer {
    /// Connects and reads the greeting; nothing is answered yet.
    pub(crate) fn greeted(connector: &Connector) -> Outcome<Self> {
        let mut peer = Self { link: during("connecting", connector.open())?, greeting: 0 };
        let greeting = peer.take(18)?;
        let mut fields = Fields(&greeting);
        ensure!(fields.u64() == Some(NBDMAGIC), "the greeting starts with {greeting:x?}");
        ensure!(fields.u64() == Some(IHAVEOPT), "the greeting goes on with {greeting:x?}");
        peer.greeting = fields.u16().ok_or("a greeting without flags")?;
        Ok(peer)
    }

    /// Connects, answers the greeting with these flags, and goes on under TLS if that is called
    /// for.
    pub(crate) fn with_flags(connector: &Connector, flags: u32) -> Outcome<Self> {
        let mut peer = Self::greeted(connector)?;
        peer.send(&flags.to_be_bytes())?;
        match &connector.tls {
            None => Ok(peer),
            Some(config) => {
                peer.option(opt::STARTTLS, &[])?.acked()?;
                peer.secured(config)
            }
        }
    }

    /// The TLS handshake, after STARTTLS was acknowledged.
    pub(crate) fn secured(self, config: &std::sync::Arc<rustls::ClientConfig>) -> Outcome<Self> {
        let link = during("the TLS handshake", self.link.secure(config))?;
        Ok(Self { link, greeting: self.greeting })
    }

    /// Connects as any modern client does.
    pub(crate) fn open(connector: &Connector) -> Outcome<Self> {
        Self::with_flags(connector, hello::FIXED_NEWSTYLE | hello::NO_ZEROES)
    }

    /// Sends bytes as they are.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> Outcome {
        during("sending", self.link.write_all(bytes))?;
        during("sending", self.link.flush())
    }

    /// Receives exactly so many bytes.
    pub(crate) fn take(&mut self, count: usize) -> Outcome<Vec<u8>> {
        let mut bytes = vec![0; count];
        during(&format!("waiting for {count} bytes"), self.link.read_exact(&mut bytes))?;
        Ok(bytes)
    }

    /// Asks for an option and reads its answer to the end.
    pub(crate) fn option(&mut self, number: u32, data: &[u8]) -> Outcome<Answer> {
        self.send(&option(number, data))?;
        self.answer(number)
    }

    /// Reads the answer to an option that was sent.
    pub(crate) fn answer(&mut self, number: u32) -> Outcome<Answer> {
        let mut replies = Vec::new();
        loop {
            let header = self.take(20)?;
            let mut fields = Fields(&header);
            let magic = fields.u64();
            ensure!(magic == Some(OPTION_REPLY), "an option reply starts with {header:x?}");
            let about = fields.u32().unwrap_or_default();
            ensure!(about == number, "a reply about option {about}, not {number}");
            let kind = fields.u32().unwrap_or_default();
            let length = fields.u32().unwrap_or_default();
            ensure!(length <= REPLY_MAX, "an option reply of {length} bytes");
            let data = self.take(length as usize)?;
            ensure!(kind != rep::ACK || data.is_empty(), "an ACK with {length} bytes of data");
            let reply = OptionReply { kind, data };
            if reply.is_error() {
                a_string(&reply.data)?;
            }
            let last = reply.kind == rep::ACK || reply.is_error();
            replies.push(reply);
            if last {
                return Ok(Answer(replies));
            }
            ensure!(replies.len() < REPLIES_MAX, "no end of replies to option {number}");
        }
    }

    /// INFO or GO about an export.
    pub(crate) fn ask(&mut self, number: u32, name: &[u8], kinds: &[u16]) -> Outcome<Answer> {
        self.option(number, &info_request(name, kinds))
    }

    /// LIST_META_CONTEXT or SET_META_CONTEXT about an export.
    pub(crate) fn contexts(
        &mut self,
        number: u32,
        name: &[u8],
        queries: &[&[u8]],
    ) -> Outcome<Answer> {
        self.option(number, &context_request(name, queries))
    }

    /// Expects that an option without data succeeds.
    pub(crate) fn agree(&mut self, number: u32) -> Outcome {
        let answer = self.option(number, &[])?;
        if answer.verdict() == rep::ERR_UNSUP {
            return Err(Stop::Lacking(format!("option {number}")));
        }
        answer.acked().map(drop)
    }

    /// Expects that the handshake is still in step: INFO about an export is answered.
    pub(crate) fn in_step(&mut self, target: &Target) -> Outcome {
        let answer = self.ask(opt::INFO, target.name(), &[])?;
        let (size, _) = answer.export()?;
        ensure!(size == target.size, "INFO tells {size} bytes of {}", target.size);
        Ok(())
    }

    /// Expects that the server closes without another byte.
    pub(crate) fn dropped(mut self) -> Outcome<Ending> {
        let (bytes, ending) = during("waiting for the end", self.link.drain())?;
        ensure!(bytes.is_empty(), "{} bytes came before the end: {bytes:x?}", bytes.len());
        Ok(ending)
    }
}
