//! A control whose VDIs are really served, with one SR in a directory of its own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use orlop::control::command::About;
use orlop::control::{
    Access, AttachMode, AttachRequest, Attacher, Code, Command, Control, Error, Outcome, Settings,
};
use orlop::engine::units::{ByteLen, DiskOffset};
use orlop::host::Aio;
use orlop::live::{Live, LiveSettings};
use orlop::sr::{
    Cut, DataFile, DataFormat, DeviceConfig, Directory, Failure, OfflineDisk, SrUuid, Store,
    VdiUuid,
};

use super::foreign;

pub(crate) const MIB: u64 = 1 << 20;

pub(crate) fn vdi(number: u16) -> VdiUuid {
    let mut bytes = [0x5a; 16];
    bytes[14..].copy_from_slice(&number.to_be_bytes());
    VdiUuid::from_bytes(bytes)
}

/// How the rig is to be.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) mount: bool,
    pub(crate) shards: usize,
    pub(crate) aio: Aio,
}

impl Default for Shape {
    fn default() -> Self {
        Self { mount: true, shards: 1, aio: Aio::Auto }
    }
}

/// Serves as it does, and notes how long that takes.
struct Timed {
    live: Arc<Live>,
    times: Arc<Mutex<Vec<Duration>>>,
}

impl Attacher for Timed {
    fn attach(&self, request: &AttachRequest) -> Result<Access, Failure> {
        let start = Instant::now();
        let attached = self.live.attach(request);
        self.times.lock().unwrap().push(start.elapsed());
        attached
    }

    fn detach(&self, sr: SrUuid, vdi: VdiUuid) -> Result<(), Failure> {
        self.live.detach(sr, vdi)
    }

    fn broken(&self, sr: SrUuid, file: &DataFile, failure: &Failure) {
        self.live.broken(sr, file, failure);
    }

    fn left(&self, sr: SrUuid) {
        self.live.left(sr);
    }

    fn cut(&self, sr: SrUuid, vdi: VdiUuid) -> Option<Box<dyn Cut + '_>> {
        self.live.cut(sr, vdi)
    }
}

/// The control, what serves, and where it all lies.
pub(crate) struct Rig {
    pub(crate) control: Arc<Control>,
    pub(crate) live: Arc<Live>,
    pub(crate) runtime: tokio::runtime::Runtime,
    pub(crate) sr: SrUuid,
    /// How long the attachments took, without what the repository does.
    pub(crate) times: Arc<Mutex<Vec<Duration>>>,
    dir: PathBuf,
    _own: Option<tempfile::TempDir>,
}

/// Whether trees of files can be mounted here.
pub(crate) fn may_mount() -> bool {
    let may = rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists();
    let in_ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
    assert!(may || !in_ci, "nothing can be mounted, and CI must not skip");
    if !may {
        println!("SKIPPED: nothing can be mounted here");
    }
    may
}

impl Rig {
    /// A new SR in a directory that goes with the rig.
    pub(crate) fn new(shape: Shape) -> Self {
        let own = tempfile::Builder::new().prefix("orlop-live-").tempdir().unwrap();
        let mut rig = Self::at(own.path(), shape);
        rig.done(rig.sr_create());
        rig.done(rig.sr_attach());
        rig._own = Some(own);
        rig
    }

