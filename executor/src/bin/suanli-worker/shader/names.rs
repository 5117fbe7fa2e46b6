//! What a source becomes when what is declared is put in place of its name.
//!
//! The parser copies a constant's whole value to wherever its name stands, and looks
//! at a structure's members, and at theirs, whenever the structure is named. So twenty
//! lines, each of which names the one before twice, become a million values. That is
//! added up here from tokens alone, without doing it. In doubt the larger number
//! counts: of two declarations with one name (in two functions, say) the larger one.
//!
//! Absent: scopes and types. A name that is made of itself is refused, which also
//! hits a constant that hides, and is made of, another of its name.

use std::collections::{HashMap, HashSet};

use suanli_executor::limits::EXPANDED_TOKENS_MAX;

use super::scan::Token;

/// The declarations of a source, and all that is outside of them.
#[derive(Default)]
pub(super) struct Names<'a> {
    declared: Vec<Part<'a>>,
    rest: Part<'a>,
    /// The declaration that the next tokens belong to: its place above, and how many
    /// brackets it stands in.
    open: Option<(usize, usize)>,
    before: Before,
}

/// The token before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Before {
    /// A name is declared next.
    Declares,
    Point,
    Word,
    #[default]
    Other,
}

#[derive(Default)]
struct Part<'a> {
    name: &'a str,
    tokens: u64,
    uses: Vec<&'a str>,
}

impl<'a> Names<'a> {
    /// The next token, after which so many brackets are open.
    pub(super) fn take(&mut self, token: Token<'a>, depth: usize) {
        let before = std::mem::take(&mut self.before);
        match token {
            Token::Word(name) if before == Before::Declares => {
                self.open = Some((self.declared.len(), depth));
                self.declared.push(Part {
                    name,
                    ..Part::default()
                });
            }
            Token::Word("const" | "struct" | "alias") => self.before = Before::Declares,
            // A member is named, and nothing is put in its place.
            Token::Word(_) if before == Before::Point => {}
            Token::Word(word) => {
                self.part().uses.push(word);
                self.before = Before::Word;
            }
            Token::Operator('.') => self.before = Before::Point,
            Token::Operator(':') if before == Before::Word => {
                self.part().uses.pop();
            }
            Token::Number
            | Token::Open
            | Token::Close { .. }
            | Token::Less
            | Token::Greater
            | Token::Comma
            | Token::Semicolon
            | Token::Operator(_) => {}
        }
        self.part().tokens += 1;
        let ends = |inside: usize| match token {
            Token::Semicolon | Token::Close { is_block: true } => depth <= inside,
            Token::Close { is_block: false } => depth < inside,
            _ => false,
        };
        self.open = self.open.filter(|(_, inside)| !ends(*inside));
    }

    fn part(&mut self) -> &mut Part<'a> {
        match self.open {
            Some((place, _)) => &mut self.declared[place],
            None => &mut self.rest,
        }
    }

    /// Refuses a source that becomes too large.
    pub(super) fn check(&self) -> Result<(), String> {
        let tokens = Expanded::of(&self.declared)?;
        let all = self.declared.iter().chain([&self.rest]);
        let sum = all.fold(0, |sum: u64, part| sum.saturating_add(tokens.of_part(part)));
        if sum <= EXPANDED_TOKENS_MAX {
            return Ok(());
        }
        let most = self.declared.iter().max_by_key(|part| tokens.of_part(part));
        Err(format!(
            "the source becomes {sum} words and signs when constants, structures and aliases are put in place of their names, at most {EXPANDED_TOKENS_MAX} are allowed; the largest is `{}`: put tables into buffers, and name large values less often",
            most.map_or("", |part| part.name)
        ))
    }
}

/// Tokens of what each name stands for.
#[derive(Default)]
struct Expanded<'a> {
    of_name: HashMap<&'a str, u64>,
}

