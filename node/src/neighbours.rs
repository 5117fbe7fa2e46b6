//! Whether another program uses the device that a node sells.
//!
//! Three sources, which are only read; the adapter's maker decides which of them serve:
//!
//! | source | says | does not say |
//! |---|---|---|
//! | `/proc/*/fdinfo` of DRM drivers (`drm-engine-…`) | which process had the engines for how long, since the last look | processes of others, unless the node runs as root |
//! | `gpu_busy_percent` of amdgpu | how busy the device is, all in all | by whom: it counts while no job runs here |
//! | `nvidia-smi --query-compute-apps=pid` | which processes have a compute context, idle or not | graphics; how busy they are |
//!
//! This process and all below it are left out, workers included. What a container hides
//! is not seen. A software adapter has no neighbours: the system's scheduler shares the
//! processor. Absent: what follows from a neighbour ([`crate::pause`]).

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use suanli_executor::Adapter;

use crate::handle::NodeHandle;

/// How often it is looked.
const EVERY: Duration = Duration::from_secs(5);
/// A driver that hangs is not waited for longer.
const SMI_TIME_MAX: Duration = Duration::from_secs(4);
/// A blinking cursor is no use of a device: below this part of the time, in percent.
const BUSY_PERCENT: u128 = 5;
/// The same where it is not known who is busy.
const SOMEBODY_PERCENT: u64 = 20;
/// Processes above a process that are looked through for this one.
const ANCESTORS_MAX: usize = 64;

const AMD: u32 = 0x1002;
const INTEL: u32 = 0x8086;
const NVIDIA: u32 = 0x10de;

/// Looks for other programs on one device.
#[derive(Debug)]
pub struct Neighbours {
    root: PathBuf,
    /// This process.
    own: u32,
    vendor: u32,
    source: Source,
    before: Option<(Instant, Engines)>,
}

/// Where the answer comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Engine times of DRM clients, and for AMD how busy the device is.
    Drm,
    /// The program of NVIDIA's driver.
    NvidiaSmi(PathBuf),
    /// Nothing says it: why, and what to do.
    None(&'static str),
}

/// What DRM clients used: nanoseconds of all engines, and the process.
type Engines = BTreeMap<(String, u64), (u64, u32)>;

impl Neighbours {
    /// Those of an adapter. `root` is `/`, but for tests.
    pub fn find(root: &Path, adapter: &Adapter) -> Self {
        Self {
            root: root.to_owned(),
            own: std::process::id(),
            vendor: adapter.vendor,
            source: source(root, adapter),
            before: None,
        }
    }

    /// Where the answer comes from.
    pub const fn source(&self) -> &Source {
        &self.source
    }

    /// The name of a program that uses the device, if there is one. `works`: jobs run
    /// here, too. Takes as long as reading about every process does.
    fn look(&mut self, said: Option<&str>, works: bool) -> Option<String> {
        match &self.source {
            Source::None(_) => None,
            Source::NvidiaSmi(_) => self.nvidia_neighbour(said?),
            Source::Drm => self.drm_neighbour(works, Instant::now()),
        }
    }

    fn drm_neighbour(&mut self, works: bool, now: Instant) -> Option<String> {
        let engines = self.engines();
        let before = self.before.replace((now, engines.clone()));
        let (since, before) = before?;
        let elapsed = now.duration_since(since).as_nanos();
        let is_busy = |client: &&(String, u64)| {
            let used = |engines: &Engines| engines.get(*client).map_or(0, |(used, _)| *used);
            let more = used(&engines).saturating_sub(used(&before));
            u128::from(more) * 100 > elapsed * BUSY_PERCENT
        };
        if let Some(client) = engines.keys().find(is_busy) {
            return engines.get(client).map(|(_, pid)| self.name_of(*pid));
        }
        let is_busy = !works && self.busy_percent() >= SOMEBODY_PERCENT;
        is_busy.then(|| "another program".to_owned())
    }

    /// The engine times of all clients of the maker's drivers but our own.
    fn engines(&self) -> Engines {
        let mut engines = Engines::new();
        for pid in numbered(&self.root.join("proc")) {
            let folder = self.root.join(format!("proc/{pid}/fdinfo"));
            let clients = numbered(&folder).filter_map(|descriptor| {
                let text = fs::read_to_string(folder.join(descriptor.to_string())).ok()?;
                drm_client(&text, self.vendor)
            });
            let clients = clients.collect::<Vec<_>>();
            if !clients.is_empty() && !self.is_ours(pid) {
                // Several descriptors of one client say the same.
                engines.extend(clients.into_iter().map(|(id, used)| (id, (used, pid))));
            }
        }
        engines
    }

