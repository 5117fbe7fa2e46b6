//! The statement of a channel: all that was signed on it, and what follows.
//!
//! A [`Statement`] is made of signed documents and of nothing else that counts:
//! receipts, the vouchers that pay them, acknowledgements, settlements. What it says
//! beside them (amounts, balances, who owes what) follows from them, so that
//! [`Statement::verify`] can make it anew, without a node or a network, and compare.
//! It is the invoice as well: the payee has signed each receipt with its amount, that
//! it has the voucher over the total, and what of it is paid.
//!
//! Absent: receipts that no voucher pays, and the deals that receipts go back to; a
//! receipt's bundle proves those.

use std::{collections::BTreeMap, fmt::Write as _};

use serde::{Deserialize, Serialize};
use suanli_protocol::{
    envelope::{Body, Envelope, Verified},
    ids::{AccountId, ChannelId, Hash, JobId, NetworkId, PeerId, ReceiptId, VoucherId, hex},
    limits::ENVELOPE_BYTES_MAX,
    receipt::Receipt,
    registry::kind,
    units::{Amount, Total},
    voucher::{NO_ROOT, NO_VOUCHER, Parties, Settlement, Voucher, VoucherAck, next_root},
};

/// Bytes of a statement's file that is read, at most.
pub const STATEMENT_BYTES_MAX: u64 = 256 << 20;

/// A signed document, and what is known of it besides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    /// Of a receipt: its job, which the receipt names by its agreement only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobId>,
    /// The whole envelope, in hex.
    pub signed: String,
}

impl Document {
    /// Of a signed document.
    pub fn of<T: Body>(job: Option<JobId>, document: &Verified<T>) -> Self {
        Self {
            job,
            signed: hex(document.bytes()),
        }
    }
}

/// What a document says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[expect(missing_docs, reason = "fields are what they are called")]
pub enum Entry {
    Receipt {
        receipt: ReceiptId,
        unit: u32,
        ended_ms: u64,
        outcome: String,
        usage: Vec<(String, u64)>,
        amount: Amount,
    },
    Voucher {
        sequence: u64,
        at_ms: u64,
        /// What the receipts above it come to; none if earlier vouchers are not in here.
        adds: Option<Amount>,
        owed: String,
    },
    Acknowledged {
        sequence: u64,
        at_ms: u64,
    },
    Settlement {
        sequence: u64,
        at_ms: u64,
        reference: String,
        paid: Amount,
        settled: String,
    },
    /// A second voucher with the number of another: the payer's lie.
    Contradiction {
        sequence: u64,
        at_ms: u64,
    },
}

/// A document, and what it says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// What it says.
    #[serde(flatten)]
    pub entry: Entry,
    /// It.
    #[serde(flatten)]
    pub document: Document,
}

/// All of a channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "fields are what they are called")]
pub struct Statement {
    pub network: String,
    pub unit: String,
    pub channel: ChannelId,
    pub payer: PeerId,
    pub payer_account: AccountId,
    pub payee: PeerId,
    pub payee_account: AccountId,
    /// What was owed before the first voucher here.
    pub opening: String,
    /// What all vouchers come to, what of it the payee has acknowledged,
    pub owed: String,
    pub acknowledged: String,
    /// what is paid, and what is left of either.
    pub settled: String,
    pub outstanding: String,
    pub prepaid: String,
    /// Whether the payer has contradicted itself.
    pub frozen: bool,
    pub lines: Vec<Line>,
}

