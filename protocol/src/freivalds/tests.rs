//! Right products pass, in whatever order they are summed; wrong ones are found as often as
//! is said.

use super::*;

type Random = ChaCha20Rng;

fn random(number: u64) -> Random {
    Random::seed_from_u64(number)
}

fn seed(number: u64) -> Seed {
    let mut seed = [0; 32];
    random(number).fill_bytes(&mut seed);
    seed
}

/// A number in [−1, 1).
fn uniform(random: &mut Random) -> f32 {
    let bits = random.next_u32() >> 8;
    bits as f32 / 8_388_608.0 - 1.0
}

/// Matrices in memory.
#[derive(Clone)]
struct Case {
    product: Product,
    matrices: [Vec<u32>; 3],
    read: [usize; 3],
}

impl Matrices for Case {
    type Error = &'static str;

    fn rewind(&mut self, matrix: Matrix) -> Result<(), Self::Error> {
        self.read[matrix as usize] = 0;
        Ok(())
    }

    fn read(&mut self, matrix: Matrix, row: &mut [u8]) -> Result<(), Self::Error> {
        let at = self.read[matrix as usize];
        let (row, _) = row.as_chunks_mut::<4>();
        let entries = self.matrices[matrix as usize].get(at..at + row.len());
        let entries = entries.ok_or("no more rows")?;
        for (into, entry) in row.iter_mut().zip(entries) {
            *into = entry.to_le_bytes();
        }
        self.read[matrix as usize] += row.len();
        Ok(())
    }
}

type Sides = [usize; 3];

impl Case {
    fn new([rows, inner, columns]: Sides, numbers: Numbers, matrices: [Vec<u32>; 3]) -> Self {
        let side = |side: usize| u32::try_from(side).unwrap();
        let product = Product {
            left: 0,
            right: 1,
            output: Name::lossy("c"),
            rows: side(rows),
            inner: side(inner),
            columns: side(columns),
            numbers,
        };
        product.check().unwrap();
        Self {
            product,
            matrices,
            read: [0; 3],
        }
    }

    /// Factors of such entries, and their product by a way to sum.
    fn floats(sides: Sides, mut entry: impl FnMut() -> f32, sum: Sum) -> Self {
        let [rows, inner, columns] = sides;
        let mut matrix = |count| (0..count).map(|_| entry()).collect::<Vec<f32>>();
        let (left, right) = (matrix(rows * inner), matrix(inner * columns));
        let mut product = Vec::new();
        for row in left.chunks(inner) {
            for column in 0..columns {
                let column: Vec<f32> = right
                    .iter()
                    .skip(column)
                    .step_by(columns)
                    .copied()
                    .collect();
                product.push(sum(row, &column));
            }
        }
        let bits = |matrix: Vec<f32>| matrix.into_iter().map(f32::to_bits).collect();
        let matrices = [bits(left), bits(right), bits(product)];
        Self::new(sides, Numbers::Floats { error: None }, matrices)
    }

    fn uniform(sides: Sides, number: u64) -> Self {
        let mut random = random(number);
        Self::floats(sides, || uniform(&mut random), in_sequence)
    }

    fn integers([rows, inner, columns]: Sides, number: u64) -> Self {
        let mut random = random(number);
        let mut matrix = |count| (0..count).map(|_| random.next_u32()).collect::<Vec<u32>>();
        let (left, right) = (matrix(rows * inner), matrix(inner * columns));
        let entry = |n: usize| {
            let (row, column) = (n / columns, n % columns);
            (0..inner).fold(0u32, |sum, k| {
                let term = left[row * inner + k].wrapping_mul(right[k * columns + column]);
                sum.wrapping_add(term)
            })
        };
        let product = (0..rows * columns).map(entry).collect();
        let matrices = [left, right, product];
        Self::new([rows, inner, columns], Numbers::Integers, matrices)
    }

    fn holds(&mut self, rounds: u8, number: u64) -> bool {
        self.product
            .clone()
            .holds(rounds, seed(number), self)
            .unwrap()
    }

    /// The product with something done to it.
    fn with(&self, change: impl FnOnce(&mut Vec<f32>)) -> Self {
        let mut changed = self.clone();
        let bits = changed.matrices[2].iter().copied();
        let mut floats = bits.map(f32::from_bits).collect();
        change(&mut floats);
        changed.matrices[2] = floats.into_iter().map(f32::to_bits).collect();
        changed
    }
}

