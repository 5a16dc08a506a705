//! Reading directories: every mistake is named, and a reload that fails changes nothing.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::version::TLS13;

use super::super::{ClientVerify, LoadError, Notice, Tls};
use super::{Yard, accept_from, has, name_of, run};

fn mistake(yard: &Yard) -> LoadError {
    Tls::from_directory(&yard.server(), ClientVerify::Required).err().unwrap()
}

fn swap(path: &Path, text: &[u8], check: impl FnOnce()) {
    let before = fs::read(path).unwrap();
    fs::write(path, text).unwrap();
    check();
    fs::write(path, before).unwrap();
}

#[test]
fn every_mistake_names_its_file() {
    let Some(yard) = Yard::new() else { return };
    let none = Tls::from_directory(&yard.path("nowhere"), ClientVerify::Off).err().unwrap();
    assert!(matches!(none, LoadError::Missing { .. }), "{none}");
    for file in ["ca-cert.pem", "server-cert.pem", "server-key.pem"] {
        let path = yard.server().join(file);
        fs::rename(&path, yard.path("aside")).unwrap();
        let error = mistake(&yard);
        assert!(matches!(&error, LoadError::Missing { path, .. } if name_of(path) == file));
        fs::rename(yard.path("aside"), &path).unwrap();

        for text in [&b""[..], b"no PEM", &[0xff; 100]] {
            swap(&path, text, || {
                let error = mistake(&yard);
                let named =
                    matches!(&error, LoadError::NotPem { path, .. } if name_of(path) == file);
                assert!(named, "{error}");
            });
        }
        let pem = fs::read(&path).unwrap();
        swap(&path, &pem[..pem.len() - 40], || {
            let error = mistake(&yard).to_string();
            assert!(error.contains("cut off") && error.contains(file), "{error}");
        });
        swap(&path, &vec![b' '; 17 << 20], || {
            assert!(matches!(mistake(&yard), LoadError::TooLarge { .. }));
        });
    }
    // PEM around something else.
    for file in ["ca-cert.pem", "server-cert.pem"] {
        let text = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        swap(&yard.server().join(file), text.as_bytes(), || {
            assert!(matches!(mistake(&yard), LoadError::Unusable { .. }));
        });
    }
    let list = yard.server().join("ca-crl.pem");
    fs::write(&list, "nothing").unwrap();
    let error = mistake(&yard);
    assert!(matches!(&error, LoadError::NotPem { path, .. } if *path == list), "{error}");
}

#[test]
fn a_key_of_another_certificate_is_found_out() {
    let Some(yard) = Yard::new() else { return };
    fs::copy(yard.path("laptop-key.pem"), yard.server().join("server-key.pem")).unwrap();
    let error = mistake(&yard);
    assert!(matches!(error, LoadError::Mismatch { .. }), "{error}");
}

