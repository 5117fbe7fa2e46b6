//! The node itself, its peers and their offers, and who owes whom: what is
//! only looked at.

use std::{
    collections::HashMap,
    time::{Duration, Instant, SystemTime},
};

use axum::{
    Json,
    extract::Path,
    http::{StatusCode, header},
    response::IntoResponse,
};
use suanli_protocol::{
    envelope::Verified,
    ids::{OfferId, PeerId},
    offer::Offer,
    peer::{ChannelView, Declaration, NotSettled, SettleOn},
    wire::Text,
};

use super::{
    Api, Shared,
    find::Digits,
    input::{After, JsonBody, Page, Params},
    millis,
    problem::Problem,
};
use crate::{
    api::{
        types::{
            BudgetInfo, ChannelInfo, OfferInfo, OutcomeInfo, PauseOrder, PeerInfo, ReceiptInfo,
            SettleOrder, StatementPart, Status, WorkInfo,
        },
        views,
    },
    records::ReceiptStory,
    transport::PeerStatus,
    wall::{wall, wall_ms},
};

/// How long a declaration waits for what the client's node knows to be paid.
const IN_STEP_WAIT: Duration = Duration::from_secs(5);
/// How often that is looked for.
const IN_STEP_ASK: Duration = Duration::from_millis(100);
const RECEIPTS: usize = 20;
const RECEIPTS_MAX: usize = 100;

type Answer<T> = Result<Json<T>, Problem>;

pub(super) async fn status(api: Shared) -> Answer<Status> {
    Ok(Json(status_of(&api).await?))
}

/// Answers before the node begins to stop, or just after.
pub(super) async fn shutdown(api: Shared) -> Answer<Status> {
    let status = status_of(&api).await?;
    api.handle.stop().await?;
    Ok(Json(status))
}

pub(super) async fn pause(api: Shared, order: JsonBody<PauseOrder>) -> Answer<Status> {
    let PauseOrder { for_ms, now } = order.0;
    let until = for_ms.map(|span| wall().after(Duration::from_millis(span)));
    api.handle.pause(until, now).await??;
    status(api).await
}

pub(super) async fn resume(api: Shared) -> Answer<Status> {
    api.handle.resume().await??;
    status(api).await
}

pub(super) async fn peers(api: Shared) -> Answer<Vec<PeerInfo>> {
    let regions: HashMap<PeerId, String> = regions(&api).await?;
    let peers = api.handle.peers().await?;
    let info = |status: &PeerStatus| {
        let peer = PeerId::from_bytes(*status.peer.as_bytes());
        PeerInfo {
            peer,
            address: status.address.to_string(),
            connected_ms: SystemTime::now()
                .duration_since(status.since)
                .map_or(0, millis),
            rtt_us: status
                .rtt
                .map(|rtt| u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX)),
            agent: status.agent.clone(),
            region: regions.get(&peer).cloned(),
            offers: regions.contains_key(&peer),
        }
    };
    Ok(Json(peers.iter().map(info).collect()))
}

pub(super) async fn offers(api: Shared) -> Answer<Vec<OfferInfo>> {
    let me = api.handle.facts().peer;
    let offers = api.handle.offers().await?;
    Ok(Json(
        offers.iter().map(|o| views::offer_info(o, me)).collect(),
    ))
}

pub(super) async fn offer(api: Shared, Path(id): Path<String>) -> Answer<OfferInfo> {
    let offer = find_offer(&api, &id).await?;
    let standing = api.handle.standing(offer.signer()).await?;
    Ok(Json(OfferInfo {
        standing: standing.as_ref().map(views::standing_info),
        ..views::offer_info(&offer, api.handle.facts().peer)
    }))
}

/// Answers when the provider has shown its speed, or has not.
pub(super) async fn challenge(api: Shared, Path(id): Path<String>) -> Answer<OutcomeInfo> {
    let offer = find_offer(&api, &id).await?;
    match api.handle.challenge(offer.signer()).await? {
        Ok((outcome, wrong)) => Ok(Json(views::outcome_info(&outcome, wrong))),
        Err(why) => Err(Problem::unanswered(&why)),
    }
}

