//! Graphs for the worker's check of shaders: made of bytes by a grammar, or around a
//! text.
//!
//! The grammar ([`grammar`]) makes mostly valid modules out of all that compute
//! shaders are made of, and sometimes much of one thing ([`deep`]); then a few
//! changes to the text ([`mutate`]) make some of them not quite WGSL. What passes a
//! check is translated, so it is worth that most get far.

mod deep;
mod grammar;
mod mutate;

use suanli_executor::{
    limits::{PASSES_MAX, SOURCE_BYTES_MAX},
    spec::{Buffer, Constant, Content, FEATURES, Graph, Name, Output, Pass, is_identifier},
};
use suanli_protocol::wire::{List, Utf8};

use crate::cursor::Cursor;

/// Buffers that each pass binds: bindings 0 on.
const BUFFERS: u32 = 8;
const BUFFER_BYTES: u64 = 1 << 20;
const PASSES_OF_TEXT_MAX: usize = 8;

/// What these bytes choose.
#[must_use]
pub fn graph(bytes: &[u8]) -> Graph {
    let mut cursor = Cursor::new(bytes);
    let many_passes = cursor.one_in(32);
    let changes = if cursor.one_in(3) { cursor.below(4) } else { 0 };
    let module = grammar::module(&mut cursor);
    let mut source = module.source;
    for _ in 0..changes {
        source = mutate::change(&source, &mut cursor);
    }
    let mut passes = Vec::new();
    let count = if many_passes {
        PASSES_MAX
    } else {
        module.entries.len() + cursor.below(2)
    };
    for index in 0..count {
        let entry = &module.entries[index % module.entries.len()];
        let constants = module.overrides.iter().map(|name| Constant {
            name: Name::cut(name),
            // Each pass its own, so that none is the same as another.
            bits: f64::from(u8::try_from(1 + (index + cursor.below(4)) % 64).unwrap_or(1))
                .to_bits(),
        });
        passes.push(pass(entry, constants.collect()));
    }
    around(&source, passes)
}

/// A graph that runs what in this text could be an entry point.
#[must_use]
pub fn graph_of(text: &str) -> Graph {
    let pieces = text.split("fn ").skip(1);
    let names = pieces.map(|piece| piece.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')));
    let names = names
        .filter_map(|mut words| words.next())
        .filter(|name| is_identifier(name));
    // Those of entry points, if they can be told from others: a check ends at the first.
    let is_entry = |name: &&str| {
        let before = text.split(&format!("fn {name}")).next().unwrap_or_default();
        let own = before.rsplit(['}', ';']).next().unwrap_or_default();
        own.contains("@compute")
    };
    let entries = names.filter(is_entry).take(PASSES_OF_TEXT_MAX);
    let mut passes = entries
        .map(|entry| pass(entry, Vec::new()))
        .collect::<Vec<_>>();
    if passes.is_empty() {
        passes.push(pass("main", Vec::new()));
    }
    around(text, passes)
}

fn pass(entry: &str, constants: Vec<Constant>) -> Pass {
    Pass {
        entry: Name::cut(entry),
        bindings: List::truncated((0..BUFFERS).collect()),
        workgroups: [1, 1, 1],
        repeat: 1,
        constants: List::truncated(constants),
    }
}

fn around(source: &str, passes: Vec<Pass>) -> Graph {
    let buffer = |index| Buffer {
        name: Name::cut(&format!("b{index}")),
        content: Content::Zeroed,
        size: BUFFER_BYTES,
    };
    // What the text enables is asked for, so that the check goes on behind that line.
    let enabled = FEATURES.into_iter().filter(|feature| {
        let name = feature.to_string();
        source.contains(&format!("enable {name};"))
    });
    Graph {
        features: List::truncated(enabled.collect()),
        checkpoint: None,
        source: Utf8::<SOURCE_BYTES_MAX>::cut(source),
        buffers: List::truncated((0..BUFFERS).map(buffer).collect()),
        passes: List::truncated(passes),
        outputs: List::truncated(vec![Output {
            buffer: 0,
            name: Name::cut("out"),
        }]),
    }
}
