//! A node whose disk fills up under its work.
//!
//! The small disk is a tmpfs of its own, mounted over the node's data directory, which takes
//! root: without it the test says so and is skipped.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use suanli_node::{
    api::types::{ChannelInfo, Status},
    jobfile,
};
use suanli_protocol::ids::JobId;
use suanli_testnet::live::ApiFailure;

use crate::network::{CLIENT, Network, Submitter, channels, eventually, job, receipts, root, said};

const PROVIDER: &str = "provider";
/// Two segments of the journal fit: the one that is written, and the next.
const SMALL: &str = "40m";
const ROOMY: &str = "256m";
/// What a job's program is blown up to: it travels with the job's records, and so fills the
/// journal with few jobs.
const PROGRAM_BYTES: usize = 56 * 1024;
const UNUSABLE: u8 = 7;

/// A disk of its own under a folder.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts it over what lies in the folder, and copies the files there onto it. `None` where
    /// that is not allowed.
    fn under(folder: &Path) -> Option<Self> {
        let files: Vec<(PathBuf, Vec<u8>, fs::Permissions)> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.is_file())
            .map(|path| {
                let mode = fs::metadata(&path).unwrap().permissions();
                (path.clone(), fs::read(&path).unwrap(), mode)
            })
            .collect();
        let options = format!("size={SMALL},mode=700");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(folder)
            .output();
        if !mounted.is_ok_and(|mount| mount.status.success()) {
            return None;
        }
        let disk = Self(folder.to_owned());
        for (path, bytes, mode) in files {
            fs::write(&path, bytes).unwrap();
            fs::set_permissions(&path, mode).unwrap();
        }
        Some(disk)
    }

    /// Something else takes the rest of the disk: there is none to make the journal shorter.
    fn fill_up(&self) {
        let mut other = fs::File::create(self.0.join("other")).unwrap();
        let zeros = vec![0; 64 * 1024];
        while other.write_all(&zeros).is_ok() {}
    }

    fn make_room(&self) {
        let options = format!("remount,size={ROOMY}");
        let mut remount = Command::new("mount");
        remount.args(["-o", &options]).arg(&self.0);
        assert!(remount.status().unwrap().success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: the node may still run.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Jobs whose records are large.
fn large_jobs(network: &Network) -> Submitter {
    let noop = fs::read_to_string(root().join("examples/noop/noop.wgsl")).unwrap();
    let line = "// nothing that a compiler looks at, but bytes that are stored and sent\n";
    let program = noop + &line.repeat(PROGRAM_BYTES / line.len());
    let toml = fs::read_to_string(root().join("examples/noop/job.toml")).unwrap();
    let file = network.job(&toml.replace("noop.wgsl", "job.wgsl"), &program);
    Submitter::of(jobfile::read(&file).unwrap())
}

/// Hands jobs in until the journal is full; those that were taken, and what the node said then.
fn hand_in_until_refused(network: &Network, submitter: &Submitter) -> (Vec<JobId>, String) {
    let api = network.api(CLIENT);
    let mut taken = Vec::new();
    let refusal = eventually("a refusal", || {
        match submitter.submit_again(&api) {
            (id, Ok(())) => taken.push(id),
            // Others are under way, or the room that there was is being tried for a segment.
            (_, Err(ApiFailure::Refused(refusal))) if refusal.exit_code != UNUSABLE => {}
            (_, Err(ApiFailure::Refused(refusal))) => {
                let status: Status = api.get("/v1/status").unwrap();
                return status.store_failed.map(|_| refusal.error);
            }
            (_, Err(failure)) => panic!("{failure}"),
        }
        None
    });
    (taken, refusal)
}

/// No word of the client is out that its own journal lacks.
fn nothing_is_out_that_was_not_stored(network: &Network) {
    let [provider, client] = [PROVIDER, CLIENT].map(|name| network.api(name));
    let (sold, earned) = (receipts(&provider).unwrap(), channels(&provider).unwrap());
    for sold in sold.iter().filter(|sold| sold.verdict.is_some()) {
        let bought = crate::network::receipt(&client, sold.receipt).expect("a receipt judged");
        assert_eq!(bought.verdict, sold.verdict);
    }
    let paid = channels(&client).unwrap();
    for earned in &earned {
        let is_same = |paid: &&ChannelInfo| paid.channel == earned.channel;
        let paid = paid.iter().find(is_same).expect("the channel");
        assert!(paid.sequence >= earned.sequence, "{paid:?} {earned:?}");
    }
}

#[test]
fn live_abuse_55_a_full_disk_refuses_jobs_and_recovers_with_room() {
    let mut network = Network::start(&[PROVIDER]);
    network.testnet.node_mut(CLIENT).unwrap().stop().unwrap();
    let Some(disk) = SmallDisk::under(&network.node(CLIENT).data_dir()) else {
        println!("skipped: a small disk takes the right to mount one (root)");
        return;
    };
    network.testnet.restart(CLIENT).unwrap();
    network.testnet.wait_ready().unwrap();
    let large = large_jobs(&network);
    // The first brings the program along.
    let (first, sent) = large.submit(&network.api(CLIENT));
    sent.unwrap();
    disk.fill_up();
    let (mut taken, refusal) = hand_in_until_refused(&network, &large);
    taken.push(first);
    assert!(refusal.contains("free some space"), "{refusal}");
    assert!(!taken.is_empty());
    let noop = root().join("examples/noop/job.toml");
    let run = ["run", noop.to_str().unwrap(), "-y"];
    let words = said(&network.suanli(CLIENT, &run), i32::from(UNUSABLE));
    assert!(words.contains("free some space"), "{words}");

    disk.make_room();
    let api = network.api(CLIENT);
    let late = eventually("a job that is taken again", || match large.submit(&api) {
        (id, Ok(())) => Some(id),
        (_, Err(_)) => None,
    });
    taken.push(late);
    said(&network.suanli(CLIENT, &run), 0);

    // What was taken is on disk: a power cut does not lose it.
    network.testnet.node_mut(CLIENT).unwrap().kill().unwrap();
    network.testnet.restart(CLIENT).unwrap();
    network.testnet.wait_ready().unwrap();
    let api = network.api(CLIENT);
    for id in taken {
        eventually("a job that ends", || {
            let found = job(&api, id).unwrap_or_else(|| panic!("job {id} is lost"));
            found.is_over().then_some(())
        });
    }
    nothing_is_out_that_was_not_stored(&network);
    drop(network);
    drop(disk);
}
