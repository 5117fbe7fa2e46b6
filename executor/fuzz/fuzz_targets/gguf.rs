//! Bytes are a model file. It is accepted or refused, costs memory only for what it
//! has, and what it has lies within it; then the model, the vocabulary and the template
//! that it may have are read, of a model that writes and of an encoder.

#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};
use suanli_executor::model::{
    chat::Chat,
    encoder::Encoder,
    gguf::{Gguf, Value},
    llama::Llama,
    tokenizer::Tokenizer,
    wordpiece::WordPiece,
};
use suanli_executor_fuzz::{memory::most_held, show};

/// A table row stands for 13 bytes at least, and trees are half empty.
const MEMORY_FACTOR: usize = 32;
const MEMORY_BASE: usize = 64 << 10;

fuzz_target!(|bytes: &[u8]| -> Corpus {
    let (file, held) = most_held(|| Gguf::parse(bytes));
    assert!(
        held <= MEMORY_BASE + MEMORY_FACTOR * bytes.len(),
        "{held} bytes were held for {}",
        bytes.len()
    );
    let file = match file {
        Ok(file) => file,
        Err(error) => {
            show(|| error.to_string());
            return Corpus::Keep;
        }
    };
    for (_, value) in file.metadata() {
        if let Value::Array(array) = value {
            assert_eq!(array.values().count(), array.len());
        }
    }
    for tensor in file.tensors() {
        assert_eq!(&bytes[tensor.range()], tensor.bytes());
    }
    let llama = Llama::read(&file).map(|model| model.config);
    show(|| format!("{llama:?}"));
    let encoder = Encoder::read(&file).map(|model| model.config);
    show(|| format!("{encoder:?}"));
    if let Ok(tokenizer) = WordPiece::read(&file) {
        assert!(tokenizer.encode("Hello [SEP] caf\u{e9} \u{4e2d}").is_ok());
    }
    if let Ok(tokenizer) = Tokenizer::read(&file) {
        let text = "hello <|im_end|>";
        assert!(tokenizer.encode(text).is_ok());
        let _ = Chat::read(&file, &tokenizer);
    }
    Corpus::Keep
});
