//! Jobs of ours: plan, submit, follow, cancel, collect.
//!
//! The driver knows the jobs of this run and the last ones before it; older
//! ones are found in the store. Both are shown alike.

use std::{collections::BTreeSet, convert::Infallible};

use axum::{
    Json,
    body::{Body, Bytes},
    extract::Path,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use futures::stream;
use serde::Deserialize;
use suanli_protocol::{
    expression::Expression,
    ids::{BlobId, JobId, PeerId, ReceiptId},
    message::InlineBlobs,
    peer::JobView,
    rank::Misfit,
    receipt::Verdict,
    record::JobOrder,
    registry::Reason,
};
use tokio::sync::{OwnedSemaphorePermit, watch};

use super::{
    Api, Shared, accounts, blobs,
    find::Digits,
    gates::Gate,
    input::{JsonBody, Page, Params},
    problem::Problem,
};
use crate::{
    api::{
        types::{
            BlobInfo, ChangeInfo, ExplainInfo, JobEventInfo, JobInfo, JobLine, OutputInfo,
            PlanInfo, Submission, Submitted, UnitInfo,
        },
        views,
    },
    changes,
    document::allowed,
    handle::{Gone, Watch},
    records::JobStory,
};

const JOBS: usize = 50;
const JOBS_MAX: usize = 200;
/// Receipts of one job whose outputs are shown.
const RECEIPTS_SHOWN: usize = 64;
const UNITS: u32 = 100;
/// Regions that may be meant by one that no offer is in.
const REGIONS_SHOWN: usize = 20;
const UNITS_MAX: u32 = 1000;

type Answer<T> = Result<Json<T>, Problem>;

pub(super) async fn plan(
    api: Shared,
    JsonBody(submission): JsonBody<Submission>,
) -> Answer<PlanInfo> {
    let facts = api.handle.facts();
    let order = views::order(&submission, facts.max_price, InlineBlobs::default())?;
    let budget = order.budget;
    let left = api.handle.budget(order.principal.clone()).await?.left();
    let nowhere = nowhere(&api, &order).await?;
    let plan = api.handle.plan(Box::new(order)).await?;
    Ok(Json(PlanInfo {
        left,
        nowhere,
        ..views::plan_info(&plan, &facts.unit, budget)
    }))
}

pub(super) async fn explain(
    api: Shared,
    JsonBody(submission): JsonBody<Submission>,
) -> Answer<ExplainInfo> {
    let facts = api.handle.facts();
    let order = views::order(&submission, facts.max_price, InlineBlobs::default())?;
    let before = api.handle.plan(Box::new(order.clone())).await?;
    let refusing = |misfit: &Misfit| misfit.decline.reason == Reason::NOT_ACCEPTED;
    let refusing = before.misfits.iter().filter(|misfit| refusing(misfit));
    let refusing: BTreeSet<PeerId> = refusing.map(|misfit| misfit.peer).collect();
    let accepted: Vec<Expression> = match refusing.is_empty() {
        true => Vec::new(),
        false => {
            let offers = api.handle.offers().await?;
            let theirs = offers
                .iter()
                .filter(|offer| refusing.contains(&offer.signer()));
            theirs
                .filter_map(|offer| offer.body().accept.clone())
                .collect()
        }
    };
    let mut tried = Vec::new();
    for change in changes::changes(&order, &before, &accepted) {
        let after = api.handle.plan(Box::new(change.order)).await?;
        tried.push((change.text, changes::admitted(&before, &after)));
    }
    let changes = changes::best(tried).into_iter();
    Ok(Json(ExplainInfo {
        plan: PlanInfo {
            nowhere: nowhere(&api, &order).await?,
            ..views::plan_info(&before, &facts.unit, order.budget)
        },
        changes: changes
            .map(|(change, admits)| ChangeInfo { change, admits })
            .collect(),
    }))
}

/// Regions that a job names and no offer is in, each with the one that may be meant.
async fn nowhere(api: &Api, order: &JobOrder) -> Result<Vec<String>, Gone> {
    if order.regions.is_empty() {
        return Ok(Vec::new());
    }
    let offers = api.handle.offers().await?;
    let known: BTreeSet<&str> = offers.iter().map(|offer| &*offer.body().region).collect();
    let unheard = order
        .regions
        .iter()
        .filter(|region| !known.contains(&***region));
    let said = unheard.map(|region| {
        let known = known.iter().copied().take(REGIONS_SHOWN);
        let known: Vec<&str> = known.collect();
        match known.is_empty() {
            true => format!("no offer is in {region}"),
            false => format!("no offer is in {region}; {}", allowed(region, known)),
        }
    });
    Ok(said.collect())
}

pub(super) async fn submit(
    api: Shared,
    JsonBody(submission): JsonBody<Submission>,
) -> Answer<Submitted> {
    let inline = blobs::inline(&api, &submission).await?;
    let order = views::order(&submission, api.handle.facts().max_price, inline)?;
    let job = order.job;
    api.handle.submit(Box::new(order)).await??;
    Ok(Json(Submitted { job }))
}

pub(super) async fn list(api: Shared, page: Params<Page>) -> Answer<Vec<JobInfo>> {
    let limit = page.0.limit(JOBS, JOBS_MAX);
    let live = api.handle.snapshot().await?.jobs;
    let regions = accounts::regions(&api).await?;
    let mut jobs: Vec<JobInfo> = live
        .iter()
        .map(|view| {
            let region = view.provider.and_then(|peer| regions.get(&peer).cloned());
            views::job_info(view, region, Vec::new())
        })
        .collect();
    if jobs.len() < limit {
        for job in api.archive().await?.newest_jobs(limit).await? {
            if live.iter().all(|view| view.job != job)
                && let Some(story) = api.archive().await?.job(job).await?
            {
                jobs.push(views::stored_job_info(&story));
            }
        }
    }
    jobs.sort_by_key(|job| (std::cmp::Reverse(job.submitted_ms), job.job));
    jobs.truncate(limit);
    for job in &mut jobs {
        job.outputs.clear();
    }
    Ok(Json(jobs))
}

pub(super) async fn show(api: Shared, Path(id): Path<String>) -> Answer<JobInfo> {
    let job = find(&api, &id).await?;
    Ok(Json(whole(&api, &job).await?))
}

/// A job that is over stays as it is.
pub(super) async fn cancel(api: Shared, Path(id): Path<String>) -> Answer<JobInfo> {
    let job = find(&api, &id).await?;
    api.handle.cancel(job.id()).await?;
    let job = known(&api, job.id()).await?;
    let job = job.ok_or_else(|| Problem::unknown("job", &id))?;
    Ok(Json(whole(&api, &job).await?))
}

/// Which units.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UnitPage {
    #[serde(default)]
    from: u32,
    limit: Option<u32>,
}

