//! Live networks: real `suanli` nodes on the loopback interface.
//!
//! ```text
//! Scenario ─▶ Topology ─▶ Testnet::start ─▶ a folder with a folder for each node
//!                              │                     ▲
//!                              ▼                     │ testnet.json: which processes
//!                         wait_ready             Testnet::open, by a later command
//! ```
//!
//! [`Testnet::start`] writes a configuration for each node, starts them all and
//! waits until each is connected and has every offer in its book. Tests hold on
//! to the [`Testnet`], which kills its nodes when it is dropped; the command line
//! [detaches](Testnet::detach) it and finds the nodes again by the file in the
//! folder. Nodes can be killed, paused, stopped and started again one by one.
//!
//! Absent: faults of the network between nodes, which need namespaces of their
//! own, and any knowledge of what nodes say to each other.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process,
    time::{Duration, SystemTime},
};

pub mod cli;
pub mod topology;

mod api;
mod child;
mod node;
mod programs;
mod ready;
mod state;
mod wait;

pub use self::{
    api::{Api, ApiFailure, Session},
    child::{Activity, Process},
    node::Node,
    programs::Programs,
    topology::Topology,
    wait::{wait_for, wait_until},
};
use self::{
    node::{NodeRecord, addresses, free_ports},
    state::State,
};

/// Where a network lies if nobody says otherwise.
pub const DEFAULT_DIR: &str = ".testnet";
/// The first start of a provider measures its device, and all do it at once.
const READY_WITHIN: Duration = Duration::from_secs(90);
/// The first nodes are the ones by which all others join, so that the network
/// finds together again when one of them comes back.
const HUBS: usize = 2;

/// A live network.
#[derive(Debug)]
pub struct Testnet {
    dir: PathBuf,
    network: String,
    programs: Programs,
    nodes: Vec<Node>,
    kill_on_drop: bool,
}

/// Why a live network does not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum TestnetError {
    /// A program is not there.
    #[error("{} is not there; build it with `cargo build --workspace --bins`", .0.display())]
    NoProgram(PathBuf),
    /// The folder is taken.
    #[error(
        "a network runs in {0}; end it with `suanli-testnet down`, or name another folder with --dir"
    )]
    Taken(String),
    /// There is nothing in the folder.
    #[error(
        "there is no network in {0}; start one with `suanli-testnet up`, or name its folder with --dir"
    )]
    None(String),
    /// Nobody is called so.
    #[error("no node is called `{name}`; there are {known}")]
    NoNode {
        /// As given.
        name: String,
        /// The names that there are.
        known: String,
    },
    /// It can't be started twice.
    #[error("{0} runs already; end it first with `suanli-testnet kill {0}`")]
    Running(String),
    /// It can't be asked or paused.
    #[error("{0} does not run; start it with `suanli-testnet restart {0}`")]
    NotRunning(String),
    /// It ended by itself.
    #[error("{node} ended by itself; the end of its log:\n{tail}")]
    Died {
        /// Which.
        node: String,
        /// Its last words.
        tail: String,
    },
    /// It does not come to what all wait for.
    #[error("{node} is not ready after {seconds} s: {lacks}; the end of its log:\n{tail}")]
    NotReady {
        /// Which.
        node: String,
        /// How long it was waited for.
        seconds: u64,
        /// What is missing.
        lacks: String,
        /// Its last words.
        tail: String,
    },
    /// It does not end when asked to.
    #[error(
        "{node} does not stop; end it with `suanli-testnet kill {node}`; the end of its log:\n{tail}"
    )]
    NotStopped {
        /// Which.
        node: String,
        /// Its last words.
        tail: String,
    },
    /// All ports are in use.
    #[error("there are no {0} free ports between 20000 and 30000; end what listens there")]
    NoPorts(usize),
    /// The file system or the kernel refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// What was worked on.
        path: PathBuf,
        /// Their words.
        source: io::Error,
    },
}

impl TestnetError {
    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { path, source }
    }
}

impl Testnet {
    /// Starts a network in a folder and waits until it is ready. What an
    /// earlier network left there is removed; a running one is not touched.
    ///
    /// # Errors
    /// [`TestnetError`]; nothing is left running then.
    pub fn start(
        topology: &Topology,
        dir: &Path,
        programs: Programs,
    ) -> Result<Self, TestnetError> {
        fs::create_dir_all(dir).map_err(TestnetError::io(dir))?;
        let dir = dir.canonicalize().map_err(TestnetError::io(dir))?;
        remove_earlier(&dir)?;
        let seed = seed(&dir);
        let ports = free_ports(topology.nodes.len(), seed)?;
        let records = topology
            .nodes
            .iter()
            .zip(ports)
            .map(|(spec, port)| NodeRecord {
                name: spec.name.clone(),
                region: spec.region.clone(),
                providing: spec.provide.is_some(),
                port,
                process: None,
            });
        let mut testnet = Self::of(
            State {
                network: format!("testnet-{seed:016x}"),
                programs,
                nodes: records.collect(),
            },
            &dir,
        );
        testnet.kill_on_drop = true;
        testnet.configure(topology)?;
        for position in 0..testnet.nodes.len() {
            testnet.nodes[position].start()?;
            testnet.remember()?;
        }
        testnet.wait_ready()?;
        Ok(testnet)
    }

