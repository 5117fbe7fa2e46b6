//! Ten nodes, of which five providers do what a bad day brings: two lie, one is killed,
//! one hangs, one baits: it is the cheapest of all, and refuses whoever asks. Every job still comes to its right end, each liar is named,
//! and none of them is paid.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    process::{Child, Stdio},
};

use suanli_node::api::types::{ChannelInfo, JobInfo, OfferInfo, ReceiptInfo, Status};
use suanli_protocol::{
    ids::PeerId,
    units::{Amount, Total},
};
use suanli_testnet::live::topology::{NodeSpec, ProvideSpec};

use crate::network::{CLIENT, Network, channels, eventually, receipts, said, stand_in};

const HONEST: [&str; 4] = ["honest-1", "honest-2", "honest-3", "honest-4"];
const LIARS: [&str; 2] = ["liar", "far-liar"];
const DYING: &str = "dying";
const HANGING: &str = "hanging";
const BAIT: &str = "bait";

const UNITS: u32 = 24;
/// How many equal results decide a unit.
const EQUAL: usize = 2;
/// A tenth of a second or so, so that a provider can be met at work.
const STEPS: u32 = 30_000_000;

/// Takes a number as its argument, goes so many steps from it, and says where it is then.
const WALK: &str = r#"
(module
  (import "wasi_snapshot_preview1" "args_get" (func $args (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "_start") (local $x i32) (local $at i32) (local $left i32)
    (drop (call $args (i32.const 256) (i32.const 1024)))
    (local.set $at (i32.load (i32.const 260)))
    (loop $digits
      (local.set $x (i32.add
        (i32.mul (local.get $x) (i32.const 10))
        (i32.sub (i32.load8_u (local.get $at)) (i32.const 48))))
      (local.set $at (i32.add (local.get $at) (i32.const 1)))
      (br_if $digits (i32.load8_u (local.get $at))))
    (local.set $left (i32.const STEPS))
    (loop $steps
      (local.set $x (i32.add
        (i32.mul (local.get $x) (i32.const 1664525))
        (i32.const 1013904223)))
      (local.set $left (i32.sub (local.get $left) (i32.const 1)))
      (br_if $steps (local.get $left)))
    (local.set $at (i32.const 72))
    (loop $says
      (local.set $at (i32.sub (local.get $at) (i32.const 1)))
      (i32.store8 (local.get $at)
        (i32.add (i32.const 48) (i32.rem_u (local.get $x) (i32.const 10))))
      (local.set $x (i32.div_u (local.get $x) (i32.const 10)))
      (br_if $says (i32.gt_u (local.get $at) (i32.const 64))))
    (i32.store (i32.const 0) (i32.const 64))
    (i32.store (i32.const 4) (i32.const 8))
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 128)))))
"#;

/// What the program says, found without it.
fn walked(from: u32) -> String {
    let step = |x: u32, _| x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
    let x = (0..STEPS).fold(from, step);
    format!("{:08}", x % 100_000_000)
}

/// A provider of wasm jobs; `rank` is what it costs.
fn provider(name: &str, region: &str, rank: u64) -> NodeSpec {
    priced(name, region, rank, Amount::from_micros(500 + 10 * rank))
}

fn priced(name: &str, region: &str, rank: u64, price: Amount) -> NodeSpec {
    // Without a device it need not measure one: ten nodes would do so at once.
    let settings = format!(
        "[provide]\ndevice = \"none\"\n\
         price = [{{ meter = \"wasm.fuel\", amount = \"{price}\", per = 1_000_000_000 }}]\n"
    );
    NodeSpec {
        name: name.into(),
        region: region.into(),
        provide: Some(ProvideSpec {
            price_per_second: price,
            slots: 1,
            firm: rank.is_multiple_of(2),
        }),
        settings: settings.parse().unwrap(),
    }
}

/// A provider that offers at a tenth of all others' prices, and declines whoever asks: only it
/// knows whom it knows.
fn bait(name: &str, region: &str) -> NodeSpec {
    let mut bait = priced(name, region, 1, Amount::from_micros(50));
    let provide = bait.settings["provide"].as_table_mut().unwrap();
    provide.insert("accept".into(), "client.known".into());
    bait
}

