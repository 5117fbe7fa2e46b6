//! The journal: the source of truth for everything that we signed or accepted.
//!
//! One thread writes. It is fed by a bounded queue, takes all that waits there
//! as one batch, writes the batch with one positioned write into a file that
//! was filled with zeros beforehand (so that the sync has no metadata to
//! write), syncs once, and only then reports the new durable number. The next
//! segment is made ready in the background while the current one fills.
//!
//! Waking that thread and being woken by it takes as long as a good disk's
//! sync. A caller that has nothing else to do may write on its own thread
//! instead ([`Journal::try_write`]), as long as the writer rests and the disk
//! has been quick.
//!
//! The caller numbers the records, one by one; the journal holds it to that.
//! Sealed segments go when archives stand for them (see `compaction`): a
//! checkpoint for the state, a history for what people may still ask for.
//!
//! Nothing is reported durable that is not. A full disk is met before a record
//! is written, while the next segment is made: [`Health::Low`] as long as the
//! current segment has room, [`Health::Full`] when it has not; the writer holds
//! what it took and goes on when there is room again. Any other failed write or
//! sync ends the journal until it is opened anew, because after a failed sync
//! nobody knows what is on the disk.
//!
//! Absent: what records mean, and keys (see `index`).

use std::{
    fmt, io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use tokio::sync::{mpsc, oneshot, watch};

use super::{
    archive::Archive,
    disk::{Disk, DiskFile},
    reader::{Layout, Past, Segment},
    record::{RECORD_HEADER, SEGMENT_HEADER, SegmentHead, encode},
    recovery::{PREPARED, Tail, fill_with_zeros, recover},
};
pub use super::{
    reader::{ReadError, Reader, Records},
    record::{Chain, Fault, Lsn, RECORD_BYTES_MAX, Record},
    recovery::{Damage, Recovery},
};

/// About what waking a thread takes; at most one per batch is spent.
const LOOK_OUT: Duration = Duration::from_micros(60);

/// A disk whose last write and sync took longer is not waited for by callers.
const QUICK: Duration = Duration::from_millis(2);

/// What to do about damage to something durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnDamage {
    /// Change nothing, and refuse to open.
    #[default]
    Refuse,
    /// Go on with the sound prefix; keep the rest in files of its own.
    SetAside,
}

/// How a journal is kept.
#[derive(Debug, Clone)]
pub struct Config {
    /// Size of a new segment; 16 MiB hold some 25,000 receipts.
    pub segment_bytes: u64,
    /// Records that may wait for the writer.
    pub queue_records: usize,
    /// Bytes that one write and sync takes at most, give or take a record.
    pub batch_bytes: usize,
    /// How long to wait before asking a full disk again.
    pub retry_after: Duration,
    /// What to do about damage.
    pub on_damage: OnDamage,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            segment_bytes: 16 * 1024 * 1024,
            queue_records: 512,
            batch_bytes: 512 * 1024,
            retry_after: Duration::from_secs(1),
            on_damage: OnDamage::Refuse,
        }
    }
}

/// How far the journal is on disk, and how it fares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Durability {
    /// Everything up to here survives a power loss.
    pub lsn: Lsn,
    /// Whether more can follow.
    pub health: Health,
}

/// How the journal fares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// All is well.
    Writing,
    /// The disk has no room for the next segment; the current one still has.
    Low,
    /// The disk is full: what was taken waits until there is room.
    Full,
    /// The disk failed; the journal must be opened anew.
    Failed(Failure),
    /// The journal was closed.
    Closed,
}

/// Why the journal ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The disk failed while `during`.
    #[error("the disk failed {during} ({message}); check the disk, then restart")]
    Io {
        /// What was being done.
        during: &'static str,
        /// The operating system's words.
        message: Arc<str>,
    },
    /// A record came out of turn: the caller's mistake.
    #[error("record {got} came where {expected} was due; report this as a bug")]
    OutOfOrder {
        /// The number that was due.
        expected: Lsn,
        /// The number that came.
        got: Lsn,
    },
}

/// Why a journal could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Something durable is damaged, and [`OnDamage::Refuse`] holds.
    #[error("the journal is damaged: {0}; run `suanli doctor` to see what can be kept")]
    Damaged(Box<Damage>),
    /// A segment could not hold one record.
    #[error("segment_bytes {0} is too small or too large; use 4096 to 1073741824")]
    SegmentSize(u64),
    /// The disk has no room for a segment.
    #[error("no room for a journal segment of {0} bytes; free some space on this disk")]
    Full(u64),
    /// The disk did not do it.
    #[error("the journal could not be opened")]
    Io(#[source] io::Error),
}

