//! Which tokens may come next in an answer that must have a form.
//!
//! ```text
//!  Form, Tools ─▶ Maker (a thread) ─▶ Grammar ─ allowed ─▶ sampler ─▶ token ─┐
//!                                        ▲───────────────── take ──────────────┘
//! ```
//!
//! A form is any JSON, JSON by a schema, or text in which calls of tools stand. A call is
//! written as the models of several families were trained to write it:
//!
//! ```text
//! <tool_call>
//! {"name": "weather", "arguments": {"city": "Yinchuan"}}
//! </tool_call>
//! ```
//!
//! Until a call is begun any text may come; from then on only what the tool's own schema
//! allows. [`super::writing`] reads the same form back.
//!
//! The crate `llguidance` does the work. A schema is a stranger's program, so its size and
//! what it may take are limited: who asks for too much is refused, and if a grammar turns out
//! too costly in the middle of an answer, only that answer ends. It is understood on a thread
//! of its own, so that others do not wait, with a stack that is deep enough for whatever a
//! schema of that size may refer to. What is allowed depends on the tokens before only, so an
//! answer goes on elsewhere by giving them in again.
//!
//! Absent: grammars that people write themselves.

use std::{
    fmt::Debug,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::Duration,
};

use llguidance::{
    Matcher, ParserFactory,
    api::{ParserLimits, TopLevelGrammar},
    toktrie::{ApproximateTokEnv, SimpleVob, TokEnv, TokRxInfo, TokTrie},
};
use serde_json::{Map, Value, json};

use super::tokenizer::{TokenKind, Tokenizer};
use crate::{
    ipc::model::{Form, Tools, Use},
    limits::{
        ASKS_MAX, GRAMMAR_BYTES_MAX, GRAMMAR_FUEL, GRAMMAR_LEXER_STATES_MAX, GRAMMAR_SIZE_MAX,
        GRAMMAR_STACK_BYTES, GRAMMAR_STEP_FUEL, GRAMMAR_STEP_ITEMS_MAX,
    },
};

/// What begins a call.
pub(super) const CALL_BEGINS: &str = "<tool_call>";
/// What stands between that and the name,
pub(super) const CALL_NAME: &str = "\n{\"name\": \"";
/// between the name and the arguments,
pub(super) const CALL_ARGUMENTS: &str = "\", \"arguments\": ";
/// and after the arguments.
pub(super) const CALL_ENDS: &str = "}\n</tool_call>";

/// Any text, in rules.
const TEXT: &str = "TEXT: /(.|\\n)*/\n";
/// Begins the name of a control token: no text has this byte.
const CONTROL: u8 = 0xff;

/// Why there is no grammar, or no next token by it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GrammarError {
    /// Its text is no JSON, or not of the kind that is wanted.
    #[error("{0}")]
    Wrong(String),
    /// The schema can't be used.
    #[error("the schema can't be used here: {0}")]
    Schema(String),
    /// It is too long.
    #[error("schemas and tools have {0} bytes, and at most {GRAMMAR_BYTES_MAX} are read")]
    TooLong(usize),
    /// The vocabulary does not go with grammars.
    #[error("this model's vocabulary can't be held to a form; ask without one")]
    Vocabulary,
    /// It takes too long, or no token fits.
    #[error("the answer can't be held to its form any longer: {0}")]
    Stuck(String),
}

/// Makes grammars beside everything else. Dropping it ends its thread.
#[derive(Debug)]
pub struct Maker {
    orders: SyncSender<Wanted>,
    made: Receiver<Made>,
}

/// A grammar that is wanted.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// For which answer.
    pub number: u64,
    /// What the answer must be.
    pub form: Form,
    /// What may be called in it.
    pub tools: Option<Tools>,
    /// What it has already.
    pub begun: Vec<u32>,
}

/// A grammar that is made.
#[derive(Debug)]
pub struct Made {
    /// For which answer.
    pub number: u64,
    /// The grammar.
    pub grammar: Result<Grammar, GrammarError>,
}

