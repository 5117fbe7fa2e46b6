//! A package of a small random encoder, converted, read back, and damaged.

use std::io::Cursor;

use serde_json::{Value, json};

use super::*;
use crate::{
    ipc::model::{Embed, EmbedInput, Load, Word},
    model::{
        embeddings::Embeddings,
        encoder::{Encoder, Pooling},
        gguf::Gguf,
        testing::{random, unit},
        wordpiece::WordPiece,
    },
};

/// A package, as JSON and tensors.
struct Package {
    config: Value,
    modules: Value,
    pooling: Value,
    tokenizer: Value,
    tensors: Vec<(String, &'static str, Vec<u64>, Vec<u8>)>,
}

fn package() -> Package {
    let tokens = [
        "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "##b", "the", ",",
    ];
    let vocab: Value = (0..)
        .zip(tokens)
        .map(|(id, token): (u32, _)| (token.to_owned(), json!(id)))
        .collect::<serde_json::Map<_, _>>()
        .into();
    let special = |id: u32| json!({ "id": id, "content": tokens[usize::try_from(id).unwrap()], "special": true });
    let mut random = random(3);
    let mut tensors = Vec::new();
    let mut add = |name: &str, shape: &[u64]| {
        let count = shape.iter().product::<u64>();
        let numbers = (0..count).flat_map(|_| unit(&mut random).to_le_bytes());
        tensors.push((name.to_owned(), "F32", shape.to_vec(), numbers.collect()));
    };
    add("embeddings.word_embeddings.weight", &[12, 8]);
    add("embeddings.position_embeddings.weight", &[16, 8]);
    add("embeddings.token_type_embeddings.weight", &[2, 8]);
    add("pooler.dense.weight", &[8, 8]);
    for end in ["weight", "bias"] {
        add(&format!("embeddings.LayerNorm.{end}"), &[8]);
        for (part, rows, columns) in [
            ("attention.self.query", 8, 8),
            ("attention.self.key", 8, 8),
            ("attention.self.value", 8, 8),
            ("attention.output.dense", 8, 8),
            ("intermediate.dense", 20, 8),
            ("output.dense", 8, 20),
        ] {
            let shape = [rows, columns];
            let shape = if end == "bias" { &shape[..1] } else { &shape };
            add(&format!("encoder.layer.0.{part}.{end}"), shape);
        }
        add(
            &format!("encoder.layer.0.attention.output.LayerNorm.{end}"),
            &[8],
        );
        add(&format!("encoder.layer.0.output.LayerNorm.{end}"), &[8]);
    }
    Package {
        config: json!({
            "model_type": "bert", "hidden_act": "gelu", "vocab_size": 12,
            "max_position_embeddings": 16, "type_vocab_size": 2, "num_hidden_layers": 1,
            "hidden_size": 8, "intermediate_size": 20, "num_attention_heads": 2,
            "layer_norm_eps": 1e-12, "torch_dtype": "float32",
        }),
        modules: json!([
            { "idx": 0, "path": "", "type": "sentence_transformers.models.Transformer" },
            { "idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling" },
        ]),
        pooling: json!({ "word_embedding_dimension": 8, "pooling_mode_mean_tokens": true }),
        tokenizer: json!({
            "added_tokens": [special(0), special(1), special(2), special(3), special(4)],
            "normalizer": { "type": "BertNormalizer", "clean_text": true,
                "handle_chinese_chars": true, "strip_accents": null, "lowercase": true },
            "pre_tokenizer": { "type": "BertPreTokenizer" },
            "post_processor": { "type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2] },
            "model": { "type": "WordPiece", "unk_token": "[UNK]",
                "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
                "vocab": vocab },
        }),
        tensors,
    }
}

impl Package {
    fn weights(&self) -> Vec<u8> {
        let mut head = json!({ "__metadata__": { "format": "pt" } });
        let mut data = Vec::new();
        for (name, kind, shape, bytes) in &self.tensors {
            let begin = data.len();
            data.extend(bytes);
            head[name] =
                json!({ "dtype": kind, "shape": shape, "data_offsets": [begin, data.len()] });
        }
        weights(&head, &data)
    }

    fn convert_with(&self, weights: Vec<u8>) -> Result<Vec<u8>, ConvertError> {
        let bytes = |value: &Value| value.to_string().into_bytes();
        let parts = [&self.config, &self.modules, &self.pooling, &self.tokenizer].map(bytes);
        let parts = Parts {
            config: &parts[0],
            modules: &parts[1],
            pooling: &parts[2],
            tokenizer: &parts[3],
        };
        let mut out = Vec::new();
        convert(&parts, &mut Cursor::new(weights), &mut out).map(|()| out)
    }

    fn convert(&self) -> Result<Vec<u8>, ConvertError> {
        self.convert_with(self.weights())
    }
}

fn weights(head: &Value, data: &[u8]) -> Vec<u8> {
    let head = head.to_string();
    let length = u64::try_from(head.len()).unwrap().to_le_bytes();
    [&length[..], head.as_bytes(), data].concat()
}

fn refused(change: impl FnOnce(&mut Package)) -> String {
    let mut package = package();
    change(&mut package);
    package.convert().unwrap_err().to_string()
}

#[test]
fn a_package_becomes_a_file_that_is_served() {
    let package = package();
    let bytes = package.convert().unwrap();
    assert_eq!(bytes, package.convert().unwrap());
    // The hash is what the model goes by: it may not change between versions.
    let hash = blake3::hash(&bytes).to_hex();
    assert_eq!(hash.as_str(), HASH);
    let file = Gguf::parse(&bytes).unwrap();
    let model = Encoder::read(&file).unwrap();
    assert_eq!(model.config.pooling, Pooling::Mean);
    let tokens = WordPiece::read(&file)
        .unwrap()
        .encode("a, abbB thé")
        .unwrap();
    assert_eq!(tokens, [2, 5, 9, 5, 7, 7, 7, 8, 3][..]);
    let load = Load {
        threads: 1,
        cache_bytes_max: 0,
        context_max: 0,
    };
    let mut model = Embeddings::read(&bytes, &load).unwrap();
    let mut words = Vec::new();
    let text = EmbedInput::Text(suanli_protocol::wire::Utf8::cut("the b"));
    let inputs = suanli_protocol::wire::List::truncated(vec![text]);
    model.embed(1, Embed { inputs }, |word| words.push(word));
    model.step(|word| words.push(word));
    assert!(matches!(&words[1], Word::Embedded { vector, .. } if vector.len() == 32));
}

const HASH: &str = "c1869ee6f7342b61f57eb8eb67aac61819d7aca607e019d8a0a5b30b0e6693e6";

#[test]
fn other_names_and_types_give_the_same_model() {
    let plain = package().convert().unwrap();
    let mut named = package();
    for (name, ..) in &mut named.tensors {
        name.insert_str(0, "bert.");
    }
    assert_eq!(named.convert().unwrap(), plain);
    let mut small = package();
    for (_, kind, _, bytes) in &mut small.tensors {
        let floats = bytes
            .as_chunks::<4>()
            .0
            .iter()
            .map(|b| f32::from_le_bytes(*b));
        *bytes = floats
            .flat_map(|number| f16::from_f32(number).to_le_bytes())
            .collect();
        *kind = "F16";
    }
    assert_eq!(small.convert().unwrap().len(), plain.len());
}

#[test]
fn what_is_not_done_here_is_refused_by_its_place() {
    let config = |key: &str, value: Value| refused(|package| package.config[key] = value);
    assert!(config("model_type", json!("roberta")).contains("\"roberta\""));
    assert!(config("hidden_act", json!("relu")).contains("\"relu\""));
    assert!(config("position_embedding_type", json!("relative_key")).contains("absolute"));
    assert!(config("num_attention_heads", json!(3)).contains("divide"));
    assert!(config("num_attention_heads", json!(0)).contains("num_attention_heads = 0"));
    assert!(config("hidden_size", json!(1_u64 << 40)).contains("can be"));
    assert!(config("hidden_size", json!(-1)).contains("config.json can't be read"));
    assert!(config("vocab_size", json!(9)).contains("has the number 9"));
    assert!(config("vocab_size", json!(13)).contains("should be [13, 8]"));
    assert!(config("num_hidden_layers", json!(2)).contains("no tensor \"encoder.layer.1."));
    let dense = refused(|package| package.modules[1]["type"] = json!("x.Dense"));
    assert!(dense.contains("Dense"));
    let place = refused(|package| package.modules[1]["path"] = json!("../.."));
    assert!(place.contains("folders"));
    let most = refused(|package| package.pooling["pooling_mode_max_tokens"] = json!(true));
    assert!(most.contains("max_tokens"));
    let cased = refused(|package| package.tokenizer["normalizer"]["lowercase"] = json!(false));
    assert!(cased.contains("lower case"));
    let added = refused(|package| package.tokenizer["added_tokens"][4]["special"] = json!(false));
    assert!(added.contains("[MASK]"));
    let twice = refused(|package| package.tokenizer["model"]["vocab"]["b"] = json!(5));
    assert!(twice.contains("one number"));
    let none = refused(|package| {
        let vocab = package.tokenizer["model"]["vocab"].as_object_mut().unwrap();
        vocab.remove("[UNK]");
        package.tokenizer["added_tokens"]
            .as_array_mut()
            .unwrap()
            .remove(1);
    });
    assert!(none.contains("[UNK]"));
    let more = refused(|package| {
        let extra = ("classifier.weight".to_owned(), "F32", vec![1], vec![0; 4]);
        package.tensors.push(extra);
    });
    assert!(more.contains("classifier.weight"));
}

#[test]
fn weights_that_are_damaged_are_refused() {
    let package = package();
    let said = |weights: Vec<u8>| package.convert_with(weights).unwrap_err().to_string();
    assert!(said(Vec::new()).contains("no head"));
    assert!(said(vec![0xff; 100]).contains("18446744073709551615"));
    assert!(said(vec![0; 8]).contains("head"));
    let mut short = package.weights();
    short.pop();
    assert!(said(short).contains("lies from"));
    let mut long = package.weights();
    long.push(0);
    assert!(said(long).contains("end at"));
    let one = |dtype: &str, shape: Value, offsets: Value| {
        let tensor = json!({ "dtype": dtype, "shape": shape, "data_offsets": offsets });
        said(weights(&json!({ "x": tensor }), &[0; 64]))
    };
    assert!(one("F32", json!([16]), json!([0, 60])).contains("needs 64"));
    assert!(one("F32", json!([16]), json!([u64::MAX - 3, 60])).contains("needs 64"));
    assert!(one("F32", json!([1_u64 << 62, 16]), json!([0, 64])).contains("can't be"));
    assert!(one("Q4", json!([16]), json!([0, 64])).contains("can't be"));
    assert!(one("F32", json!([-1]), json!([0, 64])).contains("\"x\""));
    assert!(one("F32", json!([8]), json!([32, 64])).contains("begins at 32"));
    let tensor =
        |from: u64| json!({ "dtype": "F32", "shape": [8], "data_offsets": [from, from + 32] });
    let overlap = json!({ "x": tensor(0), "y": tensor(16), "z": tensor(32) });
    assert!(said(weights(&overlap, &[0; 64])).contains("ends at 32"));
}

#[test]
fn numbers_that_can_not_be_written_are_refused() {
    for number in [f32::NAN, f32::INFINITY, 1e6] {
        let words = refused(|package| {
            package.tensors[0].3[..4].copy_from_slice(&number.to_le_bytes());
        });
        assert!(words.contains("not finite with 16 bits"), "{words}");
    }
    let words = refused(|package| {
        package.tensors[1].1 = "I32";
    });
    assert!(words.contains("\"I32\""));
}
