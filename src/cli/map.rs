//! `orlop map`: where data and holes are, by asking the engine as any client would. Reads tables
//! and bitmaps only, never the guest's bytes, and keeps no list: runs are printed as they come.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use super::options::ImageOptions;
use super::output::{self, Exit, Failure, SCHEMA_VERSION};
use crate::engine::Disk;
use crate::engine::request::{Answer, MapKind, MapRun, Request, RequestId};
use crate::engine::units::{ByteLen, DiskOffset, Extent};
use crate::host::memory::{Arena, ArenaSize};
use crate::host::{Aio, Event, Host};
use crate::image::open;
use crate::size::human;

/// Runs asked for at once.
const RUNS_MAX: u32 = 4096;

/// What to map.
#[derive(Args, Clone, Debug)]
pub(super) struct MapOptions {
    #[command(flatten)]
    image: ImageOptions,

    /// Print sums instead of extents
    #[arg(long)]
    totals: bool,

    /// Print one JSON object
    #[arg(long)]
    pub(super) json: bool,
}

/// A run with its place.
#[derive(Clone, Copy)]
struct Piece {
    at: DiskOffset,
    run: MapRun,
}

/// Maps the image.
pub(super) fn run(options: &MapOptions, out: &mut dyn Write) -> Result<Exit, Failure> {
    let chain = open(&options.image.reading())?;
    if !options.json {
        output::tell(&chain.notices);
    }
    let notices = output::as_json(&chain.notices);
    let paths: Vec<PathBuf> = chain.layers.iter().map(|layer| layer.path.clone()).collect();
    let size = chain.size;
    // Small: a map needs no memory of the arena, which exists because every host wants one.
    let sizes = ArenaSize { registered_bytes: 64 << 10, large_bytes: 64 << 10 };
    let arena = Arena::new(sizes).map_err(system)?;
    let (mut host, _choice) = Host::new(Aio::Threads, &arena).map_err(system)?;
    let disk = chain.attach(&mut |file| host.add_file(file)).map_err(system)?;
    let mut walk = Walk { disk, host, events: Vec::new() };
    if options.totals {
        return totals(options, &mut walk, size, &paths, out);
    }
    if options.json {
        let layers: Value = paths.iter().map(|path| path.display().to_string()).collect();
        write!(out, "{{\"schema_version\":{SCHEMA_VERSION},\"size\":{size},\"layers\":{layers}")?;
        write!(out, ",\"notices\":{notices},\"extents\":[")?;
    } else {
        writeln!(out, "{:>16} {:>16}  {:<4}  {:>5}  image", "start", "length", "kind", "depth")?;
    }
    walk.pieces(size, &mut |piece| match options.json {
        true => show_json(piece, out),
        false => show(piece, &paths, out),
    })?;
    if options.json {
        writeln!(out, "]}}")?;
    }
    Ok(Exit::Ok)
}

fn system(error: std::io::Error) -> Failure {
    Failure::new(Exit::Failed, "io", format!("cannot start: {error}"), String::new())
}

fn parts(kind: MapKind) -> (&'static str, Option<u16>) {
    match kind {
        MapKind::Hole => ("hole", None),
        MapKind::Sparse { depth } => ("hole", Some(depth)),
        MapKind::Data { depth } => ("data", Some(depth)),
        MapKind::Zero { depth } => ("zero", Some(depth)),
    }
}

fn show(piece: Piece, paths: &[PathBuf], out: &mut dyn Write) -> Result<(), Failure> {
    let (kind, depth) = parts(piece.run.kind);
    write!(out, "{:>16} {:>16}  {kind}", piece.at.get(), piece.run.len.get())?;
    if let Some(depth) = depth {
        let path = paths.get(usize::from(depth)).map(|path| path.display());
        write!(out, "  {depth:>5}")?;
        if let Some(path) = path {
            write!(out, "  {path}")?;
        }
    }
    Ok(writeln!(out)?)
}

