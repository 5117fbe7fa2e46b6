//! What `sim` prints.

use std::{fs::File, io::Write as _, path::Path, process::ExitCode, thread, time::Instant};

use suanli_testnet::sim::{Figures, Line, Outcome, Setup, Subject, run, run_many, timeline};

/// Failing seeds that are shown, at most.
const SHOWN_MAX: usize = 5;

/// Runs one seed.
pub(crate) fn one(setup: &Setup, trace: Option<&Path>, replay: &str) -> anyhow::Result<ExitCode> {
    let outcome = run(setup);
    if let Some(path) = trace {
        let mut file = std::io::BufWriter::new(File::create(path)?);
        for line in &outcome.lines {
            writeln!(file, "{line}")?;
        }
        file.flush()?;
    }
    println!("seed {}", setup.seed);
    print_figures(&outcome.figures);
    let code = if outcome.complaints.is_empty() {
        println!("all checkers are content");
        ExitCode::SUCCESS
    } else {
        print_failure(setup, &outcome, replay);
        ExitCode::FAILURE
    };
    println!("trace {:#}", outcome.trace);
    Ok(code)
}

/// Runs many seeds.
pub(crate) fn many(setup: &Setup, count: u64, replay: &str) -> ExitCode {
    let threads = thread::available_parallelism().map_or(2, Into::into);
    let started = Instant::now();
    let seeds = setup.seed..setup.seed.saturating_add(count);
    let mut hashes = Vec::new();
    let summary = run_many(setup, seeds, threads, |seed, outcome| {
        hashes.push((seed, outcome.trace));
        if !outcome.complaints.is_empty() {
            println!("seed {seed}: {}", outcome.complaints[0]);
        }
    });
    let took = started.elapsed();
    let code = if summary.failing.is_empty() {
        ExitCode::SUCCESS
    } else {
        for (seed, outcome) in summary.failing.iter().take(SHOWN_MAX) {
            let mut setup = setup.clone();
            setup.seed = *seed;
            println!();
            print_failure(&setup, outcome, replay);
        }
        ExitCode::FAILURE
    };
    println!(
        "{} seeds in {:.1} s, {:.0} events a second; {} fail",
        summary.seeds,
        took.as_secs_f64(),
        per_second(summary.figures.events, took.as_secs_f64()),
        summary.failing.len()
    );
    print_figures(&summary.figures);
    hashes.sort_unstable();
    let all: Vec<u8> = hashes
        .iter()
        .flat_map(|(_, hash)| *hash.as_bytes())
        .collect();
    println!("trace {}", blake3::hash(&all).to_hex());
    code
}

fn per_second(count: u64, seconds: f64) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX)) / seconds.max(0.001)
}

fn print_figures(figures: &Figures) {
    println!(
        "{} events: {} frames ({} lost), {} gossip, {} crashes, {} times blamed",
        figures.events,
        figures.frames,
        figures.dropped,
        figures.gossip,
        figures.crashes,
        figures.blamed
    );
    println!(
        "{} jobs: {} done, {} failed, {} cancelled, {} declined, {} expired; {} agreements, {} receipts, {} vouchers, {} comparisons of floats, {} checks of products, {} runs from a checkpoint",
        figures.jobs,
        figures.done,
        figures.failed,
        figures.cancelled,
        figures.declined,
        figures.expired,
        figures.agreements,
        figures.receipts,
        figures.vouchers,
        figures.comparisons,
        figures.checks,
        figures.resumed,
    );
}

/// What does not hold, how to see it again, and what led to it. The run is
/// repeated for its lines: they cost too much to keep for seeds that pass.
fn print_failure(setup: &Setup, outcome: &Outcome, replay: &str) {
    for complaint in &outcome.complaints {
        println!("{complaint}");
    }
    println!("again: {replay} --seed {}", setup.seed);
    let mut setup = setup.clone();
    setup.record = true;
    let again = run(&setup);
    let about: Vec<Subject> = outcome
        .complaints
        .first()
        .map(|complaint| complaint.subjects.clone())
        .unwrap_or_default();
    let lines: Vec<&Line> = timeline(&again.lines, &about);
    for line in lines {
        println!("  {line}");
    }
}