/// Why documents are no statement.
#[derive(Debug, thiserror::Error)]
pub enum StatementError {
    /// Nothing is signed yet.
    #[error("nothing is owed or paid on it yet; the first voucher begins a statement")]
    Empty,
    /// A document that is none, or not signed as it must be.
    #[error("document {number} is not valid: {why}")]
    Document {
        /// Which, from 1.
        number: usize,
        /// Why.
        why: String,
    },
    /// What is stated does not follow.
    #[error("what it says does not follow from what is signed, or lines are missing: {0}")]
    Altered(&'static str),
}

impl Statement {
    /// From the documents, in the order in which they were written down.
    ///
    /// # Errors
    /// [`StatementError`].
    pub fn of(network: &str, unit: &str, documents: Vec<Document>) -> Result<Self, StatementError> {
        let mut sums = Sums::default();
        let mut lines = Vec::with_capacity(documents.len());
        for (number, document) in (1..).zip(documents) {
            let entry = sums.take(NetworkId::of(network), &document);
            let entry = entry.map_err(|why| StatementError::Document { number, why })?;
            lines.extend(entry.map(|entry| Line { entry, document }));
        }
        let parties = sums.parties.ok_or(StatementError::Empty)?;
        if sums
            .receipts
            .keys()
            .any(|(signer, _)| *signer != parties.payee)
        {
            return Err(StatementError::Altered("a receipt is not the payee's"));
        }
        let micros = |total: Total| total.as_micros();
        let over = |a, b| Total::from_micros(micros(a).saturating_sub(micros(b))).to_string();
        Ok(Self {
            network: network.to_owned(),
            unit: unit.to_owned(),
            channel: parties.channel(NetworkId::of(network)),
            payer: parties.payer,
            payer_account: parties.payer_account,
            payee: parties.payee,
            payee_account: parties.payee_account,
            opening: sums.opening.unwrap_or(Total::ZERO).to_string(),
            owed: sums.owed.to_string(),
            acknowledged: sums.acknowledged.to_string(),
            settled: sums.settled.to_string(),
            outstanding: over(sums.owed, sums.settled),
            prepaid: over(sums.settled, sums.owed),
            frozen: sums.frozen,
            lines,
        })
    }

    /// Makes a statement anew from its own documents, and compares.
    ///
    /// # Errors
    /// [`StatementError`].
    pub fn verify(&self) -> Result<(), StatementError> {
        let documents = self.lines.iter().map(|line| line.document.clone());
        let again = Self::of(&self.network, &self.unit, documents.collect())?;
        if again == *self {
            Ok(())
        } else {
            Err(StatementError::Altered(
                "make it anew by `suanli channel export`",
            ))
        }
    }

