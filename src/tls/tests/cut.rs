//! Handshakes that are cut off or damaged at every place.

use rustls::version::{TLS12, TLS13};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::{Duration, timeout};

use super::super::{ClientVerify, Tls, TlsError};
use super::{Client, PATIENCE, Yard};

/// What is done to the bytes of a client.
#[derive(Clone, Copy)]
enum Harm {
    None,
    CutAt(usize),
    FlipAt(usize),
}

/// Tells of each byte of a stream of records where it is in its record.
#[derive(Default)]
struct Records {
    header: [u8; 5],
    place: usize,
}

impl Records {
    fn place_of(&mut self, byte: u8) -> usize {
        let place = self.place;
        if let Some(kept) = self.header.get_mut(place) {
            *kept = byte;
        }
        let len = usize::from(u16::from_be_bytes([self.header[3], self.header[4]]));
        self.place = if place >= 4 && place == 4 + len { 0 } else { place + 1 };
        place
    }
}

/// What became of the bytes of a client.
#[derive(Clone, Copy, Default)]
struct Carried {
    count: usize,
    /// A byte was flipped, and not one of a record's version, which "MUST be ignored for all
    /// purposes" (RFC 8446, 5.1). Signatures differ in length, so there may have been no such byte.
    harmed: bool,
}

/// Carries bytes both ways until either side ends.
async fn carry(client: DuplexStream, server: DuplexStream, harm: Harm) -> Carried {
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_server, mut to_server) = tokio::io::split(server);
    let up = async move {
        let (mut told, mut records) = (Carried::default(), Records::default());
        let mut byte = [0];
        while from_client.read(&mut byte).await.unwrap_or(0) == 1 {
            let place = records.place_of(byte[0]);
            match harm {
                Harm::CutAt(at) if at == told.count => break,
                Harm::FlipAt(at) if at == told.count => {
                    byte[0] ^= 1 << (at % 8);
                    told.harmed = !matches!(place, 1 | 2);
                }
                _ => {}
            }
            told.count += 1;
            if to_server.write_all(&byte).await.is_err() {
                break;
            }
        }
        let _ = to_server.shutdown().await;
        told
    };
    let down = async move {
        let _ = tokio::io::copy(&mut from_server, &mut to_client).await;
        let _ = to_client.shutdown().await;
    };
    tokio::join!(up, down).0
}

/// Shakes hands over `carry`. The client says farewell as soon as it can.
async fn harmed(tls: &Tls, client: &Client, harm: Harm) -> (Option<Result<(), TlsError>>, Carried) {
    let (near, server) = duplex(64 << 10);
    let (far, carried) = duplex(64 << 10);
    let client = client.clone();
    let client = tokio::spawn(async move {
        if let Ok(mut stream) = client.connect(far).await {
            // So that the handshake's bytes are all that it sends.
            std::future::pending::<()>().await;
            let _ = stream.shutdown().await;
        }
    });
    let carrier = tokio::spawn(carry(carried, server, harm));
    let limit = if matches!(harm, Harm::FlipAt(_)) { Duration::from_millis(100) } else { PATIENCE };
    let accepted = timeout(limit, tls.accept(near)).await.ok();
    let accepted = accepted.map(|result| result.map(|_| ()));
    client.abort();
    let carried = timeout(PATIENCE, carrier).await.unwrap().unwrap();
    (accepted, carried)
}

#[tokio::test]
async fn a_handshake_cut_at_any_byte_fails_and_ends() {
    let Some(yard) = Yard::new() else { return };
    let tls = yard.tls(ClientVerify::Required);
    for version in [&TLS13, &TLS12] {
        let client = yard.client(Some("laptop"), version);
        let (accepted, total) = harmed(&tls, &client, Harm::None).await;
        accepted.unwrap().unwrap();
        assert!(total.count > 500, "{}", total.count);
        // Signatures differ in length by some bytes, so the last few may be whole handshakes.
        for at in 0..total.count - 8 {
            let (accepted, _) = harmed(&tls, &client, Harm::CutAt(at)).await;
            let error = accepted.unwrap().unwrap_err();
            assert!(matches!(error, TlsError::CutOff), "at {at}: {error}");
        }
    }
}

#[tokio::test]
async fn a_damaged_handshake_never_panics() {
    let Some(yard) = Yard::new() else { return };
    let tls = yard.tls(ClientVerify::Required);
    for version in [&TLS13, &TLS12] {
        let client = yard.client(Some("laptop"), version);
        let (_, total) = harmed(&tls, &client, Harm::None).await;
        for at in (0..total.count).step_by(7) {
            // Refused, or waiting for more than the client sends: the caller's deadline ends that.
            let (accepted, carried) = harmed(&tls, &client, Harm::FlipAt(at)).await;
            let let_in = matches!(accepted, Some(Ok(())));
            assert!(!let_in || !carried.harmed, "let in with byte {at} flipped");
        }
    }
}

#[tokio::test]
async fn noise_in_a_record_never_panics() {
    let Some(yard) = Yard::new() else { return };
    let tls = yard.tls(ClientVerify::Required);
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for _ in 0..500 {
        let len = (next() % 600) as usize;
        let mut bytes: Vec<u8> = (0..len).map(|_| next() as u8).collect();
        // Half of them look like a record of some type, some like a hello in it.
        if len > 9 && next() % 2 == 0 {
            bytes[0] = 20 + (next() % 5) as u8;
            bytes[1..3].copy_from_slice(&[3, 1 + (next() % 3) as u8]);
            bytes[3..5].copy_from_slice(&((len - 5) as u16).to_be_bytes());
            if next() % 2 == 0 {
                bytes[5..9].copy_from_slice(&[1, 0, ((len - 9) >> 8) as u8, (len - 9) as u8]);
            }
        }
        let (near, mut far) = duplex(64 << 10);
        far.write_all(&bytes).await.unwrap();
        far.shutdown().await.unwrap();
        assert!(timeout(PATIENCE, tls.accept(near)).await.unwrap().is_err());
    }
}

#[tokio::test]
async fn a_message_of_sixteen_megabytes_is_not_waited_for() {
    let Some(yard) = Yard::new() else { return };
    let tls = yard.tls(ClientVerify::Required);
    let (near, mut far) = duplex(64 << 10);
    let sender = tokio::spawn(async move {
        // A hello that says it is 16 MiB long, in full records.
        let mut record = vec![0; 5 + 16384];
        record[..9].copy_from_slice(&[22, 3, 1, 64, 0, 1, 255, 255, 255]);
        let mut sent = 0;
        for _ in 0..1024 {
            if far.write_all(&record).await.is_err() {
                break;
            }
            sent += 1;
        }
        sent
    });
    let error = timeout(PATIENCE, tls.accept(near)).await.unwrap().err().unwrap();
    assert!(matches!(error, TlsError::Protocol(_)), "{error}");
    assert!(sender.await.unwrap() < 64);
}
