//! A control with one SR, in a directory or on a loop device, and images that others might have
//! made.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command as Process;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use orlop::control::command::About;
use orlop::control::{
    Access, AttachMode, AttachRequest, Attacher, Code, Command, Control, Listing, Outcome, Settings,
};
use orlop::engine::units::{ByteLen, DiskOffset};
use orlop::sr::{
    Cut, DataFile, DataFormat, DeviceConfig, Directory, Failure, Kind, OfflineDisk, SrUuid, Store,
    VdiUuid,
};
use vhd::{CreateOptions, Footer, NewLayout, NewParent, Piece, Plan};

use super::foreign;

pub(crate) fn vdi(number: u8) -> VdiUuid {
    VdiUuid::from_bytes([number; 16])
}

pub(crate) fn size_of(sectors: u64) -> ByteLen {
    ByteLen::new(sectors * 512)
}

/// Serves nothing and remembers what it was asked.
#[derive(Default)]
struct Ledger(Mutex<BTreeMap<VdiUuid, bool>>, Mutex<Vec<VdiUuid>>);

/// The VDI whose last bytes cannot be made durable when it is detached.
pub(crate) const LOSES_ITS_LAST_BYTES: u8 = 66;

impl Attacher for Ledger {
    fn attach(&self, request: &AttachRequest) -> Result<Access, Failure> {
        assert!(!request.chain.is_empty());
        let old = self.0.lock().unwrap().insert(request.vdi, request.read_only);
        assert_eq!(old, None, "attached twice");
        let (path, nbd_uri) = (format!("/fuse/{}", request.vdi), format!("nbd:{}", request.vdi));
        Ok(Access { path, nbd_uri, read_only: request.read_only })
    }

    fn detach(&self, _sr: SrUuid, gone: VdiUuid) -> Result<(), Failure> {
        let was_served = self.0.lock().unwrap().remove(&gone).is_some();
        if was_served && gone == vdi(LOSES_ITS_LAST_BYTES) {
            return Err(Failure::new(Kind::Io, format!("VDI {gone}"), "it is detached, but"));
        }
        Ok(())
    }

    fn broken(&self, _sr: SrUuid, file: &DataFile, _failure: &Failure) {
        self.1.lock().unwrap().push(file.vdi);
    }

    fn cut(&self, _sr: SrUuid, _vdi: VdiUuid) -> Option<Box<dyn Cut + '_>> {
        None
    }
}

/// A control and its SR.
pub(crate) struct Lot {
    pub(crate) dir: Arc<tempfile::TempDir>,
    pub(crate) sr: SrUuid,
    pub(crate) control: Control,
    ledger: Arc<Ledger>,
    device: Option<PathBuf>,
    host: &'static str,
}

impl Lot {
    pub(crate) fn new() -> Self {
        Self::with(Arc::new(tempfile::tempdir().unwrap()), SrUuid::random(), None, "host")
    }

    pub(crate) fn on_device(device: &Loop) -> Self {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        Self::with(dir, SrUuid::random(), Some(device.node.clone()), "host")
    }

    fn with(
        dir: Arc<tempfile::TempDir>,
        sr: SrUuid,
        device: Option<PathBuf>,
        host: &'static str,
    ) -> Self {
        let settings = Settings {
            host: host.to_owned(),
            state: dir.path().join(format!("state-{host}")),
            mounts: dir.path().join("mounts"),
            patience: Duration::ZERO,
        };
        let ledger = Arc::new(Ledger::default());
        let control = Control::new(settings, Arc::clone(&ledger) as Arc<dyn Attacher>).unwrap();
        Self { dir, sr, control, ledger, device, host }
    }

    /// As after the end of the process.
    pub(crate) fn restarted(self) -> Self {
        Self::with(Arc::clone(&self.dir), self.sr, self.device.clone(), self.host)
    }

    /// Another host with the same directory.
    pub(crate) fn other_host(&self) -> Self {
        let other = Self::with(Arc::clone(&self.dir), self.sr, None, "other");
        other.done(other.sr_attach());
        other
    }

    pub(crate) fn location(&self) -> PathBuf {
        match self.device {
            None => self.dir.path().join("sr"),
            Some(_) => self.dir.path().join("mounts").join(self.sr.to_string()),
        }
    }

    pub(crate) fn data(&self, number: u8) -> PathBuf {
        self.location().join(format!("{}.vhd", vdi(number)))
    }

