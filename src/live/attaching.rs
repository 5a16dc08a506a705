//! A VDI is attached: opened, given to a shard, shown; and detached: hidden, made durable, closed.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use orlop_fuse::{Bytes, DiskId, NewDisk, TreeError};
use tokio::sync::RwLockReadGuard;

use super::about::{BrokenAbout, Key, ServedAbout};
use super::failing::{self, Refusal};
use super::table::{LeafFile, Served, Shown};
use super::tree::Tree;
use super::{Live, LiveError};
use crate::control::{Access, AttachRequest};
use crate::image::{self, Format, Lineage, OpenOptions, OpenedChain};
use crate::meter::Meter;
use crate::mount::{Chain, ImageAbout, Mapped, Way, listed, users, windows};
use crate::server::{ControlError, ExportSpec, Listen, Seat};
use crate::sr::{DataFile, DataFormat, DataPlace, Failure, Kind, SrUuid};
use crate::transport::files::FileDisk;

/// For so long clients that are just leaving are waited for.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often it is looked whether they have gone.
const LOOK_EVERY: Duration = Duration::from_millis(5);

impl Live {
    /// Keeps [`Live::stop`] from beginning for as long as it lives.
    pub(super) fn at_work(&self, key: Key) -> Result<RwLockReadGuard<'_, bool>, Failure> {
        let ended = self.ended.blocking_read();
        if *ended { Err(failing::ended(key)) } else { Ok(ended) }
    }

    pub(super) fn attach_vdi(&self, request: &AttachRequest) -> Result<Access, Failure> {
        let key = Key { sr: request.sr, vdi: request.vdi };
        let _at_work = self.at_work(key)?;
        if let Some(served) = self.vdis.served(key) {
            return Ok(served.access.clone());
        }
        self.forget_broken(key);
        match self.open_and_show(key, request) {
            Ok(served) => {
                let access = served.access.clone();
                self.vdis.put(key, Shown::Served(Arc::new(served)));
                Ok(access)
            }
            Err(Refusal::Image(error)) => {
                self.show_broken(key, BrokenAbout::new(key, &request.chain, &error));
                Err(failing::of_image(key, &error))
            }
            Err(Refusal::Other(failure)) => Err(failure),
        }
    }

    fn open_and_show(&self, key: Key, request: &AttachRequest) -> Result<Served, Refusal> {
        let options = options_for(&request.chain, request.read_only)?;
        let opened = image::open(&options)?;
        for notice in &opened.notices {
            tracing::warn!(vdi = %key.vdi, "{notice}");
        }
        check_files(key, request, &opened)?;
        let leaf = leaf_of(key, &opened)?;
        let chain = Chain::in_lines(&opened.layers);
        let spec = ExportSpec::new(key.vdi.to_string(), options);
        let added = self.runtime.block_on(self.control.add_opened(spec, opened));
        let seat = added.map_err(|error| failing::of_control(key, error))?;
        let served = self.show(key, &seat, leaf, chain);
        if served.is_err() {
            // The first failure is the one to tell.
            let _not_written = self.runtime.block_on(self.control.close(seat));
        }
        Ok(served?)
    }

    fn show(
        &self,
        key: Key,
        seat: &Arc<Seat>,
        leaf: Option<Arc<LeafFile>>,
        chain: Chain,
    ) -> Result<Served, Failure> {
        let id = self.vdis.fresh_id();
        let nbd_uri = Listen::Unix(self.settings.nbd.clone()).uri(&seat.name, false);
        let nbd_uri = nbd_uri.unwrap_or_default();
        let about = about(seat, chain, &nbd_uri);
        let path = match &self.tree {
            Some(tree) => self.show_files(tree, key, id, seat, &about)?,
            None => String::new(),
        };
        let access = Access { path, nbd_uri, read_only: seat.read_only };
        Ok(Served { id, seat: Arc::clone(seat), access, leaf, about })
    }

    fn show_files(
        &self,
        tree: &Tree,
        key: Key,
        id: DiskId,
        seat: &Arc<Seat>,
        about: &Arc<ImageAbout>,
    ) -> Result<String, Failure> {
        let (windows, notices) = self.runtime.block_on(windows(&self.control, seat));
        for notice in notices {
            tracing::warn!(vdi = %key.vdi, "{notice}");
        }
        let mapped = Arc::new(Mapped::new(id, seat.extent()));
        let disk = FileDisk {
            mailbox: seat.disk.mailbox.clone(),
            tag: seat.disk.tag,
            export: seat.key,
            window: seat.extent(),
            about: Arc::new(ServedAbout { key, image: Arc::clone(about) }),
            passing: None,
            watch: Some(Arc::clone(&mapped) as _),
            meter: Arc::clone(&about.meter),
        };
        let place = || format!("VDI {}", key.vdi);
        let opened = tree.files().open(id, disk);
        opened.map_err(|refused| Failure::new(Kind::Busy, place(), refused))?;
        let disk = NewDisk {
            id,
            label: key.vdi.to_string().into_bytes(),
            len: Bytes(seat.extent().len.get()),
            read_only: seat.read_only,
            windows,
            modified: modified(&seat.disk.path),
        };
        match tree.add(&disk, &mapped) {
            Ok(name) => {
                Ok(tree.place(&name).join(orlop_fuse::tree::DISK_NAME).to_string_lossy().into())
            }
            Err(error) => {
                // It has nothing to make durable yet.
                let _closed = tree.files().close(id);
                Err(Failure::new(Kind::Unsupported, place(), error))
            }
        }
    }

    /// What is told of a VDI whose images do not make a disk.
    pub(super) fn tell_broken(&self, key: Key, file: &DataFile, failure: &Failure) {
        let Ok(_at_work) = self.at_work(key) else { return };
        if self.tree.is_none() || self.vdis.served(key).is_some() {
            return;
        }
        self.forget_broken(key);
        // Who opens them knows best what is wrong.
        let files = std::slice::from_ref(file);
        let opened = options_for(files, true).map(|options| image::open(&options));
        let about = match opened {
            Ok(Err(error)) => BrokenAbout::new(key, files, &error),
            Ok(Ok(_)) | Err(_) => BrokenAbout::of_failure(key, files, failure),
        };
        self.show_broken(key, about);
    }

    /// Shows why a VDI is not attached, until it is or is detached.
    fn show_broken(&self, key: Key, about: BrokenAbout) {
        let (Some(tree), Some(mailbox)) = (&self.tree, self.mailboxes.first()) else { return };
        let id = self.vdis.fresh_id();
        tree.files().describe(id, mailbox.bell(), Arc::new(about));
        let disk = NewDisk {
            id,
            label: key.vdi.to_string().into_bytes(),
            len: Bytes(0),
            read_only: true,
            windows: Vec::new(),
            modified: SystemTime::now(),
        };
        match tree.add_broken(&disk) {
            Ok(_) => self.vdis.put(key, Shown::Broken(id)),
            Err(error) => {
                tracing::warn!(vdi = %key.vdi, %error, "it is not shown what is wrong with it");
                let _closed = tree.files().close(id);
            }
        }
    }

    pub(super) fn forget_all_broken(&self, sr: SrUuid) {
        for key in self.vdis.broken_of(sr) {
            let Ok(_at_work) = self.at_work(key) else { return };
            self.forget_broken(key);
        }
    }

    fn forget_broken(&self, key: Key) {
        let Some(Shown::Broken(id)) = self.vdis.find(key) else { return };
        if let Some(tree) = &self.tree {
            if let Err(error) = tree.remove(id) {
                tracing::debug!(%error, "a broken VDI was not shown any more");
            }
            let _closed = tree.files().close(id);
        }
        self.vdis.remove(key);
    }

    pub(super) fn detach_vdi(&self, key: Key) -> Result<(), Failure> {
        let _at_work = self.at_work(key)?;
        self.forget_broken(key);
        let Some(served) = self.vdis.served(key) else { return Ok(()) };
        self.hide(key, &served)?;
        self.vdis.remove(key);
        let closed = self.runtime.block_on(self.close(&served));
        closed.map_err(|error| {
            let why = format!("it is detached, but {error}");
            Failure::new(Kind::Io, format!("VDI {}", key.vdi), why)
        })
    }

    /// Takes a VDI from everybody's sight, unless somebody uses it.
    fn hide(&self, key: Key, served: &Served) -> Result<(), Failure> {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.try_to_hide(served) {
                Ok(()) => return Ok(()),
                // A client that has just hung up is one until the shard has heard of it.
                Err(()) if Instant::now() < until => std::thread::sleep(LOOK_EVERY),
                Err(()) => return Err(failing::busy(key, self.users_of(served))),
            }
        }
    }

    fn try_to_hide(&self, served: &Served) -> Result<(), ()> {
        let Served { seat, id, .. } = served;
        let opened = |tree: &Arc<Tree>| {
            let usage = tree.usage(*id);
            usage.readers + usage.writers > 0
        };
        if seat.is_in_use() || self.tree.as_ref().is_some_and(opened) {
            return Err(());
        }
        // First hidden, then looked at again: nobody can have come in between.
        let registry = self.control.registry();
        let was_shown = registry.hide(seat);
        let free = !seat.is_in_use()
            && self
                .tree
                .as_ref()
                .is_none_or(|tree| !matches!(tree.remove(*id), Err(TreeError::InUse(..))));
        if free {
            return Ok(());
        }
        if was_shown && let Err(error) = registry.insert(Arc::clone(seat)) {
            tracing::error!(export = seat.name, %error, "it is shown no longer");
        }
        Err(())
    }

    /// Who uses a VDI, as far as can be told.
    fn users_of(&self, served: &Served) -> String {
        let connections = served.seat.connections();
        let mut who: Vec<String> = connections
            .iter()
            .map(|connection| format!("the NBD client {}", connection.peer))
            .collect();
        if connections.is_empty() && served.seat.is_in_use() {
            who.push("an NBD client that is connecting".to_owned());
        }
        if let Some(tree) = &self.tree {
            let usage = tree.usage(served.id);
            if usage.readers + usage.writers > 0 {
                let users = listed(&users(&tree.place(&served.seat.name)));
                let (readers, writers) = (usage.readers, usage.writers);
                who.push(format!(
                    "{users} ({readers} files open to be read, {writers} to be written)"
                ));
            }
        }
        who.join("; ")
    }

    /// Closes what is hidden: everything that was answered is durable then.
    pub(super) async fn close(&self, served: &Served) -> Result<(), LiveError> {
        let not_durable = |error: &dyn std::fmt::Display| LiveError::NotDurable(error.to_string());
        let files = self.tree.as_ref().map_or(Ok(()), |tree| tree.files().close(served.id));
        let closed = self.control.close(Arc::clone(&served.seat)).await;
        files.map_err(|error| not_durable(&error))?;
        closed.map_err(|error| match error {
            ControlError::NotDurable(why) => LiveError::NotDurable(why),
            other => not_durable(&other),
        })
    }
}

