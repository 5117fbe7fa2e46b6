//! What goes wrong in a request, as status, sentence and exit code.
//!
//! The exit codes are those of `docs/exit-codes.md`: the command line ends
//! with the one that it is given here. No text holds the token, or any header.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use suanli_protocol::peer::{NotSettled, Unanswered, Unreferred};

use crate::{
    api::{types::ApiError, views},
    handle::{Gone, NotPaused, NotTaken, decline_words},
    records::ArchiveError,
    store::{blobs::BlobError, index::FindError},
};

/// Wrong use.
const USAGE: u8 = 2;
/// No daemon, or none that answers now.
const NO_DAEMON: u8 = 3;
/// No provider serves.
const NO_PROVIDER: u8 = 4;
/// The data directory is not usable.
const DATA: u8 = 7;
/// Whom the job is for may not spend that much.
const OVER_BUDGET: u8 = 9;

/// A request that did not succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    status: StatusCode,
    error: ApiError,
}

impl Problem {
    /// The caller is wrong.
    pub(crate) fn usage(status: StatusCode, sentence: impl Into<String>) -> Self {
        Self::new(status, USAGE, sentence)
    }

    /// What is wrong, in words.
    pub(crate) fn sentence(&self) -> &str {
        &self.error.error
    }

    /// There is nothing by that name.
    pub(crate) fn unknown(what: &str, name: &str) -> Self {
        let name: String = name.chars().take(80).collect();
        Self::usage(
            StatusCode::NOT_FOUND,
            format!("there is no {what} {name:?}; `suanli {what} list` shows those that there are"),
        )
    }

    /// No token, or a wrong one.
    pub(crate) fn unauthorised() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            DATA,
            "the API token is missing or wrong; use the one in the data directory of this daemon",
        )
    }

    /// An API key where only the token counts.
    pub(crate) fn not_for_keys() -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            DATA,
            "an API key asks models and nothing else (/v1/models, /v1/chat/completions, /v1/completions, /v1/embeddings, /v1/responses); all other paths want the token in the data directory of this daemon",
        )
    }

    /// Too much at once.
    pub(crate) fn too_many(what: &str) -> Self {
        Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            NO_DAEMON,
            format!("too many {what} at once; try again in a second"),
        )
    }

    /// The daemon's own fault.
    pub(crate) fn internal(sentence: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, DATA, sentence)
    }

    /// A challenge that came to nothing.
    pub(crate) fn unanswered(why: &Unanswered) -> Self {
        let usage = |sentence: &str| Self::usage(StatusCode::CONFLICT, sentence);
        match why {
            Unanswered::Own => usage(
                "it is this node's own offer: `suanli bench` measures this machine; challenge it from another node",
            ),
            Unanswered::NothingClaimed => usage(
                "its offer claims no speed that a challenge could show; `suanli offer show` lists what it claims",
            ),
            Unanswered::TooMany => usage(
                "a challenge of it is under way, or as many as there may be; try again in half a minute",
            ),
            Unanswered::Declined(decline) => {
                let (_, sentence) = decline_words(decline);
                let sentence = format!("the provider declined the challenge: {sentence}");
                Self::new(StatusCode::BAD_GATEWAY, NO_PROVIDER, sentence)
            }
            Unanswered::Silent => Self::new(
                StatusCode::GATEWAY_TIMEOUT,
                NO_PROVIDER,
                "the provider did not answer the challenge in time; that says nothing about its speed: try again later",
            ),
        }
    }

    /// References that are not to be had.
    pub(crate) fn unreferred(why: &Unreferred) -> Self {
        let usage = |sentence: &str| Self::usage(StatusCode::CONFLICT, sentence);
        match why {
            Unreferred::Own => usage("it is this node: it needs no references to itself"),
            Unreferred::NoOffer => {
                usage("it has no offer now; `suanli offer list` shows who offers, and can be asked")
            }
            Unreferred::TooMany => usage(
                "it is being asked already, or as many as may be are; try again in ten seconds",
            ),
            Unreferred::Declined(decline) => {
                let (_, sentence) = decline_words(decline);
                let sentence = format!("the provider shows no references: {sentence}");
                Self::new(StatusCode::BAD_GATEWAY, NO_PROVIDER, sentence)
            }
            Unreferred::Silent => Self::new(
                StatusCode::GATEWAY_TIMEOUT,
                NO_PROVIDER,
                "the provider did not answer in ten seconds; nothing has changed: try again later",
            ),
        }
    }

    /// A payment that can't be declared.
    pub(crate) fn not_settled(why: NotSettled) -> Self {
        let status = match why {
            NotSettled::UnknownChannel => StatusCode::NOT_FOUND,
            NotSettled::Own | NotSettled::Nothing | NotSettled::TooMuch => {
                StatusCode::UNPROCESSABLE_ENTITY
            }
            NotSettled::NotInStep | NotSettled::TooManyChannels => StatusCode::CONFLICT,
        };
        let next = match why {
            NotSettled::NotInStep => "; try again when `suanli peer list` shows it",
            _ => "",
        };
        Self::usage(status, format!("{why}{next}"))
    }

    fn new(status: StatusCode, exit_code: u8, sentence: impl Into<String>) -> Self {
        let error = sentence.into();
        Self {
            status,
            error: ApiError { error, exit_code },
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.error)).into_response();
        if self.status == StatusCode::TOO_MANY_REQUESTS {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

impl From<Gone> for Problem {
    fn from(gone: Gone) -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            NO_DAEMON,
            format!("{gone}; start it again with `suanli node`"),
        )
    }
}

