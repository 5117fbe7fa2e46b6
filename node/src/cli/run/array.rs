//! An array's results: brought unit by unit while the job goes on, and told together.
//!
//! ```text
//! follow ── accepted receipts ──▶ bring ── outputs ──▶ files, figures
//!   └ end ─▶ sweep: the units that were not brought yet, page by page
//! ```
//!
//! What was brought stays where it is, however the job ends.

use std::{collections::BTreeMap, convert::Infallible, path::Path};

use serde::Serialize;
use serde_json::{Value, json};
use suanli_protocol::ids::{JobId, ReceiptId};
use tokio::sync::mpsc;

use super::{
    follow::Followed,
    outputs::{Source, Written, stays, write},
};
use crate::{
    api::types::{JobInfo, OutputInfo, ReceiptInfo, UnitInfo},
    cli::{
        exit::{Exit, Failure},
        screen::{bytes, list, rough},
    },
    client::Client,
    jobfile::PreparedJob,
};

/// Accepted receipts that wait to be brought. What is dropped comes with the sweep.
pub(super) const RECEIPTS_WAITING: usize = 1024;
/// Units of one page.
pub(in crate::cli) const PAGE: u32 = 500;
/// Units that are told one by one.
const TOLD: usize = 20;

/// What came of a unit.
#[derive(Debug, Serialize)]
struct Brought {
    unit: u32,
    receipt: ReceiptId,
    outputs: Vec<Written>,
}

/// A figure over all units that are here.
#[derive(Debug, Serialize)]
struct Total {
    label: String,
    sum: f64,
    of: u64,
    text: String,
}

/// Brings what comes of an array.
pub(super) struct Units<'a> {
    client: &'a Client,
    job: &'a PreparedJob,
    id: JobId,
    out: &'a Path,
    brought: BTreeMap<u32, Brought>,
    failed: BTreeMap<u32, String>,
    /// Outputs that stay where they were made.
    pub(super) staying: Vec<(u32, OutputInfo)>,
}

impl<'a> Units<'a> {
    pub(super) const fn new(
        client: &'a Client,
        job: &'a PreparedJob,
        id: JobId,
        out: &'a Path,
    ) -> Self {
        Self {
            client,
            job,
            id,
            out,
            brought: BTreeMap::new(),
            failed: BTreeMap::new(),
            staying: Vec::new(),
        }
    }

    /// Brings outputs as their receipts are accepted, until it is dropped. What fails
    /// is tried again by the sweep, which says why.
    pub(super) async fn bring(&mut self, mut accepted: mpsc::Receiver<ReceiptId>) -> Infallible {
        while let Some(receipt) = accepted.recv().await {
            let path = format!("/v1/receipts/{receipt:#}");
            let Ok(info) = self.client.get::<ReceiptInfo>(&path).await else {
                continue;
            };
            if info.outcome == "completed"
                && self.one(info.unit, receipt, &info.outputs).await.is_err()
            {
                break;
            }
        }
        std::future::pending().await
    }

    /// Brings what is still missing, and learns which units failed.
    async fn sweep(&mut self) -> Result<(), Failure> {
        let mut from = 0;
        while from < self.job.units() {
            let path = format!("/v1/jobs/{:#}/units?from={from}&limit={PAGE}", self.id);
            let units: Vec<UnitInfo> = self.client.get(&path).await?;
            for unit in units {
                match (unit.state.as_str(), unit.receipt) {
                    ("done", Some(receipt)) => self.one(unit.unit, receipt, &unit.outputs).await?,
                    ("failed", _) => {
                        let reason = unit.reason.unwrap_or_else(|| "no reason given".into());
                        self.failed.insert(unit.unit, reason);
                    }
                    _ => {}
                }
            }
            from += PAGE;
        }
        Ok(())
    }

    /// Brings what is left, once the job has ended.
    pub(super) async fn finish(&mut self, followed: &Followed) -> Result<JobInfo, Failure> {
        self.sweep().await?;
        let info: JobInfo = self.client.get(&format!("/v1/jobs/{:#}", self.id)).await?;
        match super::exit_of(&info) {
            Exit::Done => Ok(info),
            exit => Err(self.failure(exit, &info, followed)),
        }
    }

