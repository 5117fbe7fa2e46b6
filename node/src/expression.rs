//! Reads expressions as people write them: CEL's syntax, our fields and units.
//!
//! ```text
//! "gpu.memory >= bytes(\"8GiB\") && region.startsWith(\"CN-\") && price.gpu_hour < 1.5"
//!    ── the CEL parser ──▶ its tree ── here ──▶ suanli_protocol::expression::Expression
//! ```
//!
//! Only from this node's own user or operator, and at most [`TEXT_BYTES_MAX`] bytes: what
//! comes from other nodes is a checked tree, never a text. Of CEL there are literals,
//! fields, `! && || ?:`, comparisons, `+ - * /`, `in [..]`, `startsWith`, `endsWith`,
//! `contains`, and functions for units: `bytes("8GiB")`, `duration("10m")`,
//! `ops("10T")`, `rate("1GiB")`. A plain number stands for an amount where one is wanted.
//! Absent: macros (`all`, `exists`, …), lists and maps as values, `matches`.

use cel::{
    IdedExpr,
    common::ast::{CallExpr, Expr, LiteralValue, operators},
    parser::PrattParser,
};
use suanli_executor::quantity::{ByteSize, Span};
use suanli_protocol::expression::{
    CHOICES_MAX, Comparison, Expression, FIELDS, Field, Number, Scope, Term, Type, Unit, Word,
    Wrong, type_of, written,
};

use crate::document::allowed;

/// Bytes of one expression's text.
pub const TEXT_BYTES_MAX: usize = 1024;
/// Levels of a text's tree.
const DEPTH_MAX: u16 = 32;
/// Nodes of it; macros make many of few characters.
const NODES_MAX: usize = 512;

/// Reads a condition.
///
/// # Errors
/// What is wrong, and what is allowed.
pub fn condition(text: &str, scope: Scope) -> Result<Expression, String> {
    read(text, scope, Type::Bool)
}

/// Reads a rank: any number.
///
/// # Errors
/// As [`condition`].
pub fn rank(text: &str, scope: Scope) -> Result<Expression, String> {
    read(text, scope, Type::Number(Unit::Plain))
}

fn read(text: &str, scope: Scope, wanted: Type) -> Result<Expression, String> {
    if text.len() > TEXT_BYTES_MAX {
        let bytes = text.len();
        return Err(format!(
            "{bytes} bytes of text: {TEXT_BYTES_MAX} are allowed"
        ));
    }
    let parser = PrattParser::new()
        .max_recursion_depth(DEPTH_MAX)
        .max_expression_node_count(NODES_MAX)
        .error_reporting_limit(4);
    let tree = parser.parse(text).map_err(|errors| {
        errors.errors.first().map_or_else(
            || "it can't be read".to_owned(),
            |error| format!("at character {}: {}", error.pos.1, error.msg),
        )
    })?;
    let mut reader = Reader { scope };
    let terms = reader.terms(&tree)?;
    Expression::new(terms, scope, wanted).map_err(|wrong| wrong.to_string())
}

struct Reader {
    scope: Scope,
}

impl Reader {
    fn terms(&mut self, tree: &IdedExpr) -> Result<Vec<Term>, String> {
        match &tree.expr {
            Expr::Literal(literal) => Ok(vec![value(literal)?]),
            Expr::Ident(_) | Expr::Select(_) => {
                let name = name_of(&tree.expr)
                    .ok_or("only fields have parts: `a.b`, and nothing like `f(x).b`")?;
                Ok(vec![Term::Field(self.field(&name)?)])
            }
            Expr::Call(call) => self.call(call),
            Expr::List(_) => Err("a list stands only behind `in`".to_owned()),
            Expr::Comprehension(_) => {
                Err("there are no macros here (`all`, `exists`, `map`, `filter`, `has`)".to_owned())
            }
            Expr::Map(_) | Expr::Struct(_) | Expr::Unspecified => {
                Err("maps and structures have no meaning here".to_owned())
            }
        }
    }

    fn field(&self, name: &str) -> Result<Field, String> {
        if let Some(info) = Field::named(name, self.scope) {
            return Ok(info.field);
        }
        let names = FIELDS.iter().filter(|info| info.scope == self.scope);
        let hint = allowed(name, names.map(|info| info.name));
        Err(format!(
            "there is no field `{}`; {hint}",
            name.escape_debug()
        ))
    }

