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
//! schema of that size may refer to; if even so it takes too long, the thread is left to
//! itself. What is allowed depends on the tokens before only, so an answer goes on elsewhere
//! by giving them in again.
//!
//! Absent: grammars that people write themselves.

use std::{
    fmt::Debug,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
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
        FORMS_MAX, GRAMMAR_BYTES_MAX, GRAMMAR_FUEL, GRAMMAR_ITEMS_MAX, GRAMMAR_LEXER_STATES_MAX,
        GRAMMAR_PATTERNS_MAX, GRAMMAR_SIZE_MAX, GRAMMAR_STACK_BYTES, GRAMMAR_STEP_FUEL,
        GRAMMAR_STEP_ITEMS_MAX, GRAMMAR_THREADS_MAX, GRAMMAR_TIME_MAX, GRAMMAR_TOKEN_BYTES_MAX,
        GRAMMAR_VOCABULARY_BYTES_MAX,
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

/// Tokens that are taken without a look at what may come.
const FEW: usize = 32;
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
    /// It has too many patterns for names.
    #[error(
        "the schema has {0} names in `patternProperties`, and at most {GRAMMAR_PATTERNS_MAX} are read"
    )]
    Patterns(usize),
    /// It takes too long, or others did.
    #[error("the schema takes too long to understand; ask for a simpler one")]
    TooSlow,
    /// There is no thread for it.
    #[error("answers of a form can't be given now; ask again later")]
    NoThread,
    /// The vocabulary does not go with grammars.
    #[error("this model's vocabulary can't be held to a form; ask without one")]
    Vocabulary,
    /// It takes too long, or no token fits.
    #[error("the answer can't be held to its form any longer: {0}")]
    Stuck(String),
}

/// Makes grammars beside everything else.
#[derive(Debug)]
pub struct Maker {
    tokenizer: Tokenizer,
    /// The thread that works; none until one is needed.
    works: Option<Works>,
    /// Those that were given up.
    left: Vec<JoinHandle<()>>,
}

/// A thread that makes grammars, one after the other. It ends with this.
#[derive(Debug)]
struct Works {
    orders: SyncSender<Wanted>,
    made: Receiver<Made>,
    thread: JoinHandle<()>,
    /// What was ordered and is not made, the first first.
    open: Vec<u64>,
    /// Since when the first is being made.
    since: Instant,
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
    /// Nobody wants it any more.
    pub is_left: Arc<AtomicBool>,
}

/// A grammar that is made.
#[derive(Debug)]
pub struct Made {
    /// For which answer.
    pub number: u64,
    /// The grammar.
    pub grammar: Result<Grammar, GrammarError>,
}

impl Made {
    const fn failed(number: u64, error: GrammarError) -> Self {
        let grammar = Err(error);
        Self { number, grammar }
    }
}

impl Maker {
    /// For one vocabulary. No thread is started before the first order.
    pub const fn new(tokenizer: Tokenizer) -> Self {
        Self {
            tokenizer,
            works: None,
            left: Vec::new(),
        }
    }

    /// Orders a grammar. No more may be open than [`FORMS_MAX`].
    ///
    /// # Errors
    ///
    /// [`GrammarError::NoThread`].
    pub fn order(&mut self, wanted: Wanted) -> Result<(), GrammarError> {
        let works = match &mut self.works {
            Some(works) => works,
            none => {
                self.left.retain(|thread| !thread.is_finished());
                if self.left.len() >= GRAMMAR_THREADS_MAX {
                    return Err(GrammarError::NoThread);
                }
                let works = Works::start(self.tokenizer.clone());
                none.insert(works.map_err(|_| GrammarError::NoThread)?)
            }
        };
        let number = wanted.number;
        let ordered = works.orders.try_send(wanted);
        ordered.map_err(|_| GrammarError::NoThread)?;
        if works.open.is_empty() {
            works.since = Instant::now();
        }
        works.open.push(number);
        Ok(())
    }