pub(super) async fn units(
    api: Shared,
    Path(id): Path<String>,
    Params(page): Params<UnitPage>,
) -> Answer<Vec<UnitInfo>> {
    let job = find(&api, &id).await?.id();
    let limit = page.limit.unwrap_or(UNITS).clamp(1, UNITS_MAX);
    let range = page.from..page.from.saturating_add(limit);
    let units = api.archive().await?.units(job, range).await?;
    let units = units.ok_or_else(|| Problem::unknown("job", &id))?;
    Ok(Json(units.iter().map(views::unit_info).collect()))
}

pub(super) async fn receipt_output(
    api: Shared,
    Path((id, name)): Path<(String, String)>,
) -> Result<Response, Problem> {
    let place = api.gates.enter(Gate::Stream)?;
    let story = accounts::find_receipt(&api, &id).await?;
    let outputs = views::outputs(story.receipt.body());
    let Some(output) = outputs.iter().find(|output| output.name == name) else {
        let names: Vec<&str> = outputs.iter().map(|o| o.name.as_str()).collect();
        let there = format!("the receipt names the outputs {}", names.join(", "));
        return Err(Problem::usage(StatusCode::NOT_FOUND, there));
    };
    if !blobs::is_here(&api, output.blob).await? {
        let receipt = ReceiptId(story.receipt.hash());
        let archive = api.archive().await?;
        if let Some(bytes) = archive.small_output(receipt, output.blob).await? {
            return Ok(blobs::whole(bytes));
        }
    }
    let blob = BlobInfo {
        blob: output.blob,
        bytes: output.bytes,
    };
    blobs::download(&api, blob, place).await
}

