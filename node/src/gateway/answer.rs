//! An answer on its way from a provider to who asked.
//!
//! ```text
//! question ─▶ first word ──▶ pieces … ──▶ Done ─▶ counted, place given back
//!               └─ a no: somebody else is asked      └─ broke off: an error, the lease is left
//! who asked hangs up ─▶ our half ends ─▶ the provider stops, and says Done
//! ```
//!
//! A task of its own passes the pieces on, so that an answer that nobody reads any more is
//! still brought to its end, counted and paid: it ends at once, but what was written until
//! then was written.
//!
//! What a provider claims is believed as far as it can be: a token is at least a byte of
//! what was read or written, and of an answer that came event by event there is at least
//! one event for each few tokens. What goes beyond is not counted, so that the receipt is
//! disputed.
//!
//! Absent: what the text means.

use std::time::Duration;

use suanli_protocol::{
    call::{PART_FRAME_BYTES_MAX, Part, Question},
    ids::AgreementId,
    registry::Reason,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use super::leases::Place;
use crate::{
    handle::NodeHandle,
    transport::{CallReader, CallWriter},
};

/// How long the first word may take: a long question in a long line.
const FIRST_WAIT: Duration = Duration::from_secs(600);
/// How long a provider may be silent in the middle of an answer.
const SILENCE_MAX: Duration = Duration::from_secs(60);
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
    /// Asks, and waits for the first word.
    pub(super) async fn begin(
        handle: &NodeHandle,
        mut place: Place,
        question: Question,
    ) -> Result<Self, NoAnswer> {
        let lost = |place: &mut Place, words: &str| {
            place.fails();
            Err(NoAnswer::Lost(words.to_owned()))
        };
        let call = match handle.call(place.provider).await {
            Ok(Ok(call)) => call,
            Ok(Err(why)) => return lost(&mut place, &why.to_string()),
            Err(_) => return Err(NoAnswer::Gone),
        };
        let (reader, mut writer) = call.split();
        if let Err(error) = writer.send(&question.encode()).await {
            return lost(&mut place, &error.to_string());
        }
        let count = Count::of(&question, place.agreement);
        let hears = Hears {
            handle: handle.clone(),
            place,
            count,
        };
        let (begins, begun) = oneshot::channel();
        let (pieces, answer) = mpsc::channel(PIECES_MAX);
        tokio::spawn(hears.hear((reader, writer), begins, pieces));
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

async fn next(reader: &mut CallReader) -> Option<Part> {
    let frame = reader.receive(PART_FRAME_BYTES_MAX).await.ok()??;
    Part::decode(&frame).ok()
}

/// What was seen of an answer.
#[derive(Debug)]
struct Count {
    agreement: AgreementId,
    streams: bool,
    question_bytes: u64,
    events: u64,
    bytes: u64,
}

impl Count {
    fn of(question: &Question, agreement: AgreementId) -> Self {
        Self {
            agreement,
            streams: question.streams,
            question_bytes: u64::try_from(question.body.len()).unwrap_or(u64::MAX),
            events: 0,
            bytes: 0,
        }
    }

    fn add(&mut self, piece: &[u8]) {
        self.events += 1;
        let bytes = u64::try_from(piece.len()).unwrap_or(u64::MAX);
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// Of what is claimed as much as can be.
    fn believe(&self, (read, written): (u64, u64)) -> (u64, u64) {
        let most = match self.streams {
            true => self.events.saturating_mul(PER_EVENT),
            false => u64::MAX,
        };
        (
            read.min(self.question_bytes.saturating_add(AROUND_QUESTION)),
            written.min(self.bytes).min(most),
        )
    }

    /// The most that an honest provider can claim of an answer that broke off.
    fn broken(&self) -> (u64, u64) {
        match self.events {
            0 => (0, 0),
            _ => self.believe((u64::MAX, self.events.saturating_add(ON_THE_WAY))),
        }
    }
}

/// Hears an answer to its end.
struct Hears {
    handle: NodeHandle,
    place: Place,
    count: Count,
}

impl Hears {
    /// Waits for the first word, for as long as somebody wants to hear it.
    async fn hear(
        mut self,
        (mut reader, mut writer): (CallReader, CallWriter),
        mut begins: oneshot::Sender<Result<(), NoAnswer>>,
        pieces: mpsc::Sender<Piece>,
    ) {
        let first = tokio::select! {
            first = timeout(FIRST_WAIT, next(&mut reader)) => first.ok().flatten(),
            () = begins.closed() => {
                let tokens = self.stop((&mut reader, &mut writer)).await;
                return self.tell(tokens).await;
            }
        };
        let no = match first {
            Some(first @ (Part::Event(_) | Part::Done { .. })) => {
                let _ = begins.send(Ok(()));
                return self.pass(first, (reader, writer), pieces).await;
            }
            Some(Part::Refused { status, body }) => NoAnswer::Refused(status, body.into_vec()),
            Some(Part::Declined(decline)) => {
                if decline.reason != Reason::BUSY && decline.reason != Reason::QUOTE_UNKNOWN {
                    self.place.fails();
                }
                NoAnswer::Declined(decline.reason)
            }
            None => {
                self.place.fails();
                NoAnswer::Lost("the provider ended the call".to_owned())
            }
        };
        // The place is given back before somebody asks for the next.
        drop(self);
        let _ = begins.send(Err(no));
    }

    async fn tell(mut self, tokens: (u64, u64)) {
        self.place.uses(tokens);
        let _ = self.handle.counted(self.count.agreement, tokens).await;
    }

    async fn pass(
        mut self,
        first: Part,
        (mut reader, mut writer): (CallReader, CallWriter),
        pieces: mpsc::Sender<Piece>,
    ) {
        let mut part = Some(first);
        let tokens = loop {
            match part {
                Some(Part::Event(piece)) => {
                    self.count.add(&piece);
                    if pieces.send(Piece::Event(piece.into_vec())).await.is_err() {
                        break self.stop((&mut reader, &mut writer)).await;
                    }
                }
                Some(Part::Done { read, written }) => {
                    let _ = pieces.send(Piece::Done).await;
                    break self.count.believe((read, written));
                }
                Some(Part::Refused { .. } | Part::Declined(_)) | None => {
                    self.place.fails();
                    let _ = pieces.send(Piece::Broken).await;
                    break self.count.broken();
                }
            }
            part = tokio::select! {
                part = timeout(SILENCE_MAX, next(&mut reader)) => part.ok().flatten(),
                () = pieces.closed() => break self.stop((&mut reader, &mut writer)).await,
            };
        };
        self.tell(tokens).await;
    }

    /// Nobody wants the rest: the provider is told, and says what it came to.
    async fn stop(&mut self, (reader, writer): (&mut CallReader, &mut CallWriter)) -> (u64, u64) {
        let _ = writer.close().await;
        let last = async {
            loop {
                match next(reader).await? {
                    Part::Event(piece) => self.count.add(&piece),
                    Part::Done { read, written } => return Some((read, written)),
                    Part::Refused { .. } | Part::Declined(_) => return None,
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

#[cfg(test)]
mod tests {
    use suanli_protocol::{ids::Hash, registry::Endpoint, wire::Bytes};

    use super::*;

    fn count(streams: bool) -> Count {
        let question = Question {
            agreement: AgreementId(Hash::of(b"lease")),
            endpoint: Endpoint::CHAT_COMPLETIONS,
            streams,
            body: Bytes::new(vec![b'x'; 100]).unwrap(),
        };
        Count::of(&question, question.agreement)
    }

    #[test]
    fn no_more_tokens_are_believed_than_there_can_be() {
        let mut count = count(true);
        assert_eq!(count.believe((5, 5)), (5, 0));
        count.add(&[b'x'; 1000]);
        assert_eq!(count.believe((5, 5)), (5, 5));
        assert_eq!(
            count.believe((u64::MAX, u64::MAX)),
            (100 + AROUND_QUESTION, PER_EVENT)
        );
        for _ in 0..9 {
            count.add(b"y");
        }
        assert_eq!(count.believe((0, 2000)).1, 640);
        let mut whole = self::count(false);
        whole.add(&[b'x'; 1000]);
        assert_eq!(whole.believe((0, 2000)).1, 1000);
    }

    #[test]
    fn of_what_broke_off_a_little_more_than_came_may_be_claimed() {
        let mut count = count(true);
        assert_eq!(count.broken(), (0, 0));
        count.add(&[b'x'; 100]);
        assert_eq!(count.broken(), (100 + AROUND_QUESTION, 64));
    }
}
