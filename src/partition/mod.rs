//! Partition tables: where on a disk its partitions lie, so that one of them can be an export.
//!
//! Reads MBR tables with their chains of logical partitions, and GPT (UEFI 2.10, chapter 5) with
//! its backup. Numbers are the kernel's. Thinks only: a [`Scan`] says which bytes it wants, and the
//! caller brings them. Every byte is a guest's and may be a lie: work is bounded, arithmetic is
//! checked, and a partition that does not lie on the disk is left out. Refuses to write tables and
//! to look for file systems.

mod gpt;
mod mbr;
mod scan;
mod table;
#[cfg(test)]
mod tests;

pub use gpt::GptFault;
pub use scan::Scan;
pub use table::{Notice, Partition, PartitionError, PartitionKind, Scheme, Table};
