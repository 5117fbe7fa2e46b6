//! How a worker confines itself, before any thread, compiler or driver.
//!
//! Three lists say what is done, in this order, each with its reason: [`TIDY`]
//! what came from the parent, [`LAYERS`] what the process gives up, [`LOCKS`]
//! what comes last: afterwards not even `/proc` can be read. What the locks
//! still permit stands in the policy file. A layer that cannot be had here is
//! reported to the parent, not passed over in silence; only a wrong parent ends
//! the worker at once.

use std::{
    os::{fd::RawFd, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, CompatLevel, Compatible as _, PathBeneath, PathFd,
    Ruleset, RulesetAttr as _, RulesetCreatedAttr as _, RulesetError, RulesetStatus, Scope,
};
use rustix::{
    io::Errno,
    process::{DumpableBehavior, Gid, Pid, Resource, Rlimit, Signal, Uid},
    thread::{
        CapabilitySet, CapabilitySets, UnshareFlags, set_capabilities, set_thread_groups,
        set_thread_res_gid, set_thread_res_uid, unshare_unsafe,
    },
};
use seccompiler::{BpfProgram, TargetArch};
use serde_json::json;
use suanli_executor::{
    ipc::{
        Confinement, EMPTY_ROOT, FILES_LOCKED, NOT_ROOT, OWN_NAMESPACES, SYSTEM_CALLS_FILTERED,
        Start,
    },
    policy::{Access, CallPermission, Condition, Known, Policy, Value},
};
use suanli_protocol::wire::Utf8;

use crate::root;

struct Layer {
    name: &'static str,
    apply: fn(&Given<'_>) -> Result<(), String>,
}

/// What layers are made by.
struct Given<'a> {
    start: &'a Start,
    policy: Policy,
    /// Folders of the drivers that the operator names.
    drivers: Vec<PathBuf>,
}

/// What must not stay of the parent. Descriptors are found through `/proc`,
/// which a process that is not dumpable can no longer read as a plain user: so
/// this comes first.
const TIDY: &[Layer] = &[
    // The environment of a daemon holds tokens and paths; drivers need none of it.
    Layer {
        name: "environment cleared",
        apply: clear_environment,
    },
    // The parent's sockets, journal and key must not be reachable by number.
    Layer {
        name: "descriptors closed",
        apply: close_descriptors,
    },
    // Relative paths lead nowhere near the data directory.
    Layer {
        name: "working directory /",
        apply: leave_directory,
    },
];

/// What the process gives up.
const LAYERS: &[Layer] = &[
    // Whatever still gets a socket finds a network without a card, and none of
    // the shared memory of others.
    Layer {
        name: OWN_NAMESPACES,
        apply: separate,
    },
    // A file that is not there can't be asked for either: not its name, not its
    // size. Root or the namespaces' own powers are needed for it.
    Layer {
        name: EMPTY_ROOT,
        apply: |given| root::enter(permitted(given)),
    },
    // What a fault in the kernel takes for ours should be worth nothing.
    Layer {
        name: NOT_ROOT,
        apply: become_nobody,
    },
    // A dump would hold a job's data and could fill the disk.
    Layer {
        name: "no core dumps",
        apply: |_| limit(Resource::Core, 0),
    },
    // A driver keeps some dozen files open, a job's descriptors are at most 112.
    Layer {
        name: "512 descriptors",
        apply: |_| limit(Resource::Nofile, 512),
    },
    // Counted over all processes of a user, so it must leave room for the
    // operator's own; the pids cgroup is the real bound.
    Layer {
        name: "4096 processes",
        apply: |_| limit(Resource::Nproc, 4096),
    },
    // Bounds what a job can write into an output, and a driver into memory files.
    Layer {
        name: "file size limited",
        apply: |given| limit(Resource::Fsize, given.start.file_bytes_max),
    },
    // A compiler bomb ends here and not in the machine's memory.
    Layer {
        name: "address space limited",
        apply: |given| limit(Resource::As, given.start.address_space_max),
    },
    // A compiler that loops ends even if its parent is stopped.
    Layer {
        name: "processor time limited",
        apply: limit_processor_time,
    },
    // No setuid program can give back what was given up.
    Layer {
        name: "no new privileges",
        apply: no_new_privileges,
    },
    // No process of the same user can attach, or read our memory through /proc.
    Layer {
        name: "not dumpable",
        apply: not_dumpable,
    },
];

/// The last layers, after which the process has little left to find out with.
const LOCKS: &[Layer] = &[
    // No file but the drivers', no TCP port, no signal to others.
    Layer {
        name: FILES_LOCKED,
        apply: lock_files,
    },
    // No socket, process or mount can be made, and no rarely used corner of the
    // kernel be reached.
    Layer {
        name: SYSTEM_CALLS_FILTERED,
        apply: filter_system_calls,
    },
];

/// The kernel's rules that we know of; an older kernel holds fewer of them,
/// which counts as missing unless it is the newest alone.
const LANDLOCK: ABI = ABI::V6;
/// From here on all that is about files is there.
const LANDLOCK_FILES: ABI = ABI::V3;

/// What a driver may read from the environment; the parent sets no more.
const ENVIRONMENT: &[&str] = &[
    // A cache on disk would outlive the tenant whose shaders filled it.
    "MESA_SHADER_CACHE_DISABLE",
    "__GL_SHADER_DISK_CACHE",
    // Some drivers insist on a folder for sockets that they do not make.
    "XDG_RUNTIME_DIR",
    // Which drivers the loader may load, when the operator says so.
    "VK_DRIVER_FILES",
];

const STANDARD_STREAMS: RawFd = 3;

/// The user and the group that own nothing.
const NOBODY: u32 = 65534;

/// Applies the policy; `None` if the parent is gone or is another, or if the
/// policy that was built in is none.
pub(crate) fn confine(start: &Start) -> Option<Confinement> {
    die_with(start.parent)?;
    let policy = Policy::read().ok()?;
    let given = Given {
        start,
        policy,
        drivers: operators_drivers(),
    };
    let (mut held, mut missing) = (Vec::new(), Vec::new());
    let mut apply = |layers: &[Layer]| {
        for layer in layers {
            match (layer.apply)(&given) {
                Ok(()) => held.push(Utf8::cut(layer.name)),
                Err(reason) => missing.push(Utf8::cut(&format!("{}: {reason}", layer.name))),
            }
        }
    };
    apply(TIDY);
    let environment = std::env::vars_os().map(|(name, _)| Utf8::cut(&name.to_string_lossy()));
    let descriptors = open_descriptors().map_or(0, |open| u32::try_from(open.len()).unwrap_or(0));
    apply(LAYERS);
    // Another identity has cleared it.
    die_with(start.parent)?;
    apply(LOCKS);
    Some(Confinement {
        held: held.try_into().unwrap_or_default(),
        missing: missing.try_into().unwrap_or_default(),
        environment: environment
            .collect::<Vec<_>>()
            .try_into()
            .unwrap_or_default(),
        descriptors,
    })
}

/// The kernel kills this process when the thread that started it ends. If
/// that happened before the call, the parent is another by now.
fn die_with(parent: u32) -> Option<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).ok()?;
    let expected = i32::try_from(parent).ok().and_then(Pid::from_raw);
    (expected.is_some() && rustix::process::getppid() == expected).then_some(())
}

