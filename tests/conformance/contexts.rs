//! Cases of LIST_META_CONTEXT and SET_META_CONTEXT.

use crate::case::{Case, Outcome, Stop, ensure, must, should};
use crate::peer::Peer;
use crate::session::{Session, Style, agree_on};
use crate::wire::{cmd, context_request, counted, err, opt, rep};
use crate::world::World;

const LIST: &str = "NBD_OPT_LIST_META_CONTEXT";
const SET: &str = "NBD_OPT_SET_META_CONTEXT";
const QUERYING: &str = "Metadata querying";
const BASE: &str = "The base: metadata namespace";

const ALLOCATION: &str = "base:allocation";

/// A peer that agreed on structured replies.
fn structured(world: &World) -> Outcome<Peer> {
    let mut peer = Peer::open(&world.disk.connector)?;
    agree_on(&mut peer, Style::Structured)?;
    Ok(peer)
}

/// Names that a list of queries finds.
fn list(peer: &mut Peer, world: &World, queries: &[&str]) -> Outcome<Vec<String>> {
    let queries: Vec<&[u8]> = queries.iter().map(|query| query.as_bytes()).collect();
    let answer = peer.contexts(opt::LIST_META_CONTEXT, world.disk.name(), &queries)?;
    if answer.verdict() == rep::ERR_UNSUP {
        return Err(Stop::Lacking("metadata contexts".into()));
    }
    Ok(answer.contexts()?.into_iter().map(|(_, name)| name).collect())
}

/// Ids and names that a list of queries selects.
fn set(peer: &mut Peer, world: &World, queries: &[&str]) -> Outcome<Vec<(u32, String)>> {
    let queries: Vec<&[u8]> = queries.iter().map(|query| query.as_bytes()).collect();
    let answer = peer.contexts(opt::SET_META_CONTEXT, world.disk.name(), &queries)?;
    if answer.verdict() == rep::ERR_UNSUP {
        return Err(Stop::Lacking("metadata contexts".into()));
    }
    answer.contexts()
}

/// Enters transmission and expects that BLOCK_STATUS has nothing to tell.
fn nothing_selected(peer: Peer, world: &World) -> Outcome {
    let mut session = Session::go(peer, &world.disk, Style::Structured)?;
    session.fails(cmd::BLOCK_STATUS, 0, (0, 65_536), &[err::EINVAL])
}

/// Enters transmission and expects that BLOCK_STATUS tells these contexts.
fn selected(peer: Peer, world: &World, contexts: &[(u32, String)]) -> Outcome {
    let mut session = Session::go(peer, &world.disk, Style::Structured)?;
    session.contexts = contexts.to_vec();
    let reply = session.ask(cmd::BLOCK_STATUS, 0, 0, 65_536, &[])?;
    reply.succeeded()?;
    for (id, _) in contexts {
        reply.status(*id)?;
    }
    Ok(())
}

/// Both metadata options with this data are ERR_INVALID, and the handshake goes on.
fn malformed(world: &World, data: &[u8]) -> Outcome {
    let mut peer = structured(world)?;
    for number in [opt::LIST_META_CONTEXT, opt::SET_META_CONTEXT] {
        // Contexts told before the error are void, and allowed.
        let verdict = peer.option(number, data)?.verdict();
        ensure!([rep::ERR_INVALID, rep::ERR_TOO_BIG].contains(&verdict), "{verdict:#x}");
    }
    peer.in_step(&world.disk)
}

/// Both metadata options with this query fail or find nothing, and the handshake goes on.
fn unfit(world: &World, query: &[u8]) -> Outcome {
    let mut peer = structured(world)?;
    for number in [opt::LIST_META_CONTEXT, opt::SET_META_CONTEXT] {
        let answer = peer.contexts(number, world.disk.name(), &[query])?;
        ensure!(answer.items().is_empty(), "query {query:x?} finds {:?}", answer.items());
        let fine = [rep::ACK, rep::ERR_INVALID, rep::ERR_TOO_BIG].contains(&answer.verdict());
        ensure!(fine, "query {query:x?} ends with {:#x}", answer.verdict());
    }
    peer.in_step(&world.disk)
}

