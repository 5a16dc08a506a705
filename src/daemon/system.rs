//! The service manager: sockets it passes, what it wants to be told, and how often.
//!
//! Without one, nothing is passed and nobody is told.

use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::time::Duration;

use sd_notify::NotifyState;

use crate::host::inherited;

/// The name under which a service manager passes the management socket (FileDescriptorName=).
const API: &str = "api";
/// What systemd calls a socket whose unit does not name it.
const NAMELESS: [&str; 2] = ["", "unknown"];
/// Most descriptors anybody passes.
const PASSED_MAX: usize = 64;

/// The management socket, if a service manager passed it. To be called before anything else opens
/// descriptors.
///
/// # Errors
/// When something else was passed, which nobody would use.
pub(super) fn passed_socket() -> io::Result<Option<OwnedFd>> {
    let passed: Vec<_> = sd_notify::listen_fds_with_names()?.take(PASSED_MAX).collect();
    let Some(number) = choose(&passed).map_err(io::Error::other)? else { return Ok(None) };
    let socket = inherited::adopt(number)?;
    if !rustix::net::sockopt::socket_acceptconn(&socket)? {
        let text = format!("the socket passed as {API:?} does not listen");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    Ok(Some(socket))
}

fn choose(passed: &[(RawFd, String)]) -> Result<Option<RawFd>, String> {
    let alone = passed.len() == 1;
    let is_api = |name: &str| name == API || (alone && NAMELESS.contains(&name));
    if let Some((number, name)) = passed.iter().find(|(_, name)| !is_api(name)) {
        return Err(format!(
            "the service manager passed descriptor {number} named {name:?}, for which there is no \
             use; pass one socket with FileDescriptorName={API}"
        ));
    }
    match passed {
        [] => Ok(None),
        [(number, _)] => Ok(Some(*number)),
        _ => Err(format!("the service manager passed {} sockets named {API:?}", passed.len())),
    }
}

/// Tells the service manager, if there is one.
pub(super) fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}

/// How often the service manager wants to hear that the daemon lives: twice in its limit.
pub(super) fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| limit / 2).filter(|every| !every.is_zero())
}

#[cfg(test)]
mod tests {
    use super::choose;

    #[test]
    fn one_socket_is_taken_and_nothing_is_left_unused() {
        let named = |names: &[&str]| -> Vec<_> {
            names.iter().enumerate().map(|(at, name)| (at as i32 + 3, (*name).into())).collect()
        };
        assert_eq!(choose(&named(&[])), Ok(None));
        assert_eq!(choose(&named(&["api"])), Ok(Some(3)));
        assert_eq!(choose(&named(&["unknown"])), Ok(Some(3)));
        for odd in [&["nbd"][..], &["api", "nbd"], &["api", "api"], &["unknown", "unknown"]] {
            assert!(choose(&named(odd)).is_err(), "{odd:?}");
        }
    }
}
