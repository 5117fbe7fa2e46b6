//! How the protocol's records are indexed in the store, and found again.
//!
//! [`indexer`] names the keys of a record for the store: one space per kind of
//! [`RecordKey`]. An [`Archive`] asks by these keys and puts together what
//! people ask for: the story of a job or of a receipt, and the bundle that
//! proves one. Reading a record back verifies its signatures again, so every
//! question here is bounded, and the work is done off the async threads.
//!
//! Absent: what is only in memory. A job that runs, and a channel's heads, are
//! asked of the driver.

use std::{collections::HashSet, ops::Range};

use suanli_protocol::{
    deal::Deal,
    envelope::{EnvelopeError, Verified},
    ids::{AgreementId, BlobId, ChannelId, Hash, JobId, NetworkId, ReceiptId},
    receipt::{Acceptance, Outcome, Receipt, Verdict},
    record::{JobEnd, JobOrder, Record, RecordKey},
    registry::Reason,
    units::{Amount, Wall},
    voucher::Voucher,
};

use crate::{
    statement::Document,
    store::{
        Lsn, Store,
        index::{FindError, HITS_MAX, Hit, Indexer, Key, Matching, Order, Query},
    },
};

/// Version of the keys, for [`crate::store::Config::index_version`].
pub const INDEX_VERSION: u32 = 2;
/// The fewest hex digits by which an id may be asked for.
pub const PREFIX_DIGITS_MIN: usize = 4;
/// Ids that an ambiguous prefix names at most.
pub const CANDIDATES_MAX: usize = 5;

/// Records of a channel in one part of its statement: each voucher may bring as
/// many receipts as it can pay.
const STATEMENT_RECORDS: usize = 64;
/// Records read for one key, at most: a job has a few for each attempt.
const RECORDS_MAX: usize = 128;
/// Units of which all is read at once.
const UNITS_READ: u32 = 4096;
/// An agreement's deal is in its first records: quoted, then agreed to.
const DEAL_RECORDS: usize = 4;
/// Keys looked at for one prefix. One more digit than bytes needs sixteen
/// times as many as are wanted, and ids are uniformly spread.
const KEYS_SCANNED_MAX: usize = 256;

/// Names the keys of the records of a network.
pub fn indexer(network: NetworkId) -> impl Indexer {
    // What is indexed was verified or signed before it was written.
    move |payload: &[u8]| match Record::read_back(payload) {
        Ok(record) => record.keys(network).into_iter().filter_map(key).collect(),
        // Nothing can be asked about what can't be read; the journal keeps it.
        Err(_) => Vec::new(),
    }
}

/// Why the archive has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The index or the journal has none.
    #[error(transparent)]
    Find(#[from] FindError),
    /// A record can't be read: it is of another network or version.
    #[error("record {} can't be read: {source}; was the data directory used for another network?", lsn.number())]
    Unreadable {
        /// Its number.
        lsn: Lsn,
        /// Why.
        source: EnvelopeError,
    },
    /// The process is ending.
    #[error("the node is stopping")]
    Stopping,
}

/// All that is written down about a receipt.
#[derive(Debug, Clone)]
pub struct ReceiptStory {
    /// The receipt.
    pub receipt: Verified<Receipt>,
    /// What it was agreed on.
    pub deal: Deal,
    /// The client's word on it.
    pub acceptance: Option<Verified<Acceptance>>,
    /// The voucher that pays it.
    pub voucher: Option<Verified<Voucher>>,
    /// Whether the acknowledgement of that very voucher is here.
    pub acknowledged: bool,
}

/// All that is written down about a job of ours.
#[derive(Debug, Clone)]
pub struct JobStory {
    /// What was asked for.
    pub order: Box<JobOrder>,
    /// When.
    pub submitted: Wall,
    /// The agreements, oldest first.
    pub deals: Vec<Deal>,
    /// The newest attempt.
    pub attempt: u32,
    /// Receipts that we gave our word on, oldest first.
    pub judged: Vec<(Verified<Receipt>, Verified<Acceptance>)>,
    /// How and when it ended.
    pub end: Option<(JobEnd, Wall)>,
}

/// What is written down about a unit of a job of ours.
#[derive(Debug, Clone)]
pub struct UnitStory {
    /// Which.
    pub unit: u32,
    /// The accepted receipt that says how it ended; none while nothing does.
    pub receipt: Option<Verified<Receipt>>,
}

