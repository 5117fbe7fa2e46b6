//! Things by the beginning of their ids.

use axum::http::StatusCode;

use super::problem::Problem;
use crate::records::{CANDIDATES_MAX, PREFIX_DIGITS_MIN};

/// Hex digits of the longest id.
const DIGITS_MAX: usize = 64;
/// Digits by which candidates are told apart.
const SHOWN: usize = 12;

/// The beginning of an id, as lower-case hex.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Digits(String);

impl Digits {
    /// # Errors
    /// Not hex, too few or too many digits.
    pub(super) fn parse(what: &str, text: &str) -> Result<Self, Problem> {
        let digits = text.to_ascii_lowercase();
        let is_hex = digits.bytes().all(|b| b.is_ascii_hexdigit());
        if is_hex && (PREFIX_DIGITS_MIN..=DIGITS_MAX).contains(&digits.len()) {
            return Ok(Self(digits));
        }
        let text: String = text.chars().take(DIGITS_MAX).collect();
        Err(Problem::usage(
            StatusCode::NOT_FOUND,
            format!(
                "{text:?} names no {what}; give the first {PREFIX_DIGITS_MIN} or more hex digits of its id"
            ),
        ))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether an id, shown in full, begins so.
    pub(super) fn begin(&self, id: &str) -> bool {
        id.starts_with(&self.0)
    }

    /// The one thing whose id begins so.
    ///
    /// # Errors
    /// None, or several, which are named.
    pub(super) fn one<T>(
        &self,
        what: &str,
        mut found: Vec<T>,
        id: impl Fn(&T) -> String,
    ) -> Result<T, Problem> {
        let Some(only) = found.pop() else {
            return Err(Problem::unknown(what, &self.0));
        };
        if found.is_empty() {
            return Ok(only);
        }
        found.push(only);
        let shown = SHOWN.max(self.0.len() + 2);
        let names: Vec<String> = found
            .iter()
            .take(CANDIDATES_MAX)
            .map(|thing| id(thing).chars().take(shown).collect())
            .collect();
        let more = if found.len() > CANDIDATES_MAX {
            " and others"
        } else {
            ""
        };
        Err(Problem::usage(
            StatusCode::CONFLICT,
            format!(
                "{:?} could be {}{more}; give more digits",
                self.0,
                names.join(", ")
            ),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(digits: &str, ids: &[&str]) -> Result<String, Problem> {
        let digits = Digits::parse("job", digits)?;
        let mut found: Vec<String> = ids.iter().map(ToString::to_string).collect();
        found.retain(|id| digits.begin(id));
        digits.one("job", found, Clone::clone)
    }

    #[test]
    fn a_beginning_must_be_of_one_thing_only() {
        let ids = ["abcd1111000000", "abcd2222000000", "ffff0000000000"];
        assert_eq!(one("FFFF", &ids).unwrap(), ids[2]);
        assert_eq!(one("abcd2", &ids).unwrap(), ids[1]);
        let ambiguous = format!("{:?}", one("abcd", &ids).unwrap_err());
        assert!(ambiguous.contains("409"), "{ambiguous}");
        assert!(
            ambiguous.contains("abcd11110000, abcd22220000; give more digits"),
            "{ambiguous}"
        );
        for unknown in ["0000", "ffff1", "fff", "", "zzzz", "é123"] {
            let problem = format!("{:?}", one(unknown, &ids).unwrap_err());
            assert!(problem.contains("404"), "{unknown}: {problem}");
        }
    }
}
