//! Control groups: one for each worker, made and removed by its parent.
//!
//! ```text
//!   the daemon's own group
//!     ├─ suanli-PID-daemon   version 2: where the daemon itself steps, alone
//!     ├─ suanli-PID-0        a worker, with its limits
//!     └─ suanli-PID-1        …
//! ```
//!
//! A worker is put into its group before it hears what it is for, and the group
//! goes when the worker is reaped. What a daemon that crashed left behind, its
//! successor removes: empty groups whose name holds a process id that nobody has.
//! No other group is ever changed but the daemon's own, and that only in version
//! 2 where the daemon is the one process in it: then it was made for the daemon
//! (systemd: `Delegate=yes`), and a group with processes of its own may limit no
//! groups below it.
//!
//! Absent: a share of the processors (it would stand beside the two limits).

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::process::{Pid, Signal};

use crate::{
    limits::{REAP_TIME_MAX, WORKER_THREADS_MAX},
    machine,
};

const NAME: &str = "suanli-";
/// More groups than a daemon ever has at once.
const NAMES_MAX: usize = 4096;
const CONTROLLERS: [&str; 2] = ["memory", "pids"];
/// What the trial group may take.
const TRIAL_BYTES: u64 = 1 << 30;
const REMOVE_INTERVAL: Duration = Duration::from_millis(5);

/// Where groups for workers are made.
#[derive(Debug, Clone)]
pub(crate) enum Groups {
    /// Two hierarchies.
    V1 { memory: PathBuf, pids: PathBuf },
    /// One.
    V2 { base: PathBuf },
}

/// A worker's group. Dropping it removes it, as soon as nobody is in it.
#[derive(Debug)]
pub(crate) struct Group {
    /// With the limit of memory first.
    folders: Vec<PathBuf>,
    is_v2: bool,
    memory_max: u64,
}

impl Groups {
    /// Where this process may make groups that hold; the reason if nowhere.
    pub(crate) fn find() -> Result<Self, String> {
        let read = |file: &str| {
            let path = Path::new("/proc/self").join(file);
            std::fs::read_to_string(path).map_err(|error| format!("{file}: {error}"))
        };
        let (own, mounts) = (read("cgroup")?, read("mountinfo")?);
        let v2 = own_group(&own, &mounts, None)
            .ok_or_else(|| "none are mounted here".to_owned())
            .and_then(|own| {
                Ok(Self::V2 {
                    base: step_aside(&own)?,
                })
            });
        let groups = match v2 {
            Ok(groups) => groups,
            Err(reason) => {
                let [memory, pids] = CONTROLLERS.map(|one| own_group(&own, &mounts, Some(one)));
                let (memory, pids) = memory.zip(pids).ok_or(reason)?;
                Self::V1 { memory, pids }
            }
        };
        groups.sweep();
        let trial = groups.make(TRIAL_BYTES);
        trial.map_err(|error| format!("{}: {error}", groups.bases()[0].display()))?;
        Ok(groups)
    }

    /// Version of the kernel's interface.
    pub(crate) const fn version(&self) -> u32 {
        match self {
            Self::V1 { .. } => 1,
            Self::V2 { .. } => 2,
        }
    }

    /// A new group, with its limits and nobody in it. Memory is limited to what
    /// leaves some of this machine's, too.
    pub(crate) fn make(&self, memory_max: u64) -> io::Result<Group> {
        let memory_max = memory_max.min(machine::memory_bytes() / 8 * 7);
        for number in 0..NAMES_MAX {
            let name = format!("{NAME}{}-{number}", std::process::id());
            let mut group = Group {
                folders: Vec::new(),
                is_v2: self.version() == 2,
                memory_max,
            };
            match group.add(&self.bases(), &name) {
                Ok(()) => return group.limit().map(|()| group),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::other("too many groups are left over"))
    }

    fn bases(&self) -> Vec<&Path> {
        match self {
            Self::V1 { memory, pids } => vec![memory, pids],
            Self::V2 { base } => vec![base],
        }
    }

    /// Removes what daemons left that are no more. The kernel removes no group
    /// that somebody is in.
    fn sweep(&self) {
        for base in self.bases() {
            for entry in std::fs::read_dir(base).into_iter().flatten().flatten() {
                if is_left_over(&entry.file_name().to_string_lossy()) {
                    let _ = std::fs::remove_dir(entry.path());
                }
            }
        }
    }
}

impl Group {
    /// Puts a process into it, with all its threads. Takes some milliseconds, in
    /// which the kernel waits for all processors.
    pub(crate) fn take(folders: &[PathBuf], process: u32) -> io::Result<()> {
        folders
            .iter()
            .try_for_each(|folder| write(folder, "cgroup.procs", process))
    }

    /// What [`Self::take`] needs, on another thread.
    pub(crate) fn folders(&self) -> Vec<PathBuf> {
        self.folders.clone()
    }

    /// Bytes that it may take.
    pub(crate) const fn memory_max(&self) -> u64 {
        self.memory_max
    }

