//! Expressions, types and numbers as people write them.

use std::fmt;

use super::{Answer, Comparison, Expression, Number, STEP, Term, Type, Unit, Value, fields_of};

/// Binary prefixes, the largest first.
const SIZES: [(u64, &str); 5] = [
    (1 << 50, "PiB"),
    (1 << 40, "TiB"),
    (1 << 30, "GiB"),
    (1 << 20, "MiB"),
    (1 << 10, "KiB"),
];
/// Decimal ones.
const THOUSANDS: [(u64, &str); 5] = [
    (1_000_000_000_000_000, "P"),
    (1_000_000_000_000, "T"),
    (1_000_000_000, "G"),
    (1_000_000, "M"),
    (1_000, "k"),
];

impl Unit {
    /// What makes a number of this unit in a text; plain numbers and money are
    /// written as they are.
    pub const fn function(self) -> Option<&'static str> {
        match self {
            Self::Plain | Self::Money => None,
            Self::Bytes => Some("bytes"),
            Self::Seconds => Some("duration"),
            Self::Speed => Some("ops"),
            Self::Rate => Some("rate"),
        }
    }

    /// A number of this unit, short.
    pub fn show(self, number: Number) -> String {
        match self {
            Self::Plain | Self::Money => decimal(number.0),
            Self::Bytes => scaled(number, &SIZES, "B"),
            Self::Rate => scaled(number, &SIZES, "B") + "/s",
            Self::Speed => scaled(number, &THOUSANDS, "") + "/s",
            Self::Seconds => decimal(number.0) + "s",
        }
    }

    /// A number of this unit as it is written in an expression.
    fn write(self, number: Number) -> String {
        let shown = self.show(number);
        match self.function() {
            Some(function) => {
                let bare = shown.strip_suffix("/s").unwrap_or(&shown).replace(' ', "");
                format!("{function}(\"{bare}\")")
            }
            None => shown,
        }
    }
}

/// A number with the largest prefix that keeps it above one, exactly or not at all.
fn scaled(number: Number, prefixes: &[(u64, &str)], unit: &str) -> String {
    let fits = prefixes.iter().find(|(factor, _)| {
        let least = u128::from(*factor) * STEP.unsigned_abs();
        number.0.unsigned_abs() >= least
    });
    match fits {
        // Two places are enough to read.
        Some((factor, prefix)) => {
            let hundredth = STEP / 100;
            let millionths = number.0 / i128::from(*factor);
            format!("{} {prefix}", decimal(millionths / hundredth * hundredth))
        }
        None if unit.is_empty() => decimal(number.0),
        None => format!("{} {unit}", decimal(number.0)),
    }
}

/// Without zeros at the end.
fn decimal(millionths: i128) -> String {
    let sign = if millionths < 0 { "-" } else { "" };
    let (whole, part) = (
        millionths.unsigned_abs() / STEP.unsigned_abs(),
        millionths.unsigned_abs() % STEP.unsigned_abs(),
    );
    let text = format!("{sign}{whole}.{part:06}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain => "a plain number",
            Self::Bytes => "a number of bytes",
            Self::Seconds => "a time",
            Self::Money => "an amount",
            Self::Speed => "a speed",
            Self::Rate => "bytes in a second",
        })
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool => f.write_str("true or false"),
            Self::Text => f.write_str("a text"),
            Self::Number(unit) => unit.fmt(f),
        }
    }
}

impl Comparison {
    /// As it is written.
    pub const fn symbol(self) -> &'static str {
        match self {
            Self::Less => "<",
            Self::LessOrEqual => "<=",
            Self::Equal => "==",
            Self::NotEqual => "!=",
            Self::GreaterOrEqual => ">=",
            Self::Greater => ">",
        }
    }
}

/// How tightly an operator binds; what is written without one binds most.
const TIGHT: u8 = 9;

