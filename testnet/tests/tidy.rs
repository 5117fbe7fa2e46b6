//! Style that a compiler does not keep: read from the files of the repository.
//!
//! Each rule is a function from a file to complaints. [`rules`] names them all,
//! and `every_rule_finds_what_it_forbids` plants an offence for each, so that none
//! of them can pass by never looking. This file is not held to the rules for
//! code, because it quotes what they forbid.
//!
//! The files are those in the folders and beside them that a clone has, so that
//! build outputs and other leftovers are not judged, and git is not needed.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// What a clone has at its root: all else there is not looked at.
const TOP_FOLDERS: &[&str] = &[
    ".ci", ".cargo", ".config", "docs", "examples", "executor", "node", "protocol", "scripts",
    "testnet",
];

/// Made by `scripts/setup` and by fuzzing, or made for no reader.
const NOT_WRITTEN: &[&str] = &[
    "examples/fashion-mnist/data",
    "executor/fuzz/artifacts",
    "executor/fuzz/corpus",
    "executor/fuzz/coverage",
    "executor/fuzz/target",
    "executor/fuzz/work",
];

const THIS_FILE: &str = "testnet/tests/tidy.rs";

/// Longer files owe a reason.
const LINES_MAX: usize = 1500;

/// How a long file begins to say why, in its first [`HEAD_LINES`] lines.
const LONG_BECAUSE: &str = "This file is long because";
const HEAD_LINES: usize = 40;

/// Names that say nothing about what belongs in a file or crate, and so collect everything.
const GRAB_BAGS: &[&str] = &[
    "common", "helper", "helpers", "misc", "shared", "util", "utils",
];

/// What code does not hold, and what to write instead.
const BANNED: &[(&str, &str)] = &[
    (
        "unbounded_channel",
        "every queue has a bound: `mpsc::channel(bound)`",
    ),
    (
        "mpsc::channel()",
        "std's channel has no bound: `sync_channel(bound)`",
    ),
    (
        "mpsc::unbounded",
        "every queue has a bound: `mpsc::channel(bound)`",
    ),
    ("todo!", "write it, or leave out what calls it"),
    ("unimplemented!", "write it, or leave out what calls it"),
    ("#[ignore]", "say what it needs: `#[ignore = \"reason\"]`"),
    (
        "Arc<Mutex<",
        "one task owns the state; talk to it through a channel",
    ),
    (
        "Arc<RwLock<",
        "one task owns the state; talk to it through a channel",
    ),
];

/// Where something banned is right, and why.
const ALLOWED: &[(&str, &str, &str)] = &[
    (
        "node/src/store/simulated.rs",
        "Arc<Mutex<",
        "a test's disk is seen by the test and by the thread that it tests",
    ),
    (
        "node/src/models/places.rs",
        "Arc<Mutex<",
        "a place is given back by dropping it, wherever that is: a semaphore, whose line is fair",
    ),
];

type Rule = fn(&str, &str) -> Vec<String>;

