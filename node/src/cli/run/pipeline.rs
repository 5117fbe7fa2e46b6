//! Running a pipeline: each job as soon as what it needs is there, the others meanwhile.
//!
//! What a job's outputs are that stay with their providers is known by name only: empty
//! files of their size stand in for them, in a folder beside links to what did come, so
//! that the jobs that read them are read like any other.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    path::{Path, PathBuf},
};

use serde::Serialize;
use serde_json::json;
use suanli_protocol::{ids::JobId, units::Amount};

use super::{Command, Running, bring, hand_in, outputs, plan, planned};
use crate::{
    api::types::{BlobInfo, JobInfo, OutputInfo},
    cli::{
        context::Context,
        exit::{Exit, Failure},
        screen::{self, Table, bytes, list, rough},
    },
    client::{Client, make_folder},
    jobfile::PreparedJob,
    pipeline::{Pipeline, Stage},
};

/// What became of a stage.
#[derive(Debug, Clone, Serialize)]
struct Ended {
    name: String,
    job: JobId,
    spent: Amount,
    took_ms: u64,
    /// Where, unless its units ran in many places.
    region: Option<String>,
    /// What it shows of its outputs.
    figures: Vec<(String, String)>,
    /// How many of its outputs stay with providers, and their bytes.
    stayed: (usize, u64),
    #[serde(skip)]
    place: Place,
}

/// Where what a stage wrote is for those who read it.
#[derive(Debug, Clone, Default)]
struct Place {
    folder: PathBuf,
    /// Files that only stand in for what stays with providers.
    away: BTreeMap<PathBuf, BlobInfo>,
}

impl Command {
    /// Checks all jobs of a pipeline, asks once, and runs them.
    pub(super) async fn pipeline(
        self,
        context: &Context,
        pipeline: &Pipeline,
    ) -> Result<(), Failure> {
        if self.detach {
            let message = "a pipeline needs this command to go on from job to job: leave -d out";
            return Err(Failure::new(Exit::Usage, message));
        }
        let scratch =
            tempfile::tempdir().map_err(|error| Failure::new(Exit::Unusable, error.to_string()))?;
        let mut first = Vec::new();
        for (stage, job) in pipeline.stages.iter().zip(pipeline.check(scratch.path())?) {
            let job = match job {
                Some(job) => Some(self.market.complete(context, job).await?),
                None => None,
            };
            first.push((stage, job));
        }
        let client = context.client()?;
        let rows = plans(&client, &first).await?;
        if self.dry_run {
            context.answer(&json!({ "jobs": rows }), |_| table(&rows));
            return Ok(());
        }
        if !context.json() {
            screen::print_aside(&table(&rows));
        }
        make_folder(&self.out)?;
        self.ask(context)?;
        let ended = self
            .stages(context, (&client, scratch.path()), pipeline)
            .await?;
        context.answer(&json!({ "name": pipeline.name, "jobs": ended }), |_| {
            text(&ended, &self.out)
        });
        Ok(())
    }

    /// Runs them all. After a failure nothing new begins, and what runs is waited for.
    async fn stages(
        &self,
        context: &Context,
        (client, links): (&Client, &Path),
        pipeline: &Pipeline,
    ) -> Result<Vec<Ended>, Failure> {
        let mut ended: BTreeMap<&str, Ended> = BTreeMap::new();
        let mut begun = vec![false; pipeline.stages.len()];
        let mut failure: Option<Failure> = None;
        let mut running = futures::stream::FuturesUnordered::new();
        loop {
            for (stage, begun) in pipeline.stages.iter().zip(&mut begun) {
                let ready = stage.needs.iter().all(|need| ended.contains_key(&**need));
                if failure.is_none() && ready && !*begun {
                    *begun = true;
                    let of =
                        |need: &String| Some((need.clone(), ended.get(&**need)?.place.clone()));
                    let places = stage.needs.iter().filter_map(of).collect();
                    running.push(self.stage(context, (client, links), stage, places));
                }
            }
            let Some(result) = futures::StreamExt::next(&mut running).await else {
                break;
            };
            match result {
                Ok((stage, done)) => {
                    if !context.json() {
                        screen::print_aside(&format!(
                            "{}: done in {}, {}\n",
                            stage.name,
                            rough(done.took_ms),
                            done.spent
                        ));
                    }
                    ended.insert(&stage.name, done);
                }
                Err(why) => failure = failure.or(Some(why)),
            }
        }
        let names = pipeline.stages.iter().map(|stage| &*stage.name);
        match failure {
            Some(failure) => Err(left_over(failure, names, &ended)),
            None => Ok(names.filter_map(|name| ended.remove(name)).collect()),
        }
    }

