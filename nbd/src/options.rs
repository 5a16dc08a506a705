//! The data inside handshake options: names, information requests and metadata queries.
//!
//! Each parser takes the option's whole data and either consumes all of it or says in one phrase
//! what is wrong. Nothing here answers, and no client byte leaves this module unescaped.

use std::fmt::{Display, Formatter};

use crate::units::ContextId;
use crate::wire::{ALLOCATION_DEPTH, BASE_ALLOCATION, DIRTY_BITMAP, Fields, STRING_MAX, info};

/// Most metadata queries in one option. Each costs a client four bytes, so without a bound of
/// their own they would be as many as an option's length allows.
pub(crate) const QUERIES_MAX: u32 = 1024;

/// Most metadata contexts of one export; the rest of a longer list is not offered.
pub const CONTEXTS_MAX: usize = 64;

/// Longest piece of a client's text in an error message, in its own bytes before escaping.
const QUOTED_MAX: usize = 64;

/// What is wrong with an option's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Malformed {
    /// ERR_INVALID, with the reason.
    Invalid(&'static str),
    /// ERR_TOO_BIG, with the reason.
    TooBig(&'static str),
}

/// A metadata context this crate can serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContextName {
    /// `base:allocation`: holes and zeroes.
    Allocation,
    /// `qemu:allocation-depth`: the layer in which each extent lies.
    AllocationDepth,
    /// `qemu:dirty-bitmap:` and the bitmap's name: what was written since the bitmap began.
    DirtyBitmap(String),
}

impl Display for ContextName {
    /// The name on the wire.
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        match self {
            ContextName::Allocation => f.write_str(BASE_ALLOCATION),
            ContextName::AllocationDepth => f.write_str(ALLOCATION_DEPTH),
            ContextName::DirtyBitmap(name) => write!(f, "{DIRTY_BITMAP}{name}"),
        }
    }
}

impl ContextName {
    fn is_called(&self, query: &str) -> bool {
        match self {
            ContextName::Allocation => query == BASE_ALLOCATION,
            ContextName::AllocationDepth => query == ALLOCATION_DEPTH,
            ContextName::DirtyBitmap(name) => query.strip_prefix(DIRTY_BITMAP) == Some(name),
        }
    }

    fn is_under(&self, wildcard: &str) -> bool {
        match self {
            ContextName::Allocation => wildcard == "base:",
            ContextName::AllocationDepth => wildcard == "qemu:",
            ContextName::DirtyBitmap(_) => wildcard == "qemu:" || wildcard == DIRTY_BITMAP,
        }
    }
}

/// A context a client selected, and the number that stands for it in BLOCK_STATUS replies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    /// The number, unique within the connection; the selected contexts count from 1.
    pub id: ContextId,
    /// What it tells.
    pub name: ContextName,
}

/// Which kinds of information a client asked for. Kinds we do not know are ignored, as they must.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) name: bool,
    pub(crate) description: bool,
    pub(crate) block_size: bool,
}

/// Checks a string: UTF-8, no NUL, at most 4096 bytes.
pub(crate) fn string(bytes: &[u8]) -> Result<&str, Malformed> {
    if bytes.len() > STRING_MAX {
        return Err(Malformed::Invalid("a string is longer than 4096 bytes"));
    }
    if bytes.contains(&0) {
        return Err(Malformed::Invalid("a string contains NUL"));
    }
    str::from_utf8(bytes).map_err(|_| Malformed::Invalid("a string is not UTF-8"))
}

/// Reads the data of INFO and GO: name length, name, count, kinds.
pub(crate) fn info_request(data: &[u8]) -> Result<(&str, Wanted), Malformed> {
    const SHORT: Malformed = Malformed::Invalid("the data ends before its own lengths say");
    let mut fields = Fields(data);
    let name = counted_string(&mut fields)?;
    let count = fields.u16().ok_or(SHORT)?;
    let mut wanted = Wanted::default();
    for _ in 0..count {
        match fields.u16().ok_or(SHORT)? {
            info::NAME => wanted.name = true,
            info::DESCRIPTION => wanted.description = true,
            info::BLOCK_SIZE => wanted.block_size = true,
            _ => {}
        }
    }
    end_of(fields)?;
    Ok((name, wanted))
}

/// What a list of queries selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// LIST_META_CONTEXT: wildcards match, no query at all means everything.
    List,
    /// SET_META_CONTEXT: only full names match, no query at all means nothing.
    Set,
}

/// The data of a metadata option: whose contexts are meant, and which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ContextRequest<'a> {
    pub(crate) export: &'a str,
    queries: Vec<&'a str>,
    purpose: Purpose,
}

