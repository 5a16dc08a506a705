//! How often clients may make the log say something: a few lines a second, whoever they are.
//!
//! Refuses to let a stranger fill a disk with what it did wrong.

use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Lines in one stretch.
const LINES_MAX: u32 = 20;
/// A stretch.
const STRETCH: Duration = Duration::from_secs(1);

/// The lines of the stretch that is running.
#[derive(Debug, Default)]
pub(super) struct Words {
    stretch: Mutex<Option<Stretch>>,
}

#[derive(Debug)]
struct Stretch {
    began: Instant,
    said: u32,
    unsaid: u32,
}

impl Words {
    /// Says it, unless enough was said just now.
    pub(super) fn say(&self, line: impl FnOnce()) {
        let unsaid = self.may_say(Instant::now());
        if let Some(unsaid) = unsaid {
            if unsaid > 0 {
                tracing::info!(unsaid, "more lines about clients were left out");
            }
            line();
        }
    }

    /// How many lines were left out before this one; `None` when it is to be left out itself.
    fn may_say(&self, now: Instant) -> Option<u32> {
        let mut stretch = self.stretch.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let over = |it: &Stretch| now.saturating_duration_since(it.began) >= STRETCH;
        let (fresh, unsaid) = match &*stretch {
            Some(running) if !over(running) => (false, 0),
            Some(last) => (true, last.unsaid),
            None => (true, 0),
        };
        if fresh {
            *stretch = Some(Stretch { began: now, said: 1, unsaid: 0 });
            return Some(unsaid);
        }
        let running = stretch.as_mut()?;
        if running.said < LINES_MAX {
            running.said += 1;
            return Some(0);
        }
        running.unsaid = running.unsaid.saturating_add(1);
        None
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{LINES_MAX, Words};

    #[test]
    fn a_flood_becomes_a_few_lines_and_a_number() {
        let (words, start) = (Words::default(), Instant::now());
        let said = (0..1000).filter(|_| words.may_say(start).is_some()).count();
        assert_eq!(said, LINES_MAX as usize);
        let later = start + Duration::from_secs(2);
        assert_eq!(words.may_say(later), Some(1000 - LINES_MAX));
        assert_eq!(words.may_say(later), Some(0));
    }
}
