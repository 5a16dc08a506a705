//! Clients under limits, over a time that is made up: each asks as soon as it was let go.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use proptest::prelude::{ProptestConfig, proptest};

use super::{Admission, RECHECK, Rates, Throttle, Ticket};

const MIB: u64 = 1 << 20;

fn rates(bytes: u64, ops: u64) -> Rates {
    Rates { bytes_per_s: NonZeroU64::new(bytes), ops_per_s: NonZeroU64::new(ops) }
}

/// Clients that ask for requests of one size each, again and again.
struct World {
    throttle: Throttle,
    start: Instant,
    now: Instant,
    clients: Vec<Client>,
}

struct Client {
    size: u64,
    waits: Option<(Ticket, Instant)>,
    /// When its requests were let go, since the start.
    went: Vec<Duration>,
}

impl World {
    fn new(limits: Rates, sizes: &[u64]) -> Self {
        let throttle = Throttle::new(limits);
        let start = Instant::now();
        let client = |size: &u64| Client { size: *size, waits: None, went: Vec::new() };
        let clients = sizes.iter().map(client).collect();
        Self { throttle, start, now: start, clients }
    }

    /// Lives up to this time after the start.
    fn live_until(&mut self, end: Duration) {
        loop {
            for client in &mut self.clients {
                if client.waits.is_none() {
                    Self::ask(&self.throttle, client, self.now, self.start);
                }
            }
            let dues = self.clients.iter().filter_map(|client| Some(client.waits.as_ref()?.1));
            let Some(next) = dues.min().filter(|next| *next <= self.start + end) else {
                self.now = self.start + end;
                return;
            };
            assert!(next > self.now, "a place to be asked about at once has its turn");
            assert!(next <= self.now + RECHECK, "a raised limit is to be noticed in 100 ms");
            self.now = next;
            // Whoever is due first is looked at first, as the shard does.
            self.clients.sort_by_key(|client| client.waits.as_ref().map(|waits| waits.1));
            for client in &mut self.clients {
                if client.waits.as_ref().is_some_and(|waits| waits.1 <= self.now) {
                    let (ticket, _) = client.waits.take().unwrap();
                    match self.throttle.turn(&ticket, self.now) {
                        Some(until) => client.waits = Some((ticket, until)),
                        None => client.went.push(self.now - self.start),
                    }
                }
            }
        }
    }

    /// Asks until something has to wait; a bound keeps a world without limits from running on.
    fn ask(throttle: &Throttle, client: &mut Client, now: Instant, start: Instant) {
        for _ in 0..20_000 {
            match throttle.admit(now, client.size) {
                Admission::Now => client.went.push(now - start),
                Admission::Later(ticket) => {
                    let until = throttle.turn(&ticket, now).unwrap();
                    client.waits = Some((ticket, until));
                    return;
                }
            }
        }
    }

    fn bytes(&self) -> u64 {
        self.clients.iter().map(|client| client.size * client.went.len() as u64).sum()
    }

