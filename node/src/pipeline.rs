//! Pipelines: several jobs in one file, of which some read what others wrote.
//!
//! ```toml
//! name = "film"
//!
//! [[job]]
//! name = "tiles"
//! runtime = "wgsl"
//! stay = ["frame"]                    # this output stays with whoever made it: only `encode`
//!                                     # reads it
//! [job.wgsl]
//! # … as in a job file, below `job`
//!
//! [[job]]
//! name = "encode"
//! needs = ["tiles"]                   # runs when these are done
//! runtime = "wasm"
//! [job.wasm]
//! stdin = "@tiles/frame.rgba"         # what `tiles` writes to frame.rgba
//! ```
//!
//! ```text
//! file ─▶ stages: each the text of a job file, its lines where they were
//!      ─▶ order: no stage before what it needs
//!      ─▶ checked with stand-ins for what is not there yet ─▶ prepared one by one
//! ```
//!
//! Absent: running them (the command line does), and anything that a job file says.

use std::{
    collections::BTreeSet,
    fs::File,
    ops::Range,
    path::{Component, Path, PathBuf},
};

use serde::Deserialize;
use suanli_protocol::limits::OUTPUTS_MAX;
use toml::Spanned;

use crate::{
    document::{Document, Mistake, allowed},
    jobfile::{self, JobFileError, PreparedJob},
};

/// Jobs of one pipeline.
const STAGES_MAX: usize = 64;
/// Stand-ins that are made for the outputs of one stage.
const STAND_INS_MAX: u32 = 10_000;
/// Bytes of a stand-in for an output whose size nobody knows.
const STAND_IN_BYTES: u64 = 1 << 20;

/// Several jobs, in an order in which they can run.
#[derive(Debug)]
pub struct Pipeline {
    /// What people call it.
    pub name: String,
    /// The jobs.
    pub stages: Vec<Stage>,
}

/// One of its jobs.
#[derive(Debug)]
pub struct Stage {
    /// Its name: its results are in a folder of that name.
    pub name: String,
    /// Those whose results it reads.
    pub needs: Vec<String>,
    /// Outputs that stay with whoever makes them, and the lines that say so.
    stay: Vec<(usize, String)>,
    document: Document,
}

#[derive(Debug, Deserialize)]
struct PipelineToml {
    name: Option<Spanned<String>>,
    #[serde(default)]
    job: Vec<Spanned<StageToml>>,
}

/// What is read here of a job; the rest is read as a job file.
#[derive(Debug, Deserialize)]
struct StageToml {
    name: Spanned<String>,
    needs: Option<Spanned<Vec<Spanned<String>>>>,
    stay: Option<Spanned<Vec<Spanned<String>>>>,
}

impl Pipeline {
    /// A file's pipeline; nothing if it is a single job's.
    ///
    /// # Errors
    /// [`JobFileError`]: the first thing that is wrong with names, needs and their order.
    pub fn read(path: &Path) -> Result<Option<Self>, JobFileError> {
        let document = Document::read(path)?;
        if !is_one(document.text()) {
            return Ok(None);
        }
        Ok(Some(Self::of(&document)?))
    }

    fn of(document: &Document) -> Result<Self, Mistake> {
        let text = document.text();
        let toml: PipelineToml =
            toml::from_str(text).map_err(|error| document.parse_mistake(&error))?;
        let table: toml::Table =
            toml::from_str(text).map_err(|error| document.parse_mistake(&error))?;
        if let Some(key) = table.keys().find(|key| *key != "name" && *key != "job") {
            let hint = allowed(key, ["name", "job"]);
            let message = format!(
                "unknown key `{key}` beside [[job]]; {hint}. Sections of a job stand below it, as in [job.limits]"
            );
            return Err(document.mistake(None, message));
        }
        let texts = slices(text);
        if texts.len() != toml.job.len() {
            let message = "each [[job]] stands on a line of its own";
            return Err(document.mistake(None, message.to_owned()));
        }
        if toml.job.len() > STAGES_MAX {
            let message = format!(
                "{} jobs: {STAGES_MAX} are allowed in one file",
                toml.job.len()
            );
            return Err(document.mistake(None, message));
        }
        let names = names(document, &toml.job)?;
        let mut stages = Vec::new();
        for (job, text) in toml.job.iter().zip(texts) {
            stages.push(stage(document, job.get_ref(), text, &names)?);
        }
        let name = match &toml.name {
            Some(name) => name.get_ref().clone(),
            None => document
                .path()
                .file_stem()
                .map_or_else(String::new, |stem| stem.to_string_lossy().into_owned()),
        };
        Ok(Self {
            name,
            stages: in_order(document, stages)?,
        })
    }

