//! Sizes and durations as people write them.
//!
//! `"64MiB"`, `"1.5GiB"` is not one (no fractions, no doubt); `"1h30m"`,
//! `"250ms"`. Numbers without a unit are bytes; a duration always has one.
//! All arithmetic is checked.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

/// A time span.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// Text that is no size or duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseQuantityError {
    /// No size.
    #[error(
        "{0:?} is no size; write bytes, or a whole number with B, KiB, MiB, GiB or TiB, like \"64MiB\""
    )]
    Size(String),
    /// No duration.
    #[error(
        "{0:?} is no duration; write whole numbers with ms, s, m, h or d, like \"30s\" or \"1h30m\""
    )]
    Duration(String),
}

const SIZE_UNITS: [(&str, u64); 5] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

const DURATION_UNITS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
    ("ms", 1),
];

impl FromStr for ByteSize {
    type Err = ParseQuantityError;

    fn from_str(text: &str) -> Result<Self, ParseQuantityError> {
        let (number, unit) = number_and_rest(text);
        let unit = if unit.trim().is_empty() {
            "B"
        } else {
            unit.trim()
        };
        let factor = SIZE_UNITS.iter().find(|(name, _)| *name == unit);
        factor
            .and_then(|(_, factor)| number?.checked_mul(*factor))
            .map(Self)
            .ok_or_else(|| ParseQuantityError::Size(excerpt(text)))
    }
}

impl FromStr for Span {
    type Err = ParseQuantityError;

    fn from_str(text: &str) -> Result<Self, ParseQuantityError> {
        let error = || ParseQuantityError::Duration(excerpt(text));
        let mut rest = text.trim();
        let mut total: u64 = 0;
        let mut larger = u64::MAX;
        if rest.is_empty() {
            return Err(error());
        }
        while !rest.is_empty() {
            let (number, after) = number_and_rest(rest);
            let digit = after
                .find(|c: char| c.is_ascii_digit())
                .unwrap_or(after.len());
            let (unit, next) = after.split_at(digit);
            let unit = DURATION_UNITS.iter().find(|(name, _)| *name == unit.trim());
            // Each unit once, the larger first: "1m1h" is more likely a slip.
            let (_, millis) = unit
                .filter(|(_, millis)| *millis < larger)
                .ok_or_else(error)?;
            larger = *millis;
            total = number
                .and_then(|number| number.checked_mul(*millis))
                .and_then(|millis| millis.checked_add(total))
                .ok_or_else(error)?;
            rest = next;
        }
        Ok(Self(Duration::from_millis(total)))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact =
            |(_, factor): &&(&str, u64)| self.0 >= *factor && self.0.is_multiple_of(*factor);
        match SIZE_UNITS.iter().find(exact) {
            Some((name, factor)) => f.pad(&format!("{}{name}", self.0 / factor)),
            None => f.pad(&self.0.to_string()),
        }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        let mut text = String::new();
        for (name, millis) in DURATION_UNITS {
            if rest >= millis {
                text.push_str(&format!("{}{name}", rest / millis));
                rest %= millis;
            }
        }
        f.pad(if text.is_empty() { "0s" } else { &text })
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = ByteSize;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes, or a text like \"64MiB\"")
            }
            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<ByteSize, E> {
                let bytes = u64::try_from(bytes);
                bytes
                    .map(ByteSize)
                    .map_err(|_| E::custom("a size is not negative"))
            }
            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<ByteSize, E> {
                Ok(ByteSize(bytes))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<ByteSize, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

fn number_and_rest(text: &str) -> (Option<u64>, &str) {
    let text = text.trim_start();
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, rest) = text.split_at(digits);
    (number.parse().ok(), rest)
}

fn excerpt(text: &str) -> String {
    text.chars().take(40).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_shown() {
        for (text, bytes, shown) in [
            ("4096", 4096, "4KiB"),
            ("64MiB", 64 << 20, "64MiB"),
            ("20 GiB", 20 << 30, "20GiB"),
            ("1500B", 1500, "1500B"),
            ("0", 0, "0"),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
            assert_eq!(ByteSize(bytes).to_string(), shown);
        }
        for wrong in ["", "MiB", "1.5GiB", "-1", "1MB", "1 KiB 2", "99999999TiB"] {
            assert!(wrong.parse::<ByteSize>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn durations_are_read_and_shown() {
        for (text, millis, shown) in [
            ("250ms", 250, "250ms"),
            ("30s", 30_000, "30s"),
            ("1h30m", 5_400_000, "1h30m"),
            ("1h 30m", 5_400_000, "1h30m"),
            ("90s", 90_000, "1m30s"),
            ("1d", 86_400_000, "1d"),
            ("0s", 0, "0s"),
        ] {
            assert_eq!(
                text.parse(),
                Ok(Span(Duration::from_millis(millis))),
                "{text}"
            );
            assert_eq!(Span(Duration::from_millis(millis)).to_string(), shown);
        }
        for wrong in [
            "",
            "5",
            "s",
            "1m1h",
            "1s1s",
            "1.5s",
            "-1s",
            "1y",
            "99999999999999999d",
        ] {
            assert!(wrong.parse::<Span>().is_err(), "{wrong}");
        }
    }
}