    /// The busiest device of the maker; 0 where the driver does not say.
    fn busy_percent(&self) -> u64 {
        let cards = fs::read_dir(self.root.join("sys/class/drm"));
        let devices = cards.into_iter().flatten().flatten();
        let devices = devices.map(|card| card.path().join("device"));
        let number = |path: PathBuf| fs::read_to_string(path).ok();
        let of_maker = devices.filter(|device| {
            let vendor = number(device.join("vendor")).unwrap_or_default();
            vendor.trim() == format!("{:#06x}", self.vendor)
        });
        let percent = of_maker.filter_map(|device| {
            let text = number(device.join("gpu_busy_percent"))?;
            text.trim().parse().ok()
        });
        percent.max().unwrap_or(0)
    }

    /// The first process of `nvidia-smi`'s answer that is here and not ours.
    fn nvidia_neighbour(&self, said: &str) -> Option<String> {
        let pids = said.lines().filter_map(|line| line.trim().parse().ok());
        // Numbers that are not here are of another container, or ours by another number.
        let here = pids.filter(|pid: &u32| self.root.join(format!("proc/{pid}")).is_dir());
        let mut others = here.filter(|pid| !self.is_ours(*pid));
        others.next().map(|pid| self.name_of(pid))
    }

    /// Whether a process is this one, or was started below it.
    fn is_ours(&self, pid: u32) -> bool {
        let above = std::iter::successors(Some(pid), |pid| self.parent_of(*pid));
        above.take(ANCESTORS_MAX).any(|pid| pid == self.own)
    }

    fn parent_of(&self, pid: u32) -> Option<u32> {
        let stat = fs::read_to_string(self.root.join(format!("proc/{pid}/stat"))).ok()?;
        // The name before it may hold anything.
        let (_, fields) = stat.rsplit_once(')')?;
        let parent = fields.split_whitespace().nth(1)?.parse().ok()?;
        (parent > 1).then_some(parent)
    }

    fn name_of(&self, pid: u32) -> String {
        let name = fs::read_to_string(self.root.join(format!("proc/{pid}/comm")));
        let name = name.unwrap_or_default();
        let name = name.trim().chars().filter(|c| !c.is_control());
        format!("{} (process {pid})", name.collect::<String>())
    }
}

/// Tells the node of neighbours, until it ends.
pub(crate) async fn watch(handle: NodeHandle, mut neighbours: Neighbours) {
    loop {
        tokio::time::sleep(EVERY).await;
        let Ok(snapshot) = handle.snapshot().await else {
            return;
        };
        let said = match &neighbours.source {
            Source::NvidiaSmi(program) => ask_nvidia(program).await,
            Source::Drm | Source::None(_) => None,
        };
        let works = snapshot.slots_used > 0;
        let looked = tokio::task::spawn_blocking(move || {
            let seen = neighbours.look(said.as_deref(), works);
            (neighbours, seen)
        });
        let Ok((again, seen)) = looked.await else {
            return;
        };
        neighbours = again;
        if let Some(name) = seen
            && handle.neighbour(name).await.is_err()
        {
            return;
        }
    }
}

fn source(root: &Path, adapter: &Adapter) -> Source {
    if adapter.is_software() {
        return Source::None("it is the processor, which the system shares out");
    }
    if adapter.vendor == NVIDIA {
        let paths = std::env::var_os("PATH").unwrap_or_default();
        let mut programs = std::env::split_paths(&paths).map(|folder| folder.join("nvidia-smi"));
        let program = programs.find(|program| program.is_file());
        let missing = Source::None("install `nvidia-smi`, which belongs to the driver");
        return program.map_or(missing, Source::NvidiaSmi);
    }
    match root.join("proc/self/fdinfo").is_dir() && root.join("sys/class/drm").is_dir() {
        true => Source::Drm,
        false => Source::None("mount /proc and /sys, and use a driver of the kernel's DRM"),
    }
}

