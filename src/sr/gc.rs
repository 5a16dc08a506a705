//! Gives back what nobody needs: hidden data without children, and hidden parents with one child.
//!
//! A hidden parent with one child takes in the child's data and then the child's place. Until it
//! does, the child hides in the parent what the merge changes there, so every prefix of a merge is
//! neutral to whoever reads. Refuses to touch anything above which a disk is in use, what another
//! program has claimed, what an unfinished operation names, a parent with a second child, a parent
//! that somebody sees, and whatever an image that is no VDI names as its parent.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use super::catalogue::{Catalogue, Vdi};
use super::change::{self, corrupt};
use super::failure::Failure;
use super::intent::Intent;
use super::names::{DataFormat, VdiUuid, data_name, record_name};
use super::offline::{OfflineDisk, copy_top};
use super::repository::Repository;
use super::store::{self, Claim, DirOp};
use crate::engine::units::ByteLen;

/// What was given back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Hidden data that nobody needed.
    pub removed: Vec<VdiUuid>,
    /// VDIs whose data and whose parent's became one.
    pub merged: Vec<VdiUuid>,
    /// What could have been merged, and why it was not.
    pub left: Vec<(VdiUuid, String)>,
    /// Space taken by data before and after.
    pub space: (ByteLen, ByteLen),
}

impl Repository {
    /// Removes and merges until nothing is left to do. `in_use` says of a VDI that it is served or
    /// about to be.
    ///
    /// # Errors
    /// The first failure of the store; what was done by then stays done.
    pub fn gc(&self, in_use: &dyn Fn(VdiUuid) -> bool) -> Result<Collected, Failure> {
        self.ready()?;
        let mut collected = Collected::default();
        collected.space.0 = taken(&self.scan()?);
        // Parents whose files, or whose child's, another program uses.
        let mut claimed = BTreeMap::new();
        loop {
            collected.left.clear();
            collected.removed.extend(self.prune(in_use, &mut collected.left)?);
            let catalogue = self.scan()?;
            collected.space.1 = taken(&catalogue);
            if let Some(why) = &catalogue.obscure {
                let hidden = catalogue.vdis.values().filter(|vdi| vdi.hidden);
                collected.left.extend(hidden.map(|vdi| (vdi.uuid, why.clone())));
                return Ok(collected);
            }
            let usable = Usable { in_use, claimed: &claimed };
            let Some((parent, child)) = candidate(&catalogue, &usable, &mut collected.left) else {
                return Ok(collected);
            };
            let _claims = match [parent, child].map(|vdi| self.claim(vdi)) {
                [Ok(Ok(below)), Ok(Ok(above))] => (below, above),
                [Err(failure), _] | [_, Err(failure)] => return Err(failure),
                [Ok(Err(why)), _] | [_, Ok(Err(why))] => {
                    claimed.insert(parent.uuid, why);
                    continue;
                }
            };
            let done = child.uuid;
            self.merge(&catalogue, parent, child)?;
            collected.merged.push(done);
        }
    }

    /// Removes hidden data without children, upwards. What stays although nobody on this host needs
    /// it is noted, with why.
    pub(super) fn prune(
        &self,
        in_use: &dyn Fn(VdiUuid) -> bool,
        left: &mut Vec<(VdiUuid, String)>,
    ) -> Result<Vec<VdiUuid>, Failure> {
        let (mut removed, mut stays) = (Vec::new(), BTreeSet::new());
        loop {
            let catalogue = self.scan()?;
            let garbage = catalogue.vdis.values().find(|vdi| {
                is_garbage(&catalogue, vdi) && !in_use(vdi.uuid) && !stays.contains(&vdi.uuid)
            });
            let Some(vdi) = garbage else {
                left.extend(kept_for_strays(&catalogue));
                return Ok(removed);
            };
            stays.insert(vdi.uuid);
            if let Some(why) = catalogue.unfinished.keeps(vdi.uuid) {
                left.push((vdi.uuid, why.to_owned()));
                continue;
            }
            let _claim = match self.claim(vdi)? {
                Ok(claim) => claim,
                Err(why) => {
                    left.push((vdi.uuid, why));
                    continue;
                }
            };
            // Looked at again under the claim: a list of names is no picture of one moment, and
            // another host may just have been giving it children.
            let catalogue = self.scan()?;
            let still = catalogue.any(vdi.uuid).is_some_and(|vdi| is_garbage(&catalogue, vdi));
            if still && catalogue.unfinished.keeps(vdi.uuid).is_none() {
                self.remove(vdi.uuid, vdi.format)?;
                removed.push(vdi.uuid);
            }
        }
    }

    /// Keeps other programs from the data of a VDI, or says who uses them.
    fn claim(&self, vdi: &Vdi) -> Result<Result<Claim, String>, Failure> {
        match self.store.claim(&vdi.data_name()) {
            Ok(claim) => Ok(Ok(claim)),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Ok(Err(error.to_string())),
            Err(error) => Err(self.failed("claim it", &error)),
        }
    }

