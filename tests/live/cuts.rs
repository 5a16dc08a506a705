//! Snapshots of disks in use: what they hold, and that their clients notice nothing.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command as Process, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use orlop::host::Aio;
use orlop::sr::DataFormat;

use super::foreign;
use super::peer::{Changer, Filed, Kind, Op, Peer, SECTOR, Sector, apply, said};
use super::rig::{MIB, Rig, Shape, may_mount, nbdcopy, vdi};

/// Sectors of one client: a block and a half of a VHD, so that blocks are shared.
const PART: u64 = 6144;
const CLIENTS: u64 = 4;
const DISK: u64 = PART * CLIENTS * SECTOR;

/// A client, and all it did so far.
struct Writer {
    /// Steps that were begun; all but perhaps the last were answered.
    begun: Arc<Mutex<Vec<Op>>>,
    answered: Arc<Mutex<usize>>,
    thread: JoinHandle<()>,
}

struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        (self.0 >> 33) % sides
    }
}

impl Writer {
    fn start(number: u64, mut changer: impl Changer + 'static, over: &Arc<AtomicBool>) -> Self {
        let (begun, answered) = (Arc::default(), Arc::default());
        let (steps, done, over) = (Arc::clone(&begun), Arc::clone(&answered), Arc::clone(over));
        let thread = std::thread::spawn(move || {
            let mut dice = Dice(number * 7919 + 1);
            for step in 1.. {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                let count = 1 + dice.roll(48);
                let first = number * PART + dice.roll(PART - count);
                let kind = match dice.roll(12) {
                    0 => Kind::Flush,
                    1 => Kind::Zero,
                    2 => Kind::Trim,
                    _ => Kind::Write,
                };
                let op = Op { kind, first, count, stamp: (number + 1) << 40 | step };
                let steps: &Mutex<Vec<Op>> = &steps;
                steps.lock().unwrap().push(op);
                changer.carry_out(&op).unwrap();
                let done: &Mutex<usize> = &done;
                *done.lock().unwrap() += 1;
            }
        });
        Self { begun, answered, thread }
    }

    fn answered(&self) -> usize {
        *self.answered.lock().unwrap()
    }

    fn begun(&self) -> usize {
        self.begun.lock().unwrap().len()
    }
}

/// A snapshot, and which steps of each client it must and may hold.
struct Taken {
    number: u16,
    bounds: Vec<(usize, usize)>,
}

/// Whether the sectors are what a client left after some number of its first steps.
fn holds_a_prefix(sectors: &[u64], number: u64, ops: &[Op], least: usize, most: usize) -> bool {
    let part =
        usize::try_from(number * PART).unwrap()..usize::try_from((number + 1) * PART).unwrap();
    let mut state = vec![Sector::default(); usize::try_from(PART * CLIENTS).unwrap()];
    ops[..least].iter().for_each(|op| apply(&mut state, op));
    let is_it = |state: &[Sector]| part.clone().all(|at| state[at].is(sectors[at]));
    is_it(&state)
        || ops[least..most].iter().any(|op| {
            apply(&mut state, op);
            is_it(&state)
        })
}