    /// Finds the network that an earlier command started in a folder.
    ///
    /// # Errors
    /// [`TestnetError::None`] if there is none.
    pub fn open(dir: &Path) -> Result<Self, TestnetError> {
        let state = match dir.canonicalize() {
            Ok(dir) => State::read(&dir)?.map(|state| Self::of(state, &dir)),
            Err(_) => None,
        };
        state.ok_or_else(|| TestnetError::None(dir.display().to_string()))
    }

    /// Lets the nodes run on when this value is dropped.
    pub fn detach(mut self) {
        self.kill_on_drop = false;
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its name, which no other network has.
    pub fn network(&self) -> &str {
        &self.network
    }

    /// All nodes, in the order of their start.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// A node by its name.
    ///
    /// # Errors
    /// [`TestnetError::NoNode`].
    pub fn node(&self, name: &str) -> Result<&Node, TestnetError> {
        self.position(name).map(|position| &self.nodes[position])
    }

    /// A node by its name, to do something to it.
    ///
    /// # Errors
    /// [`TestnetError::NoNode`].
    pub fn node_mut(&mut self, name: &str) -> Result<&mut Node, TestnetError> {
        self.position(name)
            .map(|position| &mut self.nodes[position])
    }

    /// Starts a node again, on the data that it has; one that runs is stopped
    /// cleanly before. [`Testnet::wait_ready`] waits until it is back.
    ///
    /// # Errors
    /// [`TestnetError`].
    pub fn restart(&mut self, name: &str) -> Result<(), TestnetError> {
        let position = self.position(name)?;
        self.nodes[position].stop()?;
        self.nodes[position].start()?;
        self.remember()
    }

    /// Waits until all nodes that run are connected and see all their offers.
    ///
    /// # Errors
    /// [`TestnetError::Died`], [`TestnetError::NotReady`].
    pub fn wait_ready(&self) -> Result<(), TestnetError> {
        ready::wait(&self.nodes, READY_WITHIN)
    }

    /// Stops all nodes cleanly, those that don't stop hard. The folder stays.
    ///
    /// # Errors
    /// [`TestnetError::Io`].
    pub fn down(&mut self) -> Result<(), TestnetError> {
        for node in &mut self.nodes {
            node.terminate()?;
        }
        for node in &mut self.nodes {
            match node.stop() {
                Err(TestnetError::NotStopped { .. }) => node.kill()?,
                other => other?,
            }
        }
        Ok(())
    }

    fn of(state: State, dir: &Path) -> Self {
        let nodes = state.nodes.into_iter();
        let nodes = nodes.map(|record| Node::new(record, dir, &state.programs));
        Self {
            dir: dir.to_path_buf(),
            network: state.network,
            nodes: nodes.collect(),
            programs: state.programs,
            kill_on_drop: false,
        }
    }

    fn configure(&self, topology: &Topology) -> Result<(), TestnetError> {
        for (position, (node, spec)) in self.nodes.iter().zip(&topology.nodes).enumerate() {
            let hubs = self.nodes.iter().take(HUBS).enumerate();
            let others = hubs.filter(|(hub, _)| *hub != position);
            let bootstrap = others.flat_map(|(_, hub)| addresses(hub.record.port));
            node.configure(
                spec,
                &self.network,
                bootstrap.collect(),
                &self.programs.worker,
            )?;
        }
        Ok(())
    }

    fn position(&self, name: &str) -> Result<usize, TestnetError> {
        let position = self.nodes.iter().position(|node| node.name() == name);
        position.ok_or_else(|| TestnetError::NoNode {
            name: name.to_owned(),
            known: self
                .nodes
                .iter()
                .map(Node::name)
                .collect::<Vec<_>>()
                .join(", "),
        })
    }

    fn remember(&self) -> Result<(), TestnetError> {
        let state = State {
            network: self.network.clone(),
            programs: self.programs.clone(),
            nodes: self.nodes.iter().map(|node| node.record.clone()).collect(),
        };
        state.write(&self.dir)
    }
}

impl Drop for Testnet {
    fn drop(&mut self) {
        if self.kill_on_drop {
            for node in &mut self.nodes {
                // There is nobody to tell; what can't be killed now never can.
                let _ = node.kill();
            }
        }
    }
}

/// Removes the folders of nodes that an earlier network left, and no others.
fn remove_earlier(dir: &Path) -> Result<(), TestnetError> {
    let Some(earlier) = State::read(dir)? else {
        return Ok(());
    };
    let earlier = Testnet::of(earlier, dir);
    if earlier
        .nodes
        .iter()
        .any(|node| node.activity() != Activity::Ended)
    {
        return Err(TestnetError::Taken(dir.display().to_string()));
    }
    for node in &earlier.nodes {
        node.remove()?;
    }
    Ok(())
}

/// Differs between folders, processes and times; nothing depends on its being
/// hard to guess.
fn seed(dir: &Path) -> u64 {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let text = format!("{} {} {}", dir.display(), process::id(), now.as_nanos());
    let hash = blake3::hash(text.as_bytes());
    hash.as_bytes()
        .iter()
        .take(8)
        .fold(0, |seed, byte| seed << 8 | u64::from(*byte))
}
