//! Peers that come and go, stop halfway, promise and do not keep it, or never listen: the server
//! goes on serving others, within its bounds, and ends when it is told to. How fast it does so is
//! no business of this test.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops where its set-up fails")]

#[path = "support/foreign.rs"]
mod foreign;
#[path = "abuse/peer.rs"]
mod peer;
#[path = "support/server.rs"]
mod server;
#[path = "interop/sessions.rs"]
mod sessions;
#[path = "abuse/victim.rs"]
mod victim;

use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use peer::{Peer, command, plain_handshake, request};
use victim::{Victim, each_aio};

const MIB: u32 = 1 << 20;
/// What the process may have resident, whatever its peers do that costs them nothing.
const RESIDENT_LIMIT: u64 = 64 << 20;

/// A peer that does nothing wrong is served.
fn expect_service(victim: &Victim) {
    assert_eq!(Peer::plain(victim.socket()).read(0, 4096), [0; 4096]);
}

/// A peer that announces a WRITE of so many bytes at the start of the disk and sends but 1 KiB.
fn hoarder(victim: &Victim, announced: u32) -> Peer {
    let mut peer = Peer::plain(victim.socket());
    peer.send(&request(command::WRITE, 1, 0, announced));
    peer.send(&[b'x'; 1024]);
    peer
}

/// Time for the server to take in what was sent to it. Too short a time hides a defect and never
/// makes one up.
fn settle() {
    sleep(Duration::from_millis(500));
}

#[test]
fn connections_that_come_and_go_fast_leave_nothing_behind() {
    const THREADS: usize = 4;
    const CONNECTIONS: usize = 1500;
    /// What the server may have opened for itself meanwhile.
    const SLACK: usize = 4;
    each_aio(|victim| {
        expect_service(&victim);
        settle();
        let before = victim.descriptors();
        scope(|threads| {
            for _ in 0..THREADS {
                threads.spawn(|| {
                    for _ in 0..CONNECTIONS {
                        let mut peer = Peer::plain(victim.socket());
                        assert_eq!(peer.read(0, 512), [0; 512]);
                        peer.send(&request(command::DISCONNECT, 2, 0, 0));
                    }
                });
            }
        });
        victim.await_descriptors(before + SLACK);
        expect_service(&victim);
        victim.close();
    });
}

#[test]
fn unread_refusals_of_unknown_commands_do_not_pile_up() {
    each_aio(|victim| {
        for negotiate in [Peer::plain, Peer::structured] {
            let mut deaf = negotiate(victim.socket());
            let many = request(command::UNKNOWN, 1, 0, 0).repeat(2048);
            let sent = deaf.send_until_stuck(&many, 96 << 20);
            victim.expect_resident_below(RESIDENT_LIMIT, &format!("{sent} bytes were taken"));
        }
        expect_service(&victim);
        victim.close();
    });
}

#[test]
fn unread_maps_of_a_fragmented_disk_do_not_pile_up() {
    const SECTORS: u64 = 8192;
    each_aio(|victim| {
        let mut writer = Peer::plain(victim.socket());
        // Every other sector, a few at a time: this peer reads its replies.
        let even: Vec<u64> = (0..SECTORS).step_by(2).collect();
        for some in even.chunks(64) {
            for sector in some {
                writer.send(&request(command::WRITE, *sector, sector * 512, 512));
                writer.send(&[b'x'; 512]);
            }
            // They may come in any order.
            some.iter().for_each(|_| drop(writer.receive(peer::SIMPLE_REPLY_BYTES)));
        }
        let whole = SECTORS as u32 * 512;
        let runs = Peer::structured(victim.socket()).map_runs(0, whole);
        assert!(runs > 8000, "the map is not fragmented: {runs} runs");

        let mut deaf = Peer::structured(victim.socket());
        let many = request(command::BLOCK_STATUS, 1, 0, whole).repeat(2048);
        let sent = deaf.send_until_stuck(&many, 8 << 20);
        victim.expect_resident_below(RESIDENT_LIMIT, &format!("{sent} bytes were taken"));
        drop(deaf);
        assert_eq!(Peer::plain(victim.socket()).read(0, 512), [b'x'; 512]);
        victim.close();
    });
}

