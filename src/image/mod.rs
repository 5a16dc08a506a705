//! Opening and creating images for real: files, locks, and the gate in front of parents.
//!
//! Refuses to guess: a format comes from a name or from the user, never from content; a parent
//! opens only inside a directory somebody vouched for, and only with the identity its child names
//! (section 5.5 of the security notes). Serves nothing: what was opened is handed to the engine.

mod child;
mod children;
mod create;
mod error;
mod file;
mod gate;
mod inspect;
mod layer;
mod lock;
mod null;
mod open;
mod overlay;

pub use child::{Lineage, claim_to_read_only, open_child};
pub use create::{Created, NewImage, NewKind, create};
pub use error::{Cause, ImageError};
pub use file::FileKind;
pub use gate::GateError;
pub use inspect::{Inspection, Repaired, inspect, inspect_layer, repair};
pub use layer::{Content, Format, GuestChain, Notice, NoticeKind, OpenedChain, OpenedLayer};
pub use lock::{LockError, Permission, claim_to_write};
pub use open::{CacheMode, DEPTH_MAX, OpenOptions, open, open_alone};
pub use overlay::{default_place, open_overlay};
