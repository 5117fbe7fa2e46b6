//! What this machine can do, measured, with the date and the driver.
//!
//! `suanli bench` measures all of it and keeps it in the data directory
//! (`measured.json`); a node that starts reads that, and measures what is missing:
//! its adapter, when that, its driver or this program is another, the processor and
//! the disk. Offers carry nothing else. Only a cache: what can't be read is measured
//! again.
//!
//! Absent: the network. How fast bytes come and go depends on who sends them, so it is
//! taken from real transfers, while the node runs.

use std::{
    fs::{self, File},
    io::Write as _,
    path::Path,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use suanli_executor::{Adapter, CheckError, ExecutionEvent, Executor, WorkerProgram, kernels};
use suanli_protocol::{
    limits::NAME_BYTES_MAX,
    offer::{Device, Name, Speed},
    registry::{DeviceKind, SpeedKind},
    units::Wall,
    wire::{List, Text},
};
use tokio::sync::mpsc;

use crate::{processor::Processor, wall::wall_ms};

const FILE: &str = "measured.json";
/// Bytes written to measure a disk.
const DISK_BYTES: usize = 32 << 20;
/// Small writes that are synced to measure one.
const DISK_SYNCS: u32 = 64;

/// All that is known of a machine. Speeds are per second; 0 is not measured.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measured {
    /// The program that measured.
    pub version: String,
    /// Adapters, in the driver's order.
    pub adapters: Vec<AdapterSpeeds>,
    /// The processor.
    pub processor: Option<ProcessorSpeeds>,
    /// The disk under the data directory.
    pub disk: Option<DiskSpeeds>,
}

/// An adapter's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdapterSpeeds {
    /// As the driver calls it.
    pub name: String,
    /// Where it is on the PCI bus; empty where that is not known.
    #[serde(default)]
    pub bus: String,
    /// The driver and its version.
    pub driver: String,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// FP32 operations.
    pub fp32: u64,
    /// FP16 operations; 0 where there are none.
    pub fp16: u64,
    /// FP32 operations in a matrix product, as a challenge would see them.
    pub matmul: u64,
    /// Bytes of its memory.
    pub memory: u64,
    /// Bytes from the host.
    pub upload: u64,
    /// Bytes to the host.
    pub download: u64,
    /// Why something is missing.
    pub trouble: Option<String>,
}

/// The processor's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessorSpeeds {
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// Programs that it can run at once.
    pub cores: u32,
    /// Units of fuel, in one program.
    pub fuel: u64,
}

/// The disk's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSpeeds {
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// Bytes written, and synced at the end.
    pub written: u64,
    /// Writes of 4 KiB, each synced.
    pub syncs: u64,
}

impl Measured {
    /// What was kept, if this program kept it.
    pub fn read(dir: &Path) -> Self {
        let kept = fs::read(dir.join(FILE)).ok();
        let kept = kept.and_then(|bytes| serde_json::from_slice::<Self>(&bytes).ok());
        let same = kept.filter(|kept| kept.version == env!("CARGO_PKG_VERSION"));
        same.unwrap_or_else(|| Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Self::default()
        })
    }

    /// Keeps it.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn write(&self, dir: &Path) -> std::io::Result<()> {
        let bytes = serde_json::to_vec_pretty(self)?;
        let beside = dir.join(format!("{FILE}.new"));
        fs::write(&beside, bytes)?;
        fs::rename(beside, dir.join(FILE))
    }

    /// An adapter's speeds, if it still has the driver that was measured.
    pub fn of(&self, adapter: &Adapter) -> Option<&AdapterSpeeds> {
        let is_it = |kept: &&AdapterSpeeds| kept.is_of(adapter) && kept.driver == *adapter.driver;
        self.adapters.iter().find(is_it)
    }

    /// Measures the executor's adapter. Nothing else may run on it, and `events` must be
    /// the executor's own.
    pub async fn measure_adapter(
        &mut self,
        adapter: &Adapter,
        executor: &Executor,
        events: &mut mpsc::Receiver<ExecutionEvent>,
        dir: &Path,
    ) {
        let mut speeds = AdapterSpeeds {
            name: adapter.name.to_string(),
            bus: adapter.bus.to_string(),
            driver: adapter.driver.to_string(),
            at_ms: wall_ms(),
            ..AdapterSpeeds::default()
        };
        match executor.program().measure(adapter).await {
            Ok(measured) => {
                speeds.fp32 = measured.fp32_flops;
                speeds.fp16 = measured.fp16_flops;
                speeds.memory = measured.memory_bytes_per_second;
                speeds.upload = measured.upload_bytes_per_second;
                speeds.download = measured.download_bytes_per_second;
            }
            Err(error) => speeds.trouble = Some(error.to_string()),
        }
        match kernels::measure(executor, events, dir).await {
            Ok(matmul) => speeds.matmul = matmul,
            Err(trouble) => speeds.trouble = Some(trouble),
        }
        self.adapters.retain(|kept| !kept.is_of(adapter));
        self.adapters.push(speeds);
    }

    /// Measures the processor. No adapter is needed.
    ///
    /// # Errors
    /// If the worker gives no answer.
    pub async fn measure_processor(&mut self, worker: &WorkerProgram) -> Result<(), CheckError> {
        let at_ms = wall_ms();
        let fuel = worker.measure_processor().await?;
        let cores = std::thread::available_parallelism().ok();
        let cores = cores.and_then(|count| u32::try_from(count.get()).ok());
        self.processor = Some(ProcessorSpeeds {
            at_ms,
            cores: cores.unwrap_or(1),
            fuel,
        });
        Ok(())
    }

    /// Measures the disk under a folder, with a file that is removed again.
    ///
    /// # Errors
    /// If the folder can't be written to.
    pub fn measure_disk(&mut self, dir: &Path) -> std::io::Result<()> {
        let path = dir.join("measured.tmp");
        let measured = disk(&path);
        let removed = fs::remove_file(&path);
        self.disk = Some(measured?);
        removed
    }

    /// What an offer says of an adapter; of the processor where there is none. With
    /// `is_machine` it is the device that modules run on, and carries the machine's
    /// own speeds. `memory_max` is what one execution may take. What it runs, and how
    /// much at once, is the caller's to fill in.
    pub(crate) fn device(
        &self,
        adapter: Option<&Adapter>,
        is_machine: bool,
        memory_max: u64,
    ) -> Device {
        let name = |text: &str| -> Name { Text::<NAME_BYTES_MAX>::lossy(text) };
        let of_adapter = adapter.and_then(|adapter| self.of(adapter));
        let speeds = of_adapter.map_or_else(Vec::new, AdapterSpeeds::speeds);
        let of_machine = self.machine_speeds().into_iter().filter(|_| is_machine);
        let speeds = List::truncated(speeds.into_iter().chain(of_machine).collect());
        let (slots, runtimes) = (1, List::default());
        let Some(adapter) = adapter else {
            let processor = Processor::of_this_machine();
            return Device {
                kind: DeviceKind::CPU,
                maker: name(&processor.maker),
                model: name(&processor.model),
                driver: Name::default(),
                memory_bytes: processor.memory_bytes.min(memory_max),
                slots,
                runtimes,
                speeds,
            };
        };
        Device {
            kind: if adapter.is_software() {
                DeviceKind::CPU
            } else {
                DeviceKind::GPU
            },
            maker: name(maker_of(adapter.vendor)),
            model: name(&adapter.name),
            driver: name(&adapter.driver),
            memory_bytes: adapter.memory_bytes.min(memory_max),
            slots,
            runtimes,
            speeds,
        }
    }

    fn machine_speeds(&self) -> Vec<Speed> {
        let fuel = self
            .processor
            .map(|processor| (SpeedKind::FUEL, processor.fuel, processor.at_ms));
        let disk = self
            .disk
            .map(|disk| (SpeedKind::DISK, disk.written, disk.at_ms));
        let speeds = [fuel, disk].into_iter().flatten();
        speeds
            .filter_map(|(kind, per_second, at_ms)| speed(kind, per_second, at_ms))
            .collect()
    }
}