/// A way to come to the sum of products.
type Sum = fn(&[f32], &[f32]) -> f32;

fn in_sequence(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).fold(0.0, |sum, (a, b)| sum + a * b)
}

fn from_the_end(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).rev().fold(0.0, |sum, (a, b)| sum + a * b)
}

fn fused(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).fold(0.0, |sum, (a, b)| a.mul_add(*b, sum))
}

fn by_halves(a: &[f32], b: &[f32]) -> f32 {
    match a {
        [] => 0.0,
        [one] => one * b[0],
        _ => {
            let half = a.len() / 2;
            by_halves(&a[..half], &b[..half]) + by_halves(&a[half..], &b[half..])
        }
    }
}

fn by_tiles(a: &[f32], b: &[f32]) -> f32 {
    let tiles = a.chunks(16).zip(b.chunks(16));
    tiles.fold(0.0, |sum, (a, b)| sum + in_sequence(a, b))
}

/// Devices may take the smallest numbers for 0.
fn flushing(a: &[f32], b: &[f32]) -> f32 {
    let flush = |number: f32| if number.is_subnormal() { 0.0 } else { number };
    let products = a.iter().zip(b).map(|(a, b)| flush(flush(*a) * flush(*b)));
    products.fold(0.0, |sum, product| flush(sum + product))
}

const SUMS: [Sum; 6] = [
    in_sequence,
    from_the_end,
    fused,
    by_halves,
    by_tiles,
    flushing,
];

const SHAPES: [Sides; 8] = [
    [1, 1, 1],
    [3, 5, 7],
    [17, 33, 9],
    [64, 64, 64],
    [5, 700, 3],
    [1, 300, 40],
    [40, 1, 300],
    [9, 2, 257],
];

#[test]
fn right_products_pass_in_any_order_and_shape() {
    for (number, sides) in (0..).zip(SHAPES) {
        for sum in SUMS {
            let mut random = random(number);
            let mut case = Case::floats(sides, || uniform(&mut random), sum);
            for number in 0..50 {
                assert!(case.holds(20, number), "{sides:?}, {number}");
            }
        }
    }
}

#[test]
fn right_products_of_hard_numbers_pass() {
    let sides = [6, 3000, 5];
    let mut random = random(1);
    let mut wide = || {
        let exponent = random.next_u32() % 120;
        uniform(&mut random) * 2.0_f32.powi(i32::try_from(exponent).unwrap() - 60)
    };
    for sum in SUMS {
        // Rounding goes one way.
        assert!(Case::floats(sides, || 0.1, sum).holds(64, 1));
        assert!(Case::floats(sides, || 1.0 / 3.0, sum).holds(64, 2));
        assert!(Case::floats(sides, &mut wide, sum).holds(64, 3));
        // Nothing that is left, and numbers that are lost below the smallest.
        assert!(Case::floats(sides, || 0.0, sum).holds(64, 4));
        let mut small = || wide() * 1e-19;
        assert!(Case::floats(sides, &mut small, sum).holds(64, 5));
        let mut smallest = || wide() * 1e-37;
        assert!(Case::floats(sides, &mut smallest, sum).holds(64, 6));
    }
}

#[test]
fn wrong_products_are_found() {
    let (sides, width) = ([40, 60, 50], 50);
    let right = Case::uniform(sides, 1);
    let transposed = {
        let square = Case::uniform([50, 50, 50], 2);
        let mut case = square.clone();
        let entry = |n: usize| square.matrices[1][n % 50 * 50 + n / 50];
        case.matrices[1] = (0..2500).map(entry).collect();
        case
    };
    let mut random = random(3);
    let wrong = [
        ("one number", right.with(|c| c[777] += 0.01)),
        ("one sign", right.with(|c| c[1234] = -c[1234])),
        (
            "a scaled row",
            right.with(|c| c[500..550].iter_mut().for_each(|c| *c *= 1.001)),
        ),
        ("two swapped", right.with(|c| c.swap(70, 71))),
        (
            "rows swapped",
            right.with(|c| (0..width).for_each(|n| c.swap(n, n + 3 * width))),
        ),
        ("half of it zero", right.with(|c| c[1000..].fill(0.0))),
        ("all of it zero", right.with(|c| c.fill(0.0))),
        (
            "noise",
            right.with(|c| c.iter_mut().for_each(|c| *c += uniform(&mut random) * 0.01)),
        ),
        ("the other way round", transposed),
        ("no number", right.with(|c| c[5] = f32::NAN)),
        ("infinite", right.with(|c| c[1999] = f32::INFINITY)),
    ];
    for (what, mut case) in wrong {
        for number in 0..50 {
            assert!(!case.holds(20, number), "{what}, {number}");
        }
    }
}

