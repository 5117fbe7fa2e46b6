//! Model files that tests write themselves, and small random models in them.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "sizes are small here"
)]

use half::{bf16, f16};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng as _, SeedableRng as _},
};

use super::gguf::TensorType;

const ALIGNMENT: usize = 32;

/// Writes a model file.
#[derive(Debug, Clone, Default)]
pub(super) struct Writer {
    entries: Vec<(String, Vec<u8>)>,
    tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
}

impl Writer {
    pub(super) fn entry(&mut self, key: &str, kind: u32, value: &[u8]) -> &mut Self {
        let bytes = [&kind.to_le_bytes(), value].concat();
        self.entries.retain(|(name, _)| name != key);
        self.entries.push((key.to_owned(), bytes));
        self
    }

    pub(super) fn number(&mut self, key: &str, number: u32) -> &mut Self {
        self.entry(key, 4, &number.to_le_bytes())
    }

    pub(super) fn float(&mut self, key: &str, number: f32) -> &mut Self {
        self.entry(key, 6, &number.to_le_bytes())
    }

    pub(super) fn flag(&mut self, key: &str, flag: bool) -> &mut Self {
        self.entry(key, 7, &[u8::from(flag)])
    }

    pub(super) fn text(&mut self, key: &str, value: &str) -> &mut Self {
        self.entry(key, 8, &text(value))
    }

    pub(super) fn texts(&mut self, key: &str, values: &[String]) -> &mut Self {
        let values: Vec<u8> = values.iter().flat_map(|value| text(value)).collect();
        let count = values_count(&values);
        self.entry(
            key,
            9,
            &[&8_u32.to_le_bytes()[..], &count.to_le_bytes(), &values].concat(),
        )
    }

    pub(super) fn numbers(&mut self, key: &str, values: &[i32]) -> &mut Self {
        let count = values.len() as u64;
        let values: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        self.entry(
            key,
            9,
            &[&5_u32.to_le_bytes()[..], &count.to_le_bytes(), &values].concat(),
        )
    }

    pub(super) fn tensor(
        &mut self,
        name: &str,
        shape: &[u64],
        kind: u32,
        bytes: Vec<u8>,
    ) -> &mut Self {
        self.tensors.retain(|(other, ..)| other != name);
        self.tensors
            .push((name.to_owned(), shape.to_vec(), kind, bytes));
        self
    }

    #[cfg(test)]
    pub(super) fn without_tensor(&mut self, name: &str) -> &mut Self {
        self.tensors.retain(|(other, ..)| other != name);
        self
    }

    pub(super) fn without(&mut self, key: &str) -> &mut Self {
        self.entries.retain(|(other, _)| other != key);
        self
    }

    /// Writes all numbers with 32 bits.
    fn widen(&mut self) {
        for (_, _, kind, bytes) in &mut self.tensors {
            let numbers = widened(*kind, bytes);
            (*kind, *bytes) = (0, numbers.iter().flat_map(|n| n.to_le_bytes()).collect());
        }
    }

    pub(super) fn file(&self) -> Vec<u8> {
        let mut file = b"GGUF\x03\0\0\0".to_vec();
        file.extend((self.tensors.len() as u64).to_le_bytes());
        file.extend((self.entries.len() as u64).to_le_bytes());
        for (key, value) in &self.entries {
            file.extend(text(key));
            file.extend(value);
        }
        let mut offset = 0;
        for (name, shape, kind, bytes) in &self.tensors {
            file.extend(text(name));
            file.extend((shape.len() as u32).to_le_bytes());
            shape
                .iter()
                .for_each(|dimension| file.extend(dimension.to_le_bytes()));
            file.extend(kind.to_le_bytes());
            file.extend((offset as u64).to_le_bytes());
            offset += bytes.len().next_multiple_of(ALIGNMENT);
        }
        for (_, _, _, bytes) in &self.tensors {
            file.resize(file.len().next_multiple_of(ALIGNMENT), 0);
            file.extend(bytes);
        }
        file
    }
}

