//! `suanli node`: the daemon.

use std::io::IsTerminal as _;

use clap::{Args, Subcommand};
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

use super::{
    context::{Context, flag},
    drain,
    exit::{Exit, Failure},
};
use crate::config::{Config, FlagValue, LogFormat};

/// Runs a node until it is stopped.
///
/// Every flag sets the key of the same name in the configuration; `suanli
/// config show` prints all keys and where each value came from. A node sells
/// when its configuration has a [provide] section with prices.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  suanli node                                  a client, on loopback, with defaults
  suanli node --config /etc/suanli/node.toml   as the file says
  suanli node --region CN-NX \\
      --listen /ip4/0.0.0.0/udp/7421/quic-v1 \\
      --bootstrap /ip4/192.0.2.1/udp/7421/quic-v1

Stop it with Ctrl-C, SIGTERM or `suanli stop`: it withdraws its offer and
finishes what it signed.")]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Command {
    #[command(subcommand)]
    what: Option<What>,

    /// The network's name; nodes of another are not heard
    #[arg(long, value_name = "NAME")]
    network: Option<String>,

    /// Where this node is: an ISO 3166-2 code, or a name of the network's own
    #[arg(long, value_name = "CODE")]
    region: Option<String>,

    /// Where to listen for peers, as a multiaddress; may be repeated
    #[arg(long, value_name = "ADDRESS")]
    listen: Vec<String>,

    /// A peer to dial at first, as a multiaddress; may be repeated
    #[arg(long, value_name = "ADDRESS")]
    bootstrap: Vec<String>,

    /// Where the HTTP API listens; port 0 for any free one
    #[arg(long, value_name = "IP:PORT")]
    api: Option<String>,

    /// What to log: error, warn, info, debug, trace, or filter directives
    #[arg(long, value_name = "LEVEL")]
    log: Option<String>,

    /// How to log: text or json
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
}

/// What else is done with a node.
#[derive(Debug, Subcommand)]
enum What {
    Drain(drain::Command),
}

impl Command {
    pub(super) async fn run(self, context: &Context) -> Result<(), Failure> {
        if let Some(What::Drain(drain)) = self.what {
            return drain.run(context).await;
        }
        let config = context.load(self.flags())?.config;
        log_to_stderr(&config)?;
        let ended = crate::daemon::run(config).await;
        // What keeps a daemon from starting is its folder, its keys or its ports.
        ended.map_err(|error| {
            Failure::new(Exit::Unusable, format!("{:#}", anyhow::Error::from(error)))
        })
    }

    fn flags(self) -> Vec<FlagValue> {
        let texts = [
            ("network", self.network),
            ("region", self.region),
            ("api", self.api),
            ("log", self.log),
            ("log_format", self.log_format),
        ];
        let lists = [("listen", self.listen), ("bootstrap", self.bootstrap)];
        let lists = lists
            .into_iter()
            .map(|(key, list)| (key, (!list.is_empty()).then(|| list.join(","))));
        let given = texts.into_iter().chain(lists);
        given
            .filter_map(|(key, value)| Some(flag(key, value?)))
            .collect()
    }
}

fn log_to_stderr(config: &Config) -> Result<(), Failure> {
    let wrong = |error: String| {
        Failure::new(
            Exit::Unusable,
            format!(
                "log = {:?}: {error}; \"info\" or \"debug\" is a good choice",
                config.log
            ),
        )
    };
    // Else a misspelt level would pass for the name of a module, and silence all.
    let mut lone = config.log.split(',').filter(|part| !part.contains('='));
    if let Some(word) = lone.find(|word| word.trim().parse::<LevelFilter>().is_err()) {
        return Err(wrong(format!("`{word}` is no level")));
    }
    let filter = EnvFilter::try_new(&config.log).map_err(|error| wrong(error.to_string()))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    let started = match config.log_format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    started.map_err(|error| wrong(error.to_string()))
}