#[tokio::test]
async fn keys_of_all_spellings_are_read() {
    let Some(yard) = Yard::new() else { return };
    if !has("openssl") {
        return;
    }
    let target = yard.server().join("server-key.pem");
    let source = yard.path("server-key.pem");
    let convert = |arguments: &[&str]| {
        run(Command::new("openssl")
            .args(arguments)
            .arg("-in")
            .arg(&source)
            .arg("-out")
            .arg(&target));
    };
    // SEC1 and PKCS#8.
    convert(&["ec"]);
    assert!(fs::read_to_string(&target).unwrap().contains("BEGIN EC PRIVATE KEY"));
    accept_from(&yard.tls(ClientVerify::Off), &yard.client(None, &TLS13)).await.unwrap();
    convert(&["pkcs8", "-topk8", "-nocrypt"]);
    assert!(fs::read_to_string(&target).unwrap().contains("BEGIN PRIVATE KEY"));
    accept_from(&yard.tls(ClientVerify::Off), &yard.client(None, &TLS13)).await.unwrap();
    convert(&["pkcs8", "-topk8", "-passout", "pass:secret"]);
    let error = mistake(&yard);
    assert!(matches!(error, LoadError::Encrypted { .. }), "{error}");

    // As certtool writes them: every second is a byte too long, one of 256 is too short.
    let mut lengths = Vec::new();
    for _ in 0..60 {
        let curve = ["--generate-privkey", "--key-type=ecdsa", "--curve=secp256r1", "--outfile"];
        run(Command::new("certtool").args(curve).arg(&source));
        let wish = "cn=localhost\ndns_name=localhost\ntls_www_server\n";
        yard.certificate_of(&source, "server", "ca", wish);
        yard.install("server");
        let PrivateKeyDer::Sec1(key) = PrivateKeyDer::from_pem_file(&target).unwrap() else {
            panic!("certtool writes SEC1")
        };
        // A sequence, the version, and the length of the number.
        lengths.push(key.secret_sec1_der()[6]);
        accept_from(&yard.tls(ClientVerify::Off), &yard.client(None, &TLS13)).await.unwrap();
        if lengths.contains(&32) && lengths.contains(&33) {
            break;
        }
    }
    assert!(lengths.contains(&33), "{lengths:?}");

    // RSA in PKCS#1, with a certificate of its own.
    run(Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"])
        .args(["-keyout"])
        .arg(yard.path("rsa8.pem"))
        .arg("-out")
        .arg(yard.server().join("server-cert.pem")));
    run(Command::new("openssl")
        .args(["rsa", "-traditional", "-in"])
        .arg(yard.path("rsa8.pem"))
        .arg("-out")
        .arg(&target));
    assert!(fs::read_to_string(&target).unwrap().contains("BEGIN RSA PRIVATE KEY"));
    yard.tls(ClientVerify::Off);
}

#[test]
fn what_is_odd_is_noticed() {
    let Some(yard) = Yard::new() else { return };
    let key = yard.server().join("server-key.pem");
    let load = || Tls::from_directory(&yard.server(), ClientVerify::Required).unwrap().1;
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(load(), []);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(load(), [Notice::Exposed(key.clone())]);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let unused = yard.server().join("dh-params.pem");
    fs::write(&unused, "").unwrap();
    assert_eq!(load(), [Notice::Unused(unused.clone())]);
    fs::remove_file(unused).unwrap();
    let past = "activation_date=\"2020-01-01 00:00:00\"\nexpiration_date=\"2021-01-01 00:00:00\"\n";
    yard.certificate("old", "ca", &format!("cn=localhost\ntls_www_server\n{past}"));
    yard.install("old");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    assert!(matches!(&load()[..], [Notice::Expired { .. }]));
}

#[tokio::test]
async fn a_reload_that_fails_changes_nothing() {
    let Some(yard) = Yard::new() else { return };
    let tls = yard.tls(ClientVerify::Required);
    let key = yard.server().join("server-key.pem");
    let good = fs::read(&key).unwrap();
    fs::write(&key, "half a file").unwrap();
    assert!(tls.clone().reload().is_err());
    let client = yard.client(Some("laptop"), &TLS13);
    accept_from(&tls, &client).await.unwrap();
    fs::write(&key, good).unwrap();
    tls.reload().unwrap();
    accept_from(&tls, &client).await.unwrap();

    // A new authority takes over for all clones, from the reload on.
    let clone = tls.clone();
    yard.authority("next", "Next Authority");
    yard.certificate("server2", "ca", "cn=localhost\ndns_name=localhost\ntls_www_server\n");
    yard.install("server2");
    fs::copy(yard.path("next.pem"), yard.server().join("ca-cert.pem")).unwrap();
    tls.reload().unwrap();
    assert!(accept_from(&clone, &client).await.is_err());
}

#[cfg(not(feature = "psk"))]
#[test]
fn keys_need_a_build_with_the_feature() {
    let error = Tls::from_psk_file(Path::new("/etc/keys.psk")).err().unwrap();
    assert!(error.to_string().contains("--features psk"), "{error}");
}
