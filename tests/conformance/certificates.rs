//! Certificates for a server and its clients, made by OpenSSL in a temporary folder in the layout
//! of QEMU and libvirt: ca-cert.pem, server-cert.pem, server-key.pem, client-cert.pem,
//! client-key.pem.
//!
//! They are worth nothing outside a test: keys lie in the open and live for a day.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tempfile::TempDir;

use crate::foreign::{run, text};

/// Two authorities, of which a server trusts the first.
#[derive(Debug)]
pub(crate) struct Certificates {
    root: PathBuf,
    server_folder: PathBuf,
    _folder: Option<TempDir>,
}

impl Certificates {
    /// Makes them all.
    pub(crate) fn make() -> Self {
        let folder = TempDir::new().expect("the temporary folder takes files");
        let mut all = Self::at(folder.path());
        all._folder = Some(folder);
        for name in ["ours", "theirs"] {
            let place = all.place(name);
            std::fs::create_dir(&place).expect("the folder is ours");
            authority(&place);
            signed(&place, "server", "subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1", "1");
            signed(&place, "client", "extendedKeyUsage=clientAuth", "1");
        }
        all
    }

    /// Those somebody made before: a folder with `ours` and `theirs`, each in the usual layout.
    pub(crate) fn at(root: &Path) -> Self {
        Self { root: root.to_owned(), server_folder: root.join("ours"), _folder: None }
    }

    fn place(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The folder a server is given.
    pub(crate) fn server_folder(&self) -> &Path {
        &self.server_folder
    }

    /// What a client with the right certificate needs.
    pub(crate) fn client(&self) -> Arc<ClientConfig> {
        self.config(Some("ours"), rustls::ALL_VERSIONS)
    }

    /// A client whose certificate the server's authority did not sign.
    pub(crate) fn stranger(&self) -> Arc<ClientConfig> {
        self.config(Some("theirs"), rustls::ALL_VERSIONS)
    }

    /// A client without a certificate.
    pub(crate) fn nobody(&self) -> Arc<ClientConfig> {
        self.config(None, rustls::ALL_VERSIONS)
    }

    /// A client that knows one version of TLS only.
    pub(crate) fn client_of(
        &self,
        version: &'static SupportedProtocolVersion,
    ) -> Arc<ClientConfig> {
        self.config(Some("ours"), &[version])
    }

    fn config(
        &self,
        client: Option<&str>,
        versions: &[&'static SupportedProtocolVersion],
    ) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&self.place("ours").join("ca-cert.pem")) {
            roots.add(certificate).expect("OpenSSL makes good certificates");
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(versions)
            .expect("ring has both versions")
            .with_root_certificates(roots);
        let config = match client {
            None => builder.with_no_client_auth(),
            Some(name) => {
                let chain = certificates(&self.place(name).join("client-cert.pem"));
                let key = PrivateKeyDer::from_pem_file(self.place(name).join("client-key.pem"));
                let key = key.expect("OpenSSL makes good keys");
                builder.with_client_auth_cert(chain, key).expect("the key fits")
            }
        };
        Arc::new(config)
    }
}

fn certificates(path: &Path) -> Vec<CertificateDer<'static>> {
    let all = CertificateDer::pem_file_iter(path).expect("the file was just made");
    all.map(|one| one.expect("OpenSSL makes good certificates")).collect()
}

fn authority(place: &Path) {
    let (key, certificate) = (place.join("ca-key.pem"), place.join("ca-cert.pem"));
    // A slash would start another part of the name.
    let name = place.file_name().unwrap_or_default().to_string_lossy();
    let name = format!("/CN=conformance {name}");
    let mut words = vec!["req", "-x509", "-newkey", "ec", "-pkeyopt"];
    words.extend(["ec_paramgen_curve:P-256", "-nodes", "-days", "1", "-subj", &name]);
    words.extend(["-addext", "basicConstraints=critical,CA:TRUE"]);
    words.extend(["-keyout", text(&key), "-out", text(&certificate)]);
    run("openssl", &words);
}

fn signed(place: &Path, who: &str, extension: &str, days: &str) {
    let path = |suffix: &str| place.join(format!("{who}{suffix}"));
    let (key, request, certificate) = (path("-key.pem"), path(".csr"), path("-cert.pem"));
    let extensions = path(".ext");
    std::fs::write(&extensions, format!("basicConstraints=CA:FALSE\n{extension}\n"))
        .expect("the folder is ours");
    let name = format!("/CN={who}");
    let mut words = vec!["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"];
    words.extend(["-nodes", "-subj", &name, "-keyout", text(&key), "-out", text(&request)]);
    run("openssl", &words);
    let (ca, ca_key) = (place.join("ca-cert.pem"), place.join("ca-key.pem"));
    let mut words = vec!["x509", "-req", "-in", text(&request), "-CA", text(&ca), "-CAkey"];
    words.extend([text(&ca_key), "-CAcreateserial", "-days", days]);
    words.extend(["-extfile", text(&extensions), "-out", text(&certificate)]);
    run("openssl", &words);
}
