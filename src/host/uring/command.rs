//! The two commands of FUSE over io_uring and the block that goes with each request, byte by byte
//! (`linux/fuse.h`: `fuse_uring_cmd_req`, `fuse_uring_req_header`; `linux/io_uring.h`: a
//! submission of 128 bytes). Plain values; acts on nothing.

use std::ops::Range;

use io_uring::opcode::UringCmd80;
use io_uring::squeue::Flags;

/// Bytes of a submission with room for a command.
pub(super) const SUBMISSION_BYTES: usize = 128;
/// Bytes of the block beside each payload: the request's header or the answer's, the structure of
/// the operation, and what tells of the two.
pub(super) const BLOCK_BYTES: usize = 288;
/// The same, as others count.
pub(in crate::host) const ENTRY_BLOCK_BYTES: u32 = BLOCK_BYTES as u32;
/// The header: 128 bytes.
const HEAD: Range<usize> = 0..128;

/// The iovecs a registration names: the block and the payload.
const IOVECS: u32 = 2;

const REGISTER: u32 = 1;
const COMMIT_AND_FETCH: u32 = 2;

/// Where an entry belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct QueueNo(pub(super) u16);

/// Registers an entry with a queue. `iovecs`: the address of [`IOVECS`] of them.
pub(super) fn register(file: u32, queue: QueueNo, iovecs: u64, name: u64) -> [u8; 128] {
    let mut entry = command(file, REGISTER, queue, 0, name);
    put(&mut entry, 16, &iovecs.to_ne_bytes());
    put(&mut entry, 24, &IOVECS.to_ne_bytes());
    entry
}

/// Answers the request an entry holds, and waits for the next.
pub(super) fn commit(file: u32, queue: QueueNo, commit_id: u64, name: u64) -> [u8; 128] {
    command(file, COMMIT_AND_FETCH, queue, commit_id, name)
}

fn command(file: u32, what: u32, queue: QueueNo, commit_id: u64, name: u64) -> [u8; 128] {
    let mut entry = [0; SUBMISSION_BYTES];
    put(&mut entry, 0, &[UringCmd80::CODE, Flags::FIXED_FILE.bits()]);
    put(&mut entry, 4, &file.to_ne_bytes());
    put(&mut entry, 8, &what.to_ne_bytes());
    put(&mut entry, 32, &name.to_ne_bytes());
    // The command's own area: no flags, then the request it answers, then the queue.
    put(&mut entry, 56, &commit_id.to_ne_bytes());
    put(&mut entry, 64, &queue.0.to_ne_bytes());
    entry
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// What a block says of the request in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    /// What the answer must repeat.
    pub(super) unique: u64,
    /// What the commit must name.
    pub(super) commit_id: u64,
    /// Bytes of payload that came along.
    pub(super) payload_len: usize,
}

/// Reads a block of [`BLOCK_BYTES`]. None: it is shorter.
pub(super) fn request(block: &[u8]) -> Option<Request> {
    let of_u64 = |at: usize| Some(u64::from_ne_bytes(*block.get(at..)?.first_chunk()?));
    let payload = u32::from_ne_bytes(*block.get(272..)?.first_chunk()?);
    Some(Request {
        unique: of_u64(8)?,
        commit_id: of_u64(264)?,
        payload_len: usize::try_from(payload).ok()?,
    })
}

/// Writes an answer's header: an error number (0: none) and how much payload goes along.
pub(super) fn answer(block: &mut [u8], to: Request, errno: i32, payload_len: u32) {
    block[HEAD].fill(0);
    put(block, 0, &payload_len.saturating_add(16).to_ne_bytes());
    put(block, 4, &errno.saturating_neg().to_ne_bytes());
    put(block, 8, &to.unique.to_ne_bytes());
    put(block, 256, &0u64.to_ne_bytes());
    put(block, 264, &to.commit_id.to_ne_bytes());
    put(block, 272, &payload_len.to_ne_bytes());
}

