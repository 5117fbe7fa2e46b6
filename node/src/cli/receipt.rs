//! `suanli receipt`: what was signed about executions, and what it proves.
//!
//! `verify` reads a file and nothing else: no daemon, no network, no
//! configuration, no clock.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use suanli_protocol::{
    bundle::{BUNDLE_BYTES_MAX, Bundle, Proof},
    receipt::Outcome,
};

use super::{
    context::{Context, path},
    exit::{Exit, Failure},
    screen::{Table, age, list, rough},
};
use crate::{api::types::ReceiptInfo, client::ClientError};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Lists receipts, newest first
    List {
        /// Prints ids only, for scripts
        #[arg(long, short)]
        quiet: bool,
    },
    /// Shows one receipt
    Show {
        /// The receipt; the first digits are enough
        id: String,
    },
    /// Writes a receipt with all that it stands on into a file
    Export {
        /// The receipt; the first digits are enough
        id: String,
        /// Where to write it [default: RECEIPT.bundle]
        #[arg(long, short, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Checks an exported receipt; needs no daemon, no network and no trust
    #[command(after_help = "\
Ends with 0 if everything holds and 6 if anything does not. What is checked:
delegations and signatures of both sides, that each part names the hash of the
one before, that the amount follows from usage and prices and stays under the
cap, and that the voucher pays this receipt.")]
    Verify {
        /// A file that `suanli receipt export` wrote
        file: PathBuf,
    },
}

impl Command {
    pub(super) async fn run(self, context: &Context) -> Result<(), Failure> {
        match self {
            Self::List { quiet } => {
                let mut receipts: Vec<ReceiptInfo> = context.client()?.get("/v1/receipts").await?;
                receipts.sort_by_key(|receipt| std::cmp::Reverse(receipt.ended_ms));
                context.answer(&receipts, |receipts| table(receipts, quiet));
                Ok(())
            }
            Self::Show { id } => {
                let path = path("receipts", &id)?;
                let receipt: ReceiptInfo = context.client()?.get(&path).await?;
                context.answer(&receipt, show);
                Ok(())
            }
            Self::Export { id, out } => export(context, &id, out).await,
            Self::Verify { file } => verify(context, &file),
        }
    }
}

async fn export(context: &Context, id: &str, out: Option<PathBuf>) -> Result<(), Failure> {
    let (path, client) = (path("receipts", id)?, context.client()?);
    let receipt: ReceiptInfo = client.get(&path).await?;
    let bytes = client.bytes(&format!("{path}/bundle")).await?;
    let file = out.unwrap_or_else(|| PathBuf::from(format!("{}.bundle", receipt.receipt)));
    std::fs::write(&file, &bytes).map_err(|source| ClientError::File {
        path: file.clone(),
        source,
    })?;
    let written =
        serde_json::json!({ "receipt": receipt.receipt, "file": file, "bytes": bytes.len() });
    context.answer(&written, |_| {
        format!(
            "wrote {} bytes; check them anywhere with `suanli receipt verify {}`\n",
            bytes.len(),
            file.display()
        )
    });
    Ok(())
}

fn verify(context: &Context, file: &Path) -> Result<(), Failure> {
    let unreadable = |error: std::io::Error| {
        Failure::new(
            Exit::Usage,
            format!("cannot read {}: {error}", file.display()),
        )
    };
    let bytes = std::fs::metadata(file).map_err(unreadable)?.len();
    // A bundle of this length is none, and a longer file is not read.
    let too_long = usize::try_from(bytes).map_or(true, |bytes| bytes > BUNDLE_BYTES_MAX);
    if too_long {
        let message = format!(
            "{}: this is no receipt bundle: {bytes} bytes, {BUNDLE_BYTES_MAX} at most",
            file.display()
        );
        return Err(Failure::new(Exit::NotVerified, message));
    }
    let bytes = std::fs::read(file).map_err(unreadable)?;
    let proof = Bundle::verify(&bytes).map_err(|error| {
        let message = format!(
            "{}: not verified: {error}; keep the file and don't settle on it",
            file.display()
        );
        Failure::new(Exit::NotVerified, message)
    })?;
    context.answer(&proof, what_it_proves);
    Ok(())
}

/// Each line is a check that `Bundle::verify` made, with what it found.
fn what_it_proves(proof: &Proof) -> String {
    let deal = if proof.take {
        "the client took the provider's firm offer, and the provider countersigned"
    } else {
        "the provider quoted on its offer and the client's request; the client signed the quote's hash"
    };
    let verdict = match proof.verdict {
        None => "the client's word on it is not in here".to_owned(),
        Some(suanli_protocol::receipt::Verdict::Accepted) => "the client accepted it".to_owned(),
        Some(suanli_protocol::receipt::Verdict::Disputed(reason)) => {
            format!("the client disputed it: {reason}")
        }
    };
    let paid = match (proof.paid, proof.acknowledged) {
        (true, true) => "a voucher pays it, and the provider acknowledged that",
        (true, false) => "a voucher pays it; the provider's acknowledgement is not in here",
        (false, _) => "no voucher that pays it is in here",
    };
    let usage = proof.usage.iter();
    let usage = usage.map(|usage| format!("{} {}", usage.quantity, usage.meter));
    let (began, ended) = proof.ran;
    let mut text = format!("verified: receipt {:#}\n", proof.receipt);
    text.push_str(&list(&[
        ("  network", proof.network.clone()),
        (
            "  job",
            format!("{:#}, for {}", proof.job, &*proof.principal),
        ),
        ("  client", party(&proof.client)),
        (
            "  provider",
            format!("{}, in {}", party(&proof.provider), &*proof.region),
        ),
        ("  device", device(&proof.device.1, proof.device.0)),
        ("  agreement", format!("{:#}: {deal}", proof.agreement)),
        (
            "  execution",
            format!(
                "{}, in {}",
                outcome_word(proof.outcome),
                rough(
                    ended
                        .since(began)
                        .as_millis()
                        .try_into()
                        .unwrap_or(u64::MAX)
                )
            ),
        ),
        (
            "  outputs",
            format!("{} named by their hashes", proof.outputs.len()),
        ),
        ("  usage", usage.collect::<Vec<_>>().join(", ")),
        (
            "  amount",
            format!(
                "{}, which follows from usage and prices, under the cap of {}",
                proof.amount, proof.cap
            ),
        ),
        ("  verdict", verdict),
        ("  payment", paid.to_owned()),
    ]));
    text
}

