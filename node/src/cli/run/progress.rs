//! A job's steps as sentences, and one line that is overwritten on a terminal.

use crate::{
    api::types::JobEventInfo,
    cli::screen::{self, visible},
};

/// What happened, for a person.
pub(in crate::cli) fn sentence(event: &JobEventInfo) -> String {
    match event {
        JobEventInfo::Submitted => "submitted".to_owned(),
        JobEventInfo::Asked { attempt, peers } => {
            let peers = peers.iter().map(ToString::to_string).collect::<Vec<_>>();
            format!("attempt {attempt}: asking {}", peers.join(", "))
        }
        JobEventInfo::Quoted { peer, cap } => format!("{peer} quotes {cap} at most"),
        JobEventInfo::Declined { peer, sentence, .. } => {
            format!("{peer} declines: {}", visible(sentence))
        }
        JobEventInfo::Agreed {
            peer,
            region,
            cap,
            resumed,
            ..
        } => {
            let place = match region {
                Some(region) => format!(" in {}", visible(region)),
                None => String::new(),
            };
            let resumed = resumed_words(resumed);
            format!("agreed with {peer}{place}, {cap} at most{resumed}")
        }
        JobEventInfo::Started => "running".to_owned(),
        JobEventInfo::Progress { done, total } => format!("running: {}", percent(*done, *total)),
        JobEventInfo::Log { line } => format!("| {}", visible(line)),
        JobEventInfo::Accepted { receipt, amount } => {
            format!("accepted receipt {receipt} over {amount}")
        }
        JobEventInfo::Decided { unit, failure } => match failure {
            None => format!("unit {unit} is done"),
            Some((_, sentence)) => format!("unit {unit} failed: {}", visible(sentence)),
        },
        JobEventInfo::Disputed { peer, sentence, .. } => {
            format!("disputed the receipt of {peer}: {}", visible(sentence))
        }
        JobEventInfo::GaveUp { peer, sentence, .. } => {
            format!("gave up on {peer}: {}", visible(sentence))
        }
        JobEventInfo::Settled { receipt } => format!("settled receipt {receipt}"),
        JobEventInfo::Ended { state, reason } => match reason {
            Some((_, sentence)) => format!("{}: {}", visible(state), visible(sentence)),
            None => visible(state),
        },
    }
}

/// `; goes on after step 1200`, or which units do.
fn resumed_words(resumed: &[(u32, u64)]) -> String {
    match resumed {
        [] => String::new(),
        [(0, done)] => format!("; goes on after step {done}"),
        units => {
            let units = units.iter();
            let units = units.map(|(unit, done)| format!("unit {unit} after step {done}"));
            let units: Vec<String> = units.collect();
            format!("; goes on: {}", units.join(", "))
        }
    }
}

/// A part of a whole; a dash where nothing is known.
pub(in crate::cli) fn percent(done: u64, total: u64) -> String {
    match u128::from(done.min(total)) * 100 {
        _ if total == 0 => "-".to_owned(),
        hundredfold => format!("{}%", hundredfold / u128::from(total)),
    }
}

/// Shows steps as they come: on a terminal, progress overwrites itself;
/// elsewhere a line is printed for each tenth.
#[derive(Debug)]
pub(super) struct Progress {
    mode: Mode,
    line_open: bool,
    tenths: u64,
    /// Of an array: units that are done, of so many.
    units: Option<(u64, u64)>,
    /// What each line begins with.
    label: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Silent,
    Live,
    Lines,
}

impl Progress {
    /// Of a job; with a label it is one of several, whose lines come mixed.
    pub(super) fn new(json: bool, units: Option<u32>, label: Option<&str>) -> Self {
        let mode = match (json, screen::has_live_line() && label.is_none()) {
            (true, _) => Mode::Silent,
            (false, true) => Mode::Live,
            (false, false) => Mode::Lines,
        };
        Self {
            mode,
            line_open: false,
            tenths: 0,
            units: units.map(|units| (0, u64::from(units))),
            label: label.map_or_else(String::new, |label| format!("{label}: ")),
        }
    }

    /// Shows a step.
    pub(super) fn show(&mut self, event: &JobEventInfo) {
        let text = sentence(event);
        match (event, &mut self.units) {
            (JobEventInfo::Decided { failure: None, .. }, Some((done, total))) => {
                *done += 1;
                let (done, total) = (*done, *total);
                return self.so_far(&format!("{done} of {total} units"), done, total);
            }
            // Units are what counts, not each one's steps; many begin and are paid.
            (
                JobEventInfo::Progress { .. }
                | JobEventInfo::Accepted { .. }
                | JobEventInfo::Started
                | JobEventInfo::Settled { .. },
                Some(_),
            ) => return,
            _ => {}
        }
        match (self.mode, event) {
            (Mode::Silent, _) => {}
            (_, JobEventInfo::Progress { done, total }) => self.so_far(&text, *done, *total),
            (Mode::Live | Mode::Lines, _) => {
                if matches!(event, JobEventInfo::Started) {
                    self.tenths = 0;
                }
                self.close_line();
                screen::print_aside(&format!("{}{text}\n", self.label));
            }
        }
    }

    fn so_far(&mut self, text: &str, done: u64, total: u64) {
        match self.mode {
            Mode::Silent => {}
            Mode::Live => {
                screen::print_aside(&format!("\r\x1b[K{text}"));
                self.line_open = true;
            }
            Mode::Lines => {
                let tenths = done.saturating_mul(10).checked_div(total).unwrap_or(0);
                if tenths > self.tenths {
                    screen::print_aside(&format!("{}{text}\n", self.label));
                }
                self.tenths = self.tenths.max(tenths);
            }
        }
    }

    /// Ends the line that is overwritten, so that others can print.
    pub(super) fn close_line(&mut self) {
        if std::mem::take(&mut self.line_open) {
            screen::print_aside("\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use suanli_protocol::ids::PeerId;

    use super::*;

    #[test]
    fn steps_are_sentences() {
        let peer = PeerId::from_bytes([0xab; 32]);
        let agreed = JobEventInfo::Declined {
            peer,
            reason: "busy".into(),
            sentence: "all its slots are in use\u{1b}[2J".into(),
        };
        assert_eq!(
            sentence(&agreed),
            "abababab declines: all its slots are in use\\u{1b}[2J"
        );
        assert_eq!(percent(844, 1000), "84%");
        assert_eq!(percent(0, 0), "-");
        assert_eq!(percent(u64::MAX, u64::MAX), "100%");
    }
}