/// How many queues the kernel makes, of what `/sys/devices/system/cpu/possible` says: one for each
/// processor that may ever be there. None: not such a list.
pub(in crate::host) fn queues(possible: &str) -> Option<u16> {
    let mut count: u16 = 0;
    for part in possible.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
        count = count.checked_add(last.checked_sub(first)?.checked_add(1)?)?;
    }
    Some(count)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::{BLOCK_BYTES, QueueNo, Request, answer, commit, queues, register, request};

    fn at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
        bytes[at..at + N].try_into().unwrap()
    }

    // Offsets are those of `struct io_uring_sqe`: opcode 0, flags 1, fd 4, cmd_op 8, addr 16,
    // len 24, user_data 32, cmd 48; and of `struct fuse_uring_cmd_req` in cmd.
    #[test]
    fn a_registration_is_laid_out_as_the_kernel_reads_it() {
        let entry = register(1, QueueNo(0x0102), 0x1122_3344_5566_7788, 77);
        assert_eq!(entry[..2], [46, 1]);
        assert_eq!(i32::from_ne_bytes(at(&entry, 4)), 1);
        assert_eq!(u32::from_ne_bytes(at(&entry, 8)), 1);
        assert_eq!(u64::from_ne_bytes(at(&entry, 16)), 0x1122_3344_5566_7788);
        assert_eq!(u32::from_ne_bytes(at(&entry, 24)), 2);
        assert_eq!(u64::from_ne_bytes(at(&entry, 32)), 77);
        assert_eq!(at::<16>(&entry, 48), [0; 16]);
        assert_eq!(u16::from_ne_bytes(at(&entry, 64)), 0x0102);
        let rest = [&entry[2..4], &entry[12..16], &entry[28..32], &entry[40..48], &entry[66..]];
        assert!(rest.concat().iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_commit_names_the_request_and_no_memory() {
        let entry = commit(0, QueueNo(3), 42, 5);
        assert_eq!(u32::from_ne_bytes(at(&entry, 8)), 2);
        assert_eq!(at::<12>(&entry, 16), [0; 12]);
        assert_eq!(u64::from_ne_bytes(at(&entry, 48)), 0);
        assert_eq!(u64::from_ne_bytes(at(&entry, 56)), 42);
        assert_eq!(u16::from_ne_bytes(at(&entry, 64)), 3);
    }

    // `struct fuse_uring_req_header`: in_out 128, op_in 128, then flags, commit_id, payload_sz.
    #[test]
    fn a_block_tells_its_request_and_takes_its_answer() {
        let mut block = [0xaa; BLOCK_BYTES];
        block[8..16].copy_from_slice(&9u64.to_ne_bytes());
        block[264..272].copy_from_slice(&11u64.to_ne_bytes());
        block[272..276].copy_from_slice(&13u32.to_ne_bytes());
        let told = request(&block).unwrap();
        assert_eq!(told, Request { unique: 9, commit_id: 11, payload_len: 13 });
        assert_eq!(request(&block[..270]), None);

        answer(&mut block, told, 5, 0);
        assert_eq!(i32::from_ne_bytes(at(&block, 4)), -5);
        answer(&mut block, told, 0, 4096);
        assert_eq!(u32::from_ne_bytes(at(&block, 0)), 4112);
        assert_eq!(i32::from_ne_bytes(at(&block, 4)), 0);
        assert_eq!(u64::from_ne_bytes(at(&block, 8)), 9);
        assert_eq!(u64::from_ne_bytes(at(&block, 264)), 11);
        assert_eq!(u32::from_ne_bytes(at(&block, 272)), 4096);
    }

    #[test]
    fn queues_are_counted_from_any_list_of_processors() {
        assert_eq!(queues("0-1\n"), Some(2));
        assert_eq!(queues("0"), Some(1));
        assert_eq!(queues("0-3,8,10-11"), Some(7));
        for odd in ["", "a", "3-1", "0-70000", "0-65535"] {
            assert_eq!(queues(odd), None, "{odd}");
        }
    }
}