    /// Runs one of them, whose needs are met.
    async fn stage<'a>(
        &self,
        context: &Context,
        (client, links): (&Client, &Path),
        stage: &'a Stage,
        places: BTreeMap<String, Place>,
    ) -> Result<(&'a Stage, Ended), Failure> {
        let label = |failure: Failure| failure.of_part(&stage.name);
        let folder = |need: &str| match places.get(need) {
            Some(place) => place.folder.clone(),
            None => self.out.join(need),
        };
        let mut job = stage.prepare_from(folder)?;
        job.away = places
            .values()
            .flat_map(|place| place.away.clone())
            .collect();
        let job = self.market.complete(context, job).await.map_err(label)?;
        let out = self.out.join(&stage.name);
        let links = links.join(&stage.name);
        let ended = self
            .one(context, client, (&job, &stage.name), (&out, &links))
            .await;
        ended.map(|ended| (stage, ended)).map_err(label)
    }

    async fn one(
        &self,
        context: &Context,
        client: &Client,
        (job, name): (&PreparedJob, &str),
        (out, links): (&Path, &Path),
    ) -> Result<Ended, Failure> {
        make_folder(out)?;
        let (submission, plan) = planned(client, job).await?;
        plan::require_candidate(&plan, !job.providers.is_empty())?;
        let id = hand_in(client, job, &submission).await?;
        let run = Running {
            context,
            client,
            job,
            id,
            out,
            label: Some(name),
        };
        let (info, followed, written, staying): (JobInfo, _, _, _) = if job.units() > 1 {
            let (mut units, followed) = run.array().await?;
            let info = units.finish(&followed).await?;
            (info, followed, Vec::new(), units.staying)
        } else {
            let followed = run.single().await?;
            let (info, written) = bring(client, job, id, out).await?;
            let stay = |output: &&OutputInfo| outputs::stays(job, output);
            let staying = info.outputs.iter().filter(stay);
            let staying = staying.map(|output| (0, output.clone())).collect();
            (info, followed, written, staying)
        };
        let place = place(job, &staying, (out, links))
            .map_err(|error| Failure::new(Exit::Unusable, error.to_string()))?;
        let sizes = staying.iter().map(|(_, output)| output.bytes);
        let shown = written.into_iter().filter_map(|output| output.shown);
        Ok(Ended {
            name: name.to_owned(),
            job: id,
            spent: info.spent,
            took_ms: followed.took_ms,
            region: info.region.filter(|_| job.units() == 1),
            figures: shown.map(|shown| (shown.label, shown.text)).collect(),
            stayed: (staying.len(), sizes.fold(0, u64::saturating_add)),
            place,
        })
    }
}

/// Where those who read a stage's results find them: where they were written, unless some
/// stay with providers.
fn place(
    job: &PreparedJob,
    staying: &[(u32, OutputInfo)],
    (out, links): (&Path, &Path),
) -> std::io::Result<Place> {
    if staying.is_empty() {
        return Ok(Place {
            folder: out.to_owned(),
            away: BTreeMap::new(),
        });
    }
    let mut away = BTreeMap::new();
    // Stand-ins from the check are there.
    match std::fs::remove_dir_all(links) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let stays: HashMap<(u32, &str), &OutputInfo> = (staying.iter())
        .map(|(unit, output)| ((*unit, output.name.as_str()), output))
        .collect();
    for output in &job.outputs {
        for unit in 0..job.units() {
            let Some(file) = output.file(unit) else {
                break;
            };
            let (link, written) = (links.join(file), out.join(file));
            if let Some(parent) = link.parent() {
                std::fs::create_dir_all(parent)?;
            }
            if let Some(stays) = stays.get(&(unit, output.name.as_str())) {
                File::create(&link)?.set_len(stays.bytes)?;
                let (blob, bytes) = (stays.blob, stays.bytes);
                away.insert(std::path::absolute(&link)?, BlobInfo { blob, bytes });
            } else if written.exists() {
                std::os::unix::fs::symlink(std::path::absolute(&written)?, &link)?;
            }
        }
    }
    Ok(Place {
        folder: std::path::absolute(links)?,
        away,
    })
}

