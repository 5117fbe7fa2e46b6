//! Conditions and ranks: what a client wants of offers (`where`, `rank`) and a provider
//! of jobs (`accept`), as a tree that is checked before it is believed.
//!
//! ```text
//! text ── the node's parser ──▶ Expression ── wire ──▶ Expression
//!                                   │ check: fields of one scope, types, units, size
//!                                   ▼
//!               Fields (an offer and a device; a job and its client) ──▶ Answer
//! ```
//!
//! The tree travels, the text never does. It is a list of terms in postfix order, so
//! that to read, check and evaluate it is one pass over at most [`TERMS_MAX`] terms
//! with at most [`VALUES_MAX`] values waiting: nothing recurses, nothing runs long.
//!
//! Numbers are exact decimals with a unit; what leaves their range, and what an offer
//! does not say, is *unknown*, and unknown is no yes. `false && unknown` is false,
//! `true || unknown` true.
//!
//! Absent: the language that people write (the node reads it), and the values of fields
//! ([`crate::rank`] has those of offers, the seller those of jobs).

mod fields;
mod show;

use std::borrow::Cow;

use bincode::{Decode, Encode};
use serde::{Serialize, Serializer};

pub use self::{
    fields::{FIELDS, Field, FieldInfo, Scope},
    show::written,
};
use crate::{
    limits::NAME_BYTES_MAX,
    wire::{List, Text},
};

/// Terms of one expression.
pub const TERMS_MAX: usize = 96;
/// Values that wait at once while one is evaluated.
pub const VALUES_MAX: usize = 16;
/// Values that [`Term::OneOf`] compares with.
pub const CHOICES_MAX: u8 = 12;
/// A number's smallest step is one millionth.
const STEP: i128 = 1_000_000;
/// The largest number that is written in an expression, in steps: enough for the bytes
/// and operations of all machines together.
const LITERAL_MAX: u128 = 1_000_000_000_000_000_000_000_000_000;

/// A text in an expression.
pub type Word = Text<NAME_BYTES_MAX>;

/// A decimal with six places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub struct Number(i128);

/// What a number counts. Only like is compared with like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum Unit {
    /// Nothing: a plain number.
    Plain,
    /// Bytes.
    Bytes,
    /// Seconds.
    Seconds,
    /// The network's unit of account.
    Money,
    /// Operations in a second.
    Speed,
    /// Bytes in a second.
    Rate,
}

/// What a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// Yes or no.
    Bool,
    /// A text.
    Text,
    /// A number of these.
    Number(Unit),
}

/// How two values are compared. Texts and booleans are equal or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[expect(missing_docs, reason = "what they are called")]
pub enum Comparison {
    Less,
    LessOrEqual,
    Equal,
    NotEqual,
    GreaterOrEqual,
    Greater,
}

/// One step of an expression: it takes values that wait, and leaves one.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Term {
    /// A value that is written there.
    Bool(bool),
    /// A value that is written there.
    Number(Number, Unit),
    /// A value that is written there.
    Text(Word),
    /// What an offer or a job says.
    Field(Field),
    /// A boolean, turned round.
    Not,
    /// A number, below zero instead of above.
    Negate,
    /// Whether both are true.
    And,
    /// Whether one is true.
    Or,
    /// Whether two values compare so.
    Compare(Comparison),
    /// The sum of two numbers of one unit.
    Add,
    /// The difference.
    Subtract,
    /// A number, times a plain one.
    Multiply,
    /// A number by a plain one; by any other it is a plain ratio.
    Divide,
    /// A condition, and what it is if so, and if not.
    If,
    /// A value and so many others: whether it is one of them.
    OneOf(u8),
    /// Whether the first text begins with the second.
    StartsWith,
    /// Whether it ends with it.
    EndsWith,
    /// Whether it has it.
    Contains,
}

/// An expression, as it travels. [`Expression::check`] says whether it is one.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
pub struct Expression(List<Term, TERMS_MAX>);

/// A part of a condition that compares a field with a number that is written there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bound {
    /// The field.
    pub field: Field,
    /// What it must be to the number.
    pub how: Comparison,
    /// The number.
    pub number: Number,
}

