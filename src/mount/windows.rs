//! The partitions of a disk, as files to be shown.

use orlop_fuse::{Bytes, Offset, Window};

use crate::server::{Control, Seat};

/// The partitions of a whole disk, and what is odd about them. A table that makes no sense is no
/// reason to keep the disk from whoever may want to repair it.
pub(crate) async fn windows(control: &Control, seat: &Seat) -> (Vec<Window>, Vec<String>) {
    let table = match control.partitions(seat).await {
        Ok(table) => table,
        Err(error) => return (Vec::new(), vec![format!("no partitions are shown: {error}")]),
    };
    let shown = |number: u32| (1..=orlop_fuse::tree::PARTITIONS_MAX).contains(&number);
    let windows = table.partitions.iter().filter(|partition| shown(partition.number));
    let windows = windows.map(|partition| Window {
        number: partition.number,
        extent: orlop_fuse::Extent {
            at: Offset(partition.start.get()),
            len: Bytes(partition.len.get()),
        },
    });
    (windows.collect(), table.notices.iter().map(ToString::to_string).collect())
}
