//! Reads a directory of certificates as QEMU and libvirt lay it out.
//!
//! Every error names the file, what is wrong with it and what to do. What is only odd (a key that
//! others can read, a certificate past its time) is a notice: the server starts.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::{default_provider, sign::any_supported_type};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use rustls::{InconsistentKeys, RootCertStore, ServerConfig};
use thiserror::Error;
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};
use x509_parser::time::ASN1Time;

use super::ClientVerify;
use super::key::mended;

/// No certificate is near this; a list of revocations may be.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// Why TLS settings could not be read.
#[derive(Debug, Error)]
pub enum LoadError {
    /// A file or directory that must be there is not.
    #[error(
        "{} is not there: {hint}", path.display()
    )]
    Missing {
        /// The file.
        path: PathBuf,
        /// What it is and how to get it.
        hint: &'static str,
    },
    /// The system refuses to give it.
    #[error("{} cannot be read: check its owner and mode", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It is larger than any such file.
    #[error("{} is larger than 16 MiB: that is not a file of certificates or keys", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// It has none of the PEM sections that belong into it, or a broken one.
    #[error("{} holds no usable {wanted}: {found}", path.display())]
    NotPem {
        /// The file.
        path: PathBuf,
        /// What should be in it.
        wanted: &'static str,
        /// What is wrong.
        found: String,
    },
    /// The key needs a password.
    #[error(
        "{} is encrypted, and orlop has nobody to ask for a password: decrypt it with \
         `openssl pkey -in OLD -out NEW`", path.display()
    )]
    Encrypted {
        /// The file.
        path: PathBuf,
    },
    /// Certificate or key are well-formed PEM, but TLS cannot use them.
    #[error("{} cannot be used: {why}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Certificate and key are not a pair.
    #[error(
        "{} does not belong to {}: both must come from the same request for a certificate",
        key.display(), certificate.display()
    )]
    Mismatch {
        /// The key's file.
        key: PathBuf,
        /// The certificate's file.
        certificate: PathBuf,
    },
    /// A line of a file of keys has a mistake.
    #[error("{}, line {line}: {why}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What is wrong; never shows the key.
        why: &'static str,
    },
    /// Two lines of a file of keys have the same user.
    #[error("{}, line {line}: the user {user:?} has a key already: remove one", path.display())]
    Twice {
        /// The file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// The user.
        user: String,
    },
    /// OpenSSL cannot be set up.
    #[error("OpenSSL cannot be set up for pre-shared keys: {0}")]
    Library(String),
    /// Pre-shared keys are not part of this build.
    #[error(
        "{} cannot be used: this orlop was built without pre-shared keys; build it with \
         `--features psk`, or use certificates", path.display()
    )]
    NoPsk {
        /// The file of keys.
        path: PathBuf,
    },
}

/// Something odd about the files, which is no reason to refuse them.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Notice {
    /// Whoever has an account can read a secret.
    #[error("{} can be read by others: chmod it to 0600", .0.display())]
    Exposed(PathBuf),
    /// Clients will refuse it.
    #[error("the certificate in {} expired on {expired}: clients will refuse it", path.display())]
    Expired {
        /// The file.
        path: PathBuf,
        /// When.
        expired: String,
    },
    /// Clients will refuse it; most often a clock is wrong.
    #[error("the certificate in {} is valid from {from} on only: compare clocks", path.display())]
    NotYetValid {
        /// The file.
        path: PathBuf,
        /// When it starts.
        from: String,
    },
    /// Newer revocations are not known.
    #[error("{} should have been replaced by {due}: newer revocations are unknown", path.display())]
    OldList {
        /// The file.
        path: PathBuf,
        /// When.
        due: String,
    },
    /// TLS 1.2 and 1.3 with elliptic curves have no use for it.
    #[error("{} is not used: no Diffie-Hellman parameters are needed", .0.display())]
    Unused(PathBuf),
}

pub(super) fn read(
    directory: &Path,
    clients: ClientVerify,
) -> Result<(ServerConfig, Vec<Notice>), LoadError> {
    let mut notices = Vec::new();
    if !directory.is_dir() {
        let hint = "name a directory with ca-cert.pem, server-cert.pem and server-key.pem";
        return Err(LoadError::Missing { path: directory.to_owned(), hint });
    }
    let provider = Arc::new(default_provider());
    let key = certified_key(directory, &mut notices)?;
    let config = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&TLS13, &TLS12])
        .expect("ring has suites for both versions");
    let config = match clients {
        ClientVerify::Off => config.with_no_client_auth(),
        ClientVerify::Required => {
            config.with_client_cert_verifier(verifier(directory, provider, &mut notices)?)
        }
    };
    let mut config = config.with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
    // A resumed session would skip the check whether its certificate was revoked meanwhile.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    let unused = directory.join("dh-params.pem");
    if unused.exists() {
        notices.push(Notice::Unused(unused));
    }
    Ok((config, notices))
}

