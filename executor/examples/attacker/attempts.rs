//! What an attacker inside a worker tries, and the layer that stops each of it: the
//! one list, for the attacker, for the tests and for `scripts/demo hostile`.

use std::{
    ffi::CString,
    fs, io,
    net::{TcpStream, UdpSocket},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
};

use suanli_executor::ipc;

/// More threads than a worker may have, fewer than would harm a machine without a cap.
pub(crate) const ENOUGH: usize = 2000;

/// One thing to try.
pub(crate) struct Attempt {
    /// What, for people.
    pub(crate) name: &'static str,
    /// What stops it where all layers hold.
    pub(crate) layer: Layer,
    /// Makes it. It is through if this comes back without an error.
    pub(crate) make: fn() -> io::Result<()>,
}

/// What stands between a worker and the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layer {
    /// What is wanted is not there.
    EmptyRoot,
    /// It is there, and can't be opened.
    FilesLocked,
    /// The system call is answered as if the kernel did not have it.
    CallsFiltered,
    /// The system call ends the worker.
    CallsEnd,
    /// The worker has its share, and gets no more.
    Capped,
}

impl Layer {
    /// As people know it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::EmptyRoot => "empty root",
            Self::FilesLocked => "Landlock",
            Self::CallsFiltered => "seccomp",
            Self::CallsEnd => "seccomp: the worker is killed",
            Self::Capped => "control group",
        }
    }

    /// As a worker's confinement names it, held or missing.
    pub(crate) const fn of_confinement(self) -> &'static str {
        match self {
            Self::EmptyRoot => ipc::EMPTY_ROOT,
            Self::FilesLocked => ipc::FILES_LOCKED,
            Self::CallsFiltered | Self::CallsEnd => ipc::SYSTEM_CALLS_FILTERED,
            Self::Capped => ipc::CAPPED,
        }
    }

    /// Whether these are the words of what it stopped.
    pub(crate) fn has_said(self, words: &str) -> bool {
        let its_own: &[&str] = match self {
            Self::EmptyRoot => &["No such file or directory"],
            Self::FilesLocked => &["Permission denied"],
            Self::CallsFiltered => &["Function not implemented"],
            Self::CallsEnd => &["signal: 31 (SIGSYS)"],
            Self::Capped => &["that it is capped to", "Resource temporarily unavailable"],
        };
        its_own.iter().any(|own| words.contains(own))
    }
}

const fn attempt(name: &'static str, layer: Layer, make: fn() -> io::Result<()>) -> Attempt {
    Attempt { name, layer, make }
}

/// Everything, a kind after the other.
pub(crate) fn all() -> impl Iterator<Item = &'static Attempt> {
    let kinds = [FILES, SOCKETS, PROCESSES, KERNEL, MACHINE];
    kinds.into_iter().flatten()
}

/// The operator's files and keys, and what other processes show as files.
const FILES: &[Attempt] = &[
    attempt("read /etc/passwd", Layer::EmptyRoot, || {
        fs::read("/etc/passwd").map(drop)
    }),
    attempt("read a secret, /etc/shadow", Layer::EmptyRoot, || {
        fs::read("/etc/shadow").map(drop)
    }),
    attempt("see the node's key", Layer::EmptyRoot, || {
        see(own_program().with_file_name("node.key"))
    }),
    attempt("see own program", Layer::EmptyRoot, || see(own_program())),
    attempt("read own program", Layer::EmptyRoot, || {
        fs::read("/proc/self/exe").map(drop)
    }),
    attempt("read the daemon's environment", Layer::EmptyRoot, || {
        fs::read(of_parent("environ")).map(drop)
    }),
    attempt("open the daemon's memory", Layer::EmptyRoot, || {
        fs::File::open(of_parent("mem")).map(drop)
    }),
    attempt("list /", Layer::FilesLocked, || fs::read_dir("/").map(drop)),
    attempt("list processes", Layer::FilesLocked, || {
        fs::read_dir("/proc").map(drop)
    }),
    attempt("list home folders", Layer::EmptyRoot, || {
        fs::read_dir("/home").map(drop)
    }),
    attempt("see home folders", Layer::EmptyRoot, || see("/home")),
    attempt("see root's home", Layer::EmptyRoot, || see("/root")),
    attempt("see /tmp", Layer::EmptyRoot, || see("/tmp")),
    attempt("see /run", Layer::EmptyRoot, || see("/run")),
    attempt("see the first process", Layer::EmptyRoot, || see("/proc/1")),
    attempt("see the daemon's process", Layer::EmptyRoot, || {
        see(of_parent(""))
    }),
    attempt("see itself", Layer::EmptyRoot, || see("/proc/self")),
    attempt("see own environment", Layer::EmptyRoot, || {
        see("/proc/self/environ")
    }),
    attempt("see a way around the root", Layer::EmptyRoot, || {
        see("/../../etc/passwd")
    }),
    attempt("write into /tmp", Layer::EmptyRoot, || {
        fs::write("/tmp/suanli-attacker", b"x")
    }),
    attempt("write into /dev/shm", Layer::EmptyRoot, || {
        fs::write("/dev/shm/suanli-attacker", b"x")
    }),
    attempt("make a folder", Layer::CallsFiltered, || {
        fs::create_dir("/tmp/suanli-attacker.d")
    }),
    attempt("remove a file", Layer::CallsFiltered, || {
        fs::remove_file("/tmp/suanli-attacker-none")
    }),
];