    /// Kills whoever is in it.
    pub(crate) fn kill(&self) {
        let Some(folder) = self.folders.first() else {
            return;
        };
        if self.is_v2 && write(folder, "cgroup.kill", 1).is_ok() {
            return;
        }
        for process in processes(folder).unwrap_or_default() {
            if let Some(process) = Pid::from_raw(process) {
                let _ = rustix::process::kill_process(process, Signal::KILL);
            }
        }
    }

    /// Whether the kernel ended a process in it because of its own limit of
    /// memory, not for want of memory in the whole machine.
    pub(crate) fn ran_out(&self) -> bool {
        let Some(folder) = self.folders.first() else {
            return false;
        };
        if self.is_v2 {
            let events = read(folder, "memory.events");
            return count(&events, "oom") > 0 && count(&events, "oom_kill") > 0;
        }
        // Newer kernels no longer count how often the limit was reached.
        let peak = read(folder, "memory.max_usage_in_bytes").trim().parse();
        let reached = peak.is_ok_and(|peak: u64| peak >= self.memory_max / 16 * 15);
        reached && count(&read(folder, "memory.oom_control"), "oom_kill") > 0
    }

    /// Removes it, after those who are being killed in it have gone.
    pub(crate) async fn remove(mut self) {
        remove(std::mem::take(&mut self.folders)).await;
    }

    fn add(&mut self, bases: &[&Path], name: &str) -> io::Result<()> {
        for base in bases {
            let folder = base.join(name);
            std::fs::create_dir(&folder)?;
            self.folders.push(folder);
        }
        Ok(())
    }

    fn limit(&self) -> io::Result<()> {
        let [Some(memory), Some(pids)] = [self.folders.first(), self.folders.last()] else {
            return Ok(());
        };
        if self.is_v2 {
            write(memory, "memory.max", self.memory_max)?;
            // Where there is swap and it is counted: a worker that is over its
            // limit should end, not slow the machine down.
            let _ = write(memory, "memory.swap.max", 0);
            let _ = write(memory, "memory.oom.group", 1);
        } else {
            write(memory, "memory.limit_in_bytes", self.memory_max)?;
            let _ = write(memory, "memory.memsw.limit_in_bytes", self.memory_max);
            let _ = write(memory, "memory.swappiness", 0);
        }
        write(pids, "pids.max", WORKER_THREADS_MAX)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if try_remove(&mut self.folders) {
            return;
        }
        self.kill();
        let folders = std::mem::take(&mut self.folders);
        // Without a runtime this process is about to end, and the next daemon
        // finds it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(remove(folders));
        }
    }
}

async fn remove(mut folders: Vec<PathBuf>) {
    let tries = REAP_TIME_MAX.as_millis() / REMOVE_INTERVAL.as_millis();
    for _ in 0..tries {
        if try_remove(&mut folders) {
            return;
        }
        tokio::time::sleep(REMOVE_INTERVAL).await;
    }
    tracing::warn!(?folders, "a worker's control group can't be removed");
}

fn try_remove(folders: &mut Vec<PathBuf>) -> bool {
    folders.retain(|folder| {
        let removed = std::fs::remove_dir(folder);
        removed.is_err_and(|error| error.kind() != io::ErrorKind::NotFound)
    });
    folders.is_empty()
}

/// The folder of this process's group: in version 2, or in the hierarchy of this
/// controller. Takes `/proc/self/cgroup` and `/proc/self/mountinfo`.
fn own_group(own: &str, mounts: &str, controller: Option<&str>) -> Option<PathBuf> {
    let path = own.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (number, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let is_it = match controller {
            None => number == "0" && controllers.is_empty(),
            Some(one) => controllers.split(',').any(|listed| listed == one),
        };
        is_it.then_some(path)
    })?;
    mounts.lines().find_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(3);
        let (root, site) = (mount.next()?, mount.next()?);
        let mut file_system = file_system.split(' ');
        let (kind, options) = (file_system.next()?, file_system.nth(1)?);
        let is_it = match controller {
            None => kind == "cgroup2",
            Some(one) => kind == "cgroup" && options.split(',').any(|option| option == one),
        };
        // A container may see its own group as the root.
        let below = Path::new(path).strip_prefix(root).ok()?;
        is_it.then(|| Path::new(site).join(below))
    })
}