async fn ask_nvidia(program: &Path) -> Option<String> {
    let asked = tokio::process::Command::new(program)
        .args(["--query-compute-apps=pid", "--format=csv,noheader"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(SMI_TIME_MAX, asked).await.ok()?.ok()?;
    String::from_utf8(output.stdout).ok()
}

/// A DRM client's name and the nanoseconds that it had engines, if a descriptor is one
/// of this maker's driver.
fn drm_client(text: &str, vendor: u32) -> Option<((String, u64), u64)> {
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    let value = |wanted: &str| {
        let mut found = lines.clone().filter(|(key, _)| *key == wanted);
        found.next().map(|(_, value)| value.trim())
    };
    let driver = value("drm-driver")?;
    let is_of_maker = match vendor {
        AMD => matches!(driver, "amdgpu" | "radeon"),
        INTEL => matches!(driver, "i915" | "xe"),
        _ => true,
    };
    let client = value("drm-client-id")?.parse().ok()?;
    let device = value("drm-pdev").unwrap_or(driver).to_owned();
    let engines = lines.filter(|(key, _)| {
        key.starts_with("drm-engine-") && !key.starts_with("drm-engine-capacity-")
    });
    let used = engines.filter_map(|(_, value)| {
        let nanoseconds = value.trim().strip_suffix("ns")?.trim_end();
        nanoseconds.parse::<u64>().ok()
    });
    let used = used.fold(0, u64::saturating_add);
    is_of_maker.then_some(((device, client), used))
}

/// What in a folder has a number for its name.
fn numbered(folder: &Path) -> impl Iterator<Item = u32> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: u32 = 100;
    const SECOND: Duration = Duration::from_secs(1);

    /// A tree with a node (100), its worker (101) and another program (200).
    struct Machine {
        root: tempfile::TempDir,
        neighbours: Neighbours,
        began: Instant,
    }

    impl Machine {
        fn new(vendor: u32) -> Self {
            let root = tempfile::tempdir().unwrap();
            let machine = Self {
                neighbours: Neighbours {
                    root: root.path().to_owned(),
                    own: OWN,
                    vendor,
                    source: Source::Drm,
                    before: None,
                },
                root,
                began: Instant::now(),
            };
            for (pid, parent, name) in [(OWN, 1, "suanli"), (101, OWN, "w) 1 (x"), (200, 7, "game")]
            {
                let stat = format!("{pid} ({name}) S {parent} 1 1");
                machine.write(&format!("proc/{pid}/stat"), &stat);
                machine.write(&format!("proc/{pid}/comm"), &format!("{name}\n"));
            }
            machine
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn used(&self, pid: u32, driver: &str, milliseconds: u64) {
            let text = format!(
                "pos:\t0\ndrm-driver:\t{driver}\ndrm-client-id:\t{pid}\ndrm-pdev:\t0000:03:00.0\n\
                 drm-engine-capacity-gfx:\t2\ndrm-engine-gfx:\t{milliseconds}000000 ns\ndrm-engine-dec:\t7 ns\n"
            );
            // Two descriptors of one client are one client.
            self.write(&format!("proc/{pid}/fdinfo/5"), &text);
            self.write(&format!("proc/{pid}/fdinfo/6"), &text);
            self.write(&format!("proc/{pid}/fdinfo/0"), "pos:\t0\n");
        }

        fn look(&mut self, after: u32, works: bool) -> Option<String> {
            self.neighbours
                .drm_neighbour(works, self.began + SECOND * after)
        }
    }

    #[test]
    fn a_program_that_keeps_the_engines_busy_is_seen_and_own_workers_are_not() {
        let mut machine = Machine::new(AMD);
        machine.used(101, "amdgpu", 0);
        machine.used(200, "amdgpu", 50_000);
        assert_eq!(machine.look(0, true), None);
        machine.used(101, "amdgpu", 900);
        machine.used(200, "amdgpu", 50_049);
        assert_eq!(machine.look(1, true), None);
        machine.used(200, "amdgpu", 50_200);
        assert_eq!(machine.look(2, true).unwrap(), "game (process 200)");
        // It has the device open, and does nothing.
        assert_eq!(machine.look(3, true), None);
    }

    #[test]
    fn another_makers_driver_and_what_is_no_client_do_not_count() {
        let mut machine = Machine::new(INTEL);
        machine.used(200, "amdgpu", 0);
        assert_eq!(machine.look(0, false), None);
        machine.used(200, "amdgpu", 900);
        assert_eq!(machine.look(1, false), None);
        assert!(drm_client("drm-driver:\ti915\n", INTEL).is_none());
        let wrong = "drm-driver:\ti915\ndrm-client-id:\t1\ndrm-engine-render:\tmuch\n";
        assert_eq!(drm_client(wrong, INTEL).unwrap().1, 0);
    }

    #[test]
    fn how_busy_a_device_is_counts_while_no_job_runs_here() {
        let mut machine = Machine::new(AMD);
        machine.write("sys/class/drm/card0/device/vendor", "0x1002\n");
        machine.write("sys/class/drm/card0/device/gpu_busy_percent", "97\n");
        machine.write("sys/class/drm/card1/device/vendor", "0x8086\n");
        assert_eq!(machine.look(0, false), None);
        assert_eq!(machine.look(1, true), None);
        assert_eq!(machine.look(2, false).unwrap(), "another program");
        machine.write("sys/class/drm/card0/device/gpu_busy_percent", "19\n");
        assert_eq!(machine.look(3, false), None);
    }

    #[test]
    fn nvidias_processes_count_if_they_are_here_and_not_ours() {
        let machine = Machine::new(NVIDIA);
        let seen = |said| machine.neighbours.nvidia_neighbour(said);
        assert_eq!(seen(""), None);
        assert_eq!(seen("No running processes found\n[N/A]\n"), None);
        assert_eq!(seen("100\n101\n99999\n"), None);
        assert_eq!(seen("101\n 200\n").unwrap(), "game (process 200)");
    }
}
