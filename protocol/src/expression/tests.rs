use super::*;

/// An offer with a GPU of 8 GiB at 1.25 an hour; it does not say its power.
struct Given;

impl Fields for Given {
    fn get(&self, field: Field) -> Option<Value<'_>> {
        Some(match field {
            Field::REGION => Value::Text("CN-NX".into()),
            Field::GPU_MEMORY => Value::Number(Number::whole(8 << 30)),
            Field::PRICE_GPU_HOUR => Value::Number(Number::millionths(1_250_000)),
            Field::SLOTS => Value::Number(Number::whole(4)),
            Field::FIRM => Value::Bool(true),
            _ => return None,
        })
    }
}

fn gib(count: u64) -> Term {
    Term::Number(Number::whole(count << 30), Unit::Bytes)
}

fn plain(number: u64) -> Term {
    Term::Number(Number::whole(number), Unit::Plain)
}

fn text(text: &str) -> Term {
    Term::Text(Word::lossy(text))
}

const AT_LEAST: Term = Term::Compare(Comparison::GreaterOrEqual);
const EQUAL: Term = Term::Compare(Comparison::Equal);
const UNKNOWN: Term = Term::Field(Field::WATTS);

fn condition(terms: Vec<Term>) -> Expression {
    Expression::new(terms, Scope::Offer, Type::Bool).unwrap()
}

fn truth(terms: Vec<Term>) -> Option<bool> {
    match condition(terms).evaluate(&Given) {
        Answer::Known(Value::Bool(truth)) => Some(truth),
        _ => None,
    }
}

/// `gpu.memory >= bytes("…GiB") && region.startsWith("CN-") && price.gpu_hour < 1.5`.
fn usual(memory: u64) -> Vec<Term> {
    vec![
        Term::Field(Field::GPU_MEMORY),
        gib(memory),
        AT_LEAST,
        Term::Field(Field::REGION),
        text("CN-"),
        Term::StartsWith,
        Term::And,
        Term::Field(Field::PRICE_GPU_HOUR),
        Term::Number(Number::millionths(1_500_000), Unit::Money),
        Term::Compare(Comparison::Less),
        Term::And,
    ]
}

#[test]
fn conditions_are_met_or_say_what_is_missed() {
    assert_eq!(truth(usual(8)), Some(true));
    assert_eq!(condition(usual(8)).why_not(&Given), None);
    assert_eq!(truth(usual(16)), Some(false));
    assert_eq!(
        condition(usual(16)).why_not(&Given).unwrap(),
        "gpu.memory >= bytes(\"16GiB\"): gpu.memory is 8 GiB"
    );
    let watts = vec![UNKNOWN, plain(300), Term::Compare(Comparison::Less)];
    assert_eq!(
        condition(watts).why_not(&Given).unwrap(),
        "energy.watts < 300: energy.watts is not known"
    );
}

#[test]
fn the_unknown_is_no_yes_and_decides_nothing() {
    let watts = || vec![UNKNOWN, plain(300), Term::Compare(Comparison::Less)];
    let with = |value: bool, how: Term| truth([watts(), vec![Term::Bool(value), how]].concat());
    assert_eq!(with(false, Term::And), Some(false));
    assert_eq!(with(true, Term::And), None);
    assert_eq!(with(true, Term::Or), Some(true));
    assert_eq!(with(false, Term::Or), None);
    assert_eq!(truth([watts(), vec![Term::Not]].concat()), None);
    let chosen = |value: bool| {
        truth(
            [
                vec![Term::Bool(value)],
                watts(),
                vec![Term::Bool(true), Term::If],
            ]
            .concat(),
        )
    };
    assert_eq!(chosen(false), Some(true));
    assert_eq!(chosen(true), None);
    // By nothing, and beyond all range.
    assert_eq!(
        truth(vec![plain(1), plain(0), Term::Divide, plain(1), EQUAL]),
        None
    );
    let mut huge = vec![plain(u64::MAX)];
    for _ in 0..8 {
        huge.extend([plain(u64::MAX), Term::Multiply]);
    }
    huge.extend([plain(1), EQUAL]);
    assert_eq!(truth(huge), None);
}