fn clear_environment(_: &Given<'_>) -> Result<(), String> {
    let names = std::env::vars_os()
        .map(|(name, _)| name)
        .collect::<Vec<_>>();
    for name in names {
        if !ENVIRONMENT.iter().any(|allowed| name == *allowed) {
            // SAFETY: this process has one thread, so none reads the
            // environment meanwhile.
            unsafe { std::env::remove_var(name) };
        }
    }
    Ok(())
}

/// The parent's descriptors close on exec; this closes what a library of the
/// parent opened without that flag. The lowest one above the standard streams
/// is our own handle of the parent's socket.
fn close_descriptors(_: &Given<'_>) -> Result<(), String> {
    let open = open_descriptors().map_err(|error| error.to_string())?;
    let ours = open.iter().copied().find(|fd| is_our_socket(*fd));
    for fd in open {
        if fd >= STANDARD_STREAMS && Some(fd) != ours {
            // SAFETY: nothing in this process owns a descriptor but the
            // standard streams and the socket, which are kept; the folder
            // that listed them is closed again and closing it twice is an
            // ignored error.
            unsafe { rustix::io::close(fd) };
        }
    }
    Ok(())
}

/// Whether this is the duplicate of standard input that `WorkerEnd` holds.
fn is_our_socket(fd: RawFd) -> bool {
    let link = |fd: RawFd| std::fs::read_link(format!("/proc/self/fd/{fd}")).ok();
    fd >= STANDARD_STREAMS && link(fd).is_some() && link(fd) == link(0)
}

fn open_descriptors() -> std::io::Result<Vec<RawFd>> {
    let mut open = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        if let Ok(fd) = entry?.file_name().to_string_lossy().parse() {
            open.push(fd);
        }
    }
    // The folder itself was the last one opened and is closed by now.
    open.retain(|fd| std::fs::read_link(format!("/proc/self/fd/{fd}")).is_ok());
    Ok(open)
}

