//! An answer on its way from a provider to who asked.
//!
//! ```text
//! question ─▶ first word ──▶ pieces … ──▶ Done ─▶ counted, place given back
//!     ▲         └─ a no: somebody       └─ broke off: counted, the lease is left
//!     │             else is asked             │
//!     └── the same, with what was written ────┤ another with the same weights
//!                                             └─ nobody: an error
//! who asked hangs up ─▶ our half ends ─▶ the provider stops, and says Done
//! ```
//!
//! A task of its own passes the pieces on, so that an answer that nobody reads any more is
//! still brought to its end, counted and paid: it ends at once, but what was written until
//! then was written.
//!
//! What a provider claims is believed as far as it can be: a token is at least a byte of
//! what was read or written; of an answer that came event by event there is at least one
//! event for each few tokens; and who says which tokens it wrote is paid for no others. What
//! goes beyond is not counted, so that the receipt is disputed.
//!
//! Absent: what the text means.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use suanli_protocol::{
    call::{Begun, PART_FRAME_BYTES_MAX, Part, Question, is_of_the_question},
    ids::{AgreementId, PeerId},
    limits::CALL_BEGUN_TOKENS_MAX,
    registry::Reason,
    wire::List,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use super::{
    Asker, Before, Gateway, SETTLE, TRIES,
    audits::{self, Audit},
    leases::Place,
};
use crate::transport::{CallReader, CallWriter};

/// How long the first word may take: a long question in a long line.
pub(super) const FIRST_WAIT: Duration = Duration::from_secs(600);
/// How long a turn may take that so many others come before, for each of them and itself.
const LINE_WAIT: Duration = Duration::from_secs(120);
/// How long a provider may be silent in the middle of an answer.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// The same where another could go on, for each time of the longest pause until then,
const PATIENCE: u32 = 10;
/// but no less than this: other questions hold an answer up.
const SILENCE_MIN: Duration = Duration::from_secs(2);
/// Pauses after which it is known how long they are.
const PAUSES_KNOWN: u64 = 4;
/// How long the last word may take, once it was asked for.
const LAST_WAIT: Duration = Duration::from_secs(10);
/// Pieces that wait for who asked.
const PIECES_MAX: usize = 32;
/// Tokens that stand around a question: a template, roles, what a server adds.
const AROUND_QUESTION: u64 = 1024;
/// Tokens that one event of an answer may bring: servers gather them under load.
const PER_EVENT: u64 = 64;
/// Tokens that may have been on their way when an answer broke off.
const ON_THE_WAY: u64 = 64;

/// Why an answer did not begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoAnswer {
    /// The model's server refuses the question.
    Refused(u16, Vec<u8>),
    /// So many questions come first, and somebody else may have a place.
    Queued(u32),
    /// The provider can't answer.
    Declined(Reason),
    /// The provider is lost.
    Lost(String),
    /// The node is stopping.
    Gone,
}

/// An answer that has begun.
#[derive(Debug)]
pub struct Answer {
    pieces: mpsc::Receiver<Piece>,
}

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// The next event, or the next bytes of an answer that comes as one.
    Event(Vec<u8>),
    /// It is whole.
    Done,
    /// It broke off.
    Broken,
}

impl Answer {
    /// Asks, and waits for the first word. What was found before decides for how long.
    pub(super) async fn begin(
        gateway: &Gateway,
        asker: &Asker,
        (mut place, question): (Place, Question),
        before: &Before,
    ) -> Result<Self, NoAnswer> {
        let call = call(gateway, &mut place, &question).await?;
        let hears = Hears {
            gateway: gateway.clone(),
            asker: asker.clone(),
            count: Count::of(&question, place.agreement),
            place,
            written: Written::default(),
            question,
            left: BTreeSet::new(),
        };
        let (begins, begun) = oneshot::channel();
        let (pieces, answer) = mpsc::channel(PIECES_MAX);
        tokio::spawn(hears.hear(call, (begins, before.clone()), pieces));
        match begun.await {
            Ok(Ok(())) => Ok(Self { pieces: answer }),
            Ok(Err(no)) => Err(no),
            Err(_) => Err(NoAnswer::Gone),
        }
    }

    /// The next piece; none after the last.
    pub async fn next(&mut self) -> Option<Piece> {
        self.pieces.recv().await
    }
}