/// All of them.
pub(crate) const CASES: &[Case] = &[
    should(
        "set-context.unstructured",
        SET,
        "Before structured replies or extended headers it is ERR_INVALID.",
        |world| {
            let mut peer = Peer::open(&world.disk.connector)?;
            let query: &[&[u8]] = &[ALLOCATION.as_bytes()];
            let answer = peer.contexts(opt::SET_META_CONTEXT, world.disk.name(), query)?;
            answer.refused(&[rep::ERR_INVALID, rep::ERR_EXT_HEADER_REQD])?;
            peer.in_step(&world.disk)
        },
    ),
    must(
        "list-context.unstructured",
        LIST,
        "Before structured replies it is answered or ERR_INVALID.",
        |world| {
            let mut peer = Peer::open(&world.disk.connector)?;
            let answer = peer.contexts(opt::LIST_META_CONTEXT, world.disk.name(), &[])?;
            let fine = [rep::ACK, rep::ERR_INVALID, rep::ERR_EXT_HEADER_REQD];
            ensure!(fine.contains(&answer.verdict()), "{:#x}", answer.verdict());
            peer.in_step(&world.disk)
        },
    ),
    must("list-context.all", LIST, "No query at all lists every context of the export.", |world| {
        let mut peer = structured(world)?;
        let names = list(&mut peer, world, &[])?;
        ensure!(names.iter().any(|name| name == ALLOCATION), "{names:?}");
        Ok(())
    }),
    should(
        "list-context.ours",
        QUERYING,
        "What orlop knows of an image has a context: where data is, in which layer, and what the \
         leaf changed.",
        |world| {
            let mut peer = structured(world)?;
            let names = list(&mut peer, world, &[])?;
            let depth = names.iter().any(|name| name == "qemu:allocation-depth");
            let bitmap = names.iter().any(|name| name.starts_with("qemu:dirty-bitmap:"));
            ensure!(depth && bitmap, "{names:?}");
            Ok(())
        },
    ),
    should("list-context.ids", LIST, "Ids in a list are reserved and zero.", |world| {
        let mut peer = structured(world)?;
        let answer = peer.contexts(opt::LIST_META_CONTEXT, world.disk.name(), &[])?;
        let found = answer.contexts()?;
        ensure!(found.iter().all(|(id, _)| *id == 0), "{found:?}");
        Ok(())
    }),
    must(
        "list-context.names",
        QUERYING,
        "A name is a namespace without blanks, a colon, and a leaf.",
        |world| {
            let mut peer = structured(world)?;
            for name in list(&mut peer, world, &[])? {
                let (space, leaf) = name.split_once(':').ok_or("a name without a colon")?;
                let plain = space.chars().all(|c| !c.is_whitespace() && !c.is_control());
                ensure!(plain && !space.is_empty() && !leaf.is_empty(), "{name:?}");
            }
            Ok(())
        },
    ),
    must(
        "list-context.once",
        LIST,
        "A context that several queries match is still one context.",
        |world| {
            let mut peer = structured(world)?;
            let names = list(&mut peer, world, &["base:", ALLOCATION, "base:", ALLOCATION])?;
            ensure!(names.contains(&ALLOCATION.to_owned()), "{names:?}");
            Ok(())
        },
    ),
    must(
        "list-context.base",
        BASE,
        "The query base: lists what is in that namespace, and nothing else.",
        |world| {
            let mut peer = structured(world)?;
            let names = list(&mut peer, world, &["base:"])?;
            ensure!(names == [ALLOCATION], "{names:?}");
            Ok(())
        },
    ),
    must(
        "list-context.exact",
        LIST,
        "A query finds the contexts it matches: the full name finds itself.",
        |world| {
            let mut peer = structured(world)?;
            for name in list(&mut peer, world, &[])? {
                let found = list(&mut peer, world, &[&name])?;
                ensure!(found == [name.clone()], "{name} finds {found:?}");
            }
            Ok(())
        },
    ),
    must(
        "list-context.unknown-leaf",
        BASE,
        "A leaf of base: that is not known is ignored, no error.",
        |world| {
            let mut peer = structured(world)?;
            let names =
                list(&mut peer, world, &["base:nonsense", "base:allocation2", "base:alloc"])?;
            ensure!(names.is_empty(), "{names:?}");
            Ok(())
        },
    ),
    must(
        "list-context.unknown-namespace",
        LIST,
        "Queries of an unknown namespace are ignored; nothing found is one ACK.",
        |world| {
            let mut peer = structured(world)?;
            let names = list(&mut peer, world, &["x-conformance:thing", "nobody:", "x-:"])?;
            ensure!(names.is_empty(), "{names:?}");
            let names = list(&mut peer, world, &["x-conformance:thing", ALLOCATION])?;
            ensure!(names == [ALLOCATION], "{names:?}");
            Ok(())
        },
    ),
    must(
        "list-context.wildcards",
        QUERYING,
        "A namespace alone lists contexts of that namespace, each of which can be set.",
        |world| {
            let mut peer = structured(world)?;
            for name in list(&mut peer, world, &["qemu:"])? {
                ensure!(name.starts_with("qemu:"), "{name}");
                if !name.ends_with(':') {
                    let found = set(&mut peer, world, &[&name])?;
                    ensure!(found.len() == 1 && found[0].1 == name, "{name} selects {found:?}");
                }
            }
            Ok(())
        },
    ),
    must(
        "list-context.keeps-selection",
        LIST,
        "Listing selects nothing and clears nothing.",
        |world| {
            let mut peer = structured(world)?;
            let contexts = set(&mut peer, world, &[ALLOCATION])?;
            list(&mut peer, world, &[])?;
            list(&mut peer, world, &["x-a:b"])?;
            selected(peer, world, &contexts)
        },
    ),
    must(
        "list-context.unknown-export",
        LIST,
        "Contexts of an export that does not exist are an error: ERR_UNKNOWN.",
        |world| {
            let mut peer = structured(world)?;
            for number in [opt::LIST_META_CONTEXT, opt::SET_META_CONTEXT] {
                let answer = peer.contexts(number, b"no-such-export", &[ALLOCATION.as_bytes()])?;
                answer.refused(&[rep::ERR_UNKNOWN])?;
            }
            peer.in_step(&world.disk)
        },
    ),
    must(
        "context.short",
        LIST,
        "Data that ends before its fields is ERR_INVALID: every truncation.",
        |world| {
            let whole = context_request(world.disk.name(), &[ALLOCATION.as_bytes(), b"x:y"]);
            for end in (0..whole.len()).step_by(3) {
                malformed(world, &whole[..end])?;
            }
            malformed(world, &whole[..whole.len() - 1])
        },
    ),
    should("context.surplus", LIST, "Data behind its fields is ERR_INVALID.", |world| {
        let mut data = context_request(world.disk.name(), &[ALLOCATION.as_bytes()]);
        data.extend_from_slice(&counted(b"base:"));
        malformed(world, &data)
    }),
    must(
        "context.name-length",
        LIST,
        "A name length beyond the data is ERR_INVALID: 4096, 4097, 2^31, 2^32-1.",
        |world| {
            for length in [4096_u32, 4097, 1 << 31, u32::MAX - 7, u32::MAX] {
                let mut data = context_request(world.disk.name(), &[]);
                data[..4].copy_from_slice(&length.to_be_bytes());
                malformed(world, &data)?;
            }
            Ok(())
        },
    ),
    must(
        "context.query-length",
        LIST,
        "A query length beyond the data is ERR_INVALID: 4096, 4097, 2^31, 2^32-1.",
        |world| {
            let at = 4 + world.disk.name().len() + 4;
            for length in [4096_u32, 4097, 1 << 31, u32::MAX - 3, u32::MAX] {
                let mut data = context_request(world.disk.name(), &[ALLOCATION.as_bytes()]);
                data[at..at + 4].copy_from_slice(&length.to_be_bytes());
                malformed(world, &data)?;
            }
            Ok(())
        },
    ),
    must(
        "context.query-count",
        LIST,
        "More queries counted than sent is ERR_INVALID: 2, 4096, 4097, 2^31, 2^32-1.",
        |world| {
            let at = 4 + world.disk.name().len();
            for count in [2_u32, 4096, 4097, 1 << 31, u32::MAX] {
                let mut data = context_request(world.disk.name(), &[ALLOCATION.as_bytes()]);
                data[at..at + 4].copy_from_slice(&count.to_be_bytes());
                malformed(world, &data)?;
            }
            Ok(())
        },
    ),
    must(
        "context.no-colon",
        LIST,
        "A query without a colon may be ERR_INVALID, and finds nothing.",
        |world| {
            for query in [&b"base"[..], b"allocation", b"", b":", b":allocation"] {
                unfit(world, query)?;
            }
            Ok(())
        },
    ),
    must(
        "context.bad-string",
        "Protocol conventions, strings",
        "A query that is no string finds nothing: NUL, other bytes than UTF-8.",
        |world| {
            for query in [&b"base:allocation\0"[..], b"base:\xff", b"\0", b"x\xfe:y"] {
                unfit(world, query)?;
            }
            Ok(())
        },
    ),
    must(
        "context.long-string",
        "Protocol conventions, strings",
        "A query of 4096 bytes is one; 4097 are too many; both are skipped.",
        |world| {
            for length in [255, 256, 4096, 4097] {
                let mut query = b"x-conformance:".to_vec();
                query.resize(length, b'x');
                unfit(world, &query)?;
            }
            Ok(())
        },
    ),
    must(
        "context.many",
        LIST,
        "Very many queries are answered or ERR_TOO_BIG, and skipped.",
        |world| {
            let mut peer = structured(world)?;
            let queries = [&b"x-a:b"[..]; 5000];
            for number in [opt::LIST_META_CONTEXT, opt::SET_META_CONTEXT] {
                let verdict = peer.contexts(number, world.disk.name(), &queries)?.verdict();
                let fine = [rep::ACK, rep::ERR_TOO_BIG].contains(&verdict);
                ensure!(fine, "{verdict:#x}");
            }
            peer.in_step(&world.disk)
        },
    ),
];

