//! An answer's text as it becomes certain.
//!
//! ```text
//!  tokens ─▶ whole characters ─▶ text ──────────▶ Piece::Text
//!                 │   "<tool_call>" ▼     ▲ "</tool_call>"
//!                 │                call ──┴─────▶ Piece::Call, Piece::Arguments …
//!                 └─ a stop ─▶ over
//! ```
//!
//! What may yet turn out to be the beginning of something else is held back: of a text
//! before which the answer ends, of a call, of a call's end. A call has the form that
//! [`super::grammar`] lets it have, so that it is cut at fixed texts and no JSON is read.
//!
//! Absent: tokens that end an answer.

use super::{
    grammar::{CALL_ARGUMENTS, CALL_BEGINS, CALL_ENDS, CALL_NAME},
    tokenizer::{TextStream, Tokenizer},
};

/// Something that has become certain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Text for who asked.
    Text(String),
    /// A call of a tool begins.
    Call {
        /// How many were before it.
        index: u32,
        /// The tool's name.
        name: String,
    },
    /// JSON of the arguments of a call.
    Arguments {
        /// How many were before it.
        call: u32,
        /// The JSON.
        text: String,
    },
}

/// Makes pieces of tokens.
#[derive(Debug)]
pub struct Writing {
    stream: TextStream,
    held: String,
    stops: Vec<String>,
    place: Place,
    calls: Calls,
    /// Whether there was any text.
    has_text: bool,
    /// Calls that were begun.
    begun: u32,
    is_over: bool,
}

/// Where calls are cut out of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Calls {
    /// Nowhere.
    None,
    /// Wherever they are.
    Anywhere,
    /// Only where no text was before.
    First,
}

/// Where in an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Text,
    /// Between a call and text: white space is neither's.
    Between,
    /// After the beginning of a call, before its arguments.
    Name,
    Arguments,
}

impl Writing {
    /// Nothing yet. It ends before the first of `stops` that stands in its text.
    pub fn new(stops: impl Iterator<Item = String>, calls: Calls) -> Self {
        Self {
            stream: TextStream::new(),
            held: String::new(),
            stops: stops.filter(|stop| !stop.is_empty()).collect(),
            place: Place::Text,
            calls,
            has_text: false,
            begun: 0,
            is_over: false,
        }
    }

    /// Whether a text came before which it ends.
    pub const fn is_over(&self) -> bool {
        self.is_over
    }

    /// Ends it.
    pub const fn end(&mut self) {
        self.is_over = true;
    }

    /// Calls that were begun.
    pub const fn calls(&self) -> u32 {
        self.begun
    }

    /// What is certain with this token.
    pub fn push(&mut self, tokenizer: &Tokenizer, token: u32) -> Vec<Piece> {
        if self.is_over {
            return Vec::new();
        }
        let text = self.stream.push(tokenizer, token);
        self.held.push_str(&text);
        let mut pieces = Vec::new();
        while !self.is_over && self.cut(&mut pieces) {}
        pieces
    }

    /// What is left when no more tokens come.
    pub fn finish(mut self) -> Vec<Piece> {
        if !self.is_over {
            let stream = std::mem::take(&mut self.stream);
            self.held.push_str(&stream.finish());
        }
        let rest = std::mem::take(&mut self.held);
        let piece = match self.place {
            Place::Text => Piece::Text(rest),
            Place::Between => Piece::Text(rest.trim_start().to_owned()),
            // A call that has no name yet is only text.
            Place::Name => Piece::Text([CALL_BEGINS, &rest].concat()),
            Place::Arguments => self.arguments(rest),
        };
        Vec::from_iter(Some(piece).filter(|piece| !piece.is_empty()))
    }

