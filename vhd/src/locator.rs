//! Parent locators (section 1.4 of the format notes): the 24-byte entries of the dynamic header and
//! the paths they lead to. A path is text that an untrusted file suggested: nothing here opens it,
//! and whether `..` or the place it names is acceptable is the opener's decision.

use std::fmt;

use zerocopy::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::units::{ByteLen, FileOffset, SECTOR_BYTES};

/// Locator entries of a dynamic header.
pub const LOCATORS: usize = 8;
/// Bytes of the longest path that [`LocatorPath::relative`] carries, as Linux limits paths.
pub const PATH_MAX_BYTES: usize = 4096;

const URL_SCHEME: &str = "file://";

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawLocator {
    platform: [u8; 4],
    space: U32,
    len: U32,
    reserved: U32,
    at: U64,
}
const _: () = assert!(size_of::<RawLocator>() == 24);

/// How a locator's data is written, by its platform code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Platform {
    /// The entry is unused.
    None,
    /// `W2ru`: a relative Windows path, UTF-16LE.
    W2ru,
    /// `W2ku`: an absolute Windows path, UTF-16LE; XenServer writes a relative one.
    W2ku,
    /// `MacX`: a `file://` URL, UTF-8.
    MacX,
    /// `Mac `: an alias of classic Mac OS; never decoded.
    Mac,
    /// `Wi2r`: a relative Windows path in some 8-bit code page; deprecated.
    Wi2r,
    /// `Wi2k`: an absolute Windows path in some 8-bit code page; deprecated.
    Wi2k,
    /// No platform of the specification.
    Unknown([u8; 4]),
}

impl Platform {
    /// The code the entry stores.
    pub const fn code(self) -> [u8; 4] {
        match self {
            Self::None => [0; 4],
            Self::W2ru => *b"W2ru",
            Self::W2ku => *b"W2ku",
            Self::MacX => *b"MacX",
            Self::Mac => *b"Mac ",
            Self::Wi2r => *b"Wi2r",
            Self::Wi2k => *b"Wi2k",
            Self::Unknown(code) => code,
        }
    }

    /// The platform of a stored code.
    pub const fn from_code(code: [u8; 4]) -> Self {
        match &code {
            [0, 0, 0, 0] => Self::None,
            b"W2ru" => Self::W2ru,
            b"W2ku" => Self::W2ku,
            b"MacX" => Self::MacX,
            b"Mac " => Self::Mac,
            b"Wi2r" => Self::Wi2r,
            b"Wi2k" => Self::Wi2k,
            _ => Self::Unknown(code),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.code().escape_ascii().fmt(f)
    }
}

/// One locator entry as stored. Nothing in it is checked against the file yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocatorEntry {
    /// How the data is written.
    pub platform: Platform,
    /// Space kept for the data, in sectors or in bytes: see [`LocatorEntry::space_bytes`].
    pub space: u32,
    /// Bytes of data.
    pub len: ByteLen,
    /// Where the data starts.
    pub at: FileOffset,
}

impl LocatorEntry {
    /// The unused entry.
    pub const NONE: Self =
        Self { platform: Platform::None, space: 0, len: ByteLen::new(0), at: FileOffset::new(0) };

    pub(crate) fn from_raw(raw: RawLocator) -> Self {
        Self {
            platform: Platform::from_code(raw.platform),
            space: raw.space.get(),
            len: ByteLen::new(u64::from(raw.len.get())),
            at: FileOffset::new(raw.at.get()),
        }
    }

    pub(crate) fn to_raw(self) -> RawLocator {
        let len = u32::try_from(self.len.get()).expect("no checked path needs 33 bits of length");
        RawLocator {
            platform: self.platform.code(),
            space: self.space.into(),
            len: len.into(),
            reserved: 0.into(),
            at: self.at.get().into(),
        }
    }

