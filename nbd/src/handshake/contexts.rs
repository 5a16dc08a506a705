//! The options that list and select metadata contexts.

use super::{Handshake, append_reply};
use crate::export::Exports;
use crate::options::{self, Context, Purpose};
use crate::units::ContextId;
use crate::violation::Violation;
use crate::wire::{option, option_reply};

impl Handshake {
    pub(super) fn list_contexts(
        &mut self,
        data: &[u8],
        exports: &dyn Exports,
    ) -> Result<(), Violation> {
        const OPTION: u32 = option::LIST_META_CONTEXT;
        let request = match options::context_request(data, Purpose::List) {
            Ok(request) => request,
            Err(malformed) => return self.malformed(OPTION, malformed),
        };
        let Some(export) = self.look_up(OPTION, request.export, exports)? else { return Ok(()) };
        // In a list the id is reserved and zero.
        let meant = request.meant(&export.contexts).into_iter();
        let listed: Vec<_> = meant.map(|name| Context { id: ContextId(0), name }).collect();
        self.contexts_reply(OPTION, &listed).map(|_told| ())
    }

    pub(super) fn set_contexts(
        &mut self,
        data: &[u8],
        exports: &dyn Exports,
    ) -> Result<(), Violation> {
        const OPTION: u32 = option::SET_META_CONTEXT;
        // A selection that fails still replaces the one before it.
        self.selected = None;
        if !self.structured {
            let text = "metadata contexts need structured replies or extended headers first";
            return self.refuse(OPTION, option_reply::ERR_INVALID, text);
        }
        let request = match options::context_request(data, Purpose::Set) {
            Ok(request) => request,
            Err(malformed) => return self.malformed(OPTION, malformed),
        };
        let Some(export) = self.look_up(OPTION, request.export, exports)? else { return Ok(()) };
        let numbered = (1..).zip(request.meant(&export.contexts));
        let contexts: Vec<_> =
            numbered.map(|(id, name)| Context { id: ContextId(id), name }).collect();
        if self.contexts_reply(OPTION, &contexts)? {
            self.selected = Some((export.name, contexts));
        }
        Ok(())
    }

    /// Tells the contexts and says whether they were told, or were too many.
    fn contexts_reply(&mut self, option: u32, contexts: &[Context]) -> Result<bool, Violation> {
        let mut answer = Vec::new();
        for context in contexts {
            let id = context.id.0.to_be_bytes();
            let item = [&id[..], context.name.to_string().as_bytes()].concat();
            append_reply(&mut answer, option, option_reply::META_CONTEXT, &item);
        }
        append_reply(&mut answer, option, option_reply::ACK, &[]);
        if !self.fits(&answer) {
            self.refuse(option, option_reply::ERR_TOO_BIG, "the answer is too large")?;
            return Ok(false);
        }
        self.say(&answer)?;
        Ok(true)
    }
}