impl UnitStory {
    const fn open(unit: u32) -> Self {
        Self {
            unit,
            receipt: None,
        }
    }

    /// A result stands, whatever else is said; of failures the last counts.
    fn hear(&mut self, receipt: Verified<Receipt>) {
        if !self.is_done() {
            self.receipt = Some(receipt);
        }
    }

    /// Whether its result is here.
    pub fn is_done(&self) -> bool {
        let outcome = self.receipt.as_ref().map(|receipt| receipt.body().outcome);
        outcome == Some(Outcome::Completed)
    }

    /// Why it failed, if it did by its own fault.
    pub fn failure(&self) -> Option<Reason> {
        match self.receipt.as_ref()?.body().outcome {
            Outcome::JobFault(reason) => Some(reason),
            Outcome::Completed | Outcome::ProviderFault(_) | Outcome::Cancelled => None,
        }
    }
}

/// How far the units of a job are, and what those that ended cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[expect(missing_docs, reason = "fields are what they are called")]
pub struct Tally {
    pub done: u32,
    pub failed: u32,
    pub spent: Amount,
}

/// Finds records of one network in a store.
#[derive(Debug, Clone)]
pub struct Archive {
    store: Store,
    network: NetworkId,
    network_name: String,
}

impl Archive {
    /// The records of `network` in `store`, which was opened with [`indexer`].
    pub fn new(store: Store, network: &str) -> Self {
        Self {
            store,
            network: NetworkId::of(network),
            network_name: network.to_owned(),
        }
    }

    /// The network.
    pub const fn network(&self) -> NetworkId {
        self.network
    }

