//! `suanli job`: jobs of this node.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde_json::json;

use super::{
    context::{Context, path},
    cost,
    exit::{Exit, Failure},
    run::{PAGE, progress},
    screen::{self, Table, age, list},
};
use crate::{
    api::types::{JobEventInfo, JobInfo, JobLine, OutputInfo, UnitInfo, UnitsInfo},
    client::{Client, make_folder},
};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Lists jobs, newest first
    List,
    /// Shows one job: its state, what it cost, and what each provider said
    Show {
        /// The job; the first digits are enough
        id: String,
    },
    /// Says what a job would cost, before it runs
    Cost(cost::Command),
    /// Prints a job's log, and goes on until the job ends
    Logs {
        /// The job; the first digits are enough
        id: String,
        /// Prints every step, not only what the job itself says
        #[arg(long)]
        steps: bool,
    },
    /// Ends a job; what was used until then may be due
    Cancel {
        /// The job; the first digits are enough
        id: String,
    },
    /// Writes a job's outputs into files, as they came
    Fetch {
        /// The job; the first digits are enough
        id: String,
        /// The folder to write to
        #[arg(long, value_name = "DIR", default_value = ".")]
        out: PathBuf,
    },
}

impl Command {
    pub(super) async fn run(self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        match self {
            Self::Cost(command) => command.run(context).await,
            Self::List => {
                let mut jobs: Vec<JobInfo> = client.get("/v1/jobs").await?;
                jobs.sort_by_key(|job| std::cmp::Reverse(job.submitted_ms));
                context.answer(&jobs, |jobs| table(jobs));
                Ok(())
            }
            Self::Show { id } => {
                let job: JobInfo = client.get(&path("jobs", &id)?).await?;
                context.answer(&job, show);
                Ok(())
            }
            Self::Logs { id, steps } => logs(context, &client, &id, steps).await,
            Self::Cancel { id } => {
                let job = path("jobs", &id)?;
                let before: JobInfo = client.get(&job).await?;
                let job: JobInfo = client.post(&format!("{job}/cancel")).await?;
                context.answer(&job, |job| cancelled(&before, job));
                Ok(())
            }
            Self::Fetch { id, out } => fetch(context, &client, &id, &out).await,
        }
    }
}

async fn logs(context: &Context, client: &Client, id: &str, steps: bool) -> Result<(), Failure> {
    let mut lines = client
        .lines(&format!("{}/events", path("jobs", id)?))
        .await?;
    while let Some(line) = lines.next::<JobLine>().await? {
        let text = match &line.event {
            _ if context.json() => serde_json::to_string(&line).ok(),
            JobEventInfo::Log { line } => Some(screen::visible(line)),
            event if steps => Some(progress::sentence(event)),
            _ => None,
        };
        if let Some(text) = text {
            screen::print(&format!("{text}\n"));
        }
    }
    Ok(())
}

async fn fetch(context: &Context, client: &Client, id: &str, out: &Path) -> Result<(), Failure> {
    let path = path("jobs", id)?;
    let job: JobInfo = client.get(&path).await?;
    if let Some(units) = job.units {
        return fetch_units(context, client, (&job, units), out).await;
    }
    if job.outputs.is_empty() && !job.is_over() {
        let message = format!(
            "job {} has no outputs yet: it is {}; `suanli job logs {}` waits for its end",
            job.job, job.state, job.job
        );
        return Err(Failure::new(Exit::Usage, message));
    }
    if job.outputs.is_empty() {
        let message = format!(
            "job {} has no outputs ({}); `suanli job show {}` says more",
            job.job, job.state, job.job
        );
        return Err(Failure::new(Exit::JobFailed, message));
    }
    make_folder(out)?;
    let mut written = Vec::new();
    for output in &job.outputs {
        let file = fetch_one(client, &path, output, out).await?;
        written.push(json!({ "name": output.name, "file": file, "bytes": output.bytes }));
    }
    context.answer(&written, |_| {
        let lines = job.outputs.iter();
        let lines = lines.map(|output| {
            format!(
                "wrote {} ({} bytes)\n",
                out.join(&output.name).display(),
                output.bytes
            )
        });
        lines.collect()
    });
    Ok(())
}