fn party<A: std::fmt::Display, B: std::fmt::Display>((peer, account): &(A, B)) -> String {
    format!("peer {peer}, by delegation of account {account}")
}

fn table(receipts: &[ReceiptInfo], quiet: bool) -> String {
    if quiet {
        let ids = receipts
            .iter()
            .map(|receipt| format!("{:#}\n", receipt.receipt));
        return ids.collect();
    }
    if receipts.is_empty() {
        return "no receipts yet: each execution, bought or sold, leaves one\n".into();
    }
    let mut table = Table::new(&[
        "receipt",
        "job",
        "side",
        "other peer",
        "outcome",
        ">amount",
        "verdict",
        "paid",
        "ended",
    ]);
    for receipt in receipts {
        let (side, other) = side(receipt);
        table.row([
            receipt.receipt.to_string(),
            receipt.job.to_string(),
            side.into(),
            other,
            receipt.outcome.clone(),
            receipt.amount.to_string(),
            receipt.verdict.clone().unwrap_or_else(|| "-".into()),
            paid(receipt).into(),
            age(receipt.ended_ms),
        ]);
    }
    table.render(0)
}

fn show(receipt: &ReceiptInfo) -> String {
    let (side, _) = side(receipt);
    let usage = receipt.usage.iter();
    let usage = usage.map(|(meter, quantity)| format!("{quantity} {meter}"));
    let reason = receipt.reason.as_deref();
    let mut text = list(&[
        ("receipt", format!("{:#}", receipt.receipt)),
        ("side", side.into()),
        ("job", format!("{:#}", receipt.job)),
        ("agreement", format!("{:#}", receipt.agreement)),
        (
            "execution",
            format!(
                "unit {}, attempt {}, part {}{}",
                receipt.unit,
                receipt.attempt,
                receipt.index,
                if receipt.last { " (the last)" } else { "" }
            ),
        ),
        ("client", format!("{:#}", receipt.client)),
        (
            "provider",
            format!("{:#}, in {}", receipt.provider, receipt.region),
        ),
        ("device", device(&receipt.device, receipt.device_index)),
        (
            "outcome",
            match reason {
                Some(reason) => format!("{}: {reason}", receipt.outcome),
                None => receipt.outcome.clone(),
            },
        ),
        (
            "ran",
            format!(
                "{}, ended {}",
                rough(receipt.ended_ms.saturating_sub(receipt.started_ms)),
                age(receipt.ended_ms)
            ),
        ),
        ("usage", usage.collect::<Vec<_>>().join(", ")),
        ("amount", receipt.amount.to_string()),
        ("verdict", verdict(receipt)),
        ("paid", paid(receipt).into()),
    ]);
    for output in &receipt.outputs {
        let line = format!("{}: {} bytes, {:#}", output.name, output.bytes, output.blob);
        text.push_str(&list(&[("output   ", line)]));
    }
    text
}

/// The client's word, and what it did before it gave it.
fn verdict(receipt: &ReceiptInfo) -> String {
    let Some(verdict) = &receipt.verdict else {
        return "none yet".to_owned();
    };
    match receipt.verification.as_deref() {
        Some("replicas") => format!("{verdict}, equal to other providers' results"),
        Some("audit") => format!("{verdict}, equal to another provider's result (an audit)"),
        Some("replicas-within") => {
            format!("{verdict}, equal to other providers' results within the job's tolerance")
        }
        Some("audit-within") => format!(
            "{verdict}, equal to another provider's result within the job's tolerance (an audit)"
        ),
        Some("freivalds") => format!("{verdict}, its products are right (Freivalds' check)"),
        Some("undecided") => format!("{verdict}, though no two providers' results were equal"),
        _ => verdict.clone(),
    }
}

fn side(receipt: &ReceiptInfo) -> (&'static str, String) {
    if receipt.bought {
        ("bought", receipt.provider.to_string())
    } else {
        ("sold", receipt.client.to_string())
    }
}

const fn paid(receipt: &ReceiptInfo) -> &'static str {
    match (receipt.paid, receipt.acknowledged) {
        (true, true) => "yes",
        (true, false) => "unacknowledged",
        (false, _) => "no",
    }
}

/// An outcome as the other commands write it.
fn outcome_word(outcome: Outcome) -> String {
    match outcome {
        Outcome::Completed => "completed".to_owned(),
        Outcome::JobFault(reason) => format!("job-fault: {reason}"),
        Outcome::ProviderFault(reason) => format!("provider-fault: {reason}"),
        Outcome::Cancelled => "cancelled".to_owned(),
    }
}

/// A device of the offer, which may have several of one name.
fn device(name: &str, index: u16) -> String {
    format!("{name}, number {index} of the offer's")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_hex() {
        assert_eq!(path("receipts", "AB12").unwrap(), "/v1/receipts/ab12");
        for wrong in ["", "../status", "xyz", &"a".repeat(65)] {
            let refused = path("receipts", wrong).unwrap_err();
            assert_eq!(refused.exit, Exit::Usage);
        }
    }
}