async fn find_offer(api: &Shared, id: &str) -> Result<Verified<Offer>, Problem> {
    let digits = Digits::parse("offer", id)?;
    let mut offers = api.handle.offers().await?;
    let name = |offer: &Verified<Offer>| format!("{:#}", OfferId(offer.hash()));
    offers.retain(|offer| {
        digits.begin(&name(offer)) || digits.begin(&format!("{:#}", offer.signer()))
    });
    digits.one("offer", offers, name)
}

pub(super) async fn channels(api: Shared) -> Answer<Vec<ChannelInfo>> {
    let snapshot = api.handle.snapshot().await?;
    Ok(Json(
        snapshot.channels.iter().map(views::channel_info).collect(),
    ))
}

pub(super) async fn channel(api: Shared, Path(id): Path<String>) -> Answer<ChannelInfo> {
    Ok(Json(views::channel_info(&find_channel(&api, &id).await?)))
}

/// Answers when the payment is declared and on disk. A client's node that has not
/// said yet what it knows to be paid is waited for, a little.
pub(super) async fn settle(api: Shared, order: JsonBody<SettleOrder>) -> Answer<ChannelInfo> {
    let SettleOrder {
        channel,
        peer,
        account,
        amount,
        reference,
    } = order.0;
    let on = match (channel, peer, account) {
        (Some(id), None, None) => {
            let channel = find_channel(&api, &id).await?;
            SettleOn::Channel(channel.channel)
        }
        (None, Some(node), Some(account)) => SettleOn::Payer { node, account },
        _ => {
            return Err(Problem::usage(
                StatusCode::UNPROCESSABLE_ENTITY,
                "name either the channel, or the client's node and its account",
            ));
        }
    };
    let reference = Text::new(&reference).map_err(|_| {
        Problem::usage(
            StatusCode::UNPROCESSABLE_ENTITY,
            "the reference is longer than 128 bytes; shorten it",
        )
    })?;
    let declaration = Declaration {
        on,
        amount,
        reference,
    };
    let began = Instant::now();
    loop {
        match api.handle.settle(Box::new(declaration.clone())).await? {
            Ok(()) => break,
            Err(NotSettled::NotInStep) if began.elapsed() < IN_STEP_WAIT => {
                tokio::time::sleep(IN_STEP_ASK).await;
            }
            Err(why) => return Err(Problem::not_settled(why)),
        }
    }
    let channels = api.handle.snapshot().await?.channels;
    let is_meant = |view: &&ChannelView| match on {
        SettleOn::Channel(channel) => view.channel == channel,
        SettleOn::Payer { node, account } => {
            !view.paying && (view.parties.payer, view.parties.payer_account) == (node, account)
        }
    };
    let channel = channels.iter().find(is_meant);
    let channel = channel.ok_or_else(|| Problem::not_settled(NotSettled::UnknownChannel))?;
    Ok(Json(views::channel_info(channel)))
}

pub(super) async fn statement(
    api: Shared,
    Path(id): Path<String>,
    Params(After { after }): Params<After>,
) -> Answer<StatementPart> {
    let channel = find_channel(&api, &id).await?.channel;
    let archive = api.archive().await?;
    let (documents, next) = archive.statement(channel, after).await?;
    let facts = api.handle.facts();
    Ok(Json(StatementPart {
        network: facts.network.clone(),
        unit: facts.unit.clone(),
        channel,
        documents,
        next,
    }))
}

async fn find_channel(api: &Shared, id: &str) -> Result<ChannelView, Problem> {
    let digits = Digits::parse("channel", id)?;
    let mut channels = api.handle.snapshot().await?.channels;
    let name = |view: &ChannelView| format!("{:#}", view.channel);
    channels.retain(|view| digits.begin(&name(view)));
    digits.one("channel", channels, name)
}

