//! Storage repositories: where images live, what is known of them, and how that changes without
//! ever being half changed.
//!
//! A [`Driver`] makes and finds the place, a [`Store`] is the place as a flat set of named bytes,
//! and a [`Repository`] is what lies in it: VDIs with their parents, records, locks, and intents of
//! what is under way. Data files are what XenServer's file SR reads: `<uuid>.vhd` and `<uuid>.raw`,
//! relative locators, the hidden flag in the footer; everything of ours lies beside them under
//! names of its own. Nothing here serves a disk or speaks to a caller's dialect, and no path that
//! an image names is ever followed.

mod broken;
mod catalogue;
mod change;
mod directory;
mod drafts;
mod driver;
mod dying;
mod ext;
mod facts;
mod failure;
mod fields;
mod file;
mod fork;
mod gc;
mod grow;
mod intent;
mod leasing;
mod looking;
mod names;
mod offline;
mod probe;
mod record;
mod recover;
mod removal;
mod repository;
mod stale;
pub mod store;
mod strays;
mod unfinished;

pub use catalogue::{CHAIN_MAX, Catalogue, Finding, Lock, Vdi};
pub use directory::Directory;
pub use driver::{Capabilities, DeviceConfig, Driver, Substrate, Surroundings, driver};
pub use failure::{Failure, Kind};
pub use fields::{Fields, FieldsError};
pub use fork::{Cut, Idle, Still};
pub use gc::Collected;
pub use intent::Intent;
pub use leasing::LockWish;
pub use names::{DataFormat, NotAUuid, SR_RECORD, SrUuid, VdiUuid, data_name, record_name};
pub use names::{Named, intent_name, lease_name, temporary_name};
pub use offline::OfflineDisk;
pub use probe::{Holds, Probed, probe};
pub use record::{Lease, SrRecord, VdiRecord};
pub use repository::{DataFile, NewVdi, Repository};
pub use store::{DataPlace, DirOp, Store};
pub use unfinished::Unfinished;
