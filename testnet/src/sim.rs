//! The simulator: a whole network in one thread, on virtual time, from a seed.
//!
//! ```text
//! Setup { seed, scenario } ──run──▶ Outcome { trace hash, complaints, figures }
//! ```
//!
//! Nodes are real [`suanli_protocol::peer::Peer`]s. Their frames travel as
//! bytes and are verified by who receives them. Disks, executors, blob stores,
//! clocks and the network are models that delay, lose, repeat and stop as the
//! seed says; hostile nodes stand among the honest ones. [`Checker`]s watch.
//! The same seed gives the same events in the same order, and so the same
//! trace hash.
//!
//! Absent: threads (each run has one), real time, real sockets, and any chance
//! but the seed's.

mod cast;
mod check;
mod demand;
mod dice;
mod floats;
mod fresh;
mod hostile;
mod links;
mod machine;
mod node;
mod patience;
mod plant;
mod products;
mod reading;
mod script;
mod seeds;
mod trace;
mod trades;
mod trials;
mod twin;
mod work;
mod world;

use suanli_protocol::ids::Hash;

pub use self::{
    check::{Checker, Complaint},
    fresh::{Fresh, run_fresh},
    patience::Patience,
    plant::{Plant, UnknownPlant},
    script::{Fault, Scripted, Step, run_script},
    seeds::{Summary, run_many},
    trace::{Line, Subject, timeline},
    trades::{Place, Span, Trade},
    trials::Trial,
};
use crate::scenario::Scenario;

/// What to simulate.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Decides everything that the scenario leaves open.
    pub seed: u64,
    /// Which network, faults and work.
    pub scenario: Scenario,
    /// Let nothing go wrong after so many events.
    pub steps: Option<u64>,
    /// A bug to plant.
    pub plant: Option<Plant>,
    /// When to end before its time, if nobody can want more of it.
    pub patience: Option<Patience>,
    /// Whether to keep a line about everything that happens.
    pub record: bool,
}

impl Setup {
    /// A plain run.
    pub const fn new(seed: u64, scenario: Scenario) -> Self {
        Self {
            seed,
            scenario,
            steps: None,
            plant: None,
            patience: None,
            record: false,
        }
    }
}

/// What came of it.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The hash of all delivered events in order.
    pub trace: Hash,
    /// What does not hold.
    pub complaints: Vec<Complaint>,
    /// Whether it ended early, because too many jobs had waited too long. What must hold only
    /// in the end was not looked at then.
    pub out_of_patience: bool,
    /// What happened, in numbers.
    pub figures: Figures,
    /// How often each provider's results were looked at, and what was found.
    pub trials: Vec<Trial>,
    /// What became of each job.
    pub trades: Vec<Trade>,
    /// When a slot was taken, by the provider's number,
    pub taken: Vec<Span>,
    /// and when an execution ran there.
    pub ran: Vec<Span>,
    /// The nodes, by number.
    pub places: Vec<Place>,
    /// What happened, in words, if asked for.
    pub lines: Vec<Line>,
}

/// What happened, in numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Delivered events.
    pub events: u64,
    /// Frames that arrived.
    pub frames: u64,
    /// Frames that were lost.
    pub dropped: u64,
    /// Gossip that arrived for the first time.
    pub gossip: u64,
    /// Nodes stopped without warning.
    pub crashes: u64,
    /// Starts from a checkpoint.
    pub from_checkpoints: u64,
    /// Executions that went on where others stopped.
    pub resumed: u64,
    /// Results whose floats were compared.
    pub comparisons: u64,
    /// Results whose products were checked.
    pub checks: u64,
    /// Jobs handed in.
    pub jobs: u64,
    /// Jobs that were not even taken.
    pub refused: u64,
    /// Jobs that ended with all their results.
    pub done: u64,
    /// Jobs that can't be done.
    pub failed: u64,
    /// Jobs that were cancelled.
    pub cancelled: u64,
    /// Jobs that nobody took.
    pub declined: u64,
    /// Jobs whose time was over.
    pub expired: u64,
    /// Agreements that a provider took up.
    pub agreements: u64,
    /// Receipts issued.
    pub receipts: u64,
    /// Vouchers taken.
    pub vouchers: u64,
    /// Times that a node was blamed, hostile ones for the most part.
    pub blamed: u64,
}

/// Simulates one seed.
pub fn run(setup: &Setup) -> Outcome {
    let mut world = world::World::new(setup);
    world.run();
    world.figures.events = world.trace.events;
    let trades = std::mem::take(&mut world.trades);
    Outcome {
        places: trades::places(&world.nodes),
        taken: trades.taken,
        ran: trades.ran,
        trades: trades.jobs.into_values().collect(),
        trace: world.trace.hash(),
        out_of_patience: world.out_of_patience,
        complaints: std::mem::take(&mut world.checks.complaints),
        figures: world.figures,
        trials: world.checks.trials.results(&world.nodes),
        lines: world.trace.lines.take().unwrap_or_default(),
    }
}
