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
fn widened(kind: u32, bytes: &[u8]) -> Vec<f32> {
    let half = |bytes: &[u8]| f16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
    let wide = |block: &[u8]| -> Vec<f32> {
        let low = |from: usize| block[from..].iter().map(|byte| f32::from(byte & 15));
        let high = |from: usize| block[from..].iter().map(|byte| f32::from(byte >> 4));
        match kind {
            0 => vec![f32::from_le_bytes(block.try_into().unwrap_or_default())],
            1 => vec![half(block)],
            30 => vec![bf16::from_le_bytes([block[0], block[1]]).to_f32()],
            2 => (low(2).chain(high(2)))
                .map(|number| (number - 8.0) * half(block))
                .collect(),
            3 => (low(4).chain(high(4)))
                .map(|number| number * half(block) + half(&block[2..]))
                .collect(),
            8 => (block[2..].iter())
                .map(|byte| f32::from(byte.cast_signed()) * half(block))
                .collect(),
            other => panic!("type {other} is not made here"),
        }
    };
    let block = match kind {
        0 => 4,
        1 | 30 => 2,
        2 => 18,
        3 => 20,
        _ => 34,
    };
    bytes.chunks_exact(block).flat_map(wide).collect()
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
        match kind {
            TensorType::F32 => bytes.extend(number.to_le_bytes()),
            TensorType::F16 => bytes.extend(half(number)),
            TensorType::Bf16 => bytes.extend(bf16::from_f32(number).to_le_bytes()),
            TensorType::Q4_0 => bytes.extend(half(size / 8.0)),
            TensorType::Q4_1 => {
                bytes.extend(half(size / 8.0));
                bytes.extend(half(-size));
            }
            TensorType::Q8_0 => bytes.extend(half(size / 128.0)),
            other => panic!("{other:?} is not made here"),
        }
        if elements > 1 {
            let end = bytes.len().next_multiple_of(block_bytes);
            while bytes.len() < end {
                bytes.push(random.next_u32() as u8);
            }
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

/// The file of a small random model, another for each seed: it speaks nonsense, always the
/// same, a token in a millisecond, and comes to no end by itself.
pub fn small_model(seed: u64) -> Vec<u8> {
    let mut file = random_model(TensorType::Q8_0, true, seed, HEAD_WIDTH);
    // No names that mean an end.
    named_vocabulary(&mut file, ["<|none|>", "<|turn|>", "<|over|>"]);
    file.number("llama.context_length", 4096)
        .without("tokenizer.ggml.eos_token_id")
        .file()
}

/// The file of a random model of two layers and 4096 positions, its matrices of this type,
/// its heads of this width; and the same with all numbers written with 32 bits.
pub fn model_and_its_floats(kind: TensorType, head_width: u64) -> [Vec<u8>; 2] {
    let mut file = random_model(kind, head_width > 16, 1, head_width);
    file.number("llama.context_length", 4096);
    let narrow = file.file();
    file.widen();
    [narrow, file.file()]
}

/// A random model of two layers, its matrices of this type.
#[cfg(test)]
pub(super) fn tiny(kind: TensorType, has_output: bool) -> Writer {
    random_model(kind, has_output, 1, HEAD_WIDTH)
}

fn random_model(kind: TensorType, has_output: bool, seed: u64, head_width: u64) -> Writer {
    let mut random = random(seed);
    let mut file = Writer::default();
    vocabulary(&mut file);
    let vocabulary = VOCABULARY as u64;
    file.text("general.architecture", "llama")
        .number("llama.block_count", LAYERS)
        .number("llama.context_length", 100)
        .number("llama.embedding_length", WIDTH as u32)
        .number("llama.feed_forward_length", HIDDEN as u32)
        .number("llama.attention.head_count", HEADS)
        .number("llama.attention.head_count_kv", KV_HEADS)
        .number("llama.attention.key_length", head_width as u32)
        .number("llama.attention.value_length", head_width as u32)
        .number("llama.rope.dimension_count", HEAD_WIDTH as u32)
        .float("llama.rope.freq_base", 10_000.0)
        .float("llama.attention.layer_norm_rms_epsilon", 1e-5);
    let mut matrix = |file: &mut Writer, name: &str, columns: u64, rows: u64, scale: f32| {
        let bytes = bytes_of(kind, (rows * columns) as usize, scale, &mut random);
        file.tensor(name, &[columns, rows], kind.number(), bytes);
    };
    let (query, kv) = (
        head_width * u64::from(HEADS),
        head_width * u64::from(KV_HEADS),
    );
    matrix(&mut file, "token_embd.weight", WIDTH, vocabulary, 1.0);
    if has_output {
        matrix(&mut file, "output.weight", WIDTH, vocabulary, 0.3);
    }
    let norm: Vec<u8> = (0..WIDTH)
        .flat_map(|n| (0.8 + n as f32 / 200.0).to_le_bytes())
        .collect();
    file.tensor("output_norm.weight", &[WIDTH], 0, norm.clone());
    for layer in 0..LAYERS {
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        file.tensor(&name("attn_norm"), &[WIDTH], 0, norm.clone());
        file.tensor(&name("ffn_norm"), &[WIDTH], 0, norm.clone());
        matrix(&mut file, &name("attn_q"), WIDTH, query, 0.4);
        matrix(&mut file, &name("attn_k"), WIDTH, kv, 0.4);
        matrix(&mut file, &name("attn_v"), WIDTH, kv, 0.4);
        matrix(&mut file, &name("attn_output"), query, WIDTH, 0.4);
        matrix(&mut file, &name("ffn_gate"), WIDTH, HIDDEN, 0.3);
        matrix(&mut file, &name("ffn_up"), WIDTH, HIDDEN, 0.3);
        matrix(&mut file, &name("ffn_down"), HIDDEN, WIDTH, 0.3);
    }
    file
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
