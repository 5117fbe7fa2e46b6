//! Points that were found, in a file: a line of JSON for each. A run of an hour that is
//! interrupted goes on with what it has.

use std::{
    fs::{File, OpenOptions},
    io::{ErrorKind, Write as _},
    path::{Path, PathBuf},
    sync::Mutex,
};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use super::Point;

/// What a file has, and where what is found is added.
pub(super) struct Kept {
    question: String,
    points: Vec<Point>,
    file: Option<(PathBuf, Mutex<File>)>,
}

/// A line.
#[derive(Serialize, Deserialize)]
struct Line {
    /// What was asked: only the same is taken again.
    of: String,
    #[serde(flatten)]
    point: Point,
}

impl Kept {
    /// Reads a file, if one is named; one that is not there begins empty.
    pub(super) fn open(path: Option<&Path>, question: String) -> anyhow::Result<Self> {
        let Some(path) = path else {
            return Ok(Self {
                question,
                points: Vec::new(),
                file: None,
            });
        };
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            Err(error) => {
                return Err(error).with_context(|| format!("{} can't be read", path.display()));
            }
        };
        let mut points = Vec::new();
        for (n, line) in text.lines().enumerate() {
            let line: Line = serde_json::from_str(line)
                .with_context(|| format!("{}:{}: this is no point", path.display(), n + 1))?;
            anyhow::ensure!(
                line.of == question,
                "{}:{} is of {}, and this run of {question}: name another file",
                path.display(),
                n + 1,
                line.of
            );
            points.push(line.point);
        }
        let file = OpenOptions::new().append(true).create(true).open(path);
        let file = file.with_context(|| format!("{} can't be written", path.display()))?;
        Ok(Self {
            question,
            points,
            file: Some((path.to_owned(), Mutex::new(file))),
        })
    }

    /// What was found for a duty.
    pub(super) fn point(&self, duty: f64) -> Option<Point> {
        let mut points = self.points.iter();
        points
            .find(|point| point.duty.total_cmp(&duty).is_eq())
            .cloned()
    }

    /// Adds what is found.
    pub(super) fn keep(&self, point: &Point) -> anyhow::Result<()> {
        let Some((path, file)) = &self.file else {
            return Ok(());
        };
        let line = Line {
            of: self.question.clone(),
            point: point.clone(),
        };
        let line = serde_json::to_string(&line)? + "\n";
        let mut file = file
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        file.write_all(line.as_bytes())
            .with_context(|| format!("{} can't be written", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ownership::Way;

    #[test]
    fn what_was_found_is_taken_again_for_the_same_question() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("points");
        let way = Way {
            machines: 84,
            used: 0.94,
            wait_p95: 828.5,
            cost_per_job: 0.1 + 0.2,
            machines_per_job: 0.14,
        };
        let point = Point {
            duty: 0.1,
            jobs: 5672,
            owned: way,
            pooled: way,
        };
        let open = |question: &str| Kept::open(Some(&file), question.to_owned());
        assert_eq!(open("a").unwrap().point(0.1), None);
        open("a").unwrap().keep(&point).unwrap();
        let kept = open("a").unwrap();
        assert_eq!((kept.point(0.1), kept.point(0.25)), (Some(point), None));
        let refused = open("b").err().unwrap().to_string();
        assert!(refused.contains("name another file"), "{refused}");
        std::fs::write(&file, "no\n").unwrap();
        assert!(open("a").is_err());
    }
}
