//! What the verbs of a repository cost, and how that grows with the VDIs in it. Nothing is served.
//! `cargo bench --bench repositories`, or with numbers of VDIs behind `--`.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use orlop::control::command::About;
use orlop::control::{Access, AttachMode, AttachRequest, Attacher, Command, Control, Settings};
use orlop::engine::units::ByteLen;
use orlop::sr::{Cut, DataFormat, DeviceConfig, Failure, SrUuid, VdiUuid};

type Done<T = ()> = Result<T, Box<dyn Error>>;

/// VDIs in a chain, as an SR with backups has them.
const CHAIN: usize = 5;
/// Turns of which the median is told.
const TURNS: usize = 9;

/// Serves nothing, but says it does.
struct Nobody;

impl Attacher for Nobody {
    fn attach(&self, request: &AttachRequest) -> Result<Access, Failure> {
        let (path, nbd_uri) = (request.vdi.to_string(), String::new());
        Ok(Access { path, nbd_uri, read_only: request.read_only })
    }

    fn detach(&self, _sr: SrUuid, _vdi: VdiUuid) -> Result<(), Failure> {
        Ok(())
    }

    fn cut(&self, _sr: SrUuid, _vdi: VdiUuid) -> Option<Box<dyn Cut + '_>> {
        None
    }
}

struct Lot {
    control: Control,
    sr: SrUuid,
}

impl Lot {
    fn new(place: &Path) -> Done<Self> {
        let settings = Settings {
            host: "bench".to_owned(),
            state: place.join("state"),
            mounts: place.join("mounts"),
            patience: Duration::ZERO,
        };
        let control = Control::new(settings, Arc::new(Nobody))?;
        let sr = SrUuid::from_bytes([1; 16]);
        let location = place.join("sr").display().to_string();
        let config = BTreeMap::from([("location".to_owned(), location)]);
        let (driver, about, size) = ("file".to_owned(), About::default(), ByteLen::new(0));
        let (kind, same) = (driver.clone(), config.clone());
        control.call(Command::SrCreate {
            sr,
            driver,
            config: DeviceConfig(config),
            size,
            about,
        })?;
        control.call(Command::SrAttach { sr, driver: kind, config: DeviceConfig(same) })?;
        Ok(Self { control, sr })
    }

    fn create(&self, vdi: VdiUuid, size: u64) -> Done {
        let (sr, size, format) = (self.sr, ByteLen::new(size), DataFormat::Vhd);
        let (about, vdi) = (About::default(), Some(vdi));
        let (shareable, read_only) = (false, false);
        let command = Command::VdiCreate { sr, vdi, size, format, about, shareable, read_only };
        self.control.call(command)?;
        Ok(())
    }

    fn snapshot(&self, source: VdiUuid) -> Done {
        let command = Command::VdiSnapshot { sr: self.sr, source, dest: None, about: None };
        self.control.call(command)?;
        Ok(())
    }

    fn clone_of(&self, source: VdiUuid) -> Done {
        let command = Command::VdiClone { sr: self.sr, source, dest: None, about: None };
        self.control.call(command)?;
        Ok(())
    }

    fn scan(&self) -> Done {
        self.control.call(Command::SrScan { sr: self.sr })?;
        Ok(())
    }

    fn attach_and_detach(&self, vdi: VdiUuid) -> Done<Duration> {
        let (sr, mode, user) = (self.sr, AttachMode::Auto, None);
        let begun = Instant::now();
        self.control.call(Command::VdiAttach { sr, vdi, mode, user })?;
        let took = begun.elapsed();
        self.control.call(Command::VdiDetach { sr, vdi })?;
        Ok(took)
    }
}

fn timed(act: impl FnOnce() -> Done) -> Done<Duration> {
    let begun = Instant::now();
    act()?;
    Ok(begun.elapsed())
}

/// The median, in milliseconds.
fn middle(mut turn: impl FnMut() -> Done<Duration>) -> Done<f64> {
    let mut all = (0..TURNS).map(|_| turn()).collect::<Done<Vec<_>>>()?;
    all.sort();
    Ok(all[TURNS / 2].as_secs_f64() * 1e3)
}

fn main() -> Done {
    let wanted: Vec<usize> =
        std::env::args().skip(1).filter_map(|word| word.parse().ok()).collect();
    let wanted = if wanted.is_empty() { vec![5, 500, 1000, 2500, 5000] } else { wanted };
    let place = tempfile::tempdir()?;
    let lot = Lot::new(place.path())?;
    let mut made = 0;
    println!("milliseconds, medians of {TURNS}; VHDs of 1 TiB in chains of {CHAIN}");
    println!("  VDIs   cold   scan  create  snapshot  clone  attach  delete");
    for many in wanted {
        while made < many {
            let vdi = VdiUuid::random();
            lot.create(vdi, 1 << 40)?;
            made += 1;
            for _ in 1..CHAIN.min(many - made + 1) {
                lot.snapshot(vdi)?;
                made += 1;
            }
        }
        let sr = lot.sr;
        lot.control.call(Command::SrDetach { sr })?;
        let location = place.path().join("sr").display().to_string();
        let config = BTreeMap::from([("location".to_owned(), location)]);
        let driver = "file".to_owned();
        lot.control.call(Command::SrAttach { sr, driver, config: DeviceConfig(config) })?;
        let cold = timed(|| lot.scan())?.as_secs_f64() * 1e3;
        // What was made a moment ago is read again until clocks can tell its changes.
        std::thread::sleep(Duration::from_secs(3));
        lot.scan()?;
        let scan = middle(|| timed(|| lot.scan()))?;
        let vdis: Vec<_> = (0..TURNS).map(|_| VdiUuid::random()).collect();
        let (mut a, mut b, mut c, mut d, mut e) =
            (vdis.iter(), vdis.iter(), vdis.iter(), vdis.iter(), vdis.iter());
        let next = |list: &mut std::slice::Iter<'_, VdiUuid>| *list.next().expect("as many");
        let create = middle(|| timed(|| lot.create(next(&mut a), 1 << 40)))?;
        let snapshot = middle(|| timed(|| lot.snapshot(next(&mut b))))?;
        let clone = middle(|| timed(|| lot.clone_of(next(&mut c))))?;
        let attach = middle(|| lot.attach_and_detach(next(&mut d)))?;
        let delete = middle(|| {
            let vdi = next(&mut e);
            timed(|| lot.control.call(Command::VdiDelete { sr, vdi }).map(drop).map_err(Into::into))
        })?;
        println!(
            "{many:6} {cold:6.1} {scan:6.1} {create:7.2} {snapshot:9.2} {clone:6.2} {attach:7.2} \
             {delete:7.2}"
        );
    }
    Ok(())
}
