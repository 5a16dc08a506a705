//! What ends a mount: somebody unmounts it, or asks its server to end.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Why a mount comes to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The kernel has let go of it.
    Unmounted,
    /// The server is to end.
    Asked,
}

/// The signals that ask a server to end.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// In the foreground: the terminal is gone.
    hang_up: Signal,
}

impl Signals {
    pub(super) fn new() -> io::Result<Self> {
        let interrupt = signal(SignalKind::interrupt())?;
        let terminate = signal(SignalKind::terminate())?;
        Ok(Self { interrupt, terminate, hang_up: signal(SignalKind::hangup())? })
    }

    /// Comes with the next one.
    pub(super) async fn come(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => (),
            _ = self.terminate.recv() => (),
            _ = self.hang_up.recv() => (),
        }
    }
}
