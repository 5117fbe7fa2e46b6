//! What the exchange itself costs: a job that does nothing, from submit to
//! settled.
//!
//! Client and provider are two `suanli node` processes on loopback, warm; each
//! job is handed in and waited for through the client's HTTP API, on a connection
//! that stays open, as HyperQueue's does. All records
//! are durable on both sides. The phases are told apart by the driver's
//! monotonic clock, which stamps every line of a job; what the HTTP API adds
//! is what is left of the time that this process saw.
//!
//! The provider's offer is firm, as it is by default, and so one round trip makes
//! the agreement; `--quoted` measures the longer way over a quote.
//!
//! HyperQueue, if it is there, runs its jobs in turns with ours: a few of
//! these, a few of those. It starts a process for each, without sandbox,
//! negotiation or durable records.

use std::{
    fs::File,
    io::Write as _,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use suanli_node::{
    api::types::{BlobInfo, JobEventInfo, JobLine, Submitted},
    data_dir::random_secret,
    jobfile::{self, PreparedJob},
};
use suanli_protocol::{ids::JobId, units::Amount};

use super::{
    figures::{Aim, Figure, Report},
    hyperqueue::HyperQueue,
    machine::Watch,
};
use crate::live::{
    Programs, Session, Testnet, Topology,
    topology::{NodeSpec, ProvideSpec},
};

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Plan {
    /// Jobs that count
    #[arg(long, default_value_t = 200)]
    jobs: usize,
    /// Jobs before them
    #[arg(long, default_value_t = 20)]
    warm_up: usize,
    /// Jobs in a turn
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    turn: u32,
    /// Milliseconds before each job: HyperQueue takes 20 ms longer for one that
    /// follows another at once
    #[arg(long, default_value_t = 50)]
    pause_ms: u32,
    /// The job
    #[arg(long, value_name = "FILE", default_value = "examples/noop/job.toml")]
    job: PathBuf,
    /// Ask for a quote first, as with a provider whose offer is not firm
    #[arg(long)]
    quoted: bool,
    /// A Python interpreter that has HyperQueue
    #[arg(long, value_name = "PYTHON")]
    hyperqueue: Option<PathBuf>,
}

/// Runs it, with the nodes' folders in `dir`.
pub(super) fn run(plan: &Plan, dir: &Path) -> anyhow::Result<Report> {
    let watch = Watch::begin();
    let job = jobfile::read(&plan.job)?;
    let mut testnet = Testnet::start(&topology(!plan.quoted), dir, Programs::find()?)?;
    let api = testnet.node("client")?.api()?;
    let _: BlobInfo = api.upload("/v1/blobs", &job.spec)?;
    let mut api = api.session()?;
    let python = plan.hyperqueue.as_deref();
    let mut beside = python.map(HyperQueue::start).transpose()?;
    let pause = Duration::from_millis(plan.pause_ms.into());
    let mut disk = DiskItself::prewritten(dir)?;
    let (mut ours, mut theirs, mut syncs) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..plan.warm_up {
        run_one(&mut api, &job, pause)?;
    }
    if let Some(beside) = &mut beside {
        beside.run(plan.warm_up, pause)?;
    }
    let turn = usize::try_from(plan.turn)?;
    while ours.len() < plan.jobs {
        let few = turn.min(plan.jobs - ours.len());
        for _ in 0..few {
            ours.push(run_one(&mut api, &job, pause)?);
        }
        if let Some(beside) = &mut beside {
            theirs.extend(beside.run(few, pause)?);
        }
        for _ in 0..few {
            syncs.push(disk.sync_one(pause)?);
        }
    }
    testnet.down()?;
    let version = beside.map(HyperQueue::stop).transpose()?;
    Ok(Report {
        bench: if plan.quoted {
            "overhead, quoted"
        } else {
            "overhead"
        },
        figures: figures(&ours, theirs, version, syncs, plan.quoted),
        state: watch.end(),
    })
}

fn topology(firm: bool) -> Topology {
    let node = |name: &str, region: &str, provide| NodeSpec {
        name: name.into(),
        region: region.into(),
        provide,
        settings: toml::Table::new(),
    };
    let sells = ProvideSpec {
        price_per_second: Amount::from_micros(500),
        slots: 1,
        firm,
    };
    Topology {
        nodes: vec![
            node("client", "CN-BJ", None),
            node("provider", "CN-NX", Some(sells)),
        ],
    }
}

/// The time from each step of [`STEPS`] to the next, in words.
const PHASES: [&str; 6] = [
    "- in the core to durable",
    "- durable to quoted",
    "- quoted to agreed",
    "- agreed to provider has it",
    "- provider has it to accepted",
    "- accepted to settled",
];

/// The steps of a job. Providers are chosen before the job is on disk, and asked
/// after it.
const STEPS: [fn(&JobEventInfo) -> bool; 7] = [
    |event| matches!(event, JobEventInfo::Asked { .. }),
    |event| matches!(event, JobEventInfo::Submitted),
    |event| matches!(event, JobEventInfo::Quoted { .. }),
    |event| matches!(event, JobEventInfo::Agreed { .. }),
    |event| matches!(event, JobEventInfo::Started),
    |event| matches!(event, JobEventInfo::Accepted { .. }),
    |event| matches!(event, JobEventInfo::Settled { .. }),
];

/// The times of one job in milliseconds.
#[derive(Debug)]
struct Timed {
    /// From the start of the submission to its end, as this process saw it.
    total: f64,
    /// Until the submission was answered: the job is durable then.
    submitted: f64,
    /// As in [`PHASES`].
    phases: [f64; 6],
}

impl Timed {
    /// What this process saw and the client's driver did not: HTTP.
    fn http(&self) -> f64 {
        self.total - self.phases.iter().sum::<f64>()
    }
}

fn run_one(api: &mut Session, job: &PreparedJob, pause: Duration) -> anyhow::Result<Timed> {
    thread::sleep(pause);
    let mut id = [0; 16];
    id.copy_from_slice(&random_secret()?[..16]);
    let submission = job.submission(JobId::from_bytes(id), Vec::new());
    let begin = Instant::now();
    let Submitted { job } = api.post("/v1/jobs", &submission)?;
    let submitted = begin.elapsed().as_secs_f64() * 1e3;
    api.bytes(&format!("/v1/jobs/{job:#}/events?last=true"))?;
    let total = begin.elapsed().as_secs_f64() * 1e3;
    let events = api.bytes(&format!("/v1/jobs/{job:#}/events"))?;
    let lines = events.split(|&byte| byte == b'\n');
    let lines: Vec<JobLine> = lines
        .filter(|line| !line.is_empty())
        .map(serde_json::from_slice)
        .collect::<Result<_, _>>()?;
    Ok(Timed {
        total,
        submitted,
        phases: phases(&lines)?,
    })
}

/// Milliseconds from each step to the next. One that was overtaken (the result
/// may come before the word that the provider has the agreement: other streams)
/// takes no time.
fn phases(lines: &[JobLine]) -> anyhow::Result<[f64; 6]> {
    let at = |is: fn(&JobEventInfo) -> bool| {
        let line = lines.iter().find(|line| is(&line.event));
        line.and_then(|line| line.up_us)
    };
    let settled = at(STEPS[6]).with_context(|| format!("the job was not settled: {lines:?}"))?;
    let mut phases = [0.0; 6];
    let mut last = at(STEPS[0]).unwrap_or(settled);
    for (phase, step) in phases.iter_mut().zip(&STEPS[1..]) {
        let next = at(*step).unwrap_or(last).max(last);
        *phase = f64::from(u32::try_from(next - last)?) / 1e3;
        last = next;
    }
    Ok(phases)
}

fn figures(
    ours: &[Timed],
    theirs: Vec<f64>,
    version: Option<String>,
    syncs: Vec<f64>,
    quoted: bool,
) -> Vec<Figure> {
    let of = |what: &str, time: &dyn Fn(&Timed) -> f64| {
        Figure::of(what, "ms", ours.iter().map(time).collect())
    };
    let peer = match version {
        Some(version) => Figure::of("HyperQueue, submit to ran", "ms", theirs)
            .note(format!("version {version}, in turns with ours")),
        None => Figure::skipped("HyperQueue, submit to ran", "ms", "not installed"),
    };
    let mut total = of("submit to settled", &|timed| timed.total);
    if let Some(spread) = peer.spread {
        total = total.aim(Aim::Below(spread.p50));
    }
    let mut figures = vec![
        total,
        of("submit to taken, durable", &|timed| timed.submitted),
    ];
    for (n, phase) in PHASES.into_iter().enumerate() {
        figures.push(of(phase, &|timed| timed.phases[n]));
    }
    figures.push(of("- HTTP around it", &Timed::http));
    figures.push(peer);
    let in_a_row = if quoted { "six" } else { "five" };
    figures.push(
        Figure::of("one write and sync on this disk", "ms", syncs).note(format!(
            "after the same pause; a job waits for {in_a_row} in a row"
        )),
    );
    figures
}

/// What the disk takes for one record, without a journal around it.
struct DiskItself {
    file: File,
    at: u64,
}

impl DiskItself {
    /// About the bytes of a step's records, and of the file.
    const RECORD: [u8; 700] = [0x5a; 700];
    const BYTES: usize = 4 << 20;

    fn prewritten(dir: &Path) -> anyhow::Result<Self> {
        let mut file = File::create(dir.join("disk"))?;
        file.write_all(&vec![0; Self::BYTES])?;
        file.sync_all()?;
        Ok(Self { file, at: 0 })
    }

    fn sync_one(&mut self, pause: Duration) -> anyhow::Result<f64> {
        thread::sleep(pause);
        let begin = Instant::now();
        self.file.write_all_at(&Self::RECORD, self.at)?;
        self.file.sync_data()?;
        self.at = (self.at + 700) % (Self::BYTES as u64 / 2);
        Ok(begin.elapsed().as_secs_f64() * 1e3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(at: u64, event: JobEventInfo) -> JobLine {
        JobLine {
            at_ms: 0,
            up_us: Some(at),
            event,
        }
    }

    #[test]
    fn an_overtaken_step_takes_no_time() {
        let receipt = suanli_protocol::ids::ReceiptId(suanli_protocol::ids::Hash::of(b""));
        let amount = Amount::ZERO;
        let mut lines = vec![
            line(
                1000,
                JobEventInfo::Asked {
                    attempt: 1,
                    peers: Vec::new(),
                },
            ),
            line(1500, JobEventInfo::Submitted),
            line(4500, JobEventInfo::Accepted { receipt, amount }),
        ];
        assert!(phases(&lines).is_err());
        lines.push(line(5000, JobEventInfo::Settled { receipt }));
        let expected = [0.5, 0.0, 0.0, 0.0, 3.0, 0.5];
        assert_eq!(phases(&lines).unwrap(), expected);
    }
}
