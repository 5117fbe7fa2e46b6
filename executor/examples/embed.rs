//! An encoder on this machine's processor, without the exchange around it.
//!
//! ```text
//! embed FILE --texts TEXTS      a line of numbers for each line of TEXTS, which is hex
//! embed FILE --tokens TEXTS     the tokens of each line
//! embed FILE --bench TEXTS      texts per second, of each run
//! embed FOLDER --convert FILE   makes a file of what sentence-transformers saves
//!
//!   --threads N    threads (1)
//!   --runs N       --bench: how often (3)
//! ```

#![allow(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    reason = "an example that fails has nothing to say, and rates are rounded"
)]

use std::{collections::HashMap, fs, path::Path, sync::Arc, time::Instant};

use suanli_executor::{
    limits::ENCODER_ROWS_MAX,
    model::{
        convert::{Parts, convert},
        cpu::{
            EngineOptions,
            encoder::{EncoderEngine, EncoderWeights},
        },
        encoder::Encoder,
        gguf::Gguf,
        wordpiece::WordPiece,
    },
};

fn main() {
    let mut arguments = std::env::args().skip(1);
    let file = arguments.next().expect("give a file");
    let mut options = HashMap::new();
    while let Some(name) = arguments.next() {
        options.insert(name, arguments.next().expect("an option has a value"));
    }
    if let Some(out) = options.get("--convert") {
        return make(Path::new(&file), out);
    }
    let bytes = fs::read(file).unwrap();
    let file = Gguf::parse(&bytes).unwrap_or_else(|error| panic!("{error}"));
    let model = Encoder::read(&file).unwrap_or_else(|error| panic!("{error}"));
    let tokenizer = WordPiece::read(&file).unwrap_or_else(|error| panic!("{error}"));
    let number = |name: &str, default| options.get(name).map_or(default, |it| it.parse().unwrap());
    let weights = Arc::new(EncoderWeights::new(&model));
    let threads = EngineOptions {
        threads: number("--threads", 1),
        cache_bytes_max: 0,
    };
    let mut engine = EncoderEngine::new(weights, threads).unwrap();
    let texts = |name: &str| options.get(name).map(|path| tokens(path, &tokenizer));
    if let Some(texts) = texts("--tokens") {
        for text in texts {
            println!("{}", listed(&text));
        }
    } else if let Some(texts) = texts("--texts") {
        for vector in vectors(&mut engine, &texts) {
            println!("{}", listed(&vector));
        }
    } else if let Some(path) = options.get("--bench") {
        // One more, which does not count: it takes memory that the others find.
        for run in 0..=number("--runs", 3) {
            let began = Instant::now();
            let texts = tokens(path, &tokenizer);
            let count = vectors(&mut engine, &texts).len();
            if run > 0 {
                println!("{:.3}", count as f64 / began.elapsed().as_secs_f64());
            }
        }
    }
}

fn make(folder: &Path, out: &str) {
    let read = |name: &str| fs::read(folder.join(name)).unwrap();
    let parts = Parts {
        config: &read("config.json"),
        modules: &read("modules.json"),
        pooling: &read("1_Pooling/config.json"),
        tokenizer: &read("tokenizer.json"),
    };
    let mut weights = fs::File::open(folder.join("model.safetensors")).unwrap();
    let mut out = std::io::BufWriter::new(fs::File::create(out).unwrap());
    convert(&parts, &mut weights, &mut out).unwrap_or_else(|error| panic!("{error}"));
}

fn tokens(path: &str, tokenizer: &WordPiece) -> Vec<Vec<u32>> {
    let text = |line: &str| {
        let bytes: Vec<u8> = (0..line.len() / 2)
            .map(|at| u8::from_str_radix(&line[2 * at..2 * at + 2], 16).unwrap())
            .collect();
        tokenizer
            .encode(&String::from_utf8(bytes).unwrap())
            .unwrap()
    };
    fs::read_to_string(path)
        .unwrap()
        .lines()
        .map(text)
        .collect()
}

/// As many texts at once as go together.
fn vectors(engine: &mut EncoderEngine, texts: &[Vec<u32>]) -> Vec<Vec<f32>> {
    let mut vectors = Vec::new();
    let mut rest = texts;
    while !rest.is_empty() {
        let mut rows = 0;
        let fit = rest.iter().take_while(|text| {
            rows += text.len();
            rows <= ENCODER_ROWS_MAX
        });
        let (batch, later) = rest.split_at(fit.count().max(1));
        let batch: Vec<&[u32]> = batch.iter().map(Vec::as_slice).collect();
        vectors.extend(engine.embed(&batch).unwrap().map(<[f32]>::to_vec));
        rest = later;
    }
    vectors
}

fn listed<T: ToString>(all: &[T]) -> String {
    let all: Vec<String> = all.iter().map(T::to_string).collect();
    all.join(",")
}