/// Calls a provider, and says the question.
pub(super) async fn call(
    gateway: &Gateway,
    place: &mut Place,
    question: &Question,
) -> Result<Halves, NoAnswer> {
    match gateway.handle.call(place.provider).await {
        Ok(Ok(call)) => {
            let (reader, mut writer) = call.split();
            // Who declines may hear nothing of the question; what comes back says so.
            let _ = writer.send(&question.encode()).await;
            Ok((reader, writer))
        }
        Ok(Err(why)) => {
            place.fails();
            Err(NoAnswer::Lost(why.to_string()))
        }
        Err(_) => Err(NoAnswer::Gone),
    }
}

pub(super) async fn next(reader: &mut CallReader) -> Option<Part> {
    let frame = reader.receive(PART_FRAME_BYTES_MAX).await.ok()??;
    Part::decode(&frame).ok()
}

async fn within(wait: Duration, reader: &mut CallReader) -> Option<Part> {
    timeout(wait, next(reader)).await.ok().flatten()
}

/// The first word of who goes on, if its turn comes soon.
async fn turn(reader: &mut CallReader) -> Option<Part> {
    match within(SILENCE_MAX, reader).await? {
        Part::Queued { .. } => within(SILENCE_MAX, reader).await,
        part => Some(part),
    }
}

/// What was seen of an answer of one provider.
#[derive(Debug)]
pub(super) struct Count {
    agreement: AgreementId,
    streams: bool,
    question_bytes: u64,
    begun: u64,
    events: u64,
    bytes: u64,
    /// Tokens that it named; none once an event came without.
    tokens: Option<u64>,
    /// When the last event came,
    last: Instant,
    /// and the longest pause between two.
    pause: Duration,
}

impl Count {
    pub(super) fn of(question: &Question, agreement: AgreementId) -> Self {
        let length = |length: usize| u64::try_from(length).unwrap_or(u64::MAX);
        Self {
            agreement,
            streams: question.streams,
            question_bytes: length(question.body.len()),
            begun: length(question.begun.tokens.len()),
            events: 0,
            bytes: 0,
            tokens: Some(0),
            last: Instant::now(),
            pause: Duration::ZERO,
        }
    }

    pub(super) fn add(&mut self, piece: &[u8], tokens: Option<usize>) {
        if self.events > 0 {
            self.pause = self.pause.max(self.last.elapsed());
        }
        self.last = Instant::now();
        self.events += 1;
        let bytes = u64::try_from(piece.len()).unwrap_or(u64::MAX);
        self.bytes = self.bytes.saturating_add(bytes);
        let tokens = tokens.and_then(|tokens| u64::try_from(tokens).ok());
        self.tokens = self.tokens.zip(tokens).map(|(sum, more)| sum + more);
    }

    /// How long the next event is waited for.
    fn patience(&self) -> Duration {
        // What comes as one comes at once: that says nothing of pauses.
        let is_known = self.streams && self.tokens.is_some() && self.events > PAUSES_KNOWN;
        match is_known {
            true => (self.pause * PATIENCE).clamp(SILENCE_MIN, SILENCE_MAX),
            false => SILENCE_MAX,
        }
    }

    /// Of what is claimed as much as can be.
    pub(super) fn believe(&self, (read, written): (u64, u64)) -> (u64, u64) {
        let by_events = match self.streams {
            true => self.events.saturating_mul(PER_EVENT),
            false => u64::MAX,
        };
        let named = self.tokens.filter(|_| self.events > 0);
        let most = by_events.min(self.bytes).min(named.unwrap_or(u64::MAX));
        let asked = self.question_bytes.saturating_add(AROUND_QUESTION);
        (
            read.min(asked.saturating_add(self.begun)),
            written.min(most),
        )
    }

    /// What an answer that broke off has probably taken.
    fn seen(&self) -> (u64, u64) {
        let (read, written) = self.believe((self.question_bytes / 4 + self.begun, u64::MAX));
        match (self.events, self.tokens) {
            (0, _) => (0, 0),
            (_, Some(_)) => (read, written),
            (events, None) => (read, written.min(events)),
        }
    }

    /// The most that an honest provider can claim of an answer that broke off.
    fn broken(&self) -> (u64, u64) {
        let (read, most) = self.believe((u64::MAX, self.events.saturating_add(ON_THE_WAY)));
        match (self.events, self.tokens) {
            (0, _) => (0, 0),
            (_, Some(_)) => (read, most.saturating_add(ON_THE_WAY)),
            (_, None) => (read, most),
        }
    }
}

