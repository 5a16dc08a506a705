//! Whether the daemon lives, as those see it who need it: its two sockets answer. Told to a service
//! manager that wants to know, and to nobody else.

use std::convert::Infallible;
use std::io;
use std::path::{Path, PathBuf};

use sd_notify::NotifyState;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::system;

/// What an HTTP server is asked that costs it nothing and concerns no SR.
const QUESTION: &[u8] = b"GET /v1/health HTTP/1.1\r\nHost: orlop\r\nConnection: close\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 200";
/// How every NBD server begins.
const GREETING: &[u8] = b"NBDMAGICIHAVEOPT";

/// Tells the service manager that the daemon lives, as often as it wants to hear it, for as long
/// as that is so. Never ends.
pub(super) async fn tell(api: PathBuf, nbd: PathBuf, has_room: impl Fn() -> bool) -> Infallible {
    let Some(every) = system::watchdog() else { return std::future::pending().await };
    let mut turn = tokio::time::interval(every);
    loop {
        turn.tick().await;
        match tokio::time::timeout(every, look(&api, &nbd, &has_room)).await {
            Ok(Ok(())) => system::tell(&[NotifyState::Watchdog]),
            Ok(Err(error)) => tracing::warn!(%error, "a socket of ours does not answer"),
            Err(_) => tracing::warn!(?every, "a socket of ours does not answer in time"),
        }
    }
}

/// A daemon with as many NBD clients as it may have greets no more of them, and lives.
async fn look(api: &Path, nbd: &Path, has_room: impl Fn() -> bool) -> io::Result<()> {
    expect(api, QUESTION, ANSWER).await?;
    if has_room() { expect(nbd, &[], GREETING).await } else { Ok(()) }
}

async fn expect(socket: &Path, question: &[u8], answer: &[u8]) -> io::Result<()> {
    let told = async {
        let mut stream = UnixStream::connect(socket).await?;
        stream.write_all(question).await?;
        let mut begun = vec![0; answer.len()];
        stream.read_exact(&mut begun).await?;
        if begun == answer { Ok(()) } else { Err(io::Error::other("it answers strangely")) }
    };
    let told: io::Result<()> = told.await;
    told.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", socket.display())))
}

/// How long one look at the sockets may take where nobody says.
#[cfg(test)]
const LIMIT: std::time::Duration = std::time::Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    use super::{ANSWER, GREETING, LIMIT, QUESTION, expect, look};

    #[tokio::test]
    async fn a_socket_that_does_not_answer_rightly_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let (api, nbd) = (dir.path().join("api"), dir.path().join("nbd"));
        assert!(look(&api, &nbd, || true).await.is_err());
        let listener = UnixListener::bind(&api).unwrap();
        let server = tokio::spawn(async move {
            for answer in [b"HTTP/1.1 200 OK\r\n".as_slice(), b"HTTP/1.1 500 No\r\n", b""] {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut question = vec![0; QUESTION.len()];
                stream.read_exact(&mut question).await.unwrap();
                stream.write_all(answer).await.unwrap();
            }
        });
        let ask = || tokio::time::timeout(LIMIT, expect(&api, QUESTION, ANSWER));
        assert!(ask().await.unwrap().is_ok());
        assert!(ask().await.unwrap().is_err());
        assert!(ask().await.unwrap().is_err());
        server.await.unwrap();
        let listener = UnixListener::bind(&nbd).unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"NBDMAGICIHAVEOPT\0\x03").await.unwrap();
        });
        assert!(expect(&nbd, &[], GREETING).await.is_ok());
        server.await.unwrap();
    }

    #[tokio::test]
    async fn a_crowd_of_clients_is_no_sign_of_death() {
        let dir = tempfile::tempdir().unwrap();
        let (api, nbd) = (dir.path().join("api"), dir.path().join("nbd"));
        let listener = UnixListener::bind(&api).unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut question = vec![0; QUESTION.len()];
            stream.read_exact(&mut question).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\n").await.unwrap();
        });
        // Nobody accepts there.
        let _full = UnixListener::bind(&nbd).unwrap();
        let looked = tokio::time::timeout(LIMIT, look(&api, &nbd, || false)).await;
        assert!(looked.unwrap().is_ok());
        server.await.unwrap();
    }
}
