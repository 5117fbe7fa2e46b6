//! One live node: its folder, its process, its API.
//!
//! ```text
//! beijing/node.toml   what it is configured with, written once
//! beijing/node.log    what it and the ones before it said
//! beijing/data/       its data directory
//! ```

use std::{
    env, fs, io,
    net::{Ipv4Addr, TcpListener, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{
    Activity, Api, ApiFailure, Process, Programs, TestnetError,
    topology::{NodeSpec, ProvideSpec},
};

/// A clean stop says good-bye to peers and syncs the store.
const STOPPED_WITHIN: Duration = Duration::from_secs(30);
/// Lines of a log that an error quotes.
const TAIL_LINES: usize = 15;

/// What is remembered of a node from one command to the next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NodeRecord {
    pub(super) name: String,
    pub(super) region: String,
    pub(super) providing: bool,
    /// For UDP and TCP alike.
    pub(super) port: u16,
    /// The last process, which may have ended.
    pub(super) process: Option<Process>,
}

/// A node of a live network.
#[derive(Debug)]
pub struct Node {
    pub(super) record: NodeRecord,
    folder: PathBuf,
    program: PathBuf,
    /// The process, if this one started it: it is to be reaped.
    child: Option<Child>,
    /// Whether it should run: it was started, and not ended on purpose since.
    expected: bool,
}

impl Node {
    pub(super) fn new(record: NodeRecord, network_dir: &Path, programs: &Programs) -> Self {
        let mut node = Self {
            folder: network_dir.join(&record.name),
            record,
            program: programs.node.clone(),
            child: None,
            expected: false,
        };
        node.expected = node.activity() != Activity::Ended;
        node
    }

    /// Its name in the network.
    pub fn name(&self) -> &str {
        &self.record.name
    }

    /// Where it says it is.
    pub fn region(&self) -> &str {
        &self.record.region
    }

    /// Whether it sells.
    pub const fn is_provider(&self) -> bool {
        self.record.providing
    }

    /// Its data directory. The store in it can be read after the node stopped.
    pub fn data_dir(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// Its configuration.
    pub fn config_file(&self) -> PathBuf {
        self.folder.join("node.toml")
    }

    /// What it says, and what the processes before it said.
    pub fn log_file(&self) -> PathBuf {
        self.folder.join("node.log")
    }

    /// Its process, if one was started; it may have ended.
    pub const fn process(&self) -> Option<Process> {
        self.record.process
    }

    /// What its process does.
    pub fn activity(&self) -> Activity {
        self.record
            .process
            .map_or(Activity::Ended, Process::activity)
    }

    /// Whether it should run: it was started, and not ended on purpose since.
    pub(super) const fn is_expected(&self) -> bool {
        self.expected
    }

    /// Its HTTP API, once it listens.
    ///
    /// # Errors
    /// [`ApiFailure::NoAddress`] before that, and after its end.
    pub fn api(&self) -> Result<Api, ApiFailure> {
        match self.record.process {
            Some(process) if process.activity() != Activity::Ended => {
                Api::of(&self.data_dir(), process.pid())
            }
            Some(_) | None => Err(ApiFailure::NoAddress("it does not run".into())),
        }
    }

    /// A command for this node, as its operator would type it: `suanli …`.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        // What configures a node of whoever runs this is not for this node.
        for (name, _) in env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"SUANLI_") {
                command.env_remove(name);
            }
        }
        command.envs(self.environment());
        command
    }

    /// The variables that make `suanli` talk to this node.
    pub fn environment(&self) -> [(&'static str, PathBuf); 2] {
        [
            ("SUANLI_CONFIG", self.config_file()),
            ("SUANLI_DATA_DIR", self.data_dir()),
        ]
    }

    /// The last lines of its log, indented.
    pub fn log_tail(&self) -> String {
        let log = fs::read(self.log_file()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        let tail = &lines[lines.len().saturating_sub(TAIL_LINES)..];
        match tail {
            [] => "    (its log is empty)".into(),
            lines => lines.iter().map(|line| format!("    {line}\n")).collect(),
        }
    }

    /// Starts it on what it has in its folder. It has much to do before it
    /// answers; the network's `wait_ready` waits for that.
    ///
    /// # Errors
    /// [`TestnetError`]: it runs already, or can't be started.
    pub(super) fn start(&mut self) -> Result<(), TestnetError> {
        if self.activity() != Activity::Ended {
            return Err(TestnetError::Running(self.name().into()));
        }
        self.reap();
        let mut command = self.command();
        command.arg("node").arg("--config").arg(self.config_file());
        let (process, child) = Process::spawn(&mut command, &self.log_file())
            .map_err(TestnetError::io(&self.program))?;
        self.record.process = Some(process);
        self.child = Some(child);
        self.expected = true;
        Ok(())
    }

    /// Ends it as a power cut would; returns when it is gone.
    ///
    /// # Errors
    /// [`TestnetError::Io`].
    pub fn kill(&mut self) -> Result<(), TestnetError> {
        self.expected = false;
        self.signal(Process::kill)?;
        self.reap();
        Ok(())
    }

    /// Stops it where it is, as a machine that hangs.
    ///
    /// # Errors
    /// [`TestnetError::NotRunning`], [`TestnetError::Io`].
    pub fn pause(&self) -> Result<(), TestnetError> {
        self.running()?;
        self.signal(Process::pause)
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// [`TestnetError::NotRunning`], [`TestnetError::Io`].
    pub fn resume(&self) -> Result<(), TestnetError> {
        self.running()?;
        self.signal(Process::resume)
    }

    /// Asks it to stop cleanly, and waits until it has.
    ///
    /// # Errors
    /// [`TestnetError::NotStopped`], [`TestnetError::Io`].
    pub fn stop(&mut self) -> Result<(), TestnetError> {
        self.terminate()?;
        let ended = self
            .record
            .process
            .is_none_or(|process| process.ended_within(STOPPED_WITHIN));
        if !ended {
            return Err(TestnetError::NotStopped {
                node: self.name().into(),
                tail: self.log_tail(),
            });
        }
        self.reap();
        Ok(())
    }

    /// Asks it to stop cleanly.
    pub(super) fn terminate(&mut self) -> Result<(), TestnetError> {
        self.expected = false;
        self.signal(Process::terminate)
    }

    /// An ended child stays in the process table until its parent asks how it ended.
    fn reap(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It has ended: this neither waits nor can it fail but for being reaped already.
            let _ = child.wait();
        }
    }

    /// Removes its folder, if it is there.
    pub(super) fn remove(&self) -> Result<(), TestnetError> {
        match fs::remove_dir_all(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(TestnetError::io(&self.folder)),
        }
    }

    fn running(&self) -> Result<(), TestnetError> {
        match self.activity() {
            Activity::Ended => Err(TestnetError::NotRunning(self.name().into())),
            Activity::Running | Activity::Paused => Ok(()),
        }
    }

    fn signal(&self, signal: impl FnOnce(Process) -> io::Result<()>) -> Result<(), TestnetError> {
        let outcome = self.record.process.map_or(Ok(()), signal);
        outcome.map_err(TestnetError::io(&self.folder))
    }

    /// Makes its folder and writes its configuration.
    pub(super) fn configure(
        &self,
        spec: &NodeSpec,
        network: &str,
        bootstrap: Vec<String>,
        worker: &Path,
    ) -> Result<(), TestnetError> {
        fs::create_dir_all(&self.folder).map_err(TestnetError::io(&self.folder))?;
        let file = NodeFile {
            network,
            unit: "CNY",
            region: &self.record.region,
            data_dir: self.data_dir(),
            listen: addresses(self.record.port),
            bootstrap,
            lan: true,
            api: "127.0.0.1:0",
            worker,
            provide: spec.provide.map(ProvideFile::from),
        };
        let path = self.config_file();
        let mut table = toml::Table::try_from(&file)
            .map_err(|error| TestnetError::io(&path)(io::Error::other(error)))?;
        lay_over(&mut table, &spec.settings);
        fs::write(&path, table.to_string()).map_err(TestnetError::io(&path))
    }
}

/// Settings in the place of others; those of a section one by one.
fn lay_over(below: &mut toml::Table, above: &toml::Table) {
    for (key, value) in above {
        match (below.get_mut(key), value) {
            (Some(toml::Value::Table(below)), toml::Value::Table(above)) => lay_over(below, above),
            _ => drop(below.insert(key.clone(), value.clone())),
        }
    }
}

/// Where a node listens that was given a port.
pub(super) fn addresses(port: u16) -> Vec<String> {
    vec![
        format!("/ip4/127.0.0.1/udp/{port}/quic-v1"),
        format!("/ip4/127.0.0.1/tcp/{port}"),
    ]
}

/// Ports that nobody uses now, neither for UDP nor for TCP. They are below
/// those that the kernel gives to outgoing connections, so that a node which is
/// down for a while finds its own free again.
pub(super) fn free_ports(count: usize, seed: u64) -> Result<Vec<u16>, TestnetError> {
    const FIRST: u16 = 20_000;
    const COUNT: u16 = 10_000;
    let start = u16::try_from(seed % u64::from(COUNT)).unwrap_or(0);
    let ports: Vec<u16> = (0..COUNT)
        .map(|step| FIRST + (start + step) % COUNT)
        .filter(|port| is_free(*port))
        .take(count)
        .collect();
    match ports.len() == count {
        true => Ok(ports),
        false => Err(TestnetError::NoPorts(count)),
    }
}

fn is_free(port: u16) -> bool {
    let address = (Ipv4Addr::LOCALHOST, port);
    TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok()
}

/// `node.toml`; the node refuses keys that it does not know.
#[derive(Serialize)]
struct NodeFile<'a> {
    network: &'a str,
    unit: &'a str,
    region: &'a str,
    data_dir: PathBuf,
    listen: Vec<String>,
    bootstrap: Vec<String>,
    lan: bool,
    api: &'a str,
    worker: &'a Path,
    #[serde(skip_serializing_if = "Option::is_none")]
    provide: Option<ProvideFile>,
}