    pub(crate) fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.location()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    pub(crate) fn call(&self, command: Command) -> Outcome {
        let shown = format!("{command:?}");
        self.control.call(command).unwrap_or_else(|error| panic!("{shown}: {error}"))
    }

    pub(crate) fn done(&self, command: Command) {
        assert_eq!(self.call(command), Outcome::Done);
    }

    pub(crate) fn fails(&self, command: Command, code: Code) {
        let shown = format!("{command:?}");
        let error = match self.control.call(command) {
            Ok(outcome) => panic!("{shown} gave {outcome:?}, not {code}"),
            Err(error) => error,
        };
        assert_eq!(error.code, code, "{shown}: {error}");
        let failure = error.failure;
        for part in [failure.what, failure.place, failure.why, failure.remedy] {
            assert!(!part.is_empty(), "{shown} does not say everything");
        }
    }

    pub(crate) fn scan(&self) -> Listing {
        match self.call(Command::SrScan { sr: self.sr }) {
            Outcome::Scanned(listing) => *listing,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn attached_read_only(&self, number: u8) -> Option<bool> {
        self.ledger.0.lock().unwrap().get(&vdi(number)).copied()
    }

    /// The broken VDIs whose files somebody would open to tell what is wrong.
    pub(crate) fn told_broken(&self) -> Vec<VdiUuid> {
        self.ledger.1.lock().unwrap().clone()
    }

    fn config(&self) -> (String, DeviceConfig) {
        let (kind, name, value) = match &self.device {
            None => ("file", "location", self.location()),
            Some(device) => ("ext", "device", device.clone()),
        };
        let mut config = BTreeMap::from([(name.to_owned(), value.to_str().unwrap().to_owned())]);
        if self.host != "host" {
            config.insert("shared".to_owned(), "true".to_owned());
        }
        (kind.to_owned(), DeviceConfig(config))
    }

    /// As on a host that knows of others.
    pub(crate) fn sr_attach_shared(&self) -> Command {
        let (driver, DeviceConfig(mut config)) = self.config();
        config.insert("shared".to_owned(), "true".to_owned());
        Command::SrAttach { sr: self.sr, driver, config: DeviceConfig(config) }
    }

    pub(crate) fn sr_create(&self) -> Command {
        let (driver, config) = self.config();
        let about = About { label: "lot".to_owned(), ..About::default() };
        Command::SrCreate { sr: self.sr, driver, config, size: ByteLen::ZERO, about }
    }

    pub(crate) fn sr_create_of(&self, driver: &str, config: &[(&str, &str)]) -> Command {
        let config = config.iter().map(|(name, value)| ((*name).into(), (*value).into()));
        Command::SrCreate {
            sr: self.sr,
            driver: driver.to_owned(),
            config: DeviceConfig(config.collect()),
            size: ByteLen::ZERO,
            about: About::default(),
        }
    }

    pub(crate) fn sr_attach(&self) -> Command {
        let (driver, config) = self.config();
        Command::SrAttach { sr: self.sr, driver, config }
    }

    pub(crate) fn sr_delete(&self) -> Command {
        let (driver, config) = self.config();
        Command::SrDelete { sr: self.sr, driver, config }
    }

    pub(crate) fn attach_new(&self) {
        self.done(self.sr_create());
        self.done(self.sr_attach());
    }

    /// Leaves the device to itself.
    pub(crate) fn finish(&self) {
        self.done(Command::SrDetach { sr: self.sr });
    }

    pub(crate) fn vdi_create(&self, number: u8, sectors: u64) -> Command {
        Command::VdiCreate {
            sr: self.sr,
            vdi: Some(vdi(number)),
            size: ByteLen::new(sectors.saturating_mul(512)),
            format: DataFormat::Vhd,
            about: About { label: format!("disk {number}"), ..About::default() },
            shareable: false,
            read_only: false,
        }
    }

    pub(crate) fn create(&self, number: u8, sectors: u64) {
        assert_eq!(self.call(self.vdi_create(number, sectors)), Outcome::Vdi(vdi(number)));
    }

    pub(crate) fn delete(&self, number: u8) -> Command {
        Command::VdiDelete { sr: self.sr, vdi: vdi(number) }
    }

    pub(crate) fn attach(&self, number: u8, mode: AttachMode) -> Command {
        Command::VdiAttach { sr: self.sr, vdi: vdi(number), mode, user: None }
    }

    pub(crate) fn detach(&self, number: u8) -> Command {
        Command::VdiDetach { sr: self.sr, vdi: vdi(number) }
    }

    pub(crate) fn resize(&self, number: u8, sectors: u64) -> Command {
        Command::VdiResize { sr: self.sr, vdi: vdi(number), size: size_of(sectors) }
    }

    pub(crate) fn clone(&self, from: u8, to: u8) -> Command {
        let (source, dest) = (vdi(from), Some(vdi(to)));
        Command::VdiClone { sr: self.sr, source, dest, about: None }
    }

    pub(crate) fn snapshot(&self, from: u8, to: u8) -> Command {
        let (source, dest) = (vdi(from), Some(vdi(to)));
        Command::VdiSnapshot { sr: self.sr, source, dest, about: None }
    }

    pub(crate) fn lock(&self, number: u8, user: &str, force: bool) -> Command {
        let user = user.to_owned();
        Command::VdiLock { sr: self.sr, vdi: vdi(number), force, user, lease_seconds: None }
    }

    pub(crate) fn unlock(&self, number: u8, user: &str) -> Command {
        Command::VdiUnlock { sr: self.sr, vdi: vdi(number), user: user.to_owned() }
    }

    fn disk(&self, number: u8, write: bool) -> OfflineDisk {
        let listing = self.scan();
        let all: Vec<_> = listing.vdis.iter().chain(&listing.hidden).collect();
        let mut chain = Vec::new();
        let mut next = Some(vdi(number));
        while let Some(uuid) = next {
            let link = all.iter().find(|listed| listed.uuid == uuid).unwrap();
            chain.push((format!("{uuid}.{}", link.format), link.format));
            next = link.parent;
        }
        let store: Arc<dyn Store> = Arc::new(Directory::open(&self.location()).unwrap());
        OfflineDisk::open(store, &chain, !write).unwrap()
    }

    /// Writes at the start of a sector.
    pub(crate) fn write(&self, number: u8, sector: u64, text: &[u8]) {
        let mut disk = self.disk(number, true);
        disk.write(DiskOffset::new(sector * 512), text).unwrap();
        disk.flush().unwrap();
    }

    pub(crate) fn read(&self, number: u8, sector: u64) -> Vec<u8> {
        self.disk(number, false).read(DiskOffset::new(sector * 512), 512).unwrap()
    }
}

/// The identity in an image's footer; another than the VDI's.
pub(crate) fn identity(number: u8) -> [u8; 16] {
    [number ^ 0x80; 16]
}

pub(crate) fn plain(uuid: [u8; 16], sectors: u64, parent: Option<([u8; 16], &str)>) -> Plan {
    let block_bytes = vhd::create::DEFAULT_BLOCK_BYTES;
    let layout = match parent {
        None => NewLayout::Dynamic { block_bytes },
        Some((uuid, name)) => {
            let raw = uuid == [0; 16];
            // The planner refuses names that lead away, so they are put in afterwards.
            let relative_path =
                if name.contains(['/', '\\']) { "x".to_owned() } else { name.into() };
            let parent = NewParent { uuid, raw, relative_path, timestamp: 0 };
            NewLayout::Differencing { block_bytes, parent }
        }
    };
    let size = vhd::ByteLen::new(sectors * 512);
    let mut plan = vhd::create(&CreateOptions { size, layout, uuid, timestamp: 1 }).unwrap();
    if let Some((_, name)) = parent
        && name.contains(['/', '\\'])
    {
        rename_parent(&mut plan, name);
    }
    plan
}

fn rename_parent(plan: &mut Plan, name: &str) {
    for piece in &mut plan.pieces {
        if let Piece::Bytes { bytes, .. } = piece
            && let Ok(mut header) = vhd::DynamicHeader::parse(bytes)
        {
            header.parent_name = [0; 512];
            let units = name.encode_utf16().flat_map(u16::to_be_bytes);
            header.parent_name.iter_mut().zip(units).for_each(|(to, from)| *to = from);
            *bytes = header.to_bytes().to_vec();
        }
    }
}

pub(crate) fn image_of(number: u8, sectors: u64, parent: Option<([u8; 16], &str)>) -> Plan {
    plain(identity(number), sectors, parent)
}

/// An image as another program would make it.
pub(crate) fn image(
    sectors: u64,
    app: &[u8; 4],
    hidden: bool,
    parent: Option<([u8; 16], &str)>,
) -> Plan {
    let uuid = if hidden { identity(1) } else { *VdiUuid::random().bytes().first_chunk().unwrap() };
    let mut plan = plain(uuid, sectors, parent);
    for piece in &mut plan.pieces {
        if let Piece::Bytes { bytes, .. } = piece
            && let Ok(footer) = Footer::parse(bytes)
        {
            let creator = vhd::Creator { app: *app, version: 0x0001_0000, os: [0; 4] };
            let footer = Footer { creator, hidden: u8::from(hidden), ..footer };
            *bytes = footer.to_bytes().to_vec();
        }
    }
    plan
}

/// A child of the hidden [`image`], as XenServer leaves two of.
pub(crate) fn child_of(sectors: u64, base: VdiUuid, number: u8) -> Plan {
    let name = format!("{base}.vhd");
    plain(identity(number), sectors, Some((identity(1), &name)))
}

pub(crate) fn write_plan(dir: &Path, uuid: VdiUuid, plan: &Plan) {
    let file = std::fs::File::create(dir.join(format!("{uuid}.vhd"))).unwrap();
    file.set_len(plan.file_len.get()).unwrap();
    for piece in &plan.pieces {
        match piece {
            Piece::Bytes { at, bytes } => file.write_all_at(bytes, at.get()).unwrap(),
            Piece::Fill { at, len, byte } => {
                let bytes = vec![*byte; len.get() as usize];
                file.write_all_at(&bytes, at.get()).unwrap();
            }
        }
    }
}

/// Fills a file system to the last block.
pub(crate) fn stuff(path: &Path) {
    use std::io::Write;
    let mut file = std::fs::File::create(path).unwrap();
    for size in [1 << 20, 4096, 512] {
        while file.write_all(&vec![1; size]).and_then(|()| file.sync_all()).is_ok() {}
    }
}

/// A loop device over a file, gone when dropped.
pub(crate) struct Loop {
    pub(crate) node: PathBuf,
    file: tempfile::NamedTempFile,
}

impl Loop {
    /// `None`, said aloud, where loop devices or mkfs.ext4 are not to be had.
    pub(crate) fn new(prefix: &str, bytes: u64) -> Option<Self> {
        if !foreign::have(&["losetup", "mkfs.ext4", "e2fsck"]) {
            return None;
        }
        let file = tempfile::Builder::new().prefix(prefix).tempfile().unwrap();
        file.as_file().set_len(bytes).unwrap();
        let made = foreign::run_any("losetup", &[Path::new("-f"), "--show".as_ref(), file.path()]);
        if !made.status.success() {
            println!("SKIPPED: no loop device: {}", String::from_utf8_lossy(&made.stderr));
            return None;
        }
        let node = PathBuf::from(String::from_utf8_lossy(&made.stdout).trim());
        Some(Self { node, file })
    }

    pub(crate) fn fsck(&self) {
        foreign::run("e2fsck", &["-fn".as_ref(), self.node.as_path()]);
    }

    /// Has another program take it.
    pub(crate) fn given_to(&self, tool: &str, args: &[&str]) {
        let mut command = Process::new(tool);
        command.args(args).arg(&self.node).stdin(std::process::Stdio::null());
        let taken = command.output().unwrap();
        assert!(taken.status.success(), "{tool}: {}", String::from_utf8_lossy(&taken.stderr));
    }

    /// Its first MiB.
    pub(crate) fn head(&self) -> Vec<u8> {
        use std::io::Read;
        let mut head = Vec::new();
        let device = std::fs::File::open(&self.node).unwrap();
        device.take(1 << 20).read_to_end(&mut head).unwrap();
        head
    }

    pub(crate) fn blank(&self) {
        foreign::run("blkdiscard", &["-f".as_ref(), self.node.as_path()]);
    }

    /// Where it is mounted.
    pub(crate) fn mounts(&self) -> Vec<String> {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let node = self.node.to_str().unwrap_or_default();
        let ours = mounts.lines().filter(|line| line.split(' ').next() == Some(node));
        ours.filter_map(|line| line.split(' ').nth(1)).map(str::to_owned).collect()
    }

    pub(crate) fn is_zero(&self) -> bool {
        std::fs::read(self.file.path()).unwrap().iter().all(|byte| *byte == 0)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // A test that failed may have left it mounted.
        for place in self.mounts() {
            let _ = Process::new("umount").arg(place).status();
        }
        let _ = Process::new("losetup").arg("-d").arg(&self.node).status();
    }
}