    /// Reads all jobs as if everything that they need were there: files without content
    /// stand in for it. Nothing for a job that can't be judged before what it needs is there,
    /// because nobody knows how large that will be.
    ///
    /// # Errors
    /// [`JobFileError`]: the first thing that is wrong.
    pub fn check(&self, scratch: &Path) -> Result<Vec<Option<PreparedJob>>, JobFileError> {
        let mut jobs = Vec::new();
        // Stages whose results may be of any size: what reads them can't be judged yet.
        let mut unsure: BTreeSet<&str> = BTreeSet::new();
        for stage in &self.stages {
            stage.check_references(scratch)?;
            let is_unsure = stage.needs.iter().any(|need| unsure.contains(&**need));
            let job = match stage.prepare(scratch) {
                Ok(job) => job,
                Err(_) if is_unsure => {
                    unsure.insert(&stage.name);
                    jobs.push(None);
                    continue;
                }
                Err(error) => return Err(error),
            };
            let made = stand_in(&job, &scratch.join(&stage.name)).map_err(|source| {
                let message = format!("results can't be stood in for: {source}");
                JobFileError::Mistake(stage.document.mistake(None, message))
            })?;
            if !made || is_unsure {
                unsure.insert(&stage.name);
            }
            jobs.push(Some(job));
        }
        Ok(jobs)
    }
}

impl Stage {
    /// Whether all results that it names are written by those whom it needs; `scratch` has
    /// stand-ins for these.
    fn check_references(&self, scratch: &Path) -> Result<(), Mistake> {
        let text = self.document.text();
        for (at, need, file) in references(text) {
            let folder = scratch.join(need);
            // Patterns are the array's to judge, and stages that could not be read write
            // nobody knows what.
            if Path::new(file)
                .components()
                .any(|part| part == Component::ParentDir)
            {
                let message = format!("`@{need}/{file}`: `..` leads out of what {need} writes");
                return Err(self.document.mistake(Some(at), message));
            }
            if file.contains(['*', '?', '{']) || !folder.is_dir() || folder.join(file).is_file() {
                continue;
            }
            let mut files = files_in(&folder, Path::new(""));
            files.sort();
            let known = files.iter().map(String::as_str);
            let hint = match files.is_empty() {
                true => "it writes none: give its output a `file`".to_owned(),
                false => allowed(file, known),
            };
            let message = format!("`@{need}/{file}`: {need} writes no such file; {hint}");
            return Err(self.document.mistake(Some(at), message));
        }
        Ok(())
    }

    /// The job, with the results that it needs below `results`, each in the folder of its
    /// stage.
    ///
    /// # Errors
    /// [`JobFileError`]: the first thing that is wrong.
    pub fn prepare(&self, results: &Path) -> Result<PreparedJob, JobFileError> {
        self.prepare_from(|need| results.join(need))
    }

    /// The same, with the results of each stage in a folder of their own.
    ///
    /// # Errors
    /// [`JobFileError`]: the first thing that is wrong.
    pub fn prepare_from(
        &self,
        results: impl Fn(&str) -> PathBuf,
    ) -> Result<PreparedJob, JobFileError> {
        let mut text = self.document.text().to_owned();
        for need in &self.needs {
            let folder = results(need);
            let folder = std::path::absolute(&folder).unwrap_or(folder);
            for quote in ['"', '\''] {
                let written = format!("{quote}@{need}/");
                let folder = folder.display().to_string();
                let folder = match quote {
                    '"' => folder.replace('\\', "\\\\").replace('"', "\\\""),
                    _ => folder,
                };
                text = text.replace(&written, &format!("{quote}{folder}/"));
            }
        }
        let document = Document::new(self.document.path(), text);
        let mut job = jobfile::of(&document).map_err(JobFileError::Mistake)?;
        job.staying = self.staying(&job).map_err(JobFileError::Mistake)?;
        Ok(job)
    }