/// How the image on top is opened.
fn options_for(chain: &[DataFile], read_only: bool) -> Result<OpenOptions, Failure> {
    let Some(top) = chain.first() else {
        return Err(Failure::new(Kind::Corrupt, "VDI", "it has no data file"));
    };
    Ok(OpenOptions {
        format: Some(format_of(top.format)),
        read_only,
        // Of the SR's own files, whatever they are called.
        allow_raw_parent: true,
        // Whether it has children was looked at: the catalogue knows.
        force_rw_parent: true,
        ..OpenOptions::new(path_of(top)?)
    })
}

pub(super) const fn format_of(format: DataFormat) -> Format {
    match format {
        DataFormat::Vhd => Format::Vhd,
        DataFormat::Raw => Format::Raw,
    }
}

pub(super) fn path_of(file: &DataFile) -> Result<PathBuf, Failure> {
    match &file.place {
        DataPlace::Path(path) => Ok(path.clone()),
        _ => {
            let why = "its data can be reached through its SR only";
            Err(Failure::new(Kind::Unsupported, format!("VDI {}", file.vdi), why))
        }
    }
}

/// The chain that was opened is the one the SR knows, and no parent of it lies elsewhere.
fn check_files(key: Key, request: &AttachRequest, opened: &OpenedChain) -> Result<(), Failure> {
    let place = || format!("VDI {}", key.vdi);
    for (index, layer) in opened.layers.iter().enumerate() {
        let known = request.chain.get(index).map(path_of).transpose()?;
        // Both without links: the SR's is, and opening follows none but the first.
        let known = known.map(|path| std::fs::canonicalize(&path).unwrap_or(path));
        if known.as_ref() != Some(&layer.path) {
            let found = layer.path.display();
            let why = match known {
                Some(known) => format!("image {index} of it is {found}, not {}", known.display()),
                None => format!("{found} is not among the SR's images of it"),
            };
            return Err(Failure::new(Kind::Corrupt, place(), why));
        }
    }
    if opened.layers.len() < request.chain.len() {
        let (found, known) = (opened.layers.len(), request.chain.len());
        let why = format!("it opens with {found} images, and the SR knows {known}");
        return Err(Failure::new(Kind::Corrupt, place(), why));
    }
    Ok(())
}