impl From<io::Error> for JournalError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Why a record was not taken. Its number is not used up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// The queue is full: wait for the durable number to move.
    #[error("the journal's queue is full")]
    Busy,
    /// The disk is full, and so is the queue.
    #[error("the disk is full; free some space and the journal goes on")]
    Full,
    /// The payload is longer than a record may be.
    #[error("a record of {bytes} bytes exceeds the {max} that one may have")]
    TooLong {
        /// Its length.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// The journal has ended; the durability says why.
    #[error("the journal takes no more records; restart the node")]
    Stopped,
}

/// Archives that were made durable, and how old histories may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Settled {
    pub(super) checkpoint: Option<Archive>,
    pub(super) history: Option<Archive>,
    /// Histories written before this time are forgotten.
    pub(super) forget_before_ms: u64,
}

/// Called by whoever writes after each change of the durability.
pub type Notify = Box<dyn FnMut() + Send>;

/// The handle to a running journal. Cheap to clone; the writer ends when the
/// last clone is gone, or at [`Journal::close`].
#[derive(Debug, Clone)]
pub struct Journal {
    commands: mpsc::Sender<Command>,
    writer: Arc<Place>,
    reader: Reader,
    closing: Arc<AtomicBool>,
    payload_max: usize,
}

/// Where the writer is, for whoever writes next: its thread, or a caller while
/// that rests. Empty when it has ended.
#[derive(Debug)]
struct Place(Mutex<Option<Writer>>);

impl Place {
    fn lock(&self) -> MutexGuard<'_, Option<Writer>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
enum Command {
    /// Records from this number on; they share one sync.
    Append(Lsn, Vec<Vec<u8>>),
    Settle(Box<Settled>, oneshot::Sender<io::Result<u64>>),
    /// Ends the writer after all that was queued before.
    Close,
}

impl Journal {
    /// Opens the journal on `disk`, recovering what is there, and starts its
    /// writer. `known` is the newest record that the caller knows to have been
    /// durable ([`Lsn::NONE`] if nothing); `notify` runs on the
    /// thread that writes after each change and is dropped when the writer ends.
    pub fn open(
        disk: Arc<dyn Disk>,
        config: &Config,
        known: Lsn,
        notify: Notify,
    ) -> Result<(Self, Recovery), JournalError> {
        if !(4096..=1 << 30).contains(&config.segment_bytes) {
            return Err(JournalError::SegmentSize(config.segment_bytes));
        }
        let tail = recover(&disk, config, known)?;
        let recovery = tail.recovery.clone();
        let (commands, queue) = mpsc::channel(config.queue_records.max(1));
        let (layout, layout_seen) = watch::channel(Arc::new(tail.layout.clone()));
        let (durability, durability_seen) = watch::channel(Durability {
            lsn: recovery.last,
            health: Health::Writing,
        });
        let closing = Arc::new(AtomicBool::new(false));
        let publish = Publish {
            layout,
            durability,
            notify,
        };
        let writer = Writer::new(
            Arc::clone(&disk),
            config.clone(),
            tail,
            publish,
            Arc::clone(&closing),
        );
        let place = Arc::new(Place(Mutex::new(Some(writer))));
        let journal = Self {
            commands,
            writer: Arc::clone(&place),
            reader: Reader {
                disk,
                layout: layout_seen,
                durability: durability_seen,
            },
            closing,
            payload_max: payload_max(config.segment_bytes),
        };
        thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || run(&place, queue))?;
        Ok((journal, recovery))
    }

    /// Hands over records, the first of which is `first`, without waiting: all
    /// of them or none, and they are written together. They are taken out of
    /// `payloads`, and durable when the durability says so.
    pub fn try_append(&self, first: Lsn, payloads: &mut Vec<Vec<u8>>) -> Result<(), AppendError> {
        payloads
            .iter()
            .try_for_each(|payload| self.check(payload))?;
        let room = self.commands.try_reserve().map_err(|error| match error {
            mpsc::error::TrySendError::Closed(()) => AppendError::Stopped,
            mpsc::error::TrySendError::Full(()) => match self.reader.durability().health {
                Health::Full => AppendError::Full,
                Health::Writing | Health::Low | Health::Failed(_) | Health::Closed => {
                    AppendError::Busy
                }
            },
        })?;
        room.send(Command::Append(first, std::mem::take(payloads)));
        Ok(())
    }