/// Every rule, with the path and contents of a file that breaks it.
fn rules() -> [(Rule, &'static str, String); 7] {
    [
        (grab_bag_names, "node/src/utils.rs", String::new()),
        (banned_code, "node/src/lib.rs", "let x = todo!();".into()),
        (
            decoding_outside_wire,
            "node/src/lib.rs",
            "bincode::decode_from_slice(bytes, config)".into(),
        ),
        (
            long_without_reason,
            "node/src/lib.rs",
            "\n".repeat(LINES_MAX + 1),
        ),
        (
            script_without_usage,
            "scripts/deploy",
            "#!/usr/bin/env bash\nset -e\n".into(),
        ),
        (
            dead_references,
            "README.md",
            "Run `scripts/launch`.\n".into(),
        ),
        (untidy_line_ends, "README.md", "two spaces  \n".into()),
    ]
}

#[test]
fn repository_is_tidy() {
    let mut complaints = Vec::new();
    for path in files() {
        // A picture or another file that is not text has no lines to judge.
        let Ok(text) = fs::read_to_string(root().join(&path)) else {
            continue;
        };
        for (rule, _, _) in rules() {
            complaints.extend(rule(&path, &text));
        }
    }
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

#[test]
fn every_rule_finds_what_it_forbids() {
    for (number, (rule, path, text)) in rules().into_iter().enumerate() {
        assert_ne!(rule(path, &text), Vec::<String>::new(), "rule {number}");
    }
    for (banned, _) in BANNED {
        assert_eq!(banned_code("node/src/lib.rs", banned).len(), 1, "{banned}");
        let comment = format!("// {banned}");
        assert!(banned_code("node/src/lib.rs", &comment).is_empty());
    }
}

#[test]
fn rules_allow_what_they_should() {
    let derive = "use bincode::{Decode, Encode};\n#[derive(bincode::Encode, bincode::Decode)]";
    assert_eq!(
        decoding_outside_wire("node/src/lib.rs", derive),
        Vec::<String>::new()
    );
    let decode = "bincode::decode_from_slice(bytes, config)";
    assert_eq!(
        decoding_outside_wire("protocol/src/wire.rs", decode),
        Vec::<String>::new()
    );
    let reason = format!("//! {LONG_BECAUSE} …\n{}", "\n".repeat(LINES_MAX));
    assert_eq!(
        long_without_reason("node/src/lib.rs", &reason),
        Vec::<String>::new()
    );
    let usage = "#!/usr/bin/env bash\n# usage: scripts/deploy\n";
    assert_eq!(
        script_without_usage("scripts/deploy", usage),
        Vec::<String>::new()
    );
    let links = "`scripts/test --all`, [jobs](examples/noop/job.toml#name), https://a.b/scripts/x";
    assert_eq!(dead_references("README.md", links), Vec::<String>::new());
}

#[cfg(unix)]
#[test]
fn scripts_are_executable() {
    use std::os::unix::fs::PermissionsExt;

    let scripts: Vec<String> = files().into_iter().filter(|path| is_script(path)).collect();
    assert!(!scripts.is_empty(), "no scripts found");
    for script in scripts {
        let metadata = fs::metadata(root().join(&script)).expect("script is there");
        assert_ne!(
            metadata.permissions().mode() & 0o111,
            0,
            "chmod +x {script}"
        );
    }
}

// ---- the rules ------------------------------------------------------------

fn grab_bag_names(path: &str, _: &str) -> Vec<String> {
    if !is_rust(path) {
        return Vec::new();
    }
    path.trim_end_matches(".rs")
        .split('/')
        .filter(|part| GRAB_BAGS.contains(part))
        .map(|part| format!("{path}: name it for what it holds, not `{part}`"))
        .collect()
}

fn banned_code(path: &str, text: &str) -> Vec<String> {
    code_lines(path, text)
        .flat_map(|(number, line)| {
            BANNED
                .iter()
                .filter(move |(banned, _)| line.contains(banned) && !is_allowed(path, banned))
                .map(move |(banned, advice)| format!("{path}:{number}: `{banned}`: {advice}"))
        })
        .collect()
}

fn is_allowed(path: &str, banned: &str) -> bool {
    ALLOWED
        .iter()
        .any(|(file, what, _)| *file == path && *what == banned)
}

/// Untrusted bytes are decoded in one module. Deriving is fine anywhere, and types
/// of the protocol may implement the two traits by hand.
fn decoding_outside_wire(path: &str, text: &str) -> Vec<String> {
    if path == "protocol/src/wire.rs" || path.starts_with("protocol/src/wire/") {
        return Vec::new();
    }
    let by_hand: &[&str] = if path.starts_with("protocol/src/") {
        &["de::", "enc::", "error::"]
    } else {
        &[]
    };
    code_lines(path, text)
        .filter(|(_, line)| {
            line.match_indices("bincode::").any(|(at, prefix)| {
                let used = &line[at + prefix.len()..];
                !["Decode", "Encode", "{Decode, Encode}"]
                    .iter()
                    .chain(by_hand)
                    .any(|allowed| used.starts_with(allowed))
            })
        })
        .map(|(number, _)| {
            format!("{path}:{number}: bytes are encoded and decoded in protocol/src/wire.rs only")
        })
        .collect()
}

fn long_without_reason(path: &str, text: &str) -> Vec<String> {
    let lines = text.lines().count();
    let explained = text
        .lines()
        .take(HEAD_LINES)
        .any(|line| line.contains(LONG_BECAUSE));
    if !is_rust(path) || lines <= LINES_MAX || explained {
        return Vec::new();
    }
    vec![format!(
        "{path}: {lines} lines; split it where its invariants split, or say \
         `{LONG_BECAUSE} …` in its head"
    )]
}

fn script_without_usage(path: &str, text: &str) -> Vec<String> {
    if !is_script(path) {
        return Vec::new();
    }
    let usage = format!("# usage: {path}");
    let states_it = text
        .lines()
        .nth(1)
        .is_some_and(|line| line.starts_with(&usage));
    if states_it {
        return Vec::new();
    }
    vec![format!("{path}: its second line should begin `{usage}`")]
}

/// Commands and files that a page names, in the repository, are there.
fn dead_references(path: &str, text: &str) -> Vec<String> {
    if !path.ends_with(".md") {
        return Vec::new();
    }
    let folder = Path::new(path).parent().unwrap_or_else(|| Path::new(""));
    let commands = [
        "`scripts/",
        "`examples/",
        "`docs/",
        "\n    scripts/",
        "\nscripts/",
    ]
    .into_iter()
    .flat_map(|opening| after(text, opening))
    .map(|(folder, rest)| PathBuf::from(format!("{folder}{}", first_word(rest))));
    let links = text
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split([')', '#']).next())
        .filter(|target| !target.is_empty() && !target.contains("://"))
        .map(|target| folder.join(target));
    commands
        .chain(links)
        .filter(|target| !root().join(target).exists())
        .map(|target| format!("{path}: {} does not exist", target.display()))
        .collect()
}

/// In what people write; a snapshot holds what a program printed, blanks and all.
fn untidy_line_ends(path: &str, text: &str) -> Vec<String> {
    let written = is_script(path)
        || [".md", ".rs", ".toml", ".wgsl"]
            .iter()
            .any(|ending| path.ends_with(ending));
    if !written {
        return Vec::new();
    }
    let mut complaints: Vec<String> = text
        .lines()
        .zip(1..)
        .filter(|(line, _)| line.ends_with([' ', '\t', '\r']))
        .map(|(_, number): (_, usize)| format!("{path}:{number}: ends in a blank"))
        .collect();
    if !text.is_empty() && !text.ends_with('\n') {
        complaints.push(format!("{path}: its last line has no end"));
    }
    complaints
}

// ---- files and their lines ------------------------------------------------

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Paths below the root, with `/` between their parts, in order.
fn files() -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root()).expect("root is readable") {
        let entry = entry.expect("entry is readable");
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.path().is_file() {
            // Other files at the root are results of somebody's jobs.
            if name == "LICENSE" || name.ends_with(".md") || name.ends_with(".toml") {
                found.push(name);
            }
        } else if TOP_FOLDERS.contains(&name.as_str()) {
            collect(&name, &mut found);
        }
    }
    found.sort();
    found
}

