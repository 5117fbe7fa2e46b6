//! Following a job to its end, and what Ctrl-C does meanwhile.

use std::time::{Duration, Instant};

use suanli_protocol::ids::JobId;
use tokio::time::timeout;

use super::progress::Progress;
use crate::{
    api::types::{JobEventInfo, JobInfo, JobLine},
    cli::{
        context::Context,
        exit::{Exit, Failure},
        screen,
    },
    client::{Client, ClientError, Lines},
};

/// A job that ended.
#[derive(Debug)]
pub(super) struct Followed {
    /// Which.
    pub(super) job: JobId,
    /// Whether the provider acknowledged its pay, as far as we waited.
    pub(super) settled: bool,
    /// From the submission to the end.
    pub(super) took_ms: u64,
}

/// How long a result waits for the acknowledgement of its pay. The result is
/// there already; this only makes the last line more complete.
const SETTLE_WAIT: Duration = Duration::from_secs(2);
/// A stream that broke off is opened again so often without a new line.
const REOPEN_MAX: u32 = 3;

/// Shows a job's steps until it ends.
pub(super) async fn follow(
    context: &Context,
    client: &Client,
    job: JobId,
) -> Result<Followed, Failure> {
    let mut follower = Follower {
        client,
        job,
        progress: Progress::new(context.json()),
        agreed: false,
        seen: 0,
        begun: Instant::now(),
    };
    let outcome = tokio::select! {
        outcome = follower.until_end() => Ok(outcome),
        _ = tokio::signal::ctrl_c() => Err(()),
    };
    follower.progress.close_line();
    match outcome {
        Ok(outcome) => outcome,
        Err(()) => Err(follower.interrupted().await),
    }
}

struct Follower<'a> {
    client: &'a Client,
    job: JobId,
    progress: Progress,
    agreed: bool,
    /// Steps shown: after a broken stream the past comes again.
    seen: usize,
    begun: Instant,
}

impl Follower<'_> {
    async fn until_end(&mut self) -> Result<Followed, Failure> {
        let mut reopened = 0;
        loop {
            let seen = self.seen;
            let mut lines = self.open().await?;
            if self.read(&mut lines).await? {
                let took = self.begun.elapsed();
                let settled = self.settlement(&mut lines).await;
                return Ok(Followed {
                    job: self.job,
                    settled,
                    took_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
                });
            }
            reopened = if self.seen > seen { 0 } else { reopened + 1 };
            if reopened > REOPEN_MAX {
                let message = format!(
                    "the daemon stopped telling about job {0}, which goes on: see `suanli job show {0}`",
                    self.job
                );
                return Err(Failure::new(Exit::NoDaemon, message));
            }
        }
    }

    async fn open(&self) -> Result<Lines, ClientError> {
        let path = format!("/v1/jobs/{:#}/events", self.job);
        self.client.lines(&path).await
    }

    /// Shows what comes; whether the job's end was among it.
    async fn read(&mut self, lines: &mut Lines) -> Result<bool, ClientError> {
        let mut position = 0;
        while let Some(line) = lines.next::<JobLine>().await? {
            position += 1;
            if position > self.seen {
                self.seen = position;
                self.agreed |= matches!(line.event, JobEventInfo::Agreed { .. });
                self.progress.show(&line.event);
            }
            if matches!(line.event, JobEventInfo::Ended { .. }) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether the pay is acknowledged, within a moment.
    async fn settlement(&mut self, lines: &mut Lines) -> bool {
        let settled = async {
            while let Ok(Some(line)) = lines.next::<JobLine>().await {
                if matches!(line.event, JobEventInfo::Settled { .. }) {
                    return true;
                }
            }
            false
        };
        timeout(SETTLE_WAIT, settled).await.unwrap_or(false)
    }

    /// Before the agreement nothing is owed: the job is cancelled. After it the
    /// provider works: the daemon goes on, and the person decides.
    async fn interrupted(&self) -> Failure {
        let job = self.job;
        if self.agreed {
            let message = format!(
                "job {job} goes on: `suanli job show {job}` says how it ends, \
                 `suanli job cancel {job}` ends it, `suanli job fetch {job}` brings its outputs"
            );
            return Failure::new(Exit::Interrupted, message);
        }
        screen::print_aside("cancelling\n");
        let path = format!("/v1/jobs/{job:#}/cancel");
        match self.client.post::<JobInfo>(&path).await {
            Ok(_) => Failure::new(
                Exit::Interrupted,
                format!("job {job} is cancelled; nothing is owed for it"),
            ),
            Err(error) => Failure::new(
                Exit::Interrupted,
                format!("job {job} could not be cancelled: {error}; try `suanli job cancel {job}`"),
            ),
        }
    }
}
