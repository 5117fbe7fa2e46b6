//! What this node thinks of others.

use std::collections::BTreeSet;

use axum::{Json, extract::Path, http::StatusCode};
use suanli_protocol::{
    ids::{AccountId, PeerId},
    peer::Report,
};

use super::{Api, Shared, find::Digits, problem::Problem};
use crate::{
    api::{
        types::{AccountStanding, ShownReferences},
        views,
    },
    wall::wall,
};

type Answer<T> = Result<Json<T>, Problem>;

/// Of all of whom anything is known.
pub(super) async fn list(api: Shared) -> Answer<Vec<AccountStanding>> {
    let reports = api.handle.reports().await?;
    Ok(Json(reports.iter().map(view).collect()))
}

pub(super) async fn show(api: Shared, Path(id): Path<String>) -> Answer<AccountStanding> {
    let (account, _) = find(&api, &id).await?;
    Ok(Json(view(&api.handle.report(account).await?)))
}

/// Answers when the provider has shown its references, or has not.
pub(super) async fn fetch(api: Shared, Path(id): Path<String>) -> Answer<ShownReferences> {
    let (account, named) = find(&api, &id).await?;
    let report = api.handle.report(account).await?;
    let offering = |peer: &PeerId| {
        let mut nodes = report.nodes.iter();
        nodes.any(|(node, _, offers)| *offers && node == peer)
    };
    let first = (report.nodes.iter()).find_map(|(node, _, offers)| offers.then_some(*node));
    let peer = named.filter(offering).or(first).ok_or_else(|| {
        Problem::usage(
            StatusCode::CONFLICT,
            "no node of it has an offer now, so there is nobody to ask; `suanli offer list` shows who offers",
        )
    })?;
    match api.handle.ask_references(peer).await? {
        Ok((shown, known)) => Ok(Json(ShownReferences {
            peer,
            shown,
            known,
            standing: view(&api.handle.report(account).await?),
        })),
        Err(why) => Err(Problem::unreferred(&why)),
    }
}

fn view(report: &Report) -> AccountStanding {
    views::account_standing(report, wall())
}

/// An account, by the first digits of itself or of a node of it, and that node.
async fn find(api: &Api, id: &str) -> Result<(AccountId, Option<PeerId>), Problem> {
    let digits = Digits::parse("account or peer", id)?;
    let reports = api.handle.reports().await?;
    let offers = api.handle.offers().await?;
    let offering = offers
        .iter()
        .map(|offer| (offer.body().account, offer.signer()));
    let seen = reports.iter().flat_map(|report| {
        let nodes = report.nodes.iter();
        nodes.map(|(node, ..)| (report.account, *node))
    });
    let mut found = BTreeSet::new();
    for (account, node) in offering.chain(seen) {
        if digits.begin(&format!("{node:#}")) {
            found.insert((account, Some(node)));
        }
    }
    let accounts = offers.iter().map(|offer| offer.body().account);
    let accounts = accounts.chain(reports.iter().map(|report| report.account));
    for account in accounts.filter(|account| digits.begin(&format!("{account:#}"))) {
        found.insert((account, None));
    }
    if found.is_empty() {
        return Err(Problem::usage(
            StatusCode::NOT_FOUND,
            format!(
                "nothing is known of an account or peer {:?}: `suanli standing` lists those that this node has dealt with, `suanli offer list` those that offer something",
                digits.as_str()
            ),
        ));
    }
    let name = |(account, node): &(AccountId, Option<PeerId>)| match node {
        Some(node) => format!("{node:#}"),
        None => format!("{account:#}"),
    };
    digits.one("account or peer", found.into_iter().collect(), name)
}