fn leave_directory(_: &Given<'_>) -> Result<(), String> {
    std::env::set_current_dir("/").map_err(|error| error.to_string())
}

/// Namespaces of its own: at once if we may, else inside a user namespace, in
/// which everybody may.
fn separate(_: &Given<'_>) -> Result<(), String> {
    let own = UnshareFlags::NEWNET | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    match unshare(own) {
        Err(Errno::PERM) => {}
        other => return other.map_err(|error| error.to_string()),
    }
    let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
    unshare(own | UnshareFlags::NEWUSER)
        .map_err(|error| format!("user namespaces are not to be had here: {error}"))?;
    // The same names inside as outside.
    let (uid, gid) = (uid.as_raw(), gid.as_raw());
    let write = |file: &str, text: String| {
        std::fs::write(format!("/proc/self/{file}"), text)
            .map_err(|error| format!("{file}: {error}"))
    };
    write("setgroups", "deny".into())?;
    write("uid_map", format!("{uid} {uid} 1"))?;
    write("gid_map", format!("{gid} {gid} 1"))
}

fn unshare(namespaces: UnshareFlags) -> Result<(), Errno> {
    // SAFETY: of all flags only those for descriptors and for the working
    // directory could surprise other code; neither is ever among these.
    unsafe { unshare_unsafe(namespaces) }
}

/// From root to nobody, who keeps the groups of the devices that he serves; and
/// without the capabilities that a namespace of one's own comes with.
fn become_nobody(given: &Given<'_>) -> Result<(), String> {
    let failed = |error: Errno| error.to_string();
    if rustix::process::geteuid().is_root() {
        let (uid, gid) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
        set_thread_groups(&device_groups(&given.policy)).map_err(failed)?;
        set_thread_res_gid(gid, gid, gid).map_err(failed)?;
        set_thread_res_uid(uid, uid, uid).map_err(failed)?;
    }
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, none).map_err(failed)
}

/// The groups that own the devices of the policy file.
fn device_groups(policy: &Policy) -> Vec<Gid> {
    let devices = policy
        .files
        .iter()
        .filter(|file| file.access == Access::Device)
        .flat_map(|file| &file.paths);
    let mut groups: Vec<u32> = Vec::new();
    for path in devices {
        let inside = std::fs::read_dir(path).into_iter().flatten().flatten();
        let files = inside.map(|entry| entry.path()).chain([path.clone()]);
        groups.extend(files.filter_map(|file| Some(std::fs::metadata(file).ok()?.gid())));
    }
    groups.sort_unstable();
    groups.dedup();
    // Root's own group would be worth something.
    groups.retain(|group| *group != 0);
    groups.into_iter().map(Gid::from_raw).collect()
}

/// Sets both the soft and the hard limit, never above the present hard one.
fn limit(resource: Resource, wanted: u64) -> Result<(), String> {
    let present = rustix::process::getrlimit(resource);
    let value = present
        .maximum
        .map_or(wanted, |maximum| maximum.min(wanted));
    let limits = Rlimit {
        current: Some(value),
        maximum: Some(value),
    };
    rustix::process::setrlimit(resource, limits).map_err(|error| error.to_string())
}

fn limit_processor_time(given: &Given<'_>) -> Result<(), String> {
    given
        .start
        .cpu_s_max
        .map_or(Ok(()), |seconds| limit(Resource::Cpu, seconds))
}

/// What may be opened: what the policy file says, and what the operator named as
/// driver.
fn permitted<'a>(given: &'a Given<'_>) -> impl Iterator<Item = (&'a Path, Access)> {
    let files = given.policy.files.iter();
    let files = files.flat_map(|file| file.paths.iter().map(|path| (&**path, file.access)));
    files.chain(given.drivers.iter().map(|folder| (&**folder, Access::Read)))
}

/// The folders of the manifests that the operator names: a driver lies beside its
/// manifest or among the libraries.
fn operators_drivers() -> Vec<PathBuf> {
    let manifests = std::env::var_os("VK_DRIVER_FILES").unwrap_or_default();
    std::env::split_paths(&manifests)
        .filter_map(|path| Some(path.parent()?.to_owned()))
        .filter(|folder| folder.is_absolute())
        .collect()
}

fn no_new_privileges(_: &Given<'_>) -> Result<(), String> {
    rustix::thread::set_no_new_privs(true).map_err(|error| error.to_string())
}

fn not_dumpable(_: &Given<'_>) -> Result<(), String> {
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|error| error.to_string())
}