pub(super) async fn budgets(api: Shared) -> Answer<Vec<BudgetInfo>> {
    let budgets = api.handle.budgets().await?;
    Ok(Json(budgets.iter().map(views::budget_info).collect()))
}

pub(super) async fn work(api: Shared) -> Answer<Vec<WorkInfo>> {
    let snapshot = api.handle.snapshot().await?;
    Ok(Json(snapshot.work.iter().map(views::work_info).collect()))
}

pub(super) async fn receipts(api: Shared, page: Params<Page>) -> Answer<Vec<ReceiptInfo>> {
    let limit = page.0.limit(RECEIPTS, RECEIPTS_MAX);
    let stories = api.archive().await?.newest_receipts(limit).await?;
    let me = api.handle.facts().peer;
    Ok(Json(
        stories.iter().map(|s| views::receipt_info(s, me)).collect(),
    ))
}

pub(super) async fn receipt(api: Shared, Path(id): Path<String>) -> Answer<ReceiptInfo> {
    let story = find_receipt(&api, &id).await?;
    let me = api.handle.facts().peer;
    Ok(Json(views::receipt_info(&story, me)))
}

pub(super) async fn bundle(
    api: Shared,
    Path(id): Path<String>,
) -> Result<impl IntoResponse, Problem> {
    let story = find_receipt(&api, &id).await?;
    let receipt = suanli_protocol::ids::ReceiptId(story.receipt.hash());
    let bundle = api.archive().await?.bundle(receipt).await?;
    let bytes = bundle.ok_or_else(|| Problem::unknown("receipt", &id))?;
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], bytes))
}

/// Where the providers in the book are.
pub(super) async fn regions(api: &Api) -> Result<HashMap<PeerId, String>, Problem> {
    let offers = api.handle.offers().await?;
    Ok(offers
        .iter()
        .map(|offer| (offer.signer(), offer.body().region.to_string()))
        .collect())
}

pub(super) async fn find_receipt(api: &Api, id: &str) -> Result<ReceiptStory, Problem> {
    let digits = Digits::parse("receipt", id)?;
    let found = api
        .archive()
        .await?
        .receipts_by_prefix(digits.as_str())
        .await?;
    let receipt = digits.one("receipt", found, |id| format!("{id:#}"))?;
    let story = api.archive().await?.receipt(receipt).await?;
    story.ok_or_else(|| Problem::unknown("receipt", id))
}

async fn status_of(api: &Api) -> Result<Status, Problem> {
    let facts = api.handle.facts();
    let snapshot = api.handle.snapshot().await?;
    let offers = api.handle.offers().await?;
    let peers = api.handle.peers().await?;
    let own = offers.iter().find(|offer| offer.signer() == facts.peer);
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let open = snapshot.jobs.iter().filter(|job| job.end.is_none()).count();
    let waiting = snapshot.work.iter();
    let waiting = waiting.filter(|work| work.stage == "waiting").count();
    let work = snapshot.work.iter();
    let work_open = work.filter(|work| work.stage != "closed").count();
    Ok(Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        network: facts.network.clone(),
        unit: facts.unit.clone(),
        peer: facts.peer,
        account: facts.account,
        region: facts.region.clone(),
        pid: std::process::id(),
        uptime_ms: wall_ms().saturating_sub(facts.started_ms),
        listen: snapshot.listen,
        peers: count(peers.len()),
        offers: count(offers.len()),
        providing: facts.providing,
        slots: own.map_or(0, |offer| offer.body().slots),
        slots_used: snapshot.slots_used,
        waiting: count(waiting),
        work_open: count(work_open),
        local_only: facts.local_only,
        sandbox: facts.sandbox.clone(),
        devices: own.map_or_else(Vec::new, |offer| {
            offer
                .body()
                .devices
                .iter()
                .map(views::device_info)
                .collect()
        }),
        jobs_open: count(open),
        store_failed: snapshot.store_failed,
        paused: snapshot.paused.as_ref().map(views::pause_info),
    })
}
