//! Names as GnuTLS prints them, and rules that are exact.

use std::process::Command;

use super::super::name::Name;
use super::super::peer::Certificate;
use super::super::{NameError, Peer, Rule, RuleError};
use super::{Yard, has, run};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

/// Reads the certificate of a subject that OpenSSL has made.
fn certificate(yard: &Yard, subject: &str, more: &[&str]) -> (Peer, String) {
    let (key, path) = (yard.path("odd-key.pem"), yard.path("odd.pem"));
    run(Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"])
        .args(["-utf8", "-days", "3", "-subj", subject, "-keyout"])
        .arg(key)
        .arg("-out")
        .arg(&path)
        .args(more));
    let der = CertificateDer::from_pem_file(&path).unwrap();
    let said = run(Command::new("certtool").args(["--certificate-info", "--infile"]).arg(path));
    let said = String::from_utf8(said.stdout).unwrap();
    let line = said.lines().find_map(|line| line.trim().strip_prefix("Subject: ")).unwrap();
    (Peer::Certificate(Certificate::read(&der).unwrap()), line.to_owned())
}

#[test]
fn names_are_written_as_gnutls_writes_them() {
    let Some(yard) = Yard::new() else { return };
    if !has("openssl") {
        return;
    }
    for subject in [
        "/C=GB/O=Example/CN=laptop",
        "/C=GB/ST=London/L= Lon,don /O=Ex\\+am\"p<l>e;=/OU=#one/OU=a\\\\b/CN=laptop \u{e9}",
        "/CN=x/emailAddress=a@b.c/serialNumber=12/street=x/UID=me/DC=org/title=t/GN=g/SN=s",
        "/CN=x/initials=i/generationQualifier=jr/dnQualifier=q/pseudonym=p/name=n/description=d",
        "/CN=x/postalCode=7/businessCategory=b/unstructuredName=un/postOfficeBox=9",
        "/O=Org+OU=zed+CN=multi/CN=a\\/b  c",
    ] {
        let (peer, said) = certificate(&yard, subject, &["-multivalue-rdn"]);
        assert_eq!(peer.to_string(), said, "{subject}");
        // And what is written can be read as a rule.
        let rule: Rule = said.parse().unwrap();
        assert!(peer.is_one_of(&[rule]), "{said}");
    }
}

fn peer(name: &str) -> Peer {
    let yard = Yard::new();
    let yard = yard.expect("called only where certtool is");
    certificate(&yard, name, &[]).0
}

#[test]
fn a_longer_or_shorter_name_is_another_name() {
    if !has("certtool") || !has("openssl") {
        return;
    }
    let laptop = peer("/O=Example/CN=laptop");
    for (rule, allowed) in [
        ("CN=laptop,O=Example", true),
        ("cn=laptop,o=Example", true),
        ("2.5.4.3=laptop,O=Example", true),
        ("CN=\\6Captop,O=Example", true),
        ("O=Example,CN=laptop", true),
        ("CN=laptop,O=Exampl", false),
        ("CN=laptop,O=Example2", false),
        ("CN=lapto,O=Example", false),
        ("CN=laptop2,O=Example", false),
        ("CN=LAPTOP,O=Example", false),
        ("CN=laptop", false),
        ("O=Example", false),
        ("CN=laptop+O=Example", false),
        ("CN=laptop\\,O\\=Example", false),
        ("CN=laptop,O=Example,C=GB", false),
        ("OU=laptop,O=Example", false),
        ("psk:CN=laptop,O=Example", false),
        ("san:laptop", false),
    ] {
        assert_eq!(laptop.is_one_of(&[rule.parse().unwrap()]), allowed, "{rule}");
    }
    // A value that looks like two attributes is one.
    let sly = peer("/CN=laptop,O=Example");
    assert_eq!(sly.to_string(), "CN=laptop\\,O=Example");
    assert!(!sly.is_one_of(&["CN=laptop,O=Example".parse().unwrap()]));
    assert!(!laptop.is_one_of(&[]));
}

