//! What a server has and what its clients did, as JSON for programs and as a table for people.
//!
//! Reads counters that others write; stops nobody.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use crate::meter::{Op, Snapshot};
use crate::server::{Registry, Seat};

/// All exports.
#[must_use]
pub fn exports(registry: &Registry) -> Value {
    let seats = registry.seats();
    json!({
        "default": registry.default_name(),
        "exports": seats.iter().map(|seat| export(seat)).collect::<Vec<_>>(),
    })
}

/// One export.
pub(super) fn export(seat: &Seat) -> Value {
    let rates = seat.throttle.rates();
    let extent = seat.extent();
    json!({
        "name": seat.name,
        "description": seat.description,
        "image": seat.disk.path.to_string_lossy(),
        "layers": seat.disk.layers,
        "size": extent.len.get(),
        "offset": extent.at.get(),
        "read_only": seat.read_only,
        "overlay": seat.disk.throwaway,
        "tls": if seat.plaintext { "optional" } else { "as the server" },
        "allow": seat.allow.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "bps": rates.bytes_per_s,
        "iops": rates.ops_per_s,
        "connections": seat.connections().len(),
        "max_connections": seat.max_connections,
    })
}

/// What every export's clients did, together and each.
#[must_use]
pub fn stats(registry: &Registry) -> Value {
    let mut all = Map::new();
    for seat in registry.seats() {
        let connections = seat.connections();
        let each = connections.iter().map(|one| {
            json!({
                "id": one.id,
                "peer": one.peer,
                "thread": one.shard,
                "seconds": one.since.elapsed().as_secs(),
                "counters": counters(&one.meter.snapshot()),
            })
        });
        let told = json!({
            "counters": counters(&seat.meter.snapshot()),
            "connections": each.collect::<Vec<_>>(),
        });
        all.insert(seat.name.clone(), told);
    }
    Value::Object(all)
}

/// What was counted: requests, bytes, errors and latencies of each kind there was.
#[must_use]
pub fn counters(snapshot: &Snapshot) -> Value {
    let mut by_op = Map::new();
    for op in Op::ALL {
        let counts = snapshot.op(op);
        if counts.requests == 0 {
            continue;
        }
        let micros = |time: Duration| time.as_nanos() as f64 / 1000.0;
        let at = |quantile| micros(counts.percentile(quantile));
        let told = json!({
            "requests": counts.requests,
            "bytes": counts.bytes,
            "errors": counts.errors,
            "latency_us": {
                "mean": micros(counts.mean()),
                "p50": at(0.5),
                "p99": at(0.99),
                "p999": at(0.999),
                "max": micros(counts.max()),
            },
        });
        by_op.insert(op.name().to_owned(), told);
    }
    Value::Object(by_op)
}

/// A look at a server's counters, to be compared with the next.
pub struct Look {
    at: Instant,
    exports: Vec<(String, usize, Snapshot)>,
}

impl Look {
    /// Looks now.
    #[must_use]
    pub fn at(registry: &Registry) -> Self {
        let seats = registry.seats();
        let exports = seats
            .iter()
            .map(|seat| (seat.name.clone(), seat.connections().len(), seat.meter.snapshot()));
        Self { at: Instant::now(), exports: exports.collect() }
    }

    /// What happened since an earlier look: a line for each export and kind of request there was.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> String {
        let seconds = self.at.duration_since(earlier.at).as_secs_f64().max(1e-3);
        let mut text = String::new();
        for (name, connections, now) in &self.exports {
            let before = earlier.exports.iter().find(|(other, ..)| other == name);
            let did = before.map_or_else(|| now.clone(), |(.., before)| now.since(before));
            let name = if name.is_empty() { "(default)" } else { name };
            for op in Op::ALL {
                let counts = did.op(op);
                if counts.requests == 0 {
                    continue;
                }
                let micros = |quantile| counts.percentile(quantile).as_secs_f64() * 1e6;
                let _infallible = writeln!(
                    text,
                    "{name}: {connections} connections, {op} {rate:.0}/s, {mib:.1} MiB/s, \
                     p50 {p50:.0} us, p99 {p99:.0} us, {errors} errors",
                    op = op.name(),
                    rate = counts.requests as f64 / seconds,
                    mib = counts.bytes as f64 / seconds / f64::from(1 << 20),
                    p50 = micros(0.5),
                    p99 = micros(0.99),
                    errors = counts.errors,
                );
            }
        }
        text
    }
}