fn collect(folder: &str, found: &mut Vec<String>) {
    if NOT_WRITTEN.contains(&folder) {
        return;
    }
    for entry in fs::read_dir(root().join(folder)).expect("folder is readable") {
        let entry = entry.expect("entry is readable");
        let path = format!("{folder}/{}", entry.file_name().to_string_lossy());
        if entry.path().is_dir() {
            collect(&path, found);
        } else {
            found.push(path);
        }
    }
}

fn is_rust(path: &str) -> bool {
    path.ends_with(".rs")
}

fn is_script(path: &str) -> bool {
    path == ".ci/run" || path.starts_with("scripts/") && !path.contains('.')
}

/// Lines of Rust with their numbers, without comments.
fn code_lines<'a>(path: &str, text: &'a str) -> impl Iterator<Item = (usize, &'a str)> {
    let judged = if is_rust(path) && path != THIS_FILE {
        text
    } else {
        ""
    };
    judged
        .lines()
        .zip(1..)
        .map(|(line, number)| (number, line.split("//").next().unwrap_or_default()))
}

/// What follows each occurrence of `opening`, with the folder that `opening` ends in.
fn after<'a>(text: &'a str, opening: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
    text.match_indices(opening).map(move |(at, matched)| {
        let folder = matched.trim_start_matches(['`', '\n', ' ']);
        (folder, &text[at + matched.len()..])
    })
}

fn first_word(text: &str) -> &str {
    text.split(|character: char| character.is_whitespace() || "`,;:)…*".contains(character))
        .next()
        .unwrap_or_default()
}