/// What is written of an answer.
#[derive(Debug, Default)]
struct Written {
    tokens: Vec<u32>,
    draws: u64,
    /// Something came that names no tokens: nobody else can go on after it.
    is_plain: bool,
    /// Its text is whole.
    is_whole: bool,
}

impl Written {
    fn add(&mut self, tokens: &[u32], draws: u64) {
        self.draws = draws;
        if self.tokens.len() + tokens.len() > CALL_BEGUN_TOKENS_MAX {
            self.is_plain = true;
        }
        if !self.is_plain {
            self.tokens.extend_from_slice(tokens);
        }
    }

    fn begun(&self) -> Option<Begun> {
        let tokens = List::new(self.tokens.clone()).ok()?;
        (!self.is_plain).then_some(Begun {
            tokens,
            draws: self.draws,
        })
    }
}

/// How a provider's part of an answer ended.
enum Ending {
    /// The answer is over: so many tokens were read and written.
    Over((u64, u64)),
    /// Nobody wants the rest; so many were.
    Left((u64, u64)),
    /// The provider is lost, or has failed.
    Lost,
    /// The lease is over, or used up.
    Expired,
}

/// Both halves of a call.
type Halves = (CallReader, CallWriter);

/// Hears an answer to its end.
struct Hears {
    gateway: Gateway,
    asker: Asker,
    question: Question,
    place: Place,
    count: Count,
    written: Written,
    /// Providers that were lost on the way.
    left: BTreeSet<PeerId>,
}

impl Hears {
    /// Waits for the first word, for as long as somebody wants to hear it.
    async fn hear(
        mut self,
        (mut reader, mut writer): Halves,
        (mut begins, before): (oneshot::Sender<Result<(), NoAnswer>>, Before),
        pieces: mpsc::Sender<Piece>,
    ) {
        let first = tokio::select! {
            first = self.first(&mut reader, &before) => first,
            () = begins.closed() => {
                let tokens = self.stop((&mut reader, &mut writer)).await;
                return self.tell(tokens).await;
            }
        };
        match first.and_then(|first| self.begins(first)) {
            Ok(first) => {
                let _ = begins.send(Ok(()));
                self.pass_all(first, (reader, writer), pieces).await;
            }
            Err(no @ NoAnswer::Queued(_)) => {
                self.place.give_back();
                let _ = begins.send(Err(no));
                // Its turn may have come by now, and what was read then is paid.
                let tokens = self.stop((&mut reader, &mut writer)).await;
                self.tell(tokens).await;
            }
            Err(no) => {
                // The place is given back before somebody asks for the next.
                drop(self);
                let _ = begins.send(Err(no));
            }
        }
    }

    /// The first word, once it is the question's turn.
    async fn first(
        &self,
        reader: &mut CallReader,
        before: &Before,
    ) -> Result<Option<Part>, NoAnswer> {
        let first = within(FIRST_WAIT, reader).await;
        let Some(Part::Queued { ahead }) = first else {
            return Ok(first);
        };
        let line = (self.place.provider, ahead);
        if self.gateway.leaves(&self.asker.model, before, line).await {
            return Err(NoAnswer::Queued(ahead));
        }
        let wait = LINE_WAIT.saturating_mul(ahead.saturating_add(1));
        Ok(within(wait.min(FIRST_WAIT), reader).await)
    }

    /// Whether a first word begins an answer.
    fn begins(&mut self, first: Option<Part>) -> Result<Part, NoAnswer> {
        match first {
            Some(first @ (Part::Event(_) | Part::Wrote { .. } | Part::Done { .. })) => Ok(first),
            Some(Part::Refused { status, body }) if is_of_the_question(status) => {
                Err(NoAnswer::Refused(status, body.into_vec()))
            }
            Some(Part::Declined(decline)) => {
                if !MAY_BE_WELL.contains(&decline.reason) {
                    self.place.fails();
                }
                Err(NoAnswer::Declined(decline.reason))
            }
            Some(Part::Refused { .. } | Part::Queued { .. }) | None => {
                self.place.fails();
                Err(NoAnswer::Lost("the provider ended the call".to_owned()))
            }
        }
    }

    /// Says what a provider's part of the answer took.
    async fn tell(&mut self, tokens: (u64, u64)) {
        self.place.uses(tokens);
        let counted = self.gateway.handle.counted(self.count.agreement, tokens);
        let _ = counted.await;
    }

