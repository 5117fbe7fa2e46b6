//! `suanli doctor`: what works on this machine, and what doesn't.
//!
//! Each check is a line: what was looked at, what was found, and, where
//! something is missing, what to do. It changes nothing.

use std::{fmt, net::TcpListener, path::Path};

use serde::Serialize;
use serde_json::json;
use suanli_executor::{
    Adapter, Confinement, WorkerProgram,
    ipc::{CAPPED, EMPTY_ROOT, FILES_LOCKED, NOT_ROOT, OWN_NAMESPACES, SYSTEM_CALLS_FILTERED},
};
use suanli_protocol::ids::NetworkId;

use super::{
    context::Context,
    exit::{Exit, Failure},
    pause::in_words,
    screen::{Table, bytes},
};
use crate::{
    api::types::Status,
    client::Client,
    config::Config,
    data_dir::{DataDir, check_private},
    identity::{Identity, IdentityError},
    neighbours::{Neighbours, Source},
};

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Check {
    what: &'static str,
    found: Found,
    detail: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Found {
    /// As it should be.
    Ok,
    /// Works, with less than there could be.
    Warning,
    /// Does not work.
    Broken,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Broken => "BROKEN",
        })
    }
}

pub(super) async fn run(context: &Context) -> Result<(), Failure> {
    let checks = examine(context).await;
    let broken = checks.iter().filter(|check| check.found == Found::Broken);
    let failure = match broken.count() {
        0 => None,
        count => Some(Failure::new(
            Exit::Unusable,
            format!(
                "{count} of {} checks failed; each says what to do",
                checks.len()
            ),
        )),
    };
    match failure {
        // One JSON value in all: the failure carries the checks.
        Some(failure) if context.json() => Err(failure.with("checks", json!(checks))),
        failure => {
            context.answer(&checks, |checks| table(checks));
            failure.map_or(Ok(()), Err)
        }
    }
}

fn table(checks: &[Check]) -> String {
    let mut table = Table::new(&["check", "", "found"]);
    for check in checks {
        table.row([
            check.what.into(),
            check.found.to_string(),
            check.detail.clone(),
        ]);
    }
    table.render(0)
}

async fn examine(context: &Context) -> Vec<Check> {
    let mut checks = Vec::new();
    let file = match context.config_file() {
        Some(file) => file.display().to_string(),
        None => "defaults, environment and flags; no file".to_owned(),
    };
    let config = match context.load(Vec::new()) {
        Ok(loaded) => loaded.config,
        Err(failure) => {
            checks.push(broken("configuration", failure.message));
            return checks;
        }
    };
    checks.push(ok("configuration", file));
    let dir = DataDir::of(&config);
    checks.push(data_dir(&dir));
    checks.extend(keys(&dir, &config));
    checks.extend(worker(&config).await);
    checks.extend(daemon(&dir, &config).await);
    checks
}