/// Landlock: only what is permitted can be opened.
fn lock_files(given: &Given<'_>) -> Result<(), String> {
    match lock(permitted(given)).map_err(|error| error.to_string())? {
        RulesetStatus::FullyEnforced => Ok(()),
        // Ports and signals are the system call filter's matter too.
        RulesetStatus::PartiallyEnforced if holds_files() => Ok(()),
        RulesetStatus::PartiallyEnforced => Err("this kernel knows only a part of it".into()),
        RulesetStatus::NotEnforced => {
            Err("this kernel has no Landlock, or it is switched off".into())
        }
    }
}

fn lock<'a>(
    permitted: impl Iterator<Item = (&'a Path, Access)>,
) -> Result<RulesetStatus, RulesetError> {
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(LANDLOCK))?
        .handle_access(AccessNet::from_all(LANDLOCK))?
        .scope(Scope::from_all(LANDLOCK))?
        .create()?;
    for (path, access) in permitted {
        let rights = match access {
            Access::Read => AccessFs::from_read(LANDLOCK),
            Access::Device => {
                AccessFs::ReadFile | AccessFs::ReadDir | AccessFs::WriteFile | AccessFs::IoctlDev
            }
        };
        // A machine has some of them.
        if let Ok(file) = PathFd::new(path) {
            rules = rules.add_rule(PathBeneath::new(file, rights))?;
        }
    }
    Ok(rules.restrict_self()?.ruleset)
}

/// Whether this kernel's Landlock covers all that is about files.
fn holds_files() -> bool {
    let all = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(LANDLOCK_FILES));
    all.is_ok()
}

/// seccomp: attacks end the process; of the rest the policy file's system calls
/// are made, and all others answered as if the kernel did not have them.
fn filter_system_calls(given: &Given<'_>) -> Result<(), String> {
    let programs = filters(&given.policy, std::env::consts::ARCH)?;
    programs
        .iter()
        .try_for_each(|program| seccompiler::apply_filter(program))
        .map_err(|error| error.to_string())
}

/// Two programs: the kernel runs both, and the sterner answer counts.
fn filters(policy: &Policy, arch: &str) -> Result<[BpfProgram; 2], String> {
    let target = TargetArch::try_from(arch).map_err(|error| error.to_string())?;
    let is_here = |on: &Option<String>| on.as_ref().is_none_or(|only| only == arch);
    let attacks = policy.attacks.iter().filter(|attack| is_here(&attack.on));
    let attacks = attacks
        .flat_map(|attack| attack.names.iter().map(|name| json!({"syscall": name})))
        .collect::<Vec<_>>();
    let permitted = policy.system_calls.iter().filter(|call| is_here(&call.on));
    let permitted = permitted.flat_map(rules_of).collect::<Vec<_>>();
    let both = json!({
        "attacks": {
            "mismatch_action": "allow",
            "match_action": "kill_process",
            "filter": attacks,
        },
        "permitted": {
            "mismatch_action": {"errno": Errno::NOSYS.raw_os_error()},
            "match_action": "allow",
            "filter": permitted,
        },
    });
    let compiled = seccompiler::compile_from_json(both.to_string().as_bytes(), target);
    let mut compiled = compiled.map_err(|error| error.to_string())?;
    let mut program = |name| {
        compiled
            .remove(name)
            .ok_or_else(|| format!("no filter `{name}`"))
    };
    Ok([program("attacks")?, program("permitted")?])
}

fn rules_of(call: &CallPermission) -> Vec<serde_json::Value> {
    let names = call.names.iter();
    let rule = |name: &String| match &call.conditions[..] {
        [] => json!({"syscall": name}),
        conditions => json!({
            "syscall": name,
            "args": conditions.iter().map(argument).collect::<Vec<_>>(),
        }),
    };
    names.map(rule).collect()
}

fn argument(condition: &Condition) -> serde_json::Value {
    let index = condition.argument;
    let (op, value) = match (&condition.equals, condition.has_bits) {
        (_, Some(bits)) => (json!({"masked_eq": bits}), bits),
        (Some(Value::Number(number)), None) => (json!("eq"), *number),
        (Some(Value::Known(Known::OwnProcess)), None) => {
            (json!("eq"), u64::from(std::process::id()))
        }
        // Bits that no argument has: the call is refused.
        (None, None) => (json!({"masked_eq": 0}), 1),
    };
    json!({"index": index, "type": "qword", "op": op, "val": value})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_is_one_on_every_architecture() {
        let policy = Policy::read().unwrap();
        for arch in ["x86_64", "aarch64"] {
            let programs = filters(&policy, arch).unwrap();
            assert!(programs.iter().all(|program| program.len() > 20), "{arch}");
        }
    }
}