    /// Writes records, the first of which is `first`, on this thread, and takes
    /// them out of `payloads`: on return they are durable, or the durability
    /// says why not. `false`, and nothing is done, if that could take longer
    /// than a quick disk's sync: the writer is at work, records wait for it, a
    /// new segment is due, or the disk is slow.
    pub fn try_write(&self, first: Lsn, payloads: &mut Vec<Vec<u8>>) -> bool {
        if payloads.iter().any(|payload| self.check(payload).is_err()) {
            return false;
        }
        let Ok(mut place) = self.writer.0.try_lock() else {
            return false;
        };
        let Some(writer) = place.as_mut().filter(|w| w.is_ready(first, payloads)) else {
            return false;
        };
        if writer.write(first, std::mem::take(payloads)).is_err() {
            // It ends with the next command. A full queue holds one already.
            let _ = self.commands.try_send(Command::Close);
        }
        true
    }

    /// Hands over the record `lsn`, waiting for room in the queue.
    pub async fn append(&self, lsn: Lsn, payload: Vec<u8>) -> Result<(), AppendError> {
        self.check(&payload)?;
        let command = Command::Append(lsn, vec![payload]);
        let sent = self.commands.send(command).await;
        sent.map_err(|_| AppendError::Stopped)
    }

    /// Takes archives in, and removes what they stand for and what is too old.
    /// Returns how many bytes it freed.
    pub(super) async fn settle(&self, settled: Settled) -> io::Result<u64> {
        let stopped = || io::Error::other("the journal has ended");
        let (reply, answer) = oneshot::channel();
        let command = Command::Settle(Box::new(settled), reply);
        let sent = self.commands.send(command).await;
        sent.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }

    /// Reads what is durable.
    pub const fn reader(&self) -> &Reader {
        &self.reader
    }

    /// How far the journal is on disk; changes can be awaited.
    pub fn durability(&self) -> watch::Receiver<Durability> {
        self.reader.durability.clone()
    }

    /// Waits until `lsn` is durable; otherwise says why it never will be.
    pub async fn wait_durable(&self, lsn: Lsn) -> Result<(), Health> {
        let mut seen = self.durability();
        let reached = seen
            .wait_for(|d| d.lsn >= lsn || matches!(d.health, Health::Failed(_) | Health::Closed))
            .await
            .map_err(|_| Health::Closed)?
            .clone();
        if reached.lsn >= lsn {
            Ok(())
        } else {
            Err(reached.health)
        }
    }

    /// Asks the writer to finish what is queued and to end. What a full disk
    /// keeps from being written is given up.
    pub async fn close(&self) {
        self.closing.store(true, Ordering::Release);
        // An error means that the writer has ended already.
        let _ = self.commands.send(Command::Close).await;
    }

    fn check(&self, payload: &[u8]) -> Result<(), AppendError> {
        if payload.len() > self.payload_max {
            return Err(AppendError::TooLong {
                bytes: payload.len(),
                max: self.payload_max,
            });
        }
        Ok(())
    }
}

/// The longest payload for which a segment has room.
fn payload_max(segment_bytes: u64) -> usize {
    let room = usize::try_from(segment_bytes).unwrap_or(usize::MAX);
    RECORD_BYTES_MAX.min(room - SEGMENT_HEADER - RECORD_HEADER)
}

struct Publish {
    layout: watch::Sender<Arc<Layout>>,
    durability: watch::Sender<Durability>,
    notify: Notify,
}

impl Publish {
    fn durability(&mut self, lsn: Lsn, health: Health) {
        self.durability.send_replace(Durability { lsn, health });
        (self.notify)();
    }

    fn health(&mut self, health: Health) {
        let lsn = self.durability.borrow().lsn;
        if self.durability.borrow().health != health {
            self.durability(lsn, health);
        }
    }
}

/// The next segment's file, being filled with zeros or done.
enum Preparing {
    Running(JoinHandle<io::Result<()>>),
    Ready,
    FailedAt(Instant, io::Error),
}

/// Why the writer stops.
#[derive(Debug, Clone)]
enum Stop {
    Closed,
    Failed(Failure),
}

