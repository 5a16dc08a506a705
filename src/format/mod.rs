//! Formats as the engine sees them: adapters that put a leaf crate's types behind `Layer` and
//! `Leaf`. Refuses to do I/O, and to guess a format from an image's bytes.

mod flat;
mod null;
pub mod vhd;

pub use flat::Flat;
pub use null::Null;
