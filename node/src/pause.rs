//! When a node that sells begins nothing new, so that its operator's own use of
//! the machine comes first.
//!
//! ```text
//! operator's order (pause, resume; kept in a file) ─┐
//! hours of the configuration ───────────────────────┼─▶ Pauses::at(now) ─▶ Pause, or none
//! another program that uses the device ─────────────┘
//! ```
//!
//! An order outranks the hours: `pause` until its time or a `resume`, `resume` until
//! the hours next change. Neither outranks another program on the device: that is
//! the configuration's to say. The driver asks after every change and when
//! [`Pauses::next_change`] has come. Absent: what follows from a pause, which the
//! driver carries out.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use suanli_protocol::units::Wall;

use crate::config::Hours;

const FILE: &str = "pause.json";
/// How long another program must have been quiet.
pub const QUIET: Duration = Duration::from_secs(60);

/// Why nothing new is begun, and until when, where that is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pause {
    /// Why.
    pub why: Why,
    /// Until when.
    pub until: Option<Wall>,
}

/// Why nothing new is begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// The operator said so.
    Ordered,
    /// It is outside of the configured hours.
    Hours,
    /// Another program uses the device: its name.
    Neighbour(String),
}

impl Why {
    /// As the API names it.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Ordered => "ordered",
            Self::Hours => "hours",
            Self::Neighbour(_) => "neighbour",
        }
    }

    /// As people read it.
    pub fn sentence(&self) -> String {
        match self {
            Self::Ordered => "paused by its operator; `suanli resume` ends that".into(),
            Self::Hours => {
                "outside of its hours (`provide.hours`); `suanli resume` begins early".into()
            }
            Self::Neighbour(name) => {
                format!("{name} uses the device; it goes on a minute after that ends")
            }
        }
    }
}

/// What the operator said last. It survives the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Order {
    /// Nothing new, until then, in milliseconds since 1970, or until told otherwise.
    Pause { until_ms: Option<u64> },
    /// Whatever the hours say, until they change.
    Resume { until_ms: Option<u64> },
}

impl Order {
    fn until(self) -> Option<Wall> {
        let (Self::Pause { until_ms } | Self::Resume { until_ms }) = self;
        until_ms.map(Wall::from_millis)
    }

    fn holds(self, now: Wall) -> bool {
        self.until().is_none_or(|until| now < until)
    }
}

/// All that may pause a node.
#[derive(Debug)]
pub struct Pauses {
    file: PathBuf,
    order: Option<Order>,
    hours: Hours,
    neighbour: Option<(String, Wall)>,
}

impl Pauses {
    /// With the order that an earlier process of this data directory was given. One
    /// that can't be read was most likely to pause.
    pub fn open(dir: &Path, hours: Hours) -> Self {
        let file = dir.join(FILE);
        let order = match fs::read(&file) {
            Ok(bytes) => match serde_json::from_slice(&bytes) {
                Ok(order) => Some(order),
                Err(error) => {
                    let file = file.display();
                    tracing::warn!(%file, %error, "unreadable: paused until `suanli resume`");
                    Some(Order::Pause { until_ms: None })
                }
            },
            Err(_) => None,
        };
        Self {
            file,
            order,
            hours,
            neighbour: None,
        }
    }

    /// The operator wants a pause, until then or until a resume.
    ///
    /// # Errors
    /// If it can't be kept; it holds all the same, until the node ends.
    pub fn pause(&mut self, until: Option<Wall>) -> io::Result<()> {
        let until_ms = until.map(Wall::as_millis);
        self.order(Some(Order::Pause { until_ms }))
    }

    /// The operator wants none, whatever the hours say until they change.
    ///
    /// # Errors
    /// If it can't be kept; it holds all the same, until the node ends.
    pub fn resume(&mut self, now: Wall) -> io::Result<()> {
        let outranks = !self.hours.is_open(now);
        let until_ms = self.hours.next_change(now).map(Wall::as_millis);
        self.order(outranks.then_some(Order::Resume { until_ms }))
    }

