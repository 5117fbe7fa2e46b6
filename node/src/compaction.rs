//! Keeps the journal short: what the state no longer needs goes, what people
//! may ask for stays as long as the operator says.
//!
//! ```text
//! segments sealed, or much replayed at the start
//!    └▶ condense (beside the running core) ─▶ history ─▶ checkpoint ─▶ segments go
//! every hour ─▶ histories older than `history` go
//! ```
//!
//! One task, on threads of its own: the driver is not asked and does not wait.
//! The state is rebuilt from what is durable, as a restart would; so a
//! checkpoint costs as much as the records since the last one, and these are
//! at least as many bytes as it has itself.
//!
//! Absent: how archives are made safe against a crash (see
//! [`crate::store::compaction`]), and which records are worth keeping (see
//! [`Record::worth`]).

use std::{collections::BTreeSet, time::Duration};

use suanli_protocol::{
    envelope::{EnvelopeError, Signer},
    ids::QuoteId,
    message::InlineBlobs,
    peer::{Config, Peer},
    record::{Record, Worth},
    units::Wall,
};

use crate::{
    store::{
        self, Store,
        compaction::{Backlog, Compaction, CompactionError},
    },
    wall::wall,
};

/// Records from which on a start is worth a checkpoint: their signatures take
/// about a second to verify.
const RECORDS_AT_START: u64 = 10_000;
/// How often old histories are looked for.
const FORGET_EVERY: Duration = Duration::from_secs(3600);

/// Whose journal is kept short, and what stays.
#[derive(Debug, Clone)]
pub struct Keeper {
    /// The store.
    pub store: Store,
    /// The core's configuration.
    pub config: Config,
    /// The node's key; nothing is signed with it.
    pub signer: Signer,
    /// How long history is kept, at least.
    pub history: Duration,
}

