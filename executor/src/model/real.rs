//! Tests with a real model: SmolLM2-135M-Instruct in the form Q4_1. `SUANLI_TEST_GGUF`
//! says where its file is; without it they say that they were skipped.

use std::sync::Arc;

use super::{
    chat::{Chat, Message, Role},
    cpu::{Engine, EngineOptions, Weights},
    engine::{Engine as _, SequenceId, Step},
    gguf::Gguf,
    llama::Llama,
    sampler::{Sampler, SamplerOptions},
    tokenizer::{TextStream, Tokenizer},
};

/// Texts, and the tokens that llama.cpp makes of them.
const ENCODED: [(&str, &[u32]); 8] = [
    ("Hello, world!", &[19_556, 28, 905, 17]),
    (
        "中国的首都是北京。",
        &[
            28_589, 23_022, 138, 11_567, 180, 116, 240, 180, 38_466, 27_830, 30_158, 241, 16_736,
            122, 19_076,
        ],
    ),
    ("👍🏽", &[10_813, 235, 231, 10_813, 233, 138]),
    (
        "def f(x):\n    return x**2",
        &[1604, 275, 24, 104, 727, 472, 1003, 1792, 828, 34],
    ),
    (
        "  two  spaces \n\n\n x",
        &[216, 827, 216, 5600, 216, 16_506, 1792],
    ),
    (
        "12345 3.14 ½ ١٢",
        &[
            33, 34, 35, 36, 37, 216, 35, 30, 33, 36, 216, 16_738, 216, 164, 111, 164, 112,
        ],
    ),
    (
        "don't I'LL we've",
        &[12_420, 982, 339, 23, 16_421, 392, 3543],
    ),
    ("naïve e\u{301}", &[3546, 46_494, 297, 151, 219]),
];

/// What llama.cpp answers as well.
const QUESTION: &str = "What is the capital of France?";
const ANSWER: &str = "L'Étoile, la Marseillaise, la femme";

fn with_model(test: impl FnOnce(&Gguf<'_>)) {
    let Ok(path) = std::env::var("SUANLI_TEST_GGUF") else {
        println!("skipped: SUANLI_TEST_GGUF names no file of a model");
        return;
    };
    let bytes = std::fs::read(path).unwrap();
    test(&Gguf::parse(&bytes).unwrap());
}

#[test]
fn a_real_vocabulary_gives_the_tokens_of_others() {
    with_model(|file| {
        let tokenizer = Tokenizer::read(file).unwrap();
        for (text, tokens) in ENCODED {
            assert_eq!(tokenizer.encode(text).unwrap(), tokens, "{text:?}");
        }
        assert!(tokenizer.encode("<|im_start|>").unwrap().len() > 1);
        assert_eq!(tokenizer.encode_prompt("<|im_start|>").unwrap(), [1]);
    });
}

#[test]
fn a_real_model_answers_as_others_do() {
    with_model(|file| {
        let tokenizer = Tokenizer::read(file).unwrap();
        let chat = Chat::read(file, &tokenizer).unwrap();
        let message = Message::new(Role::User, QUESTION.to_owned());
        let prompt = chat.prompt(&tokenizer, &[message], &[], true).unwrap();
        let weights = Arc::new(Weights::new(&Llama::read(file).unwrap()));
        let options = EngineOptions {
            threads: 2,
            cache_bytes_max: 64 << 20,
        };
        let mut engine = Engine::new(weights, options).unwrap();
        let mut sampler = Sampler::new(SamplerOptions::GREEDY, [0; 32]).unwrap();
        let (mut stream, mut answer) = (TextStream::new(), String::new());
        let (mut tokens, mut position) = (prompt, 0);
        while answer.len() < ANSWER.len() {
            let steps = tokens.iter().zip(position..).map(|(token, position)| Step {
                sequence: SequenceId(1),
                token: *token,
                position,
                wants_logits: true,
            });
            let steps: Vec<Step> = steps.collect();
            let last = engine.forward(&steps).unwrap().rows().last().unwrap();
            let token = sampler.sample(last);
            answer.push_str(&stream.push(&tokenizer, token));
            position += u32::try_from(tokens.len()).unwrap();
            tokens = vec![token];
        }
        assert_eq!(answer, ANSWER);
    });
}
