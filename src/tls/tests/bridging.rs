//! The bridge: nothing is lost, ends are passed on, nobody hangs.

use std::time::{Duration, Instant};

use rustls::version::{TLS12, TLS13};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::super::bridge::bridge_for;
use super::super::{ClientVerify, Ended, TlsError, bridge};
use super::{PATIENCE, Yard};

/// A deadline for the end that a test can wait for.
const BRIEF: Duration = Duration::from_millis(300);

type Stream = tokio_rustls::client::TlsStream<UnixStream>;

/// A client, the shard's end, and the bridge between.
async fn joined(
    yard: &Yard,
    version: &'static rustls::SupportedProtocolVersion,
) -> (Stream, UnixStream, JoinHandle<Result<Ended, TlsError>>) {
    joined_for(yard, version, PATIENCE).await
}

async fn joined_for(
    yard: &Yard,
    version: &'static rustls::SupportedProtocolVersion,
    farewell: Duration,
) -> (Stream, UnixStream, JoinHandle<Result<Ended, TlsError>>) {
    let tls = yard.tls(ClientVerify::Required);
    let client = yard.client(Some("laptop"), version);
    let (near, far) = UnixStream::pair().unwrap();
    let (accepted, connected) = tokio::join!(tls.accept(near), client.connect(far));
    let (plain, shard) = UnixStream::pair().unwrap();
    let task = tokio::spawn(bridge_for(accepted.unwrap().0, plain, farewell));
    (connected.unwrap(), shard, task)
}

async fn ended(task: JoinHandle<Result<Ended, TlsError>>) -> Result<Ended, TlsError> {
    timeout(PATIENCE, task).await.unwrap().unwrap()
}

/// Bytes that depend on their place, so that none can be missing, doubled or moved.
fn pattern(at: usize, seed: usize) -> u8 {
    ((at * 2_654_435_761 + seed) >> 7) as u8
}

async fn send_pattern(to: &mut (impl AsyncWriteExt + Unpin), total: usize, seed: usize) {
    let mut at = 0;
    let mut size = 1;
    while at < total {
        let len = size.min(total - at);
        let bytes: Vec<u8> = (at..at + len).map(|at| pattern(at, seed)).collect();
        to.write_all(&bytes).await.unwrap();
        at += len;
        // Sizes of all kinds, up to more than a chunk.
        size = (size * 3 + 1) % 300_000 + 1;
    }
    to.flush().await.unwrap();
    to.shutdown().await.unwrap();
}

async fn check_pattern(from: &mut (impl AsyncReadExt + Unpin), total: usize, seed: usize) {
    let mut bytes = vec![0; 200_000];
    let mut at = 0;
    loop {
        let count = from.read(&mut bytes).await.unwrap();
        if count == 0 {
            break;
        }
        for (index, byte) in bytes[..count].iter().enumerate() {
            assert_eq!(*byte, pattern(at + index, seed), "byte {} is wrong", at + index);
        }
        at += count;
    }
    assert_eq!(at, total);
}

#[tokio::test]
async fn large_transfers_both_ways_at_once_arrive_whole() {
    const TOTAL: usize = 48 << 20;
    let Some(yard) = Yard::new() else { return };
    for version in [&TLS13, &TLS12] {
        let (client, shard, task) = joined(&yard, version).await;
        let (mut client_reads, mut client_writes) = tokio::io::split(client);
        let (mut shard_reads, mut shard_writes) = shard.into_split();
        let all = async {
            tokio::join!(
                send_pattern(&mut client_writes, TOTAL, 1),
                check_pattern(&mut shard_reads, TOTAL, 1),
                send_pattern(&mut shard_writes, TOTAL, 2),
                check_pattern(&mut client_reads, TOTAL, 2),
            )
        };
        timeout(PATIENCE, all).await.unwrap();
        assert_eq!(ended(task).await.unwrap(), Ended::Closed);
    }
}

#[tokio::test]
async fn what_the_shard_said_before_it_closed_arrives_with_a_farewell() {
    let Some(yard) = Yard::new() else { return };
    let (mut client, mut shard, task) = joined(&yard, &TLS13).await;
    // The client says something that the shard never reads: its socket is reset.
    client.write_all(b"unread").await.unwrap();
    client.flush().await.unwrap();
    let last_words = vec![7; 150_000];
    let writer = tokio::spawn(async move {
        let mut byte = [0];
        shard.read_exact(&mut byte).await.unwrap();
        shard.write_all(&last_words).await.unwrap();
    });
    let mut heard = Vec::new();
    // An end without a farewell would be an error here.
    timeout(PATIENCE, client.read_to_end(&mut heard)).await.unwrap().unwrap();
    writer.await.unwrap();
    assert_eq!(heard, vec![7; 150_000]);
    client.shutdown().await.unwrap();
    drop(client);
    assert_eq!(ended(task).await.unwrap(), Ended::Closed);
}

