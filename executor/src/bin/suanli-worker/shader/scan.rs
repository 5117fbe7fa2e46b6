//! A look at a source's tokens, before a parser that recurses sees it.
//!
//! The parser, and what follows it, goes one call deeper for each operator,
//! bracket, template list and `else if` that another stands in, and has no
//! bound of its own for most of them. This counts them on the way, in one pass
//! and with no recursion: at each place how deep the parser can be there at
//! most. Comments end where the parser ends them; in doubt (is this `<` a
//! comparison?) the larger number counts. What names stand for is the business of
//! [`super::names`], which sees the same tokens.
//!
//! Absent: grammar. What this passes may be no WGSL at all.

use std::{iter::Peekable, str::CharIndices};

use suanli_executor::limits::{DECLARATIONS_MAX, NESTING_MAX, TOKENS_MAX};

use super::names::Names;

/// Refuses sources that would cost the parser its stack, or too much time.
pub(super) fn scan(source: &str) -> Result<(), String> {
    let mut scan = Scan {
        source,
        rest: source.char_indices().peekable(),
        line: 1,
        tokens: 0,
        declarations: 0,
        open: Vec::new(),
        here: Level::default(),
    };
    let mut names = Names::default();
    while let Some(token) = scan.next_token() {
        scan.take(token);
        names.take(token, scan.open.len());
        scan.check()?;
    }
    names.check()
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Token<'a> {
    Word(&'a str),
    Number,
    Open,
    Close {
        is_block: bool,
    },
    Less,
    Greater,
    Comma,
    Semicolon,
    /// With its first sign.
    Operator(char),
}

/// What is open at one level of brackets.
#[derive(Default)]
struct Level {
    /// Operators and closed brackets since the last separator.
    operators: usize,
    /// `<` that no `>` followed: template lists, if they are any.
    templates: usize,
    /// `else if` since the first `if` of the chain.
    elses: usize,
    /// All of the levels around.
    around: usize,
    after_else: bool,
}

impl Level {
    const fn depth(&self) -> usize {
        self.around + self.operators + self.elses
    }
}

struct Scan<'a> {
    source: &'a str,
    rest: Peekable<CharIndices<'a>>,
    line: usize,
    tokens: usize,
    declarations: usize,
    open: Vec<Level>,
    here: Level,
}

impl<'a> Scan<'a> {
    fn take(&mut self, token: Token<'_>) {
        self.tokens += 1;
        let after_else = std::mem::take(&mut self.here.after_else);
        match token {
            Token::Word("else") => {
                self.here.elses += 1;
                self.here.after_else = true;
            }
            Token::Word("if") if !after_else => self.here.elses = 0,
            Token::Word(_) | Token::Number => {}
            Token::Open => self.open(),
            Token::Close { is_block } => self.close(is_block),
            Token::Less => {
                self.here.operators += 1;
                self.here.templates += 1;
            }
            Token::Greater => {
                self.here.operators += 1;
                self.here.templates = self.here.templates.saturating_sub(1);
            }
            // The next argument stands beside this one, inside the same lists.
            Token::Comma => self.here.operators = self.here.templates,
            Token::Semicolon => {
                self.here = Level {
                    around: self.here.around,
                    ..Level::default()
                };
                self.declared();
            }
            Token::Operator(_) => self.here.operators += 1,
        }
    }

    fn open(&mut self) {
        let inside = Level {
            around: self.here.depth() + 1,
            ..Level::default()
        };
        self.open.push(std::mem::replace(&mut self.here, inside));
    }

    fn close(&mut self, is_block: bool) {
        let Some(outside) = self.open.pop() else {
            return;
        };
        self.here = outside;
        if is_block {
            self.here.operators = 0;
            self.here.templates = 0;
            self.declared();
        } else {
            self.here.operators += 1;
        }
    }

    /// Something ended; outside of all brackets that was a declaration.
    fn declared(&mut self) {
        if self.open.is_empty() {
            self.declarations += 1;
        }
    }

    fn check(&self) -> Result<(), String> {
        let line = self.line;
        if self.here.depth() > NESTING_MAX {
            return Err(format!(
                "line {line}: more than {NESTING_MAX} operators, brackets or `else if` in one another; split the expression with `let`, or the chain with `switch`"
            ));
        }
        if self.tokens > TOKENS_MAX {
            return Err(format!(
                "line {line}: more than {TOKENS_MAX} words and signs in one source; put tables into buffers and repetitions into loops"
            ));
        }
        if self.declarations > DECLARATIONS_MAX {
            return Err(format!(
                "line {line}: more than {DECLARATIONS_MAX} functions, types, constants and variables in one source; leave out what no pass uses"
            ));
        }
        Ok(())
    }