#[test]
fn what_rounding_may_have_done_passes() {
    let right = Case::uniform([8, 100, 8], 4);
    let near = right.with(|c| {
        c.iter_mut()
            .for_each(|c| *c = f32::from_bits(c.to_bits() + 2))
    });
    assert!((0..50).all(|number| near.clone().holds(64, number)));
    // Unless the job knows its numbers better.
    let mut strict = near.clone();
    let numbers = |error: f32| Numbers::Floats {
        error: Some(Tolerance::new(error, 0.0).unwrap()),
    };
    strict.product.numbers = numbers(1e-9);
    assert!(!strict.holds(20, 1));
    strict.product.numbers = numbers(1e-5);
    assert!(strict.holds(20, 1));
    // Or worse: half precision, in a product of full.
    let half = right.with(|c| c.iter_mut().for_each(|c| *c *= 1.0 + 2e-4));
    let mut lax = half.clone();
    lax.product.numbers = numbers(1e-4);
    assert!(lax.holds(20, 1));
    assert!(!half.clone().holds(20, 1));
}

/// As if factors had been rounded to half precision, for units that multiply such.
#[test]
fn half_precision_is_found_where_sides_are_short_or_the_job_says_more() {
    fn half(number: f32) -> f32 {
        f32::from_bits((number.to_bits() + 0x1000) & !0x1fff)
    }
    fn in_half(a: &[f32], b: &[f32]) -> f32 {
        a.iter()
            .zip(b)
            .fold(0.0, |sum, (a, b)| sum + half(*a) * half(*b))
    }
    for (side, found) in [(64, true), (400, false)] {
        let mut random = random(8);
        let mut case = Case::floats([side; 3], || uniform(&mut random), in_half);
        assert_eq!(!case.holds(20, 1), found, "{side}");
        case.product.numbers = Numbers::Floats {
            error: Some(Tolerance::new(1e-6, 0.0).unwrap()),
        };
        assert!(!case.holds(20, 1), "{side}");
        let mut honest = Case::uniform([side; 3], 8);
        honest.product.numbers = case.product.numbers;
        assert!(honest.holds(20, 1), "{side}");
    }
}

/// A number that is off by more than the bound passes a round with a chance of ½ at most:
/// here by so much that, of two in a row, one hides the other with that chance.
fn hidden(case: &Case) -> Case {
    case.with(|c| {
        c[9] += 1.0;
        c[11] -= 1.0;
    })
}

#[test]
fn of_hidden_errors_a_round_misses_half_and_twenty_none() {
    const TRIES: u64 = 10_000;
    let mut wrong = hidden(&Case::uniform([4, 8, 8], 5));
    let missed = |wrong: &mut Case, rounds| {
        let missed = (0..TRIES).filter(|number| wrong.holds(rounds, *number));
        missed.count()
    };
    let once = missed(&mut wrong, 1);
    println!("one round missed {once} of {TRIES}");
    // Half of them, give or take four deviations of 50.
    assert!((4800..=5200).contains(&once), "{once}");
    let thrice = missed(&mut wrong, 3);
    println!("three rounds missed {thrice} of {TRIES}");
    assert!((1100..=1400).contains(&thrice), "{thrice}");
    // Nine take two ways through the matrices.
    let nine = missed(&mut wrong, 9);
    println!("nine rounds missed {nine} of {TRIES}");
    assert!((3..=40).contains(&nine), "{nine}");
    assert_eq!(missed(&mut wrong, 20), 0);
}