fn show_json(piece: Piece, out: &mut dyn Write) -> Result<(), Failure> {
    let (kind, depth) = parts(piece.run.kind);
    let object = json!({
        "start": piece.at.get(), "length": piece.run.len.get(), "kind": kind, "depth": depth,
    });
    let comma = if piece.at.get() == 0 { "" } else { "," };
    Ok(write!(out, "{comma}{object}")?)
}

fn totals(
    options: &MapOptions,
    walk: &mut Walk,
    size: ByteLen,
    paths: &[PathBuf],
    out: &mut dyn Write,
) -> Result<Exit, Failure> {
    let mut sums: BTreeMap<(Option<u16>, &'static str), (ByteLen, u64)> = BTreeMap::new();
    walk.pieces(size, &mut |piece| {
        let (kind, depth) = parts(piece.run.kind);
        let sum = sums.entry((depth, kind)).or_default();
        sum.0 += piece.run.len;
        sum.1 += 1;
        Ok(())
    })?;
    if options.json {
        let rows: Value = sums
            .iter()
            .map(|((depth, kind), (bytes, extents))| {
                json!({ "kind": kind, "depth": depth, "bytes": bytes.get(), "extents": extents })
            })
            .collect();
        let layers: Value = paths.iter().map(|path| path.display().to_string()).collect();
        let object = json!({
            "schema_version": SCHEMA_VERSION,
            "size": size.get(),
            "layers": layers,
            "totals": rows,
        });
        writeln!(out, "{object}")?;
        return Ok(Exit::Ok);
    }
    for ((depth, kind), (bytes, extents)) in &sums {
        let path = depth.and_then(|depth| paths.get(usize::from(depth)));
        let path = path.map_or(String::new(), |path| format!("  {}", path.display()));
        let percent = bytes.get() as f64 * 100.0 / size.get() as f64;
        let (bytes, shown) = (bytes.get(), human(*bytes));
        writeln!(
            out,
            "{bytes:>16}  {percent:>5.1}%  {extents:>8} extents  {kind}{path}  ({shown})"
        )?;
    }
    Ok(Exit::Ok)
}

/// A disk with the host that carries its effects.
struct Walk {
    disk: Disk,
    host: Host,
    events: Vec<Event>,
}

impl Walk {
    /// Gives all runs in order; neighbours of one kind are one run.
    fn pieces(
        &mut self,
        size: ByteLen,
        give: &mut dyn FnMut(Piece) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut at = DiskOffset::new(0);
        let end = at + size;
        let mut last: Option<Piece> = None;
        while at < end {
            for run in self.ask(Extent::new(at, end - at))? {
                match &mut last {
                    Some(piece) if piece.run.kind == run.kind => piece.run.len += run.len,
                    _ => {
                        if let Some(piece) = last.replace(Piece { at, run }) {
                            give(piece)?;
                        }
                    }
                }
                at = at + run.len;
            }
        }
        last.map_or(Ok(()), give)
    }

    fn ask(&mut self, extent: Extent) -> Result<Vec<MapRun>, Failure> {
        let broken = |message: String| {
            let hint = "run 'orlop check' on the images of the chain".to_owned();
            Failure::new(Exit::Failed, "io", message, hint)
        };
        self.disk.submit(RequestId(0), Request::Map { extent, limit: RUNS_MAX });
        loop {
            while let Some(effect) = self.disk.poll_effect() {
                self.host.start(0, effect);
            }
            if let Some(reply) = self.disk.poll_reply() {
                return match reply.result {
                    Ok(Answer::Map(runs)) => Ok(runs),
                    Ok(_) => Err(broken("the engine gave no map".to_owned())),
                    Err(fault) => Err(broken(fault.to_string())),
                };
            }
            self.host.wait(None, &mut self.events).map_err(|e| broken(e.to_string()))?;
            for event in self.events.drain(..) {
                if let Event::Effect { id, outcome, .. } = event {
                    self.disk.complete(id, outcome);
                }
            }
        }
    }
}