#[tokio::test]
async fn a_clients_farewell_leaves_the_other_way_open() {
    let Some(yard) = Yard::new() else { return };
    let (mut client, mut shard, task) = joined(&yard, &TLS13).await;
    client.write_all(b"last request").await.unwrap();
    client.shutdown().await.unwrap();
    let mut request = String::new();
    timeout(PATIENCE, shard.read_to_string(&mut request)).await.unwrap().unwrap();
    assert_eq!(request, "last request");
    shard.write_all(b"the answer").await.unwrap();
    drop(shard);
    let mut answer = String::new();
    timeout(PATIENCE, client.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert_eq!(answer, "the answer");
    assert_eq!(ended(task).await.unwrap(), Ended::Closed);
}

#[tokio::test]
async fn a_cut_stream_is_an_end_for_the_shard_and_noted() {
    let Some(yard) = Yard::new() else { return };
    let (mut client, mut shard, task) = joined(&yard, &TLS13).await;
    client.write_all(b"half a request").await.unwrap();
    client.flush().await.unwrap();
    drop(client);
    let mut request = String::new();
    timeout(PATIENCE, shard.read_to_string(&mut request)).await.unwrap().unwrap();
    assert_eq!(request, "half a request");
    drop(shard);
    // The farewell may meet a socket that is gone.
    match ended(task).await {
        Ok(ended) => assert_eq!(ended, Ended::Truncated),
        Err(error) => assert!(matches!(error, TlsError::Io(_)), "{error}"),
    }
}

#[tokio::test]
async fn damaged_ciphertext_ends_both_sides() {
    let Some(yard) = Yard::new() else { return };
    let (client, mut shard, task) = joined(&yard, &TLS13).await;
    let (mut raw, _) = client.into_inner();
    raw.write_all(&[23, 3, 3, 0, 32]).await.unwrap();
    raw.write_all(&[0x5a; 32]).await.unwrap();
    assert!(matches!(ended(task).await, Err(TlsError::Protocol(_))));
    let mut nothing = Vec::new();
    timeout(PATIENCE, shard.read_to_end(&mut nothing)).await.unwrap().unwrap();
    assert!(nothing.is_empty());
}

#[tokio::test]
async fn a_client_that_reads_nothing_costs_no_more_than_the_buffers() {
    let Some(yard) = Yard::new() else { return };
    let (client, shard, task) = joined(&yard, &TLS13).await;
    // The shard talks until everything between is full.
    let mut taken = 0;
    let bytes = vec![0; 64 << 10];
    while let Ok(Ok(())) = timeout(Duration::from_millis(300), shard.writable()).await {
        taken += shard.try_write(&bytes).unwrap_or(0);
        assert!(taken < 16 << 20, "the bridge swallows everything");
    }
    assert!(taken > 128 << 10);
    drop(client);
    drop(shard);
    assert!(ended(task).await.is_err());
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_dropped_once_the_shard_is_gone() {
    let Some(yard) = Yard::new() else { return };
    let (client, shard, task) = joined_for(&yard, &TLS13, BRIEF).await;
    let bytes = vec![0; 64 << 10];
    for _ in 0..1000 {
        let _ = shard.try_write(&bytes);
        tokio::task::yield_now().await;
    }
    drop(shard);
    assert_eq!(ended(task).await.unwrap(), Ended::Abandoned);
    drop(client);
}

#[tokio::test]
async fn a_client_that_never_hangs_up_is_dropped_once_the_shard_is_gone() {
    let Some(yard) = Yard::new() else { return };
    let (client, shard, task) = joined_for(&yard, &TLS12, BRIEF).await;
    drop(shard);
    assert_eq!(ended(task).await.unwrap(), Ended::Abandoned);
    drop(client);
}

/// `cargo test --release -- --ignored --nocapture how_fast` prints what a bridge carries: a client
/// of rustls, the bridge and the plain side in a thread each.
#[test]
#[ignore = "a measurement"]
fn how_fast_is_a_bridge() {
    let Some(yard) = Yard::new() else { return };
    for outwards in [true, false] {
        measure(&yard, outwards);
    }
}

fn measure(yard: &Yard, outwards: bool) {
    use std::io::{Read, Write};
    const TOTAL: usize = 1 << 30;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let client = std::sync::Arc::clone(yard.client(Some("laptop"), &TLS13).0.config());
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (plain, mut shard) = std::os::unix::net::UnixStream::pair().unwrap();
    let work = |stream: &mut dyn Write, source: &mut dyn Read, send: bool| {
        let mut bytes = vec![0; 256 << 10];
        let mut left = TOTAL;
        while left > 0 {
            left -= if send {
                stream.write_all(&bytes).unwrap();
                bytes.len().min(left)
            } else {
                source.read(&mut bytes).unwrap()
            };
        }
    };
    let other = std::thread::spawn(move || {
        let socket = std::net::TcpStream::connect(address).unwrap();
        let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
        let connection = rustls::ClientConnection::new(client, name).unwrap();
        let mut stream = rustls::StreamOwned::new(connection, socket);
        if outwards {
            work(&mut std::io::sink(), &mut stream, false);
        } else {
            work(&mut stream, &mut std::io::empty(), true);
        }
        stream.conn.send_close_notify();
        let _ = stream.flush();
    });
    let disk = std::thread::spawn(move || {
        if outwards {
            work(&mut shard, &mut std::io::empty(), true);
        } else {
            work(&mut std::io::sink(), &mut shard, false);
        }
    });
    let tls = yard.tls(ClientVerify::Required);
    let (socket, _) = listener.accept().unwrap();
    let seconds = runtime.block_on(async {
        socket.set_nonblocking(true).unwrap();
        plain.set_nonblocking(true).unwrap();
        let socket = tokio::net::TcpStream::from_std(socket).unwrap();
        let plain = UnixStream::from_std(plain).unwrap();
        let (secured, _) = tls.accept(socket).await.unwrap();
        let start = Instant::now();
        let _ = bridge(secured, plain).await;
        start.elapsed().as_secs_f64()
    });
    other.join().unwrap();
    disk.join().unwrap();
    let way = if outwards { "to the client" } else { "from the client" };
    println!("{way}: {:.0} MiB/s", (TOTAL >> 20) as f64 / seconds);
}