struct Writer {
    disk: Arc<dyn Disk>,
    config: Config,
    publish: Publish,
    closing: Arc<AtomicBool>,
    layout: Layout,
    file: Box<dyn DiskFile>,
    /// Where the next batch goes, and how large the segment is.
    offset: u64,
    segment_bytes: u64,
    preparing: Preparing,
    /// The number and chain after everything in `batch`.
    next: Lsn,
    chain: Chain,
    batch: Vec<u8>,
    in_batch: u16,
    /// How long the last write and sync took.
    pace: Duration,
    /// Why nothing more is written.
    stopped: Option<Stop>,
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer")
            .field("next", &self.next)
            .field("stopped", &self.stopped)
            .finish_non_exhaustive()
    }
}

impl Writer {
    fn new(
        disk: Arc<dyn Disk>,
        config: Config,
        tail: Tail,
        publish: Publish,
        closing: Arc<AtomicBool>,
    ) -> Self {
        let segment_bytes = tail.layout.segments.last().map_or(0, |s| s.head.bytes);
        Self {
            preparing: start_preparing(&disk, config.segment_bytes),
            disk,
            config,
            publish,
            closing,
            layout: tail.layout,
            file: tail.file,
            offset: tail.offset,
            segment_bytes,
            next: tail.recovery.last.next(),
            chain: tail.recovery.chain,
            batch: Vec::new(),
            in_batch: 0,
            pace: Duration::ZERO,
            stopped: None,
        }
    }

    /// One batch: the command, and what waits behind it.
    fn work(&mut self, first: Command, queue: &mut mpsc::Receiver<Command>) -> Result<(), Stop> {
        if let Some(stop) = &self.stopped {
            return Err(stop.clone());
        }
        self.take(first)?;
        self.take_waiting(queue)?;
        self.flush()?;
        self.look_after_next_segment();
        Ok(())
    }

    /// Whether these could be written now, in order, without a wait.
    fn is_ready(&self, first: Lsn, payloads: &[Vec<u8>]) -> bool {
        let bytes: usize = payloads.iter().map(|p| RECORD_HEADER + p.len()).sum();
        self.stopped.is_none()
            && self.next == first
            && self.batch.is_empty()
            && self.pace < QUICK
            && bytes <= self.config.batch_bytes
            && payloads.len() <= usize::from(u16::MAX)
            && self.offset + bytes as u64 <= self.segment_bytes
    }

    fn write(&mut self, first: Lsn, payloads: Vec<Vec<u8>>) -> Result<(), Stop> {
        let written = self
            .take(Command::Append(first, payloads))
            .and_then(|()| self.flush());
        self.look_after_next_segment();
        self.stopped = written.as_ref().err().cloned();
        written
    }

    fn take_waiting(&mut self, queue: &mut mpsc::Receiver<Command>) -> Result<(), Stop> {
        while self.batch.len() < self.config.batch_bytes {
            match queue.try_recv() {
                Ok(command) => self.take(command)?,
                Err(_) => break,
            }
        }
        Ok(())
    }

    fn take(&mut self, command: Command) -> Result<(), Stop> {
        match command {
            Command::Append(first, payloads) => {
                let mut lsn = first;
                for payload in payloads {
                    self.record(lsn, &payload)?;
                    lsn = lsn.next();
                }
                Ok(())
            }
            Command::Settle(settled, reply) => {
                self.flush()?;
                let freed = self.settle(&settled);
                // Nobody waits for the answer any more: nothing to do.
                let _ = reply.send(freed);
                Ok(())
            }
            Command::Close => {
                self.flush()?;
                Err(Stop::Closed)
            }
        }
    }

    /// Adds one record to the batch, after making room where there is none.
    fn record(&mut self, lsn: Lsn, payload: &[u8]) -> Result<(), Stop> {
        if lsn != self.next {
            // What came in order before it is still good.
            self.flush()?;
            return Err(Stop::Failed(Failure::OutOfOrder {
                expected: self.next,
                got: lsn,
            }));
        }
        let bytes = RECORD_HEADER + payload.len();
        if self.offset + (self.batch.len() + bytes) as u64 > self.segment_bytes {
            self.flush()?;
            self.next_segment()?;
        } else if self.in_batch == u16::MAX || self.batch.len() >= self.config.batch_bytes {
            self.flush()?;
        }
        self.chain = encode(&mut self.batch, lsn, self.in_batch, self.chain, payload);
        self.in_batch += 1;
        self.next = lsn.next();
        Ok(())
    }

