//! What executor tests have in common: graphs, a started executor, waiting. The
//! example `hostile` shares it.

use std::{
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use suanli_executor::{
    Adapter, AdapterSelection, Confinement, ExecutionEvent, ExecutionId, ExecutionRequest,
    Executor, ExecutorConfig, ExecutorError, Failure, InputSource, JobSpec, OutputBlob, Template,
    Tenant, Usage, WorkerProgram,
    ipc::CAPPED,
    spec::{Buffer, Constant, Content, Graph, Name, Output, Pass},
};
use suanli_protocol::{
    registry::Runtime,
    wire::{List, Utf8},
};
use tokio::sync::mpsc;

/// Longer than anything here takes on a busy machine; no test waits for it.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// Tests and examples lie one folder below the programs.
pub(crate) fn worker_path() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let folder = own.parent().and_then(Path::parent).unwrap();
    folder.join(format!("suanli-worker{}", std::env::consts::EXE_SUFFIX))
}

pub(crate) fn program() -> WorkerProgram {
    WorkerProgram::find(Some(&worker_path())).unwrap()
}

/// A started executor, and the folder that its outputs go to.
pub(crate) struct Bench {
    pub(crate) executor: Executor,
    pub(crate) events: mpsc::Receiver<ExecutionEvent>,
    pub(crate) dir: tempfile::TempDir,
    next: u64,
}

/// How an execution ended.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) pid: Option<u32>,
    pub(crate) progress: Vec<(u64, u64)>,
    /// What it took, however it ended.
    pub(crate) usage: Usage,
    pub(crate) result: Result<(Vec<OutputBlob>, Usage), (Failure, String)>,
}

impl End {
    pub(crate) fn failure(&self) -> &Failure {
        &self.result.as_ref().unwrap_err().0
    }

    pub(crate) fn detail(&self) -> &str {
        &self.result.as_ref().unwrap_err().1
    }

    /// The words of the first output.
    pub(crate) fn words(&self) -> Vec<u32> {
        let (outputs, _) = self.result.as_ref().unwrap();
        let bytes = outputs[0].content.read().unwrap();
        assert_eq!(*blake3::hash(&bytes).as_bytes(), outputs[0].hash);
        bytes
            .as_chunks::<4>()
            .0
            .iter()
            .map(|word| u32::from_le_bytes(*word))
            .collect()
    }
}

