//! A small random encoder, beside one that is computed as it is written down.

use super::*;
use crate::model::{
    gguf::{Gguf, TensorType},
    testing::small_encoder_file,
};

const TEXTS: [&[u32]; 5] = [
    &[2, 3],
    &[2, 17, 40, 61, 3],
    &[2, 9, 9, 9, 9, 3],
    &[
        2, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28,
        29, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 3,
    ],
    &[2, 80, 3],
];

fn engine(file: &[u8], threads: usize, isa: Isa) -> EncoderEngine {
    let file = Gguf::parse(file).unwrap();
    let weights = Arc::new(EncoderWeights::new(&Encoder::read(&file).unwrap()));
    let options = EngineOptions {
        threads,
        cache_bytes_max: 0,
    };
    EncoderEngine::with_isa(weights, options, isa).unwrap()
}

fn bits(engine: &mut EncoderEngine, texts: &[&[u32]]) -> Vec<Vec<u32>> {
    let vectors = engine.embed(texts).unwrap();
    vectors
        .map(|vector| vector.iter().map(|number| number.to_bits()).collect())
        .collect()
}

#[test]
fn a_text_is_the_same_in_any_batch_with_any_threads() {
    for kind in [TensorType::F32, TensorType::F16, TensorType::Q8_0] {
        let file = small_encoder_file(kind, 1).file();
        let mut single = engine(&file, 1, Isa::Plain);
        let alone: Vec<_> = TEXTS
            .iter()
            .flat_map(|text| bits(&mut single, &[text]))
            .collect();
        for threads in [1, 2, 5] {
            let mut engine = engine(&file, threads, Isa::detect());
            assert_eq!(bits(&mut engine, &TEXTS), alone, "{kind:?}, {threads}");
            let mut turned = TEXTS;
            turned.reverse();
            let mut back = bits(&mut engine, &turned);
            back.reverse();
            assert_eq!(back, alone, "{kind:?}, {threads}");
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn every_instruction_set_gives_the_same_bits() {
    let file = small_encoder_file(TensorType::F32, 3).file();
    let plain = bits(&mut engine(&file, 1, Isa::Plain), &TEXTS);
    for isa in Isa::available() {
        assert_eq!(bits(&mut engine(&file, 2, isa), &TEXTS), plain, "{isa:?}");
    }
}

#[test]
fn it_computes_what_is_written_down() {
    for (kind, pooling, least) in [
        (TensorType::F32, 1, 1.0 - 1e-9),
        (TensorType::F16, 1, 1.0 - 1e-9),
        (TensorType::F32, 2, 1.0 - 1e-9),
        // Small numbers are multiplied with rounded ones.
        (TensorType::Q8_0, 1, 0.999),
    ] {
        let mut file = small_encoder_file(kind, 5);
        file.number("bert.pooling_type", pooling);
        let file = file.file();
        let plain = Plain::read(&file);
        let mut engine = engine(&file, 2, Isa::detect());
        for (text, vector) in TEXTS.iter().zip(engine.embed(&TEXTS).unwrap()) {
            let expected = plain.embed(text);
            let wide: Vec<f64> = vector.iter().map(|number| f64::from(*number)).collect();
            let cosine =
                dot(&wide, &expected) / (dot(&expected, &expected) * dot(&wide, &wide)).sqrt();
            assert!((dot(&wide, &wide) - 1.0).abs() < 1e-5);
            assert!(cosine > least, "{kind:?}: {cosine}");
        }
    }
}

#[test]
fn what_can_not_be_computed_is_refused() {
    let mut engine = engine(
        &small_encoder_file(TensorType::F32, 1).file(),
        1,
        Isa::detect(),
    );
    let mut refused = |texts: &[&[u32]]| engine.embed(texts).map(|_| ()).unwrap_err();
    assert_eq!(refused(&[]), EncoderError::Empty);
    assert_eq!(refused(&[&[2], &[]]), EncoderError::Empty);
    let (tokens, context) = (41, 40);
    assert_eq!(
        refused(&[&[2; 41]]),
        EncoderError::Context { tokens, context }
    );
    assert_eq!(refused(&[&[2; 40][..]; 7]), EncoderError::Rows(280));
    assert!(matches!(
        refused(&[&[u32::MAX]]),
        EncoderError::Token { .. }
    ));
}

fn dot(one: &[f64], other: &[f64]) -> f64 {
    one.iter().zip(other).map(|(a, b)| a * b).sum()
}

/// An encoder in 64 bits, out of the file, with nothing of what is tested.
struct Plain<'a> {
    file: Gguf<'a>,
}

impl<'a> Plain<'a> {
    fn read(file: &'a [u8]) -> Self {
        Self {
            file: Gguf::parse(file).unwrap(),
        }
    }

    fn number(&self, key: &str) -> usize {
        usize::try_from(self.file.number(key).unwrap().unwrap()).unwrap()
    }

    fn numbers(&self, name: &str) -> Vec<f64> {
        let tensor = self.file.tensor(name).unwrap();
        let half = |bytes: &[u8]| half::f16::from_le_bytes([bytes[0], bytes[1]]).to_f64();
        let bytes = tensor.bytes();
        match tensor.kind() {
            TensorType::F32 => {
                let floats = bytes.as_chunks::<4>().0.iter();
                floats
                    .map(|four| f64::from(f32::from_le_bytes(*four)))
                    .collect()
            }
            TensorType::F16 => bytes.chunks(2).map(half).collect(),
            TensorType::Q8_0 => {
                let block = |block: &'a [u8]| {
                    let scale = half(block);
                    let numbers = block[2..].iter();
                    numbers.map(move |byte| scale * f64::from(byte.cast_signed()))
                };
                bytes.chunks(34).flat_map(block).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    fn linear(&self, name: &str, row: &[f64]) -> Vec<f64> {
        let weight = self.numbers(&format!("{name}.weight"));
        let bias = self.numbers(&format!("{name}.bias"));
        let rows = weight.chunks(row.len()).zip(bias);
        rows.map(|(weights, bias)| dot(weights, row) + bias)
            .collect()
    }

    fn norm(&self, name: &str, row: &[f64]) -> Vec<f64> {
        let count = f64::from(u32::try_from(row.len()).unwrap());
        let mean = row.iter().sum::<f64>() / count;
        let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count;
        let weight = self.numbers(&format!("{name}.weight"));
        let bias = self.numbers(&format!("{name}.bias"));
        let row = row.iter().zip(weight).zip(bias);
        row.map(|((x, weight), bias)| (x - mean) / (variance + 1e-12).sqrt() * weight + bias)
            .collect()
    }

    fn attention(&self, layer: usize, rows: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let heads = self.number("bert.attention.head_count");
        let part = |part: &str| {
            let name = format!("blk.{layer}.{part}");
            let rows = rows.iter().map(|row| self.linear(&name, row));
            rows.collect::<Vec<_>>()
        };
        let (queries, keys, values) = (part("attn_q"), part("attn_k"), part("attn_v"));
        let width = rows[0].len() / heads;
        let scale = f64::from(u32::try_from(width).unwrap()).sqrt();
        let mixed = queries.iter().map(|query| {
            let mut mixed = vec![0.0; query.len()];
            for head in 0..heads {
                let of = head * width..(head + 1) * width;
                let scores: Vec<f64> = keys
                    .iter()
                    .map(|key| (dot(&query[of.clone()], &key[of.clone()]) / scale).exp())
                    .collect();
                let all: f64 = scores.iter().sum();
                for (score, value) in scores.iter().zip(&values) {
                    for at in of.clone() {
                        mixed[at] += score / all * value[at];
                    }
                }
            }
            self.linear(&format!("blk.{layer}.attn_output"), &mixed)
        });
        mixed.collect()
    }

    fn embed(&self, text: &[u32]) -> Vec<f64> {
        let width = self.number("bert.embedding_length");
        let (tokens, positions) = (
            self.numbers("token_embd.weight"),
            self.numbers("position_embd.weight"),
        );
        let kinds = self.numbers("token_types.weight");
        let first = |(position, token): (usize, &u32)| {
            let token = usize::try_from(*token).unwrap();
            let sum =
                |at| tokens[token * width + at] + positions[position * width + at] + kinds[at];
            self.norm(
                "token_embd_norm",
                &(0..width).map(sum).collect::<Vec<f64>>(),
            )
        };
        let add = |one: &[f64], other: &[f64]| -> Vec<f64> {
            one.iter().zip(other).map(|(a, b)| a + b).collect()
        };
        let mut rows: Vec<Vec<f64>> = text.iter().enumerate().map(first).collect();
        for layer in 0..self.number("bert.block_count") {
            let name = |part: &str| format!("blk.{layer}.{part}");
            let mixed = self.attention(layer, &rows);
            for (row, mixed) in rows.iter_mut().zip(mixed) {
                *row = self.norm(&name("attn_output_norm"), &add(row, &mixed));
                let middle = self.linear(&name("ffn_up"), row);
                let middle: Vec<f64> = middle.into_iter().map(gelu).collect();
                let back = self.linear(&name("ffn_down"), &middle);
                *row = self.norm(&name("layer_output_norm"), &add(row, &back));
            }
        }
        match self.number("bert.pooling_type") {
            1 => (0..width)
                .map(|at| rows.iter().map(|row| row[at]).sum())
                .collect(),
            _ => rows.swap_remove(0),
        }
    }
}

/// By the series of the error function, which all numbers here are small enough for.
fn gelu(number: f64) -> f64 {
    let x = number / std::f64::consts::SQRT_2;
    if x.abs() > 5.0 {
        return number.max(0.0);
    }
    let (mut sum, mut term) = (0.0, x);
    for n in 0..200_u32 {
        sum += term / f64::from(2 * n + 1);
        term *= -x * x / f64::from(n + 1);
    }
    number / 2.0 * (1.0 + sum * std::f64::consts::FRAC_2_SQRT_PI)
}
