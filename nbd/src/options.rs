//! The data inside handshake options: names, information requests and metadata queries.
//!
//! Each parser takes the option's whole data and either consumes all of it or says in one phrase
//! what is wrong. Nothing here answers, and no client byte leaves this module unescaped.

use crate::units::ContextId;
use crate::wire::{BASE_ALLOCATION, Fields, STRING_MAX, info};

/// Most metadata queries in one option. Each costs a client four bytes, so without a bound of
/// their own they would be as many as an option's length allows.
pub(crate) const QUERIES_MAX: u32 = 1024;

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContextName {
    /// `base:allocation`: holes and zeroes.
    Allocation,
}

impl ContextName {
    /// Every context, in the order in which they are listed.
    pub(crate) const ALL: [ContextName; 1] = [ContextName::Allocation];

    /// The name on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            ContextName::Allocation => BASE_ALLOCATION,
        }
    }

    fn namespace(self) -> &'static str {
        self.as_str().split_once(':').map_or("", |(namespace, _)| namespace)
    }
}

/// A context a client selected, and the number that stands for it in BLOCK_STATUS replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// The number, unique within the connection.
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

/// Reads the data of the metadata options and matches the queries: the export's name and the
/// contexts meant, each at most once however often it was asked for.
pub(crate) fn context_request(
    data: &[u8],
    purpose: Purpose,
) -> Result<(&str, Vec<ContextName>), Malformed> {
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
    let mut meant = [count == 0 && purpose == Purpose::List; ContextName::ALL.len()];
    for _ in 0..count {
        let query = counted_string(&mut fields)?;
        let (namespace, leaf) =
            query.split_once(':').ok_or(Malformed::Invalid("a metadata query has no colon"))?;
        if namespace.is_empty() {
            return Err(Malformed::Invalid("a metadata query has an empty namespace"));
        }
        for (meant, name) in meant.iter_mut().zip(ContextName::ALL) {
            let wildcard = leaf.is_empty() && purpose == Purpose::List;
            *meant |= (wildcard && namespace == name.namespace()) || query == name.as_str();
        }
    }
    end_of(fields)?;
    let chosen = ContextName::ALL.into_iter().zip(meant).filter(|(_, meant)| *meant);
    Ok((export, chosen.map(|(name, _)| name).collect()))
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
        let data = wire::context_request("", &[]);
        let all = vec![ContextName::Allocation];
        assert_eq!(context_request(&data, Purpose::List), Ok(("", all)));
        assert_eq!(context_request(&data, Purpose::Set), Ok(("", vec![])));
    }

    #[test]
    fn a_namespace_wildcard_lists_but_does_not_select() {
        let data = wire::context_request("", &["base:"]);
        let all = vec![ContextName::Allocation];
        assert_eq!(context_request(&data, Purpose::List), Ok(("", all)));
        assert_eq!(context_request(&data, Purpose::Set), Ok(("", vec![])));
    }

    #[test]
    fn unknown_namespaces_and_leaves_are_ignored_but_syntax_is_not() {
        let data = wire::context_request("", &["x-any:thing", "qemu:", "base:future"]);
        assert_eq!(context_request(&data, Purpose::List), Ok(("", vec![])));
        for bad in ["", "base", ":", ":allocation"] {
            let data = wire::context_request("", &[bad]);
            assert!(context_request(&data, Purpose::Set).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_context_asked_for_twice_is_meant_once() {
        let data = wire::context_request("", &["base:allocation", "base:allocation"]);
        let once = vec![ContextName::Allocation];
        assert_eq!(context_request(&data, Purpose::Set), Ok(("", once)));
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
        let data = wire::context_request("", &many[1..]);
        assert_eq!(context_request(&data, Purpose::List), Ok(("", vec![])));
    }

    #[test]
    fn quoted_text_is_plain_ascii_and_short() {
        assert_eq!(quoted(b"a\xff\n\""), r#""a\xff\n\"""#);
        let long = quoted(&[0xff; 4096]);
        assert!(long.is_ascii() && long.len() <= 4 * 64 + 5, "{}", long.len());
    }
}
