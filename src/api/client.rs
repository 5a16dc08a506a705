//! The other end of the management socket, for our own command line: asks one thing and waits for
//! its answer. Blocking.
//!
//! Refuses endless answers. Waits for an answer as long as the call takes: merging a chain of
//! images may take hours.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

/// How long the server may take to take in a request.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest answer: the scan of a great many VDIs.
const ANSWER_MAX_BYTES: u64 = 256 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody is there.
    #[error("no orlop daemon answers at {}: {error}; start 'orlop daemon', or name its socket",
        socket.display())]
    Unreachable {
        /// The socket.
        socket: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The request was refused before it became a call.
    #[error("the daemon refused the request ({status}): {text}")]
    Http {
        /// The status code.
        status: u16,
        /// What it said.
        text: String,
    },
    /// The conversation broke off, or makes no sense.
    #[error("the answer of the daemon at {} cannot be read: {error}", socket.display())]
    Io {
        /// The socket.
        socket: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// Why a call has no result.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// It was not answered.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// It failed.
    #[error("{message}")]
    Failed {
        /// The specification's error code; negative when the call was not understood.
        errno: i32,
        /// The code's name, such as ENODEV.
        name: String,
        /// What, where, why, and what to do.
        message: String,
        /// What to do.
        hint: Option<String>,
    },
}

/// Posts a body to a route and gives back the body of the answer.
///
/// # Errors
/// When there is no answer, or the request was refused.
pub fn post(
    socket: &Path,
    route: &str,
    content_type: &str,
    body: &[u8],
) -> Result<Vec<u8>, ClientError> {
    let unreachable = |error| ClientError::Unreachable { socket: socket.to_owned(), error };
    let mut stream = UnixStream::connect(socket).map_err(unreachable)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(unreachable)?;
    let head = format!(
        "POST {route} HTTP/1.1\r\nHost: orlop\r\nContent-Type: {content_type}\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    // Who is refused early may find nobody reading any more, and still has an answer to read.
    let sent = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
    let mut answer = Vec::new();
    let failed = |error| ClientError::Io { socket: socket.to_owned(), error };
    let read = stream.take(ANSWER_MAX_BYTES).read_to_end(&mut answer);
    match (sent, read) {
        (Err(error), _) if answer.is_empty() => return Err(failed(error)),
        (_, Err(error)) if answer.is_empty() => return Err(failed(error)),
        _ => {}
    }
    let strange = |why: &str| failed(io::Error::new(io::ErrorKind::InvalidData, why.to_owned()));
    let (status, body) = split(&answer).map_err(strange)?;
    if !(200..300).contains(&status) {
        let text = String::from_utf8_lossy(body).trim().to_owned();
        return Err(ClientError::Http { status, text });
    }
    Ok(body.to_vec())
}

/// The status and the body of an answer.
fn split(answer: &[u8]) -> Result<(u16, &[u8]), &'static str> {
    const END: &[u8] = b"\r\n\r\n";
    let at = answer.windows(END.len()).position(|window| window == END);
    let at = at.ok_or("it is no whole HTTP answer")?;
    let head = std::str::from_utf8(&answer[..at]).map_err(|_| "its head is no text")?;
    let body = &answer[at + END.len()..];
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1."));
    let status = status.and_then(|line| line.split(' ').nth(1)?.parse().ok());
    let status = status.ok_or("it is no HTTP/1.1")?;
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        if name.eq_ignore_ascii_case("content-length") && value.trim() != body.len().to_string() {
            return Err("it broke off");
        }
        if name.eq_ignore_ascii_case("transfer-encoding") {
            return Err("it is sent in pieces, as the daemon never does");
        }
    }
    Ok((status, body))
}

/// Calls a verb by JSON-RPC.
///
/// # Errors
/// When it is not answered, or failed.
pub fn call(socket: &Path, method: &str, params: Value) -> Result<Value, CallError> {
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
    let answer = post(socket, "/v1", "application/json", body.to_string().as_bytes())?;
    let strange = |error| ClientError::Io { socket: socket.to_owned(), error };
    let mut answer: Value =
        serde_json::from_slice(&answer).map_err(|error| strange(io::Error::from(error)))?;
    if let Some(error) = answer.get("error") {
        return Err(failure(error));
    }
    match answer.get_mut("result") {
        Some(result) => Ok(result.take()),
        None => {
            let error = io::Error::new(io::ErrorKind::InvalidData, "it has no result");
            Err(strange(error).into())
        }
    }
}

fn failure(error: &Value) -> CallError {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let data = &error["data"];
    CallError::Failed {
        errno: error["code"].as_i64().and_then(|code| i32::try_from(code).ok()).unwrap_or(0),
        name: text(&data["name"]).unwrap_or_default(),
        message: text(&error["message"]).unwrap_or_else(|| error.to_string()),
        hint: text(&data["hint"]),
    }
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn an_answer_is_whole_or_none() {
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        assert_eq!(split(answer), Ok((200, &b"ok"[..])));
        for cut in 0..answer.len() {
            assert!(split(&answer[..cut]).is_err(), "{cut}");
        }
        assert!(split(b"SSH-2.0\r\n\r\n").is_err());
    }
}
