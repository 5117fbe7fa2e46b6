//! Commands on live networks: `suanli-testnet up`, `status`, `down`, …
//!
//! What a script reads goes to standard output; what only people read, too,
//! but for `env`, whose output is evaluated by a shell.

use std::{
    fs::File,
    io::{self, Seek as _, SeekFrom, Write},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::Context as _;
use clap::Subcommand;
use suanli_node::api::types::Status;

use super::{Activity, DEFAULT_DIR, Node, Programs, Testnet, Topology};
use crate::scenario::Scenario;

/// How often `logs -f` looks for more.
const FOLLOW_EVERY: Duration = Duration::from_millis(200);

/// Commands on live networks. The folder of the network is a separate
/// argument, so that it can stand before and after the command.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start a network on loopback and wait until its nodes see each other
    ///
    /// With a scenario file its groups are the nodes; links, faults and workload
    /// in it are for `sim`. Nodes run on in the background until `down`. What an
    /// earlier network left in the folder is removed.
    Up {
        /// Scenario file, such as testnet/scenarios/demo.toml
        #[arg(conflicts_with = "nodes")]
        scenario: Option<PathBuf>,
        /// How many nodes, without a file: node-1 buys, the others sell as well
        #[arg(short = 'n', long, default_value_t = 3)]
        nodes: usize,
    },
    /// Show the nodes and what they do
    Status,
    /// Show what a node said
    Logs {
        /// A node
        name: String,
        /// Go on with what it says from now on
        #[arg(short, long)]
        follow: bool,
    },
    /// Print what makes `suanli` talk to a node: eval "$(suanli-testnet env NAME)"
    Env {
        /// A node
        name: String,
    },
    /// End a node as a power cut would
    Kill {
        /// A node
        name: String,
    },
    /// Stop a node where it is, as a machine that hangs
    Pause {
        /// A node
        name: String,
    },
    /// Let a paused node go on
    Resume {
        /// A node
        name: String,
    },
    /// Start a node again, on the data that it has
    Restart {
        /// A node
        name: String,
    },
    /// Stop all nodes; logs and stores stay in the folder
    Down,
}

impl Command {
    /// Does it, on the network in a folder.
    ///
    /// # Errors
    /// For people to read.
    pub fn run(self, dir: Option<&Path>, out: &mut impl Write) -> anyhow::Result<()> {
        let place = Place {
            dir: dir.unwrap_or_else(|| Path::new(DEFAULT_DIR)),
            is_named: dir.is_some(),
        };
        match self {
            Self::Up { scenario, nodes } => place.up(scenario.as_deref(), nodes, out),
            Self::Status => status(&Testnet::open(place.dir)?, out),
            Self::Logs { name, follow } => {
                logs(Testnet::open(place.dir)?.node(&name)?, follow, out)
            }
            Self::Env { name } => env(Testnet::open(place.dir)?.node(&name)?, out),
            Self::Kill { name } => {
                Testnet::open(place.dir)?.node_mut(&name)?.kill()?;
                say(out, &format!("{name} is killed"))
            }
            Self::Pause { name } => {
                Testnet::open(place.dir)?.node(&name)?.pause()?;
                say(out, &format!("{name} is paused"))
            }
            Self::Resume { name } => {
                Testnet::open(place.dir)?.node(&name)?.resume()?;
                say(out, &format!("{name} goes on"))
            }
            Self::Restart { name } => {
                let mut testnet = Testnet::open(place.dir)?;
                testnet.restart(&name)?;
                testnet.wait_ready()?;
                say(
                    out,
                    &format!("{name} runs again, and all running nodes see each other"),
                )
            }
            Self::Down => {
                let mut testnet = Testnet::open(place.dir)?;
                testnet.down()?;
                let logs = shown(testnet.dir());
                say(
                    out,
                    &format!("all nodes are stopped; logs and stores are in {logs}"),
                )
            }
        }
    }
}

/// Where the network is, and whether somebody had to say so.
struct Place<'a> {
    dir: &'a Path,
    is_named: bool,
}

