//! What happens to jobs, line by line, for those who follow them.
//!
//! A bounded number of lines is kept for each job, and each follower has a
//! bounded queue: who reads too slowly is cut off and may ask again.

use std::collections::{BTreeMap, VecDeque};

use suanli_protocol::{
    ids::{JobId, ReceiptId},
    limits::{ENDED_JOBS_KEPT, JOBS_MAX},
    message::Decline,
    peer::JobEvent,
    units::{Amount, Now},
};
use tokio::sync::mpsc;

use crate::{
    api::{
        types::{JobEventInfo, JobLine},
        views,
    },
    handle::{Watch, decline_words},
};

/// Lines kept for a job.
const LINES: usize = 512;
/// Lines that a follower may be behind.
const BEHIND: usize = 1024;
/// Jobs whose lines are kept.
const JOBS: usize = JOBS_MAX + ENDED_JOBS_KEPT;

/// All jobs' lines.
#[derive(Debug, Default)]
pub(super) struct Lines {
    jobs: BTreeMap<JobId, Job>,
    order: VecDeque<JobId>,
    unsettled: BTreeMap<ReceiptId, JobId>,
}

#[derive(Debug, Default)]
struct Job {
    lines: VecDeque<JobLine>,
    followers: Vec<mpsc::Sender<JobLine>>,
    ended: bool,
    unsettled: usize,
}

impl Lines {
    /// Follows a job, if anything is known of it: `open` says that the core
    /// does, though nothing has happened to it since the node started.
    pub(super) fn watch(&mut self, id: JobId, open: bool) -> Option<Watch> {
        if open {
            self.jobs.entry(id).or_insert_with(|| {
                self.order.push_back(id);
                Job::default()
            });
        }
        let job = self.jobs.get_mut(&id)?;
        let (sender, lines) = mpsc::channel(BEHIND);
        if !job.is_over() {
            job.followers.push(sender);
        }
        Some(Watch {
            past: job.lines.iter().cloned().collect(),
            lines,
        })
    }

    /// Something happened to a job.
    pub(super) fn add(&mut self, id: JobId, now: Now, event: JobEventInfo) {
        if !self.jobs.contains_key(&id) {
            self.order.push_back(id);
            if self.order.len() > JOBS
                && let Some(oldest) = self.order.pop_front()
            {
                self.jobs.remove(&oldest);
                self.unsettled.retain(|_, job| *job != oldest);
            }
        }
        let job = self.jobs.entry(id).or_default();
        match &event {
            JobEventInfo::Accepted { receipt, amount } if *amount > Amount::ZERO => {
                job.unsettled += 1;
                self.unsettled.insert(*receipt, id);
            }
            JobEventInfo::Settled { .. } => job.unsettled = job.unsettled.saturating_sub(1),
            JobEventInfo::Ended { .. } => job.ended = true,
            _ => {}
        }
        job.push(JobLine {
            at_ms: now.wall.as_millis(),
            up_us: Some(now.mono.as_micros()),
            event,
        });
    }

    /// Receipts were settled; free ones are not waited for.
    pub(super) fn settle(&mut self, now: Now, receipts: &[ReceiptId]) {
        for receipt in receipts {
            if let Some(id) = self.unsettled.remove(receipt) {
                self.add(id, now, JobEventInfo::Settled { receipt: *receipt });
            }
        }
    }
}

impl Job {
    const fn is_over(&self) -> bool {
        self.ended && self.unsettled == 0
    }

    fn push(&mut self, line: JobLine) {
        let progress = |line: &JobLine| matches!(line.event, JobEventInfo::Progress { .. });
        // Only the newest progress matters to those who come later.
        if progress(&line) && self.lines.back().is_some_and(progress) {
            self.lines.pop_back();
        }
        self.lines.push_back(line.clone());
        if self.lines.len() > LINES {
            self.lines.pop_front();
        }
        self.followers
            .retain(|follower| follower.try_send(line.clone()).is_ok());
        if self.is_over() {
            self.followers.clear();
        }
    }
}

/// A core's event in the API's words. `region` tells where a provider is.
pub(super) fn words(
    event: JobEvent,
    region: impl Fn(suanli_protocol::ids::PeerId) -> Option<String>,
) -> JobEventInfo {
    match event {
        JobEvent::Submitted => JobEventInfo::Submitted,
        JobEvent::Refused(Decline { reason, .. }) => JobEventInfo::Ended {
            state: "declined".into(),
            reason: Some((reason.to_string(), reason.sentence().into())),
        },
        JobEvent::Asked { attempt, peers } => JobEventInfo::Asked { attempt, peers },
        JobEvent::Quoted { peer, cap } => JobEventInfo::Quoted { peer, cap },
        JobEvent::Declined { peer, decline } => {
            let (reason, sentence) = decline_words(&decline);
            JobEventInfo::Declined {
                peer,
                reason,
                sentence,
            }
        }
        JobEvent::Agreed {
            peer,
            agreement,
            cap,
            resumed,
        } => JobEventInfo::Agreed {
            peer,
            region: region(peer),
            agreement,
            cap,
            resumed,
        },
        JobEvent::Started { .. } => JobEventInfo::Started,
        JobEvent::Progress(progress) => JobEventInfo::Progress {
            done: progress.done,
            total: progress.total,
        },
        JobEvent::Log(line) => JobEventInfo::Log {
            line: line.line.to_string(),
        },
        JobEvent::Accepted { receipt, amount } => JobEventInfo::Accepted { receipt, amount },
        JobEvent::Decided { unit, failure } => JobEventInfo::Decided {
            unit,
            failure: failure.map(|reason| (reason.to_string(), reason.sentence().into())),
        },
        JobEvent::Disputed { peer, reason } => JobEventInfo::Disputed {
            peer,
            reason: reason.to_string(),
            sentence: reason.sentence().into(),
        },
        JobEvent::GaveUp { peer, reason } => JobEventInfo::GaveUp {
            peer,
            reason: reason.to_string(),
            sentence: reason.sentence().into(),
        },
        JobEvent::Ended(end) => views::ended(end),
    }
}
