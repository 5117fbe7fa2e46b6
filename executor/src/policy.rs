//! What a confined worker may do: the policy file, as it was built in.
//!
//! `policy.toml` is the only place where permissions stand, each with its
//! reason. The worker turns them into a Landlock ruleset and a seccomp filter;
//! this module only reads them. Absent: enforcing (see the worker's `confine`).

use std::path::PathBuf;

use serde::Deserialize;

const TEXT: &str = include_str!("../policy.toml");

/// Everything that is permitted.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Files and folders.
    #[serde(rename = "file")]
    pub files: Vec<FilePermission>,
    /// System calls.
    #[serde(rename = "system_call")]
    pub system_calls: Vec<CallPermission>,
    /// System calls that end the worker.
    #[serde(rename = "attack")]
    pub attacks: Vec<Attack>,
}

/// System calls that no driver makes.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attack {
    /// Which.
    pub names: Vec<String>,
    /// The one architecture that has them, if not all do.
    pub on: Option<String>,
    /// What they would be for.
    pub why: String,
}

/// Files that may be opened.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FilePermission {
    /// Which, with all below them.
    pub paths: Vec<PathBuf>,
    /// For what.
    pub access: Access,
    /// The reason.
    pub why: String,
}

/// What a file may be opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// Reading files and listing folders.
    Read,
    /// Reading, writing and controlling a device.
    Device,
}

/// System calls that may be made.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CallPermission {
    /// Which.
    pub names: Vec<String>,
    /// The one architecture that has them, if not all do.
    pub on: Option<String>,
    /// What all must hold of their arguments.
    #[serde(default, rename = "where")]
    pub conditions: Vec<Condition>,
    /// The reason.
    pub why: String,
}

/// What must hold of an argument: one of the two is there.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Condition {
    /// Which argument, from 0.
    pub argument: u8,
    /// It is this.
    pub equals: Option<Value>,
    /// It has these bits set.
    pub has_bits: Option<u64>,
}

/// What an argument is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Value {
    /// A number.
    Number(u64),
    /// Something known only to the worker.
    Known(Known),
}

/// What only the worker knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Known {
    /// Its process id.
    #[serde(rename = "own process")]
    OwnProcess,
}

/// Why the policy can't be read: a mistake of ours.
#[derive(Debug, thiserror::Error)]
#[error("the worker's policy file: {0}")]
pub struct PolicyError(#[from] toml::de::Error);

impl Policy {
    /// Reads the policy.
    ///
    /// # Errors
    /// If the file that was built in is no policy; the tests rule that out.
    pub fn read() -> Result<Self, PolicyError> {
        Ok(toml::from_str(TEXT)?)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_permission_is_given_once_and_with_its_reason() {
        let policy = Policy::read().unwrap();
        let mut seen = BTreeSet::new();
        for call in &policy.system_calls {
            assert!(call.why.len() > 20, "{:?}", call.names);
            for name in &call.names {
                assert!(seen.insert(name), "{name} twice");
            }
            for condition in &call.conditions {
                let one = condition.equals.is_some() != condition.has_bits.is_some();
                assert!(one && condition.argument < 6, "{:?}", call.names);
            }
        }
        for attack in &policy.attacks {
            assert!(attack.why.len() > 10, "{:?}", attack.names);
            for name in &attack.names {
                assert!(seen.insert(name), "{name} is permitted, or there twice");
            }
        }
        for file in &policy.files {
            assert!(file.why.len() > 10, "{:?}", file.paths);
            assert!(file.paths.iter().all(|path| path.is_absolute()));
        }
    }

    #[test]
    fn what_would_open_the_sandbox_is_not_permitted() {
        let policy = Policy::read().unwrap();
        let free: BTreeSet<&str> = policy
            .system_calls
            .iter()
            .filter(|call| call.conditions.is_empty())
            .flat_map(|call| call.names.iter().map(String::as_str))
            .collect();
        for name in [
            "clone",
            "clone3",
            "fork",
            "vfork",
            "execve",
            "execveat",
            "socket",
            "socketpair",
            "connect",
            "bind",
            "accept4",
            "ptrace",
            "process_vm_readv",
            "process_vm_writev",
            "kill",
            "tkill",
            "tgkill",
            "pidfd_open",
            "pidfd_getfd",
            "pidfd_send_signal",
            "unshare",
            "setns",
            "mount",
            "umount2",
            "pivot_root",
            "chroot",
            "bpf",
            "perf_event_open",
            "io_uring_setup",
            "userfaultfd",
            "keyctl",
            "add_key",
            "setuid",
            "setrlimit",
            "prctl",
            "prlimit64",
            "unlinkat",
            "renameat2",
            "linkat",
            "symlinkat",
            "mkdirat",
            "chmod",
            "shmget",
            "msgget",
            "semget",
            "seccomp",
            "open_by_handle_at",
            "init_module",
        ] {
            assert!(!free.contains(name), "{name}");
        }
        let written = policy.files.iter().filter(|f| f.access == Access::Device);
        for path in written.flat_map(|file| &file.paths) {
            assert!(path.starts_with("/dev"), "{}", path.display());
        }
    }
}
