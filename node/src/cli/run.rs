//! `suanli run`: from a job file to its outputs.
//!
//! ```text
//! read ─▶ check ─▶ plan ─▶ ask ─▶ upload ─▶ submit ─▶ follow ─▶ write outputs
//!  exit 2  exit 2   exit 4  exit 2                     │
//!                                    Ctrl-C: cancels before the agreement, lets go after it,
//!                                            once it said what becomes of the job
//! ```
//!
//! A file with several jobs is a pipeline: see [`crate::pipeline`].
//!
//! Nothing leaves the machine before the file and its program are checked and
//! the person said yes. The program is compiled in a worker process, as the
//! provider will.

mod array;
mod follow;
mod outputs;
mod pipeline;
pub(super) mod plan;
pub(super) mod progress;

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde_json::json;
use suanli_executor::{WorkerProgram, file::InputFile};
use suanli_protocol::{
    ids::{BlobId, Hash, JobId},
    rank::Policy,
    units::Amount,
};
use tokio::sync::mpsc;

pub(super) use self::array::PAGE;
use self::follow::Followed;
use super::{
    context::Context,
    exit::{Exit, Failure},
    screen,
};
use crate::{
    api::types::{BlobInfo, JobInfo, PlanInfo, ReceiptInfo, Submission, Submitted},
    client::{Client, ClientError, make_folder, read_pieces},
    data_dir::random_secret,
    jobfile::{self, JobFileError, PreparedJob},
    pipeline::Pipeline,
};

/// Runs a job: checks it, shows the ranked plan, asks, and brings the result.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  suanli run examples/noop/job.toml             shows the plan and asks
  suanli run job.toml --dry-run                 checks the file and shows the plan
  suanli run job.toml -y --out results          asks nothing, writes into results/
  suanli run job.toml -y -d                     gives the job's id; see `suanli job`
  suanli run job.toml --region CN-NX --policy fastest --max-price 0.30

The job file is described in docs/job-spec.md.")]
pub(super) struct Command {
    /// The job file
    #[arg(value_name = "JOB.toml")]
    file: PathBuf,

    /// Goes ahead without asking
    #[arg(long, short)]
    yes: bool,

    /// Gives the job's id and leaves; the daemon goes on
    #[arg(long, short)]
    detach: bool,

    /// Checks everything and shows the plan, and runs nothing
    #[arg(long, conflicts_with_all = ["yes", "detach"])]
    dry_run: bool,

    /// The folder to write outputs to
    #[arg(long, value_name = "DIR", default_value = ".")]
    out: PathBuf,

    #[command(flatten)]
    market: MarketArgs,
}

/// Values in place of the job file's.
#[derive(Debug, Args)]
pub(super) struct MarketArgs {
    /// How offers are ranked, instead of what the file says
    #[arg(long, value_enum)]
    policy: Option<PolicyArg>,

    /// The most that the whole job may cost, instead of what the file says
    #[arg(long, value_name = "AMOUNT")]
    max_price: Option<Amount>,

    /// A region that is allowed, instead of those in the file; may be repeated
    #[arg(long, value_name = "CODE")]
    region: Vec<String>,

    /// Whom the job is for inside your account
    #[arg(long, value_name = "NAME")]
    principal: Option<String>,
}

/// A policy as an argument.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum PolicyArg {
    /// The lowest expected price
    Cheapest,
    /// The result there soonest: waiting, the inputs' way, and the run
    Fastest,
    /// The lowest product of both
    Balanced,
    /// The shortest way there and back
    Nearest,
    /// The least carbon dioxide, of those who say what their power is like
    Green,
}

impl From<PolicyArg> for Policy {
    fn from(policy: PolicyArg) -> Self {
        match policy {
            PolicyArg::Cheapest => Self::Cheapest,
            PolicyArg::Fastest => Self::Fastest,
            PolicyArg::Balanced => Self::Balanced,
            PolicyArg::Nearest => Self::Nearest,
            PolicyArg::Green => Self::Green,
        }
    }
}

