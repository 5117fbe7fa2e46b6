//! A provider with several devices.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use suanli_node::{
    api::types::{JobInfo, OfferInfo, Status},
    jobfile,
};

use crate::{
    jobs::{SPIN, SPIN_JOB},
    network::{CLIENT, Network, Submitter, eventually, job, receipts, said},
};

/// Where Debian and others keep the description of Mesa's software driver.
const DRIVERS: &str = "/usr/share/vulkan/icd.d";

fn software_driver() -> Option<PathBuf> {
    let files = fs::read_dir(DRIVERS).ok()?.flatten();
    let mut paths = files.map(|file| file.path());
    paths.find(|path| path.to_string_lossy().contains("lvp_icd"))
}

/// A worker that sees the software adapter twice: the loader takes two descriptions of
/// one driver for two drivers.
fn doubled_worker(driver: &Path, worker: &Path, dir: &Path) -> PathBuf {
    let again = dir.join("again.json");
    fs::copy(driver, &again).unwrap();
    let script = dir.join("doubled-worker");
    let text = format!(
        "#!/bin/sh\nVK_DRIVER_FILES={}:{} exec {} \"$@\"\n",
        driver.display(),
        again.display(),
        worker.display()
    );
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    script
}

#[test]
fn live_two_devices_run_two_jobs_at_once() {
    let Some(driver) = software_driver() else {
        println!("skipped: no description of Mesa's software driver in {DRIVERS}");
        return;
    };
    let mut network = Network::start(&["seller"]);
    let seller = network.testnet.node_mut("seller").unwrap();
    seller.stop().unwrap();
    let file = seller.config_file();
    let mut config: toml::Table = fs::read_to_string(&file).unwrap().parse().unwrap();
    let worker = PathBuf::from(config["worker"].as_str().unwrap());
    let doubled = doubled_worker(&driver, &worker, network.dir.path());
    config.insert("worker".into(), doubled.to_str().unwrap().into());
    let provide = config["provide"].as_table_mut().unwrap();
    provide.insert("device".into(), vec!["#0", "#1"].into());
    fs::write(&file, config.to_string()).unwrap();
    network.testnet.restart("seller").unwrap();
    network.testnet.wait_ready().unwrap();

    let api = network.api(CLIENT);
    let offers: Vec<OfferInfo> = api.get("/v1/offers").unwrap();
    let [offer] = &*offers else {
        panic!("not one offer: {offers:?}");
    };
    assert_eq!((offer.devices.len(), offer.slots), (2, 2), "{offer:?}");
    let shown = network.suanli(CLIENT, &["offer", "show", &format!("{:#}", offer.offer)]);
    let shown = said(&shown, 0);
    assert_eq!(shown.matches("; 1 at once").count(), 2, "{shown}");

    // The second begins while the first runs.
    let spin = jobfile::read(&network.job(SPIN_JOB, SPIN)).unwrap();
    let spin = Submitter::of(spin);
    let mut jobs = Vec::new();
    for begun in 1..=2 {
        let (id, taken) = spin.submit(&api);
        taken.unwrap();
        jobs.push(id);
        eventually("an execution", || {
            let status: Status = network.api("seller").get("/v1/status").unwrap();
            (status.slots_used == begun).then_some(())
        });
    }
    for id in jobs {
        let state = eventually("the job's end", || job(&api, id).filter(JobInfo::is_over));
        assert_eq!(state.state, "done", "{state:?}");
    }
    let mut devices: Vec<u16> = receipts(&api)
        .unwrap()
        .iter()
        .map(|receipt| receipt.device_index)
        .collect();
    devices.sort_unstable();
    assert_eq!(devices, [0, 1]);
}