const SOCKETS: &[Attempt] = &[
    attempt("connect by TCP", Layer::CallsFiltered, || {
        TcpStream::connect("127.0.0.1:22").map(drop)
    }),
    attempt("open a UDP port", Layer::CallsFiltered, || {
        UdpSocket::bind("127.0.0.1:0").map(drop)
    }),
    attempt("make a Unix socket", Layer::CallsFiltered, || {
        UnixStream::pair().map(drop)
    }),
    attempt("talk with the system bus", Layer::CallsFiltered, || {
        UnixStream::connect("/run/dbus/system_bus_socket").map(drop)
    }),
    attempt("make a netlink socket", Layer::CallsFiltered, || {
        call(libc::SYS_socket, [libc::AF_NETLINK as u64, 3, 0, 0])
    }),
];

/// Processes of one's own, and other people's.
const PROCESSES: &[Attempt] = &[
    attempt("fork", Layer::CallsFiltered, || {
        call(libc::SYS_clone, [17, 0, 0, 0])
    }),
    #[cfg(target_arch = "x86_64")]
    attempt("fork, as of old", Layer::CallsEnd, || {
        call(libc::SYS_fork, [0, 0, 0, 0])
    }),
    attempt("fork by clone3", Layer::CallsFiltered, || {
        call(libc::SYS_clone3, [0, 0, 0, 0])
    }),
    attempt("run a program", Layer::CallsFiltered, || {
        Command::new("/bin/true").status().map(drop)
    }),
    attempt("become another program", Layer::CallsEnd, exec),
    attempt("trace the daemon", Layer::CallsEnd, || {
        call(libc::SYS_ptrace, [16, parent(), 0, 0])
    }),
    attempt("read another process's memory", Layer::CallsEnd, || {
        call(libc::SYS_process_vm_readv, [parent(), 0, 0, 0])
    }),
    attempt("signal the daemon", Layer::CallsFiltered, || {
        call(libc::SYS_kill, [parent(), 0, 0, 0])
    }),
    attempt("signal everybody", Layer::CallsFiltered, || {
        call(libc::SYS_kill, [u64::MAX, 0, 0, 0])
    }),
    attempt("signal the daemon's thread", Layer::CallsFiltered, || {
        call(libc::SYS_tgkill, [parent(), parent(), 0, 0])
    }),
    attempt("open the daemon as a file", Layer::CallsFiltered, || {
        call(libc::SYS_pidfd_open, [parent(), 0, 0, 0])
    }),
    attempt("share memory with others", Layer::CallsFiltered, || {
        call(libc::SYS_shmget, [0, 4096, 0o1600, 0])
    }),
];