impl Maker {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// If the system gives none.
    pub fn start(tokenizer: &Tokenizer) -> std::io::Result<Self> {
        let (orders, wanted) = sync_channel::<Wanted>(ASKS_MAX);
        let (makes, made) = sync_channel(ASKS_MAX);
        let tokenizer = tokenizer.clone();
        let work = move || {
            let grammars = Grammars::new(&tokenizer);
            for Wanted {
                number,
                form,
                tools,
                begun,
            } in wanted
            {
                let grammar = match &grammars {
                    Ok(grammars) => grammars.make(&form, tools.as_ref(), &begun),
                    Err(error) => Err(error.clone()),
                };
                if makes.send(Made { number, grammar }).is_err() {
                    return;
                }
            }
        };
        std::thread::Builder::new()
            .name("grammars".to_owned())
            .stack_size(GRAMMAR_STACK_BYTES)
            .spawn(work)?;
        Ok(Self { orders, made })
    }

    /// Orders a grammar; false if it has too much to do.
    pub fn order(&self, wanted: Wanted) -> bool {
        self.orders.try_send(wanted).is_ok()
    }

    /// The next that is made, if one comes so soon.
    pub fn made(&self, within: Duration) -> Option<Made> {
        self.made.recv_timeout(within).ok()
    }
}

/// Makes grammars for one vocabulary.
pub struct Grammars {
    factory: ParserFactory,
    ending: Vec<u32>,
}

impl Debug for Grammars {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grammars").finish_non_exhaustive()
    }
}

/// A form, and how far an answer has come in it.
pub struct Grammar {
    matcher: Matcher,
    /// What ends an answer: all of these, where one of them may come.
    ending: Vec<u32>,
}

impl Debug for Grammar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grammar").finish_non_exhaustive()
    }
}

/// Tokens that may come.
#[derive(Debug)]
pub struct Allowed(SimpleVob);

impl Grammars {
    /// Arranges a vocabulary.
    ///
    /// # Errors
    ///
    /// [`GrammarError::Vocabulary`].
    pub fn new(tokenizer: &Tokenizer) -> Result<Self, GrammarError> {
        // The crate holds some of what it is given for certain; a vocabulary is a stranger's.
        let made = catch_unwind(AssertUnwindSafe(|| factory(tokenizer)));
        let factory = made.ok().flatten().ok_or(GrammarError::Vocabulary)?;
        Ok(Self {
            factory,
            ending: tokenizer.ending().to_vec(),
        })
    }

    /// The grammar of an answer that has some tokens already.
    ///
    /// # Errors
    ///
    /// What is wrong with the form or the tools, or with these tokens.
    pub fn make(
        &self,
        form: &Form,
        tools: Option<&Tools>,
        begun: &[u32],
    ) -> Result<Grammar, GrammarError> {
        let mut grammar = self.compile(rules(form, tools)?)?;
        for token in begun {
            grammar.take(*token)?;
        }
        Ok(grammar)
    }

    fn compile(&self, rules: String) -> Result<Grammar, GrammarError> {
        let grammar = TopLevelGrammar::from_lark(rules);
        let made = catch_unwind(AssertUnwindSafe(|| self.factory.create_parser(grammar)));
        let parser = made
            .map_err(|_| GrammarError::Schema("it is not understood".to_owned()))?
            .map_err(|error| GrammarError::Schema(first_line(&error.to_string())))?;
        let matcher = Matcher::new(Ok(parser));
        match matcher.get_error() {
            Some(error) => Err(GrammarError::Schema(first_line(&error))),
            None => Ok(Grammar {
                matcher,
                ending: self.ending.clone(),
            }),
        }
    }
}

impl Grammar {
    /// What may come next.
    ///
    /// # Errors
    ///
    /// [`GrammarError::Stuck`]: the answer can't go on.
    pub fn allowed(&mut self) -> Result<Allowed, GrammarError> {
        let mut allowed = self.matcher.compute_mask_or_eos().map_err(stuck)?;
        if self.ending.iter().any(|end| allowed.is_allowed(*end)) {
            for end in &self.ending {
                allowed.allow_token(*end);
            }
        }
        match allowed.is_zero() {
            true => Err(GrammarError::Stuck("no token fits".to_owned())),
            false => Ok(Allowed(allowed)),
        }
    }

