//! Certificates for a server and its clients, made by `certtool`, in the layout of QEMU and
//! libvirt: each in a folder of its own. Worth nothing outside a test: the keys lie in the open.

use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;

use crate::foreign::{run, text};

const SERVER: &str = "cn=localhost\ndns_name=localhost\nip_address=127.0.0.1\nip_address=::1\n\
                      tls_www_server\nexpiration_days=9\n";

/// Authorities, a server and clients.
pub(crate) struct Yard {
    dir: TempDir,
}

impl Yard {
    /// A server, and the clients laptop and desk.
    pub(crate) fn new() -> Self {
        let yard = Self { dir: TempDir::new().expect("the temporary folder takes files") };
        yard.authority("ca");
        fs::create_dir(yard.path("server")).expect("the folder is ours");
        fs::copy(yard.path("ca.pem"), yard.path("server/ca-cert.pem")).expect("it was just made");
        yard.install_server();
        for name in ["laptop", "desk"] {
            yard.client(name, "ca", "expiration_days=9\n");
        }
        yard
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The folder the server is given.
    pub(crate) fn server(&self) -> String {
        text(&self.path("server")).to_owned()
    }

    /// The folder of a client.
    pub(crate) fn of(&self, client: &str) -> String {
        text(&self.path(client)).to_owned()
    }

    /// Makes an authority.
    pub(crate) fn authority(&self, name: &str) {
        let key = self.key(&format!("{name}-key.pem"));
        let words = format!("cn=\"Authority {name}\"\nca\ncert_signing_key\ncrl_signing_key\n");
        let template = self.template(&(words + "expiration_days=9\n"));
        let out = self.path(&format!("{name}.pem"));
        let words = ["--generate-self-signed", "--load-privkey", text(&key), "--template"];
        run("certtool", &[&words[..], &[text(&template), "--outfile", text(&out)]].concat());
    }

    /// Makes the server a new key and certificate.
    pub(crate) fn install_server(&self) {
        let key = self.key("server/server-key.pem");
        self.certificate(&key, "ca", SERVER, "server/server-cert.pem");
    }

    /// Makes a client that trusts our authority, with a certificate of `authority`.
    pub(crate) fn client(&self, name: &str, authority: &str, validity: &str) {
        fs::create_dir(self.path(name)).expect("the folder is ours");
        let trusted = self.path(&format!("{name}/ca-cert.pem"));
        fs::copy(self.path("ca.pem"), trusted).expect("it was just made");
        let key = self.key(&format!("{name}/client-key.pem"));
        let words = format!("cn={name}\norganization=Example\ntls_www_client\n{validity}");
        self.certificate(&key, authority, &words, &format!("{name}/client-cert.pem"));
    }

    /// Makes a client that trusts an authority and has no certificate.
    pub(crate) fn nobody(&self, name: &str, authority: &str) {
        fs::create_dir(self.path(name)).expect("the folder is ours");
        let trusted = self.path(&format!("{name}/ca-cert.pem"));
        fs::copy(self.path(&format!("{authority}.pem")), trusted).expect("it was just made");
    }

    /// Revokes a client's certificate in the server's folder.
    pub(crate) fn revoke(&self, client: &str) {
        let template = self.template("crl_next_update=30\ncrl_number=1\n");
        let [ca, key, revoked, out] = ["ca.pem", "ca-key.pem"]
            .map(|name| self.path(name))
            .into_iter()
            .chain([self.path(client).join("client-cert.pem"), self.path("server/ca-crl.pem")])
            .collect::<Vec<_>>()
            .try_into()
            .expect("these are four");
        let words = ["--generate-crl", "--load-ca-certificate", text(&ca), "--load-ca-privkey"];
        let more = [text(&key), "--load-certificate", text(&revoked), "--template"];
        let last = [text(&template), "--outfile", text(&out)];
        run("certtool", &[&words[..], &more, &last].concat());
    }

    fn key(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        // QEMU wants certificates that permit key encipherment, and EC keys have none.
        let words = ["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out"];
        run("openssl", &[&words[..], &[text(&path)]].concat());
        path
    }

    fn template(&self, words: &str) -> PathBuf {
        let path = self.path("template");
        fs::write(&path, words).expect("the folder is ours");
        path
    }

    fn certificate(&self, key: &std::path::Path, authority: &str, words: &str, out: &str) {
        let template = self.template(&format!("{words}signing_key\nencryption_key\n"));
        let [ca, ca_key] = ["", "-key"].map(|kind| self.path(&format!("{authority}{kind}.pem")));
        let out = self.path(out);
        let words = ["--generate-certificate", "--load-privkey", text(key)];
        let more = ["--load-ca-certificate", text(&ca), "--load-ca-privkey", text(&ca_key)];
        let last = ["--template", text(&template), "--outfile", text(&out)];
        run("certtool", &[&words[..], &more, &last].concat());
    }
}
