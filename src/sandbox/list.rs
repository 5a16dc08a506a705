//! The calls a serving process makes, each group with its reason, and those that nobody but an
//! intruder would make.
//!
//! Refuses calls that create: processes, sockets to the outside, rings, files under new names.
//! Found by watching the test-suite with `strace -f -c`, plus what the C library does instead on
//! other versions (`tests/sandbox.rs` runs real clients under the list).

use nix::libc::{self, c_long};

/// Which pages of a file are in memory (`cachestat`, the same number everywhere); not in libc yet.
const CACHESTAT: c_long = 451;

/// Calls allowed whatever their arguments; the kernel remembers these and runs no filter for them.
pub(super) const PLAIN: &[&[c_long]] = &[
    MEMORY,
    THREADS,
    CLOCKS,
    IDENTITY,
    TRANSFER,
    DESCRIPTORS,
    READINESS,
    FILES,
    CONNECTIONS,
    CHILDREN,
    #[cfg(target_arch = "x86_64")]
    OLD_NAMES,
];

/// Allocation, the stacks of new threads, and mapped images, whose faults are counted. (`mmap` and
/// `mprotect` depend on their arguments.)
const MEMORY: &[c_long] = &[
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_mincore,
    libc::SYS_munlock,
    libc::SYS_getrusage,
    libc::SYS_brk,
    libc::SYS_membarrier,
];

/// What threads do, from their first instruction to their last; signals of the runtime. `clone3`
/// is here because an earlier filter answers it: see `calls`.
const THREADS: &[c_long] = &[
    libc::SYS_clone3,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_getcpu,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Where the clock is not mapped into the process, and sleeping.
const CLOCKS: &[c_long] = &[
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
];

/// Asking who one is, and for randomness (seeds of hash tables, TLS).
const IDENTITY: &[c_long] = &[
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_getppid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_getrandom,
];

/// Bytes of images, sockets, eventfds and the log. The standard library copies between standard
/// input, standard output and a socket by `splice` and `sendfile`, and fails if that stops midway.
const TRANSFER: &[c_long] = &[
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_splice,
    libc::SYS_sendfile,
    libc::SYS_copy_file_range,
    libc::SYS_lseek,
    CACHESTAT,
];

/// Descriptors: closing, copying, flags, and the locks of images (`fcntl`).
const DESCRIPTORS: &[c_long] = &[
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_fcntl,
    libc::SYS_pipe2,
];

/// Waiting for descriptors: tokio and the host without io_uring.
const READINESS: &[c_long] = &[
    libc::SYS_ppoll,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
];

/// Images: making them durable, their sizes and holes, and opening others while serving, which
/// Landlock confines; certificates read again; sockets removed at the end.
const FILES: &[c_long] = &[
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_fstatfs,
    libc::SYS_statfs,
    libc::SYS_readlinkat,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_fallocate,
    libc::SYS_ftruncate,
    libc::SYS_fadvise64,
    libc::SYS_memfd_create,
    libc::SYS_unlinkat,
];

/// Connections of clients that came to us. Not `socket`, `connect`, `bind`, `listen`: every
/// listener is there already. (`socketpair` depends on its arguments.)
const CONNECTIONS: &[c_long] = &[
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
];

/// Waiting for a captive command, which was started before.
const CHILDREN: &[c_long] = &[libc::SYS_wait4, libc::SYS_waitid];

/// What x86-64 still has beside the calls above, and C libraries still use.
#[cfg(target_arch = "x86_64")]
const OLD_NAMES: &[c_long] = &[
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_readlink,
    libc::SYS_access,
    libc::SYS_unlink,
    libc::SYS_poll,
    libc::SYS_epoll_wait,
    libc::SYS_dup2,
    libc::SYS_pipe,
    libc::SYS_time,
];

/// Calls after which the process dies at once. No version of a library makes them by itself, so
/// whoever does is an intruder, and the next try might succeed.
pub(super) const DEADLY: &[&[c_long]] = &[
    PROGRAMS,
    OTHERS,
    NAMESPACES,
    KERNEL,
    #[cfg(target_arch = "x86_64")]
    MACHINE,
];

/// Running another program.
const PROGRAMS: &[c_long] = &[libc::SYS_execve, libc::SYS_execveat];

/// Reaching into other processes, or opening files past their paths.
const OTHERS: &[c_long] = &[
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_process_madvise,
    libc::SYS_kcmp,
    libc::SYS_open_by_handle_at,
];

/// Another view of the file system, or of the system.
const NAMESPACES: &[c_long] = &[
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_setns,
    libc::SYS_unshare,
];

/// The kernel's own workings, and the corners exploits of it start from.
const KERNEL: &[c_long] = &[
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_kexec_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    libc::SYS_syslog,
    libc::SYS_personality,
];

/// The machine's ports, the processor's tables, another kernel. (Other machines have no such calls,
/// or no name for them in every C library; they fail there like all that is not on the list.)
#[cfg(target_arch = "x86_64")]
const MACHINE: &[c_long] =
    &[libc::SYS_iopl, libc::SYS_ioperm, libc::SYS_modify_ldt, libc::SYS_kexec_file_load];
