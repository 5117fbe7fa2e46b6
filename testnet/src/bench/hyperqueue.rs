//! HyperQueue, as something to compare with.

use std::{
    io::{BufRead as _, BufReader, Lines, Write as _},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail};

/// HyperQueue in a process of its own, run on order.
pub(super) struct HyperQueue {
    process: Child,
    orders: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    version: String,
}

impl HyperQueue {
    pub(super) fn start(python: &Path) -> anyhow::Result<Self> {
        let mut process = Command::new(python)
            .args(["-c", include_str!("hyperqueue.py")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("{} can't be run", python.display()))?;
        let orders = process.stdin.take().context("its input")?;
        let answers = process.stdout.take().context("its output")?;
        let mut answers = BufReader::new(answers).lines();
        let version = answers.next().context("HyperQueue did not start")??;
        Ok(Self {
            process,
            orders,
            answers,
            version,
        })
    }

    /// Runs jobs one after the other, each after a pause, and says how long each
    /// took.
    pub(super) fn run(&mut self, jobs: usize, pause: Duration) -> anyhow::Result<Vec<f64>> {
        writeln!(self.orders, "{jobs} {}", pause.as_millis())?;
        let answer = self.answers.next().context("HyperQueue ended")??;
        let times: Vec<f64> = serde_json::from_str(&answer)?;
        if times.len() != jobs {
            bail!("HyperQueue ran {} jobs of {jobs}", times.len());
        }
        Ok(times)
    }

    /// Runs one job of so many tasks, and says how many ran in a second.
    pub(super) fn rate(&mut self, tasks: usize) -> anyhow::Result<f64> {
        writeln!(self.orders, "rate {tasks}")?;
        let answer = self.answers.next().context("HyperQueue ended")??;
        let seconds: f64 = serde_json::from_str(&answer)?;
        let tasks = f64::from(u32::try_from(tasks)?);
        Ok(tasks / seconds)
    }

    /// Ends it, and says which version it was.
    pub(super) fn stop(self) -> anyhow::Result<String> {
        let Self {
            mut process,
            orders,
            version,
            ..
        } = self;
        // At the end of its orders it ends.
        drop(orders);
        process.wait()?;
        Ok(version)
    }
}