impl ContextRequest<'_> {
    /// The offered contexts that are meant, in the order they are offered, each at most once
    /// however often it was asked for.
    pub(crate) fn meant(&self, offered: &[ContextName]) -> Vec<ContextName> {
        let list = self.purpose == Purpose::List;
        let all = list && self.queries.is_empty();
        let asked = |name: &ContextName, query: &&str| {
            name.is_called(query) || (list && name.is_under(query))
        };
        let meant = |name: &&ContextName| {
            let named = all || self.queries.iter().any(|query| asked(name, query));
            // A name no client could send back is better left out than sent broken.
            named && string(name.to_string().as_bytes()).is_ok()
        };
        let mut chosen: Vec<ContextName> = Vec::new();
        for name in offered.iter().filter(meant).take(CONTEXTS_MAX) {
            if !chosen.contains(name) {
                chosen.push(name.clone());
            }
        }
        chosen
    }
}

/// Reads the data of the metadata options: the export's name and the queries.
pub(crate) fn context_request(
    data: &[u8],
    purpose: Purpose,
) -> Result<ContextRequest<'_>, Malformed> {
    const SHORT: Malformed = Malformed::Invalid("the data ends before its own lengths say");
    let mut fields = Fields(data);
    let export = counted_string(&mut fields)?;
    let count = fields.u32().ok_or(SHORT)?;
    // A count the data cannot hold is a lie; one it can hold may still be more than we care for.
    if usize::try_from(count).map_or(true, |count| count > fields.0.len() / 4) {
        return Err(SHORT);
    }
    if count > QUERIES_MAX {
        return Err(Malformed::TooBig("too many metadata queries"));
    }
    let mut queries = Vec::new();
    for _ in 0..count {
        let query = counted_string(&mut fields)?;
        match query.split_once(':') {
            None => return Err(Malformed::Invalid("a metadata query has no colon")),
            Some(("", _)) => {
                return Err(Malformed::Invalid("a metadata query has an empty namespace"));
            }
            Some(_) => queries.push(query),
        }
    }
    end_of(fields)?;
    Ok(ContextRequest { export, queries, purpose })
}

/// A client's text for an error message: ASCII, escaped, and short.
pub(crate) fn quoted(text: &[u8]) -> String {
    match text.get(..QUOTED_MAX) {
        Some(head) if text.len() > QUOTED_MAX => format!("\"{}\"...", head.escape_ascii()),
        _ => format!("\"{}\"", text.escape_ascii()),
    }
}

fn counted_string<'a>(fields: &mut Fields<'a>) -> Result<&'a str, Malformed> {
    const SHORT: Malformed = Malformed::Invalid("a string is longer than the data around it");
    let length = fields.u32().ok_or(SHORT)?;
    let length = usize::try_from(length).map_err(|_| SHORT)?;
    string(fields.bytes(length).ok_or(SHORT)?)
}

fn end_of(fields: Fields<'_>) -> Result<(), Malformed> {
    if fields.0.is_empty() {
        Ok(())
    } else {
        Err(Malformed::Invalid("there is more data than the option has fields"))
    }
}

#[cfg(test)]
mod tests {
    use super::{
        ContextName, Malformed, Purpose, QUERIES_MAX, Wanted, context_request, info_request,
        quoted, string,
    };
    use crate::wire;

    /// What queries choose of three contexts.
    fn chosen(queries: &[&str], purpose: Purpose) -> Result<Vec<String>, Malformed> {
        let bitmap = ContextName::DirtyBitmap("leaf".to_owned());
        let offered = [ContextName::Allocation, ContextName::AllocationDepth, bitmap];
        let data = wire::context_request("disk", queries);
        let request = context_request(&data, purpose)?;
        assert_eq!(request.export, "disk");
        Ok(request.meant(&offered).iter().map(ToString::to_string).collect())
    }

    const ALL: [&str; 3] = ["base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:leaf"];

    const LENGTHS: [u32; 6] = [0, 1, 4096, 4097, 1 << 31, u32::MAX];

    #[test]
    fn strings_are_utf8_without_nul_and_at_most_4096_bytes() {
        assert_eq!(string(&[b'x'; 4096]).map(str::len), Ok(4096));
        assert!(string(&[b'x'; 4097]).is_err());
        assert!(string(b"a\0b").is_err());
        assert!(string(b"\xff").is_err());
        assert_eq!(string(b""), Ok(""));
    }

    #[test]
    fn a_name_length_that_lies_is_invalid_at_every_size() {
        for claimed in LENGTHS {
            let mut data = claimed.to_be_bytes().to_vec();
            data.extend_from_slice(b"disk\0\0");
            assert!(info_request(&data).is_err(), "claimed {claimed}");
        }
        let honest = wire::info_request("disk", &[]);
        assert_eq!(info_request(&honest), Ok(("disk", Wanted::default())));
    }