    /// The outputs that stay, each one that can.
    fn staying(&self, job: &PreparedJob) -> Result<Vec<String>, Mistake> {
        let mut staying = Vec::new();
        for (line, name) in self.stay.iter().take(OUTPUTS_MAX) {
            let wrong = |message: String| {
                let line = *line;
                let mistake = self.document.mistake(None, message);
                Err(Mistake { line, ..mistake })
            };
            let output = job.outputs.iter().find(|output| output.name == *name);
            let Some(output) = output else {
                let hint = allowed(name, job.outputs.iter().map(|output| &*output.name));
                return wrong(format!("stay: no output `{}`; {hint}", name.escape_debug()));
            };
            let floats = job.verify.within.iter().flat_map(|within| &within.floats);
            if output.png.is_some() || output.show.is_some() {
                return wrong(format!(
                    "stay: `{name}` is drawn or shown here, so it has to come here: leave it out, or its `png` and `show`"
                ));
            }
            if output.files.is_empty() {
                return wrong(format!(
                    "stay: give `{name}` a `file`, by which other jobs name it: nothing is written here"
                ));
            }
            if floats.clone().any(|float| float == name) {
                return wrong(format!(
                    "stay: `{name}` is compared within a tolerance, which is done here: leave it out, or out of verify.floats"
                ));
            }
            let products = job
                .verify
                .freivalds
                .iter()
                .flat_map(|freivalds| &freivalds.products);
            if products.clone().any(|of| of.product == *name) {
                return wrong(format!(
                    "stay: `{name}` is checked as a product, which is done here: leave it out, or its [[verify.product]]"
                ));
            }
            staying.push(name.clone());
        }
        Ok(staying)
    }
}

/// The names of all stages, each once.
fn names(document: &Document, jobs: &[Spanned<StageToml>]) -> Result<BTreeSet<String>, Mistake> {
    let mut names = BTreeSet::new();
    for job in jobs {
        let name = &job.get_ref().name;
        let text = name.get_ref();
        if text.is_empty() || !text.chars().all(is_plain) {
            let message = format!(
                "`{}`: the name of a pipeline's job is that of a folder: letters, digits, - and _",
                text.escape_debug()
            );
            return Err(document.mistake(Some(name.span()), message));
        }
        if !names.insert(text.clone()) {
            let message = format!("two jobs are called `{text}`: give each a name of its own");
            return Err(document.mistake(Some(name.span()), message));
        }
    }
    Ok(names)
}

fn stage(
    document: &Document,
    job: &StageToml,
    text: String,
    names: &BTreeSet<String>,
) -> Result<Stage, Mistake> {
    let name = job.name.get_ref().clone();
    let mut needs = Vec::new();
    for need in job.needs.iter().flat_map(|needs| needs.get_ref()) {
        let text = need.get_ref();
        if !names.contains(text) {
            let hint = allowed(text, names.iter().map(String::as_str));
            let message = format!("no job is called `{}`; {hint}", text.escape_debug());
            return Err(document.mistake(Some(need.span()), message));
        }
        needs.push(text.clone());
    }
    let stay = job.stay.iter().flat_map(|stay| stay.get_ref());
    let stay = stay.map(|word| {
        let line = document.mistake(Some(word.span()), "").line;
        (line, word.get_ref().clone())
    });
    let mut text = text;
    for (key, is_there) in [("needs", job.needs.is_some()), ("stay", job.stay.is_some())] {
        if is_there {
            text = blank(&text, &list_in(&text, key));
        }
    }
    let own = Document::new(document.path(), text);
    let unneeded = references(own.text())
        .into_iter()
        .find(|(_, word, _)| !needs.iter().any(|need| need == word));
    if let Some((at, word, _)) = unneeded {
        let message = if names.contains(word) {
            format!("`@{word}/…`: say so with needs = [\"{word}\"]")
        } else {
            let hint = allowed(word, names.iter().map(String::as_str));
            format!("`@{word}/…`: no job is called so; {hint}")
        };
        return Err(own.mistake(Some(at), message));
    }
    Ok(Stage {
        name,
        needs,
        stay: stay.collect(),
        document: own,
    })
}

/// Results of other stages that are read: where, whose, and which.
fn references(text: &str) -> Vec<(Range<usize>, &str, &str)> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(quote) = rest.find(['"', '\'']) {
        let (before, after) = rest.split_at(quote);
        let mut chars = after.chars();
        let mark = chars.next().unwrap_or('"');
        let start = text.len() - rest.len() + before.len() + 1;
        rest = chars.as_str();
        let Some(word) = rest.strip_prefix('@') else {
            continue;
        };
        let word = word.split([mark, '\n']).next().unwrap_or_default();
        if let Some((need, file)) = word.split_once('/')
            && !need.is_empty()
            && need.chars().all(is_plain)
        {
            found.push((start..start + 1 + word.len(), need, file));
        }
    }
    found
}

