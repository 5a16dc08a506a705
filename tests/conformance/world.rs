//! The servers the cases talk to: ours with fresh images, or anyone's, named in the environment.

use std::net::ToSocketAddrs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::process::{Pid, Signal, kill_process};
use rustls::ClientConfig;
use tempfile::TempDir;

use crate::case::{Outcome, Stop};
use crate::certificates::Certificates;
use crate::foreign::{orlop, text};
use crate::link::{Address, Connector};
use crate::peer::Peer;
use crate::server::Server;
use crate::session::{Session, Style};
use crate::wire::opt;

pub(crate) const KIB: u64 = 1 << 10;
pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const GIB: u64 = 1 << 30;

/// Size of the main disk: above twice the longest request, and no multiple of anything but 512.
pub(crate) const DISK: u64 = 160 * MIB + 1536;
/// Size of the disk for lengths beyond 32 bits.
const HUGE: u64 = 64 * GIB;
/// Size of the disks of the chain.
const CHAIN: u64 = 16 * MIB;

/// Name of our exports.
pub(crate) const EXPORT: &str = "disk";

/// What the parent of the chain holds, and where.
pub(crate) const IN_PARENT: (u64, &[u8]) = (4 * MIB, &[0x70; 8192]);
/// What the leaf of the chain holds, and where.
pub(crate) const IN_LEAF: (u64, &[u8]) = (8 * MIB, &[0x1e; 8192]);

/// One export of one server.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) connector: Connector,
    pub(crate) export: String,
    pub(crate) size: u64,
}

impl Target {
    /// The export's name as it goes over the wire.
    pub(crate) fn name(&self) -> &[u8] {
        self.export.as_bytes()
    }
}

/// How our servers are started and reached.
#[derive(Clone, Debug, Default)]
pub(crate) struct Manner {
    /// Over TCP; else over a unix socket.
    pub(crate) tcp: bool,
    /// The main disk is a raw image; else a dynamic VHD.
    pub(crate) raw: bool,
    pub(crate) tls: Option<Arc<Certificates>>,
}

/// A server of its own for a case that ends it.
pub(crate) struct Own {
    pub(crate) server: Server,
    pub(crate) target: Target,
    _folder: TempDir,
}

impl Own {
    /// Asks the server to end, as a service would be.
    pub(crate) fn stop(&self) {
        let id = i32::try_from(self.server.id()).ok().and_then(Pid::from_raw);
        kill_process(id.expect("a child has an id"), Signal::TERM).expect("it is our child");
    }
}

/// Everything the cases have.
pub(crate) struct World {
    pub(crate) name: String,
    /// A writable disk with room, and nothing on it.
    pub(crate) disk: Target,
    read_only: Option<Target>,
    chain: Option<Target>,
    huge: Option<Target>,
    certificates: Option<Arc<Certificates>>,
    /// How to start a server of ours; not for others.
    manner: Option<Manner>,
    _servers: Vec<Server>,
    _folder: Option<TempDir>,
}

impl World {
    /// Our own servers.
    pub(crate) fn ours(name: &str, manner: Manner) -> Self {
        let folder = TempDir::new().expect("the temporary folder takes files");
        let path = |name: &str| folder.path().join(name);
        let disk = path(if manner.raw { "disk.raw" } else { "disk.vhd" });
        orlop(&["create", text(&disk), "-s", &DISK.to_string()]);
        let locked = path("read-only.vhd");
        orlop(&["create", text(&locked), "-s", &DISK.to_string()]);
        let huge = path("huge.vhd");
        orlop(&["create", text(&huge), "-s", &HUGE.to_string()]);
        let mut servers = Vec::new();
        let mut serve = |image: &Path, options: &[&str], size: u64| {
            let (server, target) = start(&manner, image, options, size);
            servers.push(server);
            target
        };
        let target = serve(&disk, &[], DISK);
        let read_only = Some(serve(&locked, &["--read-only"], DISK));
        let huge = Some(serve(&huge, &[], HUGE));
        let leaf = chain_of_two(&folder, &manner);
        let chain = Some(serve(&leaf, &[], CHAIN));
        let (name, manner, folder) = (name.to_owned(), Some(manner), Some(folder));
        let certificates = manner.as_ref().and_then(|manner| manner.tls.clone());
        Self {
            name,
            disk: target,
            read_only,
            chain,
            huge,
            certificates,
            manner,
            _servers: servers,
            _folder: folder,
        }
    }

