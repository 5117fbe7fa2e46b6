//! The command line as a process, without a daemon.
//!
//! `receipt.bundle` is a receipt of an exchange between two simulated peers,
//! exported as `suanli receipt export` does. It stays valid: verification has
//! no clock. When the formats change, it is exported anew:
//! `BUNDLE_OUT=$PWD/node/tests/cli/receipt.bundle cargo test --workspace --test pair
//! both_sides_keep_the_same_bytes`.

#![forbid(unsafe_code)]

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// Runs `suanli` with nothing in its environment but a home of its own.
fn suanli(home: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_suanli"))
        .args(arguments)
        .env_clear()
        .env("HOME", home)
        .output()
        .expect("suanli starts")
}

fn bundle() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli/receipt.bundle")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text")
}

#[test]
fn a_receipt_is_verified_without_daemon_and_configuration() {
    let home = tempfile::tempdir().expect("a folder");
    let file = bundle();
    let output = Command::new(env!("CARGO_BIN_EXE_suanli"))
        .args(["receipt", "verify"])
        .arg(&file)
        .env_clear()
        // A configuration that is wrong is not even looked at.
        .env("SUANLI_REGOIN", "x")
        .output()
        .expect("suanli starts");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    insta::assert_snapshot!(text(&output.stdout));

    let json = suanli(
        home.path(),
        &["receipt", "verify", "--json", &file.display().to_string()],
    );
    let proof: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert_eq!(proof["paid"], true);
    assert_eq!(proof["verdict"], "Accepted");
}

#[test]
fn a_changed_receipt_ends_with_6() {
    let home = tempfile::tempdir().expect("a folder");
    let good = std::fs::read(bundle()).expect("the bundle");
    let file = home.path().join("receipt.bundle");
    for at in (0..good.len()).step_by(good.len() / 8) {
        let mut changed = good.clone();
        changed[at] ^= 1;
        std::fs::write(&file, &changed).expect("written");
        let output = suanli(
            home.path(),
            &["receipt", "verify", &file.display().to_string()],
        );
        assert_eq!(output.status.code(), Some(6), "byte {at}");
        assert!(text(&output.stderr).contains("not verified"));
    }
    std::fs::write(&file, vec![0; 1 << 20]).expect("written");
    let output = suanli(
        home.path(),
        &["receipt", "verify", &file.display().to_string()],
    );
    assert_eq!(output.status.code(), Some(6), "too long");
}

#[test]
fn without_a_daemon_commands_end_with_3_and_say_what_to_do() {
    let home = tempfile::tempdir().expect("a folder");
    for arguments in [
        &["job", "list"][..],
        &["offer", "list"],
        &["receipt", "list"],
        &["channel", "list"],
        &["peer", "list"],
        &["stop"],
    ] {
        let output = suanli(home.path(), arguments);
        assert_eq!(output.status.code(), Some(3), "{arguments:?}");
        assert!(text(&output.stderr).contains("start one with `suanli node`"));
    }
    let output = suanli(home.path(), &["job", "list", "--json"]);
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(answer["exit_code"], 3);
    assert!(answer["error"].is_string() && output.stderr.is_empty());
}

#[test]
fn wrong_use_and_wrong_configuration_have_their_codes() {
    let home = tempfile::tempdir().expect("a folder");
    for (arguments, code) in [
        (&["--help"][..], 0),
        (&["--version"], 0),
        (&["run"], 2),
        (&["run", "no-such-job.toml"], 2),
        (&["receipt", "verify", "no-such-file"], 2),
        (&["config", "show", "--set", "region"], 2),
        (&["config", "show", "--set", "regoin=x"], 7),
        (&["config", "show", "--config", "no-such-file"], 7),
        (&["identity", "show"], 7),
        (&["config", "show"], 0),
    ] {
        let output = suanli(home.path(), arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
    }
}

#[test]
fn abuse_68_a_node_on_all_addresses_without_a_yes_does_not_start() {
    let home = tempfile::tempdir().expect("a folder");
    let output = suanli(home.path(), &["node", "--api", "0.0.0.0:0"]);
    assert_eq!(output.status.code(), Some(7));
    assert!(text(&output.stderr).contains("api_allow_remote = true"));
}

#[test]
fn a_file_beside_the_keys_is_the_configuration() {
    let home = tempfile::tempdir().expect("a folder");
    let data = home.path().join("data");
    std::fs::create_dir(&data).expect("made");
    std::fs::write(data.join("config.toml"), "region = \"CN-GZ\"\n").expect("written");
    let data = data.display().to_string();
    let output = suanli(
        home.path(),
        &["config", "show", "--data-dir", &data, "--json"],
    );
    let rows: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let region = rows.as_array().expect("a list").iter();
    let region = region
        .filter(|row| row["key"] == "region")
        .collect::<Vec<_>>();
    assert_eq!(region[0]["value"], "CN-GZ");
    assert_eq!(region[0]["origin"]["file"]["line"], 1);
}

#[test]
fn models_are_added_listed_and_removed() {
    let home = tempfile::tempdir().expect("a folder");
    let file = home.path().join("Small.gguf");
    std::fs::write(&file, suanli_executor::model::testing::small_model(1)).expect("written");
    let data = home.path().join("data").display().to_string();
    let model = |arguments: &[&str]| {
        let all = [&["--data-dir", &data, "model"], arguments].concat();
        let output = suanli(home.path(), &all);
        (
            output.status.code(),
            text(&output.stdout) + &text(&output.stderr),
        )
    };
    let path = file.display().to_string();
    let add = ["add", &path, "--price-in", "0.10", "--price-out", "0.40"];
    let (code, said) = model(&add);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.starts_with("small: Q8_0, context 4096, "), "{said}");
    assert!(said.contains("write [provide]"), "{said}");
    let (code, said) = model(&add);
    assert_eq!(code, Some(2), "{said}");
    let (_, listed) = model(&["list", "--json"]);
    let listed: serde_json::Value = serde_json::from_str(&listed).expect("JSON");
    assert_eq!(listed[0]["name"], "small");
    let kept = listed[0]["source"].as_str().expect("a path");
    assert!(Path::new(kept).is_file());
    let (code, said) = model(&["remove", "small"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(!Path::new(kept).exists());
    assert_eq!(model(&["remove", "small"]).0, Some(2));
    // What is none leaves nothing.
    std::fs::write(&file, "no model").expect("written");
    let (code, said) = model(&add);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("no GGUF file"), "{said}");
    assert!(!Path::new(kept).exists());
}
