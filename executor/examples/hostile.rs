//! What `scripts/demo hostile` shows: every attack that is listed, made on this machine
//! in real workers; what stopped it, how that was reported, and that the next honest job
//! was served.
//!
//! Two lists, which the tests share: programs that mean harm
//! (`tests/hostile/fixtures/cases.toml`), and what a worker tries that an attacker has
//! taken over (`attacker/attempts.rs`). An attack whose layer this machine lacks is not
//! made, and its row says so. Ends with 1 if any other was not stopped as listed, or an
//! honest job was not served after it.
//!
//! Needs `suanli-worker` and the example `attacker`, built beside it.

#![allow(
    clippy::unwrap_used,
    reason = "a demonstration whose own parts fail has nothing to show"
)]

use std::{
    io::{self, Write as _},
    os::unix::fs::symlink,
    path::Path,
    process::ExitCode,
    time::Instant,
};

use suanli_executor::{Confinement, ExecutorConfig};

use crate::{
    attempts::{Attempt, Layer},
    listed::{Case, listed},
    support::{Bench, bench, lying_worker, noop, worker_path},
};

#[path = "attacker/attempts.rs"]
#[allow(dead_code, reason = "the list is read here; the attacker makes them")]
mod attempts;
#[path = "../tests/hostile/listed.rs"]
#[allow(dead_code, reason = "shared with the tests")]
mod listed;
#[path = "../tests/gpu/support.rs"]
#[allow(dead_code, reason = "shared with the tests")]
mod support;

const ATTACKER: u8 = 1;
const HONEST: u8 = 2;

#[tokio::main]
async fn main() -> ExitCode {
    let Some(mut bench) = bench(ExecutorConfig::default()).await else {
        eprintln!("no adapter to run jobs on; `scripts/setup` installs Mesa's software driver");
        return ExitCode::FAILURE;
    };
    let confinement = bench.executor.confinement().clone();
    describe(&bench, &confinement);
    let mut table = Table::new();
    let cases = listed();
    let cells = cases.iter();
    table.head(
        "Programs that mean harm, handed in by a client",
        cells.map(|case| [&*case.attack, &*case.layer, &*case.failure]),
    );
    for case in &cases {
        let row = of_program(case, &mut bench).await;
        table.add(&row);
    }
    bench.executor.stop().await;
    let longest = "Resource temporarily unavailable";
    table.head(
        "What a worker tries that an attacker has taken over, inside the sandbox",
        attempts::all().map(|attempt| [attempt.name, attempt.layer.name(), longest]),
    );
    for (number, attempt) in attempts::all().enumerate() {
        let row = match missing(&confinement, attempt.layer) {
            Some(_) => Row::not_made(attempt),
            None => of_attempt(number, attempt).await,
        };
        table.add(&row);
    }
    table.end()
}

/// What is attacked.
fn describe(bench: &Bench, confinement: &Confinement) {
    match bench.executor.adapter() {
        Some(adapter) => println!("jobs run on: {}", &*adapter.name),
        None => println!("jobs run on: the processor, there is no adapter"),
    }
    println!("sandbox level: {}", confinement.level());
    for layer in &confinement.missing {
        println!("this machine lacks: {}", &**layer);
    }
}

/// What a layer's absence is explained with; nothing if it holds.
fn missing(confinement: &Confinement, layer: Layer) -> Option<&str> {
    let mut missing = confinement.missing.iter().map(|missing| &**missing);
    missing.find(|missing| missing.starts_with(layer.of_confinement()))
}

/// A line of the table.
struct Row {
    attack: String,
    stopped_by: String,
    reported: String,
    /// In milliseconds; none if the next honest job was not served.
    next_ms: Option<u128>,
    outcome: Outcome,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Stopped,
    NotAsListed,
    NotMade,
}

impl Row {
    fn not_made(attempt: &Attempt) -> Self {
        Self {
            attack: attempt.name.to_owned(),
            stopped_by: format!("{}: missing here", attempt.layer.name()),
            reported: "not tried".to_owned(),
            next_ms: None,
            outcome: Outcome::NotMade,
        }
    }
}

async fn of_program(case: &Case, bench: &mut Bench) -> Row {
    let ended = case.run(bench, ATTACKER).await;
    let (reported, is_as_listed) = match &ended {
        Ok(()) => ("done".to_owned(), false),
        Err((failure, detail)) if case.is_as_listed(failure, detail) => (failure.to_string(), true),
        Err((failure, detail)) => (format!("{failure}: {detail}"), false),
    };
    Row {
        attack: case.attack.clone(),
        stopped_by: case.layer.clone(),
        reported,
        next_ms: honest(bench).await,
        outcome: Outcome::of(is_as_listed),
    }
}

