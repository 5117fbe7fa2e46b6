//! A worker that has been taken over: confined just as `suanli-worker` is, it
//! then tries what an attacker would, and answers its parent's probe with what
//! came of it, a line an attempt: `NAME: done` or `NAME: ` and the error. Under
//! the role `serve` it waits for an execution, and attacks then, or takes memory
//! without end if told `memory`. Called `threads` it says how many it could start, and
//! called `forks` how many processes, which it is confined from in no way but by its
//! control group.
//! Under a file name that ends in a number it makes just that attack of those that a
//! worker should not survive; with none of that number, it says how many there
//! are.
//!
//! For tests only; it does nothing that outlives it.

use std::{
    ffi::CString,
    fs, io,
    net::{TcpStream, UdpSocket},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use suanli_executor::ipc::{Adapter, AdapterKind, Confinement, Failure, Reply, Request, WorkerEnd};
use suanli_protocol::wire::{List, Utf8};

#[path = "../src/bin/suanli-worker/confine.rs"]
mod confine;
#[path = "../src/bin/suanli-worker/root.rs"]
mod root;

type Attempt = (&'static str, fn() -> io::Result<()>);

/// More threads or processes than a worker may have, fewer than would harm a machine
/// without a cap.
const ENOUGH: usize = 2000;

/// What is refused, and the worker goes on.
const ATTEMPTS: &[Attempt] = &[
    ("read /etc/passwd", || fs::read("/etc/passwd").map(drop)),
    ("read own program", || fs::read("/proc/self/exe").map(drop)),
    ("read parent's environment", || {
        fs::read(of_parent("environ")).map(drop)
    }),
    ("read parent's memory", || {
        fs::File::open(of_parent("mem")).map(drop)
    }),
    ("list /", || fs::read_dir("/").map(drop)),
    ("list processes", || fs::read_dir("/proc").map(drop)),
    ("list home folders", || fs::read_dir("/home").map(drop)),
    ("write into /tmp", || {
        fs::write("/tmp/suanli-attacker", b"x")
    }),
    ("make a folder", || fs::create_dir("/tmp/suanli-attacker.d")),
    ("write into /dev/shm", || {
        fs::write("/dev/shm/suanli-attacker", b"x")
    }),
    ("remove a file", || {
        fs::remove_file("/tmp/suanli-attacker-none")
    }),
    ("read a secret", || fs::read("/etc/shadow").map(drop)),
    ("TCP", || TcpStream::connect("127.0.0.1:22").map(drop)),
    ("UDP", || UdpSocket::bind("127.0.0.1:0").map(drop)),
    ("Unix socket", || UnixStream::pair().map(drop)),
    ("Unix socket of a path", || {
        UnixStream::connect("/run/dbus/system_bus_socket").map(drop)
    }),
    ("netlink socket", || {
        call(libc::SYS_socket, [libc::AF_NETLINK as u64, 3, 0, 0])
    }),
    ("fork", || call(libc::SYS_clone, [17, 0, 0, 0])),
    ("run a program", || {
        Command::new("/bin/true").status().map(drop)
    }),
    ("clone3", || call(libc::SYS_clone3, [0, 0, 0, 0])),
    ("signal the parent", || {
        call(libc::SYS_kill, [parent(), 0, 0, 0])
    }),
    ("signal everybody", || {
        call(libc::SYS_kill, [u64::MAX, 0, 0, 0])
    }),
    ("signal the parent's thread", || {
        call(libc::SYS_tgkill, [parent(), parent(), 0, 0])
    }),
    ("open the parent as a file", || {
        call(libc::SYS_pidfd_open, [parent(), 0, 0, 0])
    }),
    ("raise a limit", || call(libc::SYS_setrlimit, [7, 0, 0, 0])),
    ("raise a limit, new way", raise_limit),
    ("be dumpable again", || call(libc::SYS_prctl, [4, 1, 0, 0])),
    ("shared memory of System V", || {
        call(libc::SYS_shmget, [0, 4096, 0o1600, 0])
    }),
    ("loosen the filter", || {
        call(libc::SYS_seccomp, [0, 0, 0, 0])
    }),
];

/// What is not even there in an empty root. Landlock would let it be asked for.
const SIGHTS: &[Attempt] = &[
    ("see /etc/passwd", || see("/etc/passwd")),
    ("see home folders", || see("/home")),
    ("see root's home", || see("/root")),
    ("see /tmp", || see("/tmp")),
    ("see /run", || see("/run")),
    ("see the first process", || see("/proc/1")),
    ("see the parent's process", || see(of_parent(""))),
    ("see itself", || see("/proc/self")),
    ("see own environment", || see("/proc/self/environ")),
    ("see a way around the root", || see("/../../etc/passwd")),
    ("see own program", || see(own_program())),
    ("see the node's key", || {
        see(own_program().with_file_name("node.key"))
    }),
];

/// What is taken for an attack: the worker should not come back from it.
const ATTACKS: &[Attempt] = &[
    ("exec", exec),
    ("trace the parent", || {
        call(libc::SYS_ptrace, [16, parent(), 0, 0])
    }),
    ("read another's memory", || {
        call(libc::SYS_process_vm_readv, [parent(), 0, 0, 0])
    }),
    ("new namespaces", || {
        call(libc::SYS_unshare, [libc::CLONE_NEWUSER as u64, 0, 0, 0])
    }),
    ("mount", || call(libc::SYS_mount, [0, 0, 0, 0])),
    ("chroot", || call(libc::SYS_chroot, [0, 0, 0, 0])),
    ("become root", || call(libc::SYS_setuid, [0, 0, 0, 0])),
    ("load BPF", || call(libc::SYS_bpf, [0, 0, 0, 0])),
    ("profile the kernel", || {
        call(libc::SYS_perf_event_open, [0, 0, 0, 0])
    }),
    ("io_uring", || call(libc::SYS_io_uring_setup, [1, 0, 0, 0])),
    ("userfaultfd", || call(libc::SYS_userfaultfd, [0, 0, 0, 0])),
    ("kernel keys", || call(libc::SYS_keyctl, [0, 0, 0, 0])),
    ("reboot", || call(libc::SYS_reboot, [0, 0, 0, 0])),
    #[cfg(target_arch = "x86_64")]
    ("fork, as of old", || call(libc::SYS_fork, [0, 0, 0, 0])),
    ("read kernel messages", || {
        call(libc::SYS_syslog, [3, 0, 0, 0])
    }),
];

fn main() -> ExitCode {
    let Ok(mut parent) = WorkerEnd::from_stdin() else {
        return ExitCode::from(2);
    };
    let Ok((Request::Start(start), _)) = parent.receive() else {
        return ExitCode::FAILURE;
    };
    if own_program().ends_with("forks") {
        return answer(&mut parent, &forks().to_string());
    }
    let Some(confinement) = confine::confine(&start) else {
        return ExitCode::FAILURE;
    };
    if std::env::args().nth(1).as_deref() == Some("serve") {
        return serve(&mut parent, confinement);
    }
    if own_program().ends_with("threads") {
        return answer(&mut parent, &threads().to_string());
    }
    if let Some(number) = number_in_name() {
        let came_of_it = match ATTACKS.get(number) {
            Some((name, attack)) => format!("survived: {name}: {:?}", attack()),
            None => ATTACKS.len().to_string(),
        };
        return answer(&mut parent, &came_of_it);
    }
    let mut said = format!("missing: {:?}\n", confinement.missing);
    said += &format!(
        "root: {}\n",
        rustix::process::getuid().is_root() || rustix::process::geteuid().is_root()
    );
    for (name, attempt) in ATTEMPTS.iter().chain(SIGHTS) {
        let came_of_it = match attempt() {
            Ok(()) => "done".to_owned(),
            Err(error) => error.to_string(),
        };
        said += &format!("{name}: {came_of_it}\n");
    }
    // What it may still do.
    let thread = std::thread::spawn(|| 7).join();
    said += &format!(
        "a thread: {}\n",
        if thread.is_ok() { "done" } else { "failed" }
    );
    answer(&mut parent, &said)
}

fn serve(parent: &mut WorkerEnd, confinement: Confinement) -> ExitCode {
    let adapter = Adapter {
        index: 0,
        name: Utf8::cut("none"),
        backend: Utf8::cut("vulkan"),
        driver: Utf8::cut("none"),
        kind: AdapterKind::Other,
        memory_bytes: 0,
        binding_bytes_max: 0,
        buffer_bytes_max: 0,
        features: List::default(),
        vendor: 0,
    };
    let ready = Reply::Ready {
        adapter: Some(adapter),
        confinement,
    };
    if parent.send(&ready).is_ok() && parent.receive().is_ok() {
        if std::env::args().nth(2).as_deref() == Some("memory") {
            take_memory();
        }
        let _ = call(libc::SYS_ptrace, [16, self::parent(), 0, 0]);
    }
    ExitCode::FAILURE
}

fn take_memory() {
    let mut taken = Vec::new();
    loop {
        // Not zero: each page is written to.
        taken.push(vec![1_u8; 16 << 20]);
    }
}

/// Starts threads that stay, until there are too many for somebody.
fn threads() -> usize {
    let start = |_: &usize| {
        let stays = std::thread::Builder::new().stack_size(64 << 10);
        stays.spawn(std::thread::park).is_ok()
    };
    (0..ENOUGH).take_while(start).count()
}

/// Starts processes that stay, until there are too many for somebody.
fn forks() -> usize {
    let fork = |_: &usize| {
        // SAFETY: this process has one thread, and the child calls but `pause`.
        let child = unsafe { libc::fork() };
        if child == 0 {
            loop {
                // SAFETY: takes nothing, and comes back only after a signal.
                unsafe { libc::pause() };
            }
        }
        child > 0
    };
    (0..ENOUGH).take_while(fork).count()
}

fn number_in_name() -> Option<usize> {
    let name = std::env::args().next()?;
    name.rsplit('-').next()?.parse().ok()
}

fn answer(parent: &mut WorkerEnd, said: &str) -> ExitCode {
    let reply = Reply::Failed {
        failure: Failure::Internal,
        detail: Utf8::cut(said),
        used: Default::default(),
    };
    match parent.send(&reply) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn parent() -> u64 {
    rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get().unsigned_abs().into())
}

fn see(path: impl AsRef<Path>) -> io::Result<()> {
    fs::symlink_metadata(path).map(drop)
}

fn own_program() -> PathBuf {
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
