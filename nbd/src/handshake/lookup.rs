//! The export a client names, or why it does not get it.
//!
//! Who may have which export is decided behind [`Exports`]; this module only finds the words.

use super::Handshake;
use crate::export::{Export, Exports, Lookup};
use crate::options::{self, Malformed};
use crate::violation::Violation;
use crate::wire::option_reply;

const DRAINING: &str = "the server is going away and takes no new clients";

impl Handshake {
    /// The export of that name, or `None` after the client was told why not.
    pub(super) fn look_up(
        &mut self,
        option: u32,
        name: &str,
        exports: &dyn Exports,
    ) -> Result<Option<Export>, Violation> {
        if exports.draining() {
            return self.refuse(option, option_reply::ERR_SHUTDOWN, DRAINING).map(|()| None);
        }
        let quoted = || options::quoted(name.as_bytes());
        let found = match option {
            crate::wire::option::GO => exports.enter(name),
            _ => exports.find(name),
        };
        let (kind, text) = match found {
            Lookup::Found(export) => return Ok(Some(*export)),
            Lookup::Unknown => {
                (option_reply::ERR_UNKNOWN, format!("there is no export {}", quoted()))
            }
            Lookup::TlsRequired if self.can_start_tls() => {
                let text = format!("export {} requires TLS: use STARTTLS first", quoted());
                (option_reply::ERR_TLS_REQD, text)
            }
            // The protocol forbids TLS_REQD where TLS cannot be started, or is there already.
            Lookup::TlsRequired => {
                let text = format!("export {} requires TLS that is not offered here", quoted());
                (option_reply::ERR_POLICY, text)
            }
            Lookup::Forbidden(text) if text.is_empty() => {
                (option_reply::ERR_POLICY, format!("export {} is not for this client", quoted()))
            }
            Lookup::Forbidden(text) => (option_reply::ERR_POLICY, text),
        };
        self.refuse(option, kind, text).map(|()| None)
    }

    /// The export EXPORT_NAME asks for. The option has no error reply, so all that is left is to
    /// drop the connection.
    pub(super) fn look_up_or_drop(
        &self,
        data: &[u8],
        exports: &dyn Exports,
    ) -> Result<Export, Violation> {
        let name = options::string(data).map_err(|malformed| {
            let (Malformed::Invalid(reason) | Malformed::TooBig(reason)) = malformed;
            let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
            Violation::BadExportName { length, reason }
        })?;
        if exports.draining() {
            return Err(Violation::Draining);
        }
        let quoted = options::quoted(data);
        match exports.enter(name) {
            Lookup::Found(export) => Ok(*export),
            Lookup::Unknown => Err(Violation::UnknownExport { quoted }),
            Lookup::TlsRequired => Err(Violation::TlsRequiredExport { quoted }),
            Lookup::Forbidden(text) => Err(Violation::ForbiddenExport { quoted, text }),
        }
    }

    pub(super) fn list(&mut self, data: &[u8], exports: &dyn Exports) -> Result<(), Violation> {
        const OPTION: u32 = crate::wire::option::LIST;
        if !data.is_empty() {
            return self.refuse(OPTION, option_reply::ERR_INVALID, "LIST carries no data");
        }
        if exports.draining() {
            return self.refuse(OPTION, option_reply::ERR_SHUTDOWN, DRAINING);
        }
        if !exports.listable() {
            return self.refuse(OPTION, option_reply::ERR_POLICY, "exports are not listed here");
        }
        let mut answer = Vec::new();
        for entry in exports.list() {
            // A name no client could send back is better left out than sent broken.
            let Ok(name) = options::string(entry.name.as_bytes()) else { continue };
            let length =
                u32::try_from(name.len()).expect("a checked string has at most 4096 bytes");
            let mut item = length.to_be_bytes().to_vec();
            item.extend_from_slice(name.as_bytes());
            item.extend_from_slice(super::plain(&entry.description).as_bytes());
            super::append_reply(&mut answer, OPTION, option_reply::SERVER, &item);
            // No longer than it can be sent: the rest of the list would be built for nothing.
            if !self.fits(&answer) {
                break;
            }
        }
        super::append_reply(&mut answer, OPTION, option_reply::ACK, &[]);
        if !self.fits(&answer) {
            return self.refuse(OPTION, option_reply::ERR_TOO_BIG, "too many exports to list");
        }
        self.say(&answer)
    }
}