    /// Writes and syncs the batch, then reports it durable.
    fn flush(&mut self) -> Result<(), Stop> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let begin = Instant::now();
        self.file
            .write_at(&self.batch, self.offset)
            .map_err(failed("writing a record"))?;
        self.file.sync_data().map_err(failed("syncing a record"))?;
        self.pace = begin.elapsed();
        self.offset += self.batch.len() as u64;
        self.batch.clear();
        self.in_batch = 0;
        let health = match self.preparing {
            Preparing::FailedAt(..) => Health::Low,
            Preparing::Running(_) | Preparing::Ready => Health::Writing,
        };
        self.publish.durability(self.next.minus(1), health);
        Ok(())
    }

    /// Goes over to the prepared segment; the batch is empty.
    fn next_segment(&mut self) -> Result<(), Stop> {
        self.wait_for_room()?;
        let head = SegmentHead {
            bytes: self.config.segment_bytes,
            first: self.next,
            before: self.chain,
        };
        let segment = Segment { head };
        self.file =
            name_segment(self.disk.as_ref(), segment).map_err(failed("beginning a segment"))?;
        self.offset = SEGMENT_HEADER as u64;
        self.segment_bytes = head.bytes;
        self.layout.segments.push(segment);
        self.publish_layout();
        self.preparing = start_preparing(&self.disk, self.config.segment_bytes);
        Ok(())
    }

    /// Waits until the next segment is ready, however long the disk is full.
    fn wait_for_room(&mut self) -> Result<(), Stop> {
        loop {
            self.preparing = match std::mem::replace(&mut self.preparing, Preparing::Ready) {
                Preparing::Ready => {
                    self.publish.health(Health::Writing);
                    return Ok(());
                }
                Preparing::Running(job) => settle(job),
                Preparing::FailedAt(_, error) if !is_full(&error) => {
                    return Err(failed("making a segment")(error));
                }
                Preparing::FailedAt(..) => {
                    self.publish.health(Health::Full);
                    // Only this thread is left when all handles are gone.
                    let is_left = Arc::strong_count(&self.closing) == 1;
                    if is_left || self.closing.load(Ordering::Acquire) {
                        return Err(Stop::Closed);
                    }
                    thread::sleep(self.config.retry_after);
                    start_preparing(&self.disk, self.config.segment_bytes)
                }
            };
        }
    }

    /// Notices that the next segment is ready or could not be made, and tries
    /// again from time to time.
    fn look_after_next_segment(&mut self) {
        self.preparing = match std::mem::replace(&mut self.preparing, Preparing::Ready) {
            Preparing::Running(job) if job.is_finished() => settle(job),
            Preparing::FailedAt(at, _) if at.elapsed() > self.config.retry_after => {
                start_preparing(&self.disk, self.config.segment_bytes)
            }
            unchanged @ (Preparing::Running(_) | Preparing::Ready | Preparing::FailedAt(..)) => {
                unchanged
            }
        };
        if let Preparing::FailedAt(..) = self.preparing {
            self.publish.health(Health::Low);
        }
    }

    /// Readers stop looking into files before these go; segments go oldest
    /// first, so that no crash leaves a gap.
    fn settle(&mut self, settled: &Settled) -> io::Result<u64> {
        let mut old: Vec<(String, u64)> = Vec::new();
        let layout = &mut self.layout;
        if let Some(newer) = settled.checkpoint {
            let replaced = layout.checkpoint.replace(newer);
            let replaced = replaced.filter(|c| c.name() != newer.name());
            old.extend(replaced.map(|c| (c.name(), c.bytes)));
        }
        let next = layout.covered().next();
        let after = layout.segments.partition_point(|s| s.head.first <= next);
        let gone = layout.segments.drain(..after.saturating_sub(1));
        old.extend(gone.map(|s| (s.name(), s.head.bytes)));
        let histories: Vec<Archive> =
            (layout.past.archives.iter().copied().chain(settled.history)).collect();
        // The newest says up to where there are any.
        let newest = histories.last().copied();
        let (kept, forgotten): (Vec<Archive>, _) = histories
            .into_iter()
            .partition(|h| h.at_ms >= settled.forget_before_ms || Some(*h) == newest);
        old.extend(forgotten.iter().map(|h| (h.name(), h.bytes)));
        let first = layout.segments.first().map_or(next, |s| s.head.first);
        layout.past = Past::new(kept, first);
        self.publish_layout();
        for (name, _) in &old {
            self.disk.remove(name)?;
        }
        if !old.is_empty() {
            self.disk.sync_names()?;
        }
        Ok(old.iter().map(|(_, bytes)| bytes).sum())
    }

    fn publish_layout(&mut self) {
        self.publish
            .layout
            .send_replace(Arc::new(self.layout.clone()));
        (self.publish.notify)();
    }
}

