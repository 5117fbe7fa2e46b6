//! `suanli resume`: sells again.

use super::{context::Context, exit::Failure, pause};
use crate::api::types::Status;

pub(super) async fn run(context: &Context) -> Result<(), Failure> {
    let status: Status = context.client()?.post("/v1/resume").await?;
    context.answer(&status, pause::said);
    Ok(())
}