/// Those of SET_META_CONTEXT alone.
pub(crate) const SETTING: &[Case] = &[
    must(
        "set-context.one",
        SET,
        "Each selected context is told with its id, then ACK; BLOCK_STATUS answers for it.",
        |world| {
            let mut peer = structured(world)?;
            let contexts = set(&mut peer, world, &[ALLOCATION])?;
            let right = contexts.len() == 1 && contexts[0].1 == ALLOCATION;
            ensure!(right, "{contexts:?}");
            selected(peer, world, &contexts)
        },
    ),
    must("set-context.all", SET, "Ids are unique within a selection.", |world| {
        let mut peer = structured(world)?;
        let names = list(&mut peer, world, &[])?;
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let contexts = set(&mut peer, world, &names)?;
        let mut ids: Vec<_> = contexts.iter().map(|(id, _)| *id).collect();
        ids.sort_unstable();
        ids.dedup();
        ensure!(ids.len() == names.len(), "{contexts:?} for {names:?}");
        selected(peer, world, &contexts)
    }),
    must("set-context.duplicates", SET, "Ids are unique even if a query comes twice.", |world| {
        let mut peer = structured(world)?;
        let contexts = set(&mut peer, world, &[ALLOCATION, ALLOCATION, ALLOCATION])?;
        let mut ids: Vec<_> = contexts.iter().map(|(id, _)| *id).collect();
        ids.sort_unstable();
        ids.dedup();
        ensure!(!ids.is_empty() && ids.len() == contexts.len(), "{contexts:?}");
        selected(peer, world, &contexts)
    }),
    must("set-context.none", SET, "No queries select nothing, and that is success.", |world| {
        let mut peer = structured(world)?;
        let contexts = set(&mut peer, world, &[])?;
        ensure!(contexts.is_empty(), "{contexts:?}");
        nothing_selected(peer, world)
    }),
    must("set-context.wildcard", BASE, "The query base: selects nothing.", |world| {
        let mut peer = structured(world)?;
        let contexts = set(&mut peer, world, &["base:"])?;
        ensure!(contexts.is_empty(), "{contexts:?}");
        nothing_selected(peer, world)
    }),
    should(
        "set-context.foreign-wildcard",
        QUERYING,
        "An empty leaf selects nothing in other namespaces, either.",
        |world| {
            let mut peer = structured(world)?;
            let contexts = set(&mut peer, world, &["qemu:", "qemu:dirty-bitmap:", "x-a:"])?;
            ensure!(contexts.is_empty(), "{contexts:?}");
            nothing_selected(peer, world)
        },
    ),
    must(
        "set-context.unknown",
        SET,
        "Queries that select nothing are ignored beside others.",
        |world| {
            let mut peer = structured(world)?;
            let queries = ["x-a:b", "base:nonsense", ALLOCATION, "nobody:at-home"];
            let contexts = set(&mut peer, world, &queries)?;
            let right = contexts.len() == 1 && contexts[0].1 == ALLOCATION;
            ensure!(right, "{contexts:?}");
            selected(peer, world, &contexts)
        },
    ),
    must(
        "set-context.replaces",
        SET,
        "The last selection replaces those before it: with nothing.",
        |world| {
            let mut peer = structured(world)?;
            set(&mut peer, world, &[ALLOCATION])?;
            set(&mut peer, world, &["x-a:b"])?;
            nothing_selected(peer, world)
        },
    ),
    must(
        "set-context.replaces-by-another",
        SET,
        "The last selection replaces those before it: with another context.",
        |world| {
            let mut peer = structured(world)?;
            let names = list(&mut peer, world, &[])?;
            let other = names.iter().find(|name| *name != ALLOCATION);
            let other = other.ok_or_else(|| Stop::Lacking("a second context".into()))?;
            set(&mut peer, world, &[ALLOCATION])?;
            let contexts = set(&mut peer, world, &[other])?;
            selected(peer, world, &contexts)
        },
    ),
    must(
        "set-context.failure-clears",
        SET,
        "A selection that fails replaces the one before it, too: data makes no sense.",
        |world| {
            let mut peer = structured(world)?;
            set(&mut peer, world, &[ALLOCATION])?;
            let verdict = peer.option(opt::SET_META_CONTEXT, &[0; 5])?.verdict();
            ensure!(verdict & rep::ERROR != 0, "{verdict:#x}");
            nothing_selected(peer, world)
        },
    ),
    must(
        "set-context.unknown-export-clears",
        SET,
        "A selection that fails replaces the one before it, too: no such export.",
        |world| {
            let mut peer = structured(world)?;
            set(&mut peer, world, &[ALLOCATION])?;
            let query: &[&[u8]] = &[ALLOCATION.as_bytes()];
            let answer = peer.contexts(opt::SET_META_CONTEXT, b"no-such-export", query)?;
            answer.refused(&[rep::ERR_UNKNOWN])?;
            nothing_selected(peer, world)
        },
    ),
    must(
        "set-context.info-between",
        SET,
        "INFO and other options between do not undo a selection.",
        |world| {
            let mut peer = structured(world)?;
            let contexts = set(&mut peer, world, &[ALLOCATION])?;
            peer.in_step(&world.disk)?;
            peer.option(opt::LIST, &[])?;
            peer.option(999, &[])?;
            peer.ask(opt::GO, b"no-such-export", &[])?;
            selected(peer, world, &contexts)
        },
    ),
    must(
        "set-context.extended",
        SET,
        "Extended headers do as well as structured replies.",
        |world| {
            let mut session = Session::with(&world.disk, Style::Extended, &[ALLOCATION])?;
            session.ok(cmd::BLOCK_STATUS, 0, 0, 65_536)
        },
    ),
    must("set-context.connection", SET, "A selection is one connection's.", |world| {
        let _other = Session::with(&world.disk, Style::Structured, &[ALLOCATION])?;
        nothing_selected(structured(world)?, world)
    }),
];
