//! Who waits for an offer to be in the book.

use std::collections::VecDeque;

use suanli_protocol::{book::Book, ids::PeerId};
use tokio::sync::oneshot;

/// Those who may wait; one more, and the earliest is given up.
const WAITING_MAX: usize = 64;

/// Those who wait, earliest first.
#[derive(Debug, Default)]
pub(super) struct Awaited {
    waiting: VecDeque<Wanted>,
}

#[derive(Debug)]
struct Wanted {
    provider: PeerId,
    sequence: u64,
    reply: oneshot::Sender<()>,
}

impl Awaited {
    /// Somebody waits for a provider's offer, of this sequence or a later one.
    pub(super) fn add(&mut self, provider: PeerId, sequence: u64, reply: oneshot::Sender<()>) {
        self.waiting.retain(|wanted| !wanted.reply.is_closed());
        if self.waiting.len() == WAITING_MAX {
            self.waiting.pop_front();
        }
        self.waiting.push_back(Wanted {
            provider,
            sequence,
            reply,
        });
    }

    /// Answers those whose offer is there.
    pub(super) fn answer(&mut self, book: &Book) {
        let reached = |wanted: &Wanted| {
            let offer = book.of(wanted.provider);
            offer.is_some_and(|offer| offer.body().sequence >= wanted.sequence)
        };
        while let Some(n) = self.waiting.iter().position(reached) {
            if let Some(wanted) = self.waiting.remove(n) {
                // Who has gone meanwhile needs no answer.
                let _ = wanted.reply.send(());
            }
        }
    }
}