/// What is there of an array: a folder for each unit that is done.
async fn fetch_units(
    context: &Context,
    client: &Client,
    (job, all): (&JobInfo, UnitsInfo),
    out: &Path,
) -> Result<(), Failure> {
    let (mut written, mut units, mut from) = (Vec::new(), 0, 0);
    while from < all.total {
        let page = format!("/v1/jobs/{:#}/units?from={from}&limit={PAGE}", job.job);
        let page: Vec<UnitInfo> = client.get(&page).await?;
        for unit in page.iter().filter(|unit| unit.state == "done") {
            let Some(receipt) = unit.receipt else {
                continue;
            };
            let folder = out.join(unit.unit.to_string());
            make_folder(&folder)?;
            units += 1;
            for output in &unit.outputs {
                let path = format!("/v1/receipts/{receipt:#}");
                let file = fetch_one(client, &path, output, &folder).await?;
                written.push(json!({
                    "unit": unit.unit, "name": output.name, "file": file, "bytes": output.bytes,
                }));
            }
        }
        from += PAGE;
    }
    if units == 0 {
        let message = format!(
            "no unit of job {0} is done; it is {1}; `suanli job show {0}` says more",
            job.job, job.state
        );
        return Err(Failure::new(Exit::JobFailed, message));
    }
    context.answer(&written, |written| {
        format!(
            "wrote {} files of {units} of {} units below {}, a folder for each\n",
            written.len(),
            all.total,
            out.display()
        )
    });
    Ok(())
}

/// One output into a folder; where it is.
async fn fetch_one(
    client: &Client,
    path: &str,
    output: &OutputInfo,
    folder: &Path,
) -> Result<PathBuf, Failure> {
    // The name came with the job's program; it is not trusted as a path.
    let is_file_name = !output.name.starts_with('.')
        && output
            .name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.'));
    if !is_file_name {
        let message = format!(
            "output `{}` has no name for a file",
            screen::visible(&output.name)
        );
        return Err(Failure::new(Exit::NotVerified, message));
    }
    let file = folder.join(&output.name);
    let output = format!("{path}/outputs/{}", output.name);
    client.download(&output, &file).await?;
    Ok(file)
}

fn cancelled(before: &JobInfo, job: &JobInfo) -> String {
    let name = format!("job {} ({})", job.job, screen::visible(&job.name));
    if before.is_over() {
        format!("{name} had ended already: {}\n", before.state)
    } else if job.is_over() {
        format!("{name} is {}\n", job.state)
    } else {
        format!(
            "{name} is being cancelled; `suanli job show {}` says what was used until then\n",
            job.job
        )
    }
}

fn table(jobs: &[JobInfo]) -> String {
    if jobs.is_empty() {
        return "no jobs yet: `suanli run examples/noop/job.toml` is a small one\n".into();
    }
    let mut table = Table::new(&[
        "job",
        "name",
        "state",
        ">done",
        "provider",
        "region",
        ">spent",
        "submitted",
    ]);
    for job in jobs {
        let provider = job.provider.map(|peer| peer.to_string());
        table.row([
            job.job.to_string(),
            job.name.clone(),
            job.state.clone(),
            match job.units {
                Some(units) => format!("{} of {}", units.done, units.total),
                None => progress::percent(job.done, job.total),
            },
            provider.unwrap_or_else(|| "-".into()),
            job.region.clone().unwrap_or_else(|| "-".into()),
            job.spent.to_string(),
            age(job.submitted_ms),
        ]);
    }
    table.render(0)
}

fn units_line(units: UnitsInfo) -> String {
    let failed = match units.failed {
        0 => String::new(),
        failed => format!(", {failed} failed"),
    };
    format!("{} of {} units{failed}", units.done, units.total)
}

fn show(job: &JobInfo) -> String {
    let dash = || "-".to_owned();
    let state = match &job.reason {
        Some((reason, sentence)) => format!("{}: {reason}: {sentence}", job.state),
        None => job.state.clone(),
    };
    let place = match (&job.provider, &job.region) {
        (Some(peer), Some(region)) => format!("{peer:#}, in {region}"),
        (Some(peer), None) => format!("{peer:#}"),
        (None, _) => dash(),
    };
    let agreement = job.agreement.map(|agreement| format!("{agreement:#}"));
    let done = match job.units {
        Some(units) => units_line(units),
        None => progress::percent(job.done, job.total),
    };
    let mut text = list(&[
        ("job", format!("{:#}", job.job)),
        ("name", job.name.clone()),
        ("for", job.principal.clone()),
        ("submitted", age(job.submitted_ms)),
        ("state", state),
        ("done", done),
        ("attempt", job.attempt.to_string()),
        ("provider", place),
        ("agreement", agreement.unwrap_or_else(dash)),
        ("spent", job.spent.to_string()),
    ]);
    for (unit, done) in &job.checkpoints {
        let of_unit = match job.units {
            Some(_) => format!("unit {unit} "),
            None => String::new(),
        };
        let kept = format!("{of_unit}after step {done}: it goes on from there");
        text.push_str(&list(&[("kept     ", kept)]));
    }
    let of_units = job.units.is_some();
    for receipt in job.receipts.iter().filter(|_| !of_units) {
        text.push_str(&list(&[("receipt  ", format!("{receipt:#}"))]));
    }
    for output in &job.outputs {
        let line = format!("{}: {} bytes, {:#}", output.name, output.bytes, output.blob);
        text.push_str(&list(&[("output   ", line)]));
    }
    for (peer, sentence) in &job.declined {
        text.push_str(&list(&[("declined ", format!("{peer}: {sentence}"))]));
    }
    text
}
