//! Following a job to its end, and what Ctrl-C does meanwhile.
//!
//! ```text
//!             before the agreement        after it
//!  once       cancels, and leaves         says that the job goes on, and goes on to show it
//!  twice      leaves                      leaves
//! ```
//!
//! Where no person reads along, once is enough to leave.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use serde::Serialize;
use suanli_protocol::{
    ids::{JobId, PeerId, ReceiptId},
    registry::Reason,
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    time::timeout,
};

use super::{Running, progress::Progress};
use crate::{
    api::types::{JobEventInfo, JobInfo, JobLine},
    cli::{
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
    /// Who gave results that others' contradict.
    pub(super) wrong: Vec<Wrong>,
}

impl Followed {
    /// A line for each provider that gave wrong results.
    pub(super) fn wrong_rows(&self) -> Vec<(&'static str, String)> {
        let rows = self
            .wrong
            .iter()
            .map(|wrong| ("wrong results", wrong.text()));
        rows.collect()
    }
}

/// A provider whose results others' contradict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Wrong {
    peer: PeerId,
    region: Option<String>,
    /// How many results.
    results: u32,
}

impl Wrong {
    /// `abababab in CN-NX, 12 units, none of them paid`.
    pub(super) fn text(&self) -> String {
        let place = match &self.region {
            Some(region) => format!("{} in {region}", self.peer),
            None => self.peer.to_string(),
        };
        match self.results {
            1 => format!("{place}, 1 unit, not paid"),
            units => format!("{place}, {units} units, none of them paid"),
        }
    }
}

/// Who works where, and whose results are contradicted, as a job's steps tell.
#[derive(Debug, Default)]
struct Suspects {
    regions: BTreeMap<PeerId, String>,
    wrong: BTreeMap<PeerId, u32>,
}

impl Suspects {
    fn see(&mut self, event: &JobEventInfo) {
        match event {
            JobEventInfo::Agreed {
                peer,
                region: Some(region),
                ..
            } => drop(self.regions.insert(*peer, region.clone())),
            JobEventInfo::Disputed { peer, reason, .. }
                if *reason == Reason::WRONG_RESULT.to_string() =>
            {
                *self.wrong.entry(*peer).or_default() += 1;
            }
            _ => {}
        }
    }

    fn wrong(&self) -> Vec<Wrong> {
        let wrong = self.wrong.iter().map(|(peer, results)| Wrong {
            peer: *peer,
            region: self.regions.get(peer).cloned(),
            results: *results,
        });
        wrong.collect()
    }
}

/// How long a result waits for the acknowledgement of its pay. The result is
/// there already; this only makes the last line more complete.
const SETTLE_WAIT: Duration = Duration::from_secs(2);
/// A stream that broke off is opened again so often without a new line.
const REOPEN_MAX: u32 = 3;

/// Shows a job's steps until it ends.
///
/// Of an array it tells how many of so many units are done, and passes on what was
/// accepted.
pub(super) async fn follow(
    run: &Running<'_>,
    array: Option<(u32, mpsc::Sender<ReceiptId>)>,
) -> Result<Followed, Failure> {
    let units = array.as_ref().map(|(units, _)| *units);
    let job = run.id;
    let mut follower = Follower {
        client: run.client,
        job,
        progress: Progress::new(run.context.json(), units, run.label),
        accepted: array.map(|(_, accepted)| accepted),
        agreed: false,
        suspects: Suspects::default(),
        last: None,
        begun: Instant::now(),
    };
    let mut pressed = Interrupts::listen();
    let mut told = !screen::is_interactive();
    loop {
        let outcome = tokio::select! {
            outcome = follower.until_end() => Some(outcome),
            () = pressed.next() => None,
        };
        follower.progress.close_line();
        match outcome {
            Some(outcome) => return outcome,
            None if !follower.agreed => return Err(follower.cancelled(&mut pressed).await),
            None if told => return Err(follower.left()),
            None => {
                told = true;
                screen::print_aside(&format!(
                    "{}\npress Ctrl-C again to leave it to itself\n",
                    goes_on(job)
                ));
            }
        }
    }
}

/// Waits for what is left to do for a job that ended, or for Ctrl-C.
pub(super) async fn unless_interrupted<T>(
    job: JobId,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let mut pressed = Interrupts::listen();
    tokio::select! {
        done = work => done,
        () = pressed.next() => Err(Failure::new(
            Exit::Interrupted,
            format!("job {job} has ended: `suanli job fetch {job}` brings its outputs"),
        )),
    }
}

/// Ctrl-C, as often as it is pressed. From the first of these on it does not end the process.
struct Interrupts(Option<Signal>);

impl Interrupts {
    /// Where the system refuses, Ctrl-C ends the process as ever.
    fn listen() -> Self {
        Self(signal(SignalKind::interrupt()).ok())
    }

    async fn next(&mut self) {
        let pressed = match &mut self.0 {
            Some(signal) => signal.recv().await,
            None => None,
        };
        if pressed.is_none() {
            std::future::pending().await
        }
    }
}

