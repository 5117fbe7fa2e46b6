//! What happened: one hash over all of it, and lines for people.
//!
//! The hash covers every delivered event in order. Lines are kept only when
//! asked for: a run that fails is run again with them, which shows the same.

use std::{collections::BTreeSet, fmt};

use suanli_protocol::{
    deal::Checkpoint,
    ids::{AgreementId, ChannelId, Hash, JobId, NetworkId, ReceiptId, RequestId},
    message::{Message, Progress},
    units::Mono,
};

/// What a line or a complaint is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// A job.
    Job(JobId),
    /// A request for it.
    Request(RequestId),
    /// An agreement over it.
    Agreement(AgreementId),
    /// A receipt of an agreement.
    Receipt(ReceiptId),
    /// A running account.
    Channel(ChannelId),
    /// A node, by its number.
    Node(usize),
}

/// Something that happened.
#[derive(Debug, Clone)]
pub struct Line {
    /// When.
    pub at: Mono,
    /// What.
    pub text: String,
    /// About what.
    pub subjects: Vec<Subject>,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = self.at.as_micros();
        write!(
            f,
            "{:>4}.{:06} {}",
            micros / 1_000_000,
            micros % 1_000_000,
            self.text
        )
    }
}

/// Lines that a timeline has at most.
const TIMELINE_MAX: usize = 120;

/// The lines that concern some subjects, and what those led to. The last ones,
/// where there are too many.
pub fn timeline<'a>(lines: &'a [Line], about: &[Subject]) -> Vec<&'a Line> {
    let mut wanted: BTreeSet<Subject> = about.iter().copied().collect();
    // From a job to its requests and agreements, and back from an agreement.
    for _ in 0..2 {
        for line in lines {
            let leads_on = line.subjects.iter().any(|subject| wanted.contains(subject));
            if leads_on {
                wanted.extend(line.subjects.iter().copied().filter(|subject| {
                    matches!(
                        subject,
                        Subject::Job(_) | Subject::Request(_) | Subject::Agreement(_)
                    )
                }));
            }
        }
    }
    let all: Vec<&Line> = lines
        .iter()
        .filter(|line| line.subjects.iter().any(|subject| wanted.contains(subject)))
        .collect();
    all[all.len().saturating_sub(TIMELINE_MAX)..].to_vec()
}

#[derive(Debug)]
pub(crate) struct Trace {
    hasher: blake3::Hasher,
    pub(crate) events: u64,
    pub(crate) lines: Option<Vec<Line>>,
}

impl Trace {
    pub(crate) fn new(record: bool) -> Self {
        Self {
            hasher: blake3::Hasher::new(),
            events: 0,
            lines: record.then(Vec::new),
        }
    }

    /// An event was delivered.
    pub(crate) fn event(&mut self, at: Mono, tag: u8, nodes: [usize; 2], payload: &[u8]) {
        self.events += 1;
        self.hasher.update(&at.as_micros().to_le_bytes());
        self.hasher.update(&[tag]);
        for node in nodes {
            let node = u64::try_from(node).unwrap_or(u64::MAX);
            self.hasher.update(&node.to_le_bytes());
        }
        let length = u64::try_from(payload.len()).unwrap_or(u64::MAX);
        self.hasher.update(&length.to_le_bytes());
        self.hasher.update(payload);
    }

    pub(crate) fn hash(&self) -> Hash {
        Hash::from_bytes(*self.hasher.finalize().as_bytes())
    }

    /// Says something to people, if they listen.
    pub(crate) fn say(&mut self, at: Mono, line: impl FnOnce() -> (String, Vec<Subject>)) {
        if let Some(lines) = &mut self.lines {
            let (text, subjects) = line();
            lines.push(Line { at, text, subjects });
        }
    }
}