    fn call(&mut self, call: &CallExpr) -> Result<Vec<Term>, String> {
        if let Some(target) = &call.target {
            let term = match call.func_name.as_str() {
                "startsWith" => Term::StartsWith,
                "endsWith" => Term::EndsWith,
                "contains" => Term::Contains,
                other => {
                    let hint = allowed(other, ["startsWith", "endsWith", "contains"]);
                    let name = other.escape_debug();
                    return Err(format!("there is no function `.{name}()`; {hint}"));
                }
            };
            let [argument] = &*call.args else {
                return Err(format!("`.{}()` takes one text", call.func_name));
            };
            return self.joined(&[target, argument], term);
        }
        match (call.func_name.as_str(), &*call.args) {
            (operators::LOGICAL_NOT, [a]) => self.joined(&[a], Term::Not),
            (operators::NEGATE, [a]) => self.joined(&[a], Term::Negate),
            (operators::CONDITIONAL, [a, b, c]) => self.joined(&[a, b, c], Term::If),
            (operators::IN, [a, list]) => match &list.expr {
                Expr::List(list) => self.one_of(a, &list.elements),
                _ => Err("`in` takes a list: `region in [\"CN-NX\", \"CN-GZ\"]`".to_owned()),
            },
            (name, [a, b]) if binary(name).is_some() => {
                let term = binary(name).unwrap_or(Term::And);
                self.joined(&[a, b], term)
            }
            (name, args) => unit_of(name, args),
        }
    }

    fn one_of(&mut self, one: &IdedExpr, others: &[IdedExpr]) -> Result<Vec<Term>, String> {
        let count = u8::try_from(others.len()).ok();
        let count = count.filter(|count| (1..=CHOICES_MAX).contains(count));
        let count = count.ok_or_else(|| format!("`in` takes a list of 1 to {CHOICES_MAX}"))?;
        let all: Vec<&IdedExpr> = std::iter::once(one).chain(others).collect();
        self.joined(&all, Term::OneOf(count))
    }

    /// The operands' terms, and the one that takes them.
    fn joined(&mut self, operands: &[&IdedExpr], term: Term) -> Result<Vec<Term>, String> {
        let parts = operands.iter().map(|operand| self.terms(operand));
        let mut parts = parts.collect::<Result<Vec<_>, _>>()?;
        let types = parts.iter().map(|part| self.type_of(part));
        let types = types.collect::<Result<Vec<_>, _>>()?;
        let is_scaled = matches!(term, Term::Multiply | Term::Divide);
        let amount = Type::Number(Unit::Money);
        if types.contains(&amount) && !is_scaled {
            parts.iter_mut().for_each(|part| make_amount(part));
        }
        let parts_joined = [parts.concat(), vec![term.clone()]].concat();
        if let Err(wrong) = type_of(&parts_joined, self.scope) {
            return Err(self.explained(&wrong, &parts));
        }
        Ok(parts_joined)
    }

    fn type_of(&self, terms: &[Term]) -> Result<Type, String> {
        type_of(terms, self.scope).map_err(|wrong| self.explained(&wrong, &[]))
    }

    /// A mistake, with how a number is written that counts what its neighbour counts.
    fn explained(&self, wrong: &Wrong, parts: &[Vec<Term>]) -> String {
        let types = parts.iter().map(|part| type_of(part, self.scope));
        let types: Vec<Type> = types.filter_map(Result::ok).collect();
        let is_plain = types.contains(&Type::Number(Unit::Plain));
        let example = types.iter().find_map(|kind| match kind {
            Type::Number(unit) if is_plain => example(*unit),
            _ => None,
        });
        let places: Vec<String> = parts.iter().map(|part| written(part)).collect();
        let mut message = match &*places {
            [] => wrong.to_string(),
            places => format!("{}: {wrong}", places.join(", ")),
        };
        if let Some(example) = example {
            message.push_str(&format!("; write {example}"));
        }
        message
    }
}

/// How a number of a unit is written.
const fn example(unit: Unit) -> Option<&'static str> {
    match unit {
        Unit::Plain | Unit::Money => None,
        Unit::Bytes => Some("bytes(\"8GiB\")"),
        Unit::Seconds => Some("duration(\"10m\")"),
        Unit::Speed => Some("ops(\"10T\")"),
        Unit::Rate => Some("rate(\"1GiB\")"),
    }
}

