//! Ways in which clients pay outside of the network, and how their payments become known.
//!
//! ```text
//! a transfer, a card, another ledger ──▶ SettlementWay::payments ──▶ those not declared yet
//!                                                                        │ declared and signed
//!                                                                        ▼ by who earns
//!                                                              settlements of the channel
//! ```
//!
//! The network counts what is owed; money moves elsewhere, and whoever earns declares what
//! came. A [`SettlementWay`] says which payments did: [`Transfers`] reads a table that a bank
//! or a shop exports. A payment is its channel, its amount and its reference: the same three
//! again are the same payment, however often a way says so, so a table may be read each day.
//!
//! Absent: making payments, and any money but the network's unit.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use suanli_protocol::units::Amount;

use crate::statement::{Entry, Statement};

/// Bytes of a table of payments, at most: some hundred thousand rows.
const TABLE_BYTES_MAX: u64 = 32 << 20;
/// Bytes of a reference: as many as a settlement holds.
const REFERENCE_BYTES_MAX: usize = 128;

/// A way in which clients pay.
pub trait SettlementWay {
    /// What it is called.
    fn name(&self) -> String;

    /// All payments that it knows of, also those that it said before.
    ///
    /// # Errors
    /// [`SettlementError`]: nothing may be declared of it then.
    fn payments(&mut self) -> Result<Vec<Payment>, SettlementError>;
}

/// A payment that came.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct Payment {
    /// For which channel: its first digits, as the client was told them.
    pub channel: String,
    /// How much, in the network's unit.
    pub amount: Amount,
    /// What names it: the bank's number of the transfer, an invoice.
    pub reference: String,
}

/// Why a way can't be asked, or what it says can't be used.
#[derive(Debug, thiserror::Error)]
pub enum SettlementError {
    /// The table can't be read.
    #[error("cannot read {}: {source}", file.display())]
    Unreadable {
        /// The table.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The table is none.
    #[error("{}:{line}: {message}", file.display())]
    Row {
        /// The table.
        file: PathBuf,
        /// Counted from one.
        line: u64,
        /// What is wrong, and what is needed.
        message: String,
    },
}

/// A table of transfers as comma-separated values, with a line of headings: of its columns
/// `channel`, `amount` and `reference` are read.
#[derive(Debug, Clone)]
pub struct Transfers {
    file: PathBuf,
}

impl Transfers {
    /// In that file.
    pub fn new(file: &Path) -> Self {
        Self {
            file: file.to_owned(),
        }
    }

    fn row(&self, error: &csv::Error) -> SettlementError {
        let line = error.position().map_or(1, csv::Position::line);
        let message = match error.kind() {
            csv::ErrorKind::Deserialize { err, .. } => format!(
                "{err}; a row needs `channel`, `amount` (in the network's unit) and `reference`"
            ),
            _ => error.to_string(),
        };
        self.wrong(line, message)
    }

    fn wrong(&self, line: u64, message: String) -> SettlementError {
        SettlementError::Row {
            file: self.file.clone(),
            line,
            message,
        }
    }
}

impl SettlementWay for Transfers {
    fn name(&self) -> String {
        self.file.display().to_string()
    }

    fn payments(&mut self) -> Result<Vec<Payment>, SettlementError> {
        let unreadable = |source| SettlementError::Unreadable {
            file: self.file.clone(),
            source,
        };
        let bytes = std::fs::metadata(&self.file).map_err(unreadable)?.len();
        if bytes > TABLE_BYTES_MAX {
            let message = format!("{bytes} bytes, at most {TABLE_BYTES_MAX} are allowed");
            return Err(unreadable(std::io::Error::other(message)));
        }
        let text = std::fs::read(&self.file).map_err(unreadable)?;
        let mut reader = csv::ReaderBuilder::new()
            .trim(csv::Trim::All)
            .from_reader(text.as_slice());
        let headings = reader.headers().map_err(|error| self.row(&error))?.clone();
        for needed in ["channel", "amount", "reference"] {
            if !headings.iter().any(|heading| heading == needed) {
                let message = format!(
                    "no column is called `{needed}`: the first line names the columns, of which `channel`, `amount` and `reference` are read"
                );
                return Err(self.wrong(1, message));
            }
        }
        let mut payments = BTreeSet::new();
        for record in reader.records() {
            let record = record.map_err(|error| self.row(&error))?;
            let line = record.position().map_or(1, csv::Position::line);
            let payment: Payment =
                record
                    .deserialize(Some(&headings))
                    .map_err(|error| match error.kind() {
                        csv::ErrorKind::Deserialize { err, .. } => {
                            self.wrong(line, format!("{err}; an amount is a number as in 12.50"))
                        }
                        _ => self.row(&error),
                    })?;
            if payment.amount == Amount::ZERO {
                return Err(self.wrong(line, "a payment of nothing; leave the row out".into()));
            }
            if payment.reference.is_empty() || payment.reference.len() > REFERENCE_BYTES_MAX {
                let message = format!(
                    "a reference has 1 to {REFERENCE_BYTES_MAX} bytes: it tells this payment from others of the same amount"
                );
                return Err(self.wrong(line, message));
            }
            payments.insert(payment);
        }
        Ok(payments.into_iter().collect())
    }
}

/// Whether a channel's statement has a payment already.
pub fn is_declared(statement: &Statement, payment: &Payment) -> bool {
    statement.lines.iter().any(|line| {
        matches!(&line.entry, Entry::Settlement { reference, paid, .. }
            if *reference == payment.reference && *paid == payment.amount)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<Payment>, String> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("bank.csv");
        std::fs::write(&file, text).unwrap();
        let mut way = Transfers::new(&file);
        let said = way.payments().map_err(|error| error.to_string());
        said.map_err(|error| error.replace(&folder.path().display().to_string(), ""))
    }

    #[test]
    fn columns_are_found_by_their_names_and_each_payment_once() {
        let text = "date,reference,channel,amount,who\n\
                    2026-11-02,\"TX 1, part\",3fa0,12.50,A\n\
                    2026-11-03,TX 2,3fa0, 1 ,A\n\
                    2026-11-03,TX 2,3fa0,1,A\n";
        let payment = |reference: &str, amount: &str| Payment {
            channel: "3fa0".into(),
            amount: amount.parse().unwrap(),
            reference: reference.into(),
        };
        let mut wanted = [payment("TX 1, part", "12.5"), payment("TX 2", "1")];
        wanted.sort();
        assert_eq!(read(text).unwrap(), wanted);
        assert!(read("channel,amount,reference\n").unwrap().is_empty());
    }

    #[test]
    fn wrong_tables_are_refused_with_their_line() {
        for (text, line, says) in [
            ("", 1, "no column is called `channel`"),
            ("channel,sum,reference\n", 1, "no column is called `amount`"),
            ("channel,amount,reference\n3fa0,much,TX\n", 2, "12.50"),
            ("channel,amount,reference\n3fa0,-1,TX\n", 2, "12.50"),
            (
                "channel,amount,reference\n3fa0,0,TX\n",
                2,
                "payment of nothing",
            ),
            ("channel,amount,reference\n3fa0,1,\n", 2, "a reference has"),
            ("channel,amount,reference\n3fa0,1,a\n3fa0,1\n", 3, "fields"),
        ] {
            let said = read(text).unwrap_err();
            assert!(said.contains(says), "{text}: {said}");
            assert!(said.contains(&format!("bank.csv:{line}:")), "{said}");
        }
    }
}
