//! The bounds of `serve` as options: each with its range, its unit and its default.

use std::time::Duration;

use clap::Args;
use clap::builder::RangedU64ValueParser;

use crate::server::Limits;

/// What clients may cost.
#[derive(Debug, Args)]
#[command(next_help_heading = "Limits")]
pub(super) struct LimitOptions {
    /// Connections of the process; more wait to be accepted
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = count(1, 1000))]
    max_connections: usize,
    /// Connections of one export; more are refused
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = count(1, 1000))]
    export_connections: usize,
    /// Unfinished handshakes per listener; one more ends the oldest
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = count(1, 1000))]
    half_open: usize,
    /// Seconds for a handshake, TLS included
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = count(1, 3600))]
    handshake_time: usize,
    /// Options in one handshake
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = count(8, 10_000))]
    max_options: usize,
    /// Bytes of all options of one handshake
    #[arg(long, value_name = "BYTES", default_value_t = 128 << 10,
        value_parser = count(16 << 10, 16 << 20))]
    option_bytes: usize,
    /// Requests one connection may have in flight
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = count(1, 1024))]
    requests: usize,
    /// MiB of payload one connection may have in flight, in both directions
    #[arg(long, value_name = "MIB", default_value_t = 64, value_parser = count(1, 1024))]
    request_mib: usize,
    /// Seconds without a request after which a connection is closed (0: never)
    #[arg(long, value_name = "SECONDS", default_value_t = 0, value_parser = count(0, 1 << 30))]
    idle_time: usize,
    /// Seconds a client may take no byte of a reply, or send no byte of a request it began
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = count(1, 1 << 20))]
    stall_time: usize,
}

/// A number from `least` to `most`.
fn count(least: u64, most: u64) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(least..=most)
}

impl LimitOptions {
    pub(super) fn limits(&self) -> Limits {
        let seconds = |count: usize| Duration::from_secs(count as u64);
        let mut limits = Limits {
            connections: self.max_connections,
            per_export: self.export_connections,
            half_open: self.half_open,
            handshake_time: seconds(self.handshake_time),
            ..Limits::default()
        };
        // The parsers above hold all of these far below 2^32.
        limits.handshake.options_max = self.max_options as u32;
        limits.handshake.kept_bytes_max = self.option_bytes as u32;
        // One of them cannot be longer than all.
        let one = limits.handshake.option_bytes_max.min(limits.handshake.kept_bytes_max);
        limits.handshake.option_bytes_max = one;
        limits.client.requests = self.requests;
        limits.client.bytes = (self.request_mib as u64) << 20;
        limits.client.idle = (self.idle_time > 0).then(|| seconds(self.idle_time));
        limits.client.send_stall = seconds(self.stall_time);
        limits.client.payload_stall = seconds(self.stall_time);
        limits
    }
}