/// Waits until every client has done something more.
fn let_them_work(writers: &[Writer]) {
    let before: Vec<_> = writers.iter().map(Writer::answered).collect();
    let start = Instant::now();
    while writers.iter().zip(&before).any(|(writer, before)| writer.answered() < before + 20) {
        assert!(start.elapsed() < Duration::from_secs(60), "a client waits for ever");
        assert!(writers.iter().all(|writer| !writer.thread.is_finished()), "a client failed");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn cut_under_load(format: DataFormat, aio: Aio, mount: bool) {
    let rig = Rig::new(Shape { mount, shards: 2, aio });
    rig.create(1, DISK, format);
    let access = rig.attach(1);
    let over = Arc::new(AtomicBool::new(false));
    let mut writers = Vec::new();
    for number in 0..CLIENTS {
        let file = mount && number == CLIENTS - 1;
        writers.push(if file {
            let file = File::options().read(true).write(true).open(&access.path).unwrap();
            Writer::start(number, Filed(file), &over)
        } else {
            let peer = Peer::connect(&rig.socket(), &vdi(1).to_string()).unwrap();
            Writer::start(number, peer, &over)
        });
    }
    let mut taken = Vec::new();
    for number in 10..15 {
        let_them_work(&writers);
        let least: Vec<_> = writers.iter().map(Writer::answered).collect();
        rig.call(rig.snapshot(1, number));
        let most = writers.iter().map(Writer::begun);
        taken.push(Taken { number, bounds: least.into_iter().zip(most).collect() });
    }
    let_them_work(&writers);
    // The first is read by others while its child is written.
    let first = rig.attach(10);
    let copy = tempfile::NamedTempFile::new().unwrap();
    nbdcopy(&first.nbd_uri, foreign::text(copy.path()));
    assert!(std::fs::read(copy.path()).unwrap() == rig.bytes(10, DISK), "NBD and files differ");
    rig.done(rig.detach(10));
    over.store(true, Ordering::Relaxed);
    let ops: Vec<Vec<Op>> = writers
        .into_iter()
        .map(|writer| {
            writer.thread.join().unwrap();
            writer.begun.lock().unwrap().clone()
        })
        .collect();
    let mut peer = Peer::connect(&rig.socket(), &vdi(1).to_string()).unwrap();
    let now: Vec<u8> = (0..DISK / MIB).flat_map(|at| peer.read(at * MIB, MIB).unwrap()).collect();
    drop(peer);
    rig.done(rig.detach(1));
    assert_eq!(rig.chain(1).len(), 6);
    assert!(now == rig.bytes(1, DISK), "what was served is not what lies there");
    let steps: Vec<_> = ops.iter().map(Vec::len).collect();
    println!("{format} {aio:?}: steps of the clients {steps:?}");
    for (number, ops) in (0..).zip(&ops) {
        assert!(holds_a_prefix(&said(&now), number, ops, ops.len(), ops.len()), "now: {number}");
        for Taken { number: snapshot, bounds } in &taken {
            let (least, most) = bounds[usize::try_from(number).unwrap()];
            let sectors = said(&rig.bytes(*snapshot, DISK));
            let holds = holds_a_prefix(&sectors, number, ops, least, most);
            assert!(holds, "snapshot {snapshot}, client {number}: not {least} to {most} steps");
        }
    }
    rig.stop();
}

#[test]
fn each_snapshot_holds_what_was_answered_before_it_and_nothing_is_lost() {
    if !foreign::have(&["nbdcopy"]) {
        return;
    }
    let mount = may_mount();
    cut_under_load(DataFormat::Vhd, Aio::Auto, mount);
    cut_under_load(DataFormat::Raw, Aio::Threads, mount);
}

fn fio(words: &[&str]) -> Child {
    let mut command = Process::new("timeout");
    command.args(["-k", "5", "100", "fio", "--name=job", "--rw=randwrite", "--verify=crc32c"]);
    command.args(["--verify_state_save=0", "--verify_backlog=64", "--verify_fatal=1"]);
    command.args(["--iodepth=8", "--time_based"]);
    command.args(["--runtime=6", "--bsrange=4k-64k", "--size=24m", "--minimal"]).args(words);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn programs_that_verify_what_they_wrote_do_not_notice_snapshots() {
    if !may_mount() || !foreign::have(&["fio", "qemu-img", "nbdinfo"]) {
        return;
    }
    let rig = Rig::new(Shape { shards: 2, ..Shape::default() });
    rig.create(1, 32 * MIB, DataFormat::Vhd);
    rig.create(2, 32 * MIB, DataFormat::Raw);
    let (nbd, file) = (rig.attach(1), rig.attach(2));
    let filename = format!("--filename={}", file.path);
    let mut jobs = vec![fio(&[&filename, "--ioengine=libaio", "--direct=1"])];
    if foreign::run("fio", &["--enghelp"]).contains("nbd") {
        jobs.push(fio(&["--ioengine=nbd", &format!("--uri={}", nbd.nbd_uri)]));
    }
    std::thread::sleep(Duration::from_millis(500));
    let mut longest = Duration::ZERO;
    for step in 0..4 {
        for source in [1, 2] {
            let start = Instant::now();
            rig.call(rig.snapshot(source, 100 * source + step));
            longest = longest.max(start.elapsed());
        }
        std::thread::sleep(Duration::from_millis(300));
    }
    println!("the longest snapshot took {longest:?}");
    for job in jobs {
        let output = job.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let complained = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {said}\n{complained}", output.status);
    }
    let told = std::fs::read_to_string(Path::new(&file.path).with_file_name("chain.txt")).unwrap();
    assert_eq!(told.lines().count(), 5, "{told}");
    // What is served now is what another program finds, and what lies there in the end.
    let compare = ["compare", "-f", "raw", "-F", "raw", &file.path, &file.nbd_uri];
    foreign::run("qemu-img", &compare);
    rig.done(rig.detach(1));
    rig.done(rig.detach(2));
    for number in [1, 2] {
        assert_eq!(rig.chain(number).len(), 5);
        rig.call(rig.clone_vdi(number, 50 + number));
        assert!(rig.bytes(number, 32 * MIB) == rig.bytes(50 + number, 32 * MIB));
        rig.attach(50 + number);
        rig.done(rig.detach(50 + number));
    }
    rig.stop();
}