/// Written numbers without a unit stand for amounts beside one.
fn make_amount(part: &mut [Term]) {
    if let [Term::Number(_, unit)] | [Term::Number(_, unit), Term::Negate] = part
        && *unit == Unit::Plain
    {
        *unit = Unit::Money;
    }
}

fn binary(name: &str) -> Option<Term> {
    let comparison = |how| Some(Term::Compare(how));
    match name {
        operators::LOGICAL_AND => Some(Term::And),
        operators::LOGICAL_OR => Some(Term::Or),
        operators::ADD => Some(Term::Add),
        operators::SUBSTRACT => Some(Term::Subtract),
        operators::MULTIPLY => Some(Term::Multiply),
        operators::DIVIDE => Some(Term::Divide),
        operators::EQUALS => comparison(Comparison::Equal),
        operators::NOT_EQUALS => comparison(Comparison::NotEqual),
        operators::LESS => comparison(Comparison::Less),
        operators::LESS_EQUALS => comparison(Comparison::LessOrEqual),
        operators::GREATER => comparison(Comparison::Greater),
        operators::GREATER_EQUALS => comparison(Comparison::GreaterOrEqual),
        _ => None,
    }
}

/// `a.b.c` of an expression that is a name.
fn name_of(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Ident(name) => Some(name.clone()),
        Expr::Select(select) if !select.test => Some(format!(
            "{}.{}",
            name_of(&select.operand.expr)?,
            select.field
        )),
        _ => None,
    }
}

fn value(literal: &LiteralValue) -> Result<Term, String> {
    let plain = |millionths| Term::Number(Number::millionths(millionths), Unit::Plain);
    match literal {
        LiteralValue::Boolean(value) => Ok(Term::Bool(*value.inner())),
        LiteralValue::Int(value) => Ok(plain(i128::from(*value.inner()) * 1_000_000)),
        LiteralValue::UInt(value) => Ok(plain(i128::from(*value.inner()) * 1_000_000)),
        LiteralValue::Double(value) => millionths(*value.inner()).map(plain),
        LiteralValue::String(text) => {
            let text = text.inner();
            let word = Word::new(text).map_err(|error| format!("the text {text:?}: {error}"))?;
            Ok(Term::Text(word))
        }
        LiteralValue::Bytes(_) | LiteralValue::Null => {
            Err("bytes and null have no meaning here".to_owned())
        }
    }
}

/// By its decimals: six places are kept.
fn millionths(value: f64) -> Result<i128, String> {
    let text = format!("{value:.6}");
    let digits = text.replace('.', "");
    digits
        .parse()
        .map_err(|_| format!("the number {value} is too large"))
}

/// A number in a unit: `bytes("8GiB")`.
fn unit_of(name: &str, args: &[IdedExpr]) -> Result<Vec<Term>, String> {
    let names = ["bytes", "duration", "ops", "rate"];
    if !names.contains(&name) {
        let hint = allowed(name, names);
        return Err(format!(
            "there is no function `{}()`; {hint}",
            name.escape_debug()
        ));
    }
    let text = match args {
        [
            IdedExpr {
                expr: Expr::Literal(LiteralValue::String(text)),
                ..
            },
        ] => text.inner(),
        _ => return Err(format!("`{name}()` takes one text, like {name}(\"10…\")")),
    };
    let wrong = |error: &dyn ToString| format!("{name}({text:?}): {}", error.to_string());
    let (millionths, unit) = match name {
        "bytes" | "rate" => {
            let size: ByteSize = text.parse().map_err(|error| wrong(&error))?;
            let unit = if name == "rate" {
                Unit::Rate
            } else {
                Unit::Bytes
            };
            (i128::from(size.0) * 1_000_000, unit)
        }
        "duration" => {
            let span: Span = text.parse().map_err(|error| wrong(&error))?;
            let micros = i128::try_from(span.0.as_micros()).unwrap_or(i128::MAX);
            (micros, Unit::Seconds)
        }
        _ => (
            operations(text).ok_or_else(|| wrong(&"a number with k, M, G, T or P is allowed"))?,
            Unit::Speed,
        ),
    };
    Ok(vec![Term::Number(Number::millionths(millionths), unit)])
}

