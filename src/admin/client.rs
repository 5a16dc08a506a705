//! The other end of the admin socket: asks one thing and waits for the answer.
//!
//! Refuses to wait for ever, and to make sense of what is no answer.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::Ask;

/// How long an answer may take: removing an export waits for its clients and its disk.
const PATIENCE: Duration = Duration::from_secs(120);
/// Longest answer: the counters of thousands of exports.
const ANSWER_MAX: u64 = 256 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody is there.
    #[error("no server answers at {path}: {error}")]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The server did not do it.
    #[error("{text}")]
    Refused {
        /// A stable word for it.
        code: String,
        /// Why.
        text: String,
    },
    /// Something else is listening there.
    #[error("what answers at {path} is no orlop server: {error}")]
    Strange {
        /// The socket.
        path: PathBuf,
        /// What is wrong with the answer.
        error: serde_json::Error,
    },
}

/// An answer. What was done may have been answered by null, so that what counts is the error.
#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    ok: Value,
    error: Option<String>,
    /// Older servers give none.
    #[serde(default)]
    code: String,
}

/// Asks the server behind the admin socket at `path`.
///
/// # Errors
/// Nobody answers, or the server says why it did not do it.
pub fn ask(path: &Path, ask: &Ask) -> Result<Value, AskError> {
    let unreachable = |error| AskError::Unreachable { path: path.to_owned(), error };
    let mut stream = UnixStream::connect(path).map_err(unreachable)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(unreachable)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(unreachable)?;
    let mut line = serde_json::to_vec(ask).expect("a request holds nothing but texts and numbers");
    line.push(b'\n');
    stream.write_all(&line).map_err(unreachable)?;
    let mut answer = Vec::new();
    let mut reader = BufReader::new(stream.take(ANSWER_MAX));
    reader.read_until(b'\n', &mut answer).map_err(unreachable)?;
    match serde_json::from_slice(&answer) {
        Ok(Answer { ok, error: None, .. }) => Ok(ok),
        Ok(Answer { error: Some(text), code, .. }) => Err(AskError::Refused { code, text }),
        Err(error) => Err(AskError::Strange { path: path.to_owned(), error }),
    }
}
