//! `provide.hours`: when in a week a node sells.
//!
//! `"mon-fri 19:00-07:00"`, `"sat,sun"`, `"22:00-06:00"`: days, then a time from each
//! of them; a part that is left out means all. A time that ends before it begins ends
//! on the next day. No entry at all means always. The clock is UTC, shifted by
//! `provide.utc_offset`: there is no summer time.

use std::{
    fmt::{self, Write as _},
    str::FromStr,
};

use suanli_protocol::units::Wall;

const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
const DAY: u64 = 24 * 60;
const WEEK: u64 = 7 * DAY;
const MINUTE_MS: u64 = 60_000;
/// 1970 began on a Thursday: the minute of the week then.
const EPOCH: u64 = 3 * DAY;
/// Offsets that there are, in minutes.
const OFFSET_MAX: u64 = 14 * 60;

/// When a node sells.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hours {
    entries: Vec<Entry>,
    offset: UtcOffset,
}

/// How far a place's clock is ahead of UTC.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UtcOffset {
    minutes: u64,
    is_behind: bool,
}

/// One line of them, as it was written, and minutes of the week: first and length.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    text: String,
    spans: Vec<(u64, u64)>,
}

impl Hours {
    /// The same hours by another clock.
    #[must_use]
    pub fn by(self, offset: UtcOffset) -> Self {
        Self { offset, ..self }
    }

    /// The entries, as they were written.
    pub fn entries(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|entry| &*entry.text)
    }

    /// Whether it sells then.
    pub fn is_open(&self, at: Wall) -> bool {
        self.is_open_in(self.minute(at))
    }

    /// When that changes next; never if it is always the same.
    pub fn next_change(&self, now: Wall) -> Option<Wall> {
        let first = self.minute(now);
        let is_open = self.is_open_in(first);
        let changed = (1..=WEEK).find(|step| self.is_open_in(first + step) != is_open)?;
        let this_minute = now.as_millis() / MINUTE_MS;
        Some(Wall::from_millis((this_minute + changed) * MINUTE_MS))
    }

    fn is_open_in(&self, minute: u64) -> bool {
        let holds = |&(first, length): &(u64, u64)| (minute + WEEK - first) % WEEK < length;
        self.entries.is_empty()
            || self
                .entries
                .iter()
                .any(|entry| entry.spans.iter().any(holds))
    }

    /// The minute of the week by this clock, or one a week later.
    fn minute(&self, at: Wall) -> u64 {
        let utc = at.as_millis() / MINUTE_MS + EPOCH + WEEK;
        let local = match self.offset.is_behind {
            false => utc + self.offset.minutes,
            true => utc - self.offset.minutes,
        };
        local % WEEK
    }
}

impl FromIterator<Self> for Hours {
    fn from_iter<T: IntoIterator<Item = Self>>(all: T) -> Self {
        Self {
            entries: all.into_iter().flat_map(|one| one.entries).collect(),
            offset: UtcOffset::default(),
        }
    }
}

/// Text that is no time of a week.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}`: {why}; write \"mon-fri 19:00-07:00\", \"sat,sun\" or \"22:00-06:00\"")]
pub struct ParseHoursError {
    text: String,
    why: String,
}

impl FromStr for Hours {
    type Err = ParseHoursError;

    /// One entry, or several with semicolons between them.
    fn from_str(text: &str) -> Result<Self, ParseHoursError> {
        let entries = text.split(';').map(str::trim);
        let entries = entries.filter(|entry| !entry.is_empty()).map(|entry| {
            let error = |why| ParseHoursError {
                text: entry.escape_debug().to_string(),
                why,
            };
            parse_entry(&entry.to_ascii_lowercase()).map_err(error)
        });
        Ok(Self {
            entries: entries.collect::<Result<_, _>>()?,
            offset: UtcOffset::default(),
        })
    }
}

fn parse_entry(text: &str) -> Result<Entry, String> {
    let is_time = |word: &&str| word.starts_with(|first: char| first.is_ascii_digit());
    let words = text.split_whitespace().collect::<Vec<_>>();
    let (days, times) = match *words.as_slice() {
        [times] if is_time(&times) => ("mon-sun", times),
        [days] => (days, "00:00-24:00"),
        [days, times] if !is_time(&days) => (days, times),
        _ => return Err("days and then one time are needed".to_owned()),
    };
    let (first, length) = parse_times(times)?;
    let days = parse_days(days)?.into_iter();
    Ok(Entry {
        text: text.to_owned(),
        spans: days.map(|day| (day * DAY + first, length)).collect(),
    })
}

fn parse_days(text: &str) -> Result<Vec<u64>, String> {
    let mut days = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (parse_day(first)?, parse_day(last)?);
        let count = (last + 7 - first) % 7;
        days.extend((0..=count).map(|step| (first + step) % 7));
    }
    Ok(days)
}

fn parse_day(text: &str) -> Result<u64, String> {
    let day = (0..).zip(DAYS).find(|(_, name)| *name == text);
    day.map(|(day, _)| day)
        .ok_or_else(|| format!("`{text}` is no day; they are {}", DAYS.join(", ")))
}

