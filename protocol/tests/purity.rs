//! Keeps the protocol free of IO: it has no socket, file, clock, thread or
//! random source, and depends on nothing that has one.
//!
//! The dependency tree is held in two ways. [`FORBIDDEN`] names crates that do IO
//! and says which, so that the message of a failure is plain. [`LOOKED_AT`] names
//! every crate that is in the tree, so that *anything* new fails until somebody
//! has read what it does and has added it here with the commit that brings it in.
//! What is in it computes only: encoding, hashing, signatures, a seeded generator
//! (without the features that ask the operating system for seeds), and procedural
//! macros, which run in the compiler. `cpufeatures` executes `cpuid`; on some
//! architectures it asks the operating system instead, for nothing else.
//!
//! The standard library is in every tree, so the sources are read as well. This
//! finds mistakes, not malice: a macro could hide a path from it.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

/// Crates that do IO; a name that ends in `-` stands for all that begin with it.
const FORBIDDEN: &[(&str, &str)] = &[
    ("async-", "runs tasks and their IO"),
    ("chrono", "reads the clock"),
    ("crossbeam", "starts threads"),
    ("futures-timer", "reads the clock"),
    ("getrandom", "asks the operating system for random bytes"),
    ("hickory-", "resolves names"),
    ("instant", "reads the clock"),
    ("libp2p", "opens sockets"),
    ("libp2p-", "opens sockets"),
    ("mio", "waits for sockets"),
    ("quinn", "opens sockets"),
    ("rayon", "starts threads"),
    ("rustix", "makes system calls"),
    ("sled", "writes files"),
    ("smol", "runs tasks and their IO"),
    ("socket2", "opens sockets"),
    ("tempfile", "writes files"),
    ("time", "reads the clock"),
    ("tokio", "runs tasks and their IO"),
    ("tokio-", "runs tasks and their IO"),
    ("wasmtime", "runs programs"),
    ("web-time", "reads the clock"),
    ("wgpu", "opens devices"),
    ("wgpu-", "opens devices"),
];

/// Every crate of the tree that somebody has looked at.
const LOOKED_AT: &[&str] = &[
    "arrayvec",
    "bincode",
    "bincode_derive",
    "blake3",
    "block-buffer",
    "cfg-if",
    "constant_time_eq",
    "cpufeatures",
    "crypto-common",
    "curve25519-dalek",
    "curve25519-dalek-derive",
    "digest",
    "ed25519",
    "ed25519-dalek",
    "hybrid-array",
    "ppv-lite86",
    "proc-macro2",
    "quote",
    "rand_chacha",
    "rand_core",
    "serde",
    "serde_core",
    "serde_derive",
    "sha2",
    "signature",
    "suanli-protocol",
    "subtle",
    "syn",
    "thiserror",
    "thiserror-impl",
    "typenum",
    "unicode-ident",
    "unty",
    "virtue",
    "zerocopy",
    "zeroize",
    // Not on every architecture or compiler: below cpufeatures, zerocopy, zeroize.
    "libc",
    "zerocopy-derive",
    "zeroize_derive",
];

/// Paths of the standard library that the sources don't name, nor what is below them.
const IMPURE_PATHS: &[&str] = &[
    "std::env",
    "std::fs",
    "std::net",
    "std::os",
    "std::process",
    "std::thread",
    "std::time::Instant",
    "std::time::SystemTime",
    "std::time::UNIX_EPOCH",
];

/// Imports that would let an impure path be written without its prefix.
const VEILING_IMPORTS: &[&str] = &[
    "std",
    "std::*",
    "std::time",
    "std::time::*",
    "std::time::self",
];

#[test]
fn dependency_tree_does_no_io() {
    let tree = dependency_tree();
    let offenders: Vec<String> = tree
        .iter()
        .filter_map(|name| Some(format!("{name}: {}", forbidden_because(name)?)))
        .collect();
    assert!(
        offenders.is_empty(),
        "suanli-protocol now depends on crates that do IO:\n{}\n\
         `cargo tree -p suanli-protocol -e normal -i NAME` shows what brings one in",
        offenders.join("\n")
    );
}

#[test]
fn new_dependency_waits_for_a_look() {
    let looked_at: BTreeSet<&str> = LOOKED_AT.iter().copied().collect();
    let unknown: Vec<String> = dependency_tree()
        .into_iter()
        .filter(|name| !looked_at.contains(name.as_str()))
        .collect();
    assert!(
        unknown.is_empty(),
        "new in the tree of suanli-protocol: {}\n\
         read what it does; if it does no IO, add it to LOOKED_AT in protocol/tests/purity.rs",
        unknown.join(", ")
    );
}

