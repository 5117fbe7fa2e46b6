//! `suanli explain`: who could run a job, why others can't, and what would let them.

use std::path::PathBuf;

use clap::Args;

use super::{
    context::Context,
    exit::Failure,
    run::{MarketArgs, name_blobs, plan},
    screen::visible,
};
use crate::api::types::ExplainInfo;

/// Says why each provider can or can't run a job, and what would let more of them
///
/// Nothing is sent to anybody: the offers that this node knows are judged as they are.
/// Changes are tried one at a time.
#[derive(Debug, Args)]
pub(super) struct Command {
    /// The job file
    #[arg(value_name = "JOB.toml")]
    file: PathBuf,

    #[command(flatten)]
    market: MarketArgs,
}

impl Command {
    pub(super) async fn run(self, context: &Context) -> Result<(), Failure> {
        let job = self.market.read(context, &self.file).await?;
        let client = context.client()?;
        let submission = name_blobs(&job).await?;
        let explained: ExplainInfo = client.post_json("/v1/explain", &submission).await?;
        let candidates = plan::require_candidate(&explained.plan, !job.providers.is_empty());
        if candidates.is_ok() || !context.json() {
            context.answer(&explained, text);
        }
        candidates
    }
}

fn text(explained: &ExplainInfo) -> String {
    let mut text = plan::text(&explained.plan);
    if explained.plan.misfits.is_empty() {
        return text;
    }
    if explained.changes.is_empty() {
        text.push_str("no single change of the job would let more providers run it\n");
        return text;
    }
    text.push_str("what would let more providers run it, alone:\n");
    for change in &explained.changes {
        let line = format!("  +{} with {}\n", change.admits, visible(&change.change));
        text.push_str(&line);
    }
    text
}