fn certified_key(directory: &Path, notices: &mut Vec<Notice>) -> Result<CertifiedKey, LoadError> {
    let path = directory.join("server-cert.pem");
    let hint = "it is the server's certificate, signed by the authority in ca-cert.pem";
    let chain = certificates(&path, &contents(&path, hint)?)?;
    let (_, first) = X509Certificate::from_der(&chain[0]).map_err(|error| LoadError::Unusable {
        path: path.clone(),
        why: format!("not a certificate: {error}"),
    })?;
    let (now, validity) = (ASN1Time::now(), first.validity());
    if now > validity.not_after {
        let expired = validity.not_after.to_string();
        notices.push(Notice::Expired { path: path.clone(), expired });
    } else if now < validity.not_before {
        let from = validity.not_before.to_string();
        notices.push(Notice::NotYetValid { path: path.clone(), from });
    }

    let key_path = directory.join("server-key.pem");
    let key = private_key(&key_path, notices)?;
    let key = any_supported_type(&key)
        .or_else(|error| match mended(&key) {
            Some(mended) => any_supported_type(&mended),
            None => Err(error),
        })
        .map_err(|_| LoadError::Unusable {
            path: key_path.clone(),
            why: "it is none of RSA with 2048 bits or more, P-256, P-384 and Ed25519".to_owned(),
        })?;
    let pair = CertifiedKey::new(chain, key);
    match pair.keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => Ok(pair),
        Err(rustls::Error::InconsistentKeys(_)) => {
            Err(LoadError::Mismatch { key: key_path, certificate: path })
        }
        Err(error) => Err(LoadError::Unusable { path, why: error.to_string() }),
    }
}

fn private_key(
    path: &Path,
    notices: &mut Vec<Notice>,
) -> Result<PrivateKeyDer<'static>, LoadError> {
    let pem = contents(path, "it is the private key of server-cert.pem")?;
    warn_if_exposed(path, notices);
    let has = |text: &[u8]| pem.windows(text.len()).any(|window| window == text);
    if has(b"BEGIN ENCRYPTED PRIVATE KEY") || has(b"Proc-Type: 4,ENCRYPTED") {
        return Err(LoadError::Encrypted { path: path.to_owned() });
    }
    PrivateKeyDer::from_pem_slice(&pem).map_err(|error| not_pem(path, "private key", &error))
}

pub(super) fn warn_if_exposed(path: &Path, notices: &mut Vec<Notice>) {
    const READ_BY_OTHERS: u32 = 0o004;
    if path.metadata().is_ok_and(|metadata| metadata.mode() & READ_BY_OTHERS != 0) {
        notices.push(Notice::Exposed(path.to_owned()));
    }
}

fn verifier(
    directory: &Path,
    provider: Arc<CryptoProvider>,
    notices: &mut Vec<Notice>,
) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>, LoadError> {
    let path = directory.join("ca-cert.pem");
    let hint = "it is the certificate of the authority that signs clients' certificates";
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&path, &contents(&path, hint)?)? {
        roots
            .add(certificate)
            .map_err(|error| LoadError::Unusable { path: path.clone(), why: error.to_string() })?;
    }
    let mut verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let list = directory.join("ca-crl.pem");
    if list.exists() {
        // Revocation is then a must: a certificate that no list covers is refused.
        verifier =
            verifier.with_crls(revocations(&list, notices)?).only_check_end_entity_revocation();
    }
    verifier.build().map_err(|error| LoadError::Unusable {
        path: if list.exists() { list } else { path },
        why: error.to_string(),
    })
}

fn revocations(
    path: &Path,
    notices: &mut Vec<Notice>,
) -> Result<Vec<CertificateRevocationListDer<'static>>, LoadError> {
    let wanted = "list of revoked certificates";
    let pem = contents(path, wanted)?;
    let lists: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(&pem).collect();
    let lists = lists.map_err(|error| not_pem(path, wanted, &error))?;
    if lists.is_empty() {
        return Err(not_pem(path, wanted, &rustls::pki_types::pem::Error::NoItemsFound));
    }
    for list in &lists {
        let (_, list) = CertificateRevocationList::from_der(list).map_err(|error| {
            LoadError::Unusable { path: path.to_owned(), why: error.to_string() }
        })?;
        if let Some(due) = list.next_update().filter(|due| ASN1Time::now() > *due) {
            notices.push(Notice::OldList { path: path.to_owned(), due: due.to_string() });
        }
    }
    Ok(lists)
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, LoadError> {
    let wanted = "certificate";
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let all = all.map_err(|error| not_pem(path, wanted, &error))?;
    if all.is_empty() {
        return Err(not_pem(path, wanted, &rustls::pki_types::pem::Error::NoItemsFound));
    }
    Ok(all)
}

fn not_pem(path: &Path, wanted: &'static str, error: &rustls::pki_types::pem::Error) -> LoadError {
    use rustls::pki_types::pem::Error;
    // The library's own words would show bytes of the file, which may be a key.
    let found = match error {
        Error::MissingSectionEnd { .. } => "a section has no END line; the file may be cut off",
        Error::IllegalSectionStart { .. } => "a BEGIN line is broken",
        Error::Base64Decode(_) => "a section is not base64",
        _ => "it has no such section; it must be PEM, with BEGIN and END lines",
    };
    LoadError::NotPem { path: path.to_owned(), wanted, found: found.to_owned() }
}

pub(super) fn contents(path: &Path, hint: &'static str) -> Result<Vec<u8>, LoadError> {
    let unreadable = |source| LoadError::Unreadable { path: path.to_owned(), source };
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(LoadError::Missing { path: path.to_owned(), hint });
        }
        file => file.map_err(unreadable)?,
    };
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(LoadError::TooLarge { path: path.to_owned() });
    }
    Ok(bytes)
}
