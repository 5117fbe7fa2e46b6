//! The JSON files of a package: sizes, and the vocabulary.

use std::collections::BTreeMap;

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use super::{ConvertError, Parts};
use crate::{
    limits::{
        ENCODER_CONTEXT_MAX, ENCODER_WIDTH_MAX, MODEL_HEADS_MAX, MODEL_LAYERS_MAX,
        MODEL_VOCABULARY_MAX, MODEL_WIDTH_MAX,
    },
    model::wordpiece::{BEGINS, GOES_ON, WORD_MAX, is_bracketed},
};

const CONFIG: &str = "config.json";
const MODULES: &str = "modules.json";
const POOLING: &str = "1_Pooling/config.json";
const TOKENIZER: &str = "tokenizer.json";
const TYPES_MAX: usize = 16;
/// What kinds of tokens are in the form GGUF.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const UNUSED: i32 = 5;

/// What the model's sizes are.
#[derive(Debug)]
pub(super) struct Sizes {
    pub(super) vocabulary: u64,
    pub(super) context: u64,
    pub(super) types: u64,
    pub(super) layers: u64,
    pub(super) width: u64,
    pub(super) hidden: u64,
    pub(super) heads: u64,
    pub(super) epsilon: f32,
    /// 1 for the mean, 2 for the first token.
    pub(super) pooling: u64,
}

#[derive(Deserialize)]
struct Config {
    model_type: String,
    hidden_act: String,
    position_embedding_type: Option<String>,
    #[serde(default)]
    is_decoder: bool,
    vocab_size: u64,
    max_position_embeddings: u64,
    type_vocab_size: u64,
    num_hidden_layers: u64,
    hidden_size: u64,
    intermediate_size: u64,
    num_attention_heads: u64,
    layer_norm_eps: f32,
}

#[derive(Deserialize)]
struct Module {
    path: String,
    #[serde(rename = "type")]
    kind: String,
}

fn read<T: DeserializeOwned>(file: &'static str, bytes: &[u8]) -> Result<T, ConvertError> {
    serde_json::from_slice(bytes).map_err(|error| ConvertError::Json {
        file,
        why: error.to_string(),
    })
}

fn unsupported(file: &'static str, what: impl Into<String>) -> ConvertError {
    ConvertError::Unsupported {
        file,
        what: what.into(),
    }
}

pub(super) fn sizes(parts: &Parts<'_>) -> Result<Sizes, ConvertError> {
    let config: Config = read(CONFIG, parts.config)?;
    let no = |what: String| Err(unsupported(CONFIG, what));
    if config.model_type != "bert" {
        return no(format!(
            "a model of the kind {:?} (\"bert\" is read here)",
            config.model_type
        ));
    }
    if config.hidden_act != "gelu" {
        return no(format!(
            "the activation {:?} (\"gelu\" is computed here)",
            config.hidden_act
        ));
    }
    if config
        .position_embedding_type
        .is_some_and(|kind| kind != "absolute")
    {
        return no("positions that are not absolute".to_owned());
    }
    if config.is_decoder {
        return no("a decoder".to_owned());
    }
    let most = [
        ("vocab_size", config.vocab_size, MODEL_VOCABULARY_MAX),
        (
            "max_position_embeddings",
            config.max_position_embeddings,
            ENCODER_CONTEXT_MAX,
        ),
        ("type_vocab_size", config.type_vocab_size, TYPES_MAX),
        (
            "num_hidden_layers",
            config.num_hidden_layers,
            MODEL_LAYERS_MAX,
        ),
        ("hidden_size", config.hidden_size, ENCODER_WIDTH_MAX),
        (
            "intermediate_size",
            config.intermediate_size,
            MODEL_WIDTH_MAX,
        ),
        (
            "num_attention_heads",
            config.num_attention_heads,
            MODEL_HEADS_MAX,
        ),
    ];
    for (name, size, most) in most {
        if !usize::try_from(size).is_ok_and(|size| (1..=most).contains(&size)) {
            return no(format!("{name} = {size} (1 to {most} can be)"));
        }
    }
    if !config
        .hidden_size
        .is_multiple_of(config.num_attention_heads)
    {
        return no("heads that do not divide hidden_size".to_owned());
    }
    Ok(Sizes {
        vocabulary: config.vocab_size,
        context: config.max_position_embeddings,
        types: config.type_vocab_size,
        layers: config.num_hidden_layers,
        width: config.hidden_size,
        hidden: config.intermediate_size,
        heads: config.num_attention_heads,
        epsilon: config.layer_norm_eps,
        pooling: pooling(parts)?,
    })
}

fn pooling(parts: &Parts<'_>) -> Result<u64, ConvertError> {
    let modules: Vec<Module> = read(MODULES, parts.modules)?;
    let name = |module: &Module| {
        module
            .kind
            .rsplit('.')
            .next()
            .unwrap_or_default()
            .to_owned()
    };
    let names: Vec<String> = modules.iter().map(name).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    if !matches!(
        names[..],
        ["Transformer", "Pooling"] | ["Transformer", "Pooling", "Normalize"]
    ) {
        let what =
            format!("the steps {names:?} (Transformer, Pooling and Normalize are known here)");
        return Err(unsupported(MODULES, what));
    }
    if !modules[0].path.is_empty() || modules[1].path != "1_Pooling" {
        return Err(unsupported(
            MODULES,
            "its parts in other folders than usual",
        ));
    }
    let modes: BTreeMap<String, Value> = read(POOLING, parts.pooling)?;
    let set = modes
        .iter()
        .filter(|(name, value)| name.starts_with("pooling_mode_") && **value == Value::Bool(true));
    let set: Vec<&str> = set.map(|(name, _)| name.as_str()).collect();
    match set[..] {
        ["pooling_mode_mean_tokens"] => Ok(1),
        ["pooling_mode_cls_token"] => Ok(2),
        _ => Err(unsupported(
            POOLING,
            format!("{set:?} (the mean, or the first token, is computed here)"),
        )),
    }
}