    /// Passes pieces on until the answer is over, from one provider after the other.
    async fn pass_all(mut self, first: Part, call: Halves, pieces: mpsc::Sender<Piece>) {
        let mut part = Some((first, call));
        while let Some((first, call)) = part.take() {
            match self.pass(first, call, &pieces).await {
                // Counted first: who hears it may be slow, and the receipt does not wait.
                Ending::Over(tokens) => {
                    self.tell(tokens).await;
                    let _ = pieces.send(Piece::Done).await;
                    return self.audit();
                }
                Ending::Left(tokens) => return self.tell(tokens).await,
                // The same provider may go on, under another lease.
                Ending::Expired => {
                    self.breaks().await;
                    self.place.ends();
                }
                Ending::Lost => {
                    self.place.fails();
                    self.breaks().await;
                    self.left.insert(self.place.provider);
                }
            }
            if self.written.is_whole && self.question.streams {
                let _ = pieces.send(Piece::Done).await;
                return;
            }
            part = self.go_on(&pieces).await;
        }
        let _ = pieces.send(Piece::Broken).await;
    }

    /// Has an answer that one provider wrote scored by others, if chance wants it.
    fn audit(self) {
        let is_one = self.left.is_empty() && self.question.begun.tokens.is_empty();
        let wanted = || audits::is_wanted(self.gateway.handle.facts().audit_percent);
        let (Some(weights), Some(account), Some(begun), true) = (
            self.place.weights,
            self.place.account,
            self.written.begun(),
            is_one && wanted(),
        ) else {
            return;
        };
        let gateway = self.gateway.clone();
        let audit = Audit {
            model: self.asker.model.clone(),
            writer: self.place.provider,
            account,
            weights,
            question: self.question.clone(),
            begun,
        };
        tokio::spawn(audit.run(gateway));
    }

    /// A provider's part has broken off: it may claim a little more than came.
    async fn breaks(&mut self) {
        self.place.uses(self.count.seen());
        let (agreement, most) = (self.count.agreement, self.count.broken());
        let _ = self.gateway.handle.counted(agreement, most).await;
    }

    async fn pass(
        &mut self,
        first: Part,
        (mut reader, mut writer): Halves,
        pieces: &mpsc::Sender<Piece>,
    ) -> Ending {
        let mut part = Some(first);
        loop {
            match part {
                Some(Part::Done { read, written }) => {
                    return Ending::Over(self.count.believe((read, written)));
                }
                Some(Part::Declined(decline)) if decline.reason == Reason::QUOTE_EXPIRED => {
                    return Ending::Expired;
                }
                Some(part) => match self.note(part) {
                    Some(piece) => {
                        if pieces.send(Piece::Event(piece)).await.is_err() {
                            return Ending::Left(self.stop((&mut reader, &mut writer)).await);
                        }
                    }
                    None => return Ending::Lost,
                },
                None => return Ending::Lost,
            }
            part = tokio::select! {
                part = timeout(self.count.patience(), next(&mut reader)) => part.ok().flatten(),
                () = pieces.closed() => {
                    return Ending::Left(self.stop((&mut reader, &mut writer)).await);
                }
            };
        }
    }

    /// Counts a piece; none if it is no piece, or an empty one.
    fn note(&mut self, part: Part) -> Option<Vec<u8>> {
        match part {
            Part::Event(event) | Part::Wrote { event, .. } if event.is_empty() => None,
            Part::Event(event) => {
                self.written.is_plain = true;
                self.count.add(&event, None);
                Some(event.into_vec())
            }
            Part::Wrote {
                event,
                tokens,
                draws,
                is_whole,
            } => {
                self.written.is_whole = is_whole;
                self.count.add(&event, Some(tokens.len()));
                self.written.add(&tokens, draws);
                Some(event.into_vec())
            }
            Part::Done { .. } | Part::Refused { .. } | Part::Declined(_) | Part::Queued { .. } => {
                None
            }
        }
    }

    /// Another provider that goes on, and its first word; none where nobody does, or nobody
    /// wants the rest any more.
    async fn go_on(&mut self, pieces: &mpsc::Sender<Piece>) -> Option<(Part, Halves)> {
        let weights = self.place.weights.filter(|_| self.question.streams)?;
        self.question.begun = self.written.begun()?;
        for _ in 0..TRIES {
            let others = self.gateway.others(&self.asker.model, weights).await;
            let avoid = others.ok()?.union(&self.left).copied().collect();
            let leases = &self.gateway.leases;
            let taken = tokio::select! {
                taken = leases.take(&self.asker, &avoid) => taken,
                () = pieces.closed() => return None,
            };
            let place = taken.ok()?;
            if place.weights != Some(weights) {
                self.left.insert(place.provider);
                continue;
            }
            self.question.agreement = place.agreement;
            self.count = Count::of(&self.question, place.agreement);
            self.place = place;
            match self.ask_again(pieces).await {
                Ok(begun) => {
                    tracing::info!(provider = %self.place.provider, "an answer goes on elsewhere");
                    return Some(begun);
                }
                Err(NoAnswer::Declined(Reason::QUOTE_UNKNOWN)) => tokio::time::sleep(SETTLE).await,
                Err(NoAnswer::Gone) => return None,
                Err(_) => drop(self.left.insert(self.place.provider)),
            }
        }
        None
    }

