//! Each benchmark, as short as it can be: what it measures here means nothing,
//! but it runs to its end and every figure is there.

use std::process::Command;

use crate::network::{programs, root, said};

fn bench(args: &[&str]) -> String {
    programs();
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_suanli-testnet"))
        .arg("bench")
        .args(args)
        .arg("--work")
        .arg(dir.path())
        .current_dir(root())
        .output();
    said(&output.unwrap(), 0)
}

#[test]
fn live_bench_overhead_tells_the_phases() {
    let few = ["overhead", "--jobs", "3", "--warm-up", "1", "--turn", "1"];
    for quoted in [&[][..], &["--quoted"]] {
        let table = bench(&[&few, quoted].concat());
        for row in [
            "submit to settled",
            "HTTP around it",
            "HyperQueue",
            "skipped",
        ] {
            assert!(table.contains(row), "{row} is missing:\n{table}");
        }
    }
}

#[test]
fn live_bench_gossip_reaches_every_book() {
    let table = bench(&["gossip", "--nodes", "4", "--joins", "2", "--rounds", "3"]);
    assert!(table.contains("4 nodes, to all books"), "{table}");
    assert!(table.contains("none was lost"), "{table}");
}

#[test]
fn live_bench_store_is_beside_the_disk() {
    let table = bench(&["store", "--records", "62", "--receipts", "100"]);
    for row in ["single beside the disk", "from a checkpoint"] {
        assert!(table.contains(row), "{row} is missing:\n{table}");
    }
}

#[test]
fn live_bench_match_judges_every_offer() {
    let table = bench(&["match", "--offers", "200", "--rounds", "2"]);
    assert!(table.contains("200 of 200 fit"), "{table}");
    assert!(table.contains("a rank of its own"), "{table}");
}

#[test]
fn live_bench_memory_waits_until_all_offers_are_known() {
    let table = bench(&["memory", "--offers", "5", "--rest", "0"]);
    assert!(table.contains("with 5 offers, resident"), "{table}");
}