impl AdapterSpeeds {
    /// Whether they are this adapter's, with whatever driver.
    fn is_of(&self, adapter: &Adapter) -> bool {
        self.name == *adapter.name && self.bus == *adapter.bus
    }

    fn speeds(&self) -> Vec<Speed> {
        let all = [
            (SpeedKind::FP32, self.fp32),
            (SpeedKind::FP16, self.fp16),
            (SpeedKind::MATMUL, self.matmul),
            (SpeedKind::MEMORY, self.memory),
            (SpeedKind::TRANSFER, self.upload.min(self.download)),
        ];
        let all = all.into_iter();
        all.filter_map(|(kind, per_second)| speed(kind, per_second, self.at_ms))
            .collect()
    }
}

fn speed(kind: SpeedKind, per_second: u64, at_ms: u64) -> Option<Speed> {
    let measured = Wall::from_millis(at_ms);
    (per_second > 0).then_some(Speed {
        kind,
        per_second,
        measured,
    })
}

fn disk(path: &Path) -> std::io::Result<DiskSpeeds> {
    let at_ms = wall_ms();
    let mut file = File::create(path)?;
    // No two blocks alike, for disks that keep what is alike once.
    let bytes: Vec<u8> = (0..DISK_BYTES / 8)
        .flat_map(|n| word(n).to_le_bytes())
        .collect();
    let began = Instant::now();
    file.write_all(&bytes)?;
    file.sync_data()?;
    let written = rate(DISK_BYTES, began.elapsed());
    let began = Instant::now();
    for _ in 0..DISK_SYNCS {
        file.write_all(bytes.get(..4096).unwrap_or_default())?;
        file.sync_data()?;
    }
    let syncs = rate(usize::try_from(DISK_SYNCS).unwrap_or(0), began.elapsed());
    Ok(DiskSpeeds {
        at_ms,
        written,
        syncs,
    })
}

/// Words without a pattern.
fn word(n: usize) -> u64 {
    let n = u64::try_from(n).unwrap_or(0).wrapping_add(1);
    let mixed = (n ^ (n >> 31)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 29)
}

fn rate(count: usize, took: Duration) -> u64 {
    let count = u128::try_from(count).unwrap_or(0);
    u64::try_from(count * 1_000_000 / took.as_micros().max(1)).unwrap_or(u64::MAX)
}

/// Makers of GPUs that are known by name.
pub(crate) const MAKERS: [&str; 9] = [
    "NVIDIA",
    "AMD",
    "Intel",
    "Apple",
    "Arm",
    "Qualcomm",
    "Imagination",
    "Moore Threads",
    "Jingjia",
];

/// Makers by PCI vendor id; Khronos ids from 0x10000 on.
const fn maker_of(vendor: u32) -> &'static str {
    match vendor {
        0x10de => "NVIDIA",
        0x1002 | 0x1022 => "AMD",
        0x8086 => "Intel",
        0x106b => "Apple",
        0x13b5 => "Arm",
        0x5143 => "Qualcomm",
        0x1010 => "Imagination",
        0x1ed5 => "Moore Threads",
        0x0731 => "Jingjia",
        0x1_0005 => "Mesa",
        _ => "unknown",
    }
}
