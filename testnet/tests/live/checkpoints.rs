//! A long job loses its provider on the way, and goes on elsewhere.

use std::fs;

use suanli_node::api::types::{JobInfo, ReceiptInfo};

use crate::network::{CLIENT, Network, eventually, job, receipts, root, said};

/// The example with so many steps: `suanli run` says how it went.
fn reaction(network: &Network, steps: u32, arguments: &[&str]) -> String {
    let example = root().join("examples/reaction");
    let text = fs::read_to_string(example.join("job.toml")).unwrap();
    let text = text.replace("repeat = 10000", &format!("repeat = {steps}"));
    let source = fs::read_to_string(example.join("reaction.wgsl")).unwrap();
    let file = network.job(&text, &source);
    let renamed = file.with_file_name("reaction.wgsl");
    fs::rename(file.with_file_name("job.wgsl"), renamed).unwrap();
    let file = file.to_str().unwrap();
    let command = [&["run", file, "-y"], arguments].concat();
    said(&network.suanli(CLIENT, &command), 0)
}

fn time_of(receipt: &ReceiptInfo) -> u64 {
    let mut lines = receipt.usage.iter();
    let time = lines.find(|(meter, _)| meter == "gpu.ms");
    time.map_or(0, |(_, ms)| *ms)
}

#[test]
fn live_a_job_whose_provider_is_killed_goes_on_from_its_last_checkpoint() {
    let mut network = Network::start(&["first", "second"]);
    // As many as take this machine some seconds.
    let out = network.dir.path().join("out");
    let out = out.to_str().unwrap();
    let mut steps = 2000;
    let whole = loop {
        reaction(&network, steps, &["--out", out]);
        let newest = receipts(&network.api(CLIENT)).unwrap().remove(0);
        if time_of(&newest) > 6000 || steps >= 512_000 {
            break newest;
        }
        steps *= 2;
    };
    let words = reaction(&network, steps, &["-d", "--json"]);
    let words: serde_json::Value = serde_json::from_str(&words).unwrap();
    let id = words["job"].as_str().unwrap().parse().unwrap();
    let api = network.api(CLIENT);
    let running = eventually("a checkpoint is kept", || {
        let found = job(&api, id).unwrap();
        assert!(!found.is_over(), "it was over before any: {found:?}");
        (!found.checkpoints.is_empty()).then_some(found)
    });
    let names = ["first", "second"];
    let victim = names.into_iter().find(|name| {
        let status = network
            .api(name)
            .get::<suanli_node::api::types::Status>("/v1/status");
        Some(status.unwrap().peer) == running.provider
    });
    network
        .testnet
        .node_mut(victim.unwrap())
        .unwrap()
        .kill()
        .unwrap();

    let ended: JobInfo = eventually("the job ends", || job(&api, id).filter(JobInfo::is_over));
    assert_eq!(ended.state, "done", "{:?}", ended.reason);
    assert_ne!(ended.provider, running.provider);
    let words = said(
        &network.suanli(CLIENT, &["job", "logs", &format!("{id:#}"), "--steps"]),
        0,
    );
    assert!(words.contains("; goes on after step"), "{words}");
    let rest = receipts(&api).unwrap().remove(0);
    assert_eq!(rest.outputs, whole.outputs, "to the last bit");
    let (whole_ms, rest_ms) = (time_of(&whole), time_of(&rest));
    println!("{steps} steps: {whole_ms} ms of the device, {rest_ms} ms after the loss");
}
