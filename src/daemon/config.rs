//! What an administrator may set: a TOML file in which every value may be left out, and options of
//! the command line, which win.
//!
//! Refuses keys it does not know: one that is misspelt would silently be the default.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::host::Aio;

/// The file that is read when no other is named.
const USUAL_FILE: &str = "/etc/orlop/orlop.toml";
/// Most bytes of a configuration file.
const FILE_MAX_BYTES: u64 = 1 << 20;
/// Longest path of a unix socket.
const SOCKET_PATH_MAX_BYTES: usize = 107;

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: cannot read the configuration: {error}", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// Why not.
        error: std::io::Error,
    },
    /// The file is no TOML, or says what cannot be said.
    #[error("{}: {error}", file.display())]
    Wrong {
        /// The file.
        file: PathBuf,
        /// What, and where in it.
        error: Box<toml::de::Error>,
    },
    /// A value that cannot be.
    #[error("{key} = {found}: {why}")]
    Value {
        /// The key.
        key: &'static str,
        /// What it was set to.
        found: String,
        /// Why that cannot be.
        why: String,
    },
}

/// The configuration file, as it is written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where it is remembered who this host is and what is attached.
    pub state: Option<PathBuf>,
    /// Where sockets and mounts are.
    pub runtime: Option<PathBuf>,
    /// The management socket.
    pub api: Api,
    /// The socket of the disks.
    pub nbd: Nbd,
    /// The tree of files.
    pub fuse: FuseConfig,
    /// Repositories.
    pub sr: Sr,
    /// How disks are read and written.
    pub io: Io,
    /// The log.
    pub log: Log,
    /// The end.
    pub stop: Stop,
}

/// `[api]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Api {
    /// Where it is.
    pub socket: Option<PathBuf>,
    /// Its permission bits, in octal.
    pub mode: Option<String>,
}

/// `[nbd]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Nbd {
    /// Where it is.
    pub socket: Option<PathBuf>,
    /// Its permission bits, in octal.
    pub mode: Option<String>,
}

/// `[fuse]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FuseConfig {
    /// Whether there is one.
    pub mode: Option<Fuse>,
    /// Where it is mounted.
    pub mount: Option<PathBuf>,
    /// Whether other users may use it.
    pub allow_other: Option<bool>,
}

/// Whether attached VDIs are files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fuse {
    /// Where this host and this user may mount; else NBD alone, which is told.
    #[default]
    Auto,
    /// Or the daemon does not start.
    On,
    /// NBD alone.
    Off,
}

/// `[sr]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sr {
    /// Under which directory repositories with a file system of their own are mounted.
    pub mounts: Option<PathBuf>,
    /// How long a call waits for one that it must not overlap with.
    pub patience_ms: Option<u64>,
}

/// `[io]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Io {
    /// Threads that serve disks.
    pub threads: Option<u64>,
    /// Memory of each of them for requests in flight.
    pub memory_mib: Option<u64>,
    /// How.
    pub aio: Option<AioName>,
}

/// How disks are read and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AioName {
    /// io_uring if the kernel offers it, else threads.
    Auto,
    /// io_uring or nothing.
    Uring,
    /// Threads.
    Threads,
}

/// `[log]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// How it is written.
    pub format: Option<LogFormat>,
    /// What is written: a level, or directives such as "orlop::sr=debug".
    pub level: Option<String>,
}

/// How the log is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// A line for people.
    #[default]
    Text,
    /// A JSON object on each line.
    Json,
}

/// `[stop]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Stop {
    /// How long calls and disks have to end.
    pub timeout_s: Option<u64>,
}

/// What the command line says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// Everything under this directory.
    pub state_dir: Option<PathBuf>,
    /// The management socket.
    pub socket: Option<PathBuf>,
    /// No tree of files.
    pub no_fuse: bool,
    /// How the log is written.
    pub log_format: Option<LogFormat>,
}