impl<'a> Expanded<'a> {
    /// Depth first, on a path of its own: names may use one another in a long chain.
    fn of(declared: &[Part<'a>]) -> Result<Self, String> {
        let mut parts = HashMap::<&str, Vec<&Part<'a>>>::new();
        for part in declared {
            parts.entry(part.name).or_default().push(part);
        }
        let parts_of = |name: &str| parts.get(name).map(Vec::as_slice).unwrap_or_default();
        let uses_of = |name: &str| {
            let uses = parts_of(name).iter().flat_map(|part| &part.uses);
            uses.copied().filter(|used| parts.contains_key(used))
        };
        let mut expanded = Self::default();
        let mut begun = HashSet::new();
        for part in declared {
            let mut path = Vec::new();
            if begun.insert(part.name) {
                path.push((part.name, uses_of(part.name).collect::<Vec<_>>()));
            }
            while let Some((name, left)) = path.last_mut() {
                let Some(used) = left.pop() else {
                    let tokens = parts_of(name).iter().map(|part| expanded.of_part(part));
                    let most = tokens.max().unwrap_or(0);
                    expanded.of_name.insert(*name, most);
                    path.pop();
                    continue;
                };
                if begun.insert(used) {
                    path.push((used, uses_of(used).collect()));
                } else if !expanded.of_name.contains_key(used) {
                    return Err(format!(
                        "`{used}` is made of a constant, structure or alias named `{used}`; give each a name of its own"
                    ));
                }
            }
        }
        Ok(expanded)
    }

    fn of_part(&self, part: &Part<'a>) -> u64 {
        let used = part.uses.iter().filter_map(|used| self.of_name.get(used));
        used.fold(part.tokens, |sum, tokens| sum.saturating_add(*tokens))
    }
}

#[cfg(test)]
mod tests {
    use super::super::scan::scan;

    /// Each line of the text, in which `N` stands for a number and `M` for the one before.
    fn lines(count: usize, text: &str) -> String {
        let line = |i: usize| {
            let below = i.wrapping_sub(1).to_string();
            text.replace('N', &i.to_string()).replace('M', &below)
        };
        (1..=count).map(line).collect()
    }

    #[test]
    fn abuse_33_what_doubles_with_each_line_is_refused_before_it_is_made() {
        for (what, line) in [
            ("structures", "struct eN { a: eM, b: eM, }\n"),
            ("constants", "const eN = array(eM, eM);\n"),
            (
                "both",
                "struct SN { a: SM, b: SM, }\nconst eN = SN(eM, eM);\n",
            ),
            (
                "hidden",
                "alias AN = eM;\nstruct eN { @size(4) a: AN, b: array<AN, 2>, }\n",
            ),
        ] {
            for declared in [lines(60, line), format!("fn f() {{ {} }}", lines(60, line))] {
                let says = scan(&declared).unwrap_err();
                assert!(
                    says.contains("put in place of their names"),
                    "{what}: {says}"
                );
            }
            let backwards: String = lines(60, line).lines().rev().collect();
            assert!(scan(&backwards).is_err(), "{what}");
            assert_eq!(scan(&lines(8, line)), Ok(()), "{what}");
        }
        let table = format!("const t = array({});", "1u, ".repeat(4_000));
        assert_eq!(scan(&format!("{table} {}", "x = t[i];".repeat(10))), Ok(()));
        let says = scan(&format!("{table} {}", "x = t[i];".repeat(40))).unwrap_err();
        assert!(says.contains("the largest is `t`"), "{says}");
    }

    #[test]
    fn a_name_in_itself_is_refused_and_a_chain_is_not() {
        let says = scan("const a = b; const c = a; const b = c;").unwrap_err();
        assert!(says.contains("a name of its own"), "{says}");
        assert!(scan("fn f() { const n = 1; { const n = array(n, n); } }").is_err());
        // Each is walked through for itself, which adds up to the square of their number.
        let chain = |count| lines(count, "const eN = eM;\n");
        assert_eq!(scan(&chain(300)), Ok(()));
        assert!(scan(&chain(4_000)).is_err());
    }

    #[test]
    fn members_and_names_in_other_functions_are_not_added_up() {
        for text in [
            "struct S { next: u32, a: u32, } const next = S(1u, 2u); const a = next.a;",
            "struct S { a: S0, } struct S0 { S: u32, } fn f() { var S: S0; S.S = 1; }",
            "fn f(x: T) { switch x { case a: { } default: { } } }",
        ] {
            assert_eq!(scan(text), Ok(()), "{text}");
        }
        let same = lines(1_000, "fn fN() { const n = 2u * 3u; x = n * n + n; }\n");
        assert_eq!(scan(&same), Ok(()));
    }
}