    /// In a directory where there may be an SR already.
    pub(crate) fn at(dir: &Path, shape: Shape) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let settings = LiveSettings {
            mount: shape.mount.then(|| dir.join("tree")),
            nbd: dir.join("nbd"),
            nbd_mode: 0o600,
            shards: shape.shards,
            memory_mib: 128,
            aio: shape.aio,
            allow_other: false,
        };
        let live = runtime.block_on(Live::start(settings)).unwrap();
        let settings = Settings {
            host: "host".to_owned(),
            state: dir.join("state"),
            mounts: dir.join("mounts"),
            patience: Duration::from_secs(20),
        };
        let times = Arc::default();
        let timed = Timed { live: Arc::clone(&live), times: Arc::clone(&times) };
        let control = Arc::new(Control::new(settings, Arc::new(timed)).unwrap());
        let sr = SrUuid::from_bytes([7; 16]);
        Self { control, live, runtime, sr, times, dir: dir.to_owned(), _own: None }
    }

    pub(crate) fn place(&self) -> PathBuf {
        self.dir.join("sr")
    }

    pub(crate) fn tree(&self) -> PathBuf {
        self.dir.join("tree")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.join("nbd")
    }

    /// Stops all of it, and looks at what is left.
    pub(crate) fn stop(self) {
        self.runtime.block_on(self.live.stop()).unwrap();
        self.runtime.block_on(self.live.stop()).unwrap();
        assert!(!self.socket().exists(), "the socket is left");
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(!mounts.contains(self.tree().to_str().unwrap()), "the mount is left");
    }

    pub(crate) fn call(&self, command: Command) -> Outcome {
        let shown = format!("{command:?}");
        self.control.call(command).unwrap_or_else(|error| panic!("{shown}: {error}"))
    }

    pub(crate) fn done(&self, command: Command) {
        assert_eq!(self.call(command), Outcome::Done);
    }

    pub(crate) fn fails(&self, command: Command, code: Code) -> Error {
        let shown = format!("{command:?}");
        match self.control.call(command) {
            Ok(outcome) => panic!("{shown} gave {outcome:?}, not {code}"),
            Err(error) => {
                assert_eq!(error.code, code, "{shown}: {error}");
                error
            }
        }
    }

    fn config(&self) -> DeviceConfig {
        let location = self.place().to_str().unwrap().to_owned();
        DeviceConfig(BTreeMap::from([("location".to_owned(), location)]))
    }

    pub(crate) fn sr_create(&self) -> Command {
        Command::SrCreate {
            sr: self.sr,
            driver: "file".to_owned(),
            config: self.config(),
            size: ByteLen::ZERO,
            about: About::default(),
        }
    }

    pub(crate) fn sr_attach(&self) -> Command {
        Command::SrAttach { sr: self.sr, driver: "file".to_owned(), config: self.config() }
    }

    pub(crate) fn create(&self, number: u16, bytes: u64, format: DataFormat) {
        let created = self.call(Command::VdiCreate {
            sr: self.sr,
            vdi: Some(vdi(number)),
            size: ByteLen::new(bytes),
            format,
            about: About::default(),
            shareable: false,
            read_only: false,
        });
        assert_eq!(created, Outcome::Vdi(vdi(number)));
    }

    pub(crate) fn vdi_attach(&self, number: u16) -> Command {
        Command::VdiAttach { sr: self.sr, vdi: vdi(number), mode: AttachMode::Auto, user: None }
    }

    pub(crate) fn attach(&self, number: u16) -> Access {
        match self.call(self.vdi_attach(number)) {
            Outcome::Attached(access) => access,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn detach(&self, number: u16) -> Command {
        Command::VdiDetach { sr: self.sr, vdi: vdi(number) }
    }

    pub(crate) fn snapshot(&self, from: u16, to: u16) -> Command {
        let (source, dest) = (vdi(from), Some(vdi(to)));
        Command::VdiSnapshot { sr: self.sr, source, dest, about: None }
    }

    pub(crate) fn clone_vdi(&self, from: u16, to: u16) -> Command {
        let (source, dest) = (vdi(from), Some(vdi(to)));
        Command::VdiClone { sr: self.sr, source, dest, about: None }
    }

    /// The images of a VDI, its own first, as the SR's listing has them.
    pub(crate) fn chain(&self, number: u16) -> Vec<(String, DataFormat)> {
        let Outcome::Scanned(listing) = self.call(Command::SrScan { sr: self.sr }) else {
            panic!("a scan lists")
        };
        let all: Vec<_> = listing.vdis.iter().chain(&listing.hidden).collect();
        let mut chain = Vec::new();
        let mut next = Some(vdi(number));
        while let Some(uuid) = next {
            let link = all.iter().find(|listed| listed.uuid == uuid).unwrap();
            chain.push((format!("{uuid}.{}", link.format), link.format));
            next = link.parent;
        }
        chain
    }

    /// The bytes of a VDI, read from its files by the code of the repositories.
    pub(crate) fn bytes(&self, number: u16, len: u64) -> Vec<u8> {
        let store: Arc<dyn Store> = Arc::new(Directory::open(&self.place()).unwrap());
        let mut disk = OfflineDisk::open(store, &self.chain(number), true).unwrap();
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < len {
            let at = bytes.len() as u64;
            let piece = u32::try_from((len - at).min(MIB)).unwrap();
            bytes.extend(disk.read(DiskOffset::new(at), piece).unwrap());
        }
        bytes
    }
}

/// An extended attribute of a file.
pub(crate) fn attribute(path: &Path, key: &str) -> String {
    let mut value = vec![0_u8; 4096];
    let len = rustix::fs::getxattr(path, format!("user.orlop.{key}"), &mut value[..]).unwrap();
    value.truncate(len);
    String::from_utf8(value).unwrap()
}

/// Copies a file's bytes to an export, or an export to a file.
pub(crate) fn nbdcopy(from: &str, to: &str) {
    foreign::run("nbdcopy", &["--flush", from, to]);
}