/// Everything the daemon needs to know, whole paths and checked values.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where it is remembered who this host is and what is attached.
    pub state: PathBuf,
    /// The management socket.
    pub api_socket: PathBuf,
    /// Its permission bits.
    pub api_mode: u32,
    /// The NBD socket.
    pub nbd_socket: PathBuf,
    /// Its permission bits.
    pub nbd_mode: u32,
    /// Whether attached VDIs are files.
    pub fuse: Fuse,
    /// Where these are.
    pub fuse_mount: PathBuf,
    /// Whether other users may use them.
    pub allow_other: bool,
    /// Under which directory repositories are mounted.
    pub sr_mounts: PathBuf,
    /// How long a call waits for one that it must not overlap with.
    pub patience: std::time::Duration,
    /// Threads that serve disks.
    pub threads: usize,
    /// Memory of each, in MiB.
    pub memory_mib: u32,
    /// How disks are read and written.
    pub aio: Aio,
    /// How the log is written.
    pub log_format: LogFormat,
    /// What is written to it.
    pub log_level: Option<String>,
    /// How long calls and disks have to end.
    pub stop: std::time::Duration,
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read, or says what cannot be said.
    pub fn read(file: &Path) -> Result<Self, ConfigError> {
        use std::io::Read;
        let unreadable = |error| ConfigError::Unreadable { file: file.to_owned(), error };
        let mut text = String::new();
        let opened = std::fs::File::open(file).map_err(unreadable)?;
        opened.take(FILE_MAX_BYTES).read_to_string(&mut text).map_err(unreadable)?;
        Self::parse(&text)
            .map_err(|error| ConfigError::Wrong { file: file.to_owned(), error: Box::new(error) })
    }

    /// Reads the text of a file.
    ///
    /// # Errors
    /// What cannot be said, and where it stands.
    pub fn parse(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }

    /// The file that was named; or the usual one, if it is there and the daemon has no directory
    /// of its own; or nothing.
    ///
    /// # Errors
    /// As [`Config::read`].
    pub fn find(named: Option<&Path>, overrides: &Overrides) -> Result<Self, ConfigError> {
        match named {
            Some(file) => Self::read(file),
            None if overrides.state_dir.is_some() => Ok(Self::default()),
            None => match Self::read(Path::new(USUAL_FILE)) {
                Err(ConfigError::Unreadable { error, .. })
                    if error.kind() == std::io::ErrorKind::NotFound =>
                {
                    Ok(Self::default())
                }
                read => read,
            },
        }
    }

    /// Completes what was not said, and checks what was.
    ///
    /// # Errors
    /// The first value that cannot be.
    pub fn settings(&self, overrides: &Overrides) -> Result<Settings, ConfigError> {
        let own = overrides.state_dir.as_deref();
        let under = |dir: &Path, name: &str| Some(dir.join(name));
        let state = own.and_then(|dir| under(dir, "state")).or_else(|| self.state.clone());
        let state = whole("state", state, || "/var/lib/orlop".into())?;
        let runtime = own.and_then(|dir| under(dir, "run")).or_else(|| self.runtime.clone());
        let runtime = whole("runtime", runtime, || "/run/orlop".into())?;
        // What is mounted lies beside the sockets, or directly in a directory of its own.
        let mounts = own.map_or_else(|| runtime.clone(), Path::to_owned);
        let place = |key, set: &Option<PathBuf>, usual: &Path, name: &str| {
            let set = if own.is_some() { None } else { set.clone() };
            whole(key, set, || usual.join(name))
        };
        let socket = overrides.socket.clone();
        let api_socket = match socket {
            Some(socket) => whole("--socket", Some(socket), PathBuf::new)?,
            None => place("api.socket", &self.api.socket, &runtime, "api.sock")?,
        };
        let nbd_socket = place("nbd.socket", &self.nbd.socket, &runtime, "nbd.sock")?;
        for (key, path) in [("api.socket", &api_socket), ("nbd.socket", &nbd_socket)] {
            check_socket(key, path)?;
        }
        let patience_ms = ranged("sr.patience_ms", self.sr.patience_ms, 10_000, 0, 600_000)?;
        let stop_s = ranged("stop.timeout_s", self.stop.timeout_s, 80, 1, 3600)?;
        let log_format = overrides.log_format.or(self.log.format).unwrap_or_default();
        Ok(Settings {
            state,
            api_socket,
            api_mode: mode("api.mode", self.api.mode.as_deref())?,
            nbd_socket,
            nbd_mode: mode("nbd.mode", self.nbd.mode.as_deref())?,
            fuse: if overrides.no_fuse { Fuse::Off } else { self.fuse.mode.unwrap_or_default() },
            fuse_mount: place("fuse.mount", &self.fuse.mount, &mounts, "vdi")?,
            allow_other: self.fuse.allow_other.unwrap_or(false),
            sr_mounts: place("sr.mounts", &self.sr.mounts, &mounts, "mounts")?,
            patience: std::time::Duration::from_millis(patience_ms),
            threads: small("io.threads", self.io.threads, usual_threads(), 1, 64)?,
            memory_mib: small("io.memory_mib", self.io.memory_mib, 128, 128, 2048)?,
            aio: match self.io.aio {
                None | Some(AioName::Auto) => Aio::Auto,
                Some(AioName::Uring) => Aio::Uring,
                Some(AioName::Threads) => Aio::Threads,
            },
            log_format,
            log_level: self.log.level.clone(),
            stop: std::time::Duration::from_secs(stop_s),
        })
    }
}