    async fn one(
        &mut self,
        unit: u32,
        receipt: ReceiptId,
        outputs: &[OutputInfo],
    ) -> Result<(), Failure> {
        if unit >= self.job.units() || self.brought.contains_key(&unit) {
            return Ok(());
        }
        let source = Source {
            job: self.id,
            path: format!("/v1/receipts/{receipt:#}"),
            outputs,
            unit,
        };
        let stay = |output: &&OutputInfo| stays(self.job, output);
        let staying = outputs
            .iter()
            .filter(stay)
            .map(|output| (unit, output.clone()));
        let staying: Vec<_> = staying.collect();
        let outputs = write(self.client, self.job, &source, self.out).await?;
        self.staying.extend(staying);
        let brought = Brought {
            unit,
            receipt,
            outputs,
        };
        self.brought.insert(unit, brought);
        Ok(())
    }

    /// Units without a result.
    fn missing(&self) -> Vec<u32> {
        let units = 0..self.job.units();
        units
            .filter(|unit| !self.brought.contains_key(unit))
            .collect()
    }

    /// All of it, for programs.
    pub(super) fn json(&self, info: &JobInfo, followed: &Followed) -> Value {
        json!({
            "job": info,
            "units": self.brought.values().collect::<Vec<_>>(),
            "missing": self.missing(),
            "failed": self.failed,
            "shown": self.totals(),
            "wrong_results": followed.wrong,
            "settled": followed.settled,
            "took_ms": followed.took_ms,
        })
    }

    /// Why the job has no complete result, what there is of it, and what is missing.
    fn failure(&self, exit: Exit, info: &JobInfo, followed: &Followed) -> Failure {
        let sentence = match &info.reason {
            Some((_, sentence)) => sentence.clone(),
            None => "no reason was given".to_owned(),
        };
        let message = format!(
            "job {id} {}: {sentence}\n{}{}{}see `suanli job show {id}`",
            info.state,
            self.results(),
            self.lacks(),
            list(&followed.wrong_rows()),
            id = info.job,
        );
        let detail = json!({
            "info": info,
            "units": self.brought.values().collect::<Vec<_>>(),
            "missing": self.missing(),
            "failed": self.failed,
            "wrong_results": followed.wrong,
        });
        Failure::new(exit, message).with("job", detail)
    }

    /// For a person: figures, what was written, where it ran and what it cost.
    pub(super) fn text(&self, info: &JobInfo, followed: &Followed) -> String {
        let pay = if followed.settled {
            "settled"
        } else {
            "not all payments are acknowledged yet"
        };
        let mut rows = vec![(
            "units",
            format!("{} of {}", self.brought.len(), self.job.units()),
        )];
        rows.extend(followed.wrong_rows());
        rows.extend([
            ("price", format!("{}, {pay}", info.spent)),
            ("took", rough(followed.took_ms)),
            ("job", format!("{:#}", info.job)),
        ]);
        format!("{}{}{}", self.results(), self.lacks(), list(&rows))
    }

    fn results(&self) -> String {
        let mut text = String::new();
        for total in self.totals() {
            text.push_str(&list(&[(total.label.as_str(), total.text.clone())]));
        }
        let units = self.brought.values();
        let told = units.filter_map(|brought| {
            let line = told(&brought.outputs);
            (!line.is_empty()).then(|| format!("unit {}: {line}\n", brought.unit))
        });
        let told: Vec<String> = told.collect();
        text.extend(told.iter().take(TOLD).map(String::as_str));
        if told.len() > TOLD {
            text.push_str(&format!("… and {} more\n", told.len() - TOLD));
        }
        text + &self.files()
    }

    fn files(&self) -> String {
        let outputs = || self.brought.values().flat_map(|brought| &brought.outputs);
        let files: Vec<_> = outputs()
            .filter_map(|output| output.file.as_ref())
            .collect();
        let written = outputs().filter(|output| output.file.is_some());
        let sum = written.fold(0, |sum: u64, output| sum.saturating_add(output.bytes));
        match files.as_slice() {
            [] => String::new(),
            [file] => format!("wrote {} ({})\n", file.display(), bytes(sum)),
            [first, .., last] => format!(
                "wrote {} files, {} to {} ({})\n",
                files.len(),
                first.display(),
                last.display(),
                bytes(sum)
            ),
        }
    }

