//! TOML files that people write: where a mistake is, and what was meant.
//!
//! Configuration and job files are read with this, so that both answer alike:
//! file and line, what is wrong, what is allowed, and the nearest known word.
//! Absent: what any key means.

use std::{
    ops::Range,
    path::{Path, PathBuf},
};

use suanli_executor::file as executor_file;

/// A TOML file as text, kept for the lines of its mistakes.
#[derive(Debug, Clone)]
pub struct Document {
    path: PathBuf,
    text: String,
}

/// Bytes of a file that a person writes; inline buffers make job files long.
const DOCUMENT_BYTES_MAX: u64 = 16 << 20;

/// What is wrong in a file, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}:{line}: {message}", file.display())]
pub struct Mistake {
    /// The file.
    pub file: PathBuf,
    /// Counted from one.
    pub line: usize,
    /// What is wrong and what is allowed.
    pub message: String,
}

/// A file that can't be read at all.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {}: {source}", file.display())]
pub struct Unreadable {
    /// The file.
    pub file: PathBuf,
    /// Why.
    pub source: std::io::Error,
}

impl Document {
    /// From a file.
    ///
    /// # Errors
    /// [`Unreadable`]: missing, not text, or too long to be written by a person.
    pub fn read(path: &Path) -> Result<Self, Unreadable> {
        let unreadable = |source| Unreadable {
            file: path.to_owned(),
            source,
        };
        let bytes = std::fs::metadata(path).map_err(unreadable)?.len();
        if bytes > DOCUMENT_BYTES_MAX {
            let message = format!("{bytes} bytes, at most {DOCUMENT_BYTES_MAX} are allowed");
            return Err(unreadable(std::io::Error::other(message)));
        }
        let text = std::fs::read_to_string(path).map_err(unreadable)?;
        Ok(Self::new(path, text))
    }

    /// From text that stands for a file.
    pub fn new(path: &Path, text: impl Into<String>) -> Self {
        Self {
            path: path.to_owned(),
            text: text.into(),
        }
    }

    /// Its text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A mistake at a byte of the text.
    pub fn mistake(&self, at: Option<Range<usize>>, message: impl Into<String>) -> Mistake {
        let start = at.map_or(0, |at| at.start);
        let before = self.text.as_bytes().iter().take(start);
        Mistake {
            file: self.path.clone(),
            line: 1 + before.filter(|byte| **byte == b'\n').count(),
            message: message.into(),
        }
    }

    /// What the parser found, with the word that may have been meant.
    pub fn parse_mistake(&self, error: &toml::de::Error) -> Mistake {
        self.mistake(error.span(), with_suggestion(error.message()))
    }
}

impl From<executor_file::FileError> for Mistake {
    fn from(error: executor_file::FileError) -> Self {
        Self {
            file: error.file,
            line: error.line,
            message: error.message,
        }
    }
}

/// The known word nearest to a wrong one, if one is near.
pub fn nearest<'a>(wrong: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let near = known
        .into_iter()
        .map(|word| (executor_file::distance(wrong, word), word));
    let (edits, word) = near.min()?;
    (edits <= 1 + wrong.chars().count() / 3).then_some(word)
}

/// What to say of a word that is not known: the nearest one, or all of them.
pub fn allowed<'a>(wrong: &str, known: impl IntoIterator<Item = &'a str> + Clone) -> String {
    match nearest(wrong, known.clone()) {
        Some(word) => format!("did you mean `{word}`?"),
        None => {
            let known = known.into_iter().collect::<Vec<_>>();
            format!("allowed: {}", known.join(", "))
        }
    }
}

/// serde's "unknown field" names all fields that there are; the one nearest to
/// the wrong one says more.
pub(crate) fn with_suggestion(message: &str) -> String {
    let words = message.split('`').skip(1).step_by(2).collect::<Vec<_>>();
    let [wrong, known @ ..] = words.as_slice() else {
        return in_plain_words(message);
    };
    let is_choice = message.starts_with("unknown field") || message.starts_with("unknown variant");
    if !is_choice || known.is_empty() {
        return in_plain_words(message);
    }
    let what = if message.starts_with("unknown field") {
        "key"
    } else {
        "value"
    };
    let known = known.iter().copied();
    format!(
        "unknown {what} `{}`; {}",
        wrong.escape_debug(),
        allowed(wrong, known)
    )
}

/// serde speaks of its own types, people write lists and text.
fn in_plain_words(message: &str) -> String {
    if let Some(key) = message.strip_prefix("missing field ") {
        return format!("{key} is missing");
    }
    message
        .replace(
            "expected a sequence",
            "expected a list, like [\"a\", \"b\"]",
        )
        .replace("expected a string", "expected text in quotes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_words_are_suggested_and_far_ones_are_not() {
        let known = ["region", "network", "listen"];
        assert_eq!(nearest("regoin", known), Some("region"));
        assert_eq!(nearest("zzzzzz", known), None);
        assert_eq!(allowed("zzzzzz", known), "allowed: region, network, listen");
    }

    #[test]
    fn mistakes_name_their_line() {
        let document = Document::new(Path::new("a.toml"), "one\ntwo\nthree");
        let mistake = document.mistake(Some(4..7), "no");
        assert_eq!(mistake.to_string(), "a.toml:2: no");
    }
}