impl Settings {
    /// What is set, by the names of the configuration file.
    #[must_use]
    pub fn facts(&self) -> Vec<(&'static str, String)> {
        let path = |path: &Path| path.display().to_string();
        vec![
            ("state", path(&self.state)),
            ("api.socket", path(&self.api_socket)),
            ("api.mode", format!("{:04o}", self.api_mode)),
            ("nbd.socket", path(&self.nbd_socket)),
            ("nbd.mode", format!("{:04o}", self.nbd_mode)),
            ("fuse.mode", format!("{:?}", self.fuse).to_ascii_lowercase()),
            ("fuse.mount", path(&self.fuse_mount)),
            ("fuse.allow_other", self.allow_other.to_string()),
            ("sr.mounts", path(&self.sr_mounts)),
            ("sr.patience_ms", self.patience.as_millis().to_string()),
            ("io.threads", self.threads.to_string()),
            ("io.memory_mib", self.memory_mib.to_string()),
            ("io.aio", format!("{:?}", self.aio).to_ascii_lowercase()),
            ("log.format", format!("{:?}", self.log_format).to_ascii_lowercase()),
            ("log.level", self.log_level.clone().unwrap_or_else(|| "info".to_owned())),
            ("stop.timeout_s", self.stop.as_secs().to_string()),
        ]
    }

    /// What is set otherwise elsewhere, and cannot change while the daemon lives.
    #[must_use]
    pub fn changed(&self, other: &Self) -> Vec<&'static str> {
        let both = self.facts().into_iter().zip(other.facts());
        both.filter(|(one, other)| one != other && one.0 != "log.level")
            .map(|(one, _)| one.0)
            .collect()
    }
}

/// One thread for each processor, up to four: more are worth it for many busy disks only.
fn usual_threads() -> u64 {
    let processors = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    processors.min(4)
}

fn wrong(key: &'static str, found: impl std::fmt::Display, why: impl Into<String>) -> ConfigError {
    ConfigError::Value { key, found: found.to_string(), why: why.into() }
}

/// A whole path: the daemon has no working directory to speak of.
fn whole(
    key: &'static str,
    path: Option<PathBuf>,
    usual: impl FnOnce() -> PathBuf,
) -> Result<PathBuf, ConfigError> {
    let Some(path) = path else { return Ok(usual()) };
    if path.is_absolute() {
        return Ok(path);
    }
    Err(wrong(key, format!("{path:?}"), "write the whole path, from / on"))
}

fn check_socket(key: &'static str, path: &Path) -> Result<(), ConfigError> {
    let bytes = path.as_os_str().len();
    if bytes <= SOCKET_PATH_MAX_BYTES {
        return Ok(());
    }
    let why =
        format!("{bytes} bytes, and the path of a socket has at most {SOCKET_PATH_MAX_BYTES}");
    Err(wrong(key, format!("{path:?}"), why))
}

/// Permission bits in octal, as chmod(1) takes them.
fn mode(key: &'static str, text: Option<&str>) -> Result<u32, ConfigError> {
    const USUAL: u32 = 0o660;
    let Some(text) = text else { return Ok(USUAL) };
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => {
            Err(wrong(key, format!("{text:?}"), "write permission bits in octal, such as \"0660\""))
        }
    }
}

fn ranged(
    key: &'static str,
    set: Option<u64>,
    usual: u64,
    least: u64,
    most: u64,
) -> Result<u64, ConfigError> {
    let value = set.unwrap_or(usual);
    if (least..=most).contains(&value) {
        return Ok(value);
    }
    Err(wrong(key, value, format!("from {least} to {most} is possible")))
}

