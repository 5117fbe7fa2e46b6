//! `suanli node drain`: ends work for others in peace, before the machine is taken down.

use std::time::{Duration, Instant};

use clap::Args;
use suanli_executor::quantity::Span;

use super::{
    context::Context,
    exit::{Exit, Failure},
    screen,
};
use crate::api::types::{PauseOrder, Status};

/// Sells nothing new, and waits until all work for others is done and collected
///
/// The offer is withdrawn at once. What was agreed goes on to its end, also what still
/// waits for a slot, and results stay until their clients have them. Afterwards nobody
/// loses anything if the machine goes down. `suanli resume` sells again.
#[derive(Debug, Args)]
pub(super) struct Command {
    /// Stop the daemon, too, once it is drained
    #[arg(long)]
    stop: bool,

    /// Wait so long at most, as in 2h; for ever if not given
    #[arg(long, value_name = "TIME")]
    timeout: Option<Span>,
}

/// How often it is looked.
const LOOK: Duration = Duration::from_millis(500);

impl Command {
    pub(super) async fn run(self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        let order = PauseOrder::default();
        let mut status: Status = client.post_json("/v1/pause", &order).await?;
        let until = self.timeout.map(|span| Instant::now() + span.0);
        let mut told = None;
        while status.work_open > 0 {
            if until.is_some_and(|until| Instant::now() >= until) {
                return Err(late(&status));
            }
            if told != Some(left(&status)) && !context.json() {
                screen::print_aside(&format!("{}\n", in_words(&status)));
                told = Some(left(&status));
            }
            tokio::time::sleep(LOOK).await;
            status = client.get("/v1/status").await?;
        }
        if self.stop {
            status = client.post("/v1/shutdown").await?;
        }
        context.answer(&status, |status| {
            let next = if self.stop {
                format!(
                    "stopping the daemon (process {}). When it runs again, `suanli resume` sells",
                    status.pid
                )
            } else {
                "it sells nothing until `suanli resume`".to_owned()
            };
            format!("drained: no work for others is left; {next}\n")
        });
        Ok(())
    }
}

const fn left(status: &Status) -> (u32, u32, u32) {
    (status.work_open, status.slots_used, status.waiting)
}

fn in_words(status: &Status) -> String {
    let (open, running, waiting) = left(status);
    let done = open.saturating_sub(running + waiting);
    format!("waiting for {running} at work, {waiting} in the queue, {done} to be collected")
}

fn late(status: &Status) -> Failure {
    Failure::new(
        Exit::TimeLimit,
        format!(
            "it is not drained: still {}. It goes on, and sells nothing; ask again with `suanli \
             node drain`, or end the work with `suanli pause --now`",
            in_words(status)
        ),
    )
}
