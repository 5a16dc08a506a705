//! A small seeded generator (splitmix64), so that one number replays a whole life.
//!
//! Refuses to be good for anything but simulation: neither secret nor uniform to the last bit.

/// A stream of pseudo-random numbers fixed by its seed.
#[derive(Clone, Debug)]
pub struct Rng(u64);

/// Scrambles a number so that neighbours have nothing in common.
pub const fn mix(raw: u64) -> u64 {
    let a = (raw ^ (raw >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let b = (a ^ (a >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    b ^ (b >> 31)
}

impl Rng {
    /// The stream of `seed`.
    pub const fn new(seed: u64) -> Self {
        Self(mix(seed.wrapping_add(0x9E37_79B9_7F4A_7C15)))
    }

    /// The next 64 bits.
    pub const fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }

    /// A number below `bound`.
    ///
    /// # Panics
    /// When `bound` is zero: there is no such number.
    pub fn below(&mut self, bound: usize) -> usize {
        assert!(bound > 0, "a choice among nothing");
        ((u128::from(self.bits()) * bound as u128) >> 64) as usize
    }

    /// True `of` times out of `out`.
    pub fn chance(&mut self, of: usize, out: usize) -> bool {
        self.below(out) < of
    }

    /// A generator of its own, fixed by this one's state.
    pub fn fork(&mut self) -> Self {
        Self::new(self.bits())
    }
}