    /// A row for each receipt, for spreadsheets. Amounts are decimals.
    pub fn csv(&self) -> String {
        let mut text = String::from("ended_ms,job,unit,outcome,usage,amount,currency,receipt\n");
        for line in &self.lines {
            if let Entry::Receipt {
                receipt,
                unit,
                ended_ms,
                outcome,
                usage,
                amount,
            } = &line.entry
            {
                let job = line
                    .document
                    .job
                    .map_or_else(String::new, |job| format!("{job:#}"));
                let usage: Vec<String> = usage
                    .iter()
                    .map(|(meter, n)| format!("{n} {meter}"))
                    .collect();
                let _ = writeln!(
                    text,
                    "{ended_ms},{job},{unit},{outcome},{},{amount},{},{receipt:#}",
                    usage.join("; "),
                    field(&self.unit),
                );
            }
        }
        text
    }
}

/// A field that a spreadsheet takes for text, whatever is in it.
fn field(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

/// What the documents so far come to.
#[derive(Debug, Default)]
struct Sums {
    parties: Option<Parties>,
    /// By who signed them: the payee is known with the first voucher only.
    receipts: BTreeMap<(PeerId, ReceiptId), Amount>,
    vouchers: BTreeMap<u64, (Hash, Total)>,
    root: Option<Hash>,
    settlements: u64,
    opening: Option<Total>,
    owed: Total,
    acknowledged: Total,
    settled: Total,
    frozen: bool,
}

impl Sums {
    /// Nothing for what was there before.
    fn take(&mut self, network: NetworkId, document: &Document) -> Result<Option<Entry>, String> {
        let bytes = unhex(&document.signed).ok_or("it is no hex, or too long")?;
        let envelope = Envelope::parse(&bytes).map_err(|error| error.to_string())?;
        let wrong = |error: suanli_protocol::envelope::EnvelopeError| error.to_string();
        match envelope.header().kind {
            kind::RECEIPT => Ok(self.receipt(&envelope.verify(network).map_err(wrong)?)),
            kind::VOUCHER => self.voucher(&envelope.verify(network).map_err(wrong)?),
            kind::VOUCHER_ACK => self.ack(&envelope.verify(network).map_err(wrong)?),
            kind::SETTLEMENT => self.settlement(&envelope.verify(network).map_err(wrong)?),
            _ => Err("it has no place in a statement".into()),
        }
    }

    fn between(&mut self, parties: Parties) -> Result<(), String> {
        if *self.parties.get_or_insert(parties) == parties {
            Ok(())
        } else {
            Err("it is between others".into())
        }
    }

    fn receipt(&mut self, receipt: &Verified<Receipt>) -> Option<Entry> {
        let (body, id) = (receipt.body(), ReceiptId(receipt.hash()));
        let known = self.receipts.insert((receipt.signer(), id), body.amount);
        let usage = body.usage.iter();
        known.is_none().then(|| Entry::Receipt {
            receipt: id,
            unit: body.key.unit,
            ended_ms: body.ended.as_millis(),
            outcome: body.outcome.word().to_owned(),
            usage: usage.map(|u| (u.meter.to_string(), u.quantity)).collect(),
            amount: body.amount,
        })
    }

    fn voucher(&mut self, voucher: &Verified<Voucher>) -> Result<Option<Entry>, String> {
        let body = voucher.body();
        self.between(body.parties)?;
        let at_ms = voucher.issued().as_millis();
        let sequence = body.sequence;
        if let Some((hash, _)) = self.vouchers.get(&sequence) {
            let contradicts = *hash != voucher.hash();
            self.frozen |= contradicts;
            return Ok(contradicts.then_some(Entry::Contradiction { sequence, at_ms }));
        }
        let last = self.vouchers.last_key_value();
        let (before, previous, owed) = last.map_or((0, NO_VOUCHER, Total::ZERO), |(n, known)| {
            (*n, VoucherId(known.0), known.1)
        });
        if sequence <= before || body.cumulative < owed {
            return Err("it is out of order".into());
        }
        let adds = if before.checked_add(1) == Some(sequence) {
            let root = next_root(self.root.unwrap_or(NO_ROOT), &body.receipts);
            let added = body.receipts.iter().try_fold(Amount::ZERO, |sum, receipt| {
                let amount = *self.receipts.get(&(body.parties.payee, *receipt))?;
                Some(sum.saturating_add(amount))
            });
            let added = added.ok_or("a receipt that it pays is missing")?;
            if body.previous != previous
                || body.root != root
                || owed.checked_add(added) != Some(body.cumulative)
            {
                return Err("it does not add up to the receipts that it pays".into());
            }
            self.opening.get_or_insert(Total::ZERO);
            Some(added)
        } else {
            // What came before it is gone, on this side.
            self.opening.get_or_insert(body.cumulative);
            None
        };
        self.root = Some(body.root);
        self.owed = body.cumulative;
        self.vouchers
            .insert(sequence, (voucher.hash(), body.cumulative));
        Ok(Some(Entry::Voucher {
            sequence,
            at_ms,
            adds,
            owed: body.cumulative.to_string(),
        }))
    }

    fn ack(&mut self, ack: &Verified<VoucherAck>) -> Result<Option<Entry>, String> {
        let body = ack.body();
        self.between(body.parties)?;
        let Some((hash, total)) = self.vouchers.get(&body.sequence) else {
            // Its voucher is no longer kept.
            return Ok(None);
        };
        if body.voucher.0 != *hash || body.cumulative != *total {
            return Err("it is for another voucher".into());
        }
        self.acknowledged = self.acknowledged.max(body.cumulative);
        Ok(Some(Entry::Acknowledged {
            sequence: body.sequence,
            at_ms: ack.issued().as_millis(),
        }))
    }

    fn settlement(&mut self, settlement: &Verified<Settlement>) -> Result<Option<Entry>, String> {
        let body = settlement.body();
        self.between(body.parties)?;
        if body.sequence <= self.settlements {
            // A restored backup may have written it down twice.
            return if body.settled <= self.settled {
                Ok(None)
            } else {
                Err("it contradicts a later one".into())
            };
        }
        let follows = self.settlements.checked_add(1) == Some(body.sequence);
        if body.settled < self.settled
            || follows && self.settled.checked_add(body.paid) != Some(body.settled)
        {
            return Err("it does not add up to what was paid before".into());
        }
        (self.settlements, self.settled) = (body.sequence, body.settled);
        Ok(Some(Entry::Settlement {
            sequence: body.sequence,
            at_ms: settlement.issued().as_millis(),
            reference: body.reference.to_string(),
            paid: body.paid,
            settled: body.settled.to_string(),
        }))
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let bytes = text.as_bytes();
    if !bytes.len().is_multiple_of(2) || bytes.len() / 2 > ENVELOPE_BYTES_MAX {
        return None;
    }
    bytes
        .chunks_exact(2)
        .map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?))
        .collect()
}

#[cfg(test)]
mod tests {
    use suanli_protocol::{ids::Hash, record::Record, units::Wall};