    /// The first records with a key, oldest first.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub async fn records(&self, of: RecordKey) -> Result<Vec<Record>, ArchiveError> {
        self.fetch(of, Order::OldestFirst, RECORDS_MAX).await
    }

    /// The newest jobs of ours, newest first.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub async fn newest_jobs(&self, limit: usize) -> Result<Vec<JobId>, ArchiveError> {
        let records = self
            .fetch(RecordKey::AnyJob, Order::NewestFirst, limit)
            .await?;
        Ok(records
            .iter()
            .filter_map(|record| match record {
                Record::Submitted { order, .. } => Some(order.job),
                _ => None,
            })
            .collect())
    }

    /// The newest receipts, ours and others', newest first.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub async fn newest_receipts(&self, limit: usize) -> Result<Vec<ReceiptStory>, ArchiveError> {
        let records = self
            .fetch(RecordKey::AnyReceipt, Order::NewestFirst, limit)
            .await?;
        let mut seen = HashSet::new();
        let mut stories = Vec::new();
        for record in records {
            let (Record::Judged { receipt, .. } | Record::Receipted(receipt)) = record else {
                continue;
            };
            // A restored backup may have written one down twice.
            if seen.insert(receipt.hash()) {
                stories.extend(self.receipt(ReceiptId(receipt.hash())).await?);
            }
        }
        Ok(stories)
    }

    /// What is written down about a receipt; `None` if nothing is, or if what
    /// it was agreed on is gone.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub async fn receipt(&self, id: ReceiptId) -> Result<Option<ReceiptStory>, ArchiveError> {
        let records = self.trail(id).await?;
        Ok(receipt_story(id, &records))
    }

    /// What is written down about a job of ours.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub async fn job(&self, id: JobId) -> Result<Option<JobStory>, ArchiveError> {
        let Some(mut story) = job_story(self.records(RecordKey::Job(id)).await?) else {
            return Ok(None);
        };
        for deal in &story.deals {
            let of_deal = self.records(RecordKey::Agreement(deal.id())).await?;
            story.judged.extend(of_deal.into_iter().filter_map(judged));
        }
        Ok(Some(story))
    }

    /// What is written down about some units of a job of ours, in their order; `None`
    /// if the job is not known.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub async fn units(
        &self,
        job: JobId,
        range: Range<u32>,
    ) -> Result<Option<Vec<UnitStory>>, ArchiveError> {
        let Some((order, deals)) = self.deals(job).await? else {
            return Ok(None);
        };
        let end = range.end.min(order.work.unit_count());
        let mut stories: Vec<UnitStory> = (range.start..end).map(UnitStory::open).collect();
        for deal in &deals {
            let units = (range.start..end).filter(|&unit| deal.quote().body().work.has_unit(unit));
            let Some(first) = units.clone().next() else {
                continue;
            };
            for record in self.judged_from(deal.id(), first..end).await? {
                let Some((receipt, word)) = judged(record) else {
                    continue;
                };
                let place = receipt.body().key.unit.checked_sub(range.start);
                let place = place.and_then(|place| usize::try_from(place).ok());
                let story = place.and_then(|place| stories.get_mut(place));
                if let Some(story) = story.filter(|_| word.body().verdict == Verdict::Accepted) {
                    story.hear(receipt);
                }
            }
        }
        Ok(Some(stories))
    }

    /// How far the units of a job of ours are.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub async fn tally(&self, job: JobId) -> Result<Tally, ArchiveError> {
        let mut tally = Tally::default();
        let mut from = 0;
        while let Some(stories) = self.units(job, from..from + UNITS_READ).await? {
            for story in &stories {
                tally.done += u32::from(story.is_done());
                tally.failed += u32::from(story.failure().is_some());
                let amount = story.receipt.as_ref().map(|receipt| receipt.body().amount);
                let amount = amount.unwrap_or(Amount::ZERO);
                tally.spent = tally.spent.saturating_add(amount);
            }
            if stories.is_empty() {
                break;
            }
            from += UNITS_READ;
        }
        Ok(tally)
    }

    /// An output that was written down with the word on its receipt, for as
    /// long as it may not be a blob yet.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub async fn small_output(
        &self,
        of: ReceiptId,
        blob: BlobId,
    ) -> Result<Option<Vec<u8>>, ArchiveError> {
        let records = self.records(RecordKey::Receipt(of)).await?;
        Ok(records.into_iter().find_map(|record| match record {
            Record::Judged { outputs, .. } => outputs
                .iter()
                .find(|output| output.blob == blob)
                .map(|output| output.bytes.to_vec()),
            _ => None,
        }))
    }

    /// Where the provider of an agreement is, by the offer that it goes back to.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub async fn region(&self, of: AgreementId) -> Result<Option<String>, ArchiveError> {
        let key = RecordKey::Agreement(of);
        let records = self.fetch(key, Order::OldestFirst, DEAL_RECORDS).await?;
        Ok(records.iter().find_map(|record| match record {
            Record::Took { offer, .. }
            | Record::Quoted { offer, .. }
            | Record::QuotedFirm { offer, .. } => Some(offer.body().region.to_string()),
            _ => None,
        }))
    }

    /// The bundle that proves a receipt; `None` while a part is missing. Both
    /// sides give the same bytes once its voucher is acknowledged.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub async fn bundle(&self, id: ReceiptId) -> Result<Option<Vec<u8>>, ArchiveError> {
        let records = self.trail(id).await?;
        let bundle = Record::bundle(&self.network_name, id, records.iter());
        Ok(bundle.map(|bundle| bundle.encode()))
    }

    /// Some of what is signed on a channel, oldest first: the receipts that a
    /// voucher pays, it, acknowledgements and settlements. With where the next
    /// ones begin, if there may be more.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub async fn statement(
        &self,
        of: ChannelId,
        after: Option<u64>,
    ) -> Result<(Vec<Document>, Option<u64>), ArchiveError> {
        let (space, key) = space_and_bytes(RecordKey::Channel(of));
        let after = after.map(|lsn| Hit {
            key: key.clone(),
            lsn: Lsn::new(lsn),
        });
        let query = Query {
            space,
            keys: Matching::Exact(key),
            order: Order::OldestFirst,
            after,
            limit: STATEMENT_RECORDS,
        };
        let stored = self.store.fetch(query).await?;
        let more = stored.len() == STATEMENT_RECORDS;
        let next = stored.last().map(|last| last.lsn.number());
        let mut documents = Vec::new();
        for stored in stored {
            let record = Record::read_back(&stored.payload);
            let record = record.map_err(|source| ArchiveError::Unreadable {
                lsn: stored.lsn,
                source,
            })?;
            match &record {
                Record::Paid(voucher) => self.state(voucher, &mut documents).await?,
                Record::PaidAcked(ack) => documents.push(Document::of(None, ack)),
                Record::Earned { voucher, ack } => {
                    self.state(voucher, &mut documents).await?;
                    documents.push(Document::of(None, ack));
                }
                Record::Frozen { second, .. } => documents.push(Document::of(None, second)),
                Record::Settled(settled) => documents.push(Document::of(None, settled)),
                _ => {}
            }
        }
        Ok((documents, next.filter(|_| more)))
    }

    /// A voucher after the receipts that it pays, as far as they are kept.
    async fn state(
        &self,
        voucher: &Verified<Voucher>,
        documents: &mut Vec<Document>,
    ) -> Result<(), ArchiveError> {
        for receipt in voucher.body().receipts.iter() {
            if let Some(story) = self.receipt(*receipt).await? {
                let job = story.deal.quote().body().job;
                documents.push(Document::of(Some(job), &story.receipt));
            }
        }
        documents.push(Document::of(None, voucher));
        Ok(())
    }

    /// Jobs, ours and those that we work on, whose ids begin with `digits`.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub async fn jobs_by_prefix(&self, digits: &str) -> Result<Vec<JobId>, ArchiveError> {
        let keys = self.keys_by_prefix(JOB, digits).await?;
        Ok(keys
            .into_iter()
            .filter_map(|key| key.try_into().ok())
            .map(JobId::from_bytes)
            .collect())
    }

    /// Receipts whose ids begin with `digits`.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub async fn receipts_by_prefix(&self, digits: &str) -> Result<Vec<ReceiptId>, ArchiveError> {
        Ok(hashes(self.keys_by_prefix(RECEIPT, digits).await?)
            .map(ReceiptId)
            .collect())
    }
}