pub(super) async fn output(
    api: Shared,
    Path((id, name)): Path<(String, String)>,
) -> Result<Response, Problem> {
    let place = api.gates.enter(Gate::Stream)?;
    let found = find(&api, &id).await?;
    let job = whole(&api, &found).await?;
    let Some(output) = job.outputs.iter().rev().find(|output| output.name == name) else {
        let names: Vec<&str> = job.outputs.iter().map(|o| o.name.as_str()).collect();
        let there = match names.as_slice() {
            [] => format!("job {} has no outputs; it is {}", job.job, job.state),
            names => format!("job {} has the outputs {}", job.job, names.join(", ")),
        };
        return Err(Problem::usage(StatusCode::NOT_FOUND, there));
    };
    let blob = BlobInfo {
        blob: output.blob,
        bytes: output.bytes,
    };
    let is_blob = blobs::is_here(&api, blob.blob).await?;
    if let (false, Job::Live(view)) = (is_blob, &found)
        && let Some(bytes) = written_output(&api, view, blob.blob).await?
    {
        return Ok(blobs::whole(bytes));
    }
    blobs::download(&api, blob, place).await
}

/// A small output is accepted, and shown, before it is a blob.
async fn written_output(
    api: &Api,
    job: &JobView,
    blob: BlobId,
) -> Result<Option<Vec<u8>>, Problem> {
    for receipt in job.receipts.iter().take(RECEIPTS_SHOWN) {
        if let Some(bytes) = api.archive().await?.small_output(*receipt, blob).await? {
            return Ok(Some(bytes));
        }
    }
    Ok(None)
}

/// How much of a job's course.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Course {
    /// Only the last line, once nothing more can happen.
    #[serde(default)]
    last: bool,
}

pub(super) async fn events(
    api: Shared,
    Path(id): Path<String>,
    Params(Course { last }): Params<Course>,
) -> Result<Response, Problem> {
    let place = api.gates.enter(Gate::Stream)?;
    let job = find(&api, &id).await?;
    let watch = match api.handle.watch(job.id()).await? {
        Some(watch) => watch,
        // Of an earlier run: the store remembers the most of it.
        None => stored_watch(api.archive().await?.job(job.id()).await?.as_ref()),
    };
    let follow = Follow {
        past: watch.past.into_iter(),
        lines: watch.lines,
        stopped: api.stopped.clone(),
        last,
        _place: place,
    };
    let lines = stream::unfold(follow, |mut follow| async move {
        let line = follow.next().await?;
        Some((Ok::<_, Infallible>(line), follow))
    });
    let headers = [(header::CONTENT_TYPE, "application/x-ndjson")];
    Ok((headers, Body::from_stream(lines)).into_response())
}

/// A job that is being followed.
struct Follow {
    past: std::vec::IntoIter<JobLine>,
    lines: tokio::sync::mpsc::Receiver<JobLine>,
    stopped: watch::Receiver<bool>,
    last: bool,
    _place: OwnedSemaphorePermit,
}

impl Follow {
    async fn next(&mut self) -> Option<Bytes> {
        let mut line = self.next_line().await?;
        if self.last {
            while let Some(next) = self.next_line().await {
                line = next;
            }
        }
        let mut bytes = serde_json::to_vec(&line).ok()?;
        bytes.push(b'\n');
        Some(bytes.into())
    }

    async fn next_line(&mut self) -> Option<JobLine> {
        match self.past.next() {
            Some(line) => Some(line),
            None => tokio::select! {
                line = self.lines.recv() => line,
                _ = self.stopped.wait_for(|stopped| *stopped) => None,
            },
        }
    }
}