    fn next_token(&mut self) -> Option<Token<'a>> {
        loop {
            let (at, first) = self.next_char()?;
            return Some(match first {
                '/' if self.peek() == Some('/') => {
                    while self.next_char().is_some_and(|(_, c)| !ends_line(c)) {}
                    continue;
                }
                '/' if self.peek() == Some('*') => {
                    self.skip_block_comment();
                    continue;
                }
                '(' | '[' | '{' => Token::Open,
                ')' | ']' => Token::Close { is_block: false },
                '}' => Token::Close { is_block: true },
                '<' => Token::Less,
                '>' => Token::Greater,
                ',' => Token::Comma,
                ';' => Token::Semicolon,
                '-' if self.peek() == Some('>') => {
                    self.next_char();
                    Token::Operator('-')
                }
                '0'..='9' => {
                    self.skip_number();
                    Token::Number
                }
                _ if is_word(first) => Token::Word(self.word(at)),
                _ if first.is_whitespace() => continue,
                _ => Token::Operator(first),
            });
        }
    }

    /// The word that begins there; its first letter is read.
    fn word(&mut self, from: usize) -> &'a str {
        while self.rest.next_if(|(_, next)| is_word(*next)).is_some() {}
        let to = self.rest.peek().map_or(self.source.len(), |(to, _)| *to);
        &self.source[from..to]
    }

    /// Block comments hold others. The `/` before is read, the `*` is not.
    fn skip_block_comment(&mut self) {
        self.next_char();
        let (mut depth, mut before) = (1, None);
        while let Some((_, next)) = self.next_char() {
            before = match (before, next) {
                (Some('*'), '/') => {
                    depth -= 1;
                    if depth == 0 {
                        return;
                    }
                    None
                }
                (Some('/'), '*') => {
                    depth += 1;
                    None
                }
                _ => Some(next),
            };
        }
    }

    /// A second point is no part of a number: what follows is a member of it.
    fn skip_number(&mut self) {
        let mut points = 0;
        while let Some(next) = self.peek() {
            points += usize::from(next == '.');
            if points > 1 || !(is_word(next) || next == '.') {
                return;
            }
            self.rest.next();
        }
    }

    fn peek(&mut self) -> Option<char> {
        self.rest.peek().map(|(_, next)| *next)
    }

    fn next_char(&mut self) -> Option<(usize, char)> {
        let next = self.rest.next()?;
        if next.1 == '\n' {
            self.line += 1;
        }
        Some(next)
    }
}

/// Where the parser lets a `//` comment end.
const fn ends_line(c: char) -> bool {
    matches!(c, '\u{a}'..='\u{d}' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

/// Any letter of any script, without asking which may begin a word.
fn is_word(c: char) -> bool {
    c == '_' || c.is_alphanumeric()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEEP: usize = NESTING_MAX + 1;

    fn refused(source: &str) -> String {
        scan(source).unwrap_err()
    }

    #[test]
    fn what_the_parser_recurses_into_is_refused_with_its_line() {
        for (name, repeated) in [
            ("sums", "1u+"),
            ("signs", "- "),
            ("negations", "!"),
            ("complements", "~"),
            ("pointers", "*&"),
            ("brackets", "("),
            ("mixed brackets", "(a["),
            ("blocks", "{"),
            ("members", ".xyz"),
            ("members of a number", "1.0.x"),
            ("comparisons", "a<"),
            ("both comparisons", "1<1>"),
            ("elements", "[0]"),
            ("calls", "f(a, "),
            ("types", "array<"),
            ("pointer types", "ptr<function, "),
            ("alternatives", "else if a { b = 1; } "),
            ("sums of sums", "(a+b)+"),
        ] {
            let says = refused(&format!("\n\n{}", repeated.repeat(DEEP)));
            assert!(
                says.starts_with("line 3: more than 4096 operators"),
                "{name}: {says}"
            );
        }
    }

    #[test]
    fn what_stands_beside_one_another_passes() {
        for beside in [
            "x = 1u + f(2u, 3.5e-1) * (a[1] - b.xyz.x);\n",
            "f(1 + 2, a < b, vec3<f32>(1, 2, 3)),",
            "if a < b { c = 1; } else if d { e = 2; } else { f(); }\n",
            "{ { ; } }",
            "array<vec2<f32>, 4>(),",
            "// 1 + 1 + 1 + ((((\n",
            "/* ((( /* - - - - */ {{{{ */",
        ] {
            let count = (DEEP).min(TOKENS_MAX / 40).min(DECLARATIONS_MAX / 3);
            let source = format!("fn f() {{ {} }}", beside.repeat(count));
            assert_eq!(scan(&source), Ok(()), "{beside}");
        }
    }

    #[test]
    fn comments_end_where_the_parser_ends_them() {
        let sum = "1+".repeat(DEEP);
        for hidden in ["//", "/*", "/* /* */", "/*/"] {
            assert_eq!(scan(&format!("{hidden}{sum}")), Ok(()), "{hidden}");
        }
        for ended in [
            "//\n",
            "//\r",
            "//\u{b}",
            "//\u{85}",
            "//\u{2028}",
            "/**/",
            "/* // */",
            "/*/*/*/ */*/ */",
        ] {
            assert!(scan(&format!("{ended}{sum}")).is_err(), "{ended:?}");
        }
    }

    #[test]
    fn too_many_tokens_and_declarations_are_refused() {
        let many = refused(&"a ".repeat(TOKENS_MAX + 1));
        assert!(many.contains("words and signs"), "{many}");
        let many = refused(&"const a = 1;".repeat(DECLARATIONS_MAX + 1));
        assert!(many.contains("functions, types"), "{many}");
    }

    #[test]
    fn a_megabyte_of_blanks_or_of_one_comment_is_no_token() {
        assert_eq!(scan(&" ".repeat(1 << 20)), Ok(()));
        assert_eq!(scan(&format!("/*{}*/", "x ".repeat(1 << 19))), Ok(()));
    }
}
