//! How much the exchange gets through: agreements in a second, and units in one.
//!
//! Client and provider are two `suanli node` processes on loopback with a store each;
//! every job is negotiated, run in a sandboxed worker, receipted, accepted and paid,
//! and all that is signed is durable on both sides first. So many jobs are in flight
//! at once, each handed in and waited for on a connection of its own; then the same
//! work comes as one array, whose units share their agreements.
//!
//! HyperQueue's tasks run in turns with both: a process each, without a sandbox,
//! without negotiation, and nothing durable.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Instant,
};

use anyhow::Context as _;
use suanli_node::{
    api::types::{BlobInfo, JobInfo, Submitted},
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
    Api, Programs, Testnet, Topology,
    topology::{NodeSpec, ProvideSpec},
};

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Plan {
    /// Jobs of a turn
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..))]
    jobs: u32,
    /// Units of a turn's array
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    units: u32,
    /// Jobs in flight, and agreements of the array
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=256))]
    in_flight: u16,
    /// Turns
    #[arg(long, default_value_t = 5)]
    turns: usize,
    /// The folder of the job: its file is `job.toml`
    #[arg(long, value_name = "DIR", default_value = "examples/noop")]
    job: PathBuf,
    /// A Python interpreter that has HyperQueue
    #[arg(long, value_name = "PYTHON")]
    hyperqueue: Option<PathBuf>,
}

/// Nobody is to run out of money here.
const BUDGET: Amount = Amount::from_micros(1_000_000_000);
/// The least that a turn's rates should be, in agreements and units a second.
const AIMS: (f64, f64) = (300.0, 1000.0);

/// Runs it, with the nodes' folders in `dir`.
pub(super) fn run(plan: &Plan, dir: &Path) -> anyhow::Result<Report> {
    let watch = Watch::begin();
    let single = jobfile::read(&plan.job.join("job.toml"))?;
    let array = jobfile::read(&array_file(plan, dir)?)?;
    let mut testnet = Testnet::start(&topology(plan.in_flight), dir, Programs::find()?)?;
    let api = testnet.node("client")?.api()?;
    for job in [&single, &array] {
        let _: BlobInfo = api.upload("/v1/blobs", &job.spec)?;
    }
    let python = plan.hyperqueue.as_deref();
    let mut beside = python.map(HyperQueue::start).transpose()?;
    // Workers start and compile.
    many(&api, &single, u32::from(plan.in_flight), plan.in_flight)?;
    let (mut agreements, mut latencies) = (Vec::new(), Vec::new());
    let (mut units, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..plan.turns {
        let begin = Instant::now();
        latencies.extend(many(&api, &single, plan.jobs, plan.in_flight)?);
        agreements.push(f64::from(plan.jobs) / begin.elapsed().as_secs_f64());
        units.push(f64::from(plan.units) / one(&api, &array)?);
        if let Some(beside) = &mut beside {
            theirs.push(beside.rate(usize::try_from(plan.jobs)?)?);
        }
    }
    testnet.down()?;
    let version = beside.map(HyperQueue::stop).transpose()?;
    let in_flight = plan.in_flight;
    let peer = match version {
        Some(version) => Figure::of("HyperQueue, tasks of one job", "/s", theirs)
            .note(format!("version {version}, in turns with ours")),
        None => Figure::skipped("HyperQueue, tasks of one job", "/s", "not installed"),
    };
    Ok(Report {
        bench: "market",
        figures: vec![
            Figure::of(
                "agreements, each with one execution, paid",
                "/s",
                agreements,
            )
            .aim(Aim::AtLeast(AIMS.0))
            .note(format!("{in_flight} in flight")),
            Figure::of("- one of them, submit to settled", "ms", latencies),
            Figure::of("units of an array, each receipted and paid", "/s", units)
                .aim(Aim::AtLeast(AIMS.1))
                .note(format!("on up to {in_flight} agreements at once")),
            peer,
        ],
        state: watch.end(),
    })
}

/// The same job as an array.
fn array_file(plan: &Plan, dir: &Path) -> anyhow::Result<PathBuf> {
    for entry in fs::read_dir(&plan.job).context("the job's folder can't be read")? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            fs::copy(entry.path(), dir.join(entry.file_name()))?;
        }
    }
    let mut text = fs::read_to_string(plan.job.join("job.toml"))?;
    let (units, parallel) = (plan.units, plan.in_flight);
    text += &format!("\n[array]\nrange = [0, {units}]\nparallel = {parallel}\n");
    let path = dir.join("array.toml");
    fs::write(&path, text)?;
    Ok(path)
}

fn topology(slots: u16) -> Topology {
    let node = |name: &str, region: &str, provide| NodeSpec {
        name: name.into(),
        region: region.into(),
        provide,
        settings: toml::Table::new(),
    };
    let sells = ProvideSpec {
        price_per_second: Amount::from_micros(500),
        slots: slots.into(),
        firm: true,
    };
    Topology {
        nodes: vec![
            node("client", "CN-BJ", None),
            node("provider", "CN-NX", Some(sells)),
        ],
    }
}

/// Runs so many jobs, some at once, and says how many milliseconds each took.
fn many(api: &Api, job: &PreparedJob, count: u32, at_once: u16) -> anyhow::Result<Vec<f64>> {
    let count = usize::try_from(count)?;
    let next = AtomicUsize::new(0);
    let work = || -> anyhow::Result<Vec<f64>> {
        let mut session = api.session()?;
        let mut times = Vec::new();
        while next.fetch_add(1, Ordering::Relaxed) < count {
            let submission = submission(job)?;
            let begin = Instant::now();
            let Submitted { job } = session.post("/v1/jobs", &submission)?;
            session.bytes(&format!("/v1/jobs/{job:#}/events?last=true"))?;
            times.push(begin.elapsed().as_secs_f64() * 1e3);
        }
        Ok(times)
    };
    thread::scope(|scope| {
        let all: Vec<_> = (0..at_once).map(|_| scope.spawn(work)).collect();
        let mut times = Vec::new();
        for each in all {
            times.extend(each.join().expect("a submitting thread panicked")?);
        }
        Ok(times)
    })
}

/// Runs one job, and says how many seconds it took.
fn one(api: &Api, job: &PreparedJob) -> anyhow::Result<f64> {
    let mut session = api.session()?;
    let submission = submission(job)?;
    let begin = Instant::now();
    let Submitted { job } = session.post("/v1/jobs", &submission)?;
    session.bytes(&format!("/v1/jobs/{job:#}/events?last=true"))?;
    let seconds = begin.elapsed().as_secs_f64();
    let info: JobInfo = api.get(&format!("/v1/jobs/{job:#}"))?;
    anyhow::ensure!(info.state == "done", "the array ended as {}", info.state);
    Ok(seconds)
}

fn submission(job: &PreparedJob) -> anyhow::Result<suanli_node::api::types::Submission> {
    let mut id = [0; 16];
    id.copy_from_slice(&random_secret()?[..16]);
    let mut submission = job.submission(JobId::from_bytes(id), Vec::new());
    submission.max_price = Some(BUDGET);
    Ok(submission)
}