#[test]
fn sources_name_no_clock_file_socket_or_thread() {
    let mut offenders = Vec::new();
    for_each_source(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        &mut |path, text| {
            for found in impure_paths(text) {
                offenders.push(format!("{}: {found}", path.display()));
            }
        },
    );
    assert!(
        offenders.is_empty(),
        "protocol does no IO; time and randomness come in as arguments:\n{}",
        offenders.join("\n")
    );
}

#[test]
fn planted_impurities_are_found() {
    for planted in [
        "use std::fs;",
        "use std::{collections::BTreeMap, time::{Duration, Instant}};",
        "use std::{\n    fmt,\n    net::IpAddr,\n};",
        "pub use std::time::SystemTime as Clock;",
        "use std::time;",
        "use std::time::*;",
        "fn f() { std::thread::spawn(|| ()); }",
        "fn f() { let _ = ::std::env::var(\"A\"); }",
    ] {
        assert!(!impure_paths(planted).is_empty(), "not found: {planted}");
    }
    for pure in [
        "use std::{collections::BTreeMap, time::Duration};",
        "// std::fs is for others\nuse std::fmt;",
        "use crate::time::Instant;",
    ] {
        assert_eq!(impure_paths(pure), Vec::<String>::new(), "in: {pure}");
    }
    assert_eq!(forbidden_because("tokio"), Some("runs tasks and their IO"));
    assert_eq!(
        forbidden_because("async-io"),
        Some("runs tasks and their IO")
    );
    assert_eq!(forbidden_because("timely"), None);
}

/// Names of all crates that the library is built from, on this platform.
fn dependency_tree() -> BTreeSet<String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["tree", "-p", "suanli-protocol", "-e", "normal"])
        .args([
            "--prefix",
            "none",
            "--format",
            "{p}",
            "--offline",
            "--locked",
        ])
        .output()
        .expect("cargo starts");
    assert!(
        output.status.success(),
        "cargo tree: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let names: BTreeSet<String> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect();
    assert!(
        names.contains("suanli-protocol"),
        "cargo tree printed no tree"
    );
    names
}

fn forbidden_because(name: &str) -> Option<&'static str> {
    FORBIDDEN
        .iter()
        .find(|(entry, _)| *entry == name || (entry.ends_with('-') && name.starts_with(entry)))
        .map(|(_, reason)| *reason)
}

fn for_each_source(folder: &Path, visit: &mut impl FnMut(&Path, &str)) {
    for entry in fs::read_dir(folder).expect("source folder is readable") {
        let path = entry.expect("entry is readable").path();
        if path.is_dir() {
            for_each_source(&path, visit);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            visit(
                &path,
                &fs::read_to_string(&path).expect("source is readable"),
            );
        }
    }
}

/// What a source names of [`IMPURE_PATHS`], in imports (however grouped) or in place.
fn impure_paths(source: &str) -> Vec<String> {
    let code: String = source
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join("\n");
    let mut found: Vec<String> = IMPURE_PATHS
        .iter()
        .filter(|path| code.contains(*path))
        .map(|path| (*path).to_owned())
        .collect();
    for (start, _) in code.match_indices("use std") {
        let tree: String = code[start + "use ".len()..]
            .chars()
            .take_while(|character| *character != ';')
            .filter(|character| !character.is_whitespace() || *character == ' ')
            .collect();
        let imports = expand_imports(&tree);
        found.extend(imports.into_iter().filter(|import| is_impure(import)));
    }
    found
}

fn is_impure(import: &str) -> bool {
    VEILING_IMPORTS.contains(&import)
        || IMPURE_PATHS.iter().any(|path| {
            import
                .strip_prefix(path)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
        })
}

/// `std::{fmt, time::{Duration, Instant}}` as its paths, each in full and without renaming.
fn expand_imports(tree: &str) -> Vec<String> {
    let tree = tree.trim();
    let Some((prefix, group)) = tree.split_once('{') else {
        let path = tree.split(" as ").next().unwrap_or_default().trim();
        return vec![path.to_owned()];
    };
    let group = group.strip_suffix('}').unwrap_or(group);
    split_outside_braces(group)
        .into_iter()
        .filter(|part| !part.trim().is_empty())
        .flat_map(expand_imports)
        .map(|path| format!("{prefix}{path}"))
        .collect()
}

fn split_outside_braces(group: &str) -> Vec<&str> {
    let mut depth = 0;
    let mut parts = Vec::new();
    let mut start = 0;
    for (at, character) in group.char_indices() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&group[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&group[start..]);
    parts
}