    #[test]
    fn every_truncation_and_any_surplus_is_invalid() {
        let data = wire::info_request("disk", &[1, 2, 3, 99]);
        let all = Wanted { name: true, description: true, block_size: true };
        assert_eq!(info_request(&data), Ok(("disk", all)));
        for end in 0..data.len() {
            assert!(info_request(&data[..end]).is_err());
        }
        let mut long = data.clone();
        long.push(0);
        assert!(info_request(&long).is_err());

        let data = wire::context_request("disk", &["base:allocation", "base:"]);
        for end in 0..data.len() {
            assert!(context_request(&data[..end], Purpose::List).is_err());
        }
    }

    #[test]
    fn no_queries_list_everything_and_select_nothing() {
        let all: Vec<String> = ALL.map(str::to_owned).to_vec();
        assert_eq!(chosen(&[], Purpose::List), Ok(all));
        assert_eq!(chosen(&[], Purpose::Set), Ok(vec![]));
    }

    #[test]
    fn a_wildcard_lists_what_is_under_it_but_does_not_select() {
        let cases: [(&str, &[&str]); 3] =
            [("base:", &ALL[..1]), ("qemu:", &ALL[1..]), ("qemu:dirty-bitmap:", &ALL[2..])];
        for (wildcard, under) in cases {
            let found = chosen(&[wildcard], Purpose::List);
            assert_eq!(found, Ok(under.iter().map(|name| (*name).to_owned()).collect()));
            assert_eq!(chosen(&[wildcard], Purpose::Set), Ok(vec![]));
        }
    }

    #[test]
    fn unknown_namespaces_and_leaves_are_ignored_but_syntax_is_not() {
        let unknown = [
            "x-any:thing",
            "qemu:future",
            "base:future",
            "base:allocation:",
            "qemu:dirty-bitmap",
            "qemu:dirty-bitmap:other",
            "qemu:dirty-bitmap:leaf2",
        ];
        assert_eq!(chosen(&unknown, Purpose::List), Ok(vec![]));
        assert_eq!(chosen(&unknown, Purpose::Set), Ok(vec![]));
        for bad in ["", "base", ":", ":allocation"] {
            assert!(chosen(&[bad], Purpose::Set).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn contexts_come_in_the_exports_order_and_once_however_they_were_asked_for() {
        for purpose in [Purpose::List, Purpose::Set] {
            let found = chosen(&[ALL[2], ALL[0], ALL[2], ALL[0]], purpose);
            assert_eq!(found, Ok(vec![ALL[0].to_owned(), ALL[2].to_owned()]));
        }
    }

    #[test]
    fn bitmaps_with_names_no_client_could_send_are_not_offered_and_at_most_64_are() {
        let bitmap = |name: &str| ContextName::DirtyBitmap(name.to_owned());
        let data = wire::context_request("", &[]);
        let request = context_request(&data, Purpose::List).expect("it is well-formed");
        let fits = "x".repeat(4096 - "qemu:dirty-bitmap:".len());
        let offered = [bitmap("a\0"), bitmap(&"x".repeat(4096)), bitmap(&fits)];
        assert_eq!(request.meant(&offered), [bitmap(&fits)]);
        let many: Vec<_> = (0..100).map(|at| bitmap(&at.to_string())).collect();
        assert_eq!(request.meant(&many), many[..64]);
        assert_eq!(request.meant(&[bitmap("a"), bitmap("a")]), [bitmap("a")]);
    }

    #[test]
    fn query_counts_are_believed_only_as_far_as_the_data_goes() {
        for claimed in [1, 4096, 4097, 1 << 31, u32::MAX] {
            let mut data = 0_u32.to_be_bytes().to_vec();
            data.extend_from_slice(&u32::to_be_bytes(claimed));
            let answer = context_request(&data, Purpose::List);
            assert!(matches!(answer, Err(Malformed::Invalid(_))), "claimed {claimed}");
        }
        let many = vec!["x:y"; QUERIES_MAX as usize + 1];
        let data = wire::context_request("", &many);
        assert!(matches!(context_request(&data, Purpose::List), Err(Malformed::TooBig(_))));
        assert_eq!(chosen(&many[1..], Purpose::List), Ok(vec![]));
    }

    #[test]
    fn quoted_text_is_plain_ascii_and_short() {
        assert_eq!(quoted(b"a\xff\n\""), r#""a\xff\n\"""#);
        let long = quoted(&[0xff; 4096]);
        assert!(long.is_ascii() && long.len() <= 4 * 64 + 5, "{}", long.len());
    }
}
