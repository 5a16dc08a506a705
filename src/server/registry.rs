//! The exports of a server by name, and who is connected to them.
//!
//! Refuses to open or close disks: it holds what `control` made, and tells a handshake what a peer
//! may see of it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Instant;

use nbd::{Export, ExportEntry, Exports, Lookup};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::estate::OwnedDisk;
use super::words::Words;
use crate::engine::units::Extent;
use crate::meter::{Meter, Meters, Throttle};
use crate::shard::ExportKey;
use crate::tls::{Peer, Rule};
use crate::transport::nbd::{ExportShape, export_of};

/// One export as it is being served.
pub struct Seat {
    /// Names its connections on the shard.
    pub key: ExportKey,
    /// The name clients ask for.
    pub name: String,
    /// Text for people.
    pub description: String,
    /// The disk behind it.
    pub disk: Arc<OwnedDisk>,
    /// Which bytes of the disk it shows; `None` for all, however many those are.
    pub window: Option<Extent>,
    /// Whether its clients may not write.
    pub read_only: bool,
    /// Whether its clients may change the disk's size.
    pub resize: bool,
    /// Whether it may be used without TLS although there are credentials.
    pub plaintext: bool,
    /// Who may use it; empty for everyone.
    pub allow: Vec<Rule>,
    /// What its clients did, together: counted by each shard for those of them that it has.
    pub meter: Meters,
    /// How much they may do in a second.
    pub throttle: Arc<Throttle>,
    /// Most connections.
    pub max_connections: usize,
    pub(super) slots: Arc<Semaphore>,
    pub(super) connections: Mutex<BTreeMap<u64, Arc<Connection>>>,
}

/// One connection in its transmission phase, as it is looked at from outside.
#[derive(Debug)]
pub struct Connection {
    /// Its number, unique in the process.
    pub id: u64,
    /// Who is there, as far as the transport or TLS tells.
    pub peer: String,
    /// The shard it is on, from 0.
    pub shard: usize,
    /// When its handshake ended.
    pub since: Instant,
    /// What it did.
    pub meter: Arc<Meter>,
}

impl Seat {
    /// The bytes of the disk it shows now.
    #[must_use]
    pub fn extent(&self) -> Extent {
        let start = crate::engine::units::DiskOffset::new(0);
        self.window.unwrap_or_else(|| Extent::new(start, self.disk.size()))
    }

    /// What the protocol says of it.
    #[must_use]
    pub fn export(&self) -> Export {
        export_of(ExportShape {
            name: self.name.clone(),
            description: self.description.clone(),
            size: self.extent().len,
            read_only: self.read_only,
            resize: self.resize,
        })
    }

    /// Its connections, the oldest first.
    #[must_use]
    pub fn connections(&self) -> Vec<Arc<Connection>> {
        self.lock_connections().values().cloned().collect()
    }

    /// Whether anybody is connected, or about to be: a handshake that has chosen it counts.
    #[must_use]
    pub fn is_in_use(&self) -> bool {
        self.slots.available_permits() < self.max_connections
    }

    fn lock_connections(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Connection>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a connection for as long as the ticket lives.
    pub(super) fn welcome(self: &Arc<Self>, connection: Connection) -> Ticket {
        let id = connection.id;
        self.lock_connections().insert(id, Arc::new(connection));
        Ticket { seat: Arc::clone(self), id }
    }
}

/// A connection's entry in the list of its export.
pub(super) struct Ticket {
    seat: Arc<Seat>,
    id: u64,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.seat.lock_connections().remove(&self.id);
    }
}

/// A name that cannot be given to an export.
#[derive(Debug, thiserror::Error)]
pub enum NameError {
    /// It is taken.
    #[error("there is an export {0:?} already; remove it first, or choose another name")]
    Taken(String),
    /// The protocol cannot carry it.
    #[error("an export's name has at most 4096 bytes and no NUL")]
    Unsayable,
    /// There is none of that name.
    #[error("there is no export {0:?}")]
    Unknown(String),
    /// The table is full.
    #[error("a server has at most {0} exports")]
    TooMany(usize),
}

