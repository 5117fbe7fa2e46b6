//! Runs executions in sandboxed worker processes.
//!
//! A job graph ([`spec`]) comes from a job file ([`file`]) on the client's
//! side, travels as bytes, and is run by an [`Executor`] on the provider's.
//! The executor owns a pool of warmed workers (binary `suanli-worker`), each
//! with an open device and confined before it sees any job. It hands a worker
//! descriptors and a graph, watches the clock, kills what hangs, and copies
//! and hashes the outputs itself.
//!
//! ```text
//!   node ── run, cancel ──▶ Executor ──▶ pool task ──▶ execution task ══ socket ══ worker
//!        ◀───── ExecutionEvent (bounded) ─────────────────┘
//! ```
//!
//! A [`ModelServer`] keeps a worker that serves a language model.
//!
//! Absent: the network, prices, accounts. A tenant is 32 bytes here; two of
//! them never share a worker. This library never opens a device and never
//! compiles a shader: both happen in worker processes only.

mod cgroup;
mod checkpoint;
mod child;
pub mod command;
mod execution;
mod executor;
pub mod file;
pub mod ipc;
pub mod kernels;
pub mod limits;
pub mod machine;
#[cfg(feature = "model")]
pub mod model;
pub mod policy;
mod pool;
pub mod program;
pub mod quantity;
mod serving;
pub mod spec;
pub mod units;

pub use child::{CheckError, WorkerProgram};
pub use executor::{
    AdapterSelection, ExecutionEvent, ExecutionId, ExecutionRequest, Executor, ExecutorConfig,
    ExecutorError, InputSource, JobSpec, OutputBlob, OutputContent, Refusal, Resume, Tenant, Usage,
};
pub use ipc::{Adapter, AdapterKind, Confinement, Failure, Measurement};
pub use program::Program;
pub use serving::{ModelAnswer, ModelConfig, ModelServer, ModelState};
pub use units::Template;