impl MarketArgs {
    /// The job, complete and correct, with the flags' values in place of the file's.
    pub(super) async fn read(
        &self,
        context: &Context,
        file: &Path,
    ) -> Result<PreparedJob, Failure> {
        self.complete(context, jobfile::read(file)?).await
    }

    /// The same of a job that was read.
    async fn complete(
        &self,
        context: &Context,
        mut job: PreparedJob,
    ) -> Result<PreparedJob, Failure> {
        if let Some(policy) = self.policy {
            job.policy = policy.into();
        }
        if self.max_price.is_some() {
            job.max_price = self.max_price;
        }
        if !self.region.is_empty() {
            job.regions.clone_from(&self.region);
        }
        if let Some(principal) = &self.principal {
            job.principal.clone_from(principal);
        }
        let config = context.load(Vec::new())?.config;
        let worker = WorkerProgram::find(config.worker.as_deref()).map_err(JobFileError::Check)?;
        job.check(&worker).await?;
        Ok(job)
    }
}

/// What a person sees of a job before it runs.
fn before(job: &PreparedJob, plan: &PlanInfo) -> String {
    let replicas = usize::from(job.verify.replicas);
    let mut text = array::preview(job) + &plan::text(plan);
    if plan.fitting < replicas && plan.fitting > 0 {
        text += &format!(
            "verify.replicas wants {replicas} accounts, and {} fit: the job would wait for more\n",
            plan.fitting
        );
    }
    if let Some(left) = plan.left.filter(|left| *left < plan.budget) {
        text += &format!(
            "whom it is for has {left} of its budget left: it is refused with more than that as `market.max_price`\n"
        );
    }
    text
}

impl Command {
    pub(super) async fn run(self, context: &Context) -> Result<(), Failure> {
        if let Some(pipeline) = Pipeline::read(&self.file)? {
            return self.pipeline(context, &pipeline).await;
        }
        let job = self.market.read(context, &self.file).await?;
        self.go(context, &job).await
    }

    /// Everything that needs a daemon.
    async fn go(&self, context: &Context, job: &PreparedJob) -> Result<(), Failure> {
        let client = context.client()?;
        let (submission, plan) = planned(&client, job).await?;
        let candidates = plan::require_candidate(&plan, !job.providers.is_empty());
        if self.dry_run {
            // For programs a refusal holds the plan: one answer, not two.
            if candidates.is_ok() || !context.json() {
                show_plan(context, job, &plan);
            }
            return candidates;
        }
        if !context.json() {
            screen::print_aside(&before(job, &plan));
        }
        candidates?;
        // Better now than when the result is paid for.
        make_folder(&self.out)?;
        self.ask(context)?;
        let id = hand_in(&client, job, &submission).await?;
        if self.detach {
            context.answer(&Submitted { job: id }, |_| {
                format!("job {id}: follow it with `suanli job logs {id} --steps`\n")
            });
            return Ok(());
        }
        if job.units() > 1 {
            return self.array(context, &client, job, id).await;
        }
        let run = Running {
            context,
            client: &client,
            job,
            id,
            out: &self.out,
            label: None,
        };
        let followed = run.single().await?;
        let finish = self.finish(context, &client, job, followed);
        follow::unless_interrupted(id, finish).await
    }

    /// Shows an array's way, brings its outputs, and says what came of it.
    async fn array(
        &self,
        context: &Context,
        client: &Client,
        job: &PreparedJob,
        id: JobId,
    ) -> Result<(), Failure> {
        let run = Running {
            context,
            client,
            job,
            id,
            out: &self.out,
            label: None,
        };
        let (mut units, followed) = run.array().await?;
        let finish = async {
            let info = units.finish(&followed).await?;
            context.answer(&units.json(&info, &followed), |_| {
                units.text(&info, &followed)
            });
            Ok(())
        };
        follow::unless_interrupted(id, finish).await
    }

