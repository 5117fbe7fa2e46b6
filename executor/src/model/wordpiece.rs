//! Text to pieces of words, by the vocabulary of an encoder's file.
//!
//! The vocabulary is of the kind that BERT had: text is cleaned, made lower case, and
//! freed of accents; it is cut at spaces and around punctuation and Chinese characters;
//! and each word is cut into the longest pieces that there are, from its beginning on.
//! The crate `tokenizers` does that. In a file a piece that begins a word has the mark
//! [`BEGINS`] before it, and one that goes on has none, as llama.cpp's converter writes
//! them.
//!
//! Text of people does not become a control token: only pieces of words and the token
//! for what is not known are in the vocabulary that words are cut by.
//! [`WordPiece::encode`] puts around each text what begins and what ends one.
//!
//! Absent: vocabularies that tell upper case from lower, and the way back to text.

use tokenizers::{
    Tokenizer as Inner,
    models::{bpe::Vocab, wordpiece},
    normalizers::bert::BertNormalizer,
    pre_tokenizers::bert::BertPreTokenizer,
};

use super::{
    gguf::Gguf,
    tokenizer::{TokenKind, TokenizerError, kinds, needed, texts, token},
};

/// Stands before a piece that begins a word.
pub const BEGINS: char = '\u{2581}';
/// What files call such vocabularies.
pub const KIND: &str = "bert";
/// Stands before a piece that goes on with a word, for the crate.
pub(super) const GOES_ON: &str = "##";
/// Characters of a word: a longer one is not known, as with BERT.
pub(super) const WORD_MAX: usize = 100;

/// A vocabulary, and how to use it.
#[derive(Debug, Clone)]
pub struct WordPiece {
    inner: Inner,
    vocabulary: usize,
    begin: u32,
    end: u32,
}

impl WordPiece {
    /// Reads a file's vocabulary.
    ///
    /// # Errors
    ///
    /// Why it can't be used.
    pub fn read(file: &Gguf<'_>) -> Result<Self, TokenizerError> {
        let kind = needed(file.text("tokenizer.ggml.model")?, "tokenizer.ggml.model")?;
        if kind != KIND {
            return Err(TokenizerError::Kind(kind.to_owned()));
        }
        let texts = texts(file, "tokenizer.ggml.tokens")?;
        let kinds = kinds(file, texts.len())?;
        let find = |keys: &[&str], name: &str| {
            for key in keys {
                if let Some(id) = token(file, key, texts.len())? {
                    return Ok(id);
                }
            }
            let id = (0..).zip(&texts).find(|(_, text)| **text == name);
            id.map(|(id, _)| id).ok_or_else(|| {
                TokenizerError::Damaged(format!("it has no token {name:?}, and names none for it"))
            })
        };
        let unknown = find(&["tokenizer.ggml.unknown_token_id"], "[UNK]")?;
        let begins = ["tokenizer.ggml.cls_token_id", "tokenizer.ggml.bos_token_id"];
        // The second word is written so by who made the format.
        let ends = [
            "tokenizer.ggml.seperator_token_id",
            "tokenizer.ggml.separator_token_id",
        ];
        Ok(Self {
            inner: inner(&texts, &kinds, unknown)?,
            vocabulary: texts.len(),
            begin: find(&begins, "[CLS]")?,
            end: find(&ends, "[SEP]")?,
        })
    }

    /// How many tokens there are.
    pub const fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// The tokens of a text, with those that begin and end it. All between these are
    /// pieces of words.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::Encode`].
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let encoded = self.inner.encode_fast(text, false);
        let encoded = encoded.map_err(|error| TokenizerError::Encode(error.to_string()))?;
        let ids = encoded.get_ids();
        let mut tokens = Vec::with_capacity(ids.len() + 2);
        tokens.push(self.begin);
        tokens.extend(ids);
        tokens.push(self.end);
        Ok(tokens)
    }
}

fn inner(texts: &[&str], kinds: &[TokenKind], unknown: u32) -> Result<Inner, TokenizerError> {
    let damaged = |error: tokenizers::Error| TokenizerError::Damaged(error.to_string());
    let mut pieces = Vocab::with_capacity(texts.len());
    let mut unknown_text = String::new();
    for ((id, text), kind) in (0..).zip(texts).zip(kinds) {
        let piece = if id == unknown {
            // No word has such a name: words have no brackets, and no such mark.
            unknown_text = format!("[{BEGINS}]");
            unknown_text.clone()
        } else if *kind == TokenKind::Control || text.is_empty() || is_bracketed(text) {
            continue;
        } else if *kind == TokenKind::Whole {
            return Err(TokenizerError::Damaged(format!(
                "the token {text:?} is to be kept whole, which is not done here"
            )));
        } else {
            match text.strip_prefix(BEGINS) {
                Some(begins) => begins.to_owned(),
                None => format!("{GOES_ON}{text}"),
            }
        };
        if pieces.insert(piece, id).is_some() {
            return Err(TokenizerError::Damaged(format!(
                "the token {text:?} is there twice"
            )));
        }
    }
    let model = wordpiece::WordPiece::builder()
        .vocab(pieces)
        .unk_token(unknown_text)
        .continuing_subword_prefix(GOES_ON.to_owned())
        .max_input_chars_per_word(WORD_MAX)
        .build()
        .map_err(damaged)?;
    let mut inner = Inner::new(model);
    let normalizer = BertNormalizer::new(true, true, Some(true), true);
    inner
        .with_normalizer(Some(normalizer))
        .map_err(damaged)?
        .with_pre_tokenizer(Some(BertPreTokenizer));
    Ok(inner)
}