#[test]
fn integers_wrap_and_are_exact() {
    for (number, sides) in (0..).zip(SHAPES) {
        let mut right = Case::integers(sides, number);
        assert!((0..20).all(|number| right.holds(20, number)), "{sides:?}");
        let last = right.matrices[2].len() - 1;
        for by in [1, u32::MAX, 1 << 31, 0x0001_0000] {
            let mut wrong = right.clone();
            wrong.matrices[2][last] = wrong.matrices[2][last].wrapping_add(by);
            let missed = (0..100).filter(|number| wrong.holds(20, *number)).count();
            assert_eq!(missed, 0, "{sides:?}, {by}");
        }
    }
    // The worst that there is.
    let mut wrong = Case::integers([2, 3, 4], 1);
    wrong.matrices[2][5] ^= 1 << 31;
    let missed = (0..10_000).filter(|number| wrong.holds(1, *number)).count();
    assert!((4800..=5200).contains(&missed), "{missed}");
}

#[test]
fn numbers_that_are_none_are_let_pass_only_where_inputs_have_them() {
    for special in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut case = Case::uniform([6, 7, 8], 6);
        // The third row of A, and the fifth column of B.
        case.matrices[0][2 * 7 + 3] = special.to_bits();
        case.matrices[1][6 * 8 + 4] = special.to_bits();
        let there = |n: usize| n / 8 == 2 || n % 8 == 4;
        let right = case.with(|c| {
            for (n, c) in c.iter_mut().enumerate().filter(|(n, _)| there(*n)) {
                *c = if n % 2 == 0 { special } else { f32::NAN };
            }
        });
        for number in 0..20 {
            assert!(right.clone().holds(20, number));
        }
        for n in (0..48).filter(|n| !there(*n)) {
            assert!(!right.with(|c| c[n] = special).holds(20, 1), "{n}");
            assert!(!right.with(|c| c[n] += 0.1).holds(20, 1), "{n}");
        }
    }
}

#[test]
fn what_overflows_on_its_way_is_let_pass_and_nothing_else() {
    // The first row can come to 3e38 + 3e38 − 3e38, the second can't.
    let numbers = Numbers::Floats { error: None };
    let bits = |numbers: &[f32]| numbers.iter().map(|number| number.to_bits()).collect();
    let case = |product: [f32; 2]| {
        let (left, right) = ([3e19, 3e19, -3e19, 1.0, 2.0, 3.0], [1e19, 1e19, 1e19]);
        Case::new(
            [2, 3, 1],
            numbers,
            [bits(&left), bits(&right), bits(&product)],
        )
    };
    for first in [3e38, f32::INFINITY, f32::NAN] {
        assert!(case([first, 6e19]).holds(20, 1), "{first}");
    }
    assert!(!case([1e38, 6e19]).holds(20, 1));
    assert!(!case([3e38, f32::INFINITY]).holds(20, 1));
    assert!(!case([f32::INFINITY, 5e19]).holds(20, 1));
}

#[test]
fn sides_and_rounds_have_bounds() {
    let good = Case::uniform([2, 3, 4], 1).product;
    let with = |rows, inner, columns| {
        let product = Product {
            rows,
            inner,
            columns,
            ..good.clone()
        };
        product.check()
    };
    assert_eq!(with(1 << 20, 64, 1 << 10), Ok(()));
    for (rows, inner, columns) in [
        (0, 1, 1),
        (1, 0, 1),
        (1, 1, 0),
        (1, MATRIX_SIDE_MAX + 1, 1),
        (1, 1, MATRIX_SIDE_MAX + 1),
        (u32::MAX, u32::MAX, u32::MAX),
        (u32::MAX, 1, 1),
        (1 << 20, 1 << 11, 1),
    ] {
        let refused = Err(FreivaldsError::Sides);
        assert_eq!(
            with(rows, inner, columns),
            refused,
            "{rows}, {inner}, {columns}"
        );
    }
    let freivalds = |rounds, count| Freivalds {
        rounds,
        products: List::truncated(vec![good.clone(); count]),
    };
    assert_eq!(freivalds(20, 1).check(), Ok(()));
    assert_eq!(freivalds(0, 1).check(), Err(FreivaldsError::Rounds));
    assert_eq!(freivalds(65, 1).check(), Err(FreivaldsError::Rounds));
    assert_eq!(freivalds(1, 0).check(), Err(FreivaldsError::Products));
}

#[test]
fn a_matrix_that_ends_early_is_said_so() {
    for matrix in 0..3 {
        let mut case = Case::uniform([4, 5, 6], 1);
        case.matrices[matrix].pop();
        let product = case.product.clone();
        assert_eq!(product.holds(20, seed(1), &mut case), Err("no more rows"));
    }
}
