//! `suanli pause`: begins nothing new for others.

use clap::Args;
use suanli_executor::quantity::Span;

use super::{context::Context, exit::Failure, screen::until};
use crate::api::types::{PauseInfo, PauseOrder, Status};

/// Sells nothing for a while
///
/// The offer is withdrawn and nothing new begins; what runs for others goes on to its
/// end. Workers that nobody uses end, so that memory and device are free. The pause
/// outlives the daemon, and ends with its time or with `suanli resume`.
#[derive(Debug, Args)]
pub(super) struct Command {
    /// For how long, as in 2h or 30m; until `suanli resume` if not given
    #[arg(long = "for", value_name = "TIME")]
    span: Option<Span>,

    /// Ends what runs for others, too: it costs them nothing, and earns nothing
    #[arg(long)]
    now: bool,
}

impl Command {
    pub(super) async fn run(self, context: &Context) -> Result<(), Failure> {
        let millis = |span: Span| u64::try_from(span.0.as_millis()).unwrap_or(u64::MAX);
        let order = PauseOrder {
            for_ms: self.span.map(millis),
            now: self.now,
        };
        let client = context.client()?;
        let status: Status = client.post_json("/v1/pause", &order).await?;
        context.answer(&status, said);
        Ok(())
    }
}

/// What a node does, after an order.
pub(super) fn said(status: &Status) -> String {
    let begun = match (status.slots_used, &status.paused) {
        (_, None) => "it sells".to_owned(),
        (0, Some(pause)) => in_words(pause),
        (slots, Some(pause)) => {
            format!("{}; executions that go on: {slots}", in_words(pause))
        }
    };
    format!("{begun}\n")
}

/// A pause in one line.
pub(super) fn in_words(pause: &PauseInfo) -> String {
    match pause.until_ms {
        Some(at) => format!("paused, ends {}: {}", until(at), pause.sentence),
        None => format!("paused: {}", pause.sentence),
    }
}
