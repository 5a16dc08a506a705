//! Who is let in with certificates, and what the log says of the others.

use rustls::version::{TLS12, TLS13};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::super::{ClientVerify, Ended, Peer, Rule, Tls, TlsError};
use super::{CLIENT, Yard, accept_from, gnutls, has, s_client, serve_echo, talk};

fn dn(peer: &Peer) -> &str {
    match peer {
        Peer::Certificate(certificate) => certificate.distinguished_name(),
        other => panic!("{other:?} has no certificate"),
    }
}

async fn refusal(tls: &Tls, yard: &Yard, name: Option<&str>) -> TlsError {
    let first = accept_from(tls, &yard.client(name, &TLS13)).await.err().unwrap();
    let second = accept_from(tls, &yard.client(name, &TLS12)).await.err().unwrap();
    assert_eq!(first.to_string(), second.to_string(), "the same reason in both versions");
    first
}

#[tokio::test]
async fn gnutls_is_let_in_with_its_certificate_and_hears_its_own_words() {
    let Some(yard) = Yard::new() else { return };
    for priority in ["NORMAL", "NORMAL:-VERS-ALL:+VERS-TLS1.2"] {
        let (port, served) = serve_echo(yard.tls(ClientVerify::Required)).await;
        let (good, text) = talk(gnutls(&yard, port, Some("laptop"), priority), b"aye aye\n").await;
        assert!(good && text.contains("aye aye"), "{text}");
        let (peer, ended) = served.await.unwrap().unwrap();
        assert_eq!(dn(&peer), "CN=laptop,O=Example,C=GB");
        assert_eq!(ended, Ended::Closed);
    }
}

#[tokio::test]
async fn openssl_is_let_in_with_its_certificate() {
    let Some(yard) = Yard::new() else { return };
    if !has("openssl") {
        return;
    }
    for version in ["-tls1_3", "-tls1_2"] {
        let (port, served) = serve_echo(yard.tls(ClientVerify::Required)).await;
        let command = s_client(&yard, port, Some("laptop"), &[version]);
        let (_, text) = talk(command, b"hello\n").await;
        assert!(text.contains("Verify return code: 0 (ok)"), "{text}");
        let (peer, _) = served.await.unwrap().unwrap();
        assert_eq!(dn(&peer), "CN=laptop,O=Example,C=GB");
    }
}

#[tokio::test]
async fn a_peer_shows_all_that_its_certificate_says() {
    let Some(yard) = Yard::new() else { return };
    let tls = yard.tls(ClientVerify::Required);
    let (_, peer) = accept_from(&tls, &yard.client(Some("laptop"), &TLS13)).await.unwrap();
    let Peer::Certificate(certificate) = &peer else { panic!("{peer:?}") };
    let mut names = certificate.alternatives().to_vec();
    names.sort();
    assert_eq!(names, ["laptop.example", "me@example.org", "urn:laptop"]);
    let said = super::run(
        std::process::Command::new("openssl")
            .args(["x509", "-noout", "-fingerprint", "-sha256", "-in"])
            .arg(yard.path("laptop.pem")),
    );
    let said = String::from_utf8(said.stdout).unwrap();
    let digits = said.trim().split_once('=').unwrap().1;
    for (rule, allowed) in [
        (format!("sha256:{digits}"), true),
        ("san:urn:laptop".to_owned(), true),
        ("san:laptop.exampl".to_owned(), false),
        ("CN=laptop,O=Example,C=GB".to_owned(), true),
        ("dn:C=GB,O=Example,CN=laptop".to_owned(), true),
        ("dn:O=Example,CN=laptop,C=GB".to_owned(), false),
        ("CN=laptop,O=Example".to_owned(), false),
        ("psk:laptop".to_owned(), false),
        ("*".to_owned(), true),
    ] {
        let rule: Rule = rule.parse().unwrap();
        assert_eq!(peer.is_one_of(std::slice::from_ref(&rule)), allowed, "{rule}");
    }
}

#[tokio::test]
async fn without_verification_nobody_is_anybody() {
    let Some(yard) = Yard::new() else { return };
    let tls = yard.tls(ClientVerify::Off);
    let (_, peer) = accept_from(&tls, &yard.client(Some("laptop"), &TLS13)).await.unwrap();
    assert_eq!(peer, Peer::Anonymous);
    assert!(!peer.is_one_of(&["*".parse().unwrap()]));
}