/// A tensor's numbers, as its type defines them.
pub(super) fn widened(kind: u32, bytes: &[u8]) -> Vec<f32> {
    let wide = |block: &[u8]| -> Vec<f32> {
        let half = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
        let low = |from: usize| block[from..].iter().map(|byte| f32::from(byte & 15));
        let high = |from: usize| block[from..].iter().map(|byte| f32::from(byte >> 4));
        let fifth = |at: usize, number: usize| {
            let bit = block[at + number / 8] >> (number % 8) & 1;
            16.0 * f32::from(bit)
        };
        match kind {
            0 => vec![f32::from_le_bytes(block.try_into().unwrap_or_default())],
            1 => vec![half(0)],
            30 => vec![bf16::from_le_bytes([block[0], block[1]]).to_f32()],
            2 => (low(2).chain(high(2)))
                .map(|number| (number - 8.0) * half(0))
                .collect(),
            3 => (low(4).chain(high(4)))
                .map(|number| number * half(0) + half(2))
                .collect(),
            6 => (low(6).chain(high(6)).enumerate())
                .map(|(at, number)| (number + fifth(2, at) - 16.0) * half(0))
                .collect(),
            7 => (low(8).chain(high(8)).enumerate())
                .map(|(at, number)| (number + fifth(4, at)) * half(0) + half(2))
                .collect(),
            8 => (block[2..].iter())
                .map(|byte| f32::from(byte.cast_signed()) * half(0))
                .collect(),
            12 | 13 => (0..256).map(|at| number_of_4_or_5(block, at)).collect(),
            14 => (0..256).map(|at| number_of_6(block, at)).collect(),
            other => panic!("type {other} is not made here"),
        }
    };
    let block = match kind {
        0 => 4,
        1 | 30 => 2,
        2 => 18,
        3 => 20,
        6 => 22,
        7 => 24,
        8 => 34,
        12 => 144,
        13 => 176,
        _ => 210,
    };
    bytes.chunks_exact(block).flat_map(wide).collect()
}

/// A number of a block of Q4_K or Q5_K.
fn number_of_4_or_5(block: &[u8], at: usize) -> f32 {
    let half = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
    let (piece, place) = (at / 32, at % 32);
    let six = &block[4..16];
    let (scale, min) = match piece {
        0..4 => (six[piece] & 63, six[piece + 4] & 63),
        _ => (
            (six[piece + 4] & 15) + (six[piece - 4] >> 6) * 16,
            (six[piece + 4] >> 4) + (six[piece] >> 6) * 16,
        ),
    };
    let (low, fifth) = match block.len() {
        144 => (&block[16..], 0),
        _ => (&block[48..], block[16 + place] >> piece & 1),
    };
    let number = low[piece / 2 * 32 + place] >> (piece % 2 * 4) & 15;
    let number = f32::from(number + 16 * fifth);
    half(0) * f32::from(scale) * number - half(2) * f32::from(min)
}

