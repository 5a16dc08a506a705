//! A simulated directory: names now, names on the platter, and the changes between the two.
//!
//! Refuses to know files: a name leads to a node, and what a node holds is `fs`.

use std::collections::{BTreeMap, BTreeSet};

/// What a name leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Node(pub u32);

/// The names of a directory.
pub type Names = BTreeMap<String, Node>;

/// Which changes a crash may lose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DirMode {
    /// A journal: what persists is a prefix of what was done.
    Prefix,
    /// No journal: any of the changes may be lost.
    AnySubset,
}

/// Most changes whose every subset is listed; beyond that, prefixes and single losses.
const MOST_SUBSET_CHANGES: usize = 10;

#[derive(Clone, Debug)]
enum Change {
    Link(String, Node),
    Unlink(String),
    /// Atomic: never both names, never neither.
    Rename(String, String),
}

/// A simulated directory.
#[derive(Clone, Debug, Default)]
pub struct SimDir {
    live: Names,
    durable: Names,
    pending: Vec<Change>,
}

impl SimDir {
    /// The names as a process sees them.
    pub fn names(&self) -> &Names {
        &self.live
    }

    /// Gives a node a name that is not taken; false when it is.
    pub fn link(&mut self, name: &str, node: Node) -> bool {
        let free = !self.live.contains_key(name);
        if free {
            self.change(Change::Link(name.into(), node));
        }
        free
    }

    /// Takes a name away; false when there is none.
    pub fn unlink(&mut self, name: &str) -> bool {
        let found = self.live.contains_key(name);
        if found {
            self.change(Change::Unlink(name.into()));
        }
        found
    }

    /// Renames, replacing what was there; false when there is nothing to rename.
    pub fn rename(&mut self, from: &str, to: &str) -> bool {
        let found = self.live.contains_key(from);
        if found {
            self.change(Change::Rename(from.into(), to.into()));
        }
        found
    }

    /// Makes all names durable.
    pub fn sync(&mut self) {
        self.durable.clone_from(&self.live);
        self.pending.clear();
    }

    /// Every set of names a power loss can leave.
    pub fn after_crash(&self, mode: DirMode) -> BTreeSet<Names> {
        let count = self.pending.len();
        let mut states: BTreeSet<Names> =
            (0..=count).map(|kept| self.with(|at| at < kept)).collect();
        if mode == DirMode::AnySubset && count <= MOST_SUBSET_CHANGES {
            states.extend((0..1usize << count).map(|set| self.with(|at| set >> at & 1 == 1)));
        } else if mode == DirMode::AnySubset {
            states.extend((0..count).map(|lost| self.with(|at| at != lost)));
            states.extend((0..count).map(|kept| self.with(|at| at == kept)));
        }
        states
    }

    fn with(&self, keep: impl Fn(usize) -> bool) -> Names {
        let mut names = self.durable.clone();
        let kept = self.pending.iter().enumerate().filter(|(at, _)| keep(*at));
        kept.for_each(|(_, change)| apply(&mut names, change));
        names
    }

    fn change(&mut self, change: Change) {
        apply(&mut self.live, &change);
        self.pending.push(change);
    }
}

fn apply(names: &mut Names, change: &Change) {
    match change {
        Change::Link(name, node) => {
            names.insert(name.clone(), *node);
        }
        Change::Unlink(name) => {
            names.remove(name);
        }
        Change::Rename(from, to) => {
            // The name it started from may itself have been lost.
            if let Some(node) = names.remove(from) {
                names.insert(to.clone(), node);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{DirMode, Node, SimDir};

    #[test]
    fn a_rename_without_a_directory_sync_may_be_lost_and_is_never_half_done() {
        let mut dir = SimDir::default();
        assert!(dir.link("leaf", Node(1)));
        dir.sync();
        assert!(dir.link("leaf.tmp", Node(2)));
        assert!(dir.rename("leaf.tmp", "leaf"));
        assert!(!dir.rename("nothing", "leaf"));
        let states = dir.after_crash(DirMode::Prefix);
        assert_eq!(states.len(), 3);
        assert!(states.iter().all(|names| names.contains_key("leaf")));
        dir.sync();
        let states = dir.after_crash(DirMode::AnySubset);
        assert_eq!(states.into_iter().next().and_then(|n| n.get("leaf").copied()), Some(Node(2)));
    }

    #[test]
    fn without_a_journal_an_unlink_may_persist_before_an_older_link() {
        let mut dir = SimDir::default();
        dir.link("old", Node(1));
        dir.sync();
        dir.link("new", Node(2));
        dir.unlink("old");
        assert!(dir.after_crash(DirMode::Prefix).iter().all(|names| !names.is_empty()));
        assert!(dir.after_crash(DirMode::AnySubset).iter().any(|names| names.is_empty()));
    }
}