    /// Goes on by a step; false if more must come first.
    fn cut(&mut self, pieces: &mut Vec<Piece>) -> bool {
        match self.place {
            Place::Between => {
                let text = self.held.trim_start().len();
                self.held.drain(..self.held.len() - text);
                if !self.held.is_empty() {
                    self.place = Place::Text;
                }
                !self.held.is_empty()
            }
            Place::Text => self.cut_text(pieces),
            Place::Name => {
                let Some(at) = self.held.find(CALL_ARGUMENTS) else {
                    return false;
                };
                let head = self.take(at, CALL_ARGUMENTS);
                let name = head.strip_prefix(CALL_NAME).unwrap_or(&head).to_owned();
                pieces.push(Piece::Call {
                    index: self.begun,
                    name,
                });
                self.begun = self.begun.saturating_add(1);
                self.place = Place::Arguments;
                true
            }
            Place::Arguments => match self.held.find(CALL_ENDS) {
                Some(at) => {
                    let rest = self.take(at, CALL_ENDS);
                    push(pieces, self.arguments(rest));
                    self.place = Place::Between;
                    true
                }
                None => {
                    let certain = self.certain([CALL_ENDS].into_iter());
                    push(pieces, self.arguments(certain));
                    false
                }
            },
        }
    }

    /// JSON of the call that was begun last.
    const fn arguments(&self, text: String) -> Piece {
        let call = self.begun.saturating_sub(1);
        Piece::Arguments { call, text }
    }

    fn cut_text(&mut self, pieces: &mut Vec<Piece>) -> bool {
        let stops = self.stops.iter().map(String::as_str);
        let stop = stops.filter_map(|stop| self.held.find(stop)).min();
        let call = self.held.find(CALL_BEGINS).filter(|at| match self.calls {
            Calls::None => false,
            Calls::Anywhere => true,
            Calls::First => *at == 0 && !self.has_text,
        });
        match (stop, call) {
            (Some(at), call) if call.is_none_or(|call| at <= call) => {
                self.is_over = true;
                self.held.truncate(at);
                push(pieces, Piece::Text(std::mem::take(&mut self.held)));
                false
            }
            (_, Some(at)) => {
                let text = self.take(at, CALL_BEGINS);
                push(pieces, Piece::Text(text));
                self.place = Place::Name;
                true
            }
            (_, None) => {
                let stops = self.stops.clone();
                let call = Some(CALL_BEGINS).filter(|call| match self.calls {
                    Calls::None => false,
                    Calls::Anywhere => true,
                    Calls::First => !self.has_text && call.starts_with(&self.held),
                });
                let certain = self.certain(stops.iter().map(String::as_str).chain(call));
                self.has_text |= !certain.is_empty();
                push(pieces, Piece::Text(certain));
                false
            }
        }
    }

    /// What is held before a place; what stands there is dropped.
    fn take(&mut self, at: usize, what: &str) -> String {
        let rest = self.held.split_off(at + what.len());
        let mut before = std::mem::replace(&mut self.held, rest);
        before.truncate(at);
        before
    }

    /// What is held but for what may be the beginning of one of these.
    fn certain<'a>(&mut self, wholes: impl Iterator<Item = &'a str>) -> String {
        let kept = wholes.map(|whole| begun(&self.held, whole)).max();
        let certain = self.held.len() - kept.unwrap_or(0);
        let rest = self.held.split_off(certain);
        std::mem::replace(&mut self.held, rest)
    }
}

impl Piece {
    const fn is_empty(&self) -> bool {
        match self {
            Self::Text(text) | Self::Arguments { text, .. } => text.is_empty(),
            Self::Call { .. } => false,
        }
    }
}

fn push(pieces: &mut Vec<Piece>, piece: Piece) {
    if !piece.is_empty() {
        pieces.push(piece);
    }
}