    /// A server somebody else started: `CONFORMANCE_SOCKET` is its unix socket or TCP address,
    /// `CONFORMANCE_EXPORT` the name of a writable export without data, and
    /// `CONFORMANCE_READ_ONLY` the name of a read-only one, if there is one. If it insists on TLS,
    /// `CONFORMANCE_CERTIFICATES` is the folder of [`Certificates::at`].
    pub(crate) fn from_environment() -> Option<Self> {
        let socket = std::env::var("CONFORMANCE_SOCKET").ok()?;
        let address = match socket.to_socket_addrs().ok().and_then(|mut all| all.next()) {
            Some(address) if !socket.starts_with('/') => Address::Tcp(address),
            _ => Address::Unix(PathBuf::from(&socket)),
        };
        let certificates = std::env::var("CONFORMANCE_CERTIFICATES").ok();
        let certificates = certificates.map(|root| Arc::new(Certificates::at(Path::new(&root))));
        let tls = certificates.as_ref().map(|all| all.client());
        let connector = Connector { address, tls };
        let export = std::env::var("CONFORMANCE_EXPORT").unwrap_or_default();
        let target = |export: String| {
            let ask = || {
                let mut peer = Peer::open(&connector)?;
                peer.ask(opt::INFO, export.as_bytes(), &[])?.export()
            };
            let (size, _) = ask().expect("the server tells its export's size");
            Target { connector: connector.clone(), export, size }
        };
        let read_only = std::env::var("CONFORMANCE_READ_ONLY").ok().map(target);
        Some(Self {
            name: socket.clone(),
            disk: target(export),
            read_only,
            chain: None,
            huge: None,
            certificates,
            manner: None,
            _servers: Vec::new(),
            _folder: None,
        })
    }

    /// A disk that cannot be written.
    pub(crate) fn read_only(&self) -> Outcome<&Target> {
        self.read_only.as_ref().ok_or_else(|| Stop::Lacking("a read-only export".to_owned()))
    }

    /// A disk over a parent.
    pub(crate) fn chain(&self) -> Outcome<&Target> {
        self.chain.as_ref().ok_or_else(|| Stop::Lacking("a chain".to_owned()))
    }

    /// A disk whose size needs more than 32 bits; empty at first.
    pub(crate) fn huge(&self) -> Outcome<&Target> {
        self.huge.as_ref().ok_or_else(|| Stop::Lacking("a huge disk".to_owned()))
    }

    /// A server that a case may end.
    pub(crate) fn own(&self) -> Outcome<Own> {
        let manner = self.manner.as_ref().ok_or_else(|| Stop::Lacking("our own server".into()))?;
        let folder = TempDir::new()?;
        let image = folder.path().join("own.vhd");
        orlop(&["create", text(&image), "-s", &DISK.to_string()]);
        let (server, target) = start(manner, &image, &[], DISK);
        Ok(Own { server, target, _folder: folder })
    }

    /// What TLS needs, for cases about wrong certificates.
    pub(crate) fn certificates(&self) -> Outcome<&Certificates> {
        self.certificates.as_deref().ok_or_else(|| Stop::Lacking("certificates".into()))
    }
}

/// Starts a server and tells how to reach it.
fn start(manner: &Manner, image: &Path, options: &[&str], size: u64) -> (Server, Target) {
    let mut options = [options, &["--export", EXPORT]].concat();
    if let Some(certificates) = &manner.tls {
        options.extend(["--tls-certs", text(certificates.server_folder())]);
    }
    let server = if manner.tcp {
        Server::start_tcp(image, &options)
    } else {
        Server::start(image, &options)
    };
    let tls: Option<Arc<ClientConfig>> = manner.tls.as_ref().map(|all| all.client());
    let connector = Connector { address: address_of(server.uri()), tls };
    (server, Target { connector, export: EXPORT.to_owned(), size })
}

/// What a URI of ours says: `...+unix:///NAME?socket=PATH` or `...://HOST:PORT/NAME`.
fn address_of(uri: &str) -> Address {
    if let Some((_, path)) = uri.split_once("socket=") {
        return Address::Unix(PathBuf::from(path));
    }
    let place = uri.split_once("://").map_or(uri, |(_, rest)| rest);
    let place = place.split_once('/').map_or(place, |(place, _)| place);
    let mut all = place.to_socket_addrs().expect("the URI has a host and a port");
    Address::Tcp(all.next().expect("a numeric address is one"))
}

/// A leaf over a parent, with something in each.
fn chain_of_two(folder: &TempDir, manner: &Manner) -> PathBuf {
    let parent = folder.path().join("parent.vhd");
    let leaf = folder.path().join("leaf.vhd");
    orlop(&["create", text(&parent), "-s", &CHAIN.to_string()]);
    fill(manner, &parent, IN_PARENT);
    orlop(&["create", text(&leaf), "--parent", text(&parent)]);
    fill(manner, &leaf, IN_LEAF);
    leaf
}

fn fill(manner: &Manner, image: &Path, (offset, bytes): (u64, &[u8])) {
    let (server, target) = start(manner, image, &[], CHAIN);
    let written = Session::start(&target, Style::Simple).and_then(|mut session| {
        session.write(offset, bytes)?;
        session.leave()
    });
    assert!(written.is_ok(), "the chain cannot be filled: {:?}", written.err());
    server.close();
}