/// Whether a token's name is in brackets: converters leave such names without a mark,
/// whatever they are, and no piece of a word has brackets beside other characters.
pub(super) fn is_bracketed(text: &str) -> bool {
    text.starts_with('[') && text.ends_with(']')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::testing::{Writer, pieces};

    fn read(change: impl FnOnce(&mut Writer)) -> Result<WordPiece, TokenizerError> {
        let mut file = Writer::default();
        pieces(&mut file);
        change(&mut file);
        WordPiece::read(&Gguf::parse(&file.file()).unwrap())
    }

    /// Tokens by their names in the file, without those around them.
    fn names(text: &str) -> Vec<String> {
        let mut file = Writer::default();
        pieces(&mut file);
        let bytes = file.file();
        let file = Gguf::parse(&bytes).unwrap();
        let all = texts(&file, "tokenizer.ggml.tokens").unwrap();
        let tokens = WordPiece::read(&file).unwrap().encode(text).unwrap();
        let [2, between @ .., 3] = &tokens[..] else {
            panic!("{tokens:?}");
        };
        let name = |token: &u32| all[usize::try_from(*token).unwrap()].to_owned();
        between.iter().map(name).collect()
    }

    #[test]
    fn words_become_their_longest_pieces() {
        assert_eq!(names("unfort"), ["▁un", "fort"]);
        assert_eq!(names("Unable,"), ["▁un", "able", "▁,"]);
        assert_eq!(names("CAFÉ cafe\u{301}"), ["▁cafe", "▁cafe"]);
        assert_eq!(names("中国x"), ["▁中", "▁国", "▁x"]);
        assert_eq!(names("a\0b\u{fffd}\tc\u{200b}"), ["▁a", "b", "▁c"]);
        assert_eq!(names("日 the"), ["[UNK]", "▁the"]);
        assert_eq!(names(&"a".repeat(100)).len(), 100);
        assert_eq!(names(&"a".repeat(101)), ["[UNK]"]);
        for empty in ["", "  \n\t", "\u{200b}", "\0"] {
            assert!(names(empty).is_empty());
        }
    }

    #[test]
    fn text_of_people_is_never_a_control_token() {
        let tokenizer = read(|_| ()).unwrap();
        for named in [
            "[CLS]",
            "[SEP] a",
            "[MASK]",
            "[PAD]",
            "[unused1]",
            "[unk]",
            "[\u{2581}]",
            "##able",
        ] {
            let tokens = tokenizer.encode(named).unwrap();
            let between = &tokens[1..tokens.len() - 1];
            assert!(
                between.iter().all(|token| *token == 1 || *token > 5),
                "{named}"
            );
        }
        assert_eq!(names("[CLS]"), ["▁[", "▁cls", "▁]"]);
    }

    #[test]
    fn vocabularies_that_are_none_are_refused() {
        let said = |change: fn(&mut Writer)| read(change).unwrap_err().to_string();
        let words = said(|file| {
            file.text("tokenizer.ggml.model", "gpt2");
        });
        assert!(words.contains("\"gpt2\""));
        let words = said(|file| {
            file.number("tokenizer.ggml.unknown_token_id", 9999);
        });
        assert!(words.contains("unknown_token_id"));
        let words = said(|file| {
            file.without("tokenizer.ggml.unknown_token_id")
                .without("tokenizer.ggml.token_type")
                .texts("tokenizer.ggml.tokens", &["\u{2581}a".to_owned()]);
        });
        assert!(words.contains("[UNK]"));
        let words = said(|file| {
            file.without("tokenizer.ggml.token_type").texts(
                "tokenizer.ggml.tokens",
                &["a", "[UNK]", "[CLS]", "[SEP]", "a"].map(str::to_owned),
            );
        });
        assert!(words.contains("twice"));
    }

    #[test]
    fn names_of_those_around_a_text_need_not_be_said() {
        let tokenizer = read(|file| {
            file.without("tokenizer.ggml.cls_token_id")
                .without("tokenizer.ggml.seperator_token_id");
        });
        assert_eq!(tokenizer.unwrap().encode("").unwrap(), [2, 3]);
    }
}
