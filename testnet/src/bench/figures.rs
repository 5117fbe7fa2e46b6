//! Figures, and how they are shown.

use std::{
    fs::OpenOptions,
    io::{self, Write},
    path::Path,
};

use serde::Serialize;

use super::machine::State;

/// Something that was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Figure {
    /// What was measured.
    pub(super) what: String,
    /// In which unit.
    pub(super) unit: &'static str,
    /// What came out; none where it was skipped.
    #[serde(flatten)]
    pub(super) spread: Option<Spread>,
    /// What it should be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) aim: Option<Aim>,
    /// What to know about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) note: Option<String>,
}

/// How samples spread.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Spread {
    pub(super) n: usize,
    pub(super) min: f64,
    pub(super) p50: f64,
    pub(super) p99: f64,
    pub(super) max: f64,
}

/// What the median should be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Aim {
    Below(f64),
    AtLeast(f64),
}

impl Figure {
    /// Of many samples, or skipped if there are none.
    pub(super) fn of(what: impl Into<String>, unit: &'static str, samples: Vec<f64>) -> Self {
        Self {
            what: what.into(),
            unit,
            spread: Spread::of(samples),
            aim: None,
            note: None,
        }
    }

    /// Of one value.
    pub(super) fn one(what: impl Into<String>, unit: &'static str, value: f64) -> Self {
        Self::of(what, unit, vec![value])
    }

    /// That could not be measured.
    pub(super) fn skipped(what: impl Into<String>, unit: &'static str, why: &str) -> Self {
        Self::of(what, unit, Vec::new()).note(format!("skipped: {why}"))
    }

    pub(super) fn aim(mut self, aim: Aim) -> Self {
        self.aim = Some(aim);
        self
    }

    pub(super) fn note(mut self, note: impl Into<String>) -> Self {
        self.note = Some(note.into());
        self
    }
}

impl Spread {
    fn of(mut samples: Vec<f64>) -> Option<Self> {
        samples.sort_by(f64::total_cmp);
        let last = samples.len().checked_sub(1)?;
        // The nearest rank: a value that was seen, never one between two.
        let rank = |percent: usize| samples[(last * percent + 50) / 100];
        Some(Self {
            n: samples.len(),
            min: samples[0],
            p50: rank(50),
            p99: rank(99),
            max: samples[last],
        })
    }
}

/// Figures of one benchmark, and what the machine did meanwhile.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) bench: &'static str,
    pub(super) figures: Vec<Figure>,
    pub(super) state: State,
}

impl Report {
    /// Shows a table, and appends lines to a file if one is given.
    pub(super) fn show(&self, out: &mut dyn Write, results: Option<&Path>) -> io::Result<()> {
        self.table(out)?;
        if let Some(path) = results {
            let mut file = OpenOptions::new().create(true).append(true).open(path)?;
            file.write_all(self.lines()?.as_bytes())?;
        }
        Ok(())
    }

    fn lines(&self) -> io::Result<String> {
        #[derive(Serialize)]
        struct Line<'a> {
            bench: &'static str,
            #[serde(flatten)]
            figure: &'a Figure,
            #[serde(flatten)]
            state: &'a State,
        }
        let mut lines = String::new();
        for figure in &self.figures {
            let line = Line {
                bench: self.bench,
                figure,
                state: &self.state,
            };
            lines.push_str(&serde_json::to_string(&line)?);
            lines.push('\n');
        }
        Ok(lines)
    }

    fn table(&self, out: &mut dyn Write) -> io::Result<()> {
        let widest = self.figures.iter().map(|figure| figure.what.len()).max();
        let wide = widest.unwrap_or(0).max(self.bench.len());
        writeln!(
            out,
            "{:wide$}  {:>9} {:>9} {:>9} {:>9}  {:6} {:>6}",
            self.bench, "min", "p50", "p99", "max", "unit", "n"
        )?;
        for figure in &self.figures {
            write!(out, "{:wide$}  ", figure.what)?;
            match &figure.spread {
                Some(spread) => {
                    for value in [spread.min, spread.p50, spread.p99, spread.max] {
                        write!(out, "{:>9} ", short(value))?;
                    }
                    write!(out, " {:6} {:>6}", figure.unit, spread.n)?;
                    write!(out, "{}", verdict(figure.aim, spread.p50))?;
                }
                None => write!(out, "{:>9}", "-")?,
            }
            match &figure.note {
                Some(note) => writeln!(out, "  {note}")?,
                None => writeln!(out)?,
            }
        }
        writeln!(out, "{}", self.state)
    }
}

fn verdict(aim: Option<Aim>, value: f64) -> String {
    let (reached, words) = match aim {
        None => return String::new(),
        Some(Aim::Below(bound)) => (value < bound, format!("below {}", short(bound))),
        Some(Aim::AtLeast(bound)) => (value >= bound, format!("at least {}", short(bound))),
    };
    let verdict = if reached { "reached" } else { "not reached" };
    format!("  aim: {words}, {verdict}")
}

/// Three figures or so.
fn short(value: f64) -> String {
    match value.abs() {
        small if small < 10.0 => format!("{value:.3}"),
        middle if middle < 1000.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_seen() {
        let samples = (1..=200u32).rev().map(f64::from).collect();
        let spread = Spread::of(samples).unwrap();
        assert_eq!((spread.n, spread.min, spread.max), (200, 1.0, 200.0));
        assert_eq!((spread.p50, spread.p99), (101.0, 198.0));
        assert_eq!(Spread::of(vec![3.5]).unwrap().p99, 3.5);
        assert_eq!(Spread::of(Vec::new()), None);
    }

    #[test]
    fn a_report_shows_each_figure_twice() {
        let report = Report {
            bench: "store",
            figures: vec![
                Figure::one("single", "1/s", 0.93).aim(Aim::AtLeast(0.9)),
                Figure::skipped("peer", "ms", "not installed"),
            ],
            state: State::default(),
        };
        let mut table = Vec::new();
        report.table(&mut table).unwrap();
        let table = String::from_utf8(table).unwrap();
        assert!(table.contains("aim: at least 0.900, reached"), "{table}");
        assert!(table.contains("skipped: not installed"), "{table}");
        let lines = report.lines().unwrap();
        let first: serde_json::Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
        assert_eq!(first["p50"], 0.93);
        assert_eq!(first["bench"], "store");
        assert_eq!(lines.lines().count(), 2);
    }
}
