//! TLS against programs by others: certificates of `certtool`, and clients of GnuTLS, OpenSSL and
//! rustls.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::{ClientVerify, Ended, Peer, Tls, TlsError, bridge};

mod bridging;
mod certificates;
mod cut;
mod loading;
#[cfg(feature = "psk")]
mod psk;
mod rules;

/// Far more than any step takes; a test that needs it has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// Whether a foreign program is there. Aloud, and a failure where everything must be.
fn has(program: &str) -> bool {
    let there = Command::new(program)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok();
    if !there {
        assert!(std::env::var_os("CI").is_none(), "{program} is missing");
        eprintln!("SKIPPED: {program} is missing");
    }
    there
}

fn run(command: &mut Command) -> Output {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {text}");
    output
}

/// An authority, a server's directory, and clients.
struct Yard {
    dir: TempDir,
}

impl Yard {
    /// `None` if the tools are missing.
    fn new() -> Option<Self> {
        if !has("certtool") || !has("openssl") {
            return None;
        }
        let yard = Self { dir: TempDir::new().unwrap() };
        fs::create_dir(yard.server()).unwrap();
        yard.authority("ca", "Orlop Tests");
        fs::copy(yard.path("ca.pem"), yard.server().join("ca-cert.pem")).unwrap();
        yard.certificate("server", "ca", "cn=localhost\ndns_name=localhost\ntls_www_server\n");
        yard.install("server");
        yard.certificate("laptop", "ca", CLIENT);
        Some(yard)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn server(&self) -> PathBuf {
        self.path("pki")
    }

    /// Makes a certificate the server's.
    fn install(&self, name: &str) {
        let from = |kind: &str| self.path(&format!("{name}{kind}.pem"));
        fs::copy(from(""), self.server().join("server-cert.pem")).unwrap();
        fs::copy(from("-key"), self.server().join("server-key.pem")).unwrap();
    }

    fn key(&self, name: &str) -> PathBuf {
        let path = self.path(&format!("{name}-key.pem"));
        let kind = ["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out"];
        run(Command::new("openssl").args(kind).arg(&path));
        path
    }

    fn template(&self, text: &str) -> PathBuf {
        let path = self.path("template");
        fs::write(&path, text).unwrap();
        path
    }

    fn authority(&self, name: &str, cn: &str) {
        let key = self.key(name);
        let template =
            self.template(&format!("cn=\"{cn}\"\nca\ncert_signing_key\ncrl_signing_key\n"));
        run(Command::new("certtool")
            .args(["--generate-self-signed", "--load-privkey"])
            .arg(key)
            .arg("--template")
            .arg(template)
            .arg("--outfile")
            .arg(self.path(&format!("{name}.pem"))));
    }

    fn certificate(&self, name: &str, authority: &str, template: &str) {
        let key = self.key(name);
        self.certificate_of(&key, name, authority, template);
    }

    fn certificate_of(&self, key: &Path, name: &str, authority: &str, template: &str) {
        let template = self.template(&format!("{template}signing_key\n"));
        run(Command::new("certtool")
            .args(["--generate-certificate", "--load-privkey"])
            .arg(key)
            .arg("--load-ca-certificate")
            .arg(self.path(&format!("{authority}.pem")))
            .arg("--load-ca-privkey")
            .arg(self.path(&format!("{authority}-key.pem")))
            .arg("--template")
            .arg(template)
            .arg("--outfile")
            .arg(self.path(&format!("{name}.pem"))));
    }

    /// Revokes a client, in the server's directory.
    fn revoke(&self, name: &str, authority: &str) {
        let template = self.template("crl_next_update=30\ncrl_number=1\n");
        run(Command::new("certtool")
            .args(["--generate-crl", "--load-ca-certificate"])
            .arg(self.path(&format!("{authority}.pem")))
            .arg("--load-ca-privkey")
            .arg(self.path(&format!("{authority}-key.pem")))
            .arg("--load-certificate")
            .arg(self.path(&format!("{name}.pem")))
            .arg("--template")
            .arg(template)
            .arg("--outfile")
            .arg(self.server().join("ca-crl.pem")));
    }

    fn tls(&self, clients: ClientVerify) -> Tls {
        Tls::from_directory(&self.server(), clients).unwrap().0
    }

    /// A client of rustls, with a certificate or without.
    fn client(
        &self,
        name: Option<&str>,
        version: &'static rustls::SupportedProtocolVersion,
    ) -> Client {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.path("ca.pem")).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots);
        let config = match name {
            None => config.with_no_client_auth(),
            Some(name) => {
                let chain = CertificateDer::from_pem_file(self.path(&format!("{name}.pem")));
                let key = PrivateKeyDer::from_pem_file(self.path(&format!("{name}-key.pem")));
                config.with_client_auth_cert(vec![chain.unwrap()], key.unwrap()).unwrap()
            }
        };
        Client(TlsConnector::from(Arc::new(config)))
    }
}

