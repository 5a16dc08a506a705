//! A management socket over a control with a place for a file SR, in a directory that goes away.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use orlop::api::{self, ApiLimits, client};
use orlop::control::{Access, AttachRequest, Attacher, Control, Settings};
use orlop::sr::{Cut, Failure, Kind, SrUuid, VdiUuid};
use serde_json::Value;
use tokio::sync::oneshot;

/// Serves nothing, remembers what it was asked, and takes a VDI for used while there is a file of
/// its name in a directory.
struct Ledger {
    attached: Mutex<BTreeMap<VdiUuid, bool>>,
    in_use: PathBuf,
}

impl Attacher for Ledger {
    fn attach(&self, request: &AttachRequest) -> Result<Access, Failure> {
        // A test may want to see a call under way; sure to end.
        for _ in 0..6000 {
            if !self.in_use.join("hold").exists() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let old = self.attached.lock().unwrap().insert(request.vdi, request.read_only);
        assert_eq!(old, None, "attached twice");
        let path = format!("/run/orlop/vdi/{}/disk", request.vdi);
        let nbd_uri = format!("nbd+unix:///{}?socket=/run/orlop/nbd.sock", request.vdi);
        Ok(Access { path, nbd_uri, read_only: request.read_only })
    }

    fn detach(&self, _sr: SrUuid, vdi: VdiUuid) -> Result<(), Failure> {
        if self.in_use.join(vdi.to_string()).exists() {
            let why = "its file is open";
            return Err(Failure::new(Kind::Busy, format!("VDI {vdi}"), why));
        }
        self.attached.lock().unwrap().remove(&vdi);
        Ok(())
    }

    fn cut(&self, _sr: SrUuid, _vdi: VdiUuid) -> Option<Box<dyn Cut + '_>> {
        None
    }
}

/// The daemon of a test.
pub(crate) struct Daemon {
    pub(crate) dir: tempfile::TempDir,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<std::io::Result<()>>>,
}

impl Daemon {
    pub(crate) fn new() -> Self {
        Self::with("one", ApiLimits::default())
    }

    /// The daemon of a host.
    pub(crate) fn with(host: &str, limits: ApiLimits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings {
            host: host.to_owned(),
            state: dir.path().join("state"),
            mounts: dir.path().join("mounts"),
            patience: Duration::from_secs(30),
        };
        let in_use = dir.path().join("in-use");
        std::fs::create_dir(&in_use).unwrap();
        let ledger = Arc::new(Ledger { attached: Mutex::default(), in_use });
        let control = Arc::new(Control::new(settings, ledger).unwrap());
        let listener = std::os::unix::net::UnixListener::bind(dir.path().join("api.sock")).unwrap();
        listener.set_nonblocking(true).unwrap();
        let (end, ended) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            runtime.block_on(async move {
                let listener = tokio::net::UnixListener::from_std(listener)?;
                let until = async move { drop(ended.await) };
                api::serve(listener, control, limits, until).await
            })
        });
        Self { dir, end: Some(end), thread: Some(thread) }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("api.sock")
    }

    pub(crate) fn location(&self) -> PathBuf {
        self.dir.path().join("sr")
    }

    pub(crate) fn json(&self, method: &str, params: Value) -> Result<Value, client::CallError> {
        client::call(&self.socket(), method, params)
    }

    pub(crate) fn ask_to_end(&mut self) {
        drop(self.end.take());
    }

    /// Ends the server and waits for it.
    pub(crate) fn end(&mut self) {
        self.ask_to_end();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap().unwrap();
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            if !std::thread::panicking() {
                ended.unwrap().unwrap();
            }
        }
    }
}