    /// What came.
    ///
    /// # Errors
    ///
    /// [`GrammarError::Stuck`]: it may not.
    pub fn take(&mut self, token: u32) -> Result<(), GrammarError> {
        self.matcher.consume_token(token).map_err(stuck)
    }

    /// Whether the answer is whole, and nothing may follow.
    pub fn is_over(&self) -> bool {
        self.matcher.is_stopped()
    }
}

impl Allowed {
    /// Leaves only the logits of what may come.
    pub fn apply(&self, logits: &mut [f32]) {
        for (token, logit) in (0..).zip(logits) {
            if !self.0.is_allowed(token) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
}

fn stuck(error: impl ToString) -> GrammarError {
    GrammarError::Stuck(first_line(&error.to_string()))
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

fn factory(tokenizer: &Tokenizer) -> Option<ParserFactory> {
    let count = u32::try_from(tokenizer.vocabulary()).ok()?;
    let words: Vec<Vec<u8>> = (0..count)
        .map(|token| match tokenizer.kind(token) {
            Some(TokenKind::Control) => [&[CONTROL], tokenizer.bytes(token)].concat(),
            // A text that begins like a control token is not let pass for one.
            _ if tokenizer.bytes(token).first() == Some(&CONTROL) => Vec::new(),
            _ => tokenizer.bytes(token).to_vec(),
        })
        .collect();
    let end = tokenizer.ending().first()?;
    let trie = TokTrie::from(&TokRxInfo::new(count, *end), &words);
    let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
    let mut factory = ParserFactory::new_simple(&env).ok()?;
    factory.quiet();
    *factory.limits_mut() = ParserLimits {
        initial_lexer_fuel: GRAMMAR_FUEL,
        step_lexer_fuel: GRAMMAR_STEP_FUEL,
        step_max_items: GRAMMAR_STEP_ITEMS_MAX,
        max_lexer_states: GRAMMAR_LEXER_STATES_MAX,
        max_grammar_size: GRAMMAR_SIZE_MAX,
        precompute_large_lexemes: false,
        verbose_errors: false,
        ..ParserLimits::default()
    };
    Some(factory)
}

/// What an answer must be, in the crate's own form.
fn rules(form: &Form, tools: Option<&Tools>) -> Result<String, GrammarError> {
    let schema = schema(form)?;
    let Some(tools) = tools else {
        return Ok(match schema {
            Some(schema) => format!("start: %json {schema}\n"),
            None => format!("start: TEXT\n{TEXT}"),
        });
    };
    let calls = calls(tools)?;
    let names: Vec<String> = (0..calls.len()).map(|n| format!("call_{n}")).collect();
    let any = names.join(" | ");
    let more = if tools.only_one {
        String::new()
    } else {
        "( \"\\n\"? CALL call )*".replace("CALL", &quoted(CALL_BEGINS))
    };
    let must = format!("{} call {more}", quoted(CALL_BEGINS));
    let (start, rest) = match (&tools.usage, schema) {
        (Use::Must | Use::This(_), _) => (must, String::new()),
        (Use::May, Some(schema)) => (format!("{must} | %json {schema}"), String::new()),
        (Use::May, None) => {
            let times = if tools.only_one { "?" } else { "*" };
            let begins = quoted(CALL_BEGINS);
            (
                format!("( begun call ){times} TEXT"),
                format!("begun[lazy]: TEXT {begins}\n{TEXT}"),
            )
        }
    };
    let mut rules = format!("start: {start}\ncall: {any}\n{rest}");
    for (name, call) in names.iter().zip(calls) {
        rules.push_str(&format!("{name}: {call}\n"));
    }
    Ok(rules)
}

/// The rule of a call of each tool that may be called.
fn calls(tools: &Tools) -> Result<Vec<String>, GrammarError> {
    let all = functions(tools)?;
    let wanted = |function: &Function| match &tools.usage {
        Use::This(name) => function.name == **name,
        Use::May | Use::Must => true,
    };
    let calls: Vec<String> = all
        .into_iter()
        .filter(wanted)
        .map(|function| {
            let before = quoted(&[CALL_NAME, &function.name, CALL_ARGUMENTS].concat());
            let arguments = options(function.parameters, ", ", ": ", function.is_strict);
            format!("{before} %json {arguments} {}", quoted(CALL_ENDS))
        })
        .collect();
    match (calls.is_empty(), &tools.usage) {
        (true, Use::This(name)) => {
            let wrong = format!("there is no tool {:?} among `tools`", &**name);
            Err(GrammarError::Wrong(wrong))
        }
        (true, Use::May | Use::Must) => Err(GrammarError::Wrong("`tools` is empty".to_owned())),
        (false, _) => Ok(calls),
    }
}

/// A tool, as it is described.
struct Function {
    name: String,
    parameters: Map<String, Value>,
    is_strict: bool,
}

fn functions(tools: &Tools) -> Result<Vec<Function>, GrammarError> {
    bounded(&tools.functions)?;
    let wrong = |what: &str| GrammarError::Wrong(format!("`tools`: {what}"));
    let all: Vec<Value> =
        serde_json::from_str(&tools.functions).map_err(|_| wrong("it is a list of functions"))?;
    let function = |tool: Value| {
        let function = &tool["function"];
        let name = function["name"].as_str();
        let name = name.filter(|name| is_name(name)).ok_or_else(|| {
            wrong("a function's name has 1 to 64 letters, digits, `_`, `-` and `.`")
        })?;
        let parameters = match &function["parameters"] {
            Value::Null => Map::new(),
            Value::Object(parameters) => parameters.clone(),
            _ => return Err(wrong("`parameters` is a JSON schema, which is an object")),
        };
        Ok(Function {
            name: name.to_owned(),
            parameters: an_object(parameters),
            is_strict: function["strict"].as_bool().unwrap_or(false),
        })
    };
    all.into_iter().map(function).collect()
}

/// Whether that can be a tool's name.
pub(super) fn is_name(name: &str) -> bool {
    let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    (1..=64).contains(&name.len()) && name.bytes().all(is_letter)
}

/// Arguments are an object, whatever their schema leaves open.
fn an_object(mut schema: Map<String, Value>) -> Map<String, Value> {
    if !schema.contains_key("type") {
        schema.insert("type".to_owned(), "object".into());
    }
    schema
}

/// The schema of an answer; none if it may be any text.
fn schema(form: &Form) -> Result<Option<Value>, GrammarError> {
    let (schema, is_strict) = match form {
        Form::Any => return Ok(None),
        Form::Json => (json!({ "type": "object" }), true),
        Form::Schema { schema, is_strict } => {
            bounded(schema)?;
            let schema = serde_json::from_str(schema)
                .map_err(|error| GrammarError::Wrong(format!("the schema is no JSON: {error}")))?;
            (schema, *is_strict)
        }
    };
    match schema {
        Value::Object(schema) => Ok(Some(options(schema, ", ", ": ", is_strict))),
        _ => Err(GrammarError::Wrong("a JSON schema is an object".to_owned())),
    }
}

/// A schema, and how what follows it is written: without room for endless white space,
/// which small models fall into.
fn options(mut schema: Map<String, Value>, item: &str, key: &str, is_strict: bool) -> Value {
    let options = json!({
        "item_separator": item,
        "key_separator": key,
        "whitespace_flexible": false,
        "lenient": !is_strict,
    });
    schema.insert("x-guidance".to_owned(), options);
    Value::Object(schema)
}

fn bounded(text: &str) -> Result<(), GrammarError> {
    match text.len() {
        length if length > GRAMMAR_BYTES_MAX => Err(GrammarError::TooLong(length)),
        _ => Ok(()),
    }
}

/// A text, as it stands in rules.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}