    /// A yes, by flag or by a person.
    fn ask(&self, context: &Context) -> Result<(), Failure> {
        if self.yes {
            return Ok(());
        }
        if context.json() || !screen::is_interactive() {
            let message = "nobody is here to say yes: add -y to run it, or --dry-run to only look";
            return Err(Failure::new(Exit::Usage, message));
        }
        screen::print_aside("Run it with the first that agrees? [y/N] ");
        let mut answer = String::new();
        // Without an answer it is a no.
        let _ = std::io::stdin().read_line(&mut answer);
        match answer.trim().to_ascii_lowercase().as_str() {
            "y" | "yes" => Ok(()),
            _ => Err(Failure::new(Exit::Cancelled, "not run; nothing was sent")),
        }
    }

    /// Writes the outputs of a job that is done; says why one isn't.
    async fn finish(
        &self,
        context: &Context,
        client: &Client,
        job: &PreparedJob,
        followed: Followed,
    ) -> Result<(), Failure> {
        let (info, written) = bring(client, job, followed.job, &self.out).await?;
        let receipt: Option<ReceiptInfo> = match info.receipts.last() {
            Some(receipt) => Some(client.get(&format!("/v1/receipts/{receipt:#}")).await?),
            None => None,
        };
        let answer = json!({
            "job": info,
            "receipt": receipt,
            "outputs": written,
            "wrong_results": followed.wrong,
            "settled": followed.settled,
            "took_ms": followed.took_ms,
        });
        context.answer(&answer, |_| {
            outputs::text(&info, receipt.as_ref(), &written, &followed)
        });
        Ok(())
    }
}

/// A job that was submitted, and whoever waits for it.
struct Running<'a> {
    context: &'a Context,
    client: &'a Client,
    job: &'a PreparedJob,
    id: JobId,
    /// Where its outputs go.
    out: &'a Path,
    /// What its lines begin with, where it is one of several.
    label: Option<&'a str>,
}

impl<'a> Running<'a> {
    /// Until a single job's end.
    async fn single(&self) -> Result<Followed, Failure> {
        let followed = follow::follow(self, None).await;
        followed.map_err(|failure| still_there(self.id, failure))
    }

    /// Until an array's end, bringing outputs of its units as they come.
    async fn array(&self) -> Result<(array::Units<'a>, Followed), Failure> {
        let mut units = array::Units::new(self.client, self.job, self.id, self.out);
        let (accepted, heard) = mpsc::channel(array::RECEIPTS_WAITING);
        let followed = tokio::select! {
            followed = follow::follow(self, Some((self.job.units(), accepted))) => followed,
            never = units.bring(heard) => match never {},
        };
        let followed = followed.map_err(|failure| still_there(self.id, failure))?;
        Ok((units, followed))
    }
}

/// Writes the outputs of a single job that is done; says why one isn't.
async fn bring(
    client: &Client,
    job: &PreparedJob,
    id: JobId,
    out: &Path,
) -> Result<(JobInfo, Vec<outputs::Written>), Failure> {
    let info: JobInfo = client.get(&format!("/v1/jobs/{id:#}")).await?;
    let exit = exit_of(&info);
    if exit != Exit::Done {
        let sentence = match &info.reason {
            Some((_, sentence)) => sentence.clone(),
            None => "no reason was given".to_owned(),
        };
        let message = format!(
            "job {} {}: {sentence}\nsee `suanli job show {}`",
            info.job, info.state, info.job
        );
        return Err(Failure::new(exit, message).with("job", json!(info)));
    }
    let source = outputs::Source {
        job: info.job,
        path: format!("/v1/jobs/{:#}", info.job),
        outputs: &info.outputs,
        unit: 0,
    };
    let written = outputs::write(client, job, &source, out).await;
    let written = written.map_err(|failure| {
        let next = format!(
            "; the result is kept: `suanli job fetch {} --out DIR` brings it as it came",
            info.job
        );
        failure.then(&next).with("job", json!(info))
    })?;
    Ok((info, written))
}

/// The plan, and of an array what its units have of their own.
fn show_plan(context: &Context, job: &PreparedJob, plan: &PlanInfo) {
    let mut answer = json!(plan);
    if let (Some(fields), true) = (answer.as_object_mut(), job.array.is_some()) {
        fields.insert("array".to_owned(), array::preview_json(job));
    }
    context.answer(&answer, |_| before(job, plan));
}