/// Why a list of terms is no expression.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// It has more terms than one may have.
    #[error("it is too long: {TERMS_MAX} values and operators are allowed")]
    TooLong,
    /// Too much is nested.
    #[error("it is nested too deeply: {VALUES_MAX} values may wait for their operator")]
    TooDeep,
    /// Terms are missing, or left over.
    #[error("it is not one whole expression")]
    NotWhole,
    /// A field that this program doesn't know, or of another scope.
    #[error("there is no field {0} here")]
    NoField(Field),
    /// A number beyond all that is measured.
    #[error("a number is too large")]
    TooLarge,
    /// It comes to something else than is wanted.
    #[error("it has to come to {wanted}, and it is {found}")]
    Other {
        /// What is wanted.
        wanted: Type,
        /// What it comes to.
        found: Type,
    },
    /// Values of the wrong type.
    #[error("{what} takes {wanted}, and this is {found}")]
    Mismatch {
        /// The operator.
        what: &'static str,
        /// What it takes.
        wanted: String,
        /// What it got.
        found: Type,
    },
}

/// A value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value<'a> {
    /// Yes or no.
    Bool(bool),
    /// A number of some unit.
    Number(Number),
    /// A text.
    Text(Cow<'a, str>),
}

/// What came out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer<'a> {
    /// A value.
    Known(Value<'a>),
    /// None: the first field that nothing is said of, or none where a number left its
    /// range.
    Unknown(Option<Field>),
}

/// As it would be written.
impl Serialize for Expression {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Says what fields are.
pub trait Fields {
    /// A field's value, of its type; nothing where there is none.
    fn get(&self, field: Field) -> Option<Value<'_>>;
}

impl Number {
    /// Of a whole number.
    pub const fn whole(number: u64) -> Self {
        // A `u64` is far below the range's end.
        Self(number as i128 * STEP)
    }

    /// Of millionths.
    pub const fn millionths(millionths: i128) -> Self {
        Self(millionths)
    }

    /// As many of something as are in it, rounded down, and whether that is all of it.
    fn of_grains(self, grain: Self) -> Option<(i128, bool)> {
        let whole = self.0.checked_div_euclid(grain.0)?;
        Some((whole, self.0.checked_rem_euclid(grain.0)? == 0))
    }

    fn times(self, other: Self) -> Option<Self> {
        Some(Self(self.0.checked_mul(other.0)? / STEP))
    }

    fn over(self, other: Self) -> Option<Self> {
        Some(Self(self.0.checked_mul(STEP)?.checked_div(other.0)?))
    }
}

impl Bound {
    /// What a part is, if it is one.
    fn of(part: &[Term]) -> Option<Self> {
        let (field, how, number) = match part {
            [
                Term::Field(field),
                Term::Number(number, _),
                Term::Compare(how),
            ] => (field, *how, number),
            [
                Term::Number(number, _),
                Term::Field(field),
                Term::Compare(how),
            ] => (field, how.turned(), number),
            _ => return None,
        };
        Some(Self {
            field: *field,
            how,
            number: *number,
        })
    }

    /// The nearest to its number of all values that meet it, as a multiple of `grain`. None
    /// if it is below zero or too large, and where all values but one do.
    pub fn nearest(&self, grain: Number) -> Option<u64> {
        let (down, is_whole) = self.number.of_grains(grain)?;
        let up = down + i128::from(!is_whole);
        let nearest = match self.how {
            Comparison::Less => up - 1,
            Comparison::LessOrEqual => down,
            Comparison::Equal => is_whole.then_some(down)?,
            Comparison::NotEqual => return None,
            Comparison::GreaterOrEqual => up,
            Comparison::Greater => down + 1,
        };
        u64::try_from(nearest).ok()
    }
}

impl Comparison {
    /// The same with its two sides exchanged.
    const fn turned(self) -> Self {
        match self {
            Self::Less => Self::Greater,
            Self::LessOrEqual => Self::GreaterOrEqual,
            Self::Equal => Self::Equal,
            Self::NotEqual => Self::NotEqual,
            Self::GreaterOrEqual => Self::LessOrEqual,
            Self::Greater => Self::Less,
        }
    }
}

impl Expression {
    /// Takes terms that make one value of a type, of the fields of a scope.
    ///
    /// # Errors
    /// [`Wrong`].
    pub fn new(terms: Vec<Term>, scope: Scope, wanted: Type) -> Result<Self, Wrong> {
        let expression = Self(terms.try_into().map_err(|_| Wrong::TooLong)?);
        expression.check(scope, wanted)?;
        Ok(expression)
    }

