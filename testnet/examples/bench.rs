//! `bench gossip|store|…`, as `suanli-testnet bench` has it.

use clap::Parser;
use suanli_testnet::bench::cli::Bench;

#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    bench: Bench,
}

fn main() -> anyhow::Result<()> {
    Arguments::parse().bench.run(&mut std::io::stdout().lock())
}
