//! A disk's bytes as they must be after a session of qemu-io, kept by other means than any server.
#![allow(unreachable_pub)]

use crate::foreign::run;

/// What was done so far, as commands for qemu-io, and what must have come of it.
pub struct Model {
    /// The bytes of the disk.
    pub bytes: Vec<u8>,
    steps: Vec<String>,
    state: u64,
}

impl Model {
    /// A disk of zeroes.
    pub fn new(len: usize, seed: u64) -> Self {
        Self { bytes: vec![0; len], steps: Vec::new(), state: seed | 1 }
    }

    fn below(&mut self, limit: usize) -> usize {
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_041);
        (self.state >> 33) as usize % limit
    }

    /// A place for a request: mostly of no alignment at all.
    fn extent(&mut self) -> (usize, usize) {
        let sizes = [1, 2, 511, 512, 513, 4095, 4096, 65536, 65537, 300_000, 2 << 20, 5 << 20];
        let sizes_len = sizes.len();
        let len = sizes[self.below(sizes_len)];
        let align = [1, 1, 512, 4096, 65536][self.below(5)];
        let at = self.below(self.bytes.len()) / align * align;
        (at, len.min(self.bytes.len() - at))
    }

    /// One more request, of any kind.
    pub fn step(&mut self) {
        let (at, len) = self.extent();
        let byte = 1 + self.below(255) as u8;
        let fill = |bytes: &mut Vec<u8>, byte| bytes[at..at + len].fill(byte);
        match self.below(10) {
            0..4 => {
                fill(&mut self.bytes, byte);
                let fua = ["", "-f "][self.below(2)];
                self.steps.push(format!("write {fua}-P {byte} {at} {len}"));
            }
            4..6 => {
                fill(&mut self.bytes, 0);
                let how = ["-z", "-z -u", "-z -f", "-z -u -f"][self.below(4)];
                self.steps.push(format!("write {how} {at} {len}"));
            }
            // What a discard leaves is not said, so it is written over.
            6 => {
                fill(&mut self.bytes, byte);
                self.steps.push(format!("discard {at} {len}"));
                self.steps.push(format!("write -P {byte} {at} {len}"));
            }
            7 => self.steps.push("flush".to_owned()),
            8 if len >= 3 => {
                fill(&mut self.bytes, byte);
                let third = len / 3;
                let last = len - 2 * third;
                self.steps.push(format!("writev -P {byte} {at} {third} {third} {last}"));
            }
            _ => self.check(at, len),
        }
    }

    /// Reads back the run of equal bytes at a place.
    fn check(&mut self, at: usize, len: usize) {
        let byte = self.bytes[at];
        let equal = self.bytes[at..at + len].iter().take_while(|&&other| other == byte).count();
        self.steps.push(format!("read -P {byte} {at} {equal}"));
    }

    /// Requests in flight at once, which do not touch each other, then a flush over them all.
    pub fn burst(&mut self) {
        let piece = self.bytes.len() / 32;
        for n in 0..32 {
            let (at, len) = (n * piece + self.below(piece / 2), 1 + self.below(piece / 2));
            let byte = self.below(256) as u8;
            self.bytes[at..at + len].fill(byte);
            self.steps.push(if byte == 0 {
                format!("aio_write -z -u {at} {len}")
            } else {
                format!("aio_write -P {byte} {at} {len}")
            });
        }
        self.steps.push("aio_flush".to_owned());
    }

    /// Has qemu-io do all of it.
    pub fn play(&mut self, uri: &str) {
        let mut words =
            vec!["-f".to_owned(), "raw".to_owned(), "-d".to_owned(), "unmap".to_owned()];
        for step in self.steps.drain(..) {
            words.extend(["-c".to_owned(), step]);
        }
        words.push(uri.to_owned());
        let said = run("qemu-io", &words);
        assert!(!said.contains("failed"), "{said}");
    }
}
