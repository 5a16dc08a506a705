//! How rings and the classic channel compare over memory: a measurement, not a check.
//!
//! `cargo test --test fuse_ring timing -- --ignored --nocapture`. One fio at a time, all targets
//! mounted together, windows in turn, medians printed with this process's processor time.

use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, RwLock};

use orlop_fuse::{
    Bytes, DiskId, Errno, Extent, Fact, Layout, Mounted, Offset, Options, Port, ReadReply, Reply,
    Run, RunKind, Text, mount,
};

use crate::common::{DISK, can_mount, new_disk};

const LEN: usize = 64 << 20;
const WINDOW: &str = "0.3";
const ROUNDS: usize = 4;

type Job = Box<dyn FnOnce(&RwLock<Vec<u8>>) + Send>;

/// A disk in memory that answers from one other thread, as a shard does, or at once.
struct Quick {
    bytes: Arc<RwLock<Vec<u8>>>,
    jobs: Option<Mutex<Sender<Job>>>,
}

impl Quick {
    fn new(at_once: bool) -> Arc<Self> {
        let bytes = Arc::new(RwLock::new(vec![7; LEN]));
        let jobs = (!at_once).then(|| {
            let (jobs, list) = channel::<Job>();
            let bytes = bytes.clone();
            std::thread::spawn(move || list.into_iter().for_each(|job| job(&bytes)));
            Mutex::new(jobs)
        });
        Arc::new(Self { bytes, jobs })
    }

    fn act(&self, job: Job) {
        match &self.jobs {
            Some(jobs) => jobs.lock().unwrap().send(job).unwrap(),
            None => job(&self.bytes),
        }
    }
}

impl Port for Quick {
    fn read(&self, _: DiskId, extent: Extent, reply: ReadReply) {
        self.act(Box::new(move |bytes| {
            let at = extent.at.0 as usize;
            reply.data(&bytes.read().unwrap()[at..at + extent.len.0 as usize]);
        }));
    }

    fn write(&self, _: DiskId, at: Offset, data: &[u8], _: bool, reply: Reply<()>) {
        let data = data.to_vec();
        self.act(Box::new(move |bytes| {
            let at = at.0 as usize;
            bytes.write().unwrap()[at..at + data.len()].copy_from_slice(&data);
            reply.done(());
        }));
    }

    fn flush(&self, _: DiskId, reply: Reply<()>) {
        reply.done(());
    }

    fn punch(&self, _: DiskId, _: Extent, reply: Reply<()>) {
        reply.fail(Errno::NotSupported);
    }

    fn zero(&self, _: DiskId, _: Extent, reply: Reply<()>) {
        reply.fail(Errno::NotSupported);
    }

    fn map(&self, _: DiskId, extent: Extent, reply: Reply<Vec<Run>>) {
        reply.done(vec![Run { kind: RunKind::Data, len: extent.len }]);
    }

    fn allocated(&self, _: DiskId, extent: Extent, reply: Reply<Bytes>) {
        reply.done(extent.len);
    }

    fn text(&self, _: DiskId, _: Text, reply: Reply<Vec<u8>>) {
        reply.done(Vec::new());
    }

    fn facts(&self, _: DiskId, reply: Reply<Vec<Fact>>) {
        reply.done(Vec::new());
    }
}

struct Target {
    name: String,
    mounted: Mounted,
    _dir: tempfile::TempDir,
}

fn target(name: &str, at_once: bool, ring: bool) -> Target {
    let dir = tempfile::tempdir().unwrap();
    let ring = if ring { crate::ring::chosen() } else { None };
    let options = Options { layout: Layout::Single, ring, ..Options::default() };
    let disk = [new_disk(DISK, "x", LEN)];
    let mounted = mount(Quick::new(at_once), dir.path(), &options, &disk).unwrap();
    eprintln!("{name}: {:?}", mounted.transport());
    Target { name: name.to_owned(), mounted, _dir: dir }
}

/// Operations per second, and processor microseconds per operation: fio's, and this process's.
fn measure(at: &Path, args: &[&str]) -> (f64, f64, f64) {
    let own = || {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
        let rest: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        // utime and stime, in hundredths of seconds.
        (rest[11].parse::<f64>().unwrap() + rest[12].parse::<f64>().unwrap()) / 100.0
    };
    let before = own();
    let output = Command::new("timeout")
        .args(["-s", "KILL", "30", "fio", "--name=t", "--output-format=json", "--size=64m"])
        .args(["--direct=1", "--time_based", "--group_reporting", "--randrepeat=0"])
        .arg(format!("--runtime={WINDOW}"))
        .arg(format!("--filename={}", at.join("disk").display()))
        .args(args)
        .output()
        .unwrap();
    let spent = own() - before;
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let job = &told["jobs"][0];
    let sum = |key: &str| job["read"][key].as_f64().unwrap() + job["write"][key].as_f64().unwrap();
    let (count, iops) = (sum("total_ios"), sum("iops"));
    let seconds = job["job_runtime"].as_f64().unwrap() / 1000.0;
    let share = job["usr_cpu"].as_f64().unwrap() + job["sys_cpu"].as_f64().unwrap();
    (iops, share / 100.0 * seconds / count * 1e6, spent / count * 1e6)
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

#[test]
#[ignore = "measures, checks nothing"]
fn rings_against_the_classic_channel() {
    if !can_mount() || !crate::ring::is_on() {
        return;
    }
    let mut targets = Vec::new();
    for (way, at_once) in [("shard", false), ("inline", true)] {
        targets.push(target(&format!("classic {way}"), at_once, false));
        targets.push(target(&format!("ring {way}"), at_once, true));
    }
    let loads: [(&str, &[&str]); 6] = [
        ("4k rr q1", &["--rw=randread", "--bs=4k", "--ioengine=psync"]),
        ("4k rr q16", &["--rw=randread", "--bs=4k", "--ioengine=libaio", "--iodepth=16"]),
        (
            "4k rr q16 j4",
            &["--rw=randread", "--bs=4k", "--ioengine=libaio", "--iodepth=16", "--numjobs=4"],
        ),
        ("4k rw q16", &["--rw=randwrite", "--bs=4k", "--ioengine=libaio", "--iodepth=16"]),
        ("1m rd q1", &["--rw=read", "--bs=1m", "--ioengine=psync"]),
        ("1m rd q4", &["--rw=read", "--bs=1m", "--ioengine=libaio", "--iodepth=4"]),
    ];
    println!("kIOPS / client us + server us of processor time per operation; medians");
    for (name, args) in loads {
        let mut found: Vec<Vec<(f64, f64, f64)>> = vec![Vec::new(); targets.len()];
        for round in 0..ROUNDS {
            for step in 0..targets.len() {
                let place = (step + round) % targets.len();
                found[place].push(measure(targets[place].mounted.at(), args));
            }
        }
        println!("{name}");
        for (target, found) in targets.iter().zip(&found) {
            let of = |pick: fn(&(f64, f64, f64)) -> f64| {
                median(&found.iter().map(pick).collect::<Vec<_>>())
            };
            let (iops, client, server) = (of(|r| r.0), of(|r| r.1), of(|r| r.2));
            let name = &target.name;
            println!("  {name:22} {:8.1} / {client:6.1} + {server:6.1}", iops / 1000.0);
        }
    }
}
