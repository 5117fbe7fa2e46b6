//! Processes that outlive the command which started them.
//!
//! A process is named by its id and the moment of its start, as the kernel
//! counts it: an id alone is given to another process sooner or later, and a
//! signal must never reach that one. Linux's `/proc` tells the moment; where
//! there is none, every process counts as gone and nothing is signalled.

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use super::wait::wait_until;

/// After SIGKILL the kernel needs moments; a machine that swaps needs more.
const REAPED_WITHIN: Duration = Duration::from_secs(30);

/// A process that may have ended meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pid: u32,
    /// Clock ticks from the machine's start to the process's.
    started: u64,
}

/// What a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    /// It runs, or waits for something.
    Running,
    /// A signal stopped it, and another may continue it.
    Paused,
    /// It is no more.
    Ended,
}

impl Process {
    /// Starts a program in a process group of its own, so that Ctrl-C in the
    /// terminal does not reach it, with both outputs appended to a file.
    pub(super) fn spawn(command: &mut Command, log: &Path) -> io::Result<(Self, Child)> {
        let log = OpenOptions::new().create(true).append(true).open(log)?;
        let mut child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()?;
        let pid = child.id();
        let Some((_, started)) = read_stat(pid) else {
            // Nothing that can't be named again is left running.
            child.kill()?;
            child.wait()?;
            return Err(io::Error::other("/proc does not say when it started"));
        };
        Ok((Self { pid, started }, child))
    }

    /// Its id.
    pub const fn pid(self) -> u32 {
        self.pid
    }

    /// What it does now.
    pub fn activity(self) -> Activity {
        match read_stat(self.pid) {
            Some((_, started)) if started != self.started => Activity::Ended,
            Some(('Z' | 'X' | 'x', _)) | None => Activity::Ended,
            Some(('T' | 't', _)) => Activity::Paused,
            Some(_) => Activity::Running,
        }
    }

    /// Stops it where it is, as a machine that hangs.
    pub(super) fn pause(self) -> io::Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets it go on.
    pub(super) fn resume(self) -> io::Result<()> {
        self.signal(Signal::CONT)
    }

    /// Asks it to end cleanly.
    pub(super) fn terminate(self) -> io::Result<()> {
        self.signal(Signal::TERM)?;
        // A paused process would hear of it only when it goes on.
        self.resume()
    }

    /// Ends it at once, as a power cut would; returns when it is gone.
    pub(super) fn kill(self) -> io::Result<()> {
        self.signal(Signal::KILL)?;
        if self.ended_within(REAPED_WITHIN) {
            return Ok(());
        }
        let words = format!("process {} does not end after SIGKILL", self.pid);
        Err(io::Error::new(io::ErrorKind::TimedOut, words))
    }

    /// Waits for its end; false if it still runs.
    pub(super) fn ended_within(self, limit: Duration) -> bool {
        wait_until(limit, || self.activity() == Activity::Ended)
    }

    fn signal(self, signal: Signal) -> io::Result<()> {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        match (self.activity(), pid) {
            (Activity::Ended, _) | (_, None) => Ok(()),
            (Activity::Running | Activity::Paused, Some(pid)) => match kill_process(pid, signal) {
                // It ended between the look and the signal.
                Err(rustix::io::Errno::SRCH) => Ok(()),
                other => other.map_err(io::Error::from),
            },
        }
    }
}

/// State and start of a process; see proc_pid_stat(5).
fn read_stat(pid: u32) -> Option<(char, u64)> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The second field is the program's name in brackets, which may hold blanks
/// and brackets itself; the third is the state, the 22nd the start.
fn parse_stat(stat: &str) -> Option<(char, u64)> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let started = fields.nth(18)?.parse().ok()?;
    Some((state, started))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper() -> (Process, Child) {
        let log = std::env::temp_dir().join(format!("suanli-process-{}", std::process::id()));
        let spawned = Process::spawn(Command::new("sleep").arg("600"), &log).unwrap();
        fs::remove_file(log).unwrap();
        spawned
    }

    #[test]
    fn names_with_brackets_are_parsed() {
        let stat = "7 (a) b) (c) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 1 1";
        assert_eq!(parse_stat(stat), Some(('S', 4242)));
        assert_eq!(parse_stat("7 (a"), None);
    }

    #[test]
    fn a_process_is_paused_resumed_and_killed() {
        let (process, mut child) = sleeper();
        assert_eq!(process.activity(), Activity::Running);
        process.pause().unwrap();
        assert!(wait_until(REAPED_WITHIN, || process.activity() == Activity::Paused));
        process.resume().unwrap();
        assert!(wait_until(REAPED_WITHIN, || process.activity() == Activity::Running));
        process.kill().unwrap();
        assert_eq!(process.activity(), Activity::Ended);
        child.wait().unwrap();
    }

    #[test]
    fn a_paused_process_can_be_ended_cleanly() {
        let (process, mut child) = sleeper();
        process.pause().unwrap();
        process.terminate().unwrap();
        assert!(process.ended_within(REAPED_WITHIN));
        child.wait().unwrap();
    }

    #[test]
    fn a_recycled_id_is_not_signalled() {
        let (process, mut child) = sleeper();
        let earlier = Process {
            started: process.started - 1,
            ..process
        };
        assert_eq!(earlier.activity(), Activity::Ended);
        earlier.kill().unwrap();
        assert_eq!(process.activity(), Activity::Running);
        process.kill().unwrap();
        child.wait().unwrap();
    }
}