fn goes_on(job: JobId) -> String {
    format!(
        "job {job} goes on: `suanli job show {job}` says how it ends, \
         `suanli job cancel {job}` ends it, `suanli job fetch {job}` brings its outputs"
    )
}

struct Follower<'a> {
    client: &'a Client,
    job: JobId,
    progress: Progress,
    accepted: Option<mpsc::Sender<ReceiptId>>,
    agreed: bool,
    suspects: Suspects,
    /// After a broken stream the past comes again, perhaps without its beginning.
    last: Option<LastShown>,
    begun: Instant,
}

/// The last step shown: its time, and how many of that time were shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct LastShown {
    at_ms: u64,
    count: u32,
}

impl Follower<'_> {
    async fn until_end(&mut self) -> Result<Followed, Failure> {
        let mut reopened = 0;
        loop {
            let before = self.last;
            let mut lines = self.open().await?;
            if self.read(&mut lines).await? {
                let took = self.begun.elapsed();
                let settled = self.settlement(&mut lines).await;
                return Ok(Followed {
                    job: self.job,
                    settled,
                    wrong: self.suspects.wrong(),
                    took_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
                });
            }
            reopened = if self.last == before { reopened + 1 } else { 0 };
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
        let shown_before = self.last;
        let mut repeated = 0;
        let mut catching_up = shown_before.is_some();
        while let Some(line) = lines.next::<JobLine>().await? {
            if let Some(last) = shown_before.filter(|_| catching_up) {
                repeated += u32::from(line.at_ms == last.at_ms);
                catching_up =
                    line.at_ms < last.at_ms || (line.at_ms == last.at_ms && repeated <= last.count);
            }
            if !catching_up {
                self.show(&line);
            }
            if matches!(line.event, JobEventInfo::Ended { .. }) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn show(&mut self, line: &JobLine) {
        self.agreed |= matches!(line.event, JobEventInfo::Agreed { .. });
        self.suspects.see(&line.event);
        self.progress.show(&line.event);
        if let (Some(accepted), JobEventInfo::Accepted { receipt, .. }) =
            (&self.accepted, &line.event)
        {
            // What finds no room is brought at the end.
            let _ = accepted.try_send(*receipt);
        }
        let same = self.last.filter(|last| last.at_ms == line.at_ms);
        self.last = Some(LastShown {
            at_ms: line.at_ms,
            count: same.map_or(1, |last| last.count.saturating_add(1)),
        });
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

    /// After the agreement the provider works: the daemon goes on, and the person decides.
    fn left(&self) -> Failure {
        Failure::new(Exit::Interrupted, goes_on(self.job))
    }

    /// Before the agreement nothing is owed.
    async fn cancelled(&self, pressed: &mut Interrupts) -> Failure {
        let job = self.job;
        screen::print_aside("cancelling\n");
        let path = format!("/v1/jobs/{job:#}/cancel");
        let answer = tokio::select! {
            answer = self.client.post::<JobInfo>(&path) => answer,
            () = pressed.next() => return Failure::new(
                Exit::Interrupted,
                format!("job {job} may go on: `suanli job show {job}` says whether it is cancelled"),
            ),
        };
        let message = match answer {
            Ok(_) => format!("job {job} is cancelled; nothing is owed for it"),
            Err(error) => {
                format!("job {job} could not be cancelled: {error}; try `suanli job cancel {job}`")
            }
        };
        Failure::new(Exit::Interrupted, message)
    }
}

#[cfg(test)]
mod tests {
    use suanli_protocol::{ids::AgreementId, units::Amount};

    use super::*;

    #[test]
    fn who_gave_wrong_results_is_named_at_the_end() {
        let peers = [0xab, 0xcd, 0xef].map(|byte| PeerId::from_bytes([byte; 32]));
        let disputed = |peer, reason: Reason| JobEventInfo::Disputed {
            peer,
            reason: reason.to_string(),
            sentence: reason.sentence().into(),
        };
        let mut suspects = Suspects::default();
        suspects.see(&JobEventInfo::Agreed {
            peer: peers[0],
            region: Some("CN-NX".into()),
            agreement: AgreementId(suanli_protocol::ids::Hash::of(b"agreement")),
            cap: Amount::ZERO,
            resumed: Vec::new(),
        });
        suspects.see(&disputed(peers[0], Reason::WRONG_RESULT));
        suspects.see(&disputed(peers[0], Reason::WRONG_RESULT));
        suspects.see(&disputed(peers[1], Reason::WRONG_RESULT));
        // Too late is not wrong.
        suspects.see(&disputed(peers[2], Reason::SUPERSEDED));
        let followed = Followed {
            job: JobId::from_bytes([1; 16]),
            settled: true,
            took_ms: 1,
            wrong: suspects.wrong(),
        };
        insta::assert_snapshot!(screen::list(&followed.wrong_rows()), @"
        wrong results  abababab in CN-NX, 2 units, none of them paid
        wrong results  cdcdcdcd, 1 unit, not paid
        ");
    }
}