/// One line of what is to run.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    needs: Vec<String>,
    units: Option<u32>,
    fitting: Option<usize>,
    price: Option<Amount>,
    region: Option<String>,
}

/// Who could run each job, as far as that is known before it runs.
async fn plans(
    client: &Client,
    jobs: &[(&Stage, Option<PreparedJob>)],
) -> Result<Vec<Row>, Failure> {
    let mut rows = Vec::new();
    for (stage, job) in jobs {
        let mut row = Row {
            name: stage.name.clone(),
            needs: stage.needs.clone(),
            units: None,
            fitting: None,
            price: None,
            region: None,
        };
        if let Some(job) = job {
            let (_, plan) = planned(client, job).await?;
            plan::require_candidate(&plan, !job.providers.is_empty())
                .map_err(|failure| failure.of_part(&stage.name))?;
            row.units = Some(job.units());
            row.fitting = Some(plan.fitting);
            let best = plan.candidates.first();
            row.price = best.map(|best| best.price);
            row.region = best.map(|best| best.region.clone());
        }
        rows.push(row);
    }
    Ok(rows)
}

fn table(rows: &[Row]) -> String {
    let mut table = Table::new(&["job", "after", ">units", ">fit", ">price", "best in"]);
    let shown = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    for row in rows {
        let after = match row.needs.is_empty() {
            true => "-".to_owned(),
            false => row.needs.join(", "),
        };
        table.row([
            row.name.clone(),
            after,
            shown(row.units.map(|units| units.to_string())),
            shown(row.fitting.map(|fitting| fitting.to_string())),
            shown(row.price.map(|price| price.to_string())),
            shown(row.region.clone()),
        ]);
    }
    table.render(0)
}

fn text(ended: &[Ended], out: &Path) -> String {
    let mut table = Table::new(&["job", "region", ">took", ">price", "results", "id"]);
    for stage in ended {
        table.row([
            stage.name.clone(),
            stage.region.clone().unwrap_or_else(|| "-".to_owned()),
            rough(stage.took_ms),
            stage.spent.to_string(),
            out.join(&stage.name).display().to_string(),
            stage.job.to_string(),
        ]);
    }
    let all = ended.iter().map(|stage| stage.spent);
    let all = all.fold(Amount::ZERO, Amount::saturating_add);
    let figures = ended.iter().flat_map(|stage| &stage.figures);
    let figures: Vec<(&str, String)> = figures
        .map(|(label, text)| (label.as_str(), text.clone()))
        .collect();
    let mut stayed = String::new();
    for stage in ended.iter().filter(|stage| stage.stayed.0 > 0) {
        let outputs = match stage.stayed.0 {
            1 => "1 output".to_owned(),
            count => format!("{count} outputs"),
        };
        stayed += &format!(
            "{}: {outputs} ({}) stayed with who made it\n",
            stage.name,
            bytes(stage.stayed.1)
        );
    }
    list(&figures) + &table.render(0) + &stayed + &format!("all together {all}\n")
}

/// What a failure leaves: results that are here, and jobs that never began.
fn left_over<'a>(
    failure: Failure,
    names: impl Iterator<Item = &'a str>,
    ended: &BTreeMap<&str, Ended>,
) -> Failure {
    let (done, left): (Vec<_>, Vec<_>) = names.partition(|name| ended.contains_key(name));
    let mut next = String::new();
    if !done.is_empty() {
        next += &format!("\ndone, and kept: {}", done.join(", "));
    }
    next += &format!("\nnot done: {}", left.join(", "));
    failure.then(&next)
}