/// A message in a few words, and what it is about.
pub(crate) fn describe(message: &Message, network: NetworkId) -> (String, Vec<Subject>) {
    use Subject as S;
    let channel =
        |parties: &suanli_protocol::voucher::Parties| S::Channel(parties.channel(network));
    match message {
        Message::Ask(request) => {
            let (id, body) = (RequestId(request.hash()), request.body());
            let how = match (body.take, body.counter) {
                (true, _) => "take",
                (_, Some(_)) => "counter",
                _ => "ask",
            };
            let text = format!("{how} {id} for job {} attempt {}", body.job, body.attempt);
            (text, vec![S::Job(body.job), S::Request(id)])
        }
        Message::Quoted(quote) => {
            let (id, body) = (AgreementId(quote.hash()), quote.body());
            (
                format!("quote {id} for {}, at most {}", body.request, body.cap),
                vec![S::Job(body.job), S::Request(body.request), S::Agreement(id)],
            )
        }
        Message::Declined(request, decline) => (
            format!("declined {request}: {}", decline.reason),
            vec![S::Request(*request)],
        ),
        Message::Agree(agreement, _) => (
            format!("agree to {}", agreement.body().quote),
            vec![
                S::Job(agreement.body().job),
                S::Agreement(agreement.body().quote.into()),
            ],
        ),
        Message::Agreed(id) => (format!("agreed {id}"), vec![S::Agreement(*id)]),
        Message::AgreeRefused(id, decline) => (
            format!("refused to agree {id}: {}", decline.reason),
            vec![S::Agreement(*id)],
        ),
        Message::Release(quote) => (
            format!("release {quote}"),
            vec![S::Agreement((*quote).into())],
        ),
        Message::Progress(_)
        | Message::Log(_)
        | Message::Cancel(_)
        | Message::Checkpoint(..)
        | Message::Resume(..)
        | Message::Lost(_) => describe_execution(message),
        Message::Receipt(..)
        | Message::Acceptance(_)
        | Message::Voucher(_)
        | Message::VoucherAck(_)
        | Message::Heads(_)
        | Message::Settlement(_) => describe_account(message, channel),
        Message::Pull(pull) => (format!("pull, knowing {}", pull.known.len()), vec![]),
        Message::Offers { offers, .. } => (format!("{} offers", offers.len()), vec![]),
        Message::AskReferences => ("references?".to_owned(), vec![]),
        Message::References { references, .. } => {
            (format!("{} references", references.len()), vec![])
        }
        challenge => (describe_challenge(challenge), vec![]),
    }
}

fn describe_execution(message: &Message) -> (String, Vec<Subject>) {
    let (text, agreement) = match message {
        Message::Progress(progress) => {
            let Progress {
                agreement,
                unit,
                done,
                total,
                ..
            } = progress;
            let text = format!("progress {agreement} unit {unit}: {done} of {total}");
            (text, *agreement)
        }
        Message::Log(line) => (format!("log {}", line.agreement), line.agreement),
        Message::Cancel(id) => (format!("cancel {id}"), *id),
        Message::Checkpoint(id, kept, _) => {
            let Checkpoint { unit, done, .. } = kept;
            (format!("checkpoint {id} unit {unit} after {done}"), *id)
        }
        Message::Resume(id, have, _, kept) => {
            let (have, kept) = (have.len(), kept.len());
            let text = format!("resume {id} with {have} receipts, {kept} checkpoints");
            (text, *id)
        }
        Message::Lost(id) => (format!("lost {id}"), *id),
        _ => return (String::new(), Vec::new()),
    };
    (text, vec![Subject::Agreement(agreement)])
}

fn describe_challenge(message: &Message) -> String {
    match message {
        Message::Challenge(_, challenge) => {
            format!("challenge of {} operations", challenge.operations())
        }
        Message::ChallengeDeclined(_, decline) => {
            format!("challenge declined: {}", decline.reason)
        }
        Message::Committed(_, root) => format!("committed to {root}"),
        Message::Opened(_, opening) => format!("{} rows opened", opening.rows.len()),
        _ => "open the commitment".to_owned(),
    }
}

fn describe_account(
    message: &Message,
    channel: impl Fn(&suanli_protocol::voucher::Parties) -> Subject,
) -> (String, Vec<Subject>) {
    use Subject as S;
    match message {
        Message::Receipt(receipt, _) => {
            let (id, body) = (ReceiptId(receipt.hash()), receipt.body());
            let text = format!(
                "receipt {id} of {} unit {} part {}: {:?}, {}",
                body.key.agreement, body.key.unit, body.key.index, body.outcome, body.amount
            );
            (text, vec![S::Agreement(body.key.agreement), S::Receipt(id)])
        }
        Message::Acceptance(acceptance) => {
            let body = acceptance.body();
            (
                format!("word on {}: {:?}", body.receipt, body.verdict),
                vec![S::Agreement(body.key.agreement), S::Receipt(body.receipt)],
            )
        }
        Message::Voucher(voucher) => {
            let body = voucher.body();
            let mut subjects = vec![channel(&body.parties)];
            subjects.extend(body.receipts.iter().map(|receipt| S::Receipt(*receipt)));
            let id = voucher.hash();
            let text = format!(
                "voucher {id} number {}, {:?}",
                body.sequence, body.cumulative
            );
            (text, subjects)
        }
        Message::VoucherAck(ack) => {
            let body = ack.body();
            let text = format!("acknowledged voucher number {}", body.sequence);
            (text, vec![channel(&body.parties)])
        }
        Message::Heads(heads) => {
            let at = |sequence: Option<u64>| sequence.unwrap_or(0);
            let text = format!(
                "heads at voucher {}, acknowledged {}{}",
                at(heads.voucher.as_ref().map(|v| v.body().sequence)),
                at(heads.ack.as_ref().map(|a| a.body().sequence)),
                if heads.reply { ", and yours?" } else { "" }
            );
            (text, vec![S::Channel(heads.channel)])
        }
        Message::Settlement(settlement) => (
            "settlement".into(),
            vec![channel(&settlement.body().parties)],
        ),
        _ => (String::new(), vec![]),
    }
}
