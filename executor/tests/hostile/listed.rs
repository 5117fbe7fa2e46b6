//! The list of programs that mean harm, `fixtures/cases.toml`: read, and each of them
//! run. For the tests that see each end as the list says, and for
//! `scripts/demo hostile`, which shows it.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use serde::Deserialize;
use suanli_executor::{
    ExecutionRequest, Failure, JobSpec, Template,
    command::{Command, OutFile},
    spec::{Content, Graph},
};
use suanli_protocol::{
    registry::{Feature, Runtime},
    wire::{List, Utf8},
};

use crate::support::{Bench, LONG, buffer, constant, file_with, graph, noop, pass};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cases {
    case: Vec<Case>,
}

/// A program, and what becomes of it. The file's head says what each key means.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Case {
    pub(crate) name: String,
    file: String,
    pub(crate) attack: String,
    pub(crate) layer: String,
    pub(crate) failure: String,
    says: String,
    #[serde(default)]
    repeat: Vec<Repeat>,
    #[serde(default)]
    features: Vec<String>,
    #[serde(default = "one_workgroup")]
    workgroups: [u32; 3],
    #[serde(default = "once")]
    repeats: u32,
    run_ms: Option<u64>,
    #[serde(default)]
    constants: BTreeMap<String, f64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Repeat {
    word: String,
    with: String,
    times: usize,
}

fn one_workgroup() -> [u32; 3] {
    [1, 1, 1]
}

fn once() -> u32 {
    1
}

/// Bytes of a file of the folder.
pub(crate) fn fixture(name: &str) -> Vec<u8> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/hostile/fixtures");
    std::fs::read(folder.join(name)).unwrap()
}

/// A file of the folder that is text.
pub(crate) fn text(name: &str) -> String {
    String::from_utf8(fixture(name)).unwrap()
}

/// All, in the order of the file.
pub(crate) fn listed() -> Vec<Case> {
    toml::from_str::<Cases>(&text("cases.toml")).unwrap().case
}

impl Case {
    /// Runs it for this tenant; how it failed, or that it did not.
    pub(crate) async fn run(&self, bench: &mut Bench, tenant: u8) -> Result<(), (Failure, String)> {
        let request = self.request(bench, tenant);
        let id = request.id;
        match bench.executor.run(request) {
            Err(refusal) => Err((refusal.failure, refusal.detail)),
            Ok(()) => bench.end(id).await.result.map(drop),
        }
    }

    /// Whether that is how the list says that it fails.
    pub(crate) fn is_as_listed(&self, failure: &Failure, detail: &str) -> bool {
        failure.to_string() == self.failure && detail.contains(&self.says)
    }

    /// The file, with its words replaced.
    fn bytes(&self) -> Vec<u8> {
        let bytes = fixture(&self.file);
        if self.repeat.is_empty() {
            return bytes;
        }
        let whole = String::from_utf8(bytes).unwrap();
        let replaced = self.repeat.iter().fold(whole, |text, repeat| {
            assert!(text.contains(&repeat.word), "{}", self.file);
            text.replace(&repeat.word, &repeat.with.repeat(repeat.times))
        });
        replaced.into_bytes()
    }

    fn request(&self, bench: &mut Bench, tenant: u8) -> ExecutionRequest {
        let bytes = self.bytes();
        let mut request = bench.request(tenant, &noop());
        request.run_limit = self.run_ms.map_or(LONG, Duration::from_millis);
        if self.file.ends_with(".wat") {
            request.runtime = Runtime::WASM;
            request.spec = Template::single(command()).into();
            request.inputs = vec![file_with(&wat::parse_bytes(&bytes).unwrap())];
            request.fuel_max = u64::MAX;
        } else {
            request.spec = JobSpec::Encoded(self.spec(&bytes));
        }
        request
    }

    /// A graph with these bytes for its source, whether they are text or not.
    fn spec(&self, source: &[u8]) -> Vec<u8> {
        let stand_in = "\u{1}".repeat(source.len());
        let mut main = pass("main", &[0], 1);
        main.workgroups = self.workgroups;
        main.repeat = self.repeats;
        let constants = self.constants.iter();
        let constants = constants.map(|(name, value)| constant(name, *value));
        main.constants = List::truncated(constants.collect());
        let features = self
            .features
            .iter()
            .map(|name| Feature::named(name).unwrap());
        let graph = Graph {
            features: List::truncated(features.collect()),
            ..graph(
                &stand_in,
                vec![buffer("out", 64, Content::Zeroed)],
                vec![main],
            )
        };
        let mut bytes = Template::single(graph).encode().unwrap();
        if !source.is_empty() {
            let mut windows = bytes.windows(source.len());
            let at = windows.position(|window| window == stand_in.as_bytes());
            let at = at.unwrap();
            bytes[at..at + source.len()].copy_from_slice(source);
        }
        bytes
    }
}

/// Allows little: a kilobyte of one output, a hundred million units of fuel.
fn command() -> Command {
    Command {
        module: 0,
        arguments: List::default(),
        variables: List::default(),
        stdin: None,
        files: List::default(),
        outputs: vec![OutFile {
            name: Utf8::cut("quota"),
            bytes_max: 1024,
        }]
        .try_into()
        .unwrap(),
        stdout_max: 1024,
        stderr_max: 1024,
        memory_max: 16 << 20,
        fuel_max: 100_000_000,
        clock_ns: 0,
        seed: 0,
    }
}
