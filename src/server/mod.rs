//! The server of one process: where it listens, what it exports, and how clients get in.
//!
//! Handshakes run here, with a deadline; a negotiated connection moves into a shard that owns its
//! disk. Refuses to touch data in the clear: that is the shard's.

mod control;
mod door;
mod estate;
mod homes;
mod limits;
mod listen;
mod passed;
mod registry;
mod spec;
mod stream;
mod words;

use std::io;
use std::sync::Arc;

use tokio::task::JoinSet;

pub use control::{Control, ControlError};
pub use estate::{DiskError, Estate, OwnedDisk, Prepared};
pub use limits::Limits;
pub use listen::{Bound, CID_ANY, Listen, bind, bind_one_unix, bind_unix};
pub use registry::{Connection, NameError, Registry, Seat};
pub use spec::{ExportSpec, Part, WORDS};

use crate::tls::Tls;
use door::Door;

/// Clients' way into a server.
pub struct Service {
    door: Arc<Door>,
    /// Where handshakes run, and TLS.
    crew: tokio::runtime::Handle,
    /// Listeners, each with its handshakes.
    listening: tokio::sync::Mutex<JoinSet<io::Result<()>>>,
}

impl Service {
    /// A service that lets clients in to the exports of `registry`. Handshakes, and all of TLS,
    /// run on `crew`.
    #[must_use]
    pub fn new(
        registry: Arc<Registry>,
        limits: Limits,
        tls: Option<Tls>,
        crew: tokio::runtime::Handle,
    ) -> Self {
        let door = Arc::new(Door::new(registry, limits, tls));
        Self { door, crew, listening: tokio::sync::Mutex::default() }
    }

    /// Lets clients in, and returns when there can be no more of them: nothing listens, and every
    /// connection there was has ended. Dropping the future changes nothing for clients; they are
    /// let in, or told by a draining registry that they are not, until the service is dropped.
    ///
    /// # Errors
    /// A listener that cannot be used.
    pub async fn serve(&self, bound: Bound) -> io::Result<()> {
        let mut listening = self.listening.lock().await;
        for listener in bound.listeners {
            let (door, crew) = (Arc::clone(&self.door), self.crew.clone());
            listening.spawn(door::accept_all(listener, door, crew));
        }
        let mut welcoming = JoinSet::new();
        for socket in bound.connected {
            let slot = self.door.slot().await;
            let door = Arc::clone(&self.door);
            let task = async move { door.welcome(socket, slot, None).await };
            welcoming.spawn_on(task, &self.crew);
        }
        while welcoming.join_next().await.is_some() {}
        while let Some(ended) = listening.join_next().await {
            ended.map_err(io::Error::other)??;
        }
        self.door.all_gone().await;
        Ok(())
    }

    /// Whether one more client would be greeted now: nobody is while there are as many as there may
    /// be.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.door.has_room()
    }

    /// Listens no longer, and removes its sockets; to be called when nobody serves any more.
    pub async fn close(&self) {
        self.listening.lock().await.shutdown().await;
    }

    /// Waits until clients under TLS have their last replies; for after the shards have ended.
    pub async fn farewell(&self) {
        self.door.farewell().await;
    }
}