    use super::*;
    use crate::records::dealt;

    fn documents(records: &[Record]) -> Vec<Document> {
        let mut documents = Vec::new();
        for record in records {
            match record {
                Record::Receipted(receipt) | Record::Judged { receipt, .. } => {
                    documents.push(Document::of(None, receipt));
                }
                Record::Paid(voucher) => documents.push(Document::of(None, voucher)),
                Record::PaidAcked(ack) => documents.push(Document::of(None, ack)),
                Record::Earned { voucher, ack } => {
                    documents.push(Document::of(None, voucher));
                    documents.push(Document::of(None, ack));
                }
                _ => {}
            }
        }
        documents
    }

    fn statement(records: &[Record]) -> Statement {
        Statement::of(dealt::NETWORK, "credit", documents(records)).unwrap()
    }

    #[test]
    fn both_sides_state_the_same() {
        let dealt = dealt::deal(3, false);
        let (ours, theirs) = (statement(&dealt.client), statement(&dealt.provider));
        assert_eq!(ours.owed, theirs.owed);
        assert_eq!(ours.acknowledged, theirs.owed);
        assert_eq!(ours.outstanding, ours.owed);
        assert_ne!(ours.owed, "0.00");
        assert_eq!(ours.csv().lines().count(), 4);
        assert_eq!(ours.csv(), theirs.csv());
        for statement in [ours, theirs] {
            let file = serde_json::to_string(&statement).unwrap();
            let read: Statement = serde_json::from_str(&file).unwrap();
            read.verify().unwrap();
        }
    }

    #[test]
    fn a_second_voucher_of_one_number_is_shown_and_checked() {
        let dealt = dealt::deal(2, false);
        let mut earned = dealt.provider.iter().filter_map(|record| match record {
            Record::Earned { voucher, .. } => Some(voucher),
            _ => None,
        });
        let voucher = earned.next_back().unwrap();
        let mut body = voucher.body().clone();
        body.previous = VoucherId(Hash::of(b"another history"));
        let (_, payer) = dealt::core_of(0);
        let second = payer.sign(voucher.issued(), Wall::from_millis(u64::MAX), body.clone());
        let mut both = documents(&dealt.provider);
        both.push(Document::of(None, &second));
        let stated = Statement::of(dealt::NETWORK, "credit", both).unwrap();
        assert!(stated.frozen);
        let contradicts = |line: &Line| matches!(line.entry, Entry::Contradiction { sequence, .. } if sequence == body.sequence);
        assert_eq!(
            stated.lines.iter().filter(|line| contradicts(line)).count(),
            1
        );
        let file = serde_json::to_string(&stated).unwrap();
        let read: Statement = serde_json::from_str(&file).unwrap();
        read.verify().unwrap();
        // What the second voucher says is owed to nobody; without it nothing is frozen.
        let plain = statement(&dealt.provider);
        assert_eq!((plain.frozen, &plain.owed), (false, &stated.owed));
        let mut hidden = stated.clone();
        hidden.lines.retain(|line| !contradicts(line));
        assert!(hidden.verify().is_err());
    }

    #[test]
    fn whatever_is_altered_or_left_out_is_found() {
        let dealt = dealt::deal(2, false);
        let right = statement(&dealt.provider);
        let mut wrong = right.clone();
        wrong.outstanding = "0.00".into();
        assert!(wrong.verify().is_err());
        let mut wrong = right.clone();
        wrong.payer = wrong.payee;
        assert!(wrong.verify().is_err());
        for line in 0..right.lines.len() {
            let mut wrong = right.clone();
            let removed = wrong.lines.remove(line);
            // The last acknowledgement stands for those before.
            let needless = matches!(removed.entry, Entry::Acknowledged { sequence: 1, .. });
            assert!(needless || wrong.verify().is_err(), "without line {line}");
            let mut wrong = right.clone();
            let signed = &mut wrong.lines[line].document.signed;
            let last = signed.pop().unwrap();
            signed.push(if last == '0' { '1' } else { '0' });
            assert!(wrong.verify().is_err(), "with another line {line}");
        }
        assert!(matches!(
            Statement::of(dealt::NETWORK, "credit", Vec::new()),
            Err(StatementError::Empty)
        ));
    }
}
