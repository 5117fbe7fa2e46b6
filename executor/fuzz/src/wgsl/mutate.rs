//! Changes to a text that make it not quite what its author meant.

use crate::cursor::Cursor;

/// What parsers and validators look at twice.
const WORDS: &[&str] = &[
    "fn",
    "var",
    "let",
    "const",
    "override",
    "struct",
    "alias",
    "if",
    "else",
    "for",
    "while",
    "loop",
    "continuing",
    "break",
    "continue",
    "switch",
    "case",
    "default",
    "return",
    "discard",
    "enable f16;",
    "enable subgroups;",
    "enable dual_source_blending;",
    "requires readonly_and_readwrite_storage_textures;",
    "diagnostic(off, derivative_uniformity);",
    "@compute",
    "@vertex",
    "@fragment",
    "@workgroup_size(0)",
    "@workgroup_size(1, 1, 1)",
    "@group(0)",
    "@binding(0)",
    "@id(1)",
    "@align(4)",
    "@size(3)",
    "@must_use",
    "@builtin(position)",
    "@builtin(subgroup_size)",
    "@const",
    "@invariant",
    "array<",
    "atomic<u32>",
    "ptr<function, ",
    "ptr<storage, u32, read_write>",
    "vec3<",
    "mat4x4<f32>",
    "texture_2d<f32>",
    "texture_storage_2d<r32uint, read_write>",
    "sampler",
    "binding_array<",
    "ray_query",
    "acceleration_structure",
    "f16",
    "i64",
    "u64",
    "f64",
    "bool",
    "u32",
    "i32",
    "f32",
    "<",
    ">",
    ">>",
    "<<",
    ">=",
    "->",
    "&&",
    "||",
    "&",
    "*",
    "-",
    "--",
    "++",
    "+=",
    "~",
    "!",
    "%",
    "/",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    ",",
    ";",
    ":",
    ".xyzw",
    ".x",
    "0",
    "1u",
    "-1",
    "0x7fffffff",
    "4294967295u",
    "1e40",
    "0x1p-1074",
    "1.5h",
    "3f",
    "99999999999999999999",
    "//",
    "/*",
    "*/",
    "\u{2028}",
    "\0",
    "é",
    "\u{10ffff}",
    "workgroupBarrier()",
    "workgroupUniformLoad(&",
    "subgroupAdd(",
    "atomicCompareExchangeWeak(&",
    "arrayLength(&",
    "unpack4x8snorm(",
    "modf(",
    "frexp(",
    "dpdx(",
    "textureLoad(",
    "quantizeToF16(",
    "bitcast<",
    "select(",
    "_ = ",
    "main",
    "out",
    "f0",
    "s0",
    "v0",
];

/// One change.
pub(super) fn change(text: &str, cursor: &mut Cursor<'_>) -> String {
    let ends = tokens(text);
    if ends.len() < 2 {
        return cursor.pick(WORDS).to_owned();
    }
    let place = |cursor: &mut Cursor<'_>| usize::from(cursor.word()) % (ends.len() - 1);
    let how = cursor.below(6);
    let from = place(cursor);
    let to = (from + 1 + cursor.count(64)).min(ends.len() - 1);
    let (head, span, tail) = (
        &text[..ends[from]],
        &text[ends[from]..ends[to]],
        &text[ends[to]..],
    );
    let other = place(cursor);
    match how {
        0 => format!("{head}{tail}"),
        1 => format!("{head}{span}{span}{tail}"),
        2 => format!("{head} {} {span}{tail}", cursor.pick(WORDS)),
        3 => format!("{head} {} {tail}", cursor.pick(WORDS)),
        4 => {
            let word = &text[ends[other]..ends[other + 1]];
            format!("{head}{word}{tail}")
        }
        _ => format!(
            "{head}{}{tail}",
            span.repeat(2 + cursor.count(4096 / span.len().max(1)))
        ),
    }
}

/// Where words and signs begin, and the end.
fn tokens(text: &str) -> Vec<usize> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut ends = Vec::new();
    let mut before = ' ';
    for (at, c) in text.char_indices() {
        if !(is_word(c) && is_word(before)) && !c.is_whitespace() {
            ends.push(at);
        }
        before = c;
    }
    ends.push(text.len());
    ends
}