/// Tokens as a file has them.
#[derive(Debug)]
pub(super) struct Vocabulary {
    pub(super) tokens: Vec<String>,
    pub(super) kinds: Vec<i32>,
    /// Keys in the file, and tokens.
    pub(super) special: Vec<(&'static str, u32)>,
}

#[derive(Deserialize)]
struct TokenizerFile {
    added_tokens: Vec<Added>,
    normalizer: Value,
    pre_tokenizer: Value,
    post_processor: Value,
    model: WordPiece,
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
    special: bool,
}

#[derive(Deserialize)]
struct WordPiece {
    #[serde(rename = "type")]
    kind: Option<String>,
    unk_token: String,
    continuing_subword_prefix: String,
    max_input_chars_per_word: usize,
    vocab: BTreeMap<String, u32>,
}

pub(super) fn vocabulary(bytes: &[u8], size: u64) -> Result<Vocabulary, ConvertError> {
    let file: TokenizerFile = read(TOKENIZER, bytes)?;
    check(&file)?;
    let damaged = |why: String| ConvertError::Json {
        file: TOKENIZER,
        why,
    };
    // As many as the model has rows: those that nobody has named are unused.
    let size = usize::try_from(size).unwrap_or(usize::MAX);
    let mut named: Vec<Option<&str>> = vec![None; size];
    for (text, id) in &file.model.vocab {
        let place = usize::try_from(*id).ok().and_then(|id| named.get_mut(id));
        let place = place.ok_or_else(|| {
            damaged(format!(
                "the token {text:?} has the number {id}, and the model has {size}"
            ))
        })?;
        if let Some(other) = place.replace(text) {
            return Err(damaged(format!(
                "the tokens {other:?} and {text:?} have one number"
            )));
        }
    }
    let control = |text: &str| file.added_tokens.iter().any(|added| added.content == text);
    let kinds = named.iter().map(|text| match text {
        None => UNUSED,
        Some(text) if control(text) => CONTROL,
        Some(_) => NORMAL,
    });
    let kinds = kinds.collect();
    let tokens = (0..).zip(&named).map(|(id, text): (usize, _)| match text {
        None => format!("[PAD{id}]"),
        Some(text) if is_bracketed(text) => (*text).to_owned(),
        Some(text) => match text.strip_prefix(GOES_ON) {
            Some(rest) => rest.to_owned(),
            None => format!("{BEGINS}{text}"),
        },
    });
    let tokens = tokens.collect();
    let find = |text: &str| {
        let id = file.model.vocab.get(text).copied();
        id.ok_or_else(|| damaged(format!("its vocabulary has no {text:?}")))
    };
    let (begin, end) = (find("[CLS]")?, find("[SEP]")?);
    let mut special = vec![
        ("bos", begin),
        ("cls", begin),
        // So the format has it.
        ("seperator", end),
        ("unknown", find(&file.model.unk_token)?),
    ];
    for (key, text) in [("padding", "[PAD]"), ("mask", "[MASK]")] {
        special.extend(file.model.vocab.get(text).map(|id| (key, *id)));
    }
    Ok(Vocabulary {
        tokens,
        kinds,
        special,
    })
}

/// Whether text is made tokens of as it is done here.
fn check(file: &TokenizerFile) -> Result<(), ConvertError> {
    let no = |what: &str| Err(unsupported(TOKENIZER, what));
    let model = &file.model;
    if model
        .kind
        .as_deref()
        .is_some_and(|kind| kind != "WordPiece")
        || model.continuing_subword_prefix != GOES_ON
        || model.max_input_chars_per_word != WORD_MAX
    {
        return no("another vocabulary than BERT's WordPiece");
    }
    let normalizer = &file.normalizer;
    if normalizer["type"] != "BertNormalizer"
        || normalizer["lowercase"] != true
        || normalizer["clean_text"] != true
        || normalizer["handle_chinese_chars"] != true
        || normalizer["strip_accents"] == false
    {
        return no("text that is not made lower case and free of accents as BERT does");
    }
    if file.pre_tokenizer["type"] != "BertPreTokenizer" {
        return no("words that are not cut as BERT does");
    }
    let is_control =
        |added: &&Added| !added.special || file.model.vocab.get(&added.content) != Some(&added.id);
    if let Some(added) = file.added_tokens.iter().find(is_control) {
        return no(&format!("the token {:?} to be kept whole", added.content));
    }
    let post = &file.post_processor;
    let is_usual = match post["type"].as_str() {
        Some("BertProcessing") => post["cls"][0] == "[CLS]" && post["sep"][0] == "[SEP]",
        Some("TemplateProcessing") => {
            let single = &post["single"];
            single.as_array().is_some_and(|all| all.len() == 3)
                && single[0]["SpecialToken"]["id"] == "[CLS]"
                && single[1]["Sequence"]["id"] == "A"
                && single[2]["SpecialToken"]["id"] == "[SEP]"
        }
        Some(_) | None => false,
    };
    if !is_usual {
        return no("something else than [CLS] and [SEP] around a text");
    }
    Ok(())
}
