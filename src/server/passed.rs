//! Connections that are passed over a unix socket: whoever opened them keeps the listening, the
//! server gets the descriptor.
//!
//! A message is one descriptor of a connected stream socket and a line of text: the name of the
//! export its client gets when it asks for none, or an empty line. The answer is `ok` or
//! `error: ` and why, in a line. Refuses a message of any other shape, and then the connection.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketType, recvmsg, sockopt,
};
use tokio::io::Interest;
use tokio::net::UnixStream;

use super::door::{Door, Slot};

/// Longest name, and the end of its line.
const LINE_MAX: usize = 4097;
/// Descriptors one message may carry: one is right, a second is seen to be wrong.
const DESCRIPTORS_MAX: usize = 2;

/// Serves one peer that passes connections, until it leaves or errs.
pub(super) async fn receive_all(door: Arc<Door>, socket: OwnedFd, slot: Slot) {
    let told = receive_each(&door, socket).await;
    if let Err(error) = told {
        tracing::warn!(%error, "a connection on the socket for descriptors was dropped");
    }
    drop(slot);
}

async fn receive_each(door: &Arc<Door>, socket: OwnedFd) -> io::Result<()> {
    let socket = std::os::unix::net::UnixStream::from(socket);
    socket.set_nonblocking(true)?;
    let socket = UnixStream::from_std(socket)?;
    // Handshakes end with the connection that brought them only if the server ends: what was
    // passed no longer belongs to who passed it.
    loop {
        let received = socket.async_io(Interest::READABLE, || receive(&socket)).await?;
        let Some((line, passed)) = received else { return Ok(()) };
        let judged = judge(&line, passed).and_then(|(preset, passed)| {
            // Its client asks for no name, so nobody else could tell it.
            let known = preset.as_deref().map(|name| door.registry.seat(name));
            known.transpose().map_err(|error| error.to_string())?;
            Ok((preset, passed))
        });
        let answer = match &judged {
            Ok(_) => "ok\n".to_owned(),
            Err(why) => format!("error: {why}\n"),
        };
        write_all(&socket, answer.as_bytes()).await?;
        let Ok((preset, passed)) = judged else { return Ok(()) };
        let slot = door.slot().await;
        let door = Arc::clone(door);
        tokio::spawn(async move { door.welcome(passed, slot, preset).await });
    }
}

/// One message: its text and its descriptors. `None`: the peer has left.
fn receive(socket: &UnixStream) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    let mut line = vec![0; LINE_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let into = &mut [IoSliceMut::new(&mut line)];
    let count = recvmsg(socket.as_fd(), into, &mut control, RecvFlags::CMSG_CLOEXEC)?.bytes;
    let mut passed = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            passed.extend(descriptors);
        }
    }
    line.truncate(count);
    Ok((count > 0).then_some((line, passed)))
}

/// What a message says, or what is wrong with it.
fn judge(line: &[u8], passed: Vec<OwnedFd>) -> Result<(Option<String>, OwnedFd), String> {
    let [passed] = <[OwnedFd; 1]>::try_from(passed)
        .map_err(|all| format!("{} descriptors came; send exactly one", all.len()))?;
    let Some(name) = line.strip_suffix(b"\n") else {
        return Err("the text is no line: send the export's name and a newline".to_owned());
    };
    let name = str::from_utf8(name).map_err(|_| "the export's name is not UTF-8")?;
    if name.contains(['\n', '\0']) {
        return Err("one line goes with one descriptor".to_owned());
    }
    let kind = sockopt::socket_type(&passed).map_err(|_| "the descriptor is no socket")?;
    if kind != SocketType::STREAM || rustix::net::getpeername(&passed).is_err() {
        return Err("the descriptor is no connected stream socket".to_owned());
    }
    Ok(((!name.is_empty()).then(|| name.to_owned()), passed))
}

async fn write_all(socket: &UnixStream, bytes: &[u8]) -> io::Result<()> {
    let mut left = bytes;
    while !left.is_empty() {
        socket.writable().await?;
        match socket.try_write(left) {
            Ok(count) => left = &left[count..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