/// Exports of one server at most.
const MAX_EXPORTS: usize = 4096;
/// Longest name the protocol carries, in bytes.
const NAME_MAX: usize = 4096;

/// All exports of a server.
#[derive(Default)]
pub struct Registry {
    exports: RwLock<BTreeMap<String, Arc<Seat>>>,
    /// What clients get that ask for no name; the only export when `None`.
    default: RwLock<Option<String>>,
    draining: AtomicBool,
    next: AtomicU64,
    /// What clients make the log say.
    pub(super) words: Words,
}

impl Registry {
    /// A number nothing else in this process has.
    pub(super) fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Checks that an export could be called so.
    ///
    /// # Errors
    /// Why not.
    pub fn check_name(&self, name: &str) -> Result<(), NameError> {
        check_among(&self.read(), name)
    }

    /// Shows an export to clients from now on.
    ///
    /// # Errors
    /// Its name cannot be given.
    pub fn insert(&self, seat: Arc<Seat>) -> Result<(), NameError> {
        let mut exports = self.write();
        check_among(&exports, &seat.name)?;
        exports.insert(seat.name.clone(), seat);
        Ok(())
    }

    /// Hides an export; its connections go on.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn remove(&self, name: &str) -> Result<Arc<Seat>, NameError> {
        self.write().remove(name).ok_or_else(|| NameError::Unknown(name.to_owned()))
    }

    /// Hides this very export, whatever else has its name by now; says whether it was shown.
    pub fn hide(&self, seat: &Arc<Seat>) -> bool {
        let mut exports = self.write();
        let is_shown = exports.get(&seat.name).is_some_and(|other| Arc::ptr_eq(other, seat));
        if is_shown {
            exports.remove(&seat.name);
        }
        is_shown
    }

    /// Does something for an export that is still shown, before it can be removed. `None`: it was.
    ///
    /// What `act` posts to a shard comes before whatever a removal posts.
    pub(super) fn while_shown<T>(&self, seat: &Arc<Seat>, act: impl FnOnce() -> T) -> Option<T> {
        let exports = self.read();
        exports.get(&seat.name).filter(|other| Arc::ptr_eq(other, seat)).map(|_| act())
    }

    /// The export of that name.
    ///
    /// # Errors
    /// There is none.
    pub fn seat(&self, name: &str) -> Result<Arc<Seat>, NameError> {
        self.read().get(name).cloned().ok_or_else(|| NameError::Unknown(name.to_owned()))
    }

    /// All exports, by name.
    #[must_use]
    pub fn seats(&self) -> Vec<Arc<Seat>> {
        self.read().values().cloned().collect()
    }

    /// Chooses what clients get that ask for no name.
    pub fn set_default(&self, name: Option<String>) {
        *self.default.write().unwrap_or_else(PoisonError::into_inner) = name;
    }

    /// The name of what clients get that ask for none.
    #[must_use]
    pub fn default_name(&self) -> Option<String> {
        let chosen = self.default.read().unwrap_or_else(PoisonError::into_inner).clone();
        chosen.or_else(|| {
            let exports = self.read();
            let mut names = exports.keys();
            names.next().filter(|_| names.next().is_none()).cloned()
        })
    }

    /// New sessions are refused from now on.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    fn find(&self, name: &str) -> Option<Arc<Seat>> {
        // An export that is really called "" is found as such.
        let found = self.read().get(name).cloned();
        if found.is_some() || !name.is_empty() {
            return found;
        }
        // In two steps: a lock that is held while it is asked for again waits for ever once
        // somebody wants to write in between.
        let default = self.default_name()?;
        self.read().get(&default).cloned()
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<String, Arc<Seat>>> {
        self.exports.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<String, Arc<Seat>>> {
        self.exports.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether an export could have this name beside others.
fn check_among(exports: &BTreeMap<String, Arc<Seat>>, name: &str) -> Result<(), NameError> {
    if name.len() > NAME_MAX || name.contains('\0') {
        return Err(NameError::Unsayable);
    }
    if exports.contains_key(name) {
        return Err(NameError::Taken(name.to_owned()));
    }
    if exports.len() >= MAX_EXPORTS {
        return Err(NameError::TooMany(MAX_EXPORTS));
    }
    Ok(())
}

/// What one peer sees of the exports, in its handshake.
pub(super) struct Sight<'a> {
    registry: &'a Registry,
    /// Whether the server has credentials at all.
    tls: bool,
    /// Who it is, once TLS told.
    peer: Option<Peer>,
    /// What it gets that asks for no name, if that was settled before.
    preset: Option<&'a str>,
    /// The export found last, with a slot of it: the one a session is for.
    found: RefCell<Option<(Arc<Seat>, OwnedSemaphorePermit)>>,
}

impl<'a> Sight<'a> {
    pub(super) fn new(registry: &'a Registry, tls: bool, preset: Option<&'a str>) -> Self {
        Self { registry, tls, peer: None, preset, found: RefCell::new(None) }
    }

    /// The peer went over to TLS.
    pub(super) fn secured(&mut self, peer: Peer) {
        self.peer = Some(peer);
        self.found.take();
    }

    /// The exports it is about.
    pub(super) const fn registry(&self) -> &Registry {
        self.registry
    }

    /// Who it is, if TLS told.
    pub(super) fn peer(&self) -> Option<&Peer> {
        self.peer.as_ref()
    }

    /// The export of the session and the slot taken in it.
    pub(super) fn chosen(&self) -> Option<(Arc<Seat>, OwnedSemaphorePermit)> {
        self.found.take()
    }

    /// Whether the peer may use the export, and what it is told if not.
    fn may_use(&self, seat: &Seat) -> Result<(), Lookup> {
        let in_clear = self.peer.is_none();
        if in_clear && ((self.tls && !seat.plaintext) || !seat.allow.is_empty()) {
            return Err(Lookup::TlsRequired);
        }
        match &self.peer {
            Some(peer) if !seat.allow.is_empty() && !peer.is_one_of(&seat.allow) => {
                let text = format!("{peer} is not on the list of those who may use this export");
                Err(Lookup::Forbidden(text))
            }
            _ => Ok(()),
        }
    }
}

impl Exports for Sight<'_> {
    fn list(&self) -> Vec<ExportEntry> {
        let seats = self.registry.seats();
        let entry = |seat: &Arc<Seat>| ExportEntry {
            name: seat.name.clone(),
            description: seat.description.clone(),
        };
        seats.iter().filter(|seat| self.may_use(seat).is_ok()).map(entry).collect()
    }

    fn find(&self, name: &str) -> Lookup {
        self.find_seat(name)
            .map_or_else(|refusal| refusal, |seat| Lookup::Found(seat.export().into()))
    }

    fn enter(&self, name: &str) -> Lookup {
        self.found.take();
        let seat = match self.find_seat(name) {
            Ok(seat) => seat,
            Err(refusal) => return refusal,
        };
        let Ok(slot) = Arc::clone(&seat.slots).try_acquire_owned() else {
            let most = seat.max_connections;
            return Lookup::Forbidden(format!("all {most} connections of this export are taken"));
        };
        let export = Box::new(seat.export());
        self.found.replace(Some((seat, slot)));
        Lookup::Found(export)
    }

    fn draining(&self) -> bool {
        self.registry.draining.load(Ordering::Relaxed)
    }
}

