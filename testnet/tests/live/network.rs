//! Networks for tests, and what tests ask of their nodes.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::OnceLock,
    time::Duration,
};

use suanli_node::{
    api::types::{ChannelInfo, JobInfo, ReceiptInfo},
    data_dir::random_secret,
    jobfile::{self, PreparedJob},
};
use suanli_protocol::{
    ids::{JobId, ReceiptId},
    units::Amount,
};
use suanli_testnet::live::{
    Api, ApiFailure, Node, Programs, Testnet, Topology,
    topology::{NodeSpec, ProvideSpec},
    wait_for,
};
use tempfile::TempDir;

/// Far beyond what anything here takes: only what is broken gets there.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) const CLIENT: &str = "client";

/// A running network in a folder that goes with it.
pub(crate) struct Network {
    pub(crate) testnet: Testnet,
    pub(crate) dir: TempDir,
}

impl Network {
    /// A client, and providers of rising prices.
    pub(crate) fn start(providers: &[&str]) -> Self {
        let mut nodes = vec![NodeSpec {
            name: CLIENT.into(),
            region: "CN-BJ".into(),
            provide: None,
            settings: toml::Table::new(),
        }];
        nodes.extend(providers.iter().zip(1..).map(|(name, rank)| NodeSpec {
            name: (*name).into(),
            region: "CN-NX".into(),
            provide: Some(ProvideSpec {
                price_per_second: Amount::from_micros(500 * rank),
                slots: 1,
                firm: false,
            }),
            settings: toml::Table::new(),
        }));
        Self::of(nodes)
    }

    /// These nodes.
    pub(crate) fn of(nodes: Vec<NodeSpec>) -> Self {
        let dir = TempDir::new().unwrap();
        let net = dir.path().join("net");
        let testnet = Testnet::start(&Topology { nodes }, &net, programs()).unwrap();
        Self { testnet, dir }
    }

    pub(crate) fn node(&self, name: &str) -> &Node {
        self.testnet.node(name).unwrap()
    }

    pub(crate) fn api(&self, name: &str) -> Api {
        self.node(name).api().unwrap()
    }

    /// A command as the operator of a node types it.
    pub(crate) fn suanli(&self, name: &str, arguments: &[&str]) -> Output {
        self.node(name).command().args(arguments).output().unwrap()
    }

    /// Writes a job file, with its program, into the network's folder.
    pub(crate) fn job(&self, toml: &str, wgsl: &str) -> PathBuf {
        std::fs::write(self.dir.path().join("job.wgsl"), wgsl).unwrap();
        let file = self.dir.path().join("job.toml");
        std::fs::write(&file, toml).unwrap();
        file
    }
}

/// The repository.
pub(crate) fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// The programs, built if they are not there.
pub(crate) fn programs() -> Programs {
    static FOUND: OnceLock<Programs> = OnceLock::new();
    FOUND
        .get_or_init(|| {
            Programs::find().unwrap_or_else(|_| {
                let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
                let built = Command::new(cargo)
                    .args(["build", "--workspace", "--bins", "--locked"])
                    .current_dir(root())
                    .status();
                assert!(
                    built.unwrap().success(),
                    "suanli and suanli-worker are not built"
                );
                Programs::find().unwrap()
            })
        })
        .clone()
}

/// An example of the executor that stands in for its worker. Whoever runs tests has built
/// it, unless only some were asked for.
pub(crate) fn stand_in(name: &str) -> PathBuf {
    let path = programs().worker.with_file_name("examples").join(name);
    if !path.is_file() {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let built = Command::new(cargo)
            .args(["build", "--workspace", "--locked", "--example", name])
            .current_dir(root())
            .status();
        assert!(
            built.unwrap().success() && path.is_file(),
            "{} is not there; build it with `cargo build --workspace --examples`",
            path.display()
        );
    }
    path
}

/// What a command said, once it ended as it should.
pub(crate) fn said(output: &Output, exit: i32) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(exit), "{out}\n{err}");
    format!("{out}{err}")
}

/// Hands jobs in without the command line, as fast as a node takes them.
pub(crate) struct Submitter {
    job: PreparedJob,
}

impl Submitter {
    pub(crate) fn noop() -> Self {
        Self::of(jobfile::read(&root().join("examples/noop/job.toml")).unwrap())
    }

    /// A job without inputs.
    pub(crate) fn of(job: PreparedJob) -> Self {
        assert!(job.inputs.is_empty());
        Self { job }
    }

    /// The job's id, and whether the node said that it has the job.
    pub(crate) fn submit(&self, api: &Api) -> (JobId, Result<(), ApiFailure>) {
        let id = new_id();
        let uploaded = api.upload::<serde_json::Value>("/v1/blobs", &self.job.spec);
        (id, uploaded.and_then(|_| self.hand_in(api, id)))
    }

    /// The same, where the program is there from before.
    pub(crate) fn submit_again(&self, api: &Api) -> (JobId, Result<(), ApiFailure>) {
        let id = new_id();
        (id, self.hand_in(api, id))
    }

    fn hand_in(&self, api: &Api, id: JobId) -> Result<(), ApiFailure> {
        let submission = self.job.submission(id, Vec::new());
        let _: serde_json::Value = api.post("/v1/jobs", &submission)?;
        Ok(())
    }
}

fn new_id() -> JobId {
    JobId::from_bytes(*random_secret().unwrap().first_chunk().unwrap())
}

/// The newest receipts; as many as the API shows.
pub(crate) fn receipts(api: &Api) -> Result<Vec<ReceiptInfo>, ApiFailure> {
    api.get("/v1/receipts?limit=100")
}

/// A receipt, if the node holds it.
pub(crate) fn receipt(api: &Api, id: ReceiptId) -> Option<ReceiptInfo> {
    known(api.get(&format!("/v1/receipts/{id:#}")))
}

pub(crate) fn channels(api: &Api) -> Result<Vec<ChannelInfo>, ApiFailure> {
    api.get("/v1/channels")
}

/// A job, if the node has it.
pub(crate) fn job(api: &Api, id: JobId) -> Option<JobInfo> {
    known(api.get(&format!("/v1/jobs/{id:#}")))
}

fn known<T>(answer: Result<T, ApiFailure>) -> Option<T> {
    match answer {
        Ok(found) => Some(found),
        Err(ApiFailure::Refused(_)) => None,
        Err(failure) => panic!("{failure}"),
    }
}

/// Waits for something that is sure to come; says what did not.
pub(crate) fn eventually<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    wait_for(PATIENCE, look).unwrap_or_else(|| panic!("{what}: not within {PATIENCE:?}"))
}
