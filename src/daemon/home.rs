//! The daemon's own directory: who this host is, and that only one daemon lives in it.

use std::fs::{DirBuilder, File};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use uuid::Uuid;

/// Whose directory it is: locked while it lives, with its number inside.
const LOCK: &str = "lock";
/// This host's identity.
const HOST: &str = "host-id";
/// Nobody but the owner looks at what is attached.
const STATE_MODE: u32 = 0o700;
/// Who may not use a socket shall not get to it either.
const RUNTIME_MODE: u32 = 0o755;
/// Bytes of the longest of these files.
const FILE_MAX_BYTES: u64 = 4096;

/// Why the daemon cannot live there.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// Another daemon does.
    #[error("{}: another daemon lives here: {holder}", place.display())]
    Taken {
        /// The state directory.
        place: PathBuf,
        /// Who.
        holder: String,
    },
    /// This host's identity cannot be read as one.
    #[error("{}: {found:?} is no identity of a host", file.display())]
    Identity {
        /// The file.
        file: PathBuf,
        /// What stands in it.
        found: String,
    },
    /// The system.
    #[error("{}: cannot {doing}: {error}", place.display())]
    Io {
        /// Where.
        place: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// Why not.
        error: io::Error,
    },
}

/// The state directory, taken: no other daemon gets it while this value is there.
#[derive(Debug)]
pub struct Home {
    host: Uuid,
    // Held open for its lock.
    lock: File,
}

impl Home {
    /// Takes the state directory, making it and an identity if they are not there.
    ///
    /// # Errors
    /// When another daemon has it, or it cannot be used.
    pub fn claim(state: &Path) -> Result<Self, HomeError> {
        make_directory(state, STATE_MODE)?;
        let lock = take(state)?;
        let host = identity(state)?;
        Ok(Self { host, lock })
    }

    /// This host's identity: made once, the same ever after.
    pub fn host(&self) -> Uuid {
        self.host
    }
}

impl Drop for Home {
    /// Gives it up by word: a child that is being started has a copy of the descriptor until it
    /// becomes its program.
    fn drop(&mut self) {
        // Closing it does the same, if later.
        let _ = flock(&self.lock, FlockOperation::Unlock);
    }
}

/// Makes a directory for sockets and mounts.
///
/// # Errors
/// When it cannot be made.
pub(super) fn make_runtime(path: &Path) -> Result<(), HomeError> {
    make_directory(path, RUNTIME_MODE)
}

fn failed<'a>(place: &'a Path, doing: &'static str) -> impl FnOnce(io::Error) -> HomeError + 'a {
    move |error| HomeError::Io { place: place.to_owned(), doing, error }
}

fn make_directory(path: &Path, mode: u32) -> Result<(), HomeError> {
    let made = DirBuilder::new().recursive(true).mode(mode).create(path);
    made.map_err(failed(path, "make the directory"))
}

fn take(state: &Path) -> Result<File, HomeError> {
    let path = state.join(LOCK);
    let mut options = File::options();
    // What stands in it names whoever holds it.
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let mut file = options.open(&path).map_err(failed(&path, "open it"))?;
    if let Err(errno) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
        let error = io::Error::from(errno);
        if error.kind() != io::ErrorKind::WouldBlock {
            return Err(failed(&path, "lock it")(error));
        }
        return Err(HomeError::Taken { place: state.to_owned(), holder: holder(&mut file) });
    }
    let noted = file
        .set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()));
    noted.map_err(failed(&path, "write to it"))?;
    Ok(file)
}

fn holder(file: &mut File) -> String {
    let mut text = String::new();
    let read = file.take(FILE_MAX_BYTES).read_to_string(&mut text);
    match read.ok().and_then(|_| text.trim().parse::<u32>().ok()) {
        Some(pid) => format!("process {pid}"),
        None => "it does not say who it is".to_owned(),
    }
}

fn identity(state: &Path) -> Result<Uuid, HomeError> {
    let path = state.join(HOST);
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            let found = text.trim();
            match Uuid::try_parse(found) {
                Ok(host) if !host.is_nil() => Ok(host),
                _ => {
                    let found = found.chars().take(64).collect();
                    Err(HomeError::Identity { file: path, found })
                }
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let host = Uuid::new_v4();
            write_whole(state, &path, &format!("{host}\n"))?;
            Ok(host)
        }
        Err(error) => Err(failed(&path, "read it")(error)),
    }
}

/// Durable before its name is: half an identity would be nobody's.
fn write_whole(state: &Path, path: &Path, text: &str) -> Result<(), HomeError> {
    let temporary = path.with_extension("tmp");
    let mut options = File::options();
    options.write(true).create(true).truncate(true).mode(0o600);
    let written = options.open(&temporary).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        File::open(state)?.sync_all()
    });
    written.map_err(failed(path, "write it"))
}

#[cfg(test)]
mod tests {
    use super::{Home, HomeError};

    #[test]
    fn a_host_has_one_identity_and_a_directory_one_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("a/state");
        let first = Home::claim(&state).unwrap();
        let told = Home::claim(&state).unwrap_err().to_string();
        assert!(told.contains(&format!("process {}", std::process::id())), "{told}");
        let host = first.host();
        drop(first);
        assert_eq!(Home::claim(&state).unwrap().host(), host);
        std::fs::write(state.join("host-id"), "nobody").unwrap();
        assert!(matches!(Home::claim(&state), Err(HomeError::Identity { .. })));
    }

    #[test]
    fn who_still_has_a_copy_of_the_descriptor_keeps_nobody_out() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::claim(dir.path()).unwrap();
        let copy = home.lock.try_clone().unwrap();
        drop(home);
        Home::claim(dir.path()).unwrap();
        drop(copy);
    }
}
