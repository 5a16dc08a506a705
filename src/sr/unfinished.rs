//! Operations in an SR that are begun and not over, and not this process's own: another host's,
//! which it finishes or undoes when it attaches the SR again, and those that nobody can read.
//!
//! What they name is theirs. Whoever settles them goes by what is there, so what others did there
//! meanwhile would be lost; and what looks unused may be about to get its children. Refuses to
//! settle anything: that is `recover`'s.

use std::collections::BTreeMap;
use std::io;

use super::catalogue::Catalogue;
use super::failure::{Failure, Kind};
use super::fields::FIELDS_MAX_BYTES;
use super::intent::Intent;
use super::names::{Named, VdiUuid, intent_name};
use super::repository::Repository;
use super::store::{self, Entry};

const OF_A_HOST: &str = "start orlop on that host: it settles this when it attaches the SR; if the \
                         host is gone for good, attach the SR once without shared=true, on one \
                         host and while no other uses it";
const OF_OURS: &str = "end the program that uses its files, then detach the SR and attach it again";
const DAMAGED: &str = "run 'orlop check' on the VDI's files, and remove that file when they are \
                       sound";
const UNREAD: &str = "check the storage and the kernel's log, and try again";

/// Operations that are read at most; a host has a few under way at once.
const INTENTS_MAX: usize = 1024;

/// Why nobody touches a VDI, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Obstacle {
    why: String,
    remedy: &'static str,
}

impl Obstacle {
    fn refusal(&self, place: &str) -> Failure {
        Failure::new(Kind::Busy, place, &self.why).advise(self.remedy)
    }
}

/// Whom operations name that are not over, as of one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unfinished {
    named: BTreeMap<VdiUuid, Obstacle>,
    /// One that is damaged: besides its subject it may name whatever nobody sees.
    damaged: Option<Obstacle>,
    /// One that could not be read this time: it may name anybody.
    unread: Option<Obstacle>,
}

impl Unfinished {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.named.is_empty() && self.damaged.is_none() && self.unread.is_none()
    }

    /// Refuses whatever needs that there is none.
    ///
    /// # Errors
    /// [`Kind::Busy`], with whose one of them is.
    pub(super) fn check_none(&self, place: &str) -> Result<(), Failure> {
        let any = self.unread.as_ref().or(self.damaged.as_ref());
        let any = any.or_else(|| self.named.values().next());
        any.map_or(Ok(()), |obstacle| Err(obstacle.refusal(place)))
    }

    /// Refuses what one of them names.
    ///
    /// # Errors
    /// [`Kind::Busy`], with whose it is.
    pub(super) fn check(&self, vdi: VdiUuid) -> Result<(), Failure> {
        let obstacle = self.named.get(&vdi).or(self.unread.as_ref());
        obstacle.map_or(Ok(()), |obstacle| Err(obstacle.refusal(&format!("VDI {vdi}"))))
    }

    /// Why something that nobody sees may not be taken away.
    pub(super) fn keeps(&self, vdi: VdiUuid) -> Option<&str> {
        let obscure = self.damaged.as_ref().or(self.unread.as_ref());
        self.named.get(&vdi).or(obscure).map(|obstacle| obstacle.why.as_str())
    }

    fn add(&mut self, intent: &Intent, obstacle: &Obstacle) {
        for vdi in intent.vdis() {
            self.named.insert(vdi, obstacle.clone());
        }
    }
}

impl Catalogue {
    /// Refuses a VDI when an operation that is not over, and not ours, names it or a parent of it.
    ///
    /// # Errors
    /// [`Kind::Busy`], with whose it is; or its chain is too long.
    pub fn untouched(&self, vdi: VdiUuid) -> Result<(), Failure> {
        self.unfinished.check(vdi)?;
        if self.unfinished.is_empty() {
            return Ok(());
        }
        self.chain(vdi)?.into_iter().try_for_each(|link| self.unfinished.check(link.uuid))
    }
}

impl Repository {
    /// What is under way that is not this process's. Its own verbs keep out of each other's way by
    /// turns, and what they left is settled by the next one.
    pub(super) fn unfinished(&self, entries: &[Entry]) -> Unfinished {
        let mut unfinished = Unfinished::default();
        let subjects = entries.iter().filter_map(|entry| match Named::of(&entry.name) {
            Named::Intent(subject) => Some(subject),
            _ => None,
        });
        for (count, subject) in subjects.enumerate() {
            if count == INTENTS_MAX {
                let why = format!("there are more than {INTENTS_MAX} unfinished operations");
                unfinished.unread = Some(Obstacle { why, remedy: UNREAD });
                break;
            }
            let place = intent_name(subject);
            let read = store::read_small(self.store.as_ref(), &place, FIELDS_MAX_BYTES);
            let bytes = match read {
                Ok(bytes) => bytes,
                // It was over in this moment.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => {
                    let why = format!("an unfinished operation cannot be read ({place}: {error})");
                    unfinished.unread = Some(Obstacle { why, remedy: UNREAD });
                    continue;
                }
            };
            match Intent::from_bytes(&bytes) {
                Ok((intent, host)) if host != self.host => {
                    let verb = intent.verb();
                    let why = format!("the host {host} has not finished a {verb} of {subject}");
                    unfinished.add(&intent, &Obstacle { why, remedy: OF_A_HOST });
                }
                Ok((intent, _)) if self.left.contains(&subject) => {
                    let verb = intent.verb();
                    let why = format!("a {verb} of {subject} could not be settled");
                    unfinished.add(&intent, &Obstacle { why, remedy: OF_OURS });
                }
                Ok(_) => {}
                Err(error) => {
                    let why = format!("an unfinished operation is damaged ({place}: {error})");
                    let obstacle = Obstacle { why, remedy: DAMAGED };
                    unfinished.named.insert(subject, obstacle.clone());
                    unfinished.damaged = Some(obstacle);
                }
            }
        }
        unfinished
    }
}