/// A job, from memory or from the store.
enum Job {
    Live(Box<JobView>),
    Stored(Box<JobStory>),
}

impl Job {
    fn id(&self) -> JobId {
        match self {
            Self::Live(view) => view.job,
            Self::Stored(story) => story.order.job,
        }
    }
}

/// The one job of ours whose id begins so.
async fn find(api: &Api, id: &str) -> Result<Job, Problem> {
    if let Ok(whole) = id.parse() {
        let job = known(api, whole).await?;
        return job.ok_or_else(|| Problem::unknown("job", id));
    }
    let digits = Digits::parse("job", id)?;
    let live = api.handle.snapshot().await?.jobs;
    let mut found: Vec<Job> = live
        .into_iter()
        .filter(|view| digits.begin(&format!("{:#}", view.job)))
        .map(|view| Job::Live(Box::new(view)))
        .collect();
    for job in api.archive().await?.jobs_by_prefix(digits.as_str()).await? {
        // Others' jobs, on which we only worked, have no story.
        if found.iter().all(|known| known.id() != job)
            && let Some(story) = api.archive().await?.job(job).await?
        {
            found.push(Job::Stored(Box::new(story)));
        }
    }
    digits.one("job", found, |job| format!("{:#}", job.id()))
}

async fn known(api: &Api, id: JobId) -> Result<Option<Job>, Problem> {
    if let Some(view) = api.handle.job(id).await? {
        return Ok(Some(Job::Live(Box::new(view))));
    }
    let story = api.archive().await?.job(id).await?;
    Ok(story.map(|story| Job::Stored(Box::new(story))))
}

/// All that is known of a job, with its outputs.
async fn whole(api: &Api, job: &Job) -> Result<JobInfo, Problem> {
    let view = match job {
        Job::Stored(story) => return stored(api, story).await,
        Job::Live(view) => view,
    };
    let mut outputs: Vec<OutputInfo> = Vec::new();
    let is_array = view.units.1 > 1;
    for receipt in view
        .receipts
        .iter()
        .take(RECEIPTS_SHOWN)
        .filter(|_| !is_array)
    {
        if let Some(story) = api.archive().await?.receipt(*receipt).await? {
            let more = views::outputs(story.receipt.body());
            outputs = more.into_iter().fold(outputs, views::with_output);
        }
    }
    let region = match view.agreement {
        Some(agreement) => api.archive().await?.region(agreement).await?,
        None => None,
    };
    Ok(views::job_info(view, region, outputs))
}

async fn stored(api: &Api, story: &JobStory) -> Result<JobInfo, Problem> {
    let mut info = views::stored_job_info(story);
    if let Some(units) = &mut info.units {
        let tally = api.archive().await?.tally(story.order.job).await?;
        (units.done, units.failed) = (tally.done, tally.failed);
        info.spent = tally.spent;
    }
    Ok(info)
}

/// What the store remembers of a job's course, as if it was followed.
fn stored_watch(story: Option<&JobStory>) -> Watch {
    let (_, lines) = tokio::sync::mpsc::channel(1);
    let mut past = Vec::new();
    if let Some(story) = story {
        past.push(JobLine {
            at_ms: story.submitted.as_millis(),
            up_us: None,
            event: JobEventInfo::Submitted,
        });
        let accepted = story
            .judged
            .iter()
            .filter(|(_, word)| word.body().verdict == Verdict::Accepted);
        past.extend(accepted.map(|(receipt, word)| JobLine {
            at_ms: word.issued().as_millis(),
            up_us: None,
            event: JobEventInfo::Accepted {
                receipt: ReceiptId(receipt.hash()),
                amount: receipt.body().amount,
            },
        }));
        past.extend(story.end.map(|(end, at)| JobLine {
            at_ms: at.as_millis(),
            up_us: None,
            event: views::ended(end),
        }));
    }
    Watch { past, lines }
}