    fn merge(&self, catalogue: &Catalogue, parent: &Vdi, child: &Vdi) -> Result<(), Failure> {
        let chain = |vdi: &Vdi| -> Result<Vec<(String, DataFormat)>, Failure> {
            let chain = catalogue.chain(vdi.uuid)?;
            Ok(chain.into_iter().map(|link| (link.data_name(), link.format)).collect())
        };
        let (below, above) = (chain(parent)?, chain(child)?);
        let merge = Intent::Merge { child: child.uuid, parent: parent.uuid, format: parent.format };
        self.carry_out(&merge, || {
            let mut to = OfflineDisk::open(Arc::clone(&self.store), &below, false)?;
            let mut from = OfflineDisk::open(Arc::clone(&self.store), &above, true)?;
            if to.size() < from.size() {
                to.resize(from.size())?;
            }
            copy_top(&mut from, &mut to)?;
            to.flush()
        })?;
        let succeed = Intent::Succeed {
            child: child.uuid,
            parent: parent.uuid,
            format: parent.format,
            child_format: child.format,
            hidden: child.hidden,
            heirs: child.children.clone(),
        };
        self.carry_out(&succeed, || self.succeed(&succeed))
    }

    /// The parent takes the child's place. Every step may be taken again.
    pub(super) fn succeed(&self, intent: &Intent) -> io::Result<()> {
        let Intent::Succeed { child, parent, format, child_format, hidden, heirs } = intent else {
            return Ok(());
        };
        let store = self.store.as_ref();
        let (old, new) = (data_name(*parent, *format), data_name(*child, *format));
        let there = store::exists(store, &old)?;
        let name = if there { &old } else { &new };
        if *format == DataFormat::Vhd {
            let identity = change::survey(store, name)?.footer.uuid;
            for heir in heirs {
                change::set_parent(store, &data_name(*heir, DataFormat::Vhd), identity)?;
                self.forget(*heir);
            }
            change::set_hidden(store, name, *hidden)?;
        }
        if there {
            store.apply(DirOp::Rename { from: &old, to: &new, replace: true })?;
        }
        if child_format != format {
            // Durable before the other goes: a child must have data at every moment.
            self.sync_directory()?;
            store::remove(store, &data_name(*child, *child_format))?;
        }
        store::remove(store, &record_name(*parent))?;
        self.forget(*parent);
        self.forget(*child);
        self.sync_directory()
    }
}

fn taken(catalogue: &Catalogue) -> ByteLen {
    let sum = |sum: u64, vdi: &Vdi| sum.saturating_add(vdi.utilisation.get());
    ByteLen::new(catalogue.vdis.values().fold(0, sum))
}

/// Whether nobody sees it and nobody needs it.
fn is_garbage(catalogue: &Catalogue, vdi: &Vdi) -> bool {
    vdi.hidden && !vdi.is_needed() && catalogue.obscure.is_none()
}

/// What nobody sees, and no VDI needs, but an image that is none.
fn kept_for_strays(catalogue: &Catalogue) -> impl Iterator<Item = (VdiUuid, String)> {
    let childless = catalogue.vdis.values().filter(|vdi| vdi.hidden && vdi.children.is_empty());
    childless.filter_map(|vdi| Some((vdi.uuid, kept_for(vdi)?)))
}

fn kept_for(vdi: &Vdi) -> Option<String> {
    let stray = vdi.strays.first()?;
    Some(format!("the file {stray:?}, which is no VDI's, is a child of {}", vdi.uuid))
}

/// What may not be merged, beyond what the catalogue tells.
struct Usable<'a> {
    in_use: &'a dyn Fn(VdiUuid) -> bool,
    claimed: &'a BTreeMap<VdiUuid, String>,
}

/// A hidden parent and its only child that may become one.
fn candidate<'a>(
    catalogue: &'a Catalogue,
    usable: &Usable<'_>,
    left: &mut Vec<(VdiUuid, String)>,
) -> Option<(&'a Vdi, &'a Vdi)> {
    for parent in catalogue.vdis.values().filter(|vdi| vdi.hidden) {
        let [only] = parent.children[..] else { continue };
        // A broken child is not among the VDIs.
        let Some(child) = catalogue.any(only) else { continue };
        match obstacle(catalogue, parent, child, usable) {
            None => return Some((parent, child)),
            Some(why) => left.push((parent.uuid, why)),
        }
    }
    None
}

fn obstacle(
    catalogue: &Catalogue,
    parent: &Vdi,
    child: &Vdi,
    usable: &Usable<'_>,
) -> Option<String> {
    if let Some(why) = usable.claimed.get(&parent.uuid) {
        return Some(why.clone());
    }
    // Of the child too: its children would have to be told of their new parent.
    if let Some(why) = kept_for(parent).or_else(|| kept_for(child)) {
        return Some(why);
    }
    let mut above = vec![parent.uuid];
    while let Some(uuid) = above.pop() {
        if (usable.in_use)(uuid) {
            return Some(format!("the VDI {uuid} above it is in use"));
        }
        if let Some(why) = catalogue.unfinished.keeps(uuid) {
            return Some(why.to_owned());
        }
        above.extend(catalogue.any(uuid).into_iter().flat_map(|vdi| &vdi.children));
    }
    if parent.format == DataFormat::Raw && !child.children.is_empty() {
        return Some("it is raw, and its child's children could not name it safely".to_owned());
    }
    if parent.size > child.size {
        return Some(format!("it is larger than its child {}", child.uuid));
    }
    let grandparent = parent.parent.and_then(|uuid| catalogue.any(uuid));
    if parent.size < child.size && grandparent.is_some_and(|below| below.size > parent.size) {
        return Some("its own parent is larger than it, so that it cannot grow".to_owned());
    }
    let repairable = parent.format == DataFormat::Raw || parent.identity.is_some();
    (!repairable).then(|| corrupt("it has no identity").to_string())
}
