//! The credentials of `serve`: certificates in a directory, or pre-shared keys in a file.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;

use crate::tls::{ClientVerify, Tls};

/// Who the server is, and who its clients are.
#[derive(Debug, Args)]
#[command(next_help_heading = "TLS")]
pub(super) struct TlsOptions {
    /// Require TLS, with the certificates in this directory: ca-cert.pem, server-cert.pem,
    /// server-key.pem and, if there is one, ca-crl.pem
    #[arg(long, value_name = "DIR", conflicts_with = "tls_psk")]
    tls_certs: Option<PathBuf>,
    /// Ask clients for no certificate
    #[arg(long, requires = "tls_certs")]
    tls_no_client_certs: bool,
    /// Require TLS, with the keys in this file of lines USER:HEXKEY (needs a build with `psk`)
    #[arg(long, value_name = "FILE")]
    tls_psk: Option<PathBuf>,
}

impl TlsOptions {
    /// Reads them. `None`: there are none, and connections are in the clear.
    pub(super) fn load(&self) -> Result<Option<Tls>> {
        let loaded = if let Some(place) = &self.tls_certs {
            let verify =
                if self.tls_no_client_certs { ClientVerify::Off } else { ClientVerify::Required };
            Tls::from_directory(place, verify).context("--tls-certs")?
        } else if let Some(file) = &self.tls_psk {
            Tls::from_psk_file(file).context("--tls-psk")?
        } else {
            return Ok(None);
        };
        let (tls, notices) = loaded;
        for notice in notices {
            tracing::warn!("{notice}");
        }
        Ok(Some(tls))
    }

    /// Whether nobody can prove who it is.
    pub(super) const fn knows_nobody(&self) -> bool {
        self.tls_no_client_certs
    }

    /// What must stay readable for the credentials to be read again.
    pub(super) fn place(&self) -> Option<&Path> {
        self.tls_certs.as_deref().or(self.tls_psk.as_deref())
    }
}