#[derive(Serialize)]
struct ProvideFile {
    slots: u32,
    workers: u32,
    firm: bool,
    price: [PriceFile; 2],
}

#[derive(Serialize)]
struct PriceFile {
    meter: &'static str,
    amount: String,
    per: u64,
}

impl From<ProvideSpec> for ProvideFile {
    fn from(spec: ProvideSpec) -> Self {
        Self {
            slots: spec.slots,
            // Each warm worker holds a device; more start when they are needed.
            workers: 1,
            firm: spec.firm,
            // A second of either: a processor uses about so much fuel in one.
            price: [("gpu.ms", 1000), ("wasm.fuel", 1_000_000_000)].map(|(meter, per)| PriceFile {
                meter,
                amount: spec.price_per_second.to_string(),
                per,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_take_the_place_of_what_is_written_else() {
        let mut table: toml::Table = "a = 1\n[provide]\nslots = 1\nfirm = true".parse().unwrap();
        let settings = "b = 2\n[provide]\nslots = 3\n[timing]\nhold = '1s'";
        lay_over(&mut table, &settings.parse().unwrap());
        let all = "a = 1\nb = 2\n[provide]\nslots = 3\nfirm = true\n[timing]\nhold = '1s'";
        assert_eq!(table, all.parse().unwrap());
    }

    #[test]
    fn ports_are_free_and_different() {
        let taken = free_ports(1, 7).unwrap()[0];
        let _held = TcpListener::bind((Ipv4Addr::LOCALHOST, taken)).unwrap();
        let ports = free_ports(3, 7).unwrap();
        assert!(!ports.contains(&taken));
        assert!(ports[0] != ports[1] && ports[1] != ports[2]);
    }
}
