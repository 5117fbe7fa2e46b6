//! The simulator: one history for each seed, and nothing to complain about.

use std::{ops::Range, process::Command, thread};

use suanli_testnet::{
    scenario::Scenario,
    sim::{Figures, Setup, run, run_many},
};

/// Seeds of fifty nodes that a plain test run tries; the bar is 1,000.
const SEEDS_DEFAULT: u64 = 40;

fn calm() -> Scenario {
    Scenario::parse(include_str!("../scenarios/calm.toml")).expect("it is a scenario")
}

fn faults() -> Scenario {
    Scenario::faults().expect("it is a scenario")
}

fn storm() -> Scenario {
    Scenario::parse(include_str!("../scenarios/storm.toml")).expect("it is a scenario")
}

/// Seeds that have shown faults of the protocol: repeats before their record,
/// holds and arrays that came back after a restart, accounts left behind.
const FAULTS_ONCE: [u64; 6] = [1, 2, 9, 27, 37, 53];
const STORM_ONCE: [u64; 3] = [4, 19, 41];

fn threads() -> usize {
    thread::available_parallelism().map_or(2, Into::into)
}

fn assert_content(scenario: Scenario, seeds: Range<u64>) -> Figures {
    let setup = Setup::new(0, scenario);
    let summary = run_many(&setup, seeds, threads(), |_, _| {});
    let failing: Vec<String> = summary
        .failing
        .iter()
        .map(|(seed, outcome)| format!("seed {seed}: {}", outcome.complaints[0]))
        .collect();
    assert!(failing.is_empty(), "\n{}\n", failing.join("\n"));
    summary.figures
}

#[test]
fn the_same_seed_has_the_same_trace() {
    let setup = Setup::new(7, faults());
    let (first, second) = (run(&setup), run(&setup));
    assert_eq!(first.trace, second.trace);
    assert_eq!(first.figures, second.figures);
}

#[test]
fn recording_changes_nothing() {
    let mut setup = Setup::new(7, calm());
    let quiet = run(&setup);
    setup.record = true;
    let recorded = run(&setup);
    assert_eq!(quiet.trace, recorded.trace);
    assert!(recorded.lines.len() > 100);
}

#[test]
fn other_seeds_have_other_traces() {
    let traces: std::collections::BTreeSet<_> = (0..8)
        .map(|seed| run(&Setup::new(seed, calm())).trace)
        .collect();
    assert_eq!(traces.len(), 8);
}

#[test]
fn the_program_prints_the_trace_last() {
    let printed = |seed: &str| {
        let scenario = concat!(env!("CARGO_MANIFEST_DIR"), "/scenarios/calm.toml");
        let output = Command::new(env!("CARGO_BIN_EXE_suanli-testnet"))
            .args(["sim", "--seed", seed, "--scenario", scenario])
            .output()
            .unwrap();
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().next_back().unwrap().to_owned()
    };
    let expected = run(&Setup::new(5, calm())).trace;
    assert_eq!(printed("5"), format!("trace {expected:#}"));
    assert_eq!(printed("5"), printed("5"));
    assert_ne!(printed("5"), printed("6"));
}

#[test]
fn an_unknown_scenario_is_refused_in_words() {
    let output = Command::new(env!("CARGO_BIN_EXE_suanli-testnet"))
        .args(["sim", "--seed", "1", "--scenario", "/nowhere.toml"])
        .output()
        .unwrap();
    assert!(!output.status.success());
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("name a scenario file"), "{text}");
}

#[test]
fn steps_end_the_faults_early() {
    let mut setup = Setup::new(3, faults());
    setup.steps = Some(2000);
    let outcome = run(&setup);
    assert!(outcome.complaints.is_empty(), "{}", outcome.complaints[0]);
    assert!(outcome.figures.crashes < run(&Setup::new(3, faults())).figures.crashes);
}

#[test]
fn calm_networks_do_their_work() {
    for seed in 0..10 {
        let outcome = run(&Setup::new(seed, calm()));
        assert!(outcome.complaints.is_empty(), "{}", outcome.complaints[0]);
        let figures = outcome.figures;
        assert_eq!(figures.blamed, 0);
        assert!(
            figures.done + figures.cancelled > figures.jobs * 3 / 4,
            "seed {seed}: {figures:?}"
        );
    }
}

fn seeds() -> u64 {
    std::env::var("SUANLI_SIM_SEEDS")
        .ok()
        .and_then(|count| count.parse().ok())
        .unwrap_or(SEEDS_DEFAULT)
}

#[test]
fn fifty_nodes_with_faults_satisfy_every_checker() {
    let seeds = seeds();
    let figures = assert_content(faults(), 0..seeds);
    // A simulation in which nothing happens finds nothing.
    assert!(figures.done > 10 * seeds, "{figures:?}");
    assert!(figures.crashes > 5 * seeds, "{figures:?}");
    assert!(figures.from_checkpoints > 2 * seeds, "{figures:?}");
    assert!(figures.vouchers > 20 * seeds, "{figures:?}");
    assert!(figures.blamed > seeds, "{figures:?}");
    assert!(figures.comparisons > seeds / 2, "{figures:?}");
}

#[test]
fn a_storm_satisfies_every_checker() {
    let seeds = seeds();
    let figures = assert_content(storm(), 0..seeds);
    assert!(figures.done > 10 * seeds, "{figures:?}");
    assert!(figures.crashes > 15 * seeds, "{figures:?}");
    assert!(figures.from_checkpoints > 5 * seeds, "{figures:?}");
    assert!(figures.comparisons > seeds / 2, "{figures:?}");
}

#[test]
fn seeds_that_showed_faults_stay_clean() {
    let of = |scenario: fn() -> Scenario, seeds: &'static [u64]| {
        seeds.iter().map(move |seed| (scenario(), *seed))
    };
    for (scenario, seed) in of(faults, &FAULTS_ONCE).chain(of(storm, &STORM_ONCE)) {
        let outcome = run(&Setup::new(seed, scenario));
        let first = outcome.complaints.first();
        assert!(first.is_none(), "seed {seed}: {first:?}");
    }
}