    /// Bytes kept for the data. The specification counts sectors, writers in the field count bytes:
    /// a number below 512 is sectors, a multiple of 512 is bytes, and anything else says nothing,
    /// so that the data itself, rounded up to sectors, is taken.
    pub fn space_bytes(&self) -> ByteLen {
        let space = u64::from(self.space);
        if space == 0 || (space >= SECTOR_BYTES && !space.is_multiple_of(SECTOR_BYTES)) {
            return ByteLen::new(self.len.get().next_multiple_of(SECTOR_BYTES));
        }
        ByteLen::new(if space < SECTOR_BYTES { space * SECTOR_BYTES } else { space })
    }
}

/// A decoded locator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocatorPath {
    /// How the data was written.
    pub platform: Platform,
    /// The text; what could not be decoded is replaced. For people and messages only.
    pub text: String,
    /// The path when it is relative: separated by `/`, no leading `./`, not empty, no NUL, no
    /// drive letter, decoded without loss. `..` components are kept: the opener decides.
    pub relative: Option<String>,
}

impl LocatorPath {
    /// The last component of the text, whichever way its separators lean; `None` when there is
    /// none or when it would lead elsewhere (`.`, `..`) or was decoded with loss.
    pub fn file_name(&self) -> Option<&str> {
        let name = self.text.rsplit(['/', '\\']).next()?;
        let odd = name.is_empty() || name == "." || name == ".." || name.contains('\u{FFFD}');
        (!odd).then_some(name)
    }
}

/// Why a locator's data is no path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LocatorError {
    /// Half a UTF-16 unit at the end.
    #[error("a UTF-16 path cannot have an odd length ({len} bytes)")]
    OddLength {
        /// Bytes of the data.
        len: ByteLen,
    },
    /// A zero inside the path, where readers that stop there would see another path.
    #[error("the path holds a NUL at byte {at}")]
    EmbeddedNul {
        /// Byte of the data.
        at: usize,
    },
}

/// Decodes a locator's data. Zeros at the end are padding; zeros before it are refused.
pub fn decode(platform: Platform, data: &[u8]) -> Result<LocatorPath, LocatorError> {
    let (text, lossless) = match platform {
        Platform::W2ru | Platform::W2ku => decode_utf16(data)?,
        Platform::MacX => decode_utf8(data)?,
        Platform::Wi2r | Platform::Wi2k => {
            let (text, _) = decode_utf8(data)?;
            // The code page is not known, so only ASCII means the same everywhere.
            (text, data.is_ascii())
        }
        Platform::None | Platform::Mac | Platform::Unknown(_) => (String::new(), false),
    };
    let path =
        if platform == Platform::MacX { text.strip_prefix(URL_SCHEME) } else { Some(&*text) };
    let relative = path.filter(|_| lossless).and_then(relative_path);
    Ok(LocatorPath { platform, text, relative })
}

fn decode_utf16(data: &[u8]) -> Result<(String, bool), LocatorError> {
    if !data.len().is_multiple_of(2) {
        return Err(LocatorError::OddLength { len: ByteLen::new(data.len() as u64) });
    }
    let units: Vec<u16> =
        data.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
    let end = units.iter().rposition(|unit| *unit != 0).map_or(0, |last| last + 1);
    let units = &units[..end];
    if let Some(at) = units.iter().position(|unit| *unit == 0) {
        return Err(LocatorError::EmbeddedNul { at: at * 2 });
    }
    match String::from_utf16(units) {
        Ok(text) => Ok((text, true)),
        Err(_) => Ok((String::from_utf16_lossy(units), false)),
    }
}

fn decode_utf8(data: &[u8]) -> Result<(String, bool), LocatorError> {
    let end = data.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let data = &data[..end];
    if let Some(at) = data.iter().position(|byte| *byte == 0) {
        return Err(LocatorError::EmbeddedNul { at });
    }
    match str::from_utf8(data) {
        Ok(text) => Ok((text.to_owned(), true)),
        Err(_) => Ok((String::from_utf8_lossy(data).into_owned(), false)),
    }
}