/// A provider whose worker computes nothing.
fn liar(name: &str, region: &str, rank: u64) -> NodeSpec {
    let mut liar = provider(name, region, rank);
    let worker = stand_in("liar").to_str().unwrap().to_owned();
    liar.settings.insert("worker".into(), worker.into());
    liar
}

/// The network, and who is who in it.
struct Hostile {
    network: Network,
    peers: BTreeMap<String, PeerId>,
}

/// A job that ended, and what its owner read.
struct Ended {
    info: JobInfo,
    words: String,
    /// All that the client was given for it.
    receipts: Vec<ReceiptInfo>,
}

impl Hostile {
    fn start(providers: Vec<NodeSpec>) -> Self {
        let client = NodeSpec {
            name: CLIENT.into(),
            region: "CN-BJ".into(),
            provide: None,
            settings: toml::Table::new(),
        };
        let mut nodes: Vec<NodeSpec> = [client].into_iter().chain(providers).collect();
        // An offer that gossip lost is in all books soon.
        let timing: toml::Table = "pull = \"3s\"".parse().unwrap();
        for node in &mut nodes {
            node.settings.insert("timing".into(), timing.clone().into());
        }
        let names: Vec<String> = nodes.iter().map(|node| node.name.clone()).collect();
        let network = Network::of(nodes);
        let wat = WALK.replace("STEPS", &STEPS.to_string());
        fs::write(network.dir.path().join("walk.wat"), wat).unwrap();
        let peer = |name: &String| {
            let status: Status = network.api(name).get("/v1/status").unwrap();
            (name.clone(), status.peer)
        };
        let peers = names.iter().map(peer).collect();
        Self { network, peers }
    }

    fn peer(&self, name: &str) -> PeerId {
        self.peers[name]
    }

    fn out(&self, job: &str) -> PathBuf {
        self.network.dir.path().join(job)
    }

    /// Hands in an array of so many walks, which writes into the folder of its name.
    fn submit(&self, job: &str, units: u32, verify: &str) -> Child {
        let file = self.network.dir.path().join(format!("{job}.toml"));
        let text = format!(
            "name = \"{job}\"\nruntime = \"wasm\"\n\
             [limits]\nrun = \"30s\"\nmemory = \"1MiB\"\nfuel = 1_000_000_000\n\
             [market]\nmax_price = \"10\"\n[verify]\n{verify}\n[array]\nrange = [0, {units}]\n\
             [wasm]\nmodule = \"walk.wat\"\nargs = [\"{{unit}}\"]\n\
             stdout = {{ file = \"{{unit}}.txt\" }}\n"
        );
        fs::write(&file, text).unwrap();
        let mut command = self.network.node(CLIENT).command();
        command.arg("run").arg(&file).arg("-y");
        command.arg("--out").arg(self.out(job));
        let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    }

    /// Waits for the job's end, and checks what it wrote.
    fn end(&self, job: &str, units: u32, running: Child) -> Ended {
        let words = said(&running.wait_with_output().unwrap(), 0);
        println!("{words}");
        assert!(
            words.contains(&format!("{units} of {units} units")),
            "{words}"
        );
        for unit in 0..units {
            let file = self.out(job).join(format!("{unit}.txt"));
            let written = fs::read_to_string(&file).unwrap();
            assert_eq!(written, walked(unit), "unit {unit} of {job}: {words}");
        }
        let client = self.network.api(CLIENT);
        let jobs: Vec<JobInfo> = client.get("/v1/jobs").unwrap();
        let info = jobs.into_iter().find(|info| info.name == job).unwrap();
        assert_eq!(info.state, "done", "{words}");
        let mut receipts = receipts(&client).unwrap();
        receipts.retain(|receipt| receipt.job == info.job);
        // The API shows no more.
        assert!(receipts.len() < 100, "{words}");
        Ended {
            info,
            words,
            receipts,
        }
    }

    /// Waits until a provider runs something.
    fn meet_at_work(&self, name: &str) {
        let api = self.network.api(name);
        eventually(&format!("work at {name}"), || {
            let status: Status = api.get("/v1/status").unwrap();
            (status.slots_used > 0).then_some(())
        });
    }

