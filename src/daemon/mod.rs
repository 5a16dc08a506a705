//! The daemon: repositories of one host, with their VDIs attached and served, until it is told to
//! stop.
//!
//! The order is the point. Nobody is let in before what was attached is attached again, and nothing
//! is closed before the calls under way have ended. What is attached is remembered across an end of
//! any kind: the next start finds it. Refuses to share its state with another daemon, and to know
//! how a call is spelled.

mod config;
mod home;
mod life;
mod pulse;
mod system;

pub use config::{Config, ConfigError, Fuse, LogFormat, Overrides, Settings};
pub use home::{Home, HomeError};
pub use life::{DaemonError, Reload, run};