impl From<views::Refused> for Problem {
    fn from(refused: views::Refused) -> Self {
        Self::usage(StatusCode::UNPROCESSABLE_ENTITY, refused.to_string())
    }
}

impl From<NotTaken> for Problem {
    fn from(not_taken: NotTaken) -> Self {
        let sentence = not_taken.to_string();
        match not_taken {
            NotTaken::Store(_) => Self::new(StatusCode::INSUFFICIENT_STORAGE, DATA, sentence),
            NotTaken::BlobMissing(_) => Self::usage(StatusCode::CONFLICT, sentence),
            NotTaken::OverBudget { .. } => {
                Self::new(StatusCode::PAYMENT_REQUIRED, OVER_BUDGET, sentence)
            }
            NotTaken::TooMany(_) => Self::new(StatusCode::TOO_MANY_REQUESTS, NO_DAEMON, sentence),
        }
    }
}

impl From<NotPaused> for Problem {
    fn from(not_paused: NotPaused) -> Self {
        let sentence = not_paused.to_string();
        match not_paused {
            NotPaused::SellsNothing => Self::usage(StatusCode::CONFLICT, sentence),
            NotPaused::NotKept(_) => Self::internal(sentence),
        }
    }
}

impl From<ArchiveError> for Problem {
    fn from(error: ArchiveError) -> Self {
        let sentence = error.to_string();
        match error {
            ArchiveError::Find(FindError::Busy | FindError::Stopped) | ArchiveError::Stopping => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, NO_DAEMON, sentence)
            }
            ArchiveError::Find(FindError::Unavailable(_) | FindError::Read(_))
            | ArchiveError::Unreadable { .. } => Self::internal(sentence),
        }
    }
}

impl From<BlobError> for Problem {
    fn from(error: BlobError) -> Self {
        let sentence = error.to_string();
        match error {
            BlobError::QuotaExceeded { .. } | BlobError::NoRoom(_) => {
                Self::new(StatusCode::INSUFFICIENT_STORAGE, DATA, sentence)
            }
            BlobError::Unknown => Self::usage(
                StatusCode::NOT_FOUND,
                "the bytes are no longer here; results are kept for a limited time",
            ),
            BlobError::Mismatch => Self::usage(StatusCode::UNPROCESSABLE_ENTITY, sentence),
            BlobError::Present | BlobError::Incoming => Self::usage(StatusCode::CONFLICT, sentence),
            BlobError::Io(_) => Self::internal(format!(
                "{sentence}; check the data directory's disk, owner and mode"
            )),
        }
    }
}
