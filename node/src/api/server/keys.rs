//! API keys: made, listed and revoked, by whoever has the node's own token.

use std::{collections::HashMap, time::Duration};

use axum::{
    Json,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header},
};
use suanli_protocol::{
    limits::BUDGET_DAYS_MAX,
    peer::{Budget, BudgetView},
    units::Wall,
};

use super::{Shared, input::JsonBody, problem::Problem};
use crate::{
    api::types::{KeyInfo, KeyMade, KeyOrder, ShownSecret},
    keys::{Key, KeyName, KeysError, Terms, model_names, rate_of},
    wall::wall,
};

const DAY: Duration = Duration::from_secs(24 * 3600);
/// Days of a budget whose order names none.
const BUDGET_DAYS: u16 = 30;
/// Days that a key may hold, at most: a century.
const EXPIRES_DAYS_MAX: u32 = 36_525;

/// `GET /v1/keys`.
pub(super) async fn list(State(api): Shared) -> Result<Json<Vec<KeyInfo>>, Problem> {
    let budgets = api.handle.budgets().await?;
    let budgets: HashMap<&str, &BudgetView> = budgets
        .iter()
        .map(|view| (view.principal.as_str(), view))
        .collect();
    let now = wall();
    let all = api.keys.all();
    let infos = all.iter().map(|key| {
        let view = budgets.get(&**key.principal()).copied();
        info(key, view, now)
    });
    Ok(Json(infos.collect()))
}

/// `POST /v1/keys`: the one answer that holds the secret.
pub(super) async fn create(
    api: Shared,
    headers: HeaderMap,
    order: JsonBody<KeyOrder>,
) -> Result<Json<KeyMade>, Problem> {
    let now = wall();
    let (name, terms) = read(order.0, now)?;
    let (key, secret) = api.keys.create(name, terms).await?;
    // The guard has seen that it names this server.
    let host = headers.get(header::HOST).and_then(|it| it.to_str().ok());
    let view = api.handle.budget(key.principal().clone()).await?;
    Ok(Json(KeyMade {
        key: info(&key, Some(&view), now),
        secret: ShownSecret::new(secret.tell()),
        base_url: format!("http://{}/v1", host.unwrap_or("localhost")),
    }))
}

/// `POST /v1/keys/{name}/revoke`.
pub(super) async fn revoke(
    api: Shared,
    Path(name): Path<String>,
) -> Result<Json<KeyInfo>, Problem> {
    let name =
        KeyName::new(&name).map_err(|_| KeysError::Unknown(name.chars().take(80).collect()))?;
    let key = api.keys.revoke(name).await?;
    let view = api.handle.budget(key.principal().clone()).await?;
    Ok(Json(info(&key, Some(&view), wall())))
}

fn read(order: KeyOrder, now: Wall) -> Result<(KeyName, Terms), Problem> {
    let wrong = |sentence: String| Problem::usage(StatusCode::UNPROCESSABLE_ENTITY, sentence);
    let days = order.days.unwrap_or(BUDGET_DAYS);
    if !(1..=BUDGET_DAYS_MAX).contains(&days) {
        return Err(wrong(format!(
            "{days} days of a budget: 1 to {BUDGET_DAYS_MAX} are allowed"
        )));
    }
    if order.budget.is_none() && order.days.is_some() {
        return Err(wrong("days are those of a budget: name its amount".into()));
    }
    let expires = match order.expires_days {
        None => None,
        Some(days @ 1..=EXPIRES_DAYS_MAX) => Some(now.after(DAY * days)),
        Some(days) => {
            return Err(wrong(format!(
                "a key that expires in {days} days: 1 to {EXPIRES_DAYS_MAX} are allowed"
            )));
        }
    };
    let terms = Terms {
        models: model_names(&order.models)?,
        requests_per_minute: rate_of(order.requests_per_minute)?,
        tokens_per_minute: rate_of(order.tokens_per_minute)?,
        budget: order.budget.map(|amount| Budget { amount, days }),
        expires,
    };
    Ok((KeyName::new(&order.name)?, terms))
}

fn info(key: &Key, view: Option<&BudgetView>, now: Wall) -> KeyInfo {
    let terms = key.terms();
    let (tokens_read, tokens_written) = key.used();
    KeyInfo {
        name: key.principal().to_string(),
        created_ms: key.created().as_millis(),
        expires_ms: terms.expires.map(Wall::as_millis),
        state: key.state(now).name().to_owned(),
        models: terms.models.iter().map(ToString::to_string).collect(),
        requests_per_minute: terms.requests_per_minute.map(Into::into),
        tokens_per_minute: terms.tokens_per_minute.map(Into::into),
        budget: view.and_then(|view| view.budget).map(|it| it.amount),
        days: view.map_or(BUDGET_DAYS, |view| view.days),
        spent: view.map(|view| view.spent).unwrap_or_default(),
        reserved: view.map(|view| view.reserved).unwrap_or_default(),
        left: view.and_then(BudgetView::left),
        tokens_read,
        tokens_written,
    }
}

impl From<KeysError> for Problem {
    fn from(error: KeysError) -> Self {
        let sentence = error.to_string();
        let status = match error {
            KeysError::Name(_) | KeysError::Models(_) | KeysError::Rate(_) => {
                StatusCode::UNPROCESSABLE_ENTITY
            }
            KeysError::Exists(_) | KeysError::TooMany(_) => StatusCode::CONFLICT,
            KeysError::Unknown(_) => StatusCode::NOT_FOUND,
            KeysError::NotKept(..) | KeysError::Random(_) => return Self::internal(sentence),
            KeysError::Gone(gone) => return gone.into(),
        };
        Self::usage(status, sentence)
    }
}