const CLIENT: &str = "cn=laptop\norganization=Example\ncountry=GB\ntls_www_client\n\
                      dns_name=laptop.example\nemail=me@example.org\nuri=urn:laptop\n";

#[derive(Clone)]
struct Client(TlsConnector);

impl Client {
    async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
    ) -> std::io::Result<tokio_rustls::client::TlsStream<S>> {
        self.0.connect(ServerName::try_from("localhost").unwrap(), stream).await
    }
}

/// What became of one connection.
type Served = Result<(Peer, Ended), TlsError>;

/// Serves one connection with an echo behind a bridge.
async fn serve_echo(tls: Tls) -> (u16, JoinHandle<Served>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let served = tokio::spawn(async move {
        let (stream, _) = timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
        let (secured, peer) = timeout(PATIENCE, tls.accept(stream)).await.unwrap()?;
        let (plain, mut shard) = UnixStream::pair().unwrap();
        let echo = tokio::spawn(async move {
            let (mut from, mut to) = shard.split();
            tokio::io::copy(&mut from, &mut to).await.unwrap();
        });
        let ended = timeout(PATIENCE, bridge(secured, plain)).await.unwrap()?;
        echo.await.unwrap();
        Ok((peer, ended))
    });
    (port, served)
}

/// Runs a client with some input, which ends; gives what it printed on both streams.
async fn talk(mut command: Command, input: &'static [u8]) -> (bool, String) {
    let task = tokio::task::spawn_blocking(move || {
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = child.spawn().unwrap();
        // A client that was refused reads no input.
        let _ = child.stdin.take().unwrap().write_all(input);
        let output = child.wait_with_output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    });
    timeout(PATIENCE, task).await.unwrap().unwrap()
}

/// GnuTLS' client, under `timeout` so that it never outlives a test.
fn gnutls(yard: &Yard, port: u16, name: Option<&str>, priority: &str) -> Command {
    let mut command = Command::new("timeout");
    command.args(["50", "gnutls-cli", "--port"]).arg(port.to_string());
    command.arg("--x509cafile").arg(yard.path("ca.pem"));
    command.arg("--priority").arg(priority).arg("localhost");
    if let Some(name) = name {
        command.arg("--x509certfile").arg(yard.path(&format!("{name}.pem")));
        command.arg("--x509keyfile").arg(yard.path(&format!("{name}-key.pem")));
    }
    command
}

/// OpenSSL's client.
fn s_client(yard: &Yard, port: u16, name: Option<&str>, more: &[&str]) -> Command {
    let mut command = Command::new("timeout");
    command.args(["50", "openssl", "s_client", "-connect"]).arg(format!("127.0.0.1:{port}"));
    command.arg("-CAfile").arg(yard.path("ca.pem")).args(more);
    if let Some(name) = name {
        command.arg("-cert").arg(yard.path(&format!("{name}.pem")));
        command.arg("-key").arg(yard.path(&format!("{name}-key.pem")));
    }
    command
}

/// Shakes hands in memory; what the server made of it.
async fn accept_from(
    tls: &Tls,
    client: &Client,
) -> Result<(super::Secured<tokio::io::DuplexStream>, Peer), TlsError> {
    let (near, far) = tokio::io::duplex(64 << 10);
    let client = client.clone();
    let other = tokio::spawn(async move {
        let mut stream = client.connect(far).await?;
        let mut byte = [0];
        let _ = stream.read(&mut byte).await;
        stream.shutdown().await
    });
    let accepted = timeout(PATIENCE, tls.accept(near)).await.unwrap();
    if accepted.is_err() {
        let _ = timeout(PATIENCE, other).await.unwrap();
    }
    accepted
}

fn name_of(path: &Path) -> &str {
    path.file_name().unwrap().to_str().unwrap()
}