fn data_dir(dir: &DataDir) -> Check {
    let what = "data directory";
    let path = dir.root().display();
    match std::fs::metadata(dir.root()) {
        Ok(metadata) if !metadata.is_dir() => broken(what, format!("{path} is no folder")),
        Ok(metadata) if metadata.permissions().readonly() => broken(
            what,
            format!("{path} can't be written to; change its owner or permissions"),
        ),
        Ok(_) => ok(what, path.to_string()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => warning(
            what,
            format!("{path} is not there yet; `suanli node` makes it"),
        ),
        Err(error) => broken(what, format!("{path}: {error}")),
    }
}

fn keys(dir: &DataDir, config: &Config) -> Vec<Check> {
    let what = "keys";
    let exposed = [dir.node_key(), dir.account_key(), dir.token()]
        .iter()
        .filter(|path| path.exists())
        .filter_map(|path| check_private(path).err())
        .map(|error| broken(what, error.to_string()))
        .collect::<Vec<_>>();
    if !exposed.is_empty() {
        return exposed;
    }
    let check = match Identity::open(dir, NetworkId::of(&config.network)) {
        Ok(identity) => ok(
            what,
            format!("peer {}, account {}", identity.peer(), identity.account),
        ),
        Err(error @ IdentityError::None(_)) => warning(what, error.to_string()),
        Err(
            error @ (IdentityError::File(_)
            | IdentityError::Delegation { .. }
            | IdentityError::OtherNetwork(_)),
        ) => broken(what, error.to_string()),
    };
    vec![check]
}

async fn worker(config: &Config) -> Vec<Check> {
    let program = match WorkerProgram::find(config.worker.as_deref()) {
        Ok(program) => program,
        Err(error) => return vec![broken("worker", error.to_string())],
    };
    let path = match &config.worker {
        Some(path) => path.display().to_string(),
        None => "suanli-worker, beside suanli".to_owned(),
    };
    let mut checks = vec![ok("worker", path)];
    match program.probe().await {
        Ok((adapters, confinement)) => {
            checks.extend(self::adapters(&adapters));
            checks.extend(sandbox(&confinement));
        }
        Err(error) => checks.push(broken("adapters", error.to_string())),
    }
    checks
}

fn adapters(adapters: &[Adapter]) -> Vec<Check> {
    if adapters.is_empty() {
        let message = "none: buying works, and selling wasm; to sell wgsl, install a Vulkan \
                       driver (Debian: mesa-vulkan-drivers; NVIDIA: its own)";
        return vec![warning("adapters", message.to_owned())];
    }
    let lines = adapters.iter().flat_map(|adapter| {
        let detail = format!(
            "#{} {} ({}, {}), {}, bindings of {} at most",
            adapter.index,
            &*adapter.name,
            &*adapter.backend,
            &*adapter.driver,
            bytes(adapter.memory_bytes),
            bytes(adapter.binding_bytes_max)
        );
        if adapter.is_software() {
            let detail = format!("{detail}; software: sold as cpu, never as gpu");
            vec![warning("adapter", detail)]
        } else {
            vec![ok("adapter", detail), neighbours(adapter)]
        }
    });
    lines.collect()
}

/// What says here whether other programs use an adapter.
fn neighbours(adapter: &Adapter) -> Check {
    let what = "yielding";
    let found = Neighbours::find(Path::new("/"), adapter);
    let name = &*adapter.name;
    match found.source() {
        Source::Drm => {
            let detail =
                "/proc/*/fdinfo says which programs use it: those of this user, all for root";
            ok(what, format!("{name}: {detail}"))
        }
        Source::NvidiaSmi(program) => {
            let program = program.display();
            let detail = "says which programs have a compute context on it; not graphics";
            ok(what, format!("{name}: {program} {detail}"))
        }
        Source::None(advice) => {
            let detail = "nothing says whether other programs use it, so a node does not yield";
            warning(what, format!("{name}: {detail}; {advice}"))
        }
    }
}

/// What to do about a layer that is missing.
fn advice(layer: &str) -> &'static str {
    if layer.starts_with(FILES_LOCKED) {
        "use Linux 5.19 or later, with `landlock` in the kernel's `lsm=` list"
    } else if layer.starts_with(SYSTEM_CALLS_FILTERED) {
        "use a kernel with seccomp filters, in a container that permits them"
    } else if layer.starts_with(OWN_NAMESPACES) {
        "permit user namespaces (`sysctl user.max_user_namespaces`, or the container's settings)"
    } else if layer.starts_with(EMPTY_ROOT) {
        "use Linux 5.12 or later, and permit user namespaces and mounts in them (AppArmor, or the container's settings)"
    } else if layer.starts_with(CAPPED) {
        "run the node as a systemd service with `Delegate=yes` (here `suanli doctor` looks at its own group, not at the node's)"
    } else if layer.starts_with(NOT_ROOT) {
        "run the node as an ordinary user"
    } else {
        "raise the limits of the user or container that runs the node"
    }
}

fn sandbox(confinement: &Confinement) -> Vec<Check> {
    let held = confinement.held.iter().map(|layer| layer.to_string());
    let held = held.collect::<Vec<_>>().join(", ");
    let level = confinement.level();
    let mut checks = vec![ok("sandbox", format!("level {level}; held: {held}"))];
    checks.extend(confinement.missing.iter().map(|layer| {
        let advice = advice(layer);
        warning("sandbox", format!("missing: {}; {advice}", &**layer))
    }));
    let gpu = "with a GPU, its kernel driver is the boundary that a job meets";
    checks.push(warning("sandbox", gpu.to_owned()));
    checks
}

async fn daemon(dir: &DataDir, config: &Config) -> Vec<Check> {
    let status = match Client::find(dir) {
        Ok(client) => client.get::<Status>("/v1/status").await,
        Err(error) => Err(error),
    };
    let status = match status {
        Ok(status) => status,
        Err(error) => {
            let port = match TcpListener::bind(config.api) {
                Ok(_) => ok("api port", format!("{} is free", config.api)),
                Err(error) => broken(
                    "api port",
                    format!("{}: {error}; set another `api`, or port 0", config.api),
                ),
            };
            return vec![warning("daemon", error.to_string()), port];
        }
    };
    let mut checks = vec![ok(
        "daemon",
        format!(
            "process {}, version {}, {} peers, {} offers",
            status.pid, status.version, status.peers, status.offers
        ),
    )];
    if status.peers == 0 {
        let message = "connected with nobody: set `bootstrap` to the address of a peer";
        checks.push(warning("network", message.to_owned()));
    }
    if status.providing && status.local_only {
        let message = format!(
            "accounts that are not known are served only from this machine: its sandbox is \
             `{}`, and provide.sandbox_min wants more; the layers that are missing stand above",
            status.sandbox
        );
        checks.push(warning("strangers", message));
    }
    if let Some(pause) = &status.paused {
        checks.push(warning("selling", in_words(pause)));
    }
    if let Some(fault) = status.store_failed {
        checks.push(broken("store", fault));
    }
    checks
}

fn ok(what: &'static str, detail: String) -> Check {
    Check {
        what,
        found: Found::Ok,
        detail,
    }
}

fn warning(what: &'static str, detail: String) -> Check {
    Check {
        what,
        found: Found::Warning,
        detail,
    }
}

fn broken(what: &'static str, detail: String) -> Check {
    Check {
        what,
        found: Found::Broken,
        detail,
    }
}