    /// Its terms.
    pub fn terms(&self) -> &[Term] {
        &self.0
    }

    /// Whether it makes one value of a type.
    ///
    /// # Errors
    /// [`Wrong`], for the first thing that is.
    pub fn check(&self, scope: Scope, wanted: Type) -> Result<(), Wrong> {
        match (type_of(&self.0, scope)?, wanted) {
            (found, wanted) if found == wanted => Ok(()),
            // Any number ranks.
            (Type::Number(_), Type::Number(Unit::Plain)) => Ok(()),
            (found, wanted) => Err(Wrong::Other { wanted, found }),
        }
    }

    /// What it comes to.
    pub fn evaluate<'a>(&'a self, fields: &'a impl Fields) -> Answer<'a> {
        evaluate(&self.0, fields)
    }

    /// The first of the conditions joined by `&&` that is not true, and what it came
    /// to: a part of the terms.
    pub fn first_missed<'a>(&'a self, fields: &'a impl Fields) -> Option<(&'a [Term], Answer<'a>)> {
        self.parts().into_iter().find_map(|part| {
            let answer = evaluate(part, fields);
            (answer != Answer::Known(Value::Bool(true))).then_some((part, answer))
        })
    }

    /// The same without one of its [`Expression::parts`]; nothing if no part is left.
    pub fn without(&self, part: usize) -> Option<Self> {
        let parts = self.parts();
        let kept = parts.iter().enumerate().filter(|(n, _)| *n != part);
        let mut terms = Vec::new();
        for (n, (_, part)) in kept.enumerate() {
            terms.extend_from_slice(part);
            if n > 0 {
                terms.push(Term::And);
            }
        }
        (!terms.is_empty()).then(|| Self(List::truncated(terms)))
    }

    /// Those of its [`Expression::parts`] that compare a field with a number.
    pub fn bounds(&self) -> Vec<Bound> {
        self.parts().into_iter().filter_map(Bound::of).collect()
    }

    /// The conditions that are joined by `&&`, in their order.
    pub fn parts(&self) -> Vec<&[Term]> {
        let (mut open, mut parts) = (vec![&*self.0], Vec::new());
        while let Some(terms) = open.pop() {
            match terms.split_last() {
                Some((Term::And, operands)) => {
                    let (left, right) = operands.split_at(start_of_last(operands));
                    open.extend([left, right]);
                }
                Some(_) => parts.push(terms),
                None => {}
            }
        }
        // Each was split off from its end.
        parts.sort_by_key(|part| part.as_ptr());
        parts
    }
}

/// The fields that terms read, each once.
fn fields_of(terms: &[Term]) -> Vec<Field> {
    let mut fields = Vec::new();
    for term in terms {
        if let Term::Field(field) = term
            && !fields.contains(field)
        {
            fields.push(*field);
        }
    }
    fields
}

impl Term {
    /// How many values it takes.
    const fn takes(&self) -> usize {
        match self {
            Self::Bool(_) | Self::Number(..) | Self::Text(_) | Self::Field(_) => 0,
            Self::Not | Self::Negate => 1,
            Self::And
            | Self::Or
            | Self::Compare(_)
            | Self::Add
            | Self::Subtract
            | Self::Multiply
            | Self::Divide
            | Self::StartsWith
            | Self::EndsWith
            | Self::Contains => 2,
            Self::If => 3,
            Self::OneOf(count) => 1 + *count as usize,
        }
    }
}

/// Where the terms of the last value begin.
fn start_of_last(terms: &[Term]) -> usize {
    let (mut start, mut wanted) = (terms.len(), 1usize);
    for (n, term) in terms.iter().enumerate().rev() {
        if wanted == 0 {
            break;
        }
        start = n;
        wanted = wanted - 1 + term.takes();
    }
    start
}

