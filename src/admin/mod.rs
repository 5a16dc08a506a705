//! The admin socket of a serving process: one JSON object a line asks, one answers.
//!
//! `{"verb": "add", "spec": "name=b,image=b.vhd"}`, `remove` (`name`), `limit` (`name`, `bps`,
//! `iops`; 0 is no limit), `exports`, `stats`, `reload-tls`. The answer is `{"ok": ...}` or
//! `{"error": "...", "code": "..."}`, where the code is a stable word. Refuses other users than the
//! server's own and root, and lines without end.

mod client;
mod report;

use std::io;
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::meter::Rates;
use crate::server::{Control, ControlError, DiskError, ExportSpec, NameError};

pub use client::{AskError, ask};
pub use report::{Look, counters, exports, stats};

/// Longest line, either way.
const LINE_MAX: u64 = 64 << 10;
/// Connections at once; more wait to be accepted.
const CONNECTIONS_MAX: usize = 16;
/// How long a connection may say nothing, or not take its answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Who but the owner may use the socket: nobody.
const MODE: u32 = 0o600;

/// What an admin asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Ask {
    /// Export something more.
    Add {
        /// What, as `serve --add` takes it.
        spec: String,
    },
    /// Export something no longer.
    Remove {
        /// The export.
        name: String,
    },
    /// Change what an export's clients may do in a second. What is not said stays.
    Limit {
        /// The export.
        name: String,
        /// Bytes; 0 for no limit.
        #[serde(default)]
        bps: Option<u64>,
        /// Requests; 0 for no limit.
        #[serde(default)]
        iops: Option<u64>,
    },
    /// Tell the exports.
    Exports,
    /// Tell what clients did.
    Stats,
    /// Read the certificates again.
    ReloadTls,
}

/// A bound admin socket.
pub struct Admin {
    socket: OwnedFd,
    path: std::path::PathBuf,
}

impl Admin {
    /// Listens at `path`, for the process's own user only.
    ///
    /// # Errors
    /// What the system says, or that another process listens there.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let path = std::path::absolute(path)?;
        let socket = crate::server::bind_unix(&path, MODE)?;
        Ok(Self { socket, path })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Answers for as long as it is polled. `usual` is what a spec does not say.
    ///
    /// # Errors
    /// The socket cannot be used.
    pub async fn serve(&self, control: Arc<Control>, usual: ExportSpec) -> io::Result<()> {
        let listener = std::os::unix::net::UnixListener::from(self.socket.try_clone()?);
        listener.set_nonblocking(true)?;
        let listener = UnixListener::from_std(listener)?;
        let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut talks = JoinSet::new();
        loop {
            while talks.try_join_next().is_some() {}
            let slot = Arc::clone(&slots).acquire_owned().await.map_err(io::Error::other)?;
            let (stream, _) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "the admin socket accepts nobody now");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let (control, usual) = (Arc::clone(&control), usual.clone());
            talks.spawn(async move {
                if let Err(error) = talk(stream, &control, &usual).await {
                    tracing::debug!(%error, "a connection of the admin socket ended");
                }
                drop(slot);
            });
        }
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn talk(mut stream: UnixStream, control: &Control, usual: &ExportSpec) -> io::Result<()> {
    let uid = stream.peer_cred()?.uid();
    let own = rustix::process::geteuid().as_raw();
    let (reader, mut writer) = stream.split();
    let mut reader = BufReader::new(reader);
    loop {
        let mut line = Vec::new();
        let mut piece = (&mut reader).take(LINE_MAX);
        let read = piece.read_until(b'\n', &mut line);
        if tokio::time::timeout(PATIENCE, read).await?? == 0 {
            return Ok(());
        }
        let whole = line.ends_with(b"\n");
        let answer = match serde_json::from_slice::<Ask>(&line) {
            _ if uid != 0 && uid != own => {
                Err(format!("user {uid} may not administer this").into())
            }
            _ if !whole => Err(format!("a line has an end, within {LINE_MAX} bytes").into()),
            Err(error) => Err(format!("that is no request: {error}").into()),
            Ok(ask) => carry_out(control, usual, ask).await,
        };
        let refused = !whole;
        let answer = match answer {
            Ok(value) => json!({ "ok": value }),
            Err(Refusal { code, text }) => json!({ "error": text, "code": code }),
        };
        let bytes = format!("{answer}\n");
        tokio::time::timeout(PATIENCE, writer.write_all(bytes.as_bytes())).await??;
        if refused {
            return Ok(());
        }
    }
}

/// Why something was not done.
struct Refusal {
    /// A stable word for programs.
    code: &'static str,
    text: String,
}

impl From<String> for Refusal {
    fn from(text: String) -> Self {
        Self { code: "refused", text }
    }
}

impl From<ControlError> for Refusal {
    fn from(error: ControlError) -> Self {
        let mut text = told(&error);
        let code = match &error {
            ControlError::Name(error) => return Self { code: code_of(error), text },
            ControlError::Partition { .. } => "no-partition",
            ControlError::Disk(DiskError::Image(error)) => {
                if error.is_forbidden() {
                    text.push_str(
                        "; what a confined server opens later must lie in a directory that it was \
                         started with (--allow-dir)",
                    );
                }
                error.code()
            }
            _ => "refused",
        };
        Self { code, text }
    }
}

fn code_of(error: &NameError) -> &'static str {
    match error {
        NameError::Unknown(_) => "not-found",
        NameError::Taken(_) => "exists",
        NameError::Unsayable | NameError::TooMany(_) => "refused",
    }
}

async fn carry_out(control: &Control, usual: &ExportSpec, ask: Ask) -> Result<Value, Refusal> {
    match ask {
        Ask::Add { spec } => {
            let spec = ExportSpec::parse(&spec, usual)?;
            let seat = control.add(spec).await?;
            tracing::info!(export = seat.name, image = %seat.disk.path.display(), "export added");
            Ok(report::export(&seat))
        }
        Ask::Remove { name } => {
            control.remove(&name).await?;
            tracing::info!(export = name, "export removed");
            Ok(Value::Null)
        }
        Ask::Limit { name, bps, iops } => {
            let seat = control.registry().seat(&name).map_err(ControlError::from)?;
            let now = seat.throttle.rates();
            let rates = Rates {
                bytes_per_s: bps.map_or(now.bytes_per_s, NonZeroU64::new),
                ops_per_s: iops.map_or(now.ops_per_s, NonZeroU64::new),
            };
            seat.throttle.set(rates);
            Ok(report::export(&seat))
        }
        Ask::Exports => Ok(exports(control.registry())),
        Ask::Stats => Ok(stats(control.registry())),
        Ask::ReloadTls => {
            let none = || "the server has no TLS credentials to read again".to_owned();
            let tls = control.tls().ok_or_else(none)?;
            let notices = tls.reload().map_err(|error| told(&error))?;
            Ok(json!(notices.iter().map(ToString::to_string).collect::<Vec<_>>()))
        }
    }
}

/// An error with everything behind it.
fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut behind = error.source();
    while let Some(cause) = behind {
        let cause_text = cause.to_string();
        // A transparent error says the same as what is behind it.
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        behind = cause.source();
    }
    text
}