/// Where version 2 lets this process limit groups: in its own group, which it
/// leaves for one below if it has to.
fn step_aside(own: &Path) -> Result<PathBuf, String> {
    let leaf = format!("{NAME}{}-daemon", std::process::id());
    if own.file_name().is_some_and(|name| *name == *leaf) {
        return Ok(own.parent().unwrap_or(own).to_owned());
    }
    let has_all = |file| {
        let listed = read(own, file);
        CONTROLLERS
            .iter()
            .all(|one| listed.split_whitespace().any(|listed| listed == *one))
    };
    if has_all("cgroup.subtree_control") {
        return Ok(own.to_owned());
    }
    if !has_all("cgroup.controllers") {
        return Err("its group was not given the controllers memory and pids".to_owned());
    }
    if !own.join("cgroup.type").exists() {
        return Err("it runs in the root group".to_owned());
    }
    let process = std::process::id();
    let inside = processes(own).map_err(|error| error.to_string())?;
    if inside.iter().any(|one| u32::try_from(*one) != Ok(process)) {
        return Err("it shares its group with other processes".to_owned());
    }
    let leaf = own.join(leaf);
    let stepped = std::fs::create_dir(&leaf)
        .and_then(|()| write(&leaf, "cgroup.procs", process))
        .and_then(|()| write(own, "cgroup.subtree_control", "+memory +pids"));
    if let Err(error) = stepped {
        let _ = write(own, "cgroup.procs", process);
        let _ = std::fs::remove_dir(&leaf);
        return Err(format!("{}: {error}", own.display()));
    }
    Ok(own.to_owned())
}

/// Whether a group has our name, and the process that it was made by is gone.
fn is_left_over(name: &str) -> bool {
    let process = name
        .strip_prefix(NAME)
        .and_then(|name| name.split('-').next());
    let process = process.and_then(|process| process.parse::<u32>().ok());
    process.is_some_and(|process| !Path::new(&format!("/proc/{process}")).exists())
}

fn processes(folder: &Path) -> io::Result<Vec<i32>> {
    let listed = std::fs::read_to_string(folder.join("cgroup.procs"))?;
    Ok(listed
        .lines()
        .filter_map(|line| line.parse().ok())
        .collect())
}

/// The number behind a word at the start of a line.
fn count(text: &str, word: &str) -> u64 {
    let found = text
        .lines()
        .find_map(|line| line.strip_prefix(word)?.strip_prefix(' '));
    found
        .and_then(|number| number.trim().parse().ok())
        .unwrap_or(0)
}

fn read(folder: &Path, file: &str) -> String {
    std::fs::read_to_string(folder.join(file)).unwrap_or_default()
}

fn write(folder: &Path, file: &str, value: impl std::fmt::Display) -> io::Result<()> {
    std::fs::write(folder.join(file), value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
39 31 0:36 /docker/7f /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate
";

    #[test]
    fn own_groups_are_found_in_each_hierarchy() {
        let own = "9:memory:/user/a\n4:name=systemd,pids:/docker/7f/b\n0::/user.slice/x.service\n";
        let found = |controller| own_group(own, MOUNTS, controller);
        let path = |path: &str| Some(PathBuf::from(path));
        assert_eq!(found(Some("memory")), path("/sys/fs/cgroup/memory/user/a"));
        assert_eq!(found(Some("pids")), path("/sys/fs/cgroup/pids/b"));
        assert_eq!(
            found(None),
            path("/sys/fs/cgroup/unified/user.slice/x.service")
        );
        assert_eq!(found(Some("cpu")), None);
        assert_eq!(own_group("4:pids:/elsewhere\n", MOUNTS, Some("pids")), None);
    }

    #[test]
    fn only_groups_of_the_dead_are_left_over() {
        assert!(!is_left_over(&format!("suanli-{}-0", std::process::id())));
        // Linux has no process ids this large.
        assert!(is_left_over("suanli-4294967295-0"));
        assert!(is_left_over("suanli-4294967295-daemon"));
        for name in ["suanli-", "suanli-x-1", "system.slice", "4294967295"] {
            assert!(!is_left_over(name), "{name}");
        }
    }

    #[test]
    fn a_group_that_was_not_made_for_us_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path();
        let why = || step_aside(own).unwrap_err();
        let put = |file, text: &str| std::fs::write(own.join(file), text).unwrap();
        put("cgroup.controllers", "cpu pids\n");
        assert!(why().contains("controllers"), "{}", why());
        put("cgroup.controllers", "cpu memory pids\n");
        assert!(why().contains("root group"), "{}", why());
        put("cgroup.type", "domain\n");
        put("cgroup.procs", &format!("{}\n1\n", std::process::id()));
        assert!(why().contains("other processes"), "{}", why());
        assert!(!own.join("cgroup.subtree_control").exists());
        put("cgroup.procs", &format!("{}\n", std::process::id()));
        assert_eq!(step_aside(own).unwrap(), own);
        assert_eq!(read(own, "cgroup.subtree_control"), "+memory +pids");
        let leaf = own.join(format!("suanli-{}-daemon", std::process::id()));
        assert_eq!(read(&leaf, "cgroup.procs"), std::process::id().to_string());
        assert_eq!(step_aside(&leaf).unwrap(), own);
    }

    #[test]
    fn numbers_are_read_behind_whole_words() {
        let events = "low 0\nmax 12\noom 1\noom_kill 3\n";
        assert_eq!(count(events, "oom"), 1);
        assert_eq!(count(events, "oom_kill"), 3);
        assert_eq!(count(events, "none"), 0);
    }
}
