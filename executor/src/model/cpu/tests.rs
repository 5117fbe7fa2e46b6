//! Small random models, computed in every way that there is.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "sizes are small here"
)]

use super::*;
use crate::model::{
    engine::Engine as _,
    gguf::{Gguf, TensorType},
    llama::Rotation,
    testing::tiny_of,
};

const TYPES: [TensorType; 11] = [
    TensorType::F32,
    TensorType::F16,
    TensorType::Bf16,
    TensorType::Q8_0,
    TensorType::Q4_0,
    TensorType::Q4_1,
    TensorType::Q5_0,
    TensorType::Q5_1,
    TensorType::Q4K,
    TensorType::Q5K,
    TensorType::Q6K,
];
const TOKENS: [u32; 45] = {
    let mut tokens = [0; 45];
    let mut at = 0;
    while at < 45 {
        tokens[at] = (at as u32 * 37 + 11) % 262;
        at += 1;
    }
    tokens
};

/// All types, and all architectures.
const MODELS: [(&str, TensorType); 16] = [
    ("llama", TYPES[0]),
    ("llama", TYPES[1]),
    ("llama", TYPES[2]),
    ("llama", TYPES[3]),
    ("llama", TYPES[4]),
    ("llama", TYPES[5]),
    ("llama", TYPES[6]),
    ("llama", TYPES[7]),
    ("llama", TYPES[8]),
    ("llama", TYPES[9]),
    ("llama", TYPES[10]),
    ("qwen2", TensorType::F32),
    ("qwen2", TensorType::Q5_0),
    ("qwen2", TensorType::Q6K),
    ("qwen3", TensorType::F32),
    ("qwen3", TensorType::Q4K),
];

fn weights(kind: TensorType, has_output: bool) -> Arc<Weights> {
    weights_of("llama", kind, has_output)
}

fn weights_of(architecture: &str, kind: TensorType, has_output: bool) -> Arc<Weights> {
    let bytes = tiny_of(architecture, kind, has_output).file();
    let file = Gguf::parse(&bytes).unwrap();
    Arc::new(Weights::new(&Llama::read(&file).unwrap()))
}

fn engine(weights: &Arc<Weights>, threads: usize, isa: Isa) -> Engine {
    let options = EngineOptions {
        threads,
        cache_bytes_max: 1 << 20,
    };
    Engine::with_isa(Arc::clone(weights), options, isa).unwrap()
}

fn step(sequence: u64, position: usize, token: u32) -> Step {
    Step {
        sequence: SequenceId(sequence),
        token,
        position: u32::try_from(position).unwrap(),
        wants_logits: true,
    }
}

fn steps(sequence: u64, tokens: &[u32]) -> Vec<Step> {
    let tokens = tokens.iter().enumerate();
    tokens
        .map(|(position, token)| step(sequence, position, *token))
        .collect()
}

fn bits(logits: &Logits<'_>) -> Vec<Vec<u32>> {
    logits
        .rows()
        .map(|row| row.iter().map(|number| number.to_bits()).collect())
        .collect()
}

fn one_by_one(engine: &mut Engine, tokens: &[u32]) -> Vec<Vec<u32>> {
    let steps = steps(9, tokens);
    let rows = steps
        .iter()
        .flat_map(|step| bits(&engine.forward(&[*step]).unwrap()))
        .collect();
    engine.end(SequenceId(9));
    rows
}