impl Archive {
    /// What a job of ours asks for, and all agreements on it.
    async fn deals(&self, job: JobId) -> Result<Option<(Box<JobOrder>, Vec<Deal>)>, ArchiveError> {
        let (space, bytes) = space_and_bytes(RecordKey::Job(job));
        let keys = Matching::Exact(bytes.clone());
        let key = |_: &Record| Some(bytes.clone());
        let records = self.read((space, keys), None, key).await?;
        let (mut order, mut deals) = (None, Vec::new());
        for record in records {
            match record {
                Record::Submitted { order: given, .. } => order = Some(given),
                Record::Took {
                    offer,
                    request,
                    quote,
                    agreement,
                } => deals.extend(Deal::new(offer, request, quote, agreement)),
                _ => {}
            }
        }
        Ok(order.map(|order| (order, deals)))
    }

    /// Our words on receipts of units of an agreement, unit by unit.
    async fn judged_from(
        &self,
        agreement: AgreementId,
        units: Range<u32>,
    ) -> Result<Vec<Record>, ArchiveError> {
        let before = Hit {
            key: unit_key(agreement, units.start),
            lsn: Lsn::NONE,
        };
        let keys = Matching::Prefix(agreement.0.as_bytes().to_vec());
        let key = |record: &Record| match record {
            Record::Judged { receipt, .. } => {
                let unit = receipt.body().key.unit;
                units.contains(&unit).then(|| unit_key(agreement, unit))
            }
            _ => None,
        };
        self.read((UNIT, keys), Some(before), key).await
    }

    /// All records with a key, page by page, as long as `key` has one for them. They are
    /// our own journal's: signatures are not verified again.
    async fn read(
        &self,
        (space, keys): (u8, Matching),
        mut after: Option<Hit>,
        key: impl Fn(&Record) -> Option<Vec<u8>>,
    ) -> Result<Vec<Record>, ArchiveError> {
        let mut records = Vec::new();
        loop {
            let query = Query {
                space,
                keys: keys.clone(),
                order: Order::OldestFirst,
                after: after.take(),
                limit: HITS_MAX,
            };
            let stored = self.store.fetch(query).await?;
            let is_last = stored.len() < HITS_MAX;
            let decoded = tokio::task::spawn_blocking(move || {
                let read = stored.into_iter().map(|stored| {
                    let record = Record::read_back(&stored.payload);
                    let record = record.map_err(|source| ArchiveError::Unreadable {
                        lsn: stored.lsn,
                        source,
                    })?;
                    Ok::<_, ArchiveError>((stored.lsn, record))
                });
                read.collect::<Result<Vec<_>, _>>()
            });
            for (lsn, record) in decoded.await.map_err(|_| ArchiveError::Stopping)?? {
                let Some(key) = key(&record) else {
                    return Ok(records);
                };
                after = Some(Hit { key, lsn });
                records.push(record);
            }
            if is_last {
                return Ok(records);
            }
        }
    }

