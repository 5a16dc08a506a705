//! A host that keeps its files and its memory in vectors and does nothing before it is told to.
//! Refuses to be right about crashes: that is the crash simulator's.

use orlop::engine::effect::{
    Effect, EffectId, FileId, IoError, LeafFile, Outcome, Piece, Source, Target,
};
use orlop::engine::request::Stored;
use orlop::engine::units::{ByteLen, FileOffset, RegionId, Span};

/// What becomes of an effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Done,
    /// It fails; of a write, so many bytes were written all the same.
    Fails(IoError, usize),
}

/// The host. Files are named by their index.
#[derive(Debug, Default)]
pub struct Ram {
    pub files: Vec<Vec<u8>>,
    pub arena: Vec<u8>,
}

/// What a new file holds beyond its length, and how long it may become.
const FILE_BYTES_MAX: usize = 16 << 20;

impl Ram {
    /// Memory at these coordinates.
    pub fn span(&mut self, span: Span) -> &mut [u8] {
        assert_eq!(span.region, RegionId(0), "there is one region");
        let start = span.start as usize;
        &mut self.arena[start..start + span.len as usize]
    }

    /// Carries an effect out.
    pub fn carry_out(&mut self, effect: Effect, fate: Fate) -> (EffectId, Outcome) {
        let id = effect.id();
        let outcome = match effect {
            // Every other place is at hand.
            Effect::Read { may_lend: true, at, .. }
                if matches!(fate, Fate::Done) && at.get() / 512 % 2 == 0 =>
            {
                Outcome::Lent
            }
            Effect::Read { file, at, into, .. } => self.read(file, at, into, fate),
            Effect::Write { file, at, from, .. } => {
                let bytes = self.gather(from);
                self.put(file, at, &bytes, fate)
            }
            Effect::Zero { file, at, len, .. } => {
                let bytes = vec![0; usize_of(len)];
                self.put(file, at, &bytes, fate)
            }
            Effect::Punch { file, at, len, .. } => self.punch(file, at, len, fate),
            Effect::SetLength { file, len, .. } => match fate {
                Fate::Done => {
                    assert!(usize_of(len) <= FILE_BYTES_MAX, "a length far outside: {len}");
                    self.files[usize::from(file.file().0)].resize(usize_of(len), 0);
                    Outcome::Done
                }
                Fate::Fails(error, _) => Outcome::Failed(error),
            },
            Effect::Extents { file, at, len, most, .. } => match fate {
                Fate::Done => {
                    let file = &self.files[usize::from(file.0)];
                    Outcome::Extents(orlop::host::sim::host::holes_in(file, at, len, most))
                }
                Fate::Fails(error, _) => Outcome::Failed(error),
            },
            Effect::Sync { .. } => match fate {
                Fate::Done => Outcome::Done,
                Fate::Fails(error, _) => Outcome::Failed(error),
            },
        };
        (id, outcome)
    }

    /// Bytes of a file, where they lie now.
    pub fn stored(&self, Stored { file, at, len }: Stored) -> Vec<u8> {
        self.files[usize::from(file.0)][usize_of(ByteLen::new(at.get()))..][..usize_of(len)]
            .to_vec()
    }

    fn read(&mut self, file: FileId, at: FileOffset, into: Target, fate: Fate) -> Outcome {
        let len = usize_of(into.len());
        assert!(len > 0, "an empty read at {at}");
        if let Fate::Fails(error, _) = fate {
            return Outcome::Failed(error);
        }
        let start = usize::try_from(at.get()).expect("64 bits");
        let bytes = start.checked_add(len).and_then(|end| {
            let file = &self.files[usize::from(file.0)];
            file.get(start..end).map(<[u8]>::to_vec)
        });
        match (bytes, into) {
            (None, _) => Outcome::Failed(IoError::UNEXPECTED_EOF),
            (Some(bytes), Target::Owned(_)) => Outcome::Bytes(bytes),
            (Some(bytes), Target::Span(span)) => {
                self.span(span).copy_from_slice(&bytes);
                Outcome::Done
            }
        }
    }

    fn gather(&mut self, from: Source) -> Vec<u8> {
        match from {
            Source::Span(span) => self.span(span).to_vec(),
            Source::Owned(bytes) => bytes,
            Source::Pieces(pieces) => {
                let mut all = Vec::new();
                for piece in pieces {
                    match piece {
                        Piece::Span(span) => all.extend_from_slice(self.span(span)),
                        Piece::Owned(bytes) => all.extend(bytes),
                    }
                }
                all
            }
        }
    }

    fn put(&mut self, file: LeafFile, at: FileOffset, bytes: &[u8], fate: Fate) -> Outcome {
        assert!(!bytes.is_empty(), "an empty write at {at}");
        let (bytes, outcome) = match fate {
            Fate::Done => (bytes, Outcome::Done),
            Fate::Fails(error, kept) => (&bytes[..kept.min(bytes.len())], Outcome::Failed(error)),
        };
        let start = usize::try_from(at.get()).expect("64 bits");
        let end = start + bytes.len();
        assert!(end <= FILE_BYTES_MAX, "a write far outside at {at}");
        let file = &mut self.files[usize::from(file.file().0)];
        if !bytes.is_empty() && file.len() < end {
            file.resize(end, 0);
        }
        if !bytes.is_empty() {
            file[start..end].copy_from_slice(bytes);
        }
        outcome
    }

    /// Unlike zeroing, punching never makes a file longer.
    fn punch(&mut self, file: LeafFile, at: FileOffset, len: ByteLen, fate: Fate) -> Outcome {
        if let Fate::Fails(error, _) = fate {
            return Outcome::Failed(error);
        }
        let file = &mut self.files[usize::from(file.file().0)];
        let start = usize::try_from(at.get()).expect("64 bits").min(file.len());
        let end = start.saturating_add(usize_of(len)).min(file.len());
        file[start..end].fill(0);
        Outcome::Done
    }
}

pub(super) fn usize_of(len: ByteLen) -> usize {
    usize::try_from(len.get()).expect("64 bits")
}
