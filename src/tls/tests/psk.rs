//! Pre-shared keys, with clients of GnuTLS and OpenSSL.

use std::fs;
use std::process::Command;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use super::super::{Ended, LoadError, Peer, Tls, TlsError, bridge};
use super::{has, run, serve_echo, talk};

const KEY: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
const OTHER: &str = "ff112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
/// TLS 1.3 comes of it. With TLS 1.2 and a key, gnutls-cli 3.7 crashes, with any server; OpenSSL's
/// client stands in there.
const PRIORITY: &str = "NORMAL:+ECDHE-PSK:+DHE-PSK:+PSK";

fn keys(text: &str) -> (TempDir, Result<Tls, LoadError>) {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("keys.psk"), text).unwrap();
    let tls = Tls::from_psk_file(dir.path()).map(|(tls, _)| tls);
    (dir, tls)
}

fn gnutls(port: u16, user: &str, key: &str) -> Command {
    let mut command = Command::new("timeout");
    command.args(["50", "gnutls-cli", "--port"]).arg(port.to_string());
    command.args(["--pskusername", user, "--pskkey", key, "--priority", PRIORITY, "localhost"]);
    command
}

#[tokio::test]
async fn who_knows_the_key_is_let_in() {
    if !has("gnutls-cli") || !has("psktool") {
        return;
    }
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("keys.psk");
    for user in ["alice", "bob"] {
        run(Command::new("psktool").args(["-u", user, "-p"]).arg(&path));
    }
    let text = fs::read_to_string(&path).unwrap();
    let tls = Tls::from_psk_file(dir.path()).unwrap().0;
    for line in text.lines() {
        let (user, key) = line.split_once(':').unwrap();
        let (port, served) = serve_echo(tls.clone()).await;
        let (good, text) = talk(gnutls(port, user, key), b"aye aye\n").await;
        assert!(good && text.contains("aye aye"), "{text}");
        let (peer, ended) = served.await.unwrap().unwrap();
        assert_eq!((peer, ended), (Peer::Key(user.to_owned()), Ended::Closed));
    }
}

#[tokio::test]
async fn a_stranger_and_a_wrong_key_are_refused_alike() {
    if !has("gnutls-cli") || !has("openssl") {
        return;
    }
    let (_dir, tls) = keys(&format!("alice:{KEY}\n"));
    let tls = tls.unwrap();
    for version in [None, Some("-tls1_3"), Some("-tls1_2")] {
        let mut said = Vec::new();
        for (user, key) in [("alice", OTHER), ("mallory", KEY), ("alic", KEY), ("alice2", KEY)] {
            let (port, served) = serve_echo(tls.clone()).await;
            let command = match version {
                None => gnutls(port, user, key),
                Some(version) => s_client(port, &[version, "-psk_identity", user, "-psk", key]),
            };
            let (good, text) = talk(command, b"").await;
            assert!(!good, "{text}");
            let error = served.await.unwrap().unwrap_err();
            assert!(matches!(error, TlsError::WrongKey), "{error:?}");
            // OpenSSL puts a thread's number in front.
            let alert = text.lines().find(|line| line.contains("alert"));
            let alert = alert.map(|line| line.split_once("SSL routines").map_or(line, |two| two.1));
            said.push((error.to_string(), alert.expect("it was told").to_owned()));
        }
        assert!(said.iter().all(|one| *one == said[0]), "{said:?}");
    }
}

fn s_client(port: u16, more: &[&str]) -> Command {
    let mut command = Command::new("timeout");
    command.args(["50", "openssl", "s_client", "-connect"]);
    command.arg(format!("127.0.0.1:{port}")).args(more);
    command
}

#[tokio::test]
async fn openssl_is_let_in_but_not_with_tls_1_1_or_without_a_key() {
    if !has("openssl") {
        return;
    }
    let (_dir, tls) = keys(&format!("alice:{KEY}\n"));
    let tls = tls.unwrap();
    let attempt = async |more: &[&str]| {
        let (port, served) = serve_echo(tls.clone()).await;
        let (_, text) = talk(s_client(port, more), b"").await;
        (served.await.unwrap(), text)
    };
    let with = ["-psk_identity", "alice", "-psk", KEY];
    for version in ["-tls1_3", "-tls1_2"] {
        let (served, text) = attempt(&[&with[..], &[version]].concat()).await;
        assert_eq!(served.unwrap().0, Peer::Key("alice".to_owned()), "{text}");
    }
    let old = [&with[..], &["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"]].concat();
    let error = attempt(&old).await.0.unwrap_err();
    assert!(matches!(error, TlsError::TooOld), "{error:?}");
    let error = attempt(&[]).await.0.unwrap_err();
    assert!(matches!(error, TlsError::NothingInCommon(_)), "{error:?}");
}

