//! What handlers read from a request, with sentences for what is wrong.

use std::time::Duration;

use axum::{
    extract::{FromRequest, FromRequestParts, Query, Request},
    http::{StatusCode, header, request::Parts},
};
use serde::{Deserialize, de::DeserializeOwned};

use super::{JSON_BYTES_MAX, problem::Problem};

/// How long a JSON body may take to come.
const JSON_WAIT: Duration = Duration::from_secs(10);

/// A JSON body.
pub(super) struct JsonBody<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for JsonBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let is_json = request
            .headers()
            .get(header::CONTENT_TYPE)
            .and_then(|kind| kind.to_str().ok())
            .and_then(|kind| kind.split(';').next())
            .is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"));
        if !is_json {
            return Err(Problem::usage(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "the body must be JSON, and say so: `Content-Type: application/json`",
            ));
        }
        let body = axum::body::to_bytes(request.into_body(), JSON_BYTES_MAX);
        let bytes = tokio::time::timeout(JSON_WAIT, body)
            .await
            .map_err(|_| {
                Problem::usage(
                    StatusCode::REQUEST_TIMEOUT,
                    "the body did not come in time; send it again",
                )
            })?
            .map_err(|_| {
                Problem::usage(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    format!(
                        "the body broke off, or has more than {JSON_BYTES_MAX} bytes; upload data by POST /v1/blobs"
                    ),
                )
            })?;
        serde_json::from_slice(&bytes).map(Self).map_err(|error| {
            Problem::usage(
                StatusCode::UNPROCESSABLE_ENTITY,
                format!("the body is not what belongs here: {error}"),
            )
        })
    }
}

/// The part of the address after the question mark.
pub(super) struct Params<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Query::<T>::from_request_parts(parts, state).await {
            Ok(Query(params)) => Ok(Self(params)),
            Err(error) => Err(Problem::usage(
                StatusCode::BAD_REQUEST,
                format!("after the `?` of the address: {error}"),
            )),
        }
    }
}

/// Where a part of a statement begins.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct After {
    pub(super) after: Option<u64>,
}

/// How much of a list.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Page {
    limit: Option<usize>,
}

impl Page {
    pub(super) fn limit(self, default: usize, max: usize) -> usize {
        self.limit.unwrap_or(default).clamp(1, max)
    }
}