    fn offer(&self, name: &str) -> OfferInfo {
        let path = format!("/v1/offers/{:#}", self.peer(name));
        self.network.api(CLIENT).get(&path).unwrap()
    }

    /// All receipts of a provider, once it knows what became of each.
    fn judged(&self, name: &str) -> Vec<ReceiptInfo> {
        let api = self.network.api(name);
        eventually(&format!("a word on each receipt of {name}"), || {
            let all = receipts(&api).unwrap();
            // The API shows no more.
            assert!(all.len() < 100);
            let judged = all.iter().all(|receipt| receipt.verdict.is_some());
            judged.then_some(all)
        })
    }

    /// That the client has said, and shows, that a provider lies.
    fn check_liar(&self, name: &str, job: &Ended) {
        let peer = self.peer(name);
        let named = format!(
            "disputed the receipt of {peer}: others' results agree with each other and not \
             with its own"
        );
        assert!(job.words.contains(&named), "{name}: {}", job.words);
        let standing = self.offer(name).standing.unwrap();
        assert!(standing.contradicted > 0, "{name}: {standing:?}");
        assert!(standing.left_out_until_ms.is_some(), "{name}: {standing:?}");
        assert_eq!(standing.accepted, 0, "{name}: {standing:?}");
        let shown = self
            .network
            .suanli(CLIENT, &["offer", "show", &format!("{peer:#}")]);
        let shown = said(&shown, 0);
        println!("{shown}");
        let left_out = "its results were wrong; it is asked again in";
        assert!(shown.contains(left_out), "{shown}");
        let told = job
            .words
            .lines()
            .find(|line| line.starts_with("wrong results") && line.contains(&peer.to_string()));
        let told = told.unwrap_or_else(|| panic!("{name} is not named: {}", job.words));
        assert!(told.ends_with(" paid"), "{told}");
    }

    fn check_honest(&self, name: &str, words: &str) {
        let peer = self.peer(name);
        let disputed = format!("disputed the receipt of {peer}: others'");
        assert!(!words.contains(&disputed), "{name}: {words}");
        if let Some(standing) = self.offer(name).standing {
            assert_eq!(standing.contradicted, 0, "{name}: {standing:?}");
        }
    }

    /// Each unit was paid so often as it says, and a provider has what its accepted
    /// receipts come to. Whoever is dead says nothing.
    fn check_accounts(&self, dead: &[&str], jobs: &[&Ended]) {
        let receipts = || jobs.iter().flat_map(|job| &job.receipts);
        let is_accepted = |receipt: &&ReceiptInfo| receipt.verdict.as_deref() == Some("accepted");
        for (name, peer) in self.peers.iter().filter(|(name, _)| *name != CLIENT) {
            let of = receipts().filter(|receipt| receipt.provider == *peer);
            let due = of
                .filter(is_accepted)
                .try_fold(Total::ZERO, |sum, receipt| sum.checked_add(receipt.amount));
            let due = due.unwrap().to_string();
            let is_liar = LIARS.contains(&&**name);
            assert!(!is_liar || due == Total::ZERO.to_string(), "{name}: {due}");
            let asked: &[&str] = if dead.contains(&&**name) {
                &[CLIENT]
            } else {
                &[CLIENT, name]
            };
            self.check_channel(name, asked, &due);
        }
        for Ended { info, words, .. } in jobs {
            let of = |unit| {
                receipts().filter(move |receipt| (receipt.job, receipt.unit) == (info.job, unit))
            };
            for unit in 0..info.units.unwrap().total {
                let paid: BTreeSet<PeerId> = of(unit)
                    .filter(is_accepted)
                    .map(|receipt| receipt.provider)
                    .collect();
                let times = of(unit).filter(is_accepted).count();
                assert_eq!(
                    (paid.len(), times),
                    (EQUAL, EQUAL),
                    "unit {unit} of {}: {words}",
                    info.name
                );
            }
        }
    }