    /// From the offer to the acknowledgement of a receipt.
    async fn trail(&self, id: ReceiptId) -> Result<Vec<Record>, ArchiveError> {
        let mut records = self.records(RecordKey::Receipt(id)).await?;
        if let Some(agreement) = agreement_of(id, &records) {
            let key = RecordKey::Agreement(agreement);
            records.extend(self.fetch(key, Order::OldestFirst, DEAL_RECORDS).await?);
        }
        let vouchers: HashSet<Hash> = records.iter().filter_map(paid_by).collect();
        for voucher in vouchers {
            records.extend(self.records(RecordKey::Envelope(voucher)).await?);
        }
        Ok(records)
    }

    async fn fetch(
        &self,
        of: RecordKey,
        order: Order,
        limit: usize,
    ) -> Result<Vec<Record>, ArchiveError> {
        let (space, bytes) = space_and_bytes(of);
        let query = Query {
            space,
            keys: Matching::Exact(bytes),
            order,
            after: None,
            limit,
        };
        let stored = self.store.fetch(query).await?;
        let network = self.network;
        let decoded = tokio::task::spawn_blocking(move || {
            stored
                .into_iter()
                .map(|stored| {
                    Record::decode(&stored.payload, network).map_err(|source| {
                        ArchiveError::Unreadable {
                            lsn: stored.lsn,
                            source,
                        }
                    })
                })
                .collect()
        });
        decoded.await.map_err(|_| ArchiveError::Stopping)?
    }

    /// The distinct keys of a space that begin with hex `digits`: more than
    /// [`CANDIDATES_MAX`] of them are as good as too many.
    async fn keys_by_prefix(&self, space: u8, digits: &str) -> Result<Vec<Vec<u8>>, ArchiveError> {
        let Some(prefix) = whole_bytes(digits) else {
            return Ok(Vec::new());
        };
        let mut found = Vec::new();
        let mut after = None;
        for _ in 0..KEYS_SCANNED_MAX {
            let query = Query {
                space,
                keys: Matching::Prefix(prefix.clone()),
                order: Order::OldestFirst,
                after: after.take(),
                limit: 1,
            };
            let Some(hit) = self.store.find(query).await?.pop() else {
                break;
            };
            if suanli_protocol::ids::hex(&hit.key).starts_with(digits) {
                found.push(hit.key.clone());
            }
            if found.len() > CANDIDATES_MAX {
                break;
            }
            // Past all records with this key.
            after = Some(Hit {
                key: hit.key,
                lsn: Lsn::new(u64::MAX - 1),
            });
        }
        Ok(found)
    }
}

const JOB: u8 = 1;
const AGREEMENT: u8 = 2;
const RECEIPT: u8 = 3;
const ANY_RECEIPT: u8 = 4;
const ANY_JOB: u8 = 5;
const CHANNEL: u8 = 6;
const PEER: u8 = 7;
const ACCOUNT: u8 = 8;
const ENVELOPE: u8 = 9;
const UNIT: u8 = 10;

fn space_and_bytes(of: RecordKey) -> (u8, Vec<u8>) {
    match of {
        RecordKey::Job(id) => (JOB, id.as_bytes().to_vec()),
        RecordKey::Agreement(id) => (AGREEMENT, id.0.as_bytes().to_vec()),
        RecordKey::Receipt(id) => (RECEIPT, id.0.as_bytes().to_vec()),
        RecordKey::AnyReceipt => (ANY_RECEIPT, Vec::new()),
        RecordKey::AnyJob => (ANY_JOB, Vec::new()),
        RecordKey::Channel(id) => (CHANNEL, id.0.as_bytes().to_vec()),
        RecordKey::Peer(id) => (PEER, id.as_bytes().to_vec()),
        RecordKey::Account(id) => (ACCOUNT, id.as_bytes().to_vec()),
        RecordKey::Unit(agreement, unit) => (UNIT, unit_key(agreement, unit)),
        RecordKey::Envelope(hash) => (ENVELOPE, hash.as_bytes().to_vec()),
    }
}

/// Sorts by unit within an agreement.
fn unit_key(agreement: AgreementId, unit: u32) -> Vec<u8> {
    [&agreement.0.as_bytes()[..], &unit.to_be_bytes()].concat()
}

fn key(of: RecordKey) -> Option<Key> {
    let (space, bytes) = space_and_bytes(of);
    Key::new(space, bytes)
}