/// `10T`, `1.5G`, in millionths of one.
fn operations(text: &str) -> Option<i128> {
    const PREFIXES: [(char, i128); 5] = [
        ('k', 1_000),
        ('M', 1_000_000),
        ('G', 1_000_000_000),
        ('T', 1_000_000_000_000),
        ('P', 1_000_000_000_000_000),
    ];
    let text = text.trim();
    let found = PREFIXES.iter().find(|(prefix, _)| text.ends_with(*prefix));
    let (number, factor) = match found {
        Some((prefix, factor)) => (text.strip_suffix(*prefix)?.trim(), *factor),
        None => (text, 1),
    };
    let number: f64 = number.parse().ok().filter(|number: &f64| *number >= 0.0)?;
    millionths(number).ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Result<String, String> {
        condition(text, Scope::Offer).map(|read| read.to_string())
    }

    #[test]
    fn what_people_write_is_read() {
        for text in [
            "gpu.memory >= bytes(\"8GiB\") && region.startsWith(\"CN-\") && price.gpu_hour < 1.5",
            "region in [\"CN-NX\", \"CN-GZ\"] || firm",
            "!(device.kind == \"cpu\") && run_max >= duration(\"600s\")",
            "device.fp32 > ops(\"10 T\")",
            "slots_free / slots >= 0.5",
            "price.gpu_hour * 2 <= 3 ? true : trust == 100",
            "bandwidth >= rate(\"10MiB\")",
        ] {
            let read = shown(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            let plain = |text: &str| text.replace(' ', "");
            assert_eq!(plain(&read), plain(text));
            // What is shown is read as the same.
            assert_eq!(shown(&read), Ok(read));
        }
        assert!(condition("client.known || job.run_max < duration(\"1m\")", Scope::Job).is_ok());
        assert!(rank("-price.gpu_hour", Scope::Offer).is_ok());
        assert!(rank("device.fp32", Scope::Offer).is_ok());
    }

    #[test]
    fn mistakes_are_named_with_a_way_out() {
        let wrong = |text: &str| shown(text).unwrap_err();
        for (text, says) in [
            (
                "gpu.memroy >= bytes(\"8GiB\")",
                "did you mean `gpu.memory`?",
            ),
            ("gpu.memory >= 8", "write bytes(\"8GiB\")"),
            ("run_max > 10", "write duration(\"10m\")"),
            ("gpu.memory >= byte(\"8GiB\")", "did you mean `bytes`?"),
            ("region.startWith(\"CN\")", "did you mean `startsWith`?"),
            ("region > \"CN\"", "> takes a number"),
            ("region == 3", "== takes a text, and this is a plain number"),
            ("[1].all(x, x > 0)", "no macros"),
            ("has(gpu.memory)", "only fields"),
            ("price.gpu_hour", "has to come to true or false"),
            ("client.known", "there is no field `client.known`"),
            ("region ==", "at character"),
            ("bytes(\"8 apples\") == bytes(\"1\")", "8 apples"),
            ("region in []", "a list of 1 to"),
        ] {
            let error = wrong(text);
            assert!(error.contains(says), "{text}: {error}");
        }
        assert!(rank("region", Scope::Offer).is_err());
    }

    #[test]
    fn every_field_is_described() {
        let page = include_str!("../../docs/expressions.md");
        for info in FIELDS {
            let row = format!("| `{}` | ", info.name);
            assert!(page.contains(&row), "{row} is missing");
        }
        assert_eq!(page.matches("\n| `").count(), FIELDS.len());
    }

    /// Nested macros, long sums, deep brackets, long texts.
    #[test]
    fn abuse_77_a_bomb_is_refused() {
        let sum = vec!["slots"; 200].join("+") + " > 1";
        let brackets = format!("{}firm{}", "(".repeat(400), ")".repeat(400));
        let nest = "[1].all(a, ".repeat(12) + "true" + &")".repeat(12);
        let nots = "!".repeat(900) + "firm";
        let long = format!("region == \"{}\"", "x".repeat(2000));
        for text in [sum, nest, long] {
            assert!(shown(&text).is_err(), "{text}");
        }
        // Brackets and pairs of negations alone are nothing.
        for text in [brackets, nots] {
            let read = shown(&text);
            assert!(read.is_err() || read.as_deref() == Ok("firm"), "{read:?}");
        }
    }
}