impl Sight<'_> {
    /// The export a peer means, if it may use it.
    fn find_seat(&self, name: &str) -> Result<Arc<Seat>, Lookup> {
        let name = if name.is_empty() { self.preset.unwrap_or(name) } else { name };
        let seat = self.registry.find(name).ok_or(Lookup::Unknown)?;
        if let Err(refusal) = self.may_use(&seat) {
            let export = &seat.name;
            let words = &self.registry.words;
            let why = match &refusal {
                Lookup::Forbidden(text) => text.as_str(),
                Lookup::TlsRequired => "it requires TLS, and the client has none",
                Lookup::Unknown | Lookup::Found(_) => "it is not there for this client",
            };
            words.say(|| tracing::warn!(export, why, "a client may not use an export"));
            return Err(refusal);
        }
        Ok(seat)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
    use std::thread::{JoinHandle, spawn};
    use std::time::Duration;

    use super::{Registry, Seat};
    use crate::host::Aio;
    use crate::host::memory::ArenaSize;
    use crate::image::OpenOptions;
    use crate::server::{Control, Estate, ExportSpec, Prepared};
    use crate::shard;

    /// Times each thread does its part; a lock asked for twice hung within a few hundred of them.
    const ROUNDS: u32 = 20_000;
    /// No measure of speed: after that long without an end there is none.
    const HUNG: Duration = Duration::from_secs(120);

    /// A registry that shows the export "first", and a second one of the same disk to come and go.
    fn registry_and_guest() -> (Arc<Registry>, Arc<Seat>) {
        let image = tempfile::Builder::new().suffix(".raw").tempfile().expect("a file");
        image.as_file().set_len(1 << 20).expect("a length");
        let size = ArenaSize { registered_bytes: 1 << 20, large_bytes: 1 << 20 };
        let (mailbox, ..) = shard::spawn(Aio::Threads, size).expect("a shard");
        let registry = Arc::new(Registry::default());
        let estate = Estate::new(vec![mailbox], Prepared::default());
        let control = Control::new(Arc::clone(&registry), estate, 8, None);
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let add = |name: &str| {
            let spec = ExportSpec::new(name.to_owned(), OpenOptions::new(image.path()));
            runtime.block_on(control.add(spec)).expect("it can be served")
        };
        add("first");
        let guest = add("second");
        registry.remove("second").expect("it was added");
        (registry, guest)
    }

    /// Does it `ROUNDS` times in a thread of its own, and keeps a sender until then.
    fn again_and_again(
        done: &Sender<()>,
        mut act: impl FnMut() + Send + 'static,
    ) -> JoinHandle<()> {
        let done = done.clone();
        spawn(move || {
            (0..ROUNDS).for_each(|_| act());
            drop(done);
        })
    }

    #[test]
    fn the_default_export_is_found_while_others_come_and_go() {
        for chosen in [None, Some("first".to_owned())] {
            let (registry, guest) = registry_and_guest();
            registry.set_default(chosen.clone());
            let (done, ended) = channel();
            let settled = chosen.is_some();
            let finder = |registry: Arc<Registry>| {
                again_and_again(&done, move || {
                    let found = registry.find("").map(|seat| seat.name.clone());
                    // Of two exports none is the default, unless one was chosen.
                    let is_right = found.as_deref().map_or(!settled, |name| name == "first");
                    assert!(is_right, "found {found:?}, chosen {settled}");
                })
            };
            let changed = Arc::clone(&registry);
            let comer = again_and_again(&done, move || {
                changed.insert(Arc::clone(&guest)).expect("its name is free");
                changed.remove("second").expect("it was added");
            });
            let (first, second) = (finder(Arc::clone(&registry)), finder(Arc::clone(&registry)));
            let chooser = again_and_again(&done, move || registry.set_default(chosen.clone()));
            drop(done);
            // Nobody sends: the channel ends when the last thread does.
            assert_eq!(ended.recv_timeout(HUNG), Err(RecvTimeoutError::Disconnected), "hung");
            for thread in [comer, first, second, chooser] {
                thread.join().expect("what it found was right");
            }
        }
    }
}