    /// [`NoAnswer::Gone`] if nobody wants it any more.
    async fn ask_again(
        &mut self,
        pieces: &mpsc::Sender<Piece>,
    ) -> Result<(Part, Halves), NoAnswer> {
        let (mut reader, mut writer) = call(&self.gateway, &mut self.place, &self.question).await?;
        let first = tokio::select! {
            first = turn(&mut reader) => first,
            // It reads already, and is told to stop.
            () = pieces.closed() => {
                let tokens = self.stop((&mut reader, &mut writer)).await;
                self.tell(tokens).await;
                return Err(NoAnswer::Gone);
            }
        };
        let first = self.begins(first)?;
        Ok((first, (reader, writer)))
    }

    /// Nobody wants the rest: the provider is told, and says what it came to.
    async fn stop(&mut self, (reader, writer): (&mut CallReader, &mut CallWriter)) -> (u64, u64) {
        let _ = writer.close().await;
        let last = async {
            loop {
                match next(reader).await? {
                    Part::Done { read, written } => return Some((read, written)),
                    // It has not begun.
                    Part::Queued { .. } => {}
                    part => drop(self.note(part)?),
                }
            }
        };
        let last = timeout(LAST_WAIT, last).await.ok().flatten();
        match last {
            Some(claimed) => self.count.believe(claimed),
            None => {
                self.place.fails();
                self.count.broken()
            }
        }
    }
}

/// What a provider says that may serve the next question well.
const MAY_BE_WELL: [Reason; 3] = [Reason::BUSY, Reason::QUOTE_UNKNOWN, Reason::NOT_RESUMABLE];

#[cfg(test)]
mod tests {
    use suanli_protocol::{ids::Hash, registry::Endpoint, wire::Bytes};

    use super::*;

    fn count(streams: bool) -> Count {
        let question = Question {
            agreement: AgreementId(Hash::of(b"lease")),
            endpoint: Endpoint::CHAT_COMPLETIONS,
            streams,
            answer: [0; 16],
            asked_s: 0,
            begun: Begun::default(),
            body: Bytes::new(vec![b'x'; 100]).unwrap(),
        };
        Count::of(&question, question.agreement)
    }

    #[test]
    fn no_more_tokens_are_believed_than_there_can_be() {
        let mut count = count(true);
        assert_eq!(count.believe((5, 5)), (5, 0));
        count.add(&[b'x'; 1000], None);
        assert_eq!(count.believe((5, 5)), (5, 5));
        assert_eq!(
            count.believe((u64::MAX, u64::MAX)),
            (100 + AROUND_QUESTION, PER_EVENT)
        );
        for _ in 0..9 {
            count.add(b"y", None);
        }
        assert_eq!(count.believe((0, 2000)).1, 640);
        let mut whole = self::count(false);
        whole.add(&[b'x'; 1000], None);
        assert_eq!(whole.believe((0, 2000)).1, 1000);
    }

    #[test]
    fn tokens_that_were_named_are_what_is_paid() {
        let mut count = count(true);
        count.add(&[b'x'; 1000], Some(0));
        count.add(&[b'x'; 1000], Some(2));
        assert_eq!(count.believe((5, 1)), (5, 1));
        assert_eq!(count.believe((5, 2000)), (5, 2));
        assert_eq!(count.broken(), (100 + AROUND_QUESTION, 2 + ON_THE_WAY));
        count.add(&[b'x'; 1000], None);
        assert_eq!(count.believe((5, 2000)), (5, 3 * PER_EVENT));
    }

    #[test]
    fn of_what_broke_off_a_little_more_than_came_may_be_claimed() {
        let mut count = count(true);
        assert_eq!(count.broken(), (0, 0));
        count.add(&[b'x'; 100], None);
        assert_eq!(count.broken(), (100 + AROUND_QUESTION, 64));
    }
}