#[tokio::test]
async fn every_refusal_has_its_own_reason() {
    let Some(yard) = Yard::new() else { return };
    let tls = yard.tls(ClientVerify::Required);
    assert!(matches!(refusal(&tls, &yard, None).await, TlsError::NoCertificate));

    // Another authority, and one that only has the same name.
    for cn in ["Somebody Else", "Orlop Tests"] {
        yard.authority("other", cn);
        yard.certificate("stranger", "other", CLIENT);
        let error = refusal(&tls, &yard, Some("stranger")).await;
        assert!(matches!(error, TlsError::UnknownIssuer), "{error}");
    }

    let past = "activation_date=\"2020-01-01 00:00:00\"\nexpiration_date=\"2021-01-01 00:00:00\"\n";
    yard.certificate("late", "ca", &format!("{CLIENT}{past}"));
    assert!(matches!(refusal(&tls, &yard, Some("late")).await, TlsError::Expired));

    let future =
        "activation_date=\"2090-01-01 00:00:00\"\nexpiration_date=\"2091-01-01 00:00:00\"\n";
    yard.certificate("early", "ca", &format!("{CLIENT}{future}"));
    assert!(matches!(refusal(&tls, &yard, Some("early")).await, TlsError::NotYetValid));

    yard.certificate("shop", "ca", "cn=shop\ntls_www_server\n");
    let error = refusal(&tls, &yard, Some("shop")).await;
    assert!(matches!(error, TlsError::BadCertificate(_)), "{error}");
}

#[tokio::test]
async fn a_revoked_client_is_refused_from_the_reload_on() {
    let Some(yard) = Yard::new() else { return };
    let tls = yard.tls(ClientVerify::Required);
    yard.certificate("lost", "ca", CLIENT);
    yard.revoke("lost", "ca");
    accept_from(&tls, &yard.client(Some("lost"), &TLS13)).await.unwrap();
    assert_eq!(tls.reload().unwrap(), []);
    let error = refusal(&tls, &yard, Some("lost")).await;
    assert!(matches!(error, TlsError::Revoked), "{error}");
    accept_from(&tls, &yard.client(Some("laptop"), &TLS13)).await.unwrap();

    // A list of another authority says nothing of this client.
    yard.authority("other", "Somebody Else");
    yard.certificate("stranger", "other", CLIENT);
    yard.revoke("stranger", "other");
    tls.reload().unwrap();
    let error = refusal(&tls, &yard, Some("laptop")).await;
    assert!(matches!(error, TlsError::UnknownRevocation), "{error}");
}

#[tokio::test]
async fn refused_clients_are_told_by_an_alert() {
    let Some(yard) = Yard::new() else { return };
    yard.authority("other", "Somebody Else");
    yard.certificate("stranger", "other", CLIENT);
    yard.certificate("lost", "ca", CLIENT);
    yard.revoke("lost", "ca");
    for (name, alert) in [
        (None, "Certificate is required"),
        (Some("stranger"), "CA is unknown"),
        (Some("lost"), "Certificate was revoked"),
    ] {
        let (port, served) = serve_echo(yard.tls(ClientVerify::Required)).await;
        let (good, text) = talk(gnutls(&yard, port, name, "NORMAL"), b"").await;
        assert!(!good && text.contains(alert), "{name:?}: {text}");
        assert!(served.await.unwrap().is_err());
    }
}

#[tokio::test]
async fn tls_1_1_is_too_old() {
    let Some(yard) = Yard::new() else { return };
    if !has("openssl") {
        return;
    }
    let (port, served) = serve_echo(yard.tls(ClientVerify::Off)).await;
    let more = ["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"];
    let (good, text) = talk(s_client(&yard, port, None, &more), b"").await;
    assert!(!good && text.contains(" alert "), "{text}");
    let error = served.await.unwrap().unwrap_err();
    assert!(matches!(error, TlsError::TooOld), "{error}");
}

#[tokio::test]
async fn plaintext_is_not_tls() {
    let Some(yard) = Yard::new() else { return };
    // An NBD option that came too early, a request of HTTP, and noise.
    for bytes in
        [&b"IHAVEOPT\0\0\0\x07\0\0\0\x06\0\0\0\0\0\0"[..], b"GET / HTTP/1.0\r\n\r\n", &[255; 64]]
    {
        let (port, served) = serve_echo(yard.tls(ClientVerify::Off)).await;
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let error = served.await.unwrap().unwrap_err();
        assert!(matches!(error, TlsError::NotTls), "{error}");
    }
}

#[tokio::test]
async fn a_client_that_does_not_trust_us_says_so() {
    let Some(yard) = Yard::new() else { return };
    let tls = yard.tls(ClientVerify::Off);
    // It trusts only an authority made after our certificate was.
    yard.authority("ca", "Orlop Tests");
    let error = accept_from(&tls, &yard.client(None, &TLS13)).await.err().unwrap();
    assert!(matches!(error, TlsError::Alert(_)), "{error}");
}
