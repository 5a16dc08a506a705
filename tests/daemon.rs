//! `orlop daemon` and the command line on it, as users meet them: the real program in directories
//! of its own, with other programs as clients and judges.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops where its set-up fails")]

#[path = "daemon/dialects.rs"]
mod dialects;
#[path = "daemon/endings.rs"]
mod endings;
#[path = "support/foreign.rs"]
mod foreign;
#[path = "daemon/house.rs"]
mod house;
#[path = "daemon/places.rs"]
mod places;
#[path = "support/scripts.rs"]
mod scripts;
#[path = "daemon/strays.rs"]
mod strays;
#[path = "daemon/verbs.rs"]
mod verbs;
#[path = "daemon/waking.rs"]
mod waking;