    /// What is made, if something is within that time.
    pub fn made(&mut self, within: Duration) -> Vec<Made> {
        let Some(works) = &mut self.works else {
            return Vec::new();
        };
        match works.made.recv_timeout(within) {
            Ok(made) => {
                works.open.retain(|number| *number != made.number);
                works.since = Instant::now();
                vec![made]
            }
            Err(RecvTimeoutError::Timeout)
                if works.open.is_empty() || works.since.elapsed() < GRAMMAR_TIME_MAX =>
            {
                Vec::new()
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => self.give_up(),
        }
    }

    /// The thread does not come to an end, or has come to one: who waits for it is refused.
    fn give_up(&mut self) -> Vec<Made> {
        let Some(works) = self.works.take() else {
            return Vec::new();
        };
        self.left.push(works.thread);
        let mut open = works.open.into_iter();
        let first = open
            .next()
            .map(|number| Made::failed(number, GrammarError::TooSlow));
        let others = open.map(|number| Made::failed(number, GrammarError::NoThread));
        first.into_iter().chain(others).collect()
    }
}

impl Works {
    fn start(tokenizer: Tokenizer) -> std::io::Result<Self> {
        let (orders, wanted) = sync_channel::<Wanted>(FORMS_MAX);
        let (makes, made) = sync_channel(FORMS_MAX);
        let work = move || {
            let grammars = Grammars::new(&tokenizer);
            for wanted in wanted {
                let number = wanted.number;
                let grammar = match &grammars {
                    _ if wanted.is_left.load(Ordering::Relaxed) => Err(GrammarError::NoThread),
                    Ok(grammars) => {
                        grammars.make(&wanted.form, wanted.tools.as_ref(), &wanted.begun)
                    }
                    Err(error) => Err(error.clone()),
                };
                if makes.send(Made { number, grammar }).is_err() {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("grammars".to_owned())
            .stack_size(GRAMMAR_STACK_BYTES)
            .spawn(work)?;
        Ok(Self {
            orders,
            made,
            thread,
            open: Vec::new(),
            since: Instant::now(),
        })
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
        let factory = factory(tokenizer).ok_or(GrammarError::Vocabulary)?;
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
        for some in begun.chunks(FEW) {
            // This is where the crate looks at its limits.
            grammar.allowed()?;
            for token in some {
                grammar.take(*token)?;
            }
        }
        Ok(grammar)
    }

    fn compile(&self, rules: String) -> Result<Grammar, GrammarError> {
        let grammar = TopLevelGrammar::from_lark(rules);
        // The crate gives a panic out as an error, but not of all that it does.
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
        // There may be more logits than tokens.
        let count = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        for (token, logit) in (0..).zip(logits) {
            if token >= count || !self.0.is_allowed(token) {
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
    // The crate holds these for certain, and ends the process if they are not so.
    let lengths = (0..count).map(|token| tokenizer.bytes(token).len());
    let are_fine = lengths
        .clone()
        .all(|length| length <= GRAMMAR_TOKEN_BYTES_MAX)
        && lengths.sum::<usize>() <= GRAMMAR_VOCABULARY_BYTES_MAX;
    if !are_fine {
        return None;
    }
    let mut words: Vec<Vec<u8>> = (0..count)
        .map(|token| match tokenizer.kind(token) {
            // What ends an answer is no text, whatever the file says.
            _ if tokenizer.is_end(token) => [&[CONTROL], tokenizer.bytes(token)].concat(),
            Some(TokenKind::Control) => [&[CONTROL], tokenizer.bytes(token)].concat(),
            // A text that begins like a control token is not let pass for one.
            _ if tokenizer.bytes(token).first() == Some(&CONTROL) => Vec::new(),
            _ => tokenizer.bytes(token).to_vec(),
        })
        .collect();
    // One that no model has stands for the end of answers, where the file names none.
    words.push([&[CONTROL], b"<end>".as_slice()].concat());
    let end = tokenizer.ending().first().copied().unwrap_or(count);
    let trie = TokTrie::from(&TokRxInfo::new(count + 1, end), &words);
    let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
    let mut factory = ParserFactory::new_simple(&env).ok()?;
    factory.quiet();
    *factory.limits_mut() = ParserLimits {
        initial_lexer_fuel: GRAMMAR_FUEL,
        step_lexer_fuel: GRAMMAR_STEP_FUEL,
        step_max_items: GRAMMAR_STEP_ITEMS_MAX,
        max_items_in_row: GRAMMAR_ITEMS_MAX,
        max_lexer_states: GRAMMAR_LEXER_STATES_MAX,
        max_grammar_size: GRAMMAR_SIZE_MAX,
        precompute_large_lexemes: false,
        verbose_errors: false,
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
            let start = match tools.only_one {
                true => "TEXT | begun call",
                false => "( begun call )* TEXT",
            };
            let begins = quoted(CALL_BEGINS);
            (
                start.to_owned(),
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
    few_patterns(all.iter())?;
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
    few_patterns(std::iter::once(&schema))?;
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

/// Counts the patterns that stand for names of properties, in all of some schemas.
fn few_patterns<'a>(schemas: impl Iterator<Item = &'a Value>) -> Result<(), GrammarError> {
    fn count(value: &Value) -> usize {
        match value {
            Value::Object(all) => {
                let own = all.get("patternProperties").and_then(Value::as_object);
                own.map_or(0, Map::len) + all.values().map(count).sum::<usize>()
            }
            Value::Array(all) => all.iter().map(count).sum(),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 0,
        }
    }
    match schemas.map(count).sum() {
        count if count > GRAMMAR_PATTERNS_MAX => Err(GrammarError::Patterns(count)),
        _ => Ok(()),
    }
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

#[cfg(test)]
mod tests {
    use suanli_protocol::wire::Utf8;

    use super::*;
    use crate::model::{
        gguf::Gguf,
        testing::{VOCABULARY, Writer, vocabulary},
    };

    const END: u32 = 2;

    fn tokenizer() -> Tokenizer {
        let mut file = Writer::default();
        vocabulary(&mut file);
        Tokenizer::read(&Gguf::parse(&file.file()).unwrap()).unwrap()
    }

    fn tools(usage: Use, only_one: bool) -> Tools {
        let functions = json!([
            { "type": "function", "function": { "name": "now" } },
            { "type": "function", "function": { "name": "add", "strict": true, "parameters": {
                "type": "object",
                "properties": { "a": { "type": "integer" } },
                "required": ["a"],
                "additionalProperties": false,
            } } },
        ]);
        Tools {
            functions: Utf8::cut(&functions.to_string()),
            usage,
            only_one,
        }
    }

    fn grammar(form: &Form, tools: Option<&Tools>) -> Result<Grammar, GrammarError> {
        Grammars::new(&tokenizer())?.make(form, tools, &[])
    }

    /// Takes a text byte by byte, each of which must be allowed.
    fn take(grammar: &mut Grammar, text: &str) -> Result<(), String> {
        for (at, byte) in text.bytes().enumerate() {
            let token = 3 + u32::from(byte);
            if !allows(grammar, token) {
                return Err(text[..at].to_owned());
            }
            grammar.take(token).unwrap();
        }
        Ok(())
    }

    fn allows(grammar: &mut Grammar, token: u32) -> bool {
        let mut logits = vec![0.0; VOCABULARY + 10];
        let Ok(allowed) = grammar.allowed() else {
            return false;
        };
        allowed.apply(&mut logits);
        assert!(logits[VOCABULARY..].iter().all(|logit| *logit < 0.0));
        logits[usize::try_from(token).unwrap()] == 0.0
    }

    const CALL: &str = "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 12}}\n</tool_call>";

    #[test]
    fn a_call_may_come_after_any_text_and_has_its_form_then() {
        let mut one = grammar(&Form::Any, Some(&tools(Use::May, true))).unwrap();
        assert_eq!(take(&mut one, "Let me see. <tool_"), Ok(()));
        assert!(allows(&mut one, END));
        assert_eq!(take(&mut one, &CALL["<tool_".len()..]), Ok(()));
        // After the only call there is nothing.
        assert!(one.is_over() || (allows(&mut one, END) && !allows(&mut one, 3 + 0x20)));
        let mut many = grammar(&Form::Any, Some(&tools(Use::May, false))).unwrap();
        assert_eq!(
            take(&mut many, &[CALL, "\n", CALL, "\nso."].concat()),
            Ok(())
        );
        assert!(allows(&mut many, END));
        for (wrong, right) in [
            ("<tool_call>{", "<tool_call>"),
            (
                "<tool_call>\n{\"name\": \"sub",
                "<tool_call>\n{\"name\": \"",
            ),
            (
                "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"b",
                "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"",
            ),
        ] {
            let mut begun = grammar(&Form::Any, Some(&tools(Use::May, true))).unwrap();
            assert_eq!(take(&mut begun, wrong), Err(right.to_owned()));
        }
    }

    #[test]
    fn calls_that_must_come_come_first() {
        let mut must = grammar(&Form::Any, Some(&tools(Use::Must, false))).unwrap();
        assert_eq!(take(&mut must, "x"), Err(String::new()));
        assert!(!allows(&mut must, END));
        assert_eq!(take(&mut must, &[CALL, "\n", CALL].concat()), Ok(()));
        assert!(allows(&mut must, END));
        let this = tools(Use::This(Utf8::cut("now")), true);
        let mut this = grammar(&Form::Any, Some(&this)).unwrap();
        assert_eq!(
            take(&mut this, CALL),
            Err("<tool_call>\n{\"name\": \"".to_owned())
        );
        // Beside a form, a call or the form.
        let either = || grammar(&Form::Json, Some(&tools(Use::May, true))).unwrap();
        assert_eq!(take(&mut either(), CALL), Ok(()));
        assert_eq!(take(&mut either(), "{\"<tool_call>\": 1}"), Ok(()));
        assert_eq!(take(&mut either(), "x"), Err(String::new()));
    }

    #[test]
    fn what_was_begun_is_taken_up() {
        let begun: Vec<u32> = CALL[..40].bytes().map(|byte| 3 + u32::from(byte)).collect();
        let grammars = Grammars::new(&tokenizer()).unwrap();
        let tools = tools(Use::Must, true);
        let mut grammar = grammars.make(&Form::Any, Some(&tools), &begun).unwrap();
        assert_eq!(take(&mut grammar, &CALL[40..]), Ok(()));
        let other = [3 + u32::from(b'x')];
        let refused = grammars.make(&Form::Any, Some(&tools), &other);
        assert!(matches!(refused, Err(GrammarError::Stuck(_))));
    }

    #[test]
    fn patterns_for_names_are_few() {
        let all: Vec<String> = (0..17).map(|n| format!("\"^{n}$\": {{}}")).collect();
        let schema = format!("{{ \"patternProperties\": {{ {} }} }}", all.join(", "));
        let schema = format!("{{ \"allOf\": [{schema}, true] }}");
        let form = Form::Schema {
            schema: Utf8::cut(&schema),
            is_strict: true,
        };
        assert_eq!(
            grammar(&form, None).unwrap_err(),
            GrammarError::Patterns(17)
        );
    }

    #[test]
    fn a_vocabulary_that_cannot_be_arranged_is_refused() {
        let mut file = Writer::default();
        vocabulary(&mut file);
        let mut texts: Vec<String> = (0..VOCABULARY).map(|n| format!("w{n}")).collect();
        texts[5] = "long".repeat(GRAMMAR_TOKEN_BYTES_MAX);
        file.texts("tokenizer.ggml.tokens", &texts)
            .texts("tokenizer.ggml.merges", &[]);
        let tokenizer = Tokenizer::read(&Gguf::parse(&file.file()).unwrap());
        if let Ok(tokenizer) = tokenizer {
            assert_eq!(
                Grammars::new(&tokenizer).unwrap_err(),
                GrammarError::Vocabulary
            );
        }
    }

    #[test]
    fn a_maker_gives_what_was_ordered_and_leaves_what_nobody_wants() {
        let mut maker = Maker::new(tokenizer());
        let wanted = |number, is_left| Wanted {
            number,
            form: Form::Json,
            tools: None,
            begun: Vec::new(),
            is_left: Arc::new(AtomicBool::new(is_left)),
        };
        assert!(maker.made(Duration::ZERO).is_empty());
        for (number, is_left) in [(1, false), (2, true)] {
            maker.order(wanted(number, is_left)).unwrap();
        }
        let mut made = Vec::new();
        while made.len() < 2 {
            made.extend(maker.made(Duration::from_secs(1)));
        }
        assert_eq!((made[0].number, made[0].grammar.is_ok()), (1, true));
        assert_eq!((made[1].number, made[1].grammar.is_ok()), (2, false));
    }
}