    fn order(&mut self, order: Option<Order>) -> io::Result<()> {
        self.order = order;
        let Some(order) = order else {
            return match fs::remove_file(&self.file) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                removed => removed,
            };
        };
        let beside = self.file.with_extension("new");
        let mut file = fs::File::create(&beside)?;
        file.write_all(&serde_json::to_vec(&order)?)?;
        file.sync_all()?;
        fs::rename(&beside, &self.file)
    }

    /// Another program uses the device now.
    pub fn saw(&mut self, neighbour: String, now: Wall) {
        self.neighbour = Some((neighbour, now.after(QUIET)));
    }

    /// The pause that there is now, if there is one.
    pub fn at(&self, now: Wall) -> Option<Pause> {
        let order = self.order.filter(|order| order.holds(now));
        let ordered = match order {
            Some(order @ Order::Pause { .. }) => {
                let until = order.until();
                return Some(Pause {
                    why: Why::Ordered,
                    until,
                });
            }
            Some(Order::Resume { .. }) => true,
            None => false,
        };
        if !ordered && !self.hours.is_open(now) {
            return Some(Pause {
                why: Why::Hours,
                until: self.hours.next_change(now),
            });
        }
        let (name, until) = self.neighbour.as_ref()?;
        (now < *until).then(|| Pause {
            why: Why::Neighbour(name.clone()),
            until: Some(*until),
        })
    }

    /// When the answer may be another, unless something is said before.
    pub fn next_change(&self, now: Wall) -> Option<Wall> {
        let order = self.order.and_then(Order::until);
        let neighbour = self.neighbour.as_ref().map(|(_, until)| *until);
        let changes = [order, neighbour, self.hours.next_change(now)];
        let ahead = changes.into_iter().flatten().filter(|at| *at > now);
        ahead.min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;

    /// Hours after a Thursday's midnight.
    fn at(hours: u64) -> Wall {
        Wall::from_millis(hours * HOUR)
    }

    fn pauses(dir: &Path, hours: &str) -> Pauses {
        Pauses::open(dir, hours.parse().unwrap())
    }

    fn why(pauses: &Pauses, hours: u64) -> Option<(&'static str, Option<Wall>)> {
        let pause = pauses.at(at(hours));
        pause.map(|pause| (pause.why.name(), pause.until))
    }

    #[test]
    fn an_order_holds_until_its_time_and_over_restarts() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = pauses(dir.path(), "");
        assert_eq!(why(&first, 1), None);
        first.pause(Some(at(3))).unwrap();
        for of in [&first, &pauses(dir.path(), "")] {
            assert_eq!(why(of, 2), Some(("ordered", Some(at(3)))));
            assert_eq!(of.next_change(at(2)), Some(at(3)));
            assert_eq!(why(of, 3), None);
        }
        first.pause(None).unwrap();
        assert_eq!(why(&pauses(dir.path(), ""), 9999), Some(("ordered", None)));
        first.resume(at(4)).unwrap();
        assert_eq!(why(&pauses(dir.path(), ""), 4), None);
    }

    #[test]
    fn a_resume_outranks_the_hours_until_they_change() {
        let dir = tempfile::tempdir().unwrap();
        let mut nights = pauses(dir.path(), "19:00-07:00");
        assert_eq!(why(&nights, 12), Some(("hours", Some(at(19)))));
        nights.resume(at(12)).unwrap();
        assert_eq!(why(&nights, 13), None);
        assert_eq!(why(&nights, 20), None);
        assert_eq!(why(&nights, 24 + 8), Some(("hours", Some(at(24 + 19)))));
        // Inside of them there is nothing to outrank.
        nights.resume(at(20)).unwrap();
        assert_eq!(why(&nights, 24 + 8), Some(("hours", Some(at(24 + 19)))));
        nights.pause(None).unwrap();
        assert_eq!(why(&nights, 20), Some(("ordered", None)));
    }

    #[test]
    fn a_neighbour_pauses_until_it_was_quiet_for_a_minute() {
        let dir = tempfile::tempdir().unwrap();
        let mut always = pauses(dir.path(), "");
        always.saw("blender".into(), at(1));
        let quiet = at(1).after(QUIET);
        assert_eq!(why(&always, 1), Some(("neighbour", Some(quiet))));
        assert_eq!(always.next_change(at(1)), Some(quiet));
        assert_eq!(always.at(quiet), None);
        // No order outranks it.
        always.resume(at(1)).unwrap();
        assert_eq!(why(&always, 1), Some(("neighbour", Some(quiet))));
    }

    #[test]
    fn a_damaged_file_is_taken_for_a_pause() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), "{").unwrap();
        assert_eq!(why(&pauses(dir.path(), ""), 1), Some(("ordered", None)));
    }
}
