//! What there is of the machine.

use std::path::Path;

use crate::{
    child::{CheckError, WorkerProgram},
    ipc::{Adapter, Confinement},
};

/// A machine that a worker has looked at: what executors on it share.
#[derive(Debug, Clone)]
pub struct Machine {
    program: WorkerProgram,
    adapters: Vec<Adapter>,
    confinement: Confinement,
}

impl Machine {
    /// Has a child look at it. `worker` is the binary; beside the running program if
    /// not given.
    ///
    /// # Errors
    /// If the binary is missing or does not answer.
    pub async fn look(worker: Option<&Path>) -> Result<Self, CheckError> {
        let program = WorkerProgram::find(worker)?;
        let (adapters, confinement) = program.probe().await?;
        Ok(Self {
            program,
            adapters,
            confinement,
        })
    }

    /// The worker binary, for probing, measuring and checking.
    #[must_use]
    pub const fn program(&self) -> &WorkerProgram {
        &self.program
    }

    /// Its adapters, in the driver's order.
    #[must_use]
    pub fn adapters(&self) -> &[Adapter] {
        &self.adapters
    }

    /// How far workers are confined on it.
    #[must_use]
    pub const fn confinement(&self) -> &Confinement {
        &self.confinement
    }
}

/// Bytes of its main memory.
#[must_use]
pub fn memory_bytes() -> u64 {
    let machine = rustix::system::sysinfo();
    let unit = u64::from(machine.mem_unit).max(1);
    // As wide as a machine word.
    #[allow(clippy::useless_conversion, reason = "narrower on 32-bit machines")]
    u64::from(machine.totalram).saturating_mul(unit)
}

/// Processors that this process may use.
#[must_use]
pub fn cores() -> u32 {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    u32::try_from(cores).unwrap_or(u32::MAX)
}
