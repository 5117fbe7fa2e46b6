//! The command line: nouns and verbs, one file per command.
//!
//! [`main`] reads the arguments, a command answers with what it prints or with
//! a [`Failure`] that has a sentence and an exit code ([`exit`]), and here
//! both reach the terminal. With `--json` a command prints one JSON value, and
//! a failure is its field `error`. Absent: anything that the HTTP API could not
//! do as well; the command line is a client like others.

mod bench;
mod budget;
mod channel;
mod config;
mod context;
mod cost;
mod doctor;
mod drain;
mod exit;
mod explain;
mod identity;
mod job;
mod key;
mod model;
mod node;
mod offer;
mod pause;
mod peer;
mod receipt;
mod resume;
mod run;
mod screen;
mod standing;
mod stop;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, CommandFactory as _, Parser, Subcommand};

use self::{
    context::{Context, say_as_json},
    exit::{Exit, Failure},
};

/// What every command understands.
#[derive(Debug, Args)]
struct Global {
    /// The node's folder: keys, journal, blobs, and how to reach its daemon
    #[arg(long, global = true, value_name = "DIR", help_heading = "Everywhere")]
    data_dir: Option<PathBuf>,

    /// The configuration file
    ///
    /// Without this: SUANLI_CONFIG, then config.toml in the folder that
    /// --data-dir or SUANLI_DATA_DIR names, then suanli/config.toml in
    /// XDG_CONFIG_HOME or ~/.config.
    #[arg(long, global = true, value_name = "FILE", help_heading = "Everywhere")]
    config: Option<PathBuf>,

    /// Sets one key of the configuration, e.g. --set provide.slots=2
    #[arg(
        long,
        global = true,
        value_name = "KEY=VALUE",
        help_heading = "Everywhere"
    )]
    set: Vec<String>,

    /// Prints one JSON value, for scripts
    #[arg(long, global = true, help_heading = "Everywhere")]
    json: bool,
}

/// Buy and sell computing power, peer to peer.
#[derive(Debug, Parser)]
#[command(
    name = "suanli",
    version,
    max_term_width = 90,
    after_help = "\
Begin:
  suanli node                  runs a node, in another terminal or as a service
  suanli run job.toml          shows who could run it and for how much, then asks
  suanli doctor                says what works on this machine and what doesn't

Exit codes: 0 done, 1 the job failed, 2 wrong use or job file, 3 no daemon,
4 no provider, 5 cancelled, 6 verification failed, 7 unusable data directory,
key or configuration, 8 time limit, 130 interrupted. See docs/exit-codes.md."
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Node(node::Command),
    Run(run::Command),
    Explain(explain::Command),
    /// Jobs of this node
    #[command(subcommand)]
    Job(job::Command),
    /// The offer book: what providers have, and for how much
    #[command(subcommand)]
    Offer(offer::Command),
    /// Language models: those that this node serves, and those of the network
    #[command(subcommand)]
    Model(model::Command),
    Standing(standing::Command),
    /// Receipts, of jobs bought and sold
    #[command(subcommand)]
    Receipt(receipt::Command),
    /// Running accounts with other nodes
    #[command(subcommand)]
    Channel(channel::Command),
    /// What principals may spend, and have spent
    ///
    /// A principal is whom a job is for: `principal` in the job file, or
    /// `suanli run --principal NAME`. The configuration gives budgets (`budget`).
    Budget,
    /// API keys, for those who ask models through this node
    #[command(subcommand)]
    Key(key::Command),
    /// Connected peers
    #[command(subcommand)]
    Peer(peer::Command),
    /// This node's keys
    #[command(subcommand)]
    Identity(identity::Command),
    Bench(bench::Command),
    /// Says what works on this machine and what doesn't
    Doctor,
    /// The configuration, and where each value came from
    #[command(subcommand)]
    Config(config::Command),
    Pause(pause::Command),
    /// Sells again after a pause
    ///
    /// Outside of the hours that the configuration names (`provide.hours`) it sells until
    /// they change next.
    Resume,
    /// Stops the daemon cleanly
    Stop,
}

/// Reads the arguments, runs the command, and says how it ended.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no mistake.
            let exit = if error.use_stderr() {
                Exit::Usage
            } else {
                Exit::Done
            };
            if exit == Exit::Usage && std::env::args().any(|argument| argument == "--json") {
                let message = error.render().to_string();
                say_as_json(&Failure::new(exit, message.trim_end()));
            } else {
                // A closed terminal takes no message, and there is nobody else to tell.
                let _ = error.print();
            }
            return exit.code();
        }
    };
    let context = Context::new(cli.global);
    match run_to_end(&context, cli.command) {
        Ok(()) => Exit::Done.code(),
        Err(failure) => {
            context.say_failure(&failure);
            failure.exit.code()
        }
    }
}

fn run_to_end(context: &Context, command: Command) -> Result<(), Failure> {
    // Only a daemon has use for more threads.
    let mut builder = match &command {
        Command::Node(_) => tokio::runtime::Builder::new_multi_thread(),
        _ => tokio::runtime::Builder::new_current_thread(),
    };
    let runtime = builder.enable_all().build();
    let runtime = runtime.map_err(|error| {
        Failure::new(
            Exit::Unusable,
            format!("the system gives no threads or timers: {error}"),
        )
    })?;
    runtime.block_on(dispatch(context, command))
}

async fn dispatch(context: &Context, command: Command) -> Result<(), Failure> {
    match command {
        Command::Node(command) => command.run(context).await,
        Command::Run(command) => command.run(context).await,
        Command::Explain(command) => command.run(context).await,
        Command::Job(command) => command.run(context).await,
        Command::Offer(command) => command.run(context).await,
        Command::Model(command) => command.run(context).await,
        Command::Standing(command) => command.run(context).await,
        Command::Receipt(command) => command.run(context).await,
        Command::Channel(command) => command.run(context).await,
        Command::Budget => budget::run(context).await,
        Command::Key(command) => command.run(context).await,
        Command::Peer(command) => command.run(context).await,
        Command::Identity(command) => command.run(context),
        Command::Bench(command) => command.run(context).await,
        Command::Doctor => doctor::run(context).await,
        Command::Config(command) => command.run(context),
        Command::Pause(command) => command.run(context).await,
        Command::Resume => resume::run(context).await,
        Command::Stop => stop::run(context).await,
    }
}

/// The arguments' definition, for help texts.
pub fn definition() -> clap::Command {
    Cli::command()
}

#[cfg(test)]
mod tests;
