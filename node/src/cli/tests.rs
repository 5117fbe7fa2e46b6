//! What people see of the command line before any daemon runs.

use clap::Parser as _;

use super::*;

#[test]
fn the_definition_holds() {
    definition().debug_assert();
}

#[test]
fn help_texts_are_for_people() {
    let mut texts = Vec::new();
    collect(definition(), "suanli", &mut texts);
    insta::assert_snapshot!(texts.join("\n"));
}

/// The long help of a command and of those below it, without what all share.
fn collect(command: clap::Command, name: &str, texts: &mut Vec<String>) {
    let mut shown = command.clone().term_width(90).bin_name(name);
    let help = shown.render_long_help().to_string();
    let help = help.split("\nEverywhere:").collect::<Vec<_>>();
    let own = help.first().copied().unwrap_or_default();
    let lines = own.lines().map(str::trim_end).collect::<Vec<_>>();
    texts.push(format!("======== {name}\n{}", lines.join("\n").trim_end()));
    for below in command.get_subcommands() {
        collect(
            below.clone(),
            &format!("{name} {}", below.get_name()),
            texts,
        );
    }
}

#[test]
fn wrong_use_is_refused_before_anything_runs() {
    for wrong in [
        &["suanli"][..],
        &["suanli", "rnu", "job.toml"],
        &["suanli", "run"],
        &["suanli", "run", "job.toml", "--policy", "best"],
        &["suanli", "run", "job.toml", "--max-price", "lots"],
        &["suanli", "run", "job.toml", "--dry-run", "-y"],
        &["suanli", "receipt", "verify"],
    ] {
        let error = Cli::try_parse_from(wrong).unwrap_err();
        assert_eq!(
            error.exit_code(),
            i32::from(Exit::Usage.number()),
            "{wrong:?}"
        );
    }
}