#[test]
fn a_row_is_the_same_in_any_batch_with_any_threads() {
    for (name, kind) in MODELS {
        let weights = weights_of(name, kind, false);
        let alone = one_by_one(&mut engine(&weights, 1, Isa::detect()), &TOKENS);
        for threads in [1, 3] {
            let mut engine = engine(&weights, threads, Isa::detect());
            let prompt = bits(&engine.forward(&steps(1, &TOKENS)).unwrap());
            assert_eq!(prompt, alone, "{name}, {kind:?}, {threads} threads");
            // A prompt in two parts, and five other sequences in between and beside it.
            let first = steps(2, &TOKENS[..20]);
            let mut rows = bits(&engine.forward(&first).unwrap());
            let mut mixed = Vec::new();
            for (number, step) in steps(2, &TOKENS)[20..].iter().enumerate() {
                mixed.push(*step);
                mixed.extend((number < 13).then(|| self::step(3, number, TOKENS[number])));
                mixed.extend((number == 2).then(|| self::step(4, 0, 5)));
            }
            let results = bits(&engine.forward(&mixed).unwrap());
            for (step, row) in mixed.iter().zip(results) {
                match step.sequence.0 {
                    2 => rows.push(row),
                    3 => assert_eq!(row, alone[usize::try_from(step.position).unwrap()]),
                    _ => (),
                }
            }
            assert_eq!(rows, alone, "{name}, {kind:?}, {threads} threads");
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn every_instruction_set_gives_the_same_bits() {
    for (name, kind) in MODELS {
        let weights = weights_of(name, kind, true);
        let plain = bits(
            &engine(&weights, 1, Isa::Plain)
                .forward(&steps(0, &TOKENS))
                .unwrap(),
        );
        for isa in Isa::available() {
            let rows = bits(
                &engine(&weights, 2, isa)
                    .forward(&steps(0, &TOKENS))
                    .unwrap(),
            );
            assert_eq!(rows, plain, "{name}, {kind:?}, {isa:?}");
        }
    }
}

#[test]
fn every_type_gives_what_the_formulas_say() {
    for (name, kind) in MODELS {
        for has_output in [false, true] {
            let weights = weights_of(name, kind, has_output);
            let mut engine = engine(&weights, 2, Isa::detect());
            let logits = engine.forward(&steps(0, &TOKENS)).unwrap();
            let truth = by_the_formulas(&weights, &TOKENS);
            let (mut error, mut size) = (0.0, 0.0);
            for (row, truth) in logits.rows().zip(&truth) {
                for (number, truth) in row.iter().zip(truth) {
                    error += (f64::from(*number) - truth).powi(2);
                    size += truth.powi(2);
                }
            }
            let error = (error / size).sqrt();
            // Of floats only the cache is narrow; else activations have 8 bits.
            let allowed = if weights.embedding.is_small() {
                0.03
            } else {
                0.002
            };
            assert!(error < allowed, "{name}, {kind:?}: {error}");
        }
    }
}

#[test]
fn what_cannot_be_computed_changes_nothing() {
    let weights = weights(TensorType::Q4_1, false);
    let mut engine = engine(&weights, 1, Isa::detect());
    engine.forward(&steps(1, &TOKENS[..3])).unwrap();
    let left = engine.positions_left();
    let cases = [
        (vec![], EngineError::Steps(0)),
        (
            vec![step(1, 3, 262)],
            EngineError::Token {
                token: 262,
                vocabulary: 262,
            },
        ),
        (
            vec![step(1, 2, 1)],
            EngineError::Position {
                position: 2,
                next: 3,
            },
        ),
        (
            vec![step(2, 0, 1), step(2, 0, 1)],
            EngineError::Position {
                position: 0,
                next: 1,
            },
        ),
        (
            vec![step(1, 3, 1), step(3, 1, 1)],
            EngineError::Position {
                position: 1,
                next: 0,
            },
        ),
    ];
    for (steps, error) in cases {
        assert_eq!(engine.forward(&steps).unwrap_err(), error);
    }
    let long: Vec<Step> = (0..101).map(|position| step(5, position, 1)).collect();
    assert_eq!(
        engine.forward(&long).unwrap_err(),
        EngineError::Context(100)
    );
    assert_eq!(
        (engine.positions_left(), engine.length(SequenceId(1))),
        (left, 3)
    );
    assert_eq!(engine.length(SequenceId(2)), 0);
}

#[test]
fn pages_are_taken_as_needed_and_come_back() {
    let weights = weights(TensorType::Q8_0, false);
    let page = 2 * 2 * 32 * PAGE * 2;
    let options = EngineOptions {
        threads: 1,
        cache_bytes_max: 3 * page + 1,
    };
    let mut engine = Engine::new(Arc::clone(&weights), options).unwrap();
    let alone = bits(&engine.forward(&steps(1, &TOKENS)).unwrap());
    assert_eq!(engine.positions_left(), PAGE);
    let refused = engine.forward(&steps(2, &TOKENS)).unwrap_err();
    assert_eq!(refused, EngineError::CacheFull { wanted: 2, left: 1 });
    engine.truncate(SequenceId(1), PAGE);
    assert_eq!(engine.positions_left(), 2 * PAGE);
    assert_eq!(bits(&engine.forward(&steps(2, &TOKENS)).unwrap()), alone);
    engine.end(SequenceId(2));
    // What was taken back is written again, on pages that others had.
    let again = &steps(1, &TOKENS)[PAGE..];
    assert_eq!(bits(&engine.forward(again).unwrap()), alone[PAGE..]);
    engine.truncate(SequenceId(1), 0);
    assert_eq!(
        (engine.positions_left(), engine.length(SequenceId(1))),
        (3 * PAGE, 0)
    );
}

#[test]
fn only_wanted_logits_are_made() {
    let weights = weights(TensorType::Q4_0, false);
    let mut engine = engine(&weights, 1, Isa::detect());
    let all = bits(&engine.forward(&steps(1, &TOKENS)).unwrap());
    let mut some = steps(2, &TOKENS);
    for (number, step) in some.iter_mut().enumerate() {
        step.wants_logits = number % 7 == 3;
    }
    let logits = engine.forward(&some).unwrap();
    assert_eq!(logits.len(), 6);
    let wanted: Vec<_> = all.into_iter().skip(3).step_by(7).collect();
    assert_eq!(bits(&logits), wanted);
    some = vec![Step {
        wants_logits: false,
        ..step(2, TOKENS.len(), 1)
    }];
    assert!(engine.forward(&some).unwrap().is_empty());
}

#[cfg(target_arch = "x86_64")]
#[test]
fn kernels_agree_also_where_numbers_are_largest() {
    use crate::model::testing;
    let mut random = testing::random(5);
    for kind in &TYPES[3..] {
        let columns = kind.block().0.max(96);
        for fill in [None, Some(0), Some(0x7f), Some(0x80), Some(0xff)] {
            let mut bytes = testing::bytes_of(*kind, 19 * columns, 1.0, &mut random);
            if let Some(fill) = fill {
                let parts = match kind {
                    TensorType::Q4_0 | TensorType::Q5_0 | TensorType::Q8_0 => 2..,
                    TensorType::Q6K => 0..,
                    _ => 4..,
                };
                let (length, end) = match kind {
                    TensorType::Q6K => (210, 208),
                    _ => (kind.block().1, kind.block().1),
                };
                for block in bytes.chunks_mut(length) {
                    block[..end][parts.clone()].fill(fill);
                }
            }
            let packed = packed(*kind, columns, bytes);
            let numbers: Vec<f32> = (0..23 * columns)
                .map(|at| match fill {
                    Some(0x7f) => 1.0,
                    Some(_) if at % 5 < 3 => 1.0,
                    Some(_) => -1.0,
                    None => testing::unit(&mut random),
                })
                .collect();
            let mut blocks = vec![Block::default(); 23 * columns / BLOCK];
            kernels::quantise(Isa::Plain, &numbers, &mut blocks);
            let of = Activations {
                columns,
                numbers: &numbers,
                blocks: &blocks,
            };
            for panel in 0..packed.panels() {
                let product = |isa, rows: usize| {
                    let mut out = vec![[0.0; PANEL]; rows];
                    kernels::product(isa, &packed.panel(panel), &of, 23 - rows, &mut out);
                    out.into_iter()
                        .map(|row| row.map(f32::to_bits))
                        .collect::<Vec<_>>()
                };
                for rows in [1, 2, 3, 4, 7, 8, 15, 23] {
                    let plain = product(Isa::Plain, rows);
                    for isa in Isa::available() {
                        assert_eq!(
                            product(isa, rows),
                            plain,
                            "{kind:?} {fill:?} {isa:?} {rows}"
                        );
                    }
                }
            }
        }
    }
}

/// A matrix of 19 rows.
fn packed(kind: TensorType, columns: usize, bytes: Vec<u8>) -> Packed {
    let mut file = crate::model::testing::Writer::default();
    let shape = [u64::try_from(columns).unwrap(), 19];
    file.tensor("token_embd.weight", &shape, kind.number(), bytes);
    let file = file.file();
    let file = Gguf::parse(&file).unwrap();
    Packed::new(&crate::model::llama::matrix_for_tests(&file, 19, columns))
}

/// Sums over the numbers that the package `gguf` (0.19) makes of the same blocks.
const WIDENED: [(TensorType, u64); 8] = [
    (TensorType::Q4_0, 0x5c36_1838_a7d0_af01),
    (TensorType::Q4_1, 0xdb27_7cf3_9bf1_c5c6),
    (TensorType::Q5_0, 0x5b7e_c99c_8dc3_b571),
    (TensorType::Q5_1, 0x3689_706a_92df_0a61),
    (TensorType::Q8_0, 0xbf19_0416_1e81_76c8),
    (TensorType::Q4K, 0x2543_61cd_645b_3d3a),
    (TensorType::Q5K, 0xa585_f254_a568_f281),
    (TensorType::Q6K, 0x8fbc_9f23_db70_9388),
];

#[test]
fn numbers_are_what_others_read_in_a_file() {
    for (kind, sum) in WIDENED {
        let (elements, length) = kind.block();
        let columns = 3 * elements;
        let mut state = u32::try_from(length).unwrap();
        let mut bytes = Vec::new();
        for _ in 0..19 * 3 {
            for _ in 0..length {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                bytes.push((state >> 24) as u8);
            }
            let begin = bytes.len() - length;
            let block = &mut bytes[begin..];
            let scale: u16 = 0x2a3f;
            match kind {
                TensorType::Q6K => block[208..].copy_from_slice(&scale.to_le_bytes()),
                TensorType::Q4_0 | TensorType::Q5_0 | TensorType::Q8_0 => {
                    block[..2].copy_from_slice(&scale.to_le_bytes());
                }
                TensorType::Q4_1 | TensorType::Q5_1 => {
                    block[..4].copy_from_slice(&[0x3f, 0x2a, 0x5b, 0x9d]);
                }
                _ => block[..4].copy_from_slice(&[0x3f, 0x2a, 0x5b, 0x1d]),
            }
        }
        let wide = crate::model::testing::widened(kind.number(), &bytes);
        let packed = packed(kind, columns, bytes);
        let mut numbers = vec![0.0; 19 * columns];
        for (row, numbers) in numbers.chunks_exact_mut(columns).enumerate() {
            packed.row(row, numbers);
        }
        // No zero with a sign.
        let wide: Vec<f32> = wide.into_iter().map(|number| number + 0.0).collect();
        assert!(wide == numbers, "{kind:?}");
        let bytes = numbers.iter().flat_map(|number| number.to_le_bytes());
        let found = bytes.fold(0xcbf2_9ce4_8422_2325, |sum: u64, byte| {
            (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        assert_eq!(found, sum, "{kind:?}");
    }
}

/// The model as it is written in books, one token after the other, in 64 bits.
fn by_the_formulas(weights: &Weights, tokens: &[u32]) -> Vec<Vec<f64>> {
    let config = &weights.config;
    let (width, group) = (config.head_width, config.heads / config.kv_heads);
    let mut keys = vec![Vec::new(); weights.layers.len()];
    let mut values = keys.clone();
    let mut logits = Vec::new();
    for (position, token) in tokens.iter().enumerate() {
        let mut state = row(&weights.embedding, usize::try_from(*token).unwrap());
        for (index, layer) in weights.layers.iter().enumerate() {
            let normed = norm(&state, &layer.attention_norm, config.epsilon);
            let [query, key, value] = mixture(layer, config, &normed);
            let query = rotated(query, config, position);
            keys[index].push(rotated(key, config, position));
            values[index].push(value);
            let mut mixed = vec![0.0; config.query_width()];
            for head in 0..config.heads {
                let own = &query[head * width..][..width];
                let from = head / group * width;
                let scores = keys[index].iter().map(|key: &Vec<f64>| {
                    let key = &key[from..][..width];
                    let dot: f64 = own.iter().zip(key).map(|(a, b)| a * b).sum();
                    (dot / (width as f64).sqrt()).exp()
                });
                let scores: Vec<f64> = scores.collect();
                let all: f64 = scores.iter().sum();
                for (score, value) in scores.iter().zip(&values[index]) {
                    for (number, value) in mixed[head * width..][..width]
                        .iter_mut()
                        .zip(&value[from..])
                    {
                        *number += score / all * value;
                    }
                }
            }
            plus(&mut state, times(&layer.attention_output, &mixed));
            let normed = norm(&state, &layer.feed_norm, config.epsilon);
            let gate = times(&layer.gate, &normed).into_iter();
            let gated = gate
                .zip(times(&layer.up, &normed))
                .map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up);
            plus(&mut state, times(&layer.down, &gated.collect::<Vec<_>>()));
        }
        let normed = norm(&state, &weights.norm, config.epsilon);
        logits.push(times(
            weights.output.as_ref().unwrap_or(&weights.embedding),
            &normed,
        ));
    }
    logits
}

/// Queries, keys and values before positions rotate them.
fn mixture(layer: &PackedLayer, config: &Config, normed: &[f64]) -> [Vec<f64>; 3] {
    let matrices = [&layer.query, &layer.key, &layer.value];
    let mut all = matrices.map(|matrix| times(matrix, normed));
    if let Some(biases) = &layer.biases {
        let biases = [&biases.query, &biases.key, &biases.value];
        for (numbers, bias) in all.iter_mut().zip(biases) {
            plus(numbers, bias.iter().copied().map(f64::from).collect());
        }
    }
    if let Some(norms) = &layer.head_norms {
        for (numbers, weights) in all.iter_mut().zip([&norms.query, &norms.key]) {
            let heads = numbers.chunks_exact(config.head_width);
            let normed = heads.flat_map(|head| norm(head, weights, config.epsilon));
            *numbers = normed.collect();
        }
    }
    all
}

fn row(matrix: &Packed, row: usize) -> Vec<f64> {
    let mut numbers = vec![0.0; matrix.columns()];
    matrix.row(row, &mut numbers);
    numbers.into_iter().map(f64::from).collect()
}

fn times(matrix: &Packed, numbers: &[f64]) -> Vec<f64> {
    let dot = |of: Vec<f64>| of.iter().zip(numbers).map(|(a, b)| a * b).sum();
    (0..matrix.rows())
        .map(|index| dot(row(matrix, index)))
        .collect()
}

fn norm(numbers: &[f64], weights: &[f32], epsilon: f32) -> Vec<f64> {
    let mean = numbers.iter().map(|number| number * number).sum::<f64>() / numbers.len() as f64;
    let scale = 1.0 / (mean + f64::from(epsilon)).sqrt();
    numbers
        .iter()
        .zip(weights)
        .map(|(number, weight)| number * scale * f64::from(*weight))
        .collect()
}

fn rotated(mut numbers: Vec<f64>, config: &Config, position: usize) -> Vec<f64> {
    for head in numbers.chunks_exact_mut(config.head_width) {
        for pair in 0..config.rotated / 2 {
            let speed = config
                .rope_base
                .powf(-2.0 * pair as f64 / config.rotated as f64);
            let (sine, cosine) = (position as f64 * speed).sin_cos();
            let (one, other) = match config.rotation {
                Rotation::Neighbours => (2 * pair, 2 * pair + 1),
                Rotation::Halves => (pair, pair + config.rotated / 2),
            };
            let (x, y) = (head[one], head[other]);
            head[one] = x * cosine - y * sine;
            head[other] = x * sine + y * cosine;
        }
    }
    numbers
}

fn plus(to: &mut [f64], numbers: Vec<f64>) {
    to.iter_mut()
        .zip(numbers)
        .for_each(|(to, number)| *to += number);
}
