//! How busy the machine was, and how much memory a process has.
//!
//! Linux only: it reads `/proc`. Elsewhere the figures are zero.

use std::{
    fmt, fs, thread,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::Serialize;

/// The machine during a benchmark.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(super) struct State {
    /// Cores that this process may use.
    cores: usize,
    /// Load average of the last minute, at the end.
    load_1m: f64,
    /// Share of all cores' time that other processes took meanwhile.
    others_percent: u64,
    /// When it ended, in milliseconds since 1970.
    at_ms: u64,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            cores,
            load_1m,
            others_percent,
            ..
        } = self;
        write!(
            f,
            "machine: {cores} cores, load {load_1m:.2}, other programs took {others_percent}% of them"
        )?;
        match others_percent {
            0..=5 => Ok(()),
            _ => f.write_str(": timings are provisional"),
        }
    }
}

/// Looks at the machine from now on.
#[derive(Debug)]
pub(super) struct Watch {
    begin: Option<Ticks>,
}

impl Watch {
    pub(super) fn begin() -> Self {
        Self {
            begin: Ticks::now(),
        }
    }

    /// What was seen. Children count as this benchmark's once they were waited for.
    pub(super) fn end(&self) -> State {
        let others_percent = self
            .begin
            .zip(Ticks::now())
            .map_or(0, |(begin, end)| end.others_percent_since(begin));
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        State {
            cores: thread::available_parallelism().map_or(0, usize::from),
            load_1m: load_1m().unwrap_or_default(),
            others_percent,
            at_ms: since
                .ok()
                .and_then(|since| u64::try_from(since.as_millis()).ok())
                .unwrap_or_default(),
        }
    }
}

/// Memory of a process in MiB: resident, and with shared pages counted by share.
pub(super) fn memory_mib(pid: u32) -> Option<(f64, f64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let of = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key))?;
        let kib: u32 = line.trim().trim_end_matches(" kB").parse().ok()?;
        Some(f64::from(kib) / 1024.0)
    };
    Some((of("Rss:")?, of("Pss:")?))
}

/// Where a process's memory is, in MiB; pages that others use, too, by share.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Parts {
    /// Pages that it has written, wherever they are: nobody else's.
    pub(super) written: f64,
    /// Pages of shared libraries as they are on disk.
    pub(super) libraries: f64,
    /// Pages of the program itself as it is on disk, and what is left.
    pub(super) program: f64,
}

impl Parts {
    pub(super) fn all(&self) -> f64 {
        self.written + self.libraries + self.program
    }
}

/// Where a process's memory is.
pub(super) fn parts_mib(pid: u32) -> Option<Parts> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps")).ok()?;
    Some(parts_of(&text))
}

/// See proc_pid_smaps(5): a head for each mapping, its path last, and below it
/// `Key: number kB`.
fn parts_of(smaps: &str) -> Parts {
    let (mut parts, mut is_library) = (Parts::default(), false);
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let (key, value) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        let mib = value
            .parse()
            .map_or(0.0, |kib: u32| f64::from(kib) / 1024.0);
        let rest = if is_library {
            &mut parts.libraries
        } else {
            &mut parts.program
        };
        match key {
            "Pss:" => *rest += mib,
            "Private_Dirty:" => {
                *rest -= mib;
                parts.written += mib;
            }
            head if !head.ends_with(':') => is_library = line.contains(".so"),
            _ => {}
        }
    }
    parts
}

fn load_1m() -> Option<f64> {
    let text = fs::read_to_string("/proc/loadavg").ok()?;
    text.split(' ').next()?.parse().ok()
}

/// Clock ticks since the machine's start, as /proc counts them.
#[derive(Debug, Clone, Copy)]
struct Ticks {
    all: u64,
    busy: u64,
    own: u64,
}

impl Ticks {
    fn now() -> Option<Self> {
        let stat = fs::read_to_string("/proc/stat").ok()?;
        let own = fs::read_to_string("/proc/self/stat").ok()?;
        Self::parse(stat.lines().next()?, &own)
    }

    /// See proc_stat(5): user, nice, system, idle, iowait, and more; and
    /// proc_pid_stat(5): after the name, the 12th to 15th are utime, stime and
    /// those of children.
    fn parse(all_cores: &str, own: &str) -> Option<Self> {
        let numbers = |text: &str| -> Vec<u64> {
            let fields = text.split_ascii_whitespace();
            fields.filter_map(|field| field.parse().ok()).collect()
        };
        let cores = numbers(all_cores);
        // Guests' time, which stands last, is in the user's already.
        let all: u64 = cores.iter().take(8).sum();
        let idle: u64 = cores.iter().skip(3).take(2).sum();
        let own = own.rsplit_once(')')?.1.split_ascii_whitespace();
        let own = own
            .skip(11)
            .take(4)
            .filter_map(|field| field.parse::<u64>().ok());
        Some(Self {
            all,
            busy: all - idle,
            own: own.sum(),
        })
    }

    fn others_percent_since(self, begin: Self) -> u64 {
        let busy = self.busy.saturating_sub(begin.busy);
        let own = self.own.saturating_sub(begin.own);
        let all = self.all.saturating_sub(begin.all);
        (busy.saturating_sub(own) * 100)
            .checked_div(all)
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_took_is_the_busy_time_that_was_not_ours() {
        let own = "7 (a b) S 1 7 7 0 -1 4194560 1 0 0 0 10 5 3 2 20 0 1 0 4242 1 1";
        let begin = Ticks::parse("cpu  100 0 100 800 0 0 0 0 50 0", own).unwrap();
        assert_eq!((begin.all, begin.busy, begin.own), (1000, 200, 20));
        let own = "7 (a b) S 1 7 7 0 -1 4194560 1 0 0 0 50 5 3 2 20 0 1 0 4242 1 1";
        let end = Ticks::parse("cpu  160 0 100 840 0 0 0 0 90 0", own).unwrap();
        assert_eq!(end.others_percent_since(begin), 20);
    }

    #[test]
    fn memory_is_told_by_what_it_is_of() {
        let smaps = "55-56 r-xp 0 08:01 7  /usr/bin/suanli-worker\nSize: 9999 kB\nPss: 3072 kB\n\
            Private_Dirty: 1024 kB\n56-57 r--p 0 08:01 8  /usr/lib/libLLVM-15.so.1\nPss: 8192 kB\n\
            Private_Dirty: 2048 kB\n57-58 rw-p 0 00:00 0 \nPss: 1024 kB\nPrivate_Dirty: 1024 kB\n";
        let parts = parts_of(smaps);
        let wanted = Parts {
            written: 4.0,
            libraries: 6.0,
            program: 2.0,
        };
        assert_eq!((parts, parts.all()), (wanted, 12.0));
    }

    #[test]
    fn a_quiet_machine_needs_no_warning() {
        let quiet = State::default().to_string();
        assert!(!quiet.contains("provisional"), "{quiet}");
        let busy = State {
            others_percent: 40,
            ..State::default()
        };
        assert!(busy.to_string().ends_with("provisional"));
    }
}
