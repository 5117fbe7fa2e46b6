//! `suanli stop`: ends the daemon cleanly.

use super::{context::Context, exit::Failure};
use crate::api::types::Status;

pub(super) async fn run(context: &Context) -> Result<(), Failure> {
    let status: Status = context.client()?.post("/v1/shutdown").await?;
    context.answer(&status, |status| {
        format!("stopping the daemon (process {})\n", status.pid)
    });
    Ok(())
}