/// Starts an executor, or says that the test is skipped.
pub(crate) async fn bench(config: ExecutorConfig) -> Option<Bench> {
    let config = ExecutorConfig {
        worker: config.worker.or_else(|| Some(worker_path())),
        ..config
    };
    let is_any_needed = config.adapter != AdapterSelection::None;
    match Executor::start(config).await {
        Ok((executor, _)) if is_any_needed && executor.adapter().is_none() => {
            println!("skipped: no Vulkan adapter");
            None
        }
        Ok((executor, events)) => Some(Bench {
            executor,
            events,
            dir: tempfile::tempdir().unwrap(),
            next: 0,
        }),
        Err(ExecutorError::NoAdapter(_)) => {
            println!("skipped: no Vulkan adapter");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

impl Bench {
    /// Of a bench that has one.
    pub(crate) fn adapter(&self) -> &Adapter {
        self.executor.adapter().unwrap()
    }

    pub(crate) fn request(&mut self, tenant: u8, graph: &Graph) -> ExecutionRequest {
        self.next += 1;
        ExecutionRequest {
            id: ExecutionId(self.next),
            tenant: Tenant([tenant; 32]),
            runtime: Runtime::WGSL,
            spec: JobSpec::Encoded(Template::single(graph.clone()).encode().unwrap()),
            unit: 0,
            inputs: Vec::new(),
            run_limit: LONG,
            memory_max: 1 << 30,
            fuel_max: 0,
            output_bytes_max: 1 << 28,
            fresh: false,
            outputs_dir: self.dir.path().to_owned(),
            checkpoint_every: None,
            resume: None,
        }
    }

    pub(crate) async fn run(&mut self, request: ExecutionRequest) -> End {
        let id = request.id;
        self.executor.run(request).unwrap();
        self.end(id).await
    }

    pub(crate) async fn run_graph(&mut self, tenant: u8, graph: &Graph) -> End {
        let request = self.request(tenant, graph);
        self.run(request).await
    }

    pub(crate) async fn next(&mut self) -> ExecutionEvent {
        tokio::time::timeout(LONG, self.events.recv())
            .await
            .unwrap()
            .unwrap()
    }

    /// Waits until the first dispatch of this execution is done.
    pub(crate) async fn progressed(&mut self, wanted: ExecutionId) {
        loop {
            match self.next().await {
                ExecutionEvent::Progress { id, .. } if id == wanted => return,
                ExecutionEvent::Failed {
                    failure, detail, ..
                } => panic!("{failure}: {detail}"),
                _ => {}
            }
        }
    }

    /// Waits until this execution has a worker; that worker's process id.
    pub(crate) async fn started(&mut self, wanted: ExecutionId) -> u32 {
        loop {
            match self.next().await {
                ExecutionEvent::Started { id, worker_pid } if id == wanted => return worker_pid,
                ExecutionEvent::Failed {
                    id,
                    failure,
                    detail,
                    ..
                } if id == wanted => {
                    panic!("{failure}: {detail}")
                }
                _ => {}
            }
        }
    }

    pub(crate) async fn end(&mut self, wanted: ExecutionId) -> End {
        let (mut pid, mut progress) = (None, Vec::new());
        loop {
            match self.next().await {
                ExecutionEvent::Started { id, worker_pid } if id == wanted => {
                    pid = Some(worker_pid)
                }
                ExecutionEvent::Progress { id, done, total } if id == wanted => {
                    progress.push((done, total));
                }
                ExecutionEvent::Finished { id, outputs, usage } if id == wanted => {
                    return End {
                        pid,
                        progress,
                        usage,
                        result: Ok((outputs, usage)),
                    };
                }
                ExecutionEvent::Failed {
                    id,
                    failure,
                    detail,
                    usage,
                } if id == wanted => {
                    return End {
                        pid,
                        progress,
                        usage,
                        result: Err((failure, detail)),
                    };
                }
                _ => {}
            }
        }
    }
}

pub(crate) fn name(text: &str) -> Name {
    Utf8::cut(text)
}

pub(crate) fn words(values: &[u32]) -> Content {
    let bytes = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect::<Vec<_>>();
    Content::Inline(bytes.try_into().unwrap())
}

pub(crate) fn buffer(called: &str, size: u64, content: Content) -> Buffer {
    Buffer {
        name: name(called),
        content,
        size,
    }
}

pub(crate) fn pass(entry: &str, bindings: &[u32], workgroups: u32) -> Pass {
    Pass {
        entry: name(entry),
        bindings: bindings.to_vec().try_into().unwrap(),
        workgroups: [workgroups, 1, 1],
        repeat: 1,
        constants: List::default(),
    }
}

pub(crate) fn constant(called: &str, value: f64) -> Constant {
    Constant {
        name: name(called),
        bits: value.to_bits(),
    }
}

/// A graph whose output is its buffer 0.
pub(crate) fn graph(source: &str, buffers: Vec<Buffer>, passes: Vec<Pass>) -> Graph {
    Graph {
        source: source.to_owned().try_into().unwrap(),
        features: List::default(),
        buffers: buffers.try_into().unwrap(),
        passes: passes.try_into().unwrap(),
        outputs: vec![Output {
            buffer: 0,
            name: name("out"),
        }]
        .try_into()
        .unwrap(),
        checkpoint: None,
    }
}

/// Writes one word and is done.
pub(crate) fn noop() -> Graph {
    graph(
        "@group(0) @binding(0) var<storage, read_write> out: array<u32>;
         @compute @workgroup_size(1) fn main() { out[0] = 7u; }",
        vec![buffer("out", 4, Content::Zeroed)],
        vec![pass("main", &[0], 1)],
    )
}

/// Never ends by itself: what it waits for stays zero.
pub(crate) fn endless() -> Graph {
    let mut graph = graph(
        "@group(0) @binding(0) var<storage, read_write> out: array<u32>;
         @compute @workgroup_size(64) fn main(@builtin(global_invocation_id) at: vec3u) {
             var x = at.x;
             for (var i = 0u; i < 60000u; i++) { x = x * 1664525u + 1013904223u; }
             if (x == 1u) { out[0] = x; }
         }",
        vec![buffer("out", 4, Content::Zeroed)],
        vec![pass("main", &[0], 65_535)],
    );
    let mut endless = graph.passes[0].clone();
    endless.repeat = 1_000_000;
    graph.passes = vec![endless].try_into().unwrap();
    graph
}

/// A short pass, then hours of work in a single dispatch, which nothing
/// interrupts.
pub(crate) fn huge_dispatch() -> Graph {
    let mut huge = endless();
    let mut short = huge.passes[0].clone();
    short.repeat = 1;
    let mut long = short.clone();
    (short.workgroups, long.workgroups) = ([1, 1, 1], [65_535, 65_535, 1]);
    huge.passes = vec![short, long].try_into().unwrap();
    huge
}

pub(crate) fn file_with(bytes: &[u8]) -> InputSource {
    use std::io::Write;
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    InputSource::File(file)
}

/// Whether a process is still there (a zombie counts).
pub(crate) fn process_exists(pid: u32) -> bool {
    PathBuf::from(format!("/proc/{pid}")).exists()
}

/// Control groups of workers of this process, in every hierarchy.
pub(crate) fn own_groups() -> Vec<PathBuf> {
    let prefix = format!("suanli-{}-", std::process::id());
    let (mut folders, mut own) = (vec![PathBuf::from("/sys/fs/cgroup")], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(&prefix) && !name.ends_with("daemon") {
                own.push(entry.path());
            } else if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(entry.path());
            }
        }
    }
    own
}

/// Layers that a worker says are missing; without control groups, which not every
/// place to test in has, and that is printed.
pub(crate) fn missing_layers(confinement: &Confinement) -> Vec<String> {
    let missing = confinement.missing.iter().map(|layer| layer.to_string());
    let (groups, others): (Vec<_>, Vec<_>) = missing.partition(|layer| layer.starts_with(CAPPED));
    for group in groups {
        println!("skipped: {group}");
    }
    others
}

/// A worker that is a shell script: `probe` is the real one's, `serve` lies.
pub(crate) fn lying_worker(dir: &tempfile::TempDir, says: &str) -> PathBuf {
    let path = dir.path().join("liar");
    let real = worker_path();
    let script = format!(
        "#!/bin/sh\ncase $1 in serve) {says}; while :; do read -r line <&0 || exit 0; done;; *) exec {} \"$@\";; esac\n",
        real.display()
    );
    let mut file = std::fs::File::create(&path).unwrap();
    file.write_all(script.as_bytes()).unwrap();
    file.set_permissions(std::fs::Permissions::from_mode(0o700))
        .unwrap();
    path
}