/// The writer's thread, until the journal ends.
fn run(place: &Place, mut queue: mpsc::Receiver<Command>) {
    let stop = loop {
        let Some(first) = next_command(&mut queue) else {
            break Stop::Closed;
        };
        let worked = match place.lock().as_mut() {
            Some(writer) => writer.work(first, &mut queue),
            None => Err(Stop::Closed),
        };
        if let Err(stop) = worked {
            break stop;
        }
    };
    // From here on every send fails, and what was queued is dropped.
    drop(queue);
    let Some(mut writer) = place.lock().take() else {
        return;
    };
    if let Preparing::Running(job) = writer.preparing {
        // It only fills a file that the next start removes.
        let _ = job.join();
    }
    writer.publish.health(match stop {
        Stop::Closed => Health::Closed,
        Stop::Failed(failure) => Health::Failed(failure),
    });
}

/// The next command; `None` when all handles are gone.
///
/// Whoever waited for the last batch often sends the next record at once:
/// looking out for it a moment longer spares that record the time that it takes
/// to wake a sleeping thread, which is a good part of what a sync takes.
fn next_command(queue: &mut mpsc::Receiver<Command>) -> Option<Command> {
    let begin = Instant::now();
    while begin.elapsed() < LOOK_OUT {
        match queue.try_recv() {
            Ok(command) => return Some(command),
            Err(mpsc::error::TryRecvError::Disconnected) => return None,
            Err(mpsc::error::TryRecvError::Empty) => thread::yield_now(),
        }
    }
    queue.blocking_recv()
}

fn failed(during: &'static str) -> impl Fn(io::Error) -> Stop {
    move |error| {
        Stop::Failed(Failure::Io {
            during,
            message: error.to_string().into(),
        })
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

fn start_preparing(disk: &Arc<dyn Disk>, bytes: u64) -> Preparing {
    let on = Arc::clone(disk);
    let job = thread::Builder::new()
        .name("journal-next".to_owned())
        .spawn(move || prepare(on.as_ref(), bytes));
    match job {
        Ok(job) => Preparing::Running(job),
        Err(error) => Preparing::FailedAt(Instant::now(), error),
    }
}

fn settle(job: JoinHandle<io::Result<()>>) -> Preparing {
    let prepared = job
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the helper thread panicked")));
    match prepared {
        Ok(()) => Preparing::Ready,
        Err(error) => Preparing::FailedAt(Instant::now(), error),
    }
}

/// Makes the file of the next segment, full of zeros and synced.
fn prepare(disk: &dyn Disk, bytes: u64) -> io::Result<()> {
    // To find out by filling the disk would hurt others.
    if disk.room()? < bytes {
        return Err(io::ErrorKind::StorageFull.into());
    }
    let file = disk.create(PREPARED)?;
    let filled = fill_with_zeros(file.as_ref(), 0, bytes).and_then(|()| file.sync_all());
    if filled.is_err() {
        // Others need the room more than half a segment does.
        let _ = disk.remove(PREPARED);
    }
    filled
}

/// Gives the prepared file its header and name, both durable on return.
fn name_segment(disk: &dyn Disk, segment: Segment) -> io::Result<Box<dyn DiskFile>> {
    let file = disk.open(PREPARED)?;
    file.write_at(&segment.head.encode(), 0)?;
    file.sync_data()?;
    disk.rename(PREPARED, &segment.name())?;
    disk.sync_names()?;
    Ok(file)
}

/// Makes a segment at once, for a journal that has none.
pub(super) fn create_segment(
    disk: &dyn Disk,
    config: &Config,
    first: Lsn,
    before: Chain,
) -> Result<Segment, JournalError> {
    let bytes = config.segment_bytes;
    let segment = Segment {
        head: SegmentHead {
            bytes,
            first,
            before,
        },
    };
    prepare(disk, bytes)
        .and_then(|()| name_segment(disk, segment))
        .map_err(|error| {
            if is_full(&error) {
                JournalError::Full(bytes)
            } else {
                JournalError::Io(error)
            }
        })?;
    Ok(segment)
}
