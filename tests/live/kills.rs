//! A server of VDIs that is killed while it takes snapshots of a disk in use: what was flushed is
//! there, every snapshot is a state the disk once had, and the next server clears up.
//!
//! The victim is this program once more, told by its environment.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use orlop::control::Outcome;
use orlop::sr::DataFormat;

use super::peer::{Changer, Kind, Op, Peer, SECTOR, Sector, apply, said};
use super::rig::{MIB, Rig, Shape, may_mount, vdi};

const PLACE: &str = "ORLOP_TEST_LIVE_PLACE";
const FIRST: &str = "ORLOP_TEST_LIVE_FIRST";
const ROUNDS: u16 = 6;
/// Snapshots of one round.
const CUTS: u16 = 4;
const DISK: u64 = 8 * MIB;
const PATIENCE: Duration = Duration::from_secs(60);

/// Not a test: what is killed. Without its environment it does nothing.
#[test]
fn victim() {
    let (Ok(place), Ok(first)) = (std::env::var(PLACE), std::env::var(FIRST)) else { return };
    let mount = rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists();
    let rig = Rig::at(Path::new(&place), Shape { mount, ..Shape::default() });
    rig.done(rig.sr_attach());
    rig.attach(1);
    println!("\nready");
    let first: u16 = first.parse().unwrap();
    for number in first..first + CUTS {
        std::thread::sleep(Duration::from_millis(25));
        rig.call(rig.snapshot(1, number));
        println!("\ntaken {number}");
    }
    std::thread::sleep(PATIENCE);
}

struct Victim {
    child: Child,
    lines: Receiver<String>,
}

impl Victim {
    fn start(place: &Path, first: u16) -> Self {
        let mut child = Process::new(std::env::current_exe().unwrap())
            .args(["--exact", "kills::victim", "--nocapture", "--test-threads=1"])
            .env(PLACE, place)
            .env(FIRST, first.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let mut victim = Self { child, lines };
        let start = Instant::now();
        while victim.lines.recv_timeout(PATIENCE).unwrap() != "ready" {
            assert!(start.elapsed() < PATIENCE, "it does not come to the point");
            assert_eq!(victim.child.try_wait().unwrap(), None, "it ended");
        }
        victim
    }

    /// Kills it; gives the snapshots it had told of.
    fn kill(&mut self) -> Vec<u16> {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let told = |line: String| line.strip_prefix("taken ")?.parse().ok();
        self.lines.iter().filter_map(told).collect()
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// No test leaves a dead mount, however it ends.
struct Guard(PathBuf);

impl Drop for Guard {
    fn drop(&mut self) {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        if mounts.contains(self.0.to_str().unwrap_or_default()) {
            let _ = Process::new("umount").arg("-l").arg(&self.0).status();
        }
    }
}

/// What a client asked, and how many of its first steps a flush has made durable.
#[derive(Default)]
struct Life {
    ops: Vec<Op>,
    durable: usize,
}

fn write_until_killed(
    rig_socket: &Path,
    round: u16,
    until: Duration,
    victim: &mut Victim,
) -> (Life, Vec<u16>) {
    let mut peer = Peer::connect(rig_socket, &vdi(1).to_string()).unwrap();
    let (done, is_done) = channel();
    let writer = std::thread::spawn(move || {
        let mut life = Life::default();
        let mut state = u64::from(round) * 0x9E37_79B9 + 1;
        let mut roll = |sides: u64| {
            state =
                state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
            (state >> 33) % sides
        };
        for step in 1.. {
            let count = 1 + roll(64);
            let first = roll(DISK / SECTOR - count);
            let kind = match roll(12) {
                0 => Kind::Flush,
                1 => Kind::Zero,
                _ => Kind::Write,
            };
            let op = Op { kind, first, count, stamp: u64::from(round + 1) << 40 | step };
            let before = life.ops.len();
            life.ops.push(op);
            if peer.carry_out(&op).is_err() {
                break;
            }
            if kind == Kind::Flush {
                life.durable = before;
            }
        }
        done.send(life).unwrap();
    });
    std::thread::sleep(until);
    let taken = victim.kill();
    let life = is_done.recv_timeout(PATIENCE).unwrap();
    writer.join().unwrap();
    (life, taken)
}

/// Whether the sectors are what the first steps made of `base`, for some number of them.
fn is_a_state(sectors: &[u64], base: &[u64], ops: &[Op]) -> bool {
    let mut state: Vec<_> =
        base.iter().map(|stamp| Sector { stamp: *stamp, or_zero: false }).collect();
    let same = |state: &[Sector]| state.iter().zip(sectors).all(|(is, said)| is.is(*said));
    same(&state)
        || ops.iter().any(|op| {
            apply(&mut state, op);
            same(&state)
        })
}

#[test]
fn a_killed_server_leaves_what_was_flushed_and_snapshots_that_were_once_true() {
    if !may_mount() {
        return;
    }
    let dir = tempfile::Builder::new().prefix("orlop-live-").tempdir().unwrap();
    let _guard = Guard(dir.path().join("tree"));
    let rig = Rig::at(dir.path(), Shape::default());
    rig.done(rig.sr_create());
    rig.done(rig.sr_attach());
    rig.create(1, DISK, DataFormat::Vhd);
    let socket = rig.socket();
    rig.stop();
    let mut base = vec![0; usize::try_from(DISK / SECTOR).unwrap()];
    let mut all = 0;
    for round in 0..ROUNDS {
        let mut victim = Victim::start(dir.path(), 100 + round * CUTS);
        let until = Duration::from_millis(15 + u64::from(round * 37 % 160));
        let (life, taken) = write_until_killed(&socket, round, until, &mut victim);
        // The next server clears up.
        let rig = Rig::at(dir.path(), Shape::default());
        rig.done(rig.sr_attach());
        let Outcome::Scanned(listing) = rig.call(orlop::control::Command::SrScan { sr: rig.sr })
        else {
            panic!("a scan lists")
        };
        assert!(listing.findings.is_empty(), "{:?}", listing.findings);
        for number in 100 + round * CUTS..100 + (round + 1) * CUTS {
            let is_there = listing.vdis.iter().any(|listed| listed.uuid == vdi(number));
            assert!(is_there || !taken.contains(&number), "snapshot {number} was told of");
            if is_there {
                all += 1;
                let sectors = said(&rig.bytes(number, DISK));
                assert!(is_a_state(&sectors, &base, &life.ops), "snapshot {number} is no state");
            }
        }
        let now = said(&rig.bytes(1, DISK));
        let mut state: Vec<_> =
            base.iter().map(|stamp| Sector { stamp: *stamp, or_zero: false }).collect();
        life.ops[..life.durable].iter().for_each(|op| apply(&mut state, op));
        for (at, word) in (0_u64..).zip(&now) {
            let touches = |op: &&Op| (op.first..op.first + op.count).contains(&at);
            let later = life.ops[life.durable..].iter().filter(touches);
            let mut later = later.map(|op| if op.kind == Kind::Zero { 0 } else { op.stamp });
            let known = state[usize::try_from(at).unwrap()];
            let may = known.is(*word) || later.any(|stamp| stamp == *word);
            assert!(may, "round {round}: sector {at} says {word:#x}, not {known:?}");
        }
        println!("round {round}: {} steps, {} durable", life.ops.len(), life.durable);
        base = now;
        rig.stop();
    }
    println!("{all} snapshots");
}
