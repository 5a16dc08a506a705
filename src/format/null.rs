//! A disk that keeps nothing: it reads as zeroes, and what is written to it vanishes. For measuring
//! what is left of a server when there is no image to read or write. Has no file.

use crate::engine::layer::{
    Blocked, Corrupt, Hollow, Layer, Leaf, Located, MetaPage, Placed, Wave, WaveNo,
};
use crate::engine::units::{ByteLen, Extent};

/// A disk of zeroes.
#[derive(Clone, Copy, Debug)]
pub struct Null {
    size: ByteLen,
}

impl Null {
    /// A disk of so many bytes.
    pub const fn new(size: ByteLen) -> Self {
        Self { size }
    }
}

impl Layer for Null {
    fn size(&self) -> ByteLen {
        self.size
    }

    fn locate(&mut self, wanted: Extent) -> Located {
        Located::Zero(wanted.len)
    }

    fn learn(&mut self, page: MetaPage, _bytes: &[u8]) -> Result<(), Corrupt> {
        Err(Corrupt(format!("a null disk has no metadata, yet a page at {} was read", page.at)))
    }
}

impl Leaf for Null {
    fn forgets(&self) -> bool {
        true
    }

    fn place(&mut self, _wanted: Extent) -> Result<Placed, Blocked> {
        Err(Blocked::NoSpace("a null disk keeps nothing"))
    }

    fn hollow(&mut self, wanted: Extent) -> Result<Hollow, Blocked> {
        Ok(Hollow::Already(wanted.len))
    }

    fn landed(&mut self, _placed: &Placed) {}

    fn failed(&mut self, _placed: &Placed) {}

    fn scrubbed(&mut self, _block: u32) {}

    fn scrub_failed(&mut self, _block: u32) {}

    fn dirty(&self) -> bool {
        false
    }

    fn wave(&mut self, _n: WaveNo) -> Option<Wave> {
        None
    }

    fn settled(&mut self) {}

    fn abandoned(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::Null;
    use crate::engine::Disk;
    use crate::engine::effect::FileId;
    use crate::engine::request::{Answer, FaultKind, MapKind, MapRun, Request, RequestId, Segment};
    use crate::engine::units::{ByteLen, DiskOffset, Extent, RegionId, Span};

    const SIZE: ByteLen = ByteLen::new(1 << 20);

    /// The answer to a request, none of which may ask anything of a file.
    fn answer(disk: &mut Disk, request: Request) -> Result<Answer, FaultKind> {
        disk.submit(RequestId(1), request);
        assert_eq!(disk.poll_effect(), None, "{request:?}");
        let reply = disk.poll_reply().expect("there is nothing to wait for");
        reply.result.map_err(|fault| fault.kind)
    }

    #[test]
    fn a_null_disk_answers_everything_and_asks_for_nothing() {
        let mut disk = Disk::writable(Box::new(Null::new(SIZE)), FileId(0), Vec::new());
        let span = |len| Span { region: RegionId(0), start: 0, len };
        let extent = |at, len| Extent::new(DiskOffset::new(at), ByteLen::new(len));
        // Whole sectors, and ends within one.
        for (at, len) in [(0, 4096), (100, 1000), (512, 1), ((1 << 20) - 7, 7)] {
            for fua in [false, true] {
                let (extent, from) = (extent(at, len), span(len as u32));
                for request in [
                    Request::Write { extent, from, fua },
                    Request::Zero { extent, may_unmap: true, fua },
                    Request::Zero { extent, may_unmap: false, fua },
                    Request::Discard { extent, fua },
                    Request::Flush,
                ] {
                    assert_eq!(answer(&mut disk, request), Ok(Answer::Done), "{request:?}");
                }
            }
            let read = Request::Read { extent: extent(at, len), into: span(len as u32) };
            let hole = vec![Segment::Hole(ByteLen::new(len))];
            assert_eq!(answer(&mut disk, read), Ok(Answer::Segments(hole)));
        }
        let map = Request::Map { extent: extent(0, SIZE.get()), limit: 9 };
        let run = MapRun { len: SIZE, kind: MapKind::Zero { depth: 0 } };
        assert_eq!(answer(&mut disk, map), Ok(Answer::Map(vec![run])));
        assert!(!disk.is_dirty());
        let grow = Request::Resize { size: ByteLen::new(2 << 20) };
        assert!(matches!(answer(&mut disk, grow), Err(FaultKind::Unsupported(_))));
    }
}