    /// A line on what failed and one on what is missing, if anything.
    fn lacks(&self) -> String {
        let mut text = String::new();
        let (failed, missing) = (&self.failed, self.missing());
        if let Some(reason) = failed.values().next() {
            let units = ranges(&failed.keys().copied().collect::<Vec<_>>());
            text.push_str(&format!("units that failed: {units} ({reason})\n"));
        }
        let open: Vec<u32> = missing
            .into_iter()
            .filter(|unit| !failed.contains_key(unit))
            .collect();
        if !open.is_empty() {
            text.push_str(&format!("units without a result: {}\n", ranges(&open)));
        }
        text
    }

    /// Counts out of so many, over all units that are here.
    fn totals(&self) -> Vec<Total> {
        let mut totals: Vec<Total> = Vec::new();
        let outputs = self.brought.values().flat_map(|brought| &brought.outputs);
        for shown in outputs.filter_map(|output| output.shown.as_ref()) {
            let Some(of) = shown.of else {
                continue;
            };
            let known = totals.iter_mut().find(|total| total.label == shown.label);
            match known {
                Some(total) => {
                    total.sum += shown.count;
                    total.of = total.of.saturating_add(of);
                }
                None => totals.push(Total {
                    label: shown.label.clone(),
                    sum: shown.count,
                    of,
                    text: String::new(),
                }),
            }
        }
        for total in &mut totals {
            total.text = super::outputs::part(total.sum, total.of);
        }
        totals
    }
}

/// What a unit shows that is not counted together.
fn told(outputs: &[Written]) -> String {
    let lines = outputs.iter().flat_map(|output| {
        let shown = output.shown.as_ref().filter(|shown| shown.of.is_none());
        let shown = shown.map(|shown| format!("{} {}", shown.label, shown.text));
        let printed = output.printed.as_ref();
        let printed = printed.map(|printed| printed.trim_end().to_owned());
        shown.into_iter().chain(printed)
    });
    lines.collect::<Vec<_>>().join(", ")
}

/// `0, 3-7, 9`, cut where it gets long.
fn ranges(units: &[u32]) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for &unit in units {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == unit => *last = unit,
            _ => ranges.push((unit, unit)),
        }
    }
    let named = ranges.iter().take(TOLD).map(|(first, last)| {
        if first == last {
            first.to_string()
        } else {
            format!("{first}-{last}")
        }
    });
    let mut text = named.collect::<Vec<_>>().join(", ");
    if ranges.len() > TOLD {
        let rest = ranges[TOLD..].iter();
        let rest = rest.fold(0, |sum, (first, last)| sum + (last - first + 1));
        text.push_str(&format!(" and {rest} more"));
    }
    text
}

/// How many units there are, and what the first and the last have of their own.
pub(super) fn preview(job: &PreparedJob) -> String {
    let Some(array) = &job.array else {
        return String::new();
    };
    let last = array.units().saturating_sub(1);
    let mut text = format!(
        "{} units, in {} agreements at once at most; {} may fail\n",
        array.units(),
        array.parallel,
        array.max_failures
    );
    for unit in if last == 0 { vec![0] } else { vec![0, last] } {
        let parameters = job.parameters(unit).into_iter();
        let parameters = parameters.map(|(name, value)| format!("{name} = {value}"));
        let parameters = parameters.collect::<Vec<_>>().join("; ");
        text.push_str(&format!("unit {unit}: {parameters}\n"));
    }
    text
}

/// The same for programs.
pub(super) fn preview_json(job: &PreparedJob) -> Value {
    let unit = |unit: u32| {
        let parameters: BTreeMap<String, String> = job.parameters(unit).into_iter().collect();
        json!({ "unit": unit, "parameters": parameters })
    };
    let Some(array) = &job.array else {
        return Value::Null;
    };
    json!({
        "units": array.units(),
        "parallel": array.parallel,
        "max_failures": array.max_failures,
        "first": unit(0),
        "last": unit(array.units().saturating_sub(1)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_named_by_their_ranges() {
        assert_eq!(ranges(&[0, 3, 4, 5, 9]), "0, 3-5, 9");
        let odd: Vec<u32> = (0..100).map(|n| n * 2).collect();
        assert!(
            ranges(&odd).ends_with("36, 38 and 80 more"),
            "{}",
            ranges(&odd)
        );
    }
}