#[test]
fn sums_keep_their_units() {
    let half = vec![
        Term::Field(Field::GPU_MEMORY),
        plain(2),
        Term::Divide,
        gib(4),
        EQUAL,
    ];
    assert_eq!(truth(half), Some(true));
    let ratio = vec![
        Term::Field(Field::GPU_MEMORY),
        gib(2),
        Term::Divide,
        Term::Field(Field::SLOTS),
        EQUAL,
    ];
    assert_eq!(truth(ratio), Some(true));
    let one_of = vec![
        Term::Field(Field::REGION),
        text("CN-GZ"),
        text("CN-NX"),
        Term::OneOf(2),
    ];
    assert_eq!(truth(one_of), Some(true));
}

#[test]
fn what_is_no_expression_is_refused() {
    let wrong = |terms: Vec<Term>| Expression::new(terms, Scope::Offer, Type::Bool).unwrap_err();
    assert_eq!(wrong(vec![]), Wrong::NotWhole);
    assert_eq!(wrong(vec![Term::And]), Wrong::NotWhole);
    assert_eq!(
        wrong(vec![Term::Bool(true), Term::Bool(true)]),
        Wrong::NotWhole
    );
    assert_eq!(
        wrong(vec![Term::Field(Field(999))]),
        Wrong::NoField(Field(999))
    );
    // Of jobs, not of offers.
    assert_eq!(
        wrong(vec![Term::Field(Field::CLIENT_KNOWN)]),
        Wrong::NoField(Field::CLIENT_KNOWN)
    );
    assert!(matches!(wrong(vec![plain(1)]), Wrong::Other { .. }));
    let unlike = vec![Term::Field(Field::GPU_MEMORY), plain(8), AT_LEAST];
    assert_eq!(
        wrong(unlike).to_string(),
        ">= takes a number of bytes, and this is a plain number"
    );
    for terms in [
        vec![text("a"), text("b"), AT_LEAST],
        vec![Term::Bool(true), text("b"), EQUAL],
        vec![text("a"), Term::Negate],
        vec![gib(1), gib(1), Term::Multiply, gib(1), EQUAL],
        vec![plain(1), Term::Bool(true), Term::Bool(true), Term::If],
        vec![text("a"), Term::OneOf(0)],
        vec![
            Term::Number(Number::millionths(i128::MAX), Unit::Plain),
            plain(1),
            EQUAL,
        ],
    ] {
        assert!(
            Expression::new(terms.clone(), Scope::Offer, Type::Bool).is_err(),
            "{terms:?}"
        );
    }
    let many = vec![Term::Bool(true); TERMS_MAX + 1];
    assert_eq!(wrong(many), Wrong::TooLong);
    let mut deep = vec![Term::Bool(true); VALUES_MAX + 1];
    deep.extend(vec![Term::And; VALUES_MAX]);
    assert_eq!(wrong(deep), Wrong::TooDeep);
}

/// What was never checked comes to nothing, and not to a panic.
#[test]
fn abuse_77_any_terms_can_be_evaluated_and_shown() {
    let kinds = [
        Term::Bool(true),
        plain(u64::MAX),
        Term::Number(Number::millionths(i128::MIN), Unit::Bytes),
        Term::Number(Number::millionths(i128::MAX), Unit::Speed),
        Term::Number(Number::millionths(i128::MIN), Unit::Seconds),
        text("x"),
        Term::Field(Field(7777)),
        Term::Not,
        Term::Negate,
        Term::And,
        AT_LEAST,
        Term::Multiply,
        Term::Divide,
        Term::If,
        Term::OneOf(255),
        Term::OneOf(1),
        Term::Contains,
    ];
    let mut state = 1u64;
    for _ in 0..20_000 {
        let mut terms = Vec::new();
        for _ in 0..state % 24 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let n = usize::try_from(state >> 33).unwrap() % kinds.len();
            terms.push(kinds[n].clone());
        }
        state = state.wrapping_add(1);
        let expression = Expression(List::truncated(terms));
        let answer = expression.evaluate(&Given);
        let shown = expression.to_string();
        let _ = (expression.why_not(&Given), &shown);
        if expression.check(Scope::Offer, Type::Bool).is_ok() {
            assert!(
                !matches!(answer, Answer::Known(Value::Number(_) | Value::Text(_))),
                "{shown}"
            );
        }
    }
}