/// The first worker of an executor is the attacker; those after it are real.
async fn of_attempt(number: usize, attempt: &Attempt) -> Row {
    let dir = tempfile::tempdir().unwrap();
    // As in a data directory, though with less of a secret.
    std::fs::write(dir.path().join("node.key"), b"secret").unwrap();
    let attacker = dir.path().join("attacker");
    symlink(beside("attacker"), &attacker).unwrap();
    let serves = format!(
        "mkdir {} 2>/dev/null && exec {} serve {number}; exec {} serve",
        dir.path().join("once").display(),
        attacker.display(),
        worker_path().display(),
    );
    let config = ExecutorConfig {
        worker: Some(lying_worker(&dir, &serves)),
        pool_size: 1,
        memory_max: 64 << 20,
        output_bytes_max: 1 << 20,
        ..ExecutorConfig::default()
    };
    let mut bench = bench(config).await.unwrap();
    let said = match bench.run_graph(ATTACKER, &noop()).await.result {
        Ok(_) => "done".to_owned(),
        Err((failure, detail)) => format!("{failure}: {detail}"),
    };
    let is_as_listed = attempt.layer.has_said(&said);
    let next_ms = honest(&mut bench).await;
    bench.executor.stop().await;
    Row {
        attack: attempt.name.to_owned(),
        stopped_by: attempt.layer.name().to_owned(),
        reported: in_short(attempt, is_as_listed, &said),
        next_ms,
        outcome: Outcome::of(is_as_listed),
    }
}

/// A failure's kind, or what the attacker was answered; all if it is not as listed.
fn in_short(attempt: &Attempt, is_as_listed: bool, said: &str) -> String {
    let (kind, detail) = said.split_once(": ").unwrap_or((said, ""));
    let answered = detail.strip_prefix(attempt.name);
    match answered.and_then(|words| words.strip_prefix(": ")) {
        _ if !is_as_listed => said.to_owned(),
        Some(words) => words.split(" (os error").next().unwrap_or(words).to_owned(),
        None => kind.to_owned(),
    }
}

fn beside(example: &str) -> std::path::PathBuf {
    let own = std::env::current_exe().unwrap();
    own.parent().unwrap_or_else(|| Path::new(".")).join(example)
}

async fn honest(bench: &mut Bench) -> Option<u128> {
    let began = Instant::now();
    let end = bench.run_graph(HONEST, &noop()).await;
    let is_served = end.result.is_ok() && end.words() == [7];
    is_served.then(|| began.elapsed().as_millis())
}

impl Outcome {
    const fn of(is_as_listed: bool) -> Self {
        if is_as_listed {
            Self::Stopped
        } else {
            Self::NotAsListed
        }
    }
}

/// Rows, shown as they come.
struct Table {
    /// Of all columns but the last, in this part.
    widths: [usize; 3],
    outcomes: Vec<Outcome>,
    unserved: usize,
}

const COLUMNS: [&str; 4] = ["attack", "stopped by", "reported as", "next honest job"];

impl Table {
    const fn new() -> Self {
        Self {
            widths: [0; 3],
            outcomes: Vec::new(),
            unserved: 0,
        }
    }

    /// Begins a part whose cells will be these, as far as that is known.
    fn head<'a>(&mut self, what: &str, cells: impl Iterator<Item = [&'a str; 3]>) {
        let [attack, layer, reported, _] = COLUMNS;
        let cells = std::iter::once([attack, layer, reported]).chain(cells);
        self.widths = cells.fold([0; 3], |widths, cells| {
            std::array::from_fn(|n| widths[n].max(cells[n].chars().count()))
        });
        println!("\n{what}:");
        self.line(COLUMNS);
    }

    fn add(&mut self, row: &Row) {
        let next = match (row.next_ms, row.outcome) {
            (Some(ms), _) => format!("served in {ms} ms"),
            (None, Outcome::NotMade) => "-".to_owned(),
            (None, Outcome::Stopped | Outcome::NotAsListed) => "NOT SERVED".to_owned(),
        };
        let stopped_by = match row.outcome {
            Outcome::Stopped | Outcome::NotMade => row.stopped_by.clone(),
            Outcome::NotAsListed => format!("NOT by {}", row.stopped_by),
        };
        self.line([&row.attack, &stopped_by, &row.reported, &next]);
        self.outcomes.push(row.outcome);
        self.unserved += usize::from(row.next_ms.is_none() && row.outcome != Outcome::NotMade);
    }

    fn line(&self, cells: [&str; 4]) {
        let [attack, layer, reported, next] = cells;
        let [first, second, third] = self.widths;
        println!("  {attack:first$}  {layer:second$}  {reported:third$}  {next}");
        let _ = io::stdout().flush();
    }

    fn end(&self) -> ExitCode {
        let count = |wanted| {
            let outcomes = self.outcomes.iter();
            outcomes.filter(|outcome| **outcome == wanted).count()
        };
        let (made, through) = (
            self.outcomes.len() - count(Outcome::NotMade),
            count(Outcome::NotAsListed),
        );
        println!(
            "\n{made} attacks made, {} stopped as listed, {} honest jobs served after them",
            made - through,
            made - self.unserved
        );
        match self.outcomes.len() - made {
            0 => {}
            others => println!(
                "{others} not made: this machine lacks their layer; `suanli doctor` says how far workers are confined here"
            ),
        }
        println!("what each layer is, and what none of them stops: docs/sandbox.md");
        if through + self.unserved > 0 {
            return ExitCode::FAILURE;
        }
        ExitCode::SUCCESS
    }
}