    /// What the client pays a provider comes to this, as those who are asked say.
    fn check_channel(&self, name: &str, asked: &[&str], due: &str) {
        let peers = [self.peer(CLIENT), self.peer(name)];
        let mut shown = String::new();
        eventually(&format!("{due} paid to {name}"), || {
            let sides = asked.iter().map(|side| {
                let mut all = channels(&self.network.api(side)).unwrap();
                all.retain(|channel| peers.contains(&channel.peer));
                all
            });
            let sides: Vec<_> = sides.collect();
            let now = format!("{sides:?}");
            if now != shown {
                println!("{name}, {due} due: {now}");
                shown = now;
            }
            let agrees = |side: &Vec<ChannelInfo>| match &side[..] {
                [] => due == Total::ZERO.to_string(),
                [one] => one.cumulative == due,
                _ => panic!("two channels with {name}: {side:?}"),
            };
            sides.iter().all(agrees).then_some(())
        });
    }
}

#[test]
fn live_ten_nodes_end_every_job_right_among_liars_the_dead_and_the_silent() {
    let mut hostile = Hostile::start(vec![
        liar("liar", "CN-NX", 0),
        provider("honest-1", "CN-NX", 1),
        provider("honest-2", "CN-GZ", 2),
        provider("honest-3", "CN-SH", 3),
        provider("honest-4", "CN-SH", 4),
        liar("far-liar", "CN-GD", 5),
        provider(DYING, "CN-NM", 6),
        provider(HANGING, "CN-GS", 7),
        bait(BAIT, "CN-SC"),
    ]);
    let replicas = format!("replicas = {EQUAL}");
    let running = hostile.submit("first", UNITS, &replicas);
    hostile.meet_at_work(DYING);
    let dying = hostile.network.testnet.node_mut(DYING).unwrap();
    dying.kill().unwrap();
    hostile.meet_at_work(HANGING);
    hostile.network.node(HANGING).pause().unwrap();
    let first = hostile.end("first", UNITS, running);
    for name in LIARS {
        hostile.check_liar(name, &first);
    }
    // Nobody asks a liar again, while others hang still.
    let before = LIARS.map(|name| hostile.judged(name).len());
    let running = hostile.submit("second", UNITS, &replicas);
    let second = hostile.end("second", UNITS, running);
    let running = hostile.submit("audited", 4, "audit = 1.0");
    let audited = hostile.end("audited", 4, running);
    let jobs = [&first, &second, &audited];
    assert_eq!(before, LIARS.map(|name| hostile.judged(name).len()));
    for job in &jobs[1..] {
        for name in LIARS {
            let agreed = format!("agreed with {}", hostile.peer(name));
            assert!(!job.words.contains(&agreed), "{name}: {}", job.words);
        }
    }

    hostile.network.node(HANGING).resume().unwrap();
    let words: String = jobs.iter().map(|job| &*job.words).collect();
    for name in HONEST.iter().chain(&[DYING, HANGING, BAIT]) {
        hostile.check_honest(name, &words);
    }
    // It was asked first, and kept nobody.
    let bait = hostile.peer(BAIT);
    assert!(!words.contains(&format!("agreed with {bait}")), "{words}");
    assert!(words.contains(&format!("{bait} declines")), "{words}");
    hostile.check_accounts(&[DYING], &jobs);
    let paid: BTreeSet<PeerId> = channels(&hostile.network.api(CLIENT))
        .unwrap()
        .into_iter()
        .filter(|channel| channel.cumulative != Total::ZERO.to_string())
        .map(|channel| channel.peer)
        .collect();
    for name in HONEST {
        assert!(paid.contains(&hostile.peer(name)), "{name}: {words}");
    }
}

#[test]
fn live_an_audit_finds_the_liar_that_is_cheapest() {
    let hostile = Hostile::start(vec![
        liar("liar", "CN-NX", 0),
        provider("honest-1", "CN-NX", 1),
        provider("honest-2", "CN-GZ", 2),
    ]);
    let running = hostile.submit("audited", 4, "audit = 1.0");
    let audited = hostile.end("audited", 4, running);
    hostile.check_liar("liar", &audited);
    for name in ["honest-1", "honest-2"] {
        hostile.check_honest(name, &audited.words);
    }
    hostile.check_accounts(&[], &[&audited]);
}