fn exit_of(info: &JobInfo) -> Exit {
    let reason = info.reason.as_ref().map(|(word, _)| word.as_str());
    Exit::of_job(&info.state, reason)
}

/// Without a daemon to ask, the job is not lost.
fn still_there(id: JobId, failure: Failure) -> Failure {
    if failure.exit != Exit::NoDaemon {
        return failure;
    }
    let next = format!(
        "\njob {id} is not lost: when the daemon runs again, `suanli job show {id}` says how it ends"
    );
    failure.then(&next).with("job", json!({ "job": id }))
}

/// The submission, with every blob's hash made here: nothing is sent for a plan.
pub(super) async fn name_blobs(job: &PreparedJob) -> Result<Submission, Failure> {
    let mut inputs = Vec::new();
    for input in &job.inputs {
        if let Some(known) = stays(job, input)? {
            inputs.push(known);
            continue;
        }
        let of_input = input.clone();
        let named = tokio::task::spawn_blocking(move || hash(&of_input)).await;
        let named = named.map_err(|error| Failure::new(Exit::Unusable, error.to_string()))?;
        inputs.push(named.map_err(|source| ClientError::File {
            path: input.path.clone(),
            source,
        })?);
    }
    let mut id = [0; 16];
    id.copy_from_slice(&random_secret()?[..16]);
    Ok(job.submission(JobId::from_bytes(id), inputs))
}

/// The name of an input that stays where it was made.
fn stays(job: &PreparedJob, input: &InputFile) -> Result<Option<BlobInfo>, Failure> {
    let Some(known) = job.away.get(&input.path) else {
        return Ok(None);
    };
    let is_whole = input.made.is_none() && input.offset == 0 && input.length == known.bytes;
    if !is_whole {
        let file = input.path.file_name().unwrap_or_default().display();
        let message = format!(
            "{file} stays with whoever made it, so it can only be read whole and as it is: take it out of `stay`"
        );
        return Err(Failure::new(Exit::Usage, message));
    }
    if job.verify.freivalds.is_some() {
        let message = "verify.product is checked here, with all that the job reads: let what it reads come here, or leave verify.product out";
        return Err(Failure::new(Exit::Usage, message));
    }
    Ok(Some(*known))
}

fn hash(input: &InputFile) -> std::io::Result<BlobInfo> {
    let mut hasher = blake3::Hasher::new();
    read_pieces(input, |piece| {
        hasher.update(&piece);
        true
    })?;
    Ok(BlobInfo {
        blob: BlobId(Hash::from_bytes(*hasher.finalize().as_bytes())),
        bytes: input.length,
    })
}

/// What would be sent, and who could run it.
pub(super) async fn planned(
    client: &Client,
    job: &PreparedJob,
) -> Result<(Submission, PlanInfo), Failure> {
    let submission = name_blobs(job).await?;
    let plan = client.post_json("/v1/plan", &submission).await?;
    Ok((submission, plan))
}

/// Gives the node all of a job.
async fn hand_in(
    client: &Client,
    job: &PreparedJob,
    submission: &Submission,
) -> Result<JobId, Failure> {
    upload(client, job, submission).await?;
    let Submitted { job: id } = client.post_json("/v1/jobs", submission).await?;
    Ok(id)
}

/// Gives the node all blobs, and holds what it has against what was named.
async fn upload(
    client: &Client,
    job: &PreparedJob,
    submission: &Submission,
) -> Result<(), Failure> {
    let spec = client.upload(job.spec.clone()).await?;
    if spec != submission.spec {
        return Err(changed("the program"));
    }
    for (input, named) in job.inputs.iter().zip(&submission.inputs) {
        if job.away.contains_key(&input.path) {
            continue;
        }
        if client.upload_file(input).await? != *named {
            return Err(changed(&input.path.display().to_string()));
        }
    }
    Ok(())
}

fn changed(what: &str) -> Failure {
    let message =
        format!("{what} changed while it was read; run it again when nothing writes to it");
    Failure::new(Exit::Usage, message)
}

#[cfg(test)]
mod tests;