/// A number of a block of Q6_K.
fn number_of_6(block: &[u8], at: usize) -> f32 {
    let (half, part, place) = (at / 128, at % 128 / 32, at % 32);
    let low = block[half * 64 + part % 2 * 32 + place] >> (part / 2 * 4) & 15;
    let high = block[128 + half * 32 + place] >> (2 * part) & 3;
    let scale = f32::from(block[192 + at / 16].cast_signed());
    let all = f16::from_le_bytes([block[208], block[209]]).to_f32();
    all * scale * (f32::from(low + 16 * high) - 32.0)
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

fn values_count(mut texts: &[u8]) -> u64 {
    let mut count = 0;
    while let Some((length, rest)) = texts.split_first_chunk::<8>() {
        texts = &rest[u64::from_le_bytes(*length) as usize..];
        count += 1;
    }
    count
}

/// Random numbers that are the same each time.
pub(super) fn random(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

/// From -1 to 1.
pub(super) fn unit(random: &mut ChaCha8Rng) -> f32 {
    (random.next_u32() >> 8) as f32 / (1 << 23) as f32 - 1.0
}

/// The bytes of so many random numbers around 0, none much larger than `scale`.
pub(super) fn bytes_of(
    kind: TensorType,
    count: usize,
    scale: f32,
    random: &mut ChaCha8Rng,
) -> Vec<u8> {
    let mut bytes = Vec::new();
    let (elements, block_bytes) = kind.block();
    for _ in 0..count / elements {
        let number = unit(random) * scale;
        let half = |number: f32| f16::from_f32(number).to_le_bytes();
        let size = (0.5 + unit(random).abs() / 2.0) * scale;
        let begin = bytes.len();
        match kind {
            TensorType::F32 => bytes.extend(number.to_le_bytes()),
            TensorType::F16 => bytes.extend(half(number)),
            TensorType::Bf16 => bytes.extend(bf16::from_f32(number).to_le_bytes()),
            TensorType::Q4_0 => bytes.extend(half(size / 8.0)),
            TensorType::Q5_0 => bytes.extend(half(size / 16.0)),
            TensorType::Q4_1 | TensorType::Q5_1 => {
                let steps = if kind == TensorType::Q4_1 { 8.0 } else { 16.0 };
                bytes.extend(half(size / steps));
                bytes.extend(half(-size));
            }
            TensorType::Q8_0 => bytes.extend(half(size / 128.0)),
            // Factors of scales and mins are random too: on average as large.
            TensorType::Q4K | TensorType::Q5K => {
                let steps = if kind == TensorType::Q4K { 7.5 } else { 15.5 };
                bytes.extend(half(size / 40.0 / steps));
                bytes.extend(half(size / 40.0));
            }
            TensorType::Q6K => (),
            other => panic!("{other:?} is not made here"),
        }
        if elements > 1 {
            while bytes.len() < begin + block_bytes {
                bytes.push(random.next_u32() as u8);
            }
        }
        if kind == TensorType::Q6K {
            bytes.truncate(begin + block_bytes - 2);
            bytes.extend(half(size / 2500.0));
        }
    }
    bytes
}

/// The sizes of [`tiny`]. None is a multiple of what kernels do at once, where it may be.
pub(super) const WIDTH: u64 = 96;
pub(super) const HIDDEN: u64 = 160;
const LAYERS: u32 = 2;
const HEADS: u32 = 6;
const KV_HEADS: u32 = 2;
const HEAD_WIDTH: u64 = WIDTH / HEADS as u64;
/// The same for types of larger blocks, which these are multiples of.
const WIDE: [u64; 2] = [256, 768];

/// The file of a small random model, another for each seed: it speaks nonsense, always the
/// same, a token in a millisecond, and comes to no end by itself.
pub fn small_model(seed: u64) -> Vec<u8> {
    let mut file = random_model("llama", TensorType::Q8_0, true, seed, HEAD_WIDTH);
    // No names that mean an end.
    named_vocabulary(&mut file, ["<|none|>", "<|turn|>", "<|over|>"]);
    file.number("llama.context_length", 4096)
        .without("tokenizer.ggml.eos_token_id")
        .file()
}

/// The file of a random model of an architecture, of two layers and 4096 positions, its
/// matrices of this type, its heads of this width; and the same with all numbers written
/// with 32 bits.
pub fn model_and_its_floats(architecture: &str, kind: TensorType, head_width: u64) -> [Vec<u8>; 2] {
    let mut file = random_model(architecture, kind, head_width > 16, 1, head_width);
    file.number(&format!("{architecture}.context_length"), 4096);
    let narrow = file.file();
    file.widen();
    [narrow, file.file()]
}

/// A random model of two layers, its matrices of this type.
#[cfg(test)]
pub(super) fn tiny(kind: TensorType, has_output: bool) -> Writer {
    tiny_of("llama", kind, has_output)
}

/// The same of another architecture.
#[cfg(test)]
pub(super) fn tiny_of(architecture: &str, kind: TensorType, has_output: bool) -> Writer {
    random_model(architecture, kind, has_output, 1, HEAD_WIDTH)
}

fn random_model(
    architecture: &str,
    kind: TensorType,
    has_output: bool,
    seed: u64,
    head_width: u64,
) -> Writer {
    let mut random = random(seed);
    let mut file = Writer::default();
    vocabulary(&mut file);
    let vocabulary = VOCABULARY as u64;
    let [width, hidden] = match kind.block().0 {
        256 => WIDE,
        _ => [WIDTH, HIDDEN],
    };
    let key = |name: &str| format!("{architecture}.{name}");
    file.text("general.architecture", architecture)
        .number(&key("block_count"), LAYERS)
        .number(&key("context_length"), 100)
        .number(&key("embedding_length"), width as u32)
        .number(&key("feed_forward_length"), hidden as u32)
        .number(&key("attention.head_count"), HEADS)
        .number(&key("attention.head_count_kv"), KV_HEADS)
        .number(&key("attention.key_length"), head_width as u32)
        .number(&key("attention.value_length"), head_width as u32)
        .float(&key("rope.freq_base"), 10_000.0)
        .float(&key("attention.layer_norm_rms_epsilon"), 1e-5);
    // Without it all numbers of a head are rotated.
    if architecture != "qwen2" {
        file.number(&key("rope.dimension_count"), HEAD_WIDTH as u32);
    }
    let mut more = self::random(seed ^ 0x9e37);
    let mut matrix = |file: &mut Writer, name: &str, columns: u64, rows: u64, scale: f32| {
        let kind = fitting(kind, columns);
        // Of more numbers each is smaller, so that no score is so large that it is all.
        let scale = scale * WIDTH as f32 / width as f32;
        let bytes = bytes_of(kind, (rows * columns) as usize, scale, &mut random);
        file.tensor(name, &[columns, rows], kind.number(), bytes);
    };
    let (query, kv) = (
        head_width * u64::from(HEADS),
        head_width * u64::from(KV_HEADS),
    );
    matrix(&mut file, "token_embd.weight", width, vocabulary, 1.0);
    if has_output {
        matrix(&mut file, "output.weight", width, vocabulary, 0.3);
    }
    let norm: Vec<u8> = (0..width)
        .flat_map(|n| (0.8 + n as f32 / 200.0).to_le_bytes())
        .collect();
    file.tensor("output_norm.weight", &[width], 0, norm.clone());
    for layer in 0..LAYERS {
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        file.tensor(&name("attn_norm"), &[width], 0, norm.clone());
        file.tensor(&name("ffn_norm"), &[width], 0, norm.clone());
        matrix(&mut file, &name("attn_q"), width, query, 0.4);
        matrix(&mut file, &name("attn_k"), width, kv, 0.4);
        matrix(&mut file, &name("attn_v"), width, kv, 0.4);
        matrix(&mut file, &name("attn_output"), query, width, 0.4);
        matrix(&mut file, &name("ffn_gate"), width, hidden, 0.3);
        matrix(&mut file, &name("ffn_up"), width, hidden, 0.3);
        matrix(&mut file, &name("ffn_down"), hidden, width, 0.3);
        let mut floats = |name: String, length: u64, around: f32| {
            let numbers = (0..length).map(|_| around + unit(&mut more) / 2.0);
            let bytes = numbers.flat_map(f32::to_le_bytes).collect();
            file.tensor(&name, &[length], 0, bytes);
        };
        if architecture == "qwen2" {
            floats(format!("blk.{layer}.attn_q.bias"), query, 0.0);
            floats(format!("blk.{layer}.attn_k.bias"), kv, 0.0);
            floats(format!("blk.{layer}.attn_v.bias"), kv, 0.0);
        }
        if architecture == "qwen3" {
            floats(name("attn_q_norm"), head_width, 1.0);
            floats(name("attn_k_norm"), head_width, 1.0);
        }
    }
    file
}

/// What llama.cpp writes where rows are no whole blocks of a type.
fn fitting(kind: TensorType, columns: u64) -> TensorType {
    match kind {
        _ if columns.is_multiple_of(kind.block().0 as u64) => kind,
        TensorType::Q4K => TensorType::Q5_0,
        TensorType::Q5K => TensorType::Q5_1,
        _ => TensorType::Q8_0,
    }
}

/// The file of a small random encoder, another for each seed: its vectors mean nothing.
pub fn small_encoder(seed: u64) -> Vec<u8> {
    small_encoder_file(TensorType::F16, seed).file()
}

/// A random encoder of two layers, its matrices of this type.
pub(super) fn small_encoder_file(kind: TensorType, seed: u64) -> Writer {
    const CONTEXT: u64 = 40;
    let mut random = random(seed);
    let mut file = Writer::default();
    let vocabulary = pieces(&mut file) as u64;
    file.text("general.architecture", "bert")
        .number("bert.block_count", LAYERS)
        .number("bert.context_length", CONTEXT as u32)
        .number("bert.embedding_length", WIDTH as u32)
        .number("bert.feed_forward_length", HIDDEN as u32)
        .number("bert.attention.head_count", 4)
        .float("bert.attention.layer_norm_epsilon", 1e-12)
        .flag("bert.attention.causal", false)
        .number("bert.pooling_type", 1);
    let mut tensor = |file: &mut Writer, name: &str, kind: TensorType, shape: &[u64], scale| {
        let count = shape.iter().product::<u64>() as usize;
        let bytes = bytes_of(kind, count, scale, &mut random);
        file.tensor(name, shape, kind.number(), bytes);
    };
    let float = TensorType::F32;
    tensor(
        &mut file,
        "token_embd.weight",
        kind,
        &[WIDTH, vocabulary],
        1.0,
    );
    tensor(
        &mut file,
        "position_embd.weight",
        float,
        &[WIDTH, CONTEXT],
        0.5,
    );
    tensor(&mut file, "token_types.weight", float, &[WIDTH, 2], 0.3);
    tensor(&mut file, "token_embd_norm.weight", float, &[WIDTH], 1.5);
    tensor(&mut file, "token_embd_norm.bias", float, &[WIDTH], 0.3);
    for layer in 0..LAYERS {
        for (part, columns, rows) in [
            ("attn_q", WIDTH, WIDTH),
            ("attn_k", WIDTH, WIDTH),
            ("attn_v", WIDTH, WIDTH),
            ("attn_output", WIDTH, WIDTH),
            ("ffn_up", WIDTH, HIDDEN),
            ("ffn_down", HIDDEN, WIDTH),
        ] {
            let name = format!("blk.{layer}.{part}");
            tensor(
                &mut file,
                &format!("{name}.weight"),
                kind,
                &[columns, rows],
                0.3,
            );
            tensor(&mut file, &format!("{name}.bias"), float, &[rows], 0.2);
        }
        for part in ["attn_output_norm", "layer_output_norm"] {
            let name = format!("blk.{layer}.{part}");
            tensor(&mut file, &format!("{name}.weight"), float, &[WIDTH], 1.5);
            tensor(&mut file, &format!("{name}.bias"), float, &[WIDTH], 0.3);
        }
    }
    file
}

/// A small vocabulary of pieces of words; how many it has.
pub(super) fn pieces(file: &mut Writer) -> usize {
    let mut tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused1]"]
        .map(str::to_owned)
        .to_vec();
    for letter in ('a'..='z').chain('0'..='9') {
        tokens.push(format!("\u{2581}{letter}"));
        tokens.push(letter.to_string());
    }
    for word in [
        "un", "cafe", "cls", "[", "]", ",", ".", "!", "中", "国", "the",
    ] {
        tokens.push(format!("\u{2581}{word}"));
    }
    tokens.extend(["able", "fort"].map(str::to_owned));
    let mut kinds = vec![1; tokens.len()];
    kinds[..5].fill(3);
    file.text("tokenizer.ggml.model", "bert")
        .texts("tokenizer.ggml.tokens", &tokens)
        .numbers("tokenizer.ggml.token_type", &kinds)
        .number("tokenizer.ggml.unknown_token_id", 1)
        .number("tokenizer.ggml.cls_token_id", 2)
        .number("tokenizer.ggml.seperator_token_id", 3);
    tokens.len()
}

/// Tokens of [`vocabulary`]: control, bytes, two merges, and one to be kept whole.
pub(super) const VOCABULARY: usize = 3 + 256 + 2 + 1;

/// What tokens 0 to 2 of [`tiny`] are called.
const CONTROLS: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

/// A small vocabulary.
pub(super) fn vocabulary(file: &mut Writer) {
    named_vocabulary(file, CONTROLS);
}

/// The same, its control tokens called so.
fn named_vocabulary(file: &mut Writer, controls: [&str; 3]) {
    let mut others = (256..).filter_map(char::from_u32);
    let byte = |byte: u8| match byte {
        b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte).to_string(),
        _ => others.next().unwrap_or_default().to_string(),
    };
    let mut tokens: Vec<String> = controls.map(str::to_owned).to_vec();
    tokens.extend((0..=u8::MAX).map(byte));
    tokens.extend(["he", "Ġhe", "[whole]"].map(str::to_owned));
    let mut kinds = vec![1; tokens.len()];
    kinds[..3].fill(3);
    kinds[tokens.len() - 1] = 4;
    let [_, begin, end] = controls;
    let template = format!(
        "{{% for message in messages %}}{{{{ '{begin}' + message['role'] + '\n' + message['content'] + '{end}\n' }}}}{{% endfor %}}{{% if add_generation_prompt %}}{{{{ '{begin}assistant\n' }}}}{{% endif %}}"
    );
    file.text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", "smollm")
        .texts("tokenizer.ggml.tokens", &tokens)
        .numbers("tokenizer.ggml.token_type", &kinds)
        .texts(
            "tokenizer.ggml.merges",
            &["h e".to_owned(), "Ġ he".to_owned()],
        )
        .number("tokenizer.ggml.bos_token_id", 1)
        .number("tokenizer.ggml.eos_token_id", 2)
        .flag("tokenizer.ggml.add_bos_token", false)
        .text("tokenizer.chat_template", &template);
}
