//! What commands share: where the node is, and how they answer.

use std::{collections::BTreeMap, path::PathBuf};

use serde::Serialize;
use serde_json::{Map, Value};

use super::{
    Global,
    exit::{Exit, Failure},
    screen,
};
use crate::{
    client::Client,
    config::{self, FlagValue, Loaded, Sources},
    data_dir::DataDir,
};

/// The arguments that every command understands, and the environment.
#[derive(Debug)]
pub(super) struct Context {
    global: Global,
    environment: BTreeMap<String, String>,
}

impl Context {
    pub(super) fn new(global: Global) -> Self {
        Self {
            global,
            environment: config::process_environment(),
        }
    }

    /// Whether the answer is JSON.
    pub(super) const fn json(&self) -> bool {
        self.global.json
    }

    /// The configuration, with a command's own flags on top.
    pub(super) fn load(&self, flags: Vec<FlagValue>) -> Result<Loaded, Failure> {
        Ok(config::load(&self.sources(flags)?)?)
    }

    /// The same, for commands that mend what values that don't go together lack.
    pub(super) fn read(&self) -> Result<Loaded, Failure> {
        Ok(config::read(&self.sources(Vec::new())?)?)
    }

    fn sources(&self, flags: Vec<FlagValue>) -> Result<Sources, Failure> {
        let mut all = Vec::new();
        if let Some(dir) = &self.global.data_dir {
            all.push(flag("data_dir", dir.display().to_string()));
        }
        all.extend(flags);
        for set in &self.global.set {
            let Some((key, value)) = set.split_once('=') else {
                let message =
                    format!("--set {set}: write --set KEY=VALUE, as in --set provide.slots=2");
                return Err(Failure::new(Exit::Usage, message));
            };
            all.push(FlagValue {
                flag: format!("--set {key}"),
                key: key.trim().to_owned(),
                value: value.trim().to_owned(),
            });
        }
        Ok(Sources {
            file: self.config_file(),
            environment: self.environment.clone(),
            flags: all,
        })
    }

    /// The configuration file that counts, if there is one.
    pub(super) fn config_file(&self) -> Option<PathBuf> {
        if let Some(file) = &self.global.config {
            return Some(file.clone());
        }
        let set = |name: &str| {
            let value = self.environment.get(name);
            value.filter(|value| !value.is_empty()).map(PathBuf::from)
        };
        if let Some(file) = set("SUANLI_CONFIG") {
            return Some(file);
        }
        let data_dir = self.global.data_dir.clone();
        let beside = data_dir.or_else(|| set("SUANLI_DATA_DIR"));
        let beside = beside.map(|dir| dir.join("config.toml"));
        let own = set("XDG_CONFIG_HOME").or_else(|| set("HOME").map(|home| home.join(".config")));
        let own = own.map(|dir| dir.join("suanli/config.toml"));
        [beside, own]
            .into_iter()
            .flatten()
            .find(|file| file.is_file())
    }

    /// The daemon.
    pub(super) fn client(&self) -> Result<Client, Failure> {
        let loaded = self.load(Vec::new())?;
        Ok(Client::find(&DataDir::of(&loaded.config))?)
    }

    /// Prints the answer: JSON as it is, or what `text` makes for people.
    pub(super) fn answer<T: Serialize>(&self, value: &T, text: impl FnOnce(&T) -> String) {
        if self.json() {
            print_json(value);
        } else {
            screen::print(&text(value));
        }
    }

    /// Says why a command did not do what it should.
    pub(super) fn say_failure(&self, failure: &Failure) {
        if !self.json() {
            let message = screen::visible_lines(&failure.message);
            screen::print_aside(&format!("suanli: {message}\n"));
            return;
        }
        say_as_json(failure);
    }
}

/// A failure for programs.
pub(super) fn say_as_json(failure: &Failure) {
    let mut answer = Map::new();
    answer.insert("error".into(), failure.message.clone().into());
    answer.insert("exit_code".into(), failure.exit.number().into());
    if let Some((name, value)) = &failure.detail {
        answer.insert((*name).to_owned(), value.clone());
    }
    print_json(&Value::Object(answer));
}

/// A flag that sets the key of the same name.
pub(super) fn flag(key: &str, value: impl Into<String>) -> FlagValue {
    FlagValue {
        flag: format!("--{}", key.replace('_', "-")),
        key: key.to_owned(),
        value: value.into(),
    }
}

fn print_json<T: Serialize>(value: &T) {
    // Our types have text for keys and no other reason to fail.
    let mut text = serde_json::to_string_pretty(value).unwrap_or_default();
    text.push('\n');
    screen::print(&text);
}

/// The path of a thing with an id, or with the first digits of one.
pub(super) fn path(things: &str, id: &str) -> Result<String, Failure> {
    let is_prefix = (1..=64).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_hexdigit());
    if is_prefix {
        return Ok(format!("/v1/{things}/{}", id.to_ascii_lowercase()));
    }
    let message = format!(
        "`{}` is no id: give its first hex digits, as the lists show them",
        screen::visible(id)
    );
    Err(Failure::new(Exit::Usage, message))
}