fn leaf_of(key: Key, opened: &OpenedChain) -> Result<Option<Arc<LeafFile>>, Failure> {
    let Some(top) = opened.layers.first().filter(|_| !opened.read_only) else { return Ok(None) };
    let fd = top.fd.try_clone();
    let fd = fd.map_err(|error| Failure::io(format!("VDI {}", key.vdi), "open it", &error))?;
    Ok(Some(Arc::new(LeafFile { fd, lineage: Lineage::of(&top.content) })))
}

fn about(seat: &Arc<Seat>, chain: Chain, nbd: &str) -> Arc<ImageAbout> {
    let way = OnceLock::new();
    let why = "NBD clients may use the disk too".to_owned();
    let _first = way.set(Way { name: "classic", why });
    Arc::new(ImageAbout {
        chain,
        seat: Arc::clone(seat),
        meter: Arc::new(Meter::new()),
        overlay: None,
        partition: None,
        read_only_because: None,
        nbd: Some(nbd.to_owned()),
        way,
        made: OnceLock::new(),
        since: Instant::now(),
    })
}

fn modified(path: &Path) -> SystemTime {
    let modified = std::fs::metadata(path).and_then(|meta| meta.modified());
    modified.unwrap_or(SystemTime::UNIX_EPOCH)
}