fn relative_path(path: &str) -> Option<String> {
    let slashed = path.replace('\\', "/");
    let mut rest = &*slashed;
    while let Some(shorter) = rest.strip_prefix("./") {
        rest = shorter.trim_start_matches('/');
    }
    let bytes = rest.as_bytes();
    let drive = bytes.len() >= 2 && bytes[0].is_ascii_alphabetic() && bytes[1] == b':';
    let odd = rest.is_empty()
        || slashed.starts_with('/')
        || drive
        || rest.contains('\0')
        || rest.len() > PATH_MAX_BYTES;
    (!odd).then(|| rest.to_owned())
}

/// Writes a relative, `/`-separated path the way XenServer does: MacX as `file://./path`, the
/// Windows platforms as `.\path` in UTF-16LE. `None` for platforms that are never written.
pub fn encode(platform: Platform, relative: &str) -> Option<Vec<u8>> {
    match platform {
        Platform::MacX => Some(format!("{URL_SCHEME}./{relative}").into_bytes()),
        Platform::W2ru | Platform::W2ku => {
            let path = format!(".\\{}", relative.replace('/', "\\"));
            Some(path.encode_utf16().flat_map(u16::to_le_bytes).collect())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{LocatorEntry, LocatorError, Platform, decode, encode};
    use crate::units::ByteLen;

    fn utf16(text: &str) -> Vec<u8> {
        text.encode_utf16().flat_map(u16::to_le_bytes).collect()
    }

    fn relative(platform: Platform, data: &[u8]) -> Option<String> {
        decode(platform, data).expect("decodes").relative
    }

    #[test]
    fn what_is_written_is_read_again() {
        for path in ["base.vhd", "../pool/base.vhd", "gr\u{FC}n \u{1F600}/a.vhd"] {
            for platform in [Platform::MacX, Platform::W2ku, Platform::W2ru] {
                let data = encode(platform, path).expect("a platform that is written");
                assert_eq!(relative(platform, &data).as_deref(), Some(path));
            }
        }
        assert_eq!(encode(Platform::Mac, "a"), None);
    }

    #[test]
    fn only_relative_paths_are_offered() {
        for path in ["C:\\a\\b.vhd", "\\\\host\\share\\b.vhd", "/etc/passwd", ".\\", "", "./\\./"] {
            assert_eq!(relative(Platform::W2ru, &utf16(path)), None, "{path}");
        }
        assert_eq!(relative(Platform::MacX, b"file:///etc/passwd"), None);
        assert_eq!(relative(Platform::MacX, b"base.vhd"), None);
        assert_eq!(relative(Platform::MacX, b"file://./a.vhd\0\0").as_deref(), Some("a.vhd"));
        assert_eq!(relative(Platform::Wi2r, b".\\a.vhd").as_deref(), Some("a.vhd"));
        assert_eq!(relative(Platform::Wi2r, b".\\\xFC.vhd"), None);
        assert_eq!(relative(Platform::Mac, b"anything"), None);
        let absolute = decode(Platform::W2ku, &utf16("C:\\x\\b.vhd")).expect("decodes");
        assert_eq!(absolute.file_name(), Some("b.vhd"));
    }

    #[test]
    fn paths_that_cannot_be_trusted_are_refused_or_lose_their_relative_form() {
        let odd = decode(Platform::W2ru, b"a\0b");
        assert_eq!(odd, Err(LocatorError::OddLength { len: ByteLen::new(3) }));
        let nul = decode(Platform::W2ru, &utf16("a\0b"));
        assert_eq!(nul, Err(LocatorError::EmbeddedNul { at: 2 }));
        assert_eq!(decode(Platform::MacX, b"a\0b"), Err(LocatorError::EmbeddedNul { at: 1 }));
        let lossy = decode(Platform::W2ru, &[b'a', 0, 0, 0xD8]).expect("opaque, not refused");
        assert_eq!((&*lossy.text, lossy.relative), ("a\u{FFFD}", None));
    }

    #[test]
    fn space_is_counted_in_sectors_or_bytes() {
        let bytes = |space| {
            LocatorEntry { space, len: ByteLen::new(600), ..LocatorEntry::NONE }.space_bytes().get()
        };
        assert_eq!(
            [bytes(2), bytes(512), bytes(65536), bytes(0), bytes(700)],
            [1024, 512, 65536, 1024, 1024]
        );
    }
}
