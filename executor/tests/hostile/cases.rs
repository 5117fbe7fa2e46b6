//! The list of programs that mean harm, `fixtures/cases.toml`, and the tests that run
//! each of them and see it end as the list says.

use std::{collections::BTreeMap, path::PathBuf, time::Instant};

use serde::Deserialize;
use suanli_executor::{
    ExecutionRequest, ExecutorConfig,
    command::{Command, OutFile},
    spec::{Content, Graph},
};
use suanli_protocol::{
    registry::{Feature, Runtime},
    wire::{self, List, Utf8},
};

use crate::support::{Bench, LONG, bench, buffer, constant, file_with, graph, noop, pass};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cases {
    case: Vec<Case>,
}

/// A program, and what becomes of it. The file's head says what each key means.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    file: String,
    attack: String,
    layer: String,
    failure: String,
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

fn listed() -> Vec<Case> {
    toml::from_str::<Cases>(&text("cases.toml")).unwrap().case
}

impl Case {
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

    fn request(&self, bench: &mut Bench) -> ExecutionRequest {
        let bytes = self.bytes();
        let mut request = bench.request(1, &noop());
        request.run_limit = self.run_ms.map_or(LONG, std::time::Duration::from_millis);
        if self.file.ends_with(".wat") {
            request.runtime = Runtime::WASM;
            request.spec = command().encode().unwrap();
            request.inputs = vec![file_with(&wat::parse_bytes(&bytes).unwrap())];
            request.fuel_max = u64::MAX;
        } else {
            request.spec = self.spec(&bytes);
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
        let mut bytes = wire::encode(&graph);
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

async fn ends_as_listed(name: &str) {
    let case = listed().into_iter().find(|case| case.name == name).unwrap();
    let Some(mut bench) = bench(ExecutorConfig::default()).await else {
        return;
    };
    let request = case.request(&mut bench);
    let (id, began) = (request.id, Instant::now());
    let (failure, detail) = match bench.executor.run(request) {
        Err(refusal) => (refusal.failure, refusal.detail),
        Ok(()) => bench.end(id).await.result.unwrap_err(),
    };
    println!(
        "{}: {failure} in {:?}, by {}: {}",
        case.attack,
        began.elapsed(),
        case.layer,
        detail.lines().next().unwrap_or_default(),
    );
    assert_eq!(failure.to_string(), case.failure, "{detail}");
    assert!(detail.contains(&case.says), "{detail}");
    assert_eq!(bench.run_graph(2, &noop()).await.words(), [7]);
}

macro_rules! cases {
    ($($name:ident,)*) => {
        $(
            #[tokio::test]
            async fn $name() {
                ends_as_listed(stringify!($name)).await;
            }
        )*

        #[test]
        fn the_list_and_its_tests_are_the_same() {
            let names = listed().into_iter().map(|case| case.name);
            assert_eq!(names.collect::<Vec<_>>(), [$(stringify!($name)),*]);
        }
    };
}

cases! {
    abuse_31_a_module_that_never_ends,
    abuse_34_a_module_that_asks_for_sockets,
    abuse_38_a_loop_without_end_over_all_workgroups,
    abuse_38_an_array_of_four_megabytes_in_a_function,
    abuse_38_brackets_in_one_another,
    abuse_38_signs_in_front_of_one_another,
    abuse_38_indices_of_indices,
    abuse_38_types_of_types,
    abuse_38_conditions_without_end,
    abuse_38_blocks_in_one_another,
    abuse_38_functions_without_number,
    abuse_38_a_body_without_end,
    abuse_38_words_without_number,
    abuse_38_a_function_that_calls_itself,
    abuse_41_sixty_four_gigabytes_of_private_memory,
    abuse_41_sixty_four_gigabytes_of_workgroup_memory,
    a_shader_in_another_language,
    a_shader_in_binary,
    a_shader_of_junk,
    a_shader_of_junk_that_is_text,
    a_shader_of_nothing,
    a_shader_without_an_entry,
    a_shader_for_another_stage,
    a_shader_that_binds_a_texture,
    a_shader_that_traces_rays,
    a_shader_with_wide_integers,
    an_output_that_is_larger_than_its_job_says,
}