/// The minute of the day, and how many follow.
fn parse_times(text: &str) -> Result<(u64, u64), String> {
    let (first, last) = text
        .split_once('-')
        .ok_or_else(|| format!("`{text}` has no end"))?;
    let (first, last) = (parse_time(first)?, parse_time(last)?);
    match (last + DAY - first % DAY) % DAY {
        0 if first == 0 && last == DAY => Ok((0, DAY)),
        0 => Err(format!(
            "`{text}` ends when it begins; leave the time out for the whole day"
        )),
        length => Ok((first % DAY, length)),
    }
}

fn parse_time(text: &str) -> Result<u64, String> {
    let digits = |part: &str| match part.bytes().all(|byte| byte.is_ascii_digit()) {
        true if part.len() == 2 => part.parse::<u64>().ok(),
        true | false => None,
    };
    let time = text
        .split_once(':')
        .and_then(|(hour, minute)| Some((digits(hour)?, digits(minute)?)))
        .filter(|&(hour, minute)| minute < 60 && hour * 60 + minute <= DAY);
    time.map(|(hour, minute)| hour * 60 + minute)
        .ok_or_else(|| format!("`{text}` is no time of day, like 07:30"))
}

impl FromStr for UtcOffset {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (is_behind, time) = match text.strip_prefix('-') {
            Some(time) => (true, time),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        let minutes = parse_time(time)
            .ok()
            .filter(|minutes| *minutes <= OFFSET_MAX);
        let minutes = minutes.ok_or_else(|| {
            let text = text.escape_debug();
            format!("`{text}` is no offset from UTC; write one like \"+08:00\" or \"-05:00\"")
        })?;
        Ok(Self { minutes, is_behind })
    }
}

impl fmt::Display for UtcOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.is_behind { '-' } else { '+' };
        f.write_char(sign)?;
        write!(f, "{:02}:{:02}", self.minutes / 60, self.minutes % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Minutes after the Monday before 1970's second week.
    fn at(day: u64, hour: u64, minute: u64) -> Wall {
        let minutes = WEEK - EPOCH + day * DAY + hour * 60 + minute;
        Wall::from_millis(minutes * MINUTE_MS + 59_999)
    }

    fn hours(text: &str) -> Hours {
        text.parse().unwrap()
    }

    #[test]
    fn nights_of_working_days_and_whole_weekends() {
        let free = hours("mon-fri 19:00-07:00; sat,sun");
        for (day, hour, minute, open) in [
            (0, 6, 59, false),
            (0, 18, 59, false),
            (0, 19, 0, true),
            (1, 6, 59, true),
            (1, 7, 0, false),
            (4, 23, 0, true),
            (5, 12, 0, true),
            (6, 23, 59, true),
        ] {
            assert_eq!(free.is_open(at(day, hour, minute)), open, "{day} {hour}");
        }
        let change = |now, then| {
            let minute = |at: Wall| at.as_millis() / MINUTE_MS;
            assert_eq!(free.next_change(now).map(minute), Some(minute(then)));
        };
        change(at(1, 7, 0), at(1, 19, 0));
        change(at(4, 20, 0), at(7, 0, 0));
    }

    #[test]
    fn days_wrap_around_the_week_and_none_means_always() {
        let over = hours("sun-mon 22:00-02:00");
        assert!(over.is_open(at(0, 1, 0)) && over.is_open(at(1, 1, 59)));
        assert!(!over.is_open(at(2, 1, 0)) && !over.is_open(at(6, 1, 0)));
        assert!(hours("").is_open(at(3, 3, 3)));
        assert_eq!(hours("").next_change(at(0, 0, 0)), None);
        assert_eq!(hours("mon-sun").next_change(at(0, 0, 0)), None);
    }

    #[test]
    fn the_offset_moves_the_clock() {
        let days = hours("mon 00:00-12:00");
        let ahead = days.clone().by("+08:00".parse().unwrap());
        assert!(ahead.is_open(at(6, 16, 0)) && !ahead.is_open(at(0, 4, 0)));
        let behind = days.by("-03:30".parse().unwrap());
        assert!(behind.is_open(at(0, 3, 30)) && !behind.is_open(at(0, 3, 29)));
        assert_eq!("-03:30".parse::<UtcOffset>().unwrap().to_string(), "-03:30");
        for wrong in ["", "8", "+15:00", "east", "+0800"] {
            assert!(wrong.parse::<UtcOffset>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_no_time_of_a_week_is_refused_in_words() {
        for (text, says) in [
            ("mo 19:00-07:00", "`mo` is no day"),
            ("mon-fri 19-07", "`19` is no time"),
            ("mon 24:01-07:00", "`24:01` is no time"),
            ("mon 07:00", "has no end"),
            ("mon 07:00-07:00", "ends when it begins"),
            ("19:00-07:00 mon", "days and then one time"),
            ("mon 7:00-8:00", "`7:00` is no time"),
        ] {
            let error = text.parse::<Hours>().unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