#[test]
fn announced_payloads_cost_nothing_until_they_come() {
    each_aio(|victim| {
        let hoarders: Vec<Peer> = (0..200).map(|_| hoarder(&victim, 32 * MIB)).collect();
        victim.expect_resident_below(RESIDENT_LIMIT, "200 announced writes of 32 MiB");
        drop(hoarders);
        expect_service(&victim);
        victim.close();
    });
}

#[test]
fn silent_peers_keep_nobody_out() {
    /// A server that waits for the deadline of every 16 of them needs 40 s.
    const AT_ALL: Duration = Duration::from_secs(30);
    each_aio(|victim| {
        let silent: Vec<Peer> = (0..64).map(|_| Peer::silent(victim.socket())).collect();
        let start = Instant::now();
        expect_service(&victim);
        assert!(start.elapsed() < AT_ALL, "it waited for peers that say nothing");
        drop(silent);
        victim.close();
    });
}

#[test]
fn a_crowd_that_says_nothing_ends_no_handshake_that_goes_on() {
    /// More than the server has room for, and fewer than wait in the backlog.
    const CROWD: usize = 40;
    /// A machine that is busy may well be too slow, but not every time.
    const TRIES: usize = 30;
    each_aio(|victim| {
        let gets_in = |_| {
            let mut honest = Peer::silent(victim.socket());
            let crowd: Vec<Peer> = (0..CROWD).map(|_| Peer::silent(victim.socket())).collect();
            sleep(Duration::from_millis(20));
            let in_time = honest.gets_in();
            drop(crowd);
            in_time
        };
        assert!((0..TRIES).any(gets_in), "everyone was ended by those who came behind");
        expect_service(&victim);
        victim.close();
    });
}

#[test]
fn a_peer_that_never_reads_what_it_asked_for_leaves_others_alone() {
    each_aio(|victim| {
        let mut deaf = Peer::plain(victim.socket());
        let reads = (0..1000u64).map(|n| request(command::READ, n, n * 65536, 65536));
        deaf.send(&reads.collect::<Vec<_>>().concat());
        settle();
        drop(deaf);
        expect_service(&victim);
        victim.close();
    });
}

#[test]
fn a_conversation_may_break_off_at_every_byte() {
    const AT: u64 = 4096;
    each_aio(|victim| {
        let write = request(command::WRITE, 1, AT, 512);
        let whole = [plain_handshake(), write, vec![b'x'; 512]].concat();
        for len in 0..whole.len() {
            // Once gone without a word, once with an orderly end after the last byte.
            let mut gone = Peer::silent(victim.socket());
            gone.send(&whole[..len]);
            drop(gone);
            let mut ended = Peer::silent(victim.socket());
            ended.send(&whole[..len]);
            ended.finish();
        }
        let mut judge = Peer::plain(victim.socket());
        assert_eq!(judge.read(AT, 512), [0; 512], "a torn payload reached the disk");
        let mut complete = Peer::silent(victim.socket());
        complete.send(&whole);
        complete.finish();
        assert_eq!(judge.read(AT, 512), [b'x'; 512]);
        expect_service(&victim);
        drop(judge);
        victim.close();
    });
}

#[test]
fn peers_that_stopped_halfway_do_not_keep_the_server_from_ending() {
    each_aio(|victim| {
        let mut in_payload = hoarder(&victim, MIB);
        let mut in_header = Peer::plain(victim.socket());
        in_header.send(&request(command::WRITE, 1, 0, MIB)[..13]);
        settle();
        victim.close();
        in_payload.await_end();
        in_header.await_end();
    });
}

#[test]
fn hoarders_of_memory_do_not_starve_a_small_read() {
    each_aio(|victim| {
        let mut small = Peer::plain(victim.socket());
        let hoarders: Vec<Peer> = (0..5).map(|_| hoarder(&victim, 64 * MIB)).collect();
        settle();
        assert_eq!(small.read(0, 4096), [0; 4096]);
        drop(hoarders);
        victim.close();
    });
}
