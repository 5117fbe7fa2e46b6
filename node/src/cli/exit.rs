//! How a command ends: the codes of `docs/exit-codes.md`, and a sentence.

use std::process::ExitCode;

use serde_json::Value;

use crate::{
    client::ClientError, config::ConfigError, data_dir::DataDirError, identity::IdentityError,
    jobfile::JobFileError,
};

/// Exit codes. They don't change their meaning between versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exit {
    /// Done.
    Done,
    /// The job failed.
    JobFailed,
    /// Wrong use, or a job file with a mistake in it.
    Usage,
    /// No daemon, or no connection to it.
    NoDaemon,
    /// No provider: none is eligible, or all declined.
    NoProvider,
    /// Cancelled, by the client or by the provider.
    Cancelled,
    /// A receipt, a result or a signature is not right.
    NotVerified,
    /// The data directory, the key or the configuration is not usable.
    Unusable,
    /// A time limit ran out.
    TimeLimit,
    /// Whom the job is for has not that much of its budget left.
    OverBudget,
    /// Interrupted before the command was done.
    Interrupted,
}

impl Exit {
    const ALL: [Self; 11] = [
        Self::Done,
        Self::JobFailed,
        Self::Usage,
        Self::NoDaemon,
        Self::NoProvider,
        Self::Cancelled,
        Self::NotVerified,
        Self::Unusable,
        Self::TimeLimit,
        Self::OverBudget,
        Self::Interrupted,
    ];

    /// As a number.
    pub(super) const fn number(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::JobFailed => 1,
            Self::Usage => 2,
            Self::NoDaemon => 3,
            Self::NoProvider => 4,
            Self::Cancelled => 5,
            Self::NotVerified => 6,
            Self::Unusable => 7,
            Self::TimeLimit => 8,
            Self::OverBudget => 9,
            Self::Interrupted => 130,
        }
    }

    /// For the operating system.
    pub(super) fn code(self) -> ExitCode {
        ExitCode::from(self.number())
    }

    /// The code that a daemon named.
    fn named(number: u8) -> Self {
        let mut all = Self::ALL.into_iter();
        all.find(|exit| exit.number() == number && *exit != Self::Done)
            .unwrap_or(Self::JobFailed)
    }

    /// The code for a job's end, from its state and reason.
    pub(super) fn of_job(state: &str, reason: Option<&str>) -> Self {
        match (state, reason) {
            ("done", _) => Self::Done,
            ("cancelled", _) => Self::Cancelled,
            ("expired", _) | (_, Some("deadline" | "job-deadline")) => Self::TimeLimit,
            ("declined", _) | (_, Some("no-offer" | "providers-used-up" | "over-budget")) => {
                Self::NoProvider
            }
            _ => Self::JobFailed,
        }
    }
}

/// Why a command did not do what it should.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(super) struct Failure {
    /// How the process ends.
    pub(super) exit: Exit,
    /// What happened, and what to do next.
    pub(super) message: String,
    /// What else there is to say, beside `error` with `--json`.
    pub(super) detail: Option<(&'static str, Value)>,
}

impl Failure {
    pub(super) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
            detail: None,
        }
    }

    /// And what to do next, after what happened.
    pub(super) fn then(mut self, next: &str) -> Self {
        self.message.push_str(next);
        self
    }

    /// Of which of several things it tells.
    pub(super) fn of_part(mut self, part: &str) -> Self {
        self.message.insert_str(0, &format!("{part}: "));
        self
    }

    /// With more to say in JSON.
    pub(super) fn with(mut self, name: &'static str, value: Value) -> Self {
        self.detail = Some((name, value));
        self
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::new(Exit::Unusable, error.to_string())
    }
}

impl From<DataDirError> for Failure {
    fn from(error: DataDirError) -> Self {
        Self::new(Exit::Unusable, error.to_string())
    }
}

impl From<IdentityError> for Failure {
    fn from(error: IdentityError) -> Self {
        Self::new(Exit::Unusable, error.to_string())
    }
}

impl From<JobFileError> for Failure {
    fn from(error: JobFileError) -> Self {
        let exit = match error {
            JobFileError::Read(_) | JobFileError::Mistake(_) | JobFileError::Program { .. } => {
                Exit::Usage
            }
            JobFileError::Check(_) => Exit::Unusable,
        };
        Self::new(exit, error.to_string())
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let exit = match &error {
            ClientError::NoDaemon(_)
            | ClientError::Unreachable { .. }
            | ClientError::Silent { .. }
            | ClientError::Broken(_)
            | ClientError::Unreadable(_) => Exit::NoDaemon,
            ClientError::DataDir(_) | ClientError::File { .. } => Exit::Unusable,
            ClientError::Api(error) => Exit::named(error.exit_code),
        };
        Self::new(exit, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_documented() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/exit-codes.md");
        let page = std::fs::read_to_string(page).unwrap();
        for exit in Exit::ALL {
            let row = format!("| {} |", exit.number());
            assert!(page.contains(&row), "{row} is not in docs/exit-codes.md");
        }
    }

    #[test]
    fn a_jobs_end_has_a_code() {
        assert_eq!(Exit::of_job("done", None), Exit::Done);
        assert_eq!(Exit::of_job("failed", Some("deadline")), Exit::TimeLimit);
        assert_eq!(Exit::of_job("failed", Some("device-lost")), Exit::JobFailed);
        assert_eq!(Exit::of_job("failed", Some("no-offer")), Exit::NoProvider);
        assert_eq!(Exit::of_job("declined", None), Exit::NoProvider);
        assert_eq!(Exit::of_job("expired", None), Exit::TimeLimit);
        assert_eq!(Exit::named(0), Exit::JobFailed);
        assert_eq!(Exit::named(4), Exit::NoProvider);
    }
}