#[test]
fn an_expression_is_shown_as_it_would_be_written() {
    let shown = condition(usual(8)).to_string();
    assert_eq!(
        shown,
        "gpu.memory >= bytes(\"8GiB\") && region.startsWith(\"CN-\") && price.gpu_hour < 1.5"
    );
    let nested = vec![
        Term::Field(Field::FIRM),
        Term::Field(Field::SLOTS),
        plain(1),
        Term::Add,
        plain(2),
        Term::Multiply,
        plain(3),
        EQUAL,
        Term::Or,
        Term::Not,
    ];
    assert_eq!(
        condition(nested).to_string(),
        "!(firm || (slots + 1) * 2 == 3)"
    );
}

#[test]
fn a_part_can_be_left_out() {
    let usual = condition(usual(8));
    let shown = |part| usual.without(part).unwrap().to_string();
    assert_eq!(usual.parts().len(), 3);
    assert_eq!(
        shown(0),
        "region.startsWith(\"CN-\") && price.gpu_hour < 1.5"
    );
    assert_eq!(
        shown(2),
        "gpu.memory >= bytes(\"8GiB\") && region.startsWith(\"CN-\")"
    );
    let all = usual.without(0).and_then(|two| two.without(0)?.without(0));
    assert_eq!(all, None);
}

#[test]
fn it_travels() {
    let expression = condition(usual(8));
    let bytes = crate::wire::encode(&expression);
    assert!(bytes.len() < 128, "{}", bytes.len());
    let read: Expression = crate::wire::decode(&bytes, 1024).unwrap();
    assert_eq!(read, expression);
}

#[test]
fn a_bound_has_a_nearest_value_that_meets_it() {
    let nearest = |how, millionths, grain| {
        let part = vec![
            Term::Field(Field::SLOTS),
            Term::Number(Number::millionths(millionths), Unit::Plain),
            Term::Compare(how),
        ];
        let bounds = condition(part).bounds();
        assert_eq!(bounds.len(), 1);
        bounds[0].nearest(Number::millionths(grain))
    };
    for (how, millionths, expected) in [
        (Comparison::Less, 5_000_000, Some(4999)),
        (Comparison::Less, 5_000_001, Some(5000)),
        (Comparison::LessOrEqual, 5_000_999, Some(5000)),
        (Comparison::Equal, 5_000_000, Some(5000)),
        (Comparison::Equal, 5_000_001, None),
        (Comparison::NotEqual, 5_000_000, None),
        (Comparison::GreaterOrEqual, 5_000_001, Some(5001)),
        (Comparison::GreaterOrEqual, 5_000_000, Some(5000)),
        (Comparison::Greater, 5_000_000, Some(5001)),
        (Comparison::Less, 0, None),
        (
            Comparison::Greater,
            100_000_000_000_000_000_000_000_000,
            None,
        ),
    ] {
        assert_eq!(
            nearest(how, millionths, 1000),
            expected,
            "{how:?} {millionths}"
        );
    }
    // A number that comes first is turned round; what is no plain bound is passed over.
    let turned = condition(vec![
        plain(3),
        Term::Field(Field::SLOTS),
        Term::Compare(Comparison::Less),
    ]);
    assert_eq!(turned.bounds()[0].nearest(Number::whole(1)), Some(4));
    let all = condition(usual(8));
    assert_eq!(all.bounds().len(), 2);
    assert_eq!(all.bounds()[1].field, Field::PRICE_GPU_HOUR);
}