/// The bytes that hex digits name, without the last of an odd number; `None`
/// for anything else than lower-case hex.
fn whole_bytes(digits: &str) -> Option<Vec<u8>> {
    let nibble = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let nibbles: Option<Vec<u8>> = digits.bytes().map(nibble).collect();
    let nibbles = nibbles?;
    Some(
        nibbles
            .chunks_exact(2)
            .map(|pair| pair[0] << 4 | pair[1])
            .collect(),
    )
}

fn hashes(keys: Vec<Vec<u8>>) -> impl Iterator<Item = Hash> {
    keys.into_iter()
        .filter_map(|key| key.try_into().ok())
        .map(Hash::from_bytes)
}

fn agreement_of(id: ReceiptId, records: &[Record]) -> Option<AgreementId> {
    records.iter().find_map(|record| match record {
        Record::Judged { receipt, .. } | Record::Receipted(receipt) if receipt.hash() == id.0 => {
            Some(receipt.body().key.agreement)
        }
        _ => None,
    })
}

fn paid_by(record: &Record) -> Option<Hash> {
    match record {
        Record::Paid(voucher) | Record::Earned { voucher, .. } => Some(voucher.hash()),
        _ => None,
    }
}

fn judged(record: Record) -> Option<(Verified<Receipt>, Verified<Acceptance>)> {
    match record {
        Record::Judged {
            receipt,
            acceptance,
            ..
        } => Some((receipt, acceptance)),
        _ => None,
    }
}

fn receipt_story(id: ReceiptId, records: &[Record]) -> Option<ReceiptStory> {
    let (mut found, mut acceptance, mut voucher, mut ack) = (None, None, None, None);
    let (mut quoted, mut agreement) = (None, None);
    for record in records {
        match record {
            Record::Receipted(receipt) if receipt.hash() == id.0 => found = Some(receipt),
            Record::Judged {
                receipt,
                acceptance: word,
                ..
            } if receipt.hash() == id.0 => {
                found = Some(receipt);
                acceptance = Some(word);
            }
            Record::HeardOf(word) if word.body().receipt == id => acceptance = Some(word),
            Record::Paid(paid) => voucher = Some(paid),
            Record::PaidAcked(acked) => ack = Some(acked),
            Record::Earned {
                voucher: paid,
                ack: acked,
            } => (voucher, ack) = (Some(paid), Some(acked)),
            Record::Took {
                offer,
                request,
                quote,
                agreement: completed,
            } => {
                quoted = Some((offer, request, quote));
                agreement = completed.as_ref();
            }
            Record::Quoted {
                offer,
                request,
                quote,
            }
            | Record::QuotedFirm {
                offer,
                request,
                quote,
            } => quoted = Some((offer, request, quote)),
            Record::AgreedTo(completed) => agreement = Some(completed),
            _ => {}
        }
    }
    let (offer, request, quote) = quoted?;
    let (offer, request, quote) = (offer.clone(), request.clone(), quote.clone());
    let acknowledged =
        matches!((voucher, ack), (Some(v), Some(a)) if a.body().voucher.0 == v.hash());
    Some(ReceiptStory {
        receipt: found?.clone(),
        deal: Deal::new(offer, request, quote, agreement.cloned()).ok()?,
        acceptance: acceptance.cloned(),
        voucher: voucher.cloned(),
        acknowledged,
    })
}

fn job_story(records: Vec<Record>) -> Option<JobStory> {
    let (mut submitted, mut end, mut attempt) = (None, None, 0);
    let mut deals = Vec::new();
    for record in records {
        match record {
            Record::Submitted { order, at } => submitted = Some((order, at)),
            Record::Asked(request) => attempt = attempt.max(request.body().attempt),
            Record::Took {
                offer,
                request,
                quote,
                agreement,
            } => {
                // What was asked for is no history; what came of it is.
                attempt = attempt.max(quote.body().attempt);
                deals.extend(Deal::new(offer, request, quote, agreement));
            }
            Record::Ended { end: how, at, .. } => end = Some((how, at)),
            _ => {}
        }
    }
    let (order, submitted) = submitted?;
    Some(JobStory {
        order,
        submitted,
        deals,
        attempt,
        judged: Vec::new(),
        end,
    })
}

#[cfg(test)]
pub(crate) mod dealt;
#[cfg(test)]
pub(crate) mod tests;
