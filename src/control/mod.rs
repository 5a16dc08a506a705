//! The verbs: what may be asked of repositories, by whom at the same time, and what is answered.
//!
//! One vocabulary ([`Command`], [`Outcome`], [`Error`]) that every dialect translates to and from;
//! nothing here knows XML, JSON or sockets. Whoever serves disks is behind a seam ([`Attacher`]).

mod attaching;
pub mod command;
mod error;
mod listing;
mod manager;
mod memory;
mod restart;
mod turns;

pub use attaching::{Access, AttachRequest, Attacher, Detached};
pub use command::{AttachMode, Command, Outcome};
pub use error::{Code, Error};
pub use listing::{Listed, Listing};
pub use manager::{Control, Settings};