impl Place<'_> {
    fn up(
        &self,
        scenario: Option<&Path>,
        nodes: usize,
        out: &mut impl Write,
    ) -> anyhow::Result<()> {
        let topology = match scenario {
            Some(file) => Topology::of(&Scenario::read(file)?)
                .with_context(|| format!("{} can't run live", file.display()))?,
            None => Topology::small(nodes)?,
        };
        let testnet = Testnet::start(&topology, self.dir, Programs::find()?)?;
        status(&testnet, out)?;
        let option = match self.is_named {
            true => format!(" --dir {}", quoted(self.dir)),
            false => String::new(),
        };
        let first = testnet.nodes()[0].name();
        writeln!(
            out,
            "\nAll nodes see each other and every offer. To talk to one as its operator:\n\n    \
             eval \"$(suanli-testnet{option} env {first})\"\n    \
             suanli offer list\n\n\
             To stop them: suanli-testnet{option} down"
        )?;
        testnet.detach();
        Ok(())
    }
}

fn status(testnet: &Testnet, out: &mut impl Write) -> anyhow::Result<()> {
    const ROW: [usize; 5] = [12, 8, 8, 8, 10];
    let row = |cells: [&str; 6]| {
        let [name, region, pid, state, peers, does] = cells;
        let [a, b, c, d, e] = ROW;
        format!("{name:a$} {region:b$} {pid:c$} {state:d$} {peers:e$} {does}")
    };
    writeln!(
        out,
        "network {}, in {}",
        testnet.network(),
        shown(testnet.dir())
    )?;
    writeln!(
        out,
        "{}",
        row(["NODE", "REGION", "PID", "STATE", "PEERS", "ROLE"])
    )?;
    for node in testnet.nodes() {
        let activity = node.activity();
        let answer = match activity {
            Activity::Running => node
                .api()
                .and_then(|api| api.get::<Status>("/v1/status"))
                .ok(),
            Activity::Paused | Activity::Ended => None,
        };
        let pid = match (activity, node.process()) {
            (Activity::Ended, _) | (_, None) => "-".to_owned(),
            (Activity::Running | Activity::Paused, Some(process)) => process.pid().to_string(),
        };
        let state = match (activity, &answer) {
            (Activity::Running, Some(_)) => "ready",
            (Activity::Running, None) => "starting",
            (Activity::Paused, _) => "paused",
            (Activity::Ended, _) => "ended",
        };
        let peers = answer.map_or_else(|| "-".to_owned(), |status| status.peers.to_string());
        let role = if node.is_provider() {
            "buys, sells"
        } else {
            "buys"
        };
        let line = row([node.name(), node.region(), &pid, state, &peers, role]);
        writeln!(out, "{line}")?;
    }
    Ok(())
}

fn logs(node: &Node, follow: bool, out: &mut impl Write) -> anyhow::Result<()> {
    let path = node.log_file();
    let mut log = File::open(&path).with_context(|| format!("{} can't be read", path.display()))?;
    loop {
        io::copy(&mut log, out)?;
        out.flush()?;
        if !follow {
            return Ok(());
        }
        thread::sleep(FOLLOW_EVERY);
        // Somebody made it shorter: what is new begins at its start.
        if log.metadata()?.len() < log.stream_position()? {
            log.seek(SeekFrom::Start(0))?;
        }
    }
}

fn env(node: &Node, out: &mut impl Write) -> anyhow::Result<()> {
    for (name, value) in node.environment() {
        writeln!(out, "export {name}={}", quoted(&value))?;
    }
    Ok(())
}

fn say(out: &mut impl Write, sentence: &str) -> anyhow::Result<()> {
    Ok(writeln!(out, "{sentence}")?)
}

/// As short as it can be from here.
fn shown(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    let near = path.strip_prefix(here).unwrap_or(path);
    near.display().to_string()
}

/// As one word of a shell.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+:,@".contains(&byte);
    match !text.is_empty() && text.bytes().all(plain) {
        true => text,
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_quoted_for_a_shell() {
        assert_eq!(quoted(Path::new("/a/b-c.d")), "/a/b-c.d");
        assert_eq!(quoted(Path::new("/it's $HOME")), r"'/it'\''s $HOME'");
        assert_eq!(quoted(Path::new("")), "''");
    }

    #[test]
    fn a_folder_without_a_network_is_said_to_be_one() {
        let dir = tempfile::tempdir().unwrap();
        let outcome = Command::Status.run(Some(dir.path()), &mut Vec::new());
        let words = outcome.unwrap_err().to_string();
        assert!(words.contains("suanli-testnet up"), "{words}");
    }
}
