//! What waits, and what comes after something else: a provider's queue, a drained node,
//! and jobs that read what others wrote.

use std::process::Stdio;

use suanli_node::api::types::{JobInfo, OfferInfo, Status};

use crate::{
    jobs::{SPIN, SPIN_JOB},
    network::{CLIENT, Network, eventually, job, root, said},
};

const PROVIDER: &str = "provider";

fn status(network: &Network, name: &str) -> Status {
    network.api(name).get("/v1/status").unwrap()
}

/// A job that runs for some seconds, handed in.
fn spin(network: &Network) -> JobInfo {
    let file = network.job(SPIN_JOB, SPIN);
    let file = file.to_str().unwrap();
    let words = said(
        &network.suanli(CLIENT, &["run", file, "-y", "-d", "--json"]),
        0,
    );
    let words: serde_json::Value = serde_json::from_str(&words).unwrap();
    let id = words["job"].as_str().unwrap().parse().unwrap();
    job(&network.api(CLIENT), id).unwrap()
}

/// One slot, two jobs: the second waits at the provider and runs after the first; then
/// both ends are told, and a drained node has let all work end.
#[test]
fn live_work_waits_for_its_turn_and_a_drained_node_lets_it_end() {
    let network = Network::start(&[PROVIDER]);
    let (first, second) = (spin(&network), spin(&network));
    eventually("one works and one waits", || {
        let status = status(&network, PROVIDER);
        (status.slots_used == 1 && status.waiting == 1).then_some(())
    });
    let mut drain = network
        .node(PROVIDER)
        .command()
        .args(["node", "drain"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    eventually("the offer is withdrawn", || {
        let offers: Vec<OfferInfo> = network.api(CLIENT).get("/v1/offers").unwrap();
        offers.is_empty().then_some(())
    });
    let ended = eventually("both jobs end", || {
        let jobs = [&first, &second].map(|of| job(&network.api(CLIENT), of.job).unwrap());
        let is_open = |job: &JobInfo| ["waiting", "asking", "running"].contains(&&*job.state);
        (!jobs.iter().any(is_open)).then_some(jobs)
    });
    for job in &ended {
        assert_eq!(job.state, "done", "{:?}", job.reason);
    }
    eventually("the drain ends", || drain.try_wait().unwrap());
    let words = said(&drain.wait_with_output().unwrap(), 0);
    assert!(
        words.contains("drained: no work for others is left"),
        "{words}"
    );
    let status = status(&network, PROVIDER);
    assert_eq!(
        (status.work_open, status.slots_used, status.waiting),
        (0, 0, 0)
    );
    assert!(status.paused.is_some());
}

#[test]
fn live_a_pipeline_hands_results_on() {
    let network = Network::start(&["seller-1", "seller-2"]);
    let file = root().join("examples/pipeline/job.toml");
    let out = network.dir.path().join("results");
    let (file, out) = (file.to_str().unwrap(), out.to_str().unwrap());
    let words = said(&network.suanli(CLIENT, &["run", file, "--dry-run"]), 0);
    assert!(words.contains("parts"), "{words}");
    let words = said(
        &network.suanli(CLIENT, &["run", file, "-y", "--out", out]),
        0,
    );
    let sum = std::fs::read(format!("{out}/sum/sum.u32")).unwrap();
    let sum = u32::from_le_bytes(sum.try_into().unwrap());
    assert_eq!(sum, 283_146, "{words}");
    assert!(words.contains("primes below 4,000,000"), "{words}");
    assert!(
        words.contains("283146") && words.contains("all together"),
        "{words}"
    );
}

/// Bytes of the largest file below a node's folder.
fn largest(folder: &std::path::Path) -> u64 {
    let mut largest = 0;
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let bytes = match entry.metadata() {
            Ok(found) if found.is_dir() => self::largest(&entry.path()),
            Ok(found) => found.len(),
            Err(_) => 0,
        };
        largest = largest.max(bytes);
    }
    largest
}

/// Results that stay go from provider to provider: the client has names and no bytes.
#[test]
fn live_results_that_stay_go_from_provider_to_provider() {
    const HEIGHTS: u64 = 16 << 20;
    let network = Network::start(&["seller-1", "seller-2"]);
    let folder = network.dir.path();
    for program in ["heights.wgsl", "shade.wgsl"] {
        let from = root().join("examples/relief").join(program);
        std::fs::copy(from, folder.join(program)).unwrap();
    }
    let example = std::fs::read_to_string(root().join("examples/relief/job.toml")).unwrap();
    let mut text = String::new();
    let mut sellers = ["seller-2", "seller-1"].into_iter();
    for line in example.lines() {
        if line == "[job.limits]" {
            let seller = status(&network, sellers.next().unwrap()).peer;
            text += &format!("[job.market]\nproviders = [\"{seller:#}\"]\n");
        }
        text += line;
        text.push('\n');
    }
    let file = folder.join("relief.toml");
    std::fs::write(&file, text).unwrap();
    let out = folder.join("out");
    let arguments = [
        "run",
        file.to_str().unwrap(),
        "-y",
        "--out",
        out.to_str().unwrap(),
    ];
    let words = said(&network.suanli(CLIENT, &arguments), 0);
    assert!(words.contains("1 output (16.0 MiB) stayed"), "{words}");
    assert!(out.join("picture/relief.png").is_file());
    assert!(!out.join("heights/heights.f32").exists());
    // Beside the journal, whose segments are as large from the beginning.
    let kept = |name: &str| {
        let data = folder.join("net").join(name).join("data");
        largest(&data.join("blobs")).max(largest(&data.join("cache")))
    };
    assert!(kept(CLIENT) < HEIGHTS, "the client has {}", kept(CLIENT));
    for seller in ["seller-1", "seller-2"] {
        assert!(kept(seller) >= HEIGHTS, "{seller} has {}", kept(seller));
    }
}

/// What fails leaves what is done, and says what is not.
#[test]
fn live_a_pipeline_that_fails_keeps_what_is_done() {
    let network = Network::start(&["seller"]);
    let folder = network.dir.path();
    std::fs::copy(
        root().join("examples/pipeline/count.wgsl"),
        folder.join("count.wgsl"),
    )
    .unwrap();
    let program = "(module (memory (export \"memory\") 1) (func (export \"_start\") unreachable))";
    std::fs::write(folder.join("trap.wat"), program).unwrap();
    let example = std::fs::read_to_string(root().join("examples/pipeline/job.toml")).unwrap();
    let (first, _) = example.split_once("[[job]]\nname = \"sum\"").unwrap();
    let second = "[[job]]\nname = \"trap\"\nneeds = [\"parts\"]\nruntime = \"wasm\"\n\
                  [job.wasm]\nmodule = \"trap.wat\"\n\
                  [[job]]\nname = \"never\"\nneeds = [\"trap\"]\nruntime = \"wasm\"\n\
                  [job.wasm]\nmodule = \"trap.wat\"\n";
    let file = folder.join("fails.toml");
    std::fs::write(&file, format!("{first}{second}")).unwrap();
    let out = folder.join("out");
    let (file, out) = (file.to_str().unwrap(), out.to_str().unwrap());
    let words = said(
        &network.suanli(CLIENT, &["run", file, "-y", "--out", out]),
        1,
    );
    assert!(words.contains("done, and kept: parts"), "{words}");
    assert!(words.contains("not done: trap, never"), "{words}");
    assert!(std::path::Path::new(&format!("{out}/parts/count-3.u32")).is_file());
}
