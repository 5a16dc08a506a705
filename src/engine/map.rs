//! Map: where data and holes are, for block status and `orlop map`.

use super::chain::Found;
use super::disk::Disk;
use super::request::{MapKind, MapRun};
use super::task::{Task, TaskKey};
use super::units::{ByteLen, Extent};

impl Disk {
    pub(super) fn advance_map(&mut self, key: TaskKey, extent: Extent, limit: u32) {
        loop {
            let rest = extent.after(self.tasks[key].cursor);
            if rest.len.is_zero() {
                return;
            }
            let (kind, len) = match self.find(rest) {
                Found::Ask { layer, page } => {
                    self.wait_for_page(key, layer, page);
                    return;
                }
                Found::Hole(len) => (MapKind::Hole, len),
                Found::Zero { layer, len } => (MapKind::Zero { depth: layer }, len),
                Found::Here { layer, len, .. } => (MapKind::Data { depth: layer }, len),
            };
            let task = &mut self.tasks[key];
            if !push_run(task, kind, len, limit) {
                // Enough runs: the answer ends here.
                task.cursor = extent.len;
                return;
            }
            task.cursor += len;
        }
    }
}

/// Appends a run or lengthens the last; false when that would make one too many.
fn push_run(task: &mut Task, kind: MapKind, len: ByteLen, limit: u32) -> bool {
    if let Some(last) = task.runs.last_mut()
        && last.kind == kind
    {
        last.len += len;
        return true;
    }
    if task.runs.len() >= limit.max(1) as usize {
        return false;
    }
    task.runs.push(MapRun { len, kind });
    true
}
