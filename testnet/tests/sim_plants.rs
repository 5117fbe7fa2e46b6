//! Each checker finds what it is for: a bug is planted, exactly that checker
//! complains, and without the bug the same seed has nothing to complain about.

use std::{collections::BTreeSet, process::Command};

use suanli_testnet::{
    scenario::Scenario,
    sim::{Checker, Plant, Setup, run, timeline},
};

/// Seeds among which a planted bug must be found.
const SEEDS: u64 = 6;

fn calm() -> Scenario {
    Scenario::parse(include_str!("../scenarios/calm.toml")).expect("it is a scenario")
}

/// Runs with and without, and wants the one checker, and no other, to complain.
fn assert_found_by(plant: Plant, scenario: &Scenario, expected: Checker) {
    let mut found = BTreeSet::new();
    for seed in 0..SEEDS {
        let mut setup = Setup::new(seed, scenario.clone());
        let clean = run(&setup);
        assert!(
            clean.complaints.is_empty(),
            "seed {seed} without {plant:?}: {}",
            clean.complaints[0]
        );
        setup.plant = Some(plant);
        let planted = run(&setup);
        for complaint in &planted.complaints {
            assert_eq!(
                complaint.checker, expected,
                "seed {seed} with {plant:?}: {complaint}"
            );
            found.insert(complaint.checker);
        }
    }
    assert_eq!(found, BTreeSet::from([expected]), "{plant:?} was not found");
}

#[test]
fn a_lost_agreement_is_a_receipt_without_one() {
    assert_found_by(Plant::DiskLosesAgreements, &calm(), Checker::Agreement);
}

#[test]
fn a_disk_that_loses_what_was_accepted_charges_twice() {
    assert_found_by(Plant::DiskLosesWords, &calm(), Checker::Charge);
}

#[test]
fn more_slots_than_there_are_is_oversold() {
    assert_found_by(Plant::SlotsOversold, &calm(), Checker::Capacity);
}

#[test]
fn a_lost_voucher_does_not_add_up() {
    assert_found_by(Plant::DiskLosesVouchers, &calm(), Checker::Accounts);
}

#[test]
fn jobs_of_a_node_without_timers_never_end() {
    let mut scenario = calm();
    scenario.workload.misfits = 0.3;
    assert_found_by(Plant::NoTimers, &scenario, Checker::Deadline);
}

#[test]
fn an_honest_forwarder_that_is_blamed_is_noticed() {
    assert_found_by(Plant::RejectsGoodGossip, &calm(), Checker::Blame);
}

#[test]
fn a_driver_that_does_not_wait_for_its_disk_is_noticed() {
    assert_found_by(Plant::IgnoresGating, &calm(), Checker::Gating);
}

#[test]
fn a_driver_that_does_not_wait_for_its_blobs_is_noticed() {
    assert_found_by(Plant::BlobsSaidEarly, &calm(), Checker::Results);
}

#[test]
fn another_quote_for_the_same_request_is_noticed() {
    let mut scenario = calm();
    scenario.links.duplicate = 0.9;
    scenario.faults.down_ms = [50, 200];
    assert_found_by(Plant::DiskLosesQuotes, &scenario, Checker::Repeats);
}

#[test]
fn a_checkpoint_that_forgets_accounts_is_noticed() {
    let mut scenario = calm();
    scenario.faults.crashes = 30;
    assert_found_by(
        Plant::CheckpointForgetsAccounts,
        &scenario,
        Checker::Checkpoint,
    );
}

#[test]
fn a_complaint_comes_with_what_led_to_it() {
    let mut setup = Setup::new(1, calm());
    setup.plant = Some(Plant::DiskLosesVouchers);
    setup.record = true;
    let outcome = run(&setup);
    let lines = timeline(&outcome.lines, &outcome.complaints[0].subjects);
    assert!(!lines.is_empty());
    assert!(lines.len() <= 120);
    assert!(lines.iter().any(|line| line.text.contains("voucher")));
}

#[test]
fn the_program_fails_and_says_what_why_and_how_to_see_it_again() {
    let scenario = concat!(env!("CARGO_MANIFEST_DIR"), "/scenarios/calm.toml");
    let output = Command::new(env!("CARGO_BIN_EXE_suanli-testnet"))
        .args(["sim", "--seed", "1", "--scenario", scenario])
        .args(["--plant", "disk-loses-vouchers"])
        .output()
        .expect("the program runs");
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains(&Checker::Accounts.to_string()), "{text}");
    let again = format!(
        "again: suanli-testnet sim --plant disk-loses-vouchers --scenario {scenario} --seed 1"
    );
    assert!(text.contains(&again), "{text}");
    assert!(text.contains("voucher"), "{text}");
    assert!(
        text.lines()
            .next_back()
            .is_some_and(|line| line.starts_with("trace ")),
        "{text}"
    );
}

#[test]
fn every_plant_is_found_by_its_name() {
    for plant in Plant::ALL {
        assert_eq!(plant.name().parse::<Plant>().ok(), Some(plant));
    }
    assert!("nothing".parse::<Plant>().is_err());
}