/// A way out of the sandbox, or into the kernel.
const KERNEL: &[Attempt] = &[
    attempt("loosen the filter", Layer::CallsFiltered, || {
        call(libc::SYS_seccomp, [0, 0, 0, 0])
    }),
    attempt("raise a limit", Layer::CallsFiltered, || {
        call(libc::SYS_setrlimit, [7, 0, 0, 0])
    }),
    attempt("raise a limit, new way", Layer::CallsFiltered, raise_limit),
    attempt("be dumpable again", Layer::CallsFiltered, || {
        call(libc::SYS_prctl, [4, 1, 0, 0])
    }),
    attempt("make new namespaces", Layer::CallsEnd, || {
        call(libc::SYS_unshare, [libc::CLONE_NEWUSER as u64, 0, 0, 0])
    }),
    attempt("mount", Layer::CallsEnd, || {
        call(libc::SYS_mount, [0, 0, 0, 0])
    }),
    attempt("change roots", Layer::CallsEnd, || {
        call(libc::SYS_chroot, [0, 0, 0, 0])
    }),
    attempt("become root", Layer::CallsEnd, || {
        call(libc::SYS_setuid, [0, 0, 0, 0])
    }),
    attempt("load BPF", Layer::CallsEnd, || {
        call(libc::SYS_bpf, [0, 0, 0, 0])
    }),
    attempt("profile the kernel", Layer::CallsEnd, || {
        call(libc::SYS_perf_event_open, [0, 0, 0, 0])
    }),
    attempt("set up io_uring", Layer::CallsEnd, || {
        call(libc::SYS_io_uring_setup, [1, 0, 0, 0])
    }),
    attempt("set up userfaultfd", Layer::CallsEnd, || {
        call(libc::SYS_userfaultfd, [0, 0, 0, 0])
    }),
    attempt("use the kernel's keys", Layer::CallsEnd, || {
        call(libc::SYS_keyctl, [0, 0, 0, 0])
    }),
    attempt("read the kernel's messages", Layer::CallsEnd, || {
        call(libc::SYS_syslog, [3, 0, 0, 0])
    }),
    attempt("reboot", Layer::CallsEnd, || {
        call(libc::SYS_reboot, [0, 0, 0, 0])
    }),
];

/// What there is of the machine.
const MACHINE: &[Attempt] = &[
    attempt(
        "start threads without end",
        Layer::Capped,
        || match threads() {
            ENOUGH => Ok(()),
            _ => Err(io::Error::from_raw_os_error(libc::EAGAIN)),
        },
    ),
    attempt("take memory without end", Layer::Capped, take_memory),
];

fn take_memory() -> io::Result<()> {
    let mut taken = Vec::new();
    loop {
        // Not zero: each page is written to.
        taken.push(vec![1_u8; 16 << 20]);
    }
}

/// Starts threads that stay, until there are too many for somebody.
pub(crate) fn threads() -> usize {
    let start = |_: &usize| {
        let stays = std::thread::Builder::new().stack_size(64 << 10);
        stays.spawn(std::thread::park).is_ok()
    };
    (0..ENOUGH).take_while(start).count()
}

fn parent() -> u64 {
    rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get().unsigned_abs().into())
}

fn see(path: impl AsRef<Path>) -> io::Result<()> {
    fs::symlink_metadata(path).map(drop)
}

pub(crate) fn own_program() -> PathBuf {
    std::env::args_os().next().unwrap_or_default().into()
}

fn of_parent(file: &str) -> impl AsRef<Path> {
    format!("/proc/{}/{file}", parent())
}

fn call(number: i64, arguments: [u64; 4]) -> io::Result<()> {
    let [a, b, c, d] = arguments;
    // SAFETY: none of the calls above writes memory: their pointers are null.
    let result = unsafe { libc::syscall(number, a, b, c, d) };
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    if number == libc::SYS_clone && result == 0 {
        // SAFETY: ends the child that should not be.
        unsafe { libc::_exit(0) };
    }
    Ok(())
}

fn exec() -> io::Result<()> {
    let program = CString::new("/bin/true")?;
    let arguments = [program.as_ptr(), std::ptr::null()];
    // SAFETY: both strings and the list end with null and live across the call.
    unsafe { libc::execv(program.as_ptr(), arguments.as_ptr()) };
    Err(io::Error::last_os_error())
}

fn raise_limit() -> io::Result<()> {
    let limit = libc::rlimit64 {
        rlim_cur: 512,
        rlim_max: 512,
    };
    // SAFETY: points to a limit that lives across the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            0,
            libc::RLIMIT_NOFILE,
            &raw const limit,
            0,
        )
    };
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