/// How many bytes at the end of a text are a beginning of another.
fn begun(text: &str, whole: &str) -> usize {
    let lengths = (1..whole.len().min(text.len() + 1)).rev();
    let is_begun = |length: &usize| text.as_bytes().ends_with(&whole.as_bytes()[..*length]);
    // What begins a text at a character's border ends one there too.
    lengths.into_iter().find(is_begun).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        gguf::Gguf,
        testing::{Writer, vocabulary},
    };

    /// All pieces of a text that comes in bytes, joined where they belong together.
    fn pieces(text: &str, stops: &[&str], calls: Calls) -> Vec<Piece> {
        let mut file = Writer::default();
        vocabulary(&mut file);
        let bytes = file.file();
        let tokenizer = Tokenizer::read(&Gguf::parse(&bytes).unwrap()).unwrap();
        let stops = stops.iter().map(|stop| (*stop).to_owned());
        let mut writing = Writing::new(stops, calls);
        let mut all: Vec<Piece> = Vec::new();
        let bytes = text.bytes().map(|byte| 3 + u32::from(byte));
        let mut heard: Vec<Piece> = bytes
            .flat_map(|token| writing.push(&tokenizer, token))
            .collect();
        heard.extend(writing.finish());
        for piece in heard {
            match (all.last_mut(), piece) {
                (Some(Piece::Text(before)), Piece::Text(text))
                | (Some(Piece::Arguments { text: before, .. }), Piece::Arguments { text, .. }) => {
                    before.push_str(&text);
                }
                (_, piece) => all.push(piece),
            }
        }
        all
    }

    fn text(text: &str) -> Piece {
        Piece::Text(text.to_owned())
    }

    fn call(index: u32, name: &str, arguments: &str) -> [Piece; 2] {
        let name = name.to_owned();
        let text = arguments.to_owned();
        let arguments = Piece::Arguments { call: index, text };
        [Piece::Call { index, name }, arguments]
    }

    #[test]
    fn calls_are_cut_out_of_the_text() {
        let written = "Let me see.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": \
                       {\"city\": \"<tool_call>}\"}}\n</tool_call>\n<tool_call>\n{\"name\": \
                       \"time\", \"arguments\": {}}\n</tool_call>\n ";
        let first = call(0, "weather", "{\"city\": \"<tool_call>}\"}");
        let second = call(1, "time", "{}");
        let wanted: Vec<Piece> = [text("Let me see.\n")]
            .into_iter()
            .chain(first)
            .chain(second)
            .collect();
        assert_eq!(pieces(written, &[], Calls::Anywhere), wanted);
        assert_eq!(pieces(written, &[], Calls::None), [text(written)]);
    }

    #[test]
    fn a_text_in_json_is_no_call() {
        let json = "{\"a\": \"<tool_call>\\n{\"}";
        assert_eq!(pieces(json, &[], Calls::First), [text(json)]);
        let called = "<tool_call>\n{\"name\": \"f\", \"arguments\": 1}\n</tool_call>\
                      <tool_call>\n{\"name\": \"g\", \"arguments\": 2}\n</tool_call>";
        let both: Vec<Piece> = call(0, "f", "1")
            .into_iter()
            .chain(call(1, "g", "2"))
            .collect();
        assert_eq!(pieces(called, &[], Calls::First), both);
    }

    #[test]
    fn a_call_that_breaks_off_is_not_lost() {
        assert_eq!(
            pieces("a <tool_call>\n{\"na", &[], Calls::Anywhere),
            [text("a <tool_call>\n{\"na")]
        );
        let begun = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": {}}\n";
        assert_eq!(
            pieces(begun, &[], Calls::Anywhere),
            call(0, "f", "{\"x\": {}}\n")
        );
        assert_eq!(
            pieces("<tool_cal", &[], Calls::Anywhere),
            [text("<tool_cal")]
        );
    }

    #[test]
    fn stops_end_text_and_not_arguments() {
        assert_eq!(pieces("one, two", &[","], Calls::Anywhere), [text("one")]);
        let stopped = "<tool_call>\n{\"name\": \"f\", \"arguments\": [1, 2]}\n</tool_call>x, y";
        let [begins, arguments] = call(0, "f", "[1, 2]");
        assert_eq!(
            pieces(stopped, &[","], Calls::Anywhere),
            [begins, arguments, text("x")]
        );
        let before = "a STOP <tool_call>";
        assert_eq!(pieces(before, &["STOP"], Calls::Anywhere), [text("a ")]);
    }

    #[test]
    fn text_is_held_back_while_it_may_be_a_stop() {
        assert_eq!(begun("some <|", "<|end|>"), 2);
        assert_eq!(begun("aab", "aabaabaac"), 3);
        assert_eq!(begun("abc", "x"), 0);
        assert_eq!(begun("é", "éa"), 2);
    }
}