#[tokio::test]
async fn plaintext_and_cuts_are_told_apart() {
    let (_dir, tls) = keys(&format!("alice:{KEY}\n"));
    let tls = tls.unwrap();
    for (bytes, not_tls) in
        [(&b"IHAVEOPT\0\0\0\x07"[..], true), (b"GET / HTTP", true), (b"", false)]
    {
        let (port, served) = serve_echo(tls.clone()).await;
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        let error = served.await.unwrap().unwrap_err();
        let expected = if not_tls {
            matches!(error, TlsError::NotTls)
        } else {
            matches!(error, TlsError::CutOff)
        };
        assert!(expected, "{bytes:?}: {error:?}");
    }
}

#[tokio::test]
async fn a_large_transfer_arrives_whole() {
    use openssl::ssl::{Ssl, SslContext, SslMethod};
    const TOTAL: usize = 16 << 20;
    let (_dir, tls) = keys(&format!("alice:{KEY}\n"));
    let mut context = SslContext::builder(SslMethod::tls_client()).unwrap();
    context.set_psk_client_callback(|_, _, identity, key| {
        identity[..6].copy_from_slice(b"alice\0");
        let bytes: Vec<u8> = (0..32).map(|at| (at as u8 % 16) * 0x11).collect();
        key[..32].copy_from_slice(&bytes);
        Ok(32)
    });
    let ssl = Ssl::new(&context.build()).unwrap();
    let (near, far) = UnixStream::pair().unwrap();
    let mut client = tokio_openssl::SslStream::new(ssl, far).unwrap();
    let connect = std::pin::Pin::new(&mut client).connect();
    let tls = tls.unwrap();
    let (accepted, connected) = tokio::join!(tls.accept(near), connect);
    connected.unwrap();
    let (plain, shard) = UnixStream::pair().unwrap();
    let task = tokio::spawn(bridge(accepted.unwrap().0, plain));
    let (mut from, mut to) = shard.into_split();
    let echo = tokio::spawn(async move { tokio::io::copy(&mut from, &mut to).await });
    let sent: Vec<u8> = (0..TOTAL).map(|at| ((at * 2_654_435_761) >> 9) as u8).collect();
    let (mut reads, mut writes) = tokio::io::split(client);
    let expected = sent.clone();
    let writer = tokio::spawn(async move {
        writes.write_all(&sent).await.unwrap();
        writes.shutdown().await.unwrap();
    });
    let mut heard = vec![0; TOTAL];
    reads.read_exact(&mut heard).await.unwrap();
    assert!(heard == expected);
    writer.await.unwrap();
    let mut rest = Vec::new();
    reads.read_to_end(&mut rest).await.unwrap();
    assert!(rest.is_empty());
    echo.await.unwrap().unwrap();
    assert_eq!(task.await.unwrap().unwrap(), Ended::Closed);
}

#[test]
fn mistakes_in_lines_are_named_without_showing_keys() {
    for (text, line, what) in [
        (format!("alice:{KEY}\nbob\n"), 2, "USER:HEXKEY"),
        (format!(":{KEY}\n"), 1, "empty"),
        ("alice:xyz\n".to_owned(), 1, "hexadecimal"),
        (format!("alice:{KEY}0\n"), 1, "hexadecimal"),
        ("alice:\n".to_owned(), 1, "shorter"),
        ("alice:00112233\n".to_owned(), 1, "shorter"),
        (format!("alice:{KEY}{KEY}{KEY}\n"), 1, "longer"),
        (format!("# a comment:{KEY}\n"), 1, "comments"),
        (format!("{}:{KEY}\n", "a".repeat(200)), 1, "128"),
        (format!("al\u{7}ice:{KEY}\n"), 1, "control"),
        (String::new(), 1, "psktool"),
        (format!("alice:{KEY}\n\nalice:{OTHER}\n"), 3, "already"),
    ] {
        let (_dir, tls) = keys(&text);
        let error = tls.err().unwrap().to_string();
        let place = format!("keys.psk, line {line}: ");
        assert!(error.contains(&place) && error.contains(what), "{text}: {error}");
        assert!(!error.contains("8899"), "{error}");
    }
    let (_dir, tls) = keys(&format!("a:b:{KEY}\r\n\r\n#6a75c3a9:{OTHER}"));
    tls.unwrap();
    let missing = Tls::from_psk_file("/nonexistent/keys.psk".as_ref()).err().unwrap();
    assert!(matches!(missing, LoadError::Missing { .. }));
}

#[tokio::test]
async fn a_reload_takes_keys_away() {
    if !has("openssl") {
        return;
    }
    let (dir, tls) = keys(&format!("alice:{KEY}\n"));
    let tls = tls.unwrap();
    fs::write(dir.path().join("keys.psk"), "broken").unwrap();
    assert!(tls.reload().is_err());
    for (text, allowed) in [(None, true), (Some(format!("bob:{KEY}\n")), false)] {
        if let Some(text) = text {
            fs::write(dir.path().join("keys.psk"), text).unwrap();
            tls.reload().unwrap();
        }
        let (port, served) = serve_echo(tls.clone()).await;
        talk(s_client(port, &["-psk_identity", "alice", "-psk", KEY]), b"").await;
        assert_eq!(served.await.unwrap().is_ok(), allowed);
    }
}