fn small<T: TryFrom<u64>>(
    key: &'static str,
    set: Option<u64>,
    usual: u64,
    least: u64,
    most: u64,
) -> Result<T, ConfigError> {
    let value = ranged(key, set, usual, least, most)?;
    T::try_from(value).map_err(|_| wrong(key, value, "too large for this machine"))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::{Config, Fuse, Overrides};

    fn settled(text: &str, overrides: &Overrides) -> Result<super::Settings, String> {
        let config = Config::parse(text).map_err(|error| error.to_string())?;
        config.settings(overrides).map_err(|error| error.to_string())
    }

    #[test]
    fn everything_has_a_default_and_a_directory_of_ones_own_holds_all() {
        let usual = settled("", &Overrides::default()).unwrap();
        let places = |s: &super::Settings| {
            [&s.state, &s.api_socket, &s.nbd_socket, &s.fuse_mount, &s.sr_mounts]
                .map(PathBuf::clone)
        };
        let under = |dirs: [&str; 5]| dirs.map(PathBuf::from);
        let standard = under([
            "/var/lib/orlop",
            "/run/orlop/api.sock",
            "/run/orlop/nbd.sock",
            "/run/orlop/vdi",
            "/run/orlop/mounts",
        ]);
        assert_eq!(places(&usual), standard);
        assert_eq!((usual.api_mode, usual.fuse), (0o660, Fuse::Auto));
        let overrides = Overrides { state_dir: Some("/d".into()), ..Overrides::default() };
        let own = settled("runtime = '/elsewhere'", &overrides).unwrap();
        let below =
            under(["/d/state", "/d/run/api.sock", "/d/run/nbd.sock", "/d/vdi", "/d/mounts"]);
        assert_eq!(places(&own), below);
        assert_eq!(usual.changed(&own).len(), 5);
    }

    #[test]
    fn the_example_says_what_holds_without_it() {
        let text = include_str!("../../packaging/orlop.toml");
        let usual = settled("", &Overrides::default()).unwrap().facts();
        assert_eq!(settled(text, &Overrides::default()).unwrap().facts(), usual);
        // Every value is shown, commented out.
        let bare: String = text
            .lines()
            .map(|line| {
                line.strip_prefix("#").filter(|rest| !rest.starts_with(' ')).unwrap_or(line)
            })
            .map(|line| format!("{line}\n"))
            .collect();
        let all = Config::parse(&bare).unwrap_or_else(|error| panic!("{error}\n{bare}"));
        let shown = format!("{all:?}");
        assert!(!shown.contains("None"), "not in packaging/orlop.toml: {shown}");
        let threads = |facts: Vec<(&'static str, String)>| -> Vec<_> {
            facts.into_iter().filter(|(key, _)| *key != "io.threads").collect()
        };
        let settled = all.settings(&Overrides::default()).unwrap().facts();
        assert_eq!(threads(settled), threads(usual));
    }

    #[test]
    fn what_cannot_be_is_told_with_its_place() {
        for (text, told) in [
            ("stat = '/x'", "unknown field `stat`"),
            ("[api]\nsock = '/x'", "line 2, column 1"),
            ("state = 7", "expected path string"),
            ("state = 'x'", "from / on"),
            ("[api]\nmode = '9'", "api.mode"),
            ("[nbd]\nmode = '1777'", "nbd.mode"),
            ("[io]\nthreads = 0", "io.threads = 0: from 1 to 64"),
            ("[io]\nmemory_mib = 64", "from 128 to 2048"),
            ("[io]\naio = 'fast'", "unknown variant `fast`"),
            ("[fuse]\nmode = 'maybe'", "unknown variant `maybe`"),
            ("[stop]\ntimeout_s = 0", "stop.timeout_s"),
            ("[sr]\npatience_ms = -1", "patience_ms"),
            ("[log]\nformat = 'xml'", "unknown variant `xml`"),
            ("state = '/a", "line 1"),
        ] {
            let error = settled(text, &Overrides::default()).unwrap_err();
            assert!(error.contains(told), "{text}: {error}");
        }
        let socket = format!("[api]\nsocket = '/{}'", "x".repeat(200));
        assert!(settled(&socket, &Overrides::default()).unwrap_err().contains("at most 107"));
    }
}