    fn count(&self) -> u64 {
        self.clients.iter().map(|client| client.went.len() as u64).sum()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn in_the_long_run_no_more_and_no_less_goes_than_the_limit_says(
        rate in 50_000..50_000_000_u64,
        sizes in proptest::collection::vec(512..65536_u64, 1..6),
    ) {
        // A few thousand requests, and far longer than the burst.
        let time = Duration::from_secs(20).max(Duration::from_secs(65536 * 8 * 50 / rate));
        let time = if rate > 10_000_000 { Duration::from_secs(5) } else { time };
        let mut world = World::new(rates(rate, 0), &sizes);
        world.live_until(time);
        let allowed = rate as f64 * time.as_secs_f64();
        let slack = rate as f64 / 10.0 + sizes.iter().sum::<u64>() as f64;
        let went = world.bytes() as f64;
        assert!(went <= allowed + slack, "{went} of {allowed}");
        assert!(went >= allowed * 0.98 - slack, "{went} of {allowed}");
    }
}

#[test]
fn the_rate_is_kept_within_two_hundredths() {
    for (limits, size) in
        [(rates(10 * MIB, 0), 4096), (rates(0, 5000), 0), (rates(100 * MIB, 1000), 4096)]
    {
        let mut world = World::new(limits, &[size; 4]);
        world.live_until(Duration::from_secs(60));
        let per_s = |amount: u64| amount as f64 / 60.0;
        let near = |told: f64, limit: f64| (told / limit - 1.0).abs() < 0.02;
        let (told, limit) = match limits.ops_per_s {
            Some(ops) => (per_s(world.count()), ops.get() as f64),
            None => (per_s(world.bytes()), 10.0 * MIB as f64),
        };
        assert!(near(told, limit), "{told} of {limit}");
    }
}

#[test]
fn a_slow_rate_of_requests_is_exact() {
    let mut world = World::new(rates(0, 2), &[4096]);
    world.live_until(Duration::from_secs(10));
    let halves: Vec<Duration> = (0..=20).map(|half| Duration::from_millis(half * 500)).collect();
    assert_eq!(world.clients[0].went.len(), halves.len());
    for (went, half) in world.clients[0].went.iter().zip(&halves) {
        assert!(went.abs_diff(*half) < Duration::from_millis(1), "{went:?} {half:?}");
    }
}

#[test]
fn who_came_first_goes_first_and_all_get_the_same_number() {
    let mut world = World::new(rates(MIB, 0), &[64 << 10; 10]);
    world.live_until(Duration::from_secs(30));
    let counts: Vec<usize> = world.clients.iter().map(|client| client.went.len()).collect();
    let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
    // The first ones get the burst.
    assert!(most - least <= 3, "{counts:?}");
}

#[test]
fn a_small_request_is_not_kept_out_by_many_large_ones() {
    let mut world = World::new(rates(10 * MIB, 0), &[MIB, MIB, MIB, 512]);
    world.live_until(Duration::from_secs(30));
    world.clients.sort_by_key(|client| client.size);
    let counts: Vec<usize> = world.clients.iter().map(|client| client.went.len()).collect();
    assert!(counts[0].abs_diff(counts[1]) <= 4, "one request each, in turn: {counts:?}");
}

#[test]
fn a_huge_request_goes_and_is_paid_for_afterwards() {
    let throttle = Throttle::new(rates(MIB, 0));
    let now = Instant::now();
    assert_eq!(throttle.admit(now, 64 * MIB), Admission::Now);
    let Admission::Later(ticket) = throttle.admit(now, 1) else { panic!("it was paid for") };
    // 64 s, less the burst of a tenth.
    assert!(throttle.turn(&ticket, now + Duration::from_millis(63_800)).is_some());
    assert!(throttle.turn(&ticket, now + Duration::from_millis(63_901)).is_none());
}

#[test]
fn a_flush_does_not_wait_for_bytes() {
    let throttle = Throttle::new(rates(1, 0));
    let now = Instant::now();
    assert_eq!(throttle.admit(now, MIB), Admission::Now);
    assert!(matches!(throttle.admit(now, 1), Admission::Later(_)));
    assert_eq!(throttle.admit(now, 0), Admission::Now);
}

#[test]
fn a_limit_changes_while_clients_wait() {
    let mut world = World::new(rates(MIB, 0), &[MIB; 4]);
    world.live_until(Duration::from_secs(20));
    let slow = world.bytes() / MIB;
    assert!((18..=26).contains(&slow), "{slow}");
    world.throttle.set(rates(100 * MIB, 0));
    world.live_until(Duration::from_secs(30));
    let fast = world.bytes() / MIB - slow;
    assert!((980..=1030).contains(&fast), "{fast}");
    world.throttle.set(rates(MIB, 0));
    world.live_until(Duration::from_secs(60));
    let slow = world.bytes() / MIB - slow - fast;
    assert!((18..=34).contains(&slow), "{slow}");
    world.throttle.set(rates(0, 0));
    assert_eq!(world.throttle.rates(), Rates::default());
    let waiting = world.clients.iter().filter(|client| client.waits.is_some()).count();
    assert!(waiting > 0);
    world.live_until(Duration::from_millis(60_101));
    assert!(world.clients.iter().all(|client| client.waits.is_none()), "all were let go");
}

#[test]
fn places_that_are_given_up_move_nobody_forward() {
    let throttle = Throttle::new(rates(MIB, 0));
    let now = Instant::now();
    assert_eq!(throttle.admit(now, MIB), Admission::Now);
    let Admission::Later(mine) = throttle.admit(now, MIB) else { panic!("it was paid for") };
    for _ in 0..100 {
        let Admission::Later(other) = throttle.admit(now, 64 * MIB) else { panic!("paid for") };
        throttle.cancel(other);
    }
    assert!(throttle.turn(&mine, now + Duration::from_millis(890)).is_some());
    assert!(throttle.turn(&mine, now + Duration::from_millis(901)).is_none());
    // The last place is as if it had never been.
    let Admission::Later(next) = throttle.admit(now, 1) else { panic!("it was paid for") };
    assert!(throttle.turn(&next, now + Duration::from_millis(1901)).is_none());
}

#[test]
fn idle_time_saves_no_more_than_the_burst() {
    let throttle = Throttle::new(rates(MIB, 0));
    let late = Instant::now() + Duration::from_secs(3600);
    let went = (0..10_000).filter(|_| throttle.admit(late, 4096) == Admission::Now).count() as u64;
    assert!(went * 4096 <= MIB / 10 + 4096, "{went}");
    assert!(went * 4096 >= MIB / 10 - 4096, "{went}");
}

#[test]
fn absurd_limits_and_sizes_overflow_nothing() {
    for limits in [rates(u64::MAX, u64::MAX), rates(1, 1)] {
        let throttle = Throttle::new(limits);
        let mut now = Instant::now();
        for _ in 0..4 {
            for size in [u64::MAX, 1, 0] {
                if let Admission::Later(ticket) = throttle.admit(now, size) {
                    assert!(throttle.turn(&ticket, now).is_some());
                    throttle.cancel(ticket);
                }
            }
            now += Duration::from_secs(1 << 32);
        }
    }
}

#[test]
fn shards_that_ask_at_once_stand_in_one_line() {
    const THREADS: u64 = 4;
    const EACH: u64 = 5_000;
    let throttle = Throttle::new(rates(0, 1000));
    let at = Instant::now();
    let waits: Vec<Duration> = std::thread::scope(|threads| {
        let ask = || {
            let late = |ticket| match throttle.admit(at, 1) {
                Admission::Now => ticket,
                Admission::Later(last) => Some(last),
            };
            (0..EACH).fold(None, |ticket, _| late(ticket))
        };
        let asking: Vec<_> = (0..THREADS).map(|_| threads.spawn(ask)).collect();
        let last = asking.into_iter().filter_map(|thread| thread.join().unwrap());
        last.map(|ticket| throttle.ops.wait(0, ticket.ops.unwrap())).collect()
    });
    // Whoever came last of all has everybody's work in front of it, but for itself and the burst.
    let most = waits.iter().max().unwrap();
    let ahead = THREADS * EACH - 1;
    assert_eq!(most.as_millis(), u128::from(ahead - 100 + 1));
}
