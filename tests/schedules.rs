//! A shard and the threads that ring for it, in thousands of the orders in which they can take
//! turns, by a schedule explorer (shuttle). A shard that sleeps while somebody waits for it is a
//! deadlock, which it finds.
#![allow(clippy::unwrap_used, reason = "no thread that holds a lock panics")]

/// What src/shard/sync.rs has, of the explorer.
mod sync {
    pub(crate) use shuttle::sync::atomic::{AtomicBool, AtomicU32, Ordering};
    pub(crate) use shuttle::sync::{Arc, Mutex, MutexGuard};
    pub(crate) use std::sync::PoisonError;
}

#[allow(dead_code)]
#[path = "../src/shard/belfry.rs"]
mod belfry;

use std::collections::VecDeque;

use belfry::{Belfry, Bell};
use shuttle::sync::Condvar;
use shuttle::thread;
use sync::{Arc, Mutex};

/// The eventfd of a shard.
#[derive(Default)]
struct Waker {
    woken: Mutex<bool>,
    sleeps: Condvar,
}

impl Waker {
    fn wake(&self) {
        *self.woken.lock().unwrap() = true;
        self.sleeps.notify_one();
    }

    /// Waits until somebody wakes; or looks only, where the shard may not sleep.
    fn wait(&self, may_sleep: bool) {
        let mut woken = self.woken.lock().unwrap();
        while may_sleep && !*woken {
            woken = self.sleeps.wait(woken).unwrap();
        }
        *woken = false;
    }
}

/// A client's queue, and its bell.
struct Client {
    queue: Mutex<VecDeque<u32>>,
    bell: Arc<Bell>,
}

/// What threads share.
struct Shared {
    belfry: Belfry,
    waker: Waker,
    clients: Vec<Client>,
}

impl Shared {
    fn new(clients: usize) -> Arc<Self> {
        let client = |key| {
            let bell = Arc::new(Bell::new());
            bell.hang(key);
            Client { queue: Mutex::default(), bell }
        };
        let clients = (0..clients).map(client).collect();
        Arc::new(Self { belfry: Belfry::default(), waker: Waker::default(), clients })
    }

    /// What a mount's thread does with a question.
    fn ask(&self, client: usize, question: u32) {
        let client = &self.clients[client];
        client.queue.lock().unwrap().push_back(question);
        if self.belfry.ring(&client.bell) {
            self.waker.wake();
        }
    }

    /// What a client does when it is called.
    fn taken(&self, client: usize) -> Vec<u32> {
        self.clients[client].queue.lock().unwrap().drain(..).collect()
    }

    /// One turn of a shard, as in src/shard/run.rs: it sleeps if it may, and looks.
    fn turn(&self) -> Vec<usize> {
        self.waker.wait(self.belfry.may_sleep());
        self.belfry.is_up();
        self.belfry.answer()
    }
}

/// Threads ask so many questions each, of so many clients in turn; the shard must hear them all,
/// each client's in the order of who asked them.
fn all_are_heard(threads: u32, questions: u32, clients: usize) {
    let shared = Shared::new(clients);
    let asking = (0..threads).map(|thread| {
        let shared = Arc::clone(&shared);
        thread::spawn(move || {
            for question in 0..questions {
                let client = (thread + question) as usize % shared.clients.len();
                shared.ask(client, thread * questions + question);
            }
        })
    });
    let asking: Vec<_> = asking.collect();
    let mut heard = Vec::new();
    while heard.len() < (threads * questions) as usize {
        for key in shared.turn() {
            heard.extend(shared.taken(key));
        }
    }
    for asked in asking {
        asked.join().unwrap();
    }
    heard.sort_unstable();
    assert!(heard.into_iter().eq(0..threads * questions));
}

#[test]
fn in_none_of_the_first_orders_is_a_question_left_lying() {
    for (threads, questions, clients) in [(1, 2, 1), (1, 2, 2), (2, 1, 1)] {
        shuttle::check_dfs(move || all_are_heard(threads, questions, clients), Some(20_000));
    }
}

#[test]
fn nor_in_many_drawn_orders_of_more_threads() {
    for (threads, questions, clients) in [(2, 2, 1), (2, 3, 2), (3, 3, 2), (4, 2, 3)] {
        shuttle::check_random(move || all_are_heard(threads, questions, clients), 5_000);
        shuttle::check_pct(move || all_are_heard(threads, questions, clients), 5_000, 3);
    }
}

/// A client leaves in the middle; its callers do not hang, and others are heard.
fn one_leaves() {
    let shared = Shared::new(2);
    let theirs = Arc::clone(&shared);
    let asking = thread::spawn(move || {
        theirs.ask(0, 1);
        theirs.ask(0, 2);
        theirs.ask(1, 3);
    });
    let mut heard = Vec::new();
    while !heard.contains(&3) {
        for key in shared.turn() {
            let taken = shared.taken(key);
            if key == 0 {
                shared.clients[0].bell.take_down();
            }
            heard.extend(taken);
        }
    }
    asking.join().unwrap();
    assert!(heard.contains(&1), "{heard:?}");
    assert_eq!(shared.clients[0].bell.key(), None);
    shared.ask(0, 4);
    assert_eq!(shared.belfry.answer(), [], "nobody is called for it");
}

#[test]
fn who_leaves_is_not_called_and_nobody_else_is_forgotten() {
    shuttle::check_random(one_leaves, 5_000);
    shuttle::check_pct(one_leaves, 5_000, 3);
}

/// The explorer finds what it is here for: a client that looks into its queue before its bell is
/// taken for silent may miss a question for good.
#[test]
#[should_panic(expected = "deadlock")]
fn a_client_that_looks_too_early_is_found() {
    let too_early = || {
        let shared = Shared::new(1);
        let theirs = Arc::clone(&shared);
        let asking = thread::spawn(move || (0..2).for_each(|question| theirs.ask(0, question)));
        let mut heard = Vec::new();
        while heard.len() < 2 {
            shared.waker.wait(shared.belfry.may_sleep());
            shared.belfry.is_up();
            let taken = shared.taken(0);
            heard.extend(shared.belfry.answer().into_iter().flat_map(|_| taken.clone()));
        }
        asking.join().unwrap();
    };
    shuttle::check_random(too_early, 10_000);
}