#[test]
fn users_of_keys_are_compared_whole() {
    let peer = Peer::Key("alice".to_owned());
    for (rule, allowed) in [
        ("psk:alice", true),
        ("*", true),
        ("psk:alic", false),
        ("psk:alice2", false),
        ("psk:Alice", false),
        ("san:alice", false),
        ("CN=alice", false),
    ] {
        assert_eq!(peer.is_one_of(&[rule.parse().unwrap()]), allowed, "{rule}");
    }
    assert!(!Peer::Anonymous.is_one_of(&["*".parse().unwrap()]));
}

#[test]
fn mistakes_in_rules_are_named() {
    let name = |text: &str| match text.parse::<Rule>() {
        Err(RuleError::Name { source, .. }) => source,
        other => panic!("{text}: {other:?}"),
    };
    assert!(matches!(name("CN=a, O=b"), NameError::Space(_)));
    assert!(matches!(name("CN= a"), NameError::Space(_)));
    assert!(matches!(name("CN=a ,O=b"), NameError::Space(_)));
    assert!(matches!(name("CN=a,b"), NameError::NoValue(_)));
    assert!(matches!(name("CN=a,,O=b"), NameError::NoValue(_)));
    assert!(matches!(name("CN=a,"), NameError::NoValue(_)));
    assert!(matches!(name("XY=a"), NameError::Attribute(_)));
    assert!(matches!(name("=a"), NameError::Attribute(_)));
    assert!(matches!(name("CN="), NameError::EmptyValue(_)));
    assert!(matches!(name("dn:"), NameError::Empty));
    assert!(matches!(name("CN=lap*"), NameError::Pattern(_)));
    assert!(matches!(name("CN=a\\"), NameError::Escape(_)));
    assert!(matches!(name("CN=a\\4"), NameError::Escape(_)));
    assert!(matches!(name("CN=#0"), NameError::Escape(_)));
    assert!(matches!(name("CN=\\ff"), NameError::NotText(_)));
    let rule = |text: &str| text.parse::<Rule>().unwrap_err();
    assert!(matches!(rule("laptop"), RuleError::Unknown(_)));
    assert!(matches!(rule(""), RuleError::Unknown(_)));
    assert!(matches!(rule("psk:"), RuleError::Empty(_)));
    assert!(matches!(rule("psk:al*"), RuleError::Pattern(_)));
    assert!(matches!(rule("lap*"), RuleError::Pattern(_)));
    assert!(matches!(rule("**"), RuleError::Pattern(_)));
    assert!(matches!(rule("san:a "), RuleError::Unprintable(_)));
    assert!(matches!(rule("psk:a\n"), RuleError::Unprintable(_)));
    assert!(matches!(rule("sha256:12"), RuleError::Fingerprint(_)));
}

#[test]
fn a_name_that_is_written_and_read_again_stays_itself() {
    // RFC 4514 section 4 has these, in these spellings or equal ones.
    for (text, same) in [
        ("UID=jsmith,DC=example,DC=net", "UID=jsmith,DC=example,DC=net"),
        ("OU=Sales+CN=J.  Smith,DC=example,DC=net", "OU=Sales+CN=J.  Smith,DC=example,DC=net"),
        ("CN=James \\\"Jim\\\" Smith\\, III,DC=net", "CN=James \\\"Jim\\\" Smith\\, III,DC=net"),
        ("CN=Before\\0dAfter,DC=net", "CN=Before\\0DAfter,DC=net"),
        ("1.3.6.1.4.1.1466.0=#04024869", "1.3.6.1.4.1.1466.0=#04024869"),
        ("CN=Lu\\C4\\8Di\\C4\\87", "CN=Lu\u{10d}i\u{107}"),
    ] {
        let name = Name::parse(text).unwrap();
        assert_eq!(name.text, same);
        assert_eq!(Name::parse(&name.text).unwrap(), name);
    }
}