/// The type of the one value that terms make.
///
/// # Errors
/// [`Wrong`].
pub fn type_of(terms: &[Term], scope: Scope) -> Result<Type, Wrong> {
    let mut types: Vec<Type> = Vec::new();
    for term in terms {
        let first = types.len().checked_sub(term.takes());
        let taken = types.split_off(first.ok_or(Wrong::NotWhole)?);
        types.push(result_of(term, &taken, scope)?);
        if types.len() > VALUES_MAX {
            return Err(Wrong::TooDeep);
        }
    }
    match types.as_slice() {
        [one] => Ok(*one),
        _ => Err(Wrong::NotWhole),
    }
}

/// The type that a term makes of these.
fn result_of(term: &Term, taken: &[Type], scope: Scope) -> Result<Type, Wrong> {
    let what = term.symbol();
    let mismatch = |wanted: &dyn ToString, found: Type| Wrong::Mismatch {
        what,
        wanted: wanted.to_string(),
        found,
    };
    let all = |wanted: Type| match taken.iter().find(|found| **found != wanted) {
        Some(found) => Err(mismatch(&wanted, *found)),
        None => Ok(()),
    };
    match (term, taken) {
        (Term::Bool(_), _) => Ok(Type::Bool),
        (Term::Number(number, _), _) if number.0.unsigned_abs() > LITERAL_MAX => {
            Err(Wrong::TooLarge)
        }
        (Term::Number(_, unit), _) => Ok(Type::Number(*unit)),
        (Term::Text(_), _) => Ok(Type::Text),
        (Term::Field(field), _) => {
            let info = field.info().filter(|info| info.scope == scope);
            info.map(|info| info.kind).ok_or(Wrong::NoField(*field))
        }
        (Term::Not | Term::And | Term::Or, _) => all(Type::Bool).map(|()| Type::Bool),
        (Term::StartsWith | Term::EndsWith | Term::Contains, _) => {
            all(Type::Text).map(|()| Type::Bool)
        }
        (Term::Negate, [Type::Number(unit)]) => Ok(Type::Number(*unit)),
        (Term::Add | Term::Subtract, [Type::Number(unit), _]) => {
            all(Type::Number(*unit)).map(|()| Type::Number(*unit))
        }
        (Term::Compare(how), [first, second]) => {
            let is_order = !matches!(how, Comparison::Equal | Comparison::NotEqual);
            if is_order && !matches!(first, Type::Number(_)) {
                return Err(mismatch(&"a number", *first));
            }
            if first != second {
                return Err(mismatch(first, *second));
            }
            Ok(Type::Bool)
        }
        (Term::OneOf(1..=CHOICES_MAX), [first, ..]) => all(*first).map(|()| Type::Bool),
        (Term::OneOf(_), _) => Err(Wrong::TooLong),
        (Term::Multiply, [Type::Number(Unit::Plain), Type::Number(unit)])
        | (Term::Multiply | Term::Divide, [Type::Number(unit), Type::Number(Unit::Plain)]) => {
            Ok(Type::Number(*unit))
        }
        // A ratio, like speed for money: good for comparing with its like.
        (Term::Divide, [Type::Number(_), Type::Number(_)]) => Ok(Type::Number(Unit::Plain)),
        (Term::If, [Type::Bool, yes, no]) if yes == no => Ok(*yes),
        (Term::If, [Type::Bool, yes, no]) => Err(mismatch(yes, *no)),
        (Term::If, [found, ..]) => Err(mismatch(&Type::Bool, *found)),
        (_, [Type::Number(_), found]) => Err(mismatch(&"a plain number", *found)),
        (_, [found, ..]) => Err(mismatch(&"a number", *found)),
        (_, []) => Err(Wrong::NotWhole),
    }
}

/// What terms come to.
pub(crate) fn evaluate<'a>(terms: &'a [Term], fields: &'a impl Fields) -> Answer<'a> {
    let mut answers: Vec<Answer<'a>> = Vec::with_capacity(VALUES_MAX + 1);
    for term in terms {
        let Some(first) = answers.len().checked_sub(term.takes()) else {
            return Answer::Unknown(None);
        };
        let made = term.apply(answers.get(first..).unwrap_or_default(), fields);
        answers.truncate(first);
        answers.push(made);
        if answers.len() > VALUES_MAX {
            return Answer::Unknown(None);
        }
    }
    match (answers.pop(), answers.is_empty()) {
        (Some(one), true) => one,
        _ => Answer::Unknown(None),
    }
}