/// Of what the names of stages are made.
const fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '-' || c == '_'
}

/// Files below a folder, by their path from there.
fn files_in(folder: &Path, below: &Path) -> Vec<String> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = below.join(entry.file_name());
        if entry.path().is_dir() {
            files.extend(files_in(&entry.path(), &path));
        } else {
            files.push(path.display().to_string());
        }
    }
    files
}

/// Whether a file is a pipeline's.
pub(crate) fn is_one(text: &str) -> bool {
    text.lines().any(is_stage_header)
}

fn is_stage_header(line: &str) -> bool {
    let line = line.split('#').next().unwrap_or_default();
    line.split_whitespace().collect::<String>() == "[[job]]"
}

/// Each stage's text as a job file: everything else is blank, so that lines are where they
/// were.
fn slices(text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let starts: Vec<usize> = (lines.iter().enumerate())
        .filter(|(_, line)| is_stage_header(line))
        .map(|(n, _)| n)
        .collect();
    let ends = starts.iter().skip(1).copied().chain([lines.len()]);
    let slice = |(start, end): (usize, usize)| {
        let own = lines.iter().enumerate().map(|(n, line)| {
            if n <= start || n >= end {
                blank_line(line)
            } else {
                header(line)
            }
        });
        own.collect::<String>()
    };
    starts.iter().copied().zip(ends).map(slice).collect()
}

/// `[job.limits]` as `[limits]`.
fn header(line: &str) -> String {
    for (below, alone) in [("[[job.", "[["), ("[job.", "[")] {
        if let Some(rest) = line.trim_start().strip_prefix(below) {
            return format!("{alone}{rest}");
        }
    }
    line.to_owned()
}

fn blank_line(line: &str) -> String {
    line.chars().filter(|c| *c == '\n').collect()
}

/// Where a stage has a list of its own, before any of its sections.
fn list_in(text: &str, wanted: &str) -> Range<usize> {
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        let key = line.split('=').next().unwrap_or_default().trim();
        if key == wanted {
            let end = text.get(start..).and_then(|rest| rest.find(']'));
            return start..end.map_or(start + line.len(), |end| start + end + 1);
        }
        start += line.len();
    }
    0..0
}

fn blank(text: &str, gone: &Range<usize>) -> String {
    let within = |(at, c): (usize, char)| match gone.contains(&at) && c != '\n' {
        true => ' ',
        false => c,
    };
    text.char_indices().map(within).collect()
}

/// Stages so that none comes before what it needs; else as they were written.
fn in_order(document: &Document, stages: Vec<Stage>) -> Result<Vec<Stage>, Mistake> {
    let mut left = stages;
    let mut ordered: Vec<Stage> = Vec::new();
    while !left.is_empty() {
        let done: BTreeSet<&str> = ordered.iter().map(|stage| &*stage.name).collect();
        let can = |stage: &Stage| stage.needs.iter().all(|need| done.contains(&**need));
        let Some(next) = left.iter().position(can) else {
            let names: Vec<&str> = left.iter().map(|stage| &*stage.name).collect();
            let message = format!(
                "{} need each other in a circle, so that none can be the first",
                names.join(", ")
            );
            return Err(document.mistake(None, message));
        };
        ordered.push(left.remove(next));
    }
    Ok(ordered)
}

/// Makes files as a job will write them, with nothing in them. Whether all of them have
/// the size that they will have.
fn stand_in(job: &PreparedJob, folder: &Path) -> std::io::Result<bool> {
    let mut sure = true;
    for output in &job.outputs {
        let (bytes, is_exact) = size_of(job, &output.name);
        sure &= is_exact && output.png.is_none();
        for unit in 0..job.units().min(STAND_INS_MAX) {
            let Some(file) = output.file(unit) else {
                break;
            };
            let path = folder.join(file);
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent)?;
            }
            File::create(&path)?.set_len(bytes)?;
        }
    }
    Ok(sure)
}

/// Bytes of an output, and whether that is sure.
fn size_of(job: &PreparedJob, output: &str) -> (u64, bool) {
    let planned = job.program().outputs();
    let planned = planned.into_iter().find(|planned| planned.name == output);
    match planned {
        Some(planned) if planned.is_exact => (planned.bytes_max, true),
        Some(_) | None => (STAND_IN_BYTES, false),
    }
}

#[cfg(test)]
mod tests;
