//! FUSE over io_uring: the host's rings beside `fuser`'s mount and greeting.
//!
//! Refuses to know requests: it hands lent bytes to the FUSE crate and answers back to the ring.

use std::io;
use std::sync::Arc;

use orlop_fuse::ring::{Connection, Slot};

use crate::host::fuse_ring::{Answer, Frame, Serve, Shape, start};

/// How rings are made for a mount. To be given as [`orlop_fuse::Options::ring`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rings {
    /// Rings, each with a thread; at most one for each processor the machine may have. One serves
    /// best where the answers come from other threads, which want processors too.
    pub rings: u16,
    /// Entries of all processors together: requests that can be under way at once. Each processor
    /// has its share of them, 4 to 32, and whoever runs there waits when all of those are busy.
    pub entries: u16,
    /// Bytes of one request: memory of each entry, touched when used.
    pub request_bytes: u32,
    /// Each thread stays on its processor.
    pub pinned: bool,
}

impl Default for Rings {
    fn default() -> Self {
        Self { rings: 1, entries: 64, request_bytes: 1 << 20, pinned: false }
    }
}

impl orlop_fuse::RingHost for Rings {
    fn request_bytes(&self) -> u32 {
        self.request_bytes
    }

    fn start(&self, connection: Connection) -> io::Result<()> {
        let shape = Shape {
            rings: self.rings,
            entries: self.entries,
            payload_bytes: connection.request_bytes(),
            pinned: self.pinned,
        };
        let served = Arc::new(Served(connection));
        start(shape, served.0.fuse(), Arc::clone(&served))
    }
}

struct Served(Connection);

impl Serve for Served {
    fn serve(&self, frame: Frame<'_>, answer: Answer) {
        let Frame { head, operation, payload } = frame;
        let frame = orlop_fuse::ring::Frame { head, operation, payload };
        self.0.requests().serve(&frame, Place(answer));
    }

    fn broken(&self, _: &io::Error) {
        self.0.abort();
    }
}

struct Place(Answer);

impl Slot for Place {
    fn finish(self, errno: i32, bytes: &[u8]) {
        if errno == 0 { self.0.data(bytes) } else { self.0.fail(errno) }
    }
}