impl Term {
    /// As it is written.
    pub const fn symbol(&self) -> &'static str {
        match self {
            Self::Bool(_) | Self::Number(..) | Self::Text(_) => "a value",
            Self::Field(_) => "a field",
            Self::Not => "!",
            Self::Negate | Self::Subtract => "-",
            Self::And => "&&",
            Self::Or => "||",
            Self::Compare(how) => how.symbol(),
            Self::Add => "+",
            Self::Multiply => "*",
            Self::Divide => "/",
            Self::If => "?:",
            Self::OneOf(_) => "in",
            Self::StartsWith => "startsWith",
            Self::EndsWith => "endsWith",
            Self::Contains => "contains",
        }
    }

    const fn binds(&self) -> u8 {
        match self {
            Self::If => 0,
            Self::Or => 1,
            Self::And => 2,
            Self::Compare(_) | Self::OneOf(_) => 3,
            Self::Add | Self::Subtract => 4,
            Self::Multiply | Self::Divide => 5,
            Self::Not | Self::Negate => 6,
            Self::Bool(_)
            | Self::Number(..)
            | Self::Text(_)
            | Self::Field(_)
            | Self::StartsWith
            | Self::EndsWith
            | Self::Contains => TIGHT,
        }
    }

    /// It with its operands, which come with how tightly each binds.
    fn write(&self, operands: &[(String, u8)]) -> String {
        let own = self.binds();
        let inside = |n: usize, least: u8| match operands.get(n) {
            Some((text, binds)) if *binds >= least => text.clone(),
            Some((text, _)) => format!("({text})"),
            None => String::new(),
        };
        match self {
            Self::Bool(value) => value.to_string(),
            Self::Number(number, unit) => unit.write(*number),
            Self::Text(text) => quoted(text),
            Self::Field(field) => field.to_string(),
            Self::Not | Self::Negate => format!("{}{}", self.symbol(), inside(0, own)),
            Self::StartsWith | Self::EndsWith | Self::Contains => {
                format!("{}.{}({})", inside(0, TIGHT), self.symbol(), inside(1, 0))
            }
            Self::If => format!("{} ? {} : {}", inside(0, 1), inside(1, 1), inside(2, 0)),
            Self::OneOf(_) => {
                let others = operands.iter().skip(1).map(|(text, _)| text.as_str());
                let others = others.collect::<Vec<_>>().join(", ");
                format!("{} in [{others}]", inside(0, own + 1))
            }
            Self::And
            | Self::Or
            | Self::Compare(_)
            | Self::Add
            | Self::Subtract
            | Self::Multiply
            | Self::Divide => {
                format!(
                    "{} {} {}",
                    inside(0, own),
                    self.symbol(),
                    inside(1, own + 1)
                )
            }
        }
    }
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// Terms as they would be written.
pub fn written(terms: &[Term]) -> String {
    let mut waiting: Vec<(String, u8)> = Vec::new();
    for term in terms {
        let first = waiting.len().saturating_sub(term.takes());
        let operands = waiting.split_off(first);
        waiting.push((term.write(&operands), term.binds()));
    }
    let texts = waiting.into_iter().map(|(text, _)| text);
    texts.collect::<Vec<_>>().join(" ")
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&written(self.terms()))
    }
}

/// What a condition's fields are: `gpu.memory is 4 GiB`.
pub(super) fn values(terms: &[Term], fields: &impl super::Fields) -> String {
    let each = fields_of(terms).into_iter().map(|field| {
        let kind = field.info().map(|info| info.kind);
        match (fields.get(field), kind) {
            (Some(Value::Number(number)), Some(Type::Number(unit))) => {
                format!("{field} is {}", unit.show(number))
            }
            (Some(Value::Number(number)), _) => format!("{field} is {}", decimal(number.0)),
            (Some(Value::Bool(value)), _) => format!("{field} is {value}"),
            (Some(Value::Text(text)), _) => format!("{field} is {}", quoted(&text)),
            (None, _) => format!("{field} is not known"),
        }
    });
    each.collect::<Vec<_>>().join(", ")
}

impl Expression {
    /// Why a condition is not met, for people: the first part that is not true, and
    /// what its fields are. Nothing if it is met.
    pub fn why_not(&self, fields: &impl super::Fields) -> Option<String> {
        let (part, answer) = self.first_missed(fields)?;
        let written = written(part);
        Some(match (fields_of(part).is_empty(), answer) {
            (true, Answer::Unknown(_)) => format!("{written}: that has no value"),
            (true, Answer::Known(_)) => written,
            (false, _) => format!("{written}: {}", values(part, fields)),
        })
    }
}