impl Term {
    /// What it makes of these. Values of types that a check refuses make an unknown.
    fn apply<'a>(&'a self, taken: &[Answer<'a>], fields: &'a impl Fields) -> Answer<'a> {
        use Answer::{Known, Unknown};
        use Value::{Bool, Number as Num, Text as Words};
        let known = |value: Option<Value<'a>>| value.map_or(Unknown(None), Known);
        let number = |number: Option<Number>| known(number.map(Num));
        match (self, taken) {
            (Self::Bool(value), _) => Known(Bool(*value)),
            (Self::Number(value, _), _) => Known(Num(*value)),
            (Self::Text(value), _) => Known(Words(Cow::Borrowed(value))),
            (Self::Field(field), _) => {
                let said = fields.get(*field);
                said.map_or(Unknown(Some(*field)), Known)
            }
            // Decided by one side, whatever the other is.
            (Self::And, [Known(Bool(false)), _] | [_, Known(Bool(false))]) => Known(Bool(false)),
            (Self::Or, [Known(Bool(true)), _] | [_, Known(Bool(true))]) => Known(Bool(true)),
            (Self::If, [Known(Bool(true)), yes, _]) => yes.clone(),
            (Self::If, [Known(Bool(false)), _, no]) => no.clone(),
            (_, taken) if taken.iter().any(|answer| matches!(answer, Unknown(_))) => {
                Unknown(unknown(taken))
            }
            (Self::Not, [Known(Bool(a))]) => Known(Bool(!a)),
            (Self::And | Self::Or, [Known(Bool(a)), Known(Bool(_))]) => Known(Bool(*a)),
            (Self::Negate, [Known(Num(a))]) => number(a.0.checked_neg().map(Number)),
            (Self::Add, [Known(Num(a)), Known(Num(b))]) => number(a.0.checked_add(b.0).map(Number)),
            (Self::Subtract, [Known(Num(a)), Known(Num(b))]) => {
                number(a.0.checked_sub(b.0).map(Number))
            }
            (Self::Multiply, [Known(Num(a)), Known(Num(b))]) => number(a.times(*b)),
            (Self::Divide, [Known(Num(a)), Known(Num(b))]) => number(a.over(*b)),
            (Self::Compare(how), [Known(a), Known(b)]) => known(how.holds(a, b).map(Bool)),
            (Self::OneOf(_), [one, others @ ..]) => Known(Bool(others.contains(one))),
            (Self::StartsWith, [Known(Words(a)), Known(Words(b))]) => {
                Known(Bool(a.starts_with(&**b)))
            }
            (Self::EndsWith, [Known(Words(a)), Known(Words(b))]) => Known(Bool(a.ends_with(&**b))),
            (Self::Contains, [Known(Words(a)), Known(Words(b))]) => Known(Bool(a.contains(&**b))),
            _ => Unknown(None),
        }
    }
}

impl Comparison {
    /// Whether two values compare so; nothing of what has no order.
    pub(crate) fn holds(self, a: &Value<'_>, b: &Value<'_>) -> Option<bool> {
        let order = match (a, b) {
            (Value::Number(a), Value::Number(b)) => a.cmp(b),
            _ => {
                return match self {
                    Self::Equal => Some(a == b),
                    Self::NotEqual => Some(a != b),
                    Self::Less | Self::LessOrEqual | Self::GreaterOrEqual | Self::Greater => None,
                };
            }
        };
        Some(match self {
            Self::Less => order.is_lt(),
            Self::LessOrEqual => order.is_le(),
            Self::Equal => order.is_eq(),
            Self::NotEqual => order.is_ne(),
            Self::GreaterOrEqual => order.is_ge(),
            Self::Greater => order.is_gt(),
        })
    }
}

/// The first field among these that nothing is said of.
fn unknown(answers: &[Answer<'_>]) -> Option<Field> {
    answers.iter().find_map(|answer| match answer {
        Answer::Unknown(field) => *field,
        Answer::Known(_) => None,
    })
}

#[cfg(test)]
mod tests;