/// Why a journal was not made shorter. It is tried again.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// The store did not do it.
    #[error(transparent)]
    Store(#[from] CompactionError),
    /// A record can't be read.
    #[error("a record of the journal can't be read: {0}")]
    Record(#[from] EnvelopeError),
    /// The process is ending.
    #[error("the node is stopping")]
    Stopping,
}

impl Keeper {
    /// Looks after the journal until the store is closed.
    pub async fn run(self) {
        let mut reader = self.store.reader().clone();
        let mut due = is_due(reader.backlog()) || reader.backlog().records >= RECORDS_AT_START;
        loop {
            let done = if due {
                self.compact().await
            } else {
                self.forget().await
            };
            match done {
                Ok(0) => {}
                Ok(freed) => tracing::info!(freed, "the journal was made shorter"),
                Err(KeeperError::Store(CompactionError::Stopped) | KeeperError::Stopping) => return,
                Err(error) => tracing::warn!(%error, "the journal was not made shorter"),
            }
            loop {
                match tokio::time::timeout(FORGET_EVERY, reader.layout_changed()).await {
                    Ok(false) => return,
                    Ok(true) if !is_due(reader.backlog()) => {}
                    Ok(true) | Err(_) => break,
                }
            }
            due = is_due(reader.backlog());
        }
    }

    /// Makes archives of all that is durable now; returns how many bytes the
    /// journal let go of.
    ///
    /// # Errors
    /// [`KeeperError`].
    pub async fn compact(&self) -> Result<u64, KeeperError> {
        let now = wall();
        let compaction = self.store.compact(now.as_millis())?;
        let (config, signer) = (self.config.clone(), self.signer.clone());
        let written =
            tokio::task::spawn_blocking(move || write(compaction, now, &config, &signer)).await;
        let compaction = written.map_err(|_| KeeperError::Stopping)??;
        Ok(compaction.finish(self.forget_before(now)).await?)
    }

    async fn forget(&self) -> Result<u64, KeeperError> {
        let now = wall();
        let compaction = self.store.compact(now.as_millis())?;
        Ok(compaction.finish(self.forget_before(now)).await?)
    }

    fn forget_before(&self, now: Wall) -> u64 {
        let history = u64::try_from(self.history.as_millis()).unwrap_or(u64::MAX);
        now.as_millis().saturating_sub(history)
    }
}

/// Whether what is sealed has become more than what stands for the past.
const fn is_due(backlog: Backlog) -> bool {
    backlog.sealed_bytes > backlog.checkpoint_bytes
}

fn write(
    mut compaction: Compaction,
    now: Wall,
    config: &Config,
    signer: &Signer,
) -> Result<Compaction, KeeperError> {
    if !compaction.has_news() {
        return Ok(compaction);
    }
    let mut taken = BTreeSet::new();
    let mut failed = None;
    let records = compaction.records().map_while(|found| {
        let record = found.map_err(KeeperError::from).and_then(|found| {
            // The signatures were verified before it was written.
            Ok(Record::read_back(&found.payload)?)
        });
        if let Ok(Record::AgreedTo(agreement)) = &record {
            taken.insert(agreement.body().quote);
        }
        record.map_err(|error| failed = Some(error)).ok()
    });
    let kept = Peer::condense(now, config, signer, records);
    if let Some(error) = failed {
        return Err(error);
    }
    // What is held may still be taken.
    taken.extend(kept.iter().filter_map(|record| match record {
        Record::Quoted { quote, .. } => Some(QuoteId(quote.hash())),
        _ => None,
    }));
    compaction.write_history(|record| history(record, &taken))?;
    compaction.write_checkpoint(kept.iter().map(Record::encode))?;
    Ok(compaction)
}

/// What history keeps of a record.
fn history(stored: store::Record, taken: &BTreeSet<QuoteId>) -> Option<Vec<u8>> {
    let record = Record::read_back(&stored.payload).ok()?;
    let is_worth_it = match record.worth() {
        Worth::Always => true,
        Worth::IfTaken(quote) => taken.contains(&quote),
        Worth::Never => false,
    };
    if !is_worth_it {
        return None;
    }
    // What came along with it is kept as blobs, or not at all.
    match record {
        Record::Submitted { mut order, at } => {
            order.inline = InlineBlobs::default();
            Some(Record::Submitted { order, at }.encode())
        }
        Record::Judged {
            receipt,
            acceptance,
            ..
        } => {
            let outputs = InlineBlobs::default();
            let record = Record::Judged {
                receipt,
                acceptance,
                outputs,
            };
            Some(record.encode())
        }
        _ => Some(stored.payload),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use suanli_protocol::{
        limits::{AGREEMENTS_MAX, ANSWERS_KEPT, ENDED_JOBS_KEPT, PAST_AGREEMENTS_KEPT},
        peer::Output,
        record::RecordKey,
        units::{Mono, Now},
    };

    use super::*;
    use crate::{
        api::views,
        records::{
            self, Archive,
            dealt::{self, Dealt},
        },
        store::Opened,
    };

    fn open(dir: &Path) -> Store {
        let mut config = store::Config {
            index_version: records::INDEX_VERSION,
            ..store::Config::default()
        };
        config.journal.segment_bytes = 64 * 1024;
        let indexer = records::indexer(dealt::network());
        let Opened { store, .. } = Store::open(dir, &config, indexer).unwrap();
        store
    }

    fn keeper(store: &Store, side: usize) -> Keeper {
        let (config, signer) = dealt::core_of(side);
        Keeper {
            store: store.clone(),
            config,
            signer,
            history: Duration::from_secs(400 * 86_400),
        }
    }

    async fn append(store: &Store, records: &[Record]) {
        let mut lsn = store.durability().borrow().lsn;
        for record in records {
            lsn = lsn.next();
            store.append(lsn, record.encode()).await.unwrap();
        }
        store.journal().wait_durable(lsn).await.unwrap();
    }

    /// What the driver reads at a start.
    fn replayed(store: &Store) -> Vec<(suanli_protocol::record::Lsn, Record)> {
        let read = |found: store::Record| {
            let record = Record::decode(&found.payload, dealt::network()).unwrap();
            (suanli_protocol::record::Lsn(found.lsn.number()), record)
        };
        let records = store.reader().replay();
        records.map(|found| read(found.unwrap())).collect()
    }

    /// A peer that starts, and all that it does at first.
    fn started(
        side: usize,
        now: Now,
        records: Vec<(suanli_protocol::record::Lsn, Record)>,
    ) -> (Peer, Vec<Output>) {
        let (config, signer) = dealt::core_of(side);
        let mut peer = Peer::restore(now, config, signer, [3; 32], records.into_iter());
        peer.handle(now, suanli_protocol::peer::Input::Tick);
        let outputs = std::iter::from_fn(|| peer.poll_output()).collect();
        (peer, outputs)
    }

    fn assert_same_start(side: usize, all: &[Record], store: &Store) {
        let now = Now {
            mono: Mono::from_micros(1_000_000),
            wall: wall(),
        };
        let all = (1..).map(suanli_protocol::record::Lsn).zip(all.to_vec());
        let (expected, first) = started(side, now, all.collect());
        let (peer, outputs) = started(side, now, replayed(store));
        assert_eq!(outputs, first);
        assert_eq!(peer.jobs(), expected.jobs());
        assert_eq!(peer.work(), expected.work());
        assert_eq!(peer.channels(), expected.channels());
        assert_eq!(peer.last_lsn(), expected.last_lsn());
        assert_eq!(peer.next_timeout(), expected.next_timeout());
    }

    /// What people ask for, as they are told it.
    async fn told(store: &Store, dealt: &Dealt) -> Vec<String> {
        let archive = Archive::new(store.clone(), dealt::NETWORK);
        let mut told = vec![format!("{:?}", archive.newest_jobs(1000).await.unwrap())];
        for story in archive.newest_receipts(1000).await.unwrap() {
            told.push(format!(
                "{:?}",
                views::receipt_info(&story, dealt.client_peer)
            ));
        }
        for &receipt in dealt.receipts.iter().step_by(7) {
            told.push(format!(
                "{:?}",
                archive.bundle(receipt).await.unwrap().unwrap()
            ));
        }
        for &job in dealt.jobs.iter().step_by(7) {
            let story = archive.job(job).await.unwrap();
            told.push(format!("{:?}", story.as_ref().map(views::stored_job_info)));
        }
        told
    }

    /// So many records, and on to a quote that nobody has taken yet.
    fn next_cut(records: &[Record], least: usize) -> usize {
        let quoted = |record: &Record| matches!(record, Record::Quoted { .. });
        let more = records.iter().skip(least).position(quoted);
        let cut = more.map_or(least, |more| least + more + 1);
        cut.min(records.len())
    }

    #[tokio::test]
    async fn people_are_told_the_same_and_a_start_is_the_same_after_compactions() {
        let dealt = dealt::deal_in_turns(300, |number| number % 3 == 0);
        for (side, records) in [&dealt.client, &dealt.provider].into_iter().enumerate() {
            let dir = tempfile::tempdir().unwrap();
            let store = open(dir.path());
            append(&store, records).await;
            let before = told(&store, &dealt).await;
            store.close().await;

            let dir = tempfile::tempdir().unwrap();
            let store = open(dir.path());
            let mut rest = &records[..];
            while !rest.is_empty() {
                let (part, after) = rest.split_at(next_cut(rest, records.len() / 4));
                rest = after;
                append(&store, part).await;
                assert!(keeper(&store, side).compact().await.unwrap() > 0);
                let so_far = store.durability().borrow().lsn.number();
                let so_far = usize::try_from(so_far).unwrap();
                assert_same_start(side, &records[..so_far], &store);
            }
            assert_eq!(told(&store, &dealt).await, before);
            store.close().await;
            let store = open(dir.path());
            assert_same_start(side, records, &store);
            assert_eq!(told(&store, &dealt).await, before);
            let archive = Archive::new(store.clone(), dealt::NETWORK);
            for record in archive
                .records(RecordKey::Job(dealt.jobs[0]))
                .await
                .unwrap()
            {
                assert_ne!(record.worth(), Worth::Never, "{record:?}");
            }
            store.close().await;
        }
    }

    fn files(dir: &Path, ending: &str) -> usize {
        let names = std::fs::read_dir(dir.join("journal")).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.ends_with(ending)).count()
    }

    /// Jobs of a long history. `SUANLI_LONG_JOBS=50000` takes some minutes, and
    /// holds the same bounds.
    fn jobs() -> u32 {
        let set = std::env::var("SUANLI_LONG_JOBS").ok();
        set.and_then(|jobs| jobs.parse().ok()).unwrap_or(1500)
    }

    /// The most that a checkpoint of these two needs: see the limits of what is
    /// remembered of jobs, agreements, answers and vouchers.
    const KEPT_MAX: [usize; 2] = [
        ENDED_JOBS_KEPT * 3 + PAST_AGREEMENTS_KEPT + 100,
        ANSWERS_KEPT + AGREEMENTS_MAX + 100,
    ];

    #[tokio::test]
    async fn starts_and_segments_stay_few_over_a_long_history() {
        let dirs = [(), ()].map(|()| tempfile::tempdir().unwrap());
        let stores = [open(dirs[0].path()), open(dirs[1].path())];
        let mut world = dealt::World::new();
        let (mut written, mut compactions) = (0, 0);
        for number in 1..=jobs() {
            world.deal(number, true);
            if !number.is_multiple_of(50) {
                continue;
            }
            for (side, store) in stores.iter().enumerate() {
                let records = std::mem::take(&mut world.records[side]);
                written += records.len();
                append(store, &records).await;
                if !is_due(store.reader().backlog()) {
                    continue;
                }
                keeper(store, side).compact().await.unwrap();
                compactions += 1;
                let backlog = store.reader().backlog();
                assert_eq!((backlog.records, backlog.sealed_bytes), (0, 0));
                assert_eq!(files(dirs[side].path(), ".checkpoint"), 1);
                let replayed = store.reader().replay().count();
                assert!(replayed <= KEPT_MAX[side], "{replayed} records replayed");
            }
        }
        assert!(compactions > 6, "{compactions}");
        for (side, store) in stores.into_iter().enumerate() {
            let replayed = store.reader().replay().count();
            eprintln!("{written} records of both, {replayed} replayed on side {side}");
            assert_eq!(
                store.reader().checkpoint().map(|c| c.records() > 0),
                Some(true)
            );
            store.close().await;
        }
    }
}
