//! When a live network is ready: every node answers, is connected, and has
//! every provider's offer in its book, as issued since that provider's start:
//! what it offered before may not be true any more.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, SystemTime},
};

use suanli_node::api::types::{OfferInfo, PeerInfo, Status};
use suanli_protocol::ids::PeerId;

use super::{Activity, HUBS, Node, TestnetError, api::ApiFailure, wait::wait_for};

/// Waits until all nodes that should run are ready; paused ones can't be.
pub(super) fn wait(nodes: &[Node], limit: Duration) -> Result<(), TestnetError> {
    let hubs: Vec<&str> = nodes.iter().take(HUBS).map(Node::name).collect();
    let expected: Vec<&Node> = nodes
        .iter()
        .filter(|node| node.is_expected() && node.activity() != Activity::Paused)
        .collect();
    let mut lacking = None;
    let outcome = wait_for(limit, || {
        let mut dead = expected
            .iter()
            .filter(|node| node.activity() == Activity::Ended);
        if let Some(node) = dead.next() {
            return Some(Err(last_words(node)));
        }
        lacking = look(&expected, &hubs);
        lacking.is_none().then_some(Ok(()))
    });
    match (outcome, lacking) {
        (Some(outcome), _) => outcome,
        (None, None) => Ok(()),
        (None, Some((node, lacks))) => Err(TestnetError::NotReady {
            node: node.name().into(),
            seconds: limit.as_secs(),
            lacks,
            tail: node.log_tail(),
        }),
    }
}

fn last_words(node: &Node) -> TestnetError {
    TestnetError::Died {
        node: node.name().into(),
        tail: node.log_tail(),
    }
}

/// The first node that is not ready, and what it lacks.
fn look<'a>(running: &[&'a Node], hubs: &[&str]) -> Option<(&'a Node, String)> {
    let mut found = Vec::new();
    for node in running {
        match ask(node) {
            Ok(view) => found.push((*node, view)),
            Err(failure) => return Some((node, failure.to_string())),
        }
    }
    let sellers: Vec<&View> = found
        .iter()
        .filter(|(node, _)| node.is_provider())
        .map(|(_, view)| view)
        .collect();
    let hub = found.iter().find(|(node, _)| hubs.contains(&node.name()));
    found.iter().find_map(|(node, view)| {
        let lacks = |seller: &&&View| !view.has_offer_of(seller);
        let offers = sellers.iter().filter(lacks).count();
        if offers > 0 {
            let all = sellers.len();
            return Some((
                *node,
                format!("{offers} of {all} offers are not in its book"),
            ));
        }
        let (hub_node, hub_view) = hub?;
        let is_hub = hub_view.peer == view.peer;
        let joined =
            is_hub || (view.peers.contains(&hub_view.peer) && hub_view.peers.contains(&view.peer));
        (!joined).then(|| (*node, format!("it is not connected to {}", hub_node.name())))
    })
}

struct View {
    peer: PeerId,
    /// Milliseconds since 1970, never too late.
    started: u64,
    peers: BTreeSet<PeerId>,
    /// When they were issued, in milliseconds since 1970.
    offers: BTreeMap<PeerId, u64>,
}

impl View {
    fn has_offer_of(&self, seller: &Self) -> bool {
        let issued = self.offers.get(&seller.peer);
        issued.is_some_and(|issued| *issued >= seller.started)
    }
}

fn ask(node: &Node) -> Result<View, ApiFailure> {
    let api = node.api()?;
    let asked = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let asked = asked.unwrap_or_default().as_millis();
    let asked = u64::try_from(asked).unwrap_or(u64::MAX);
    let status: Status = api.get("/v1/status")?;
    let peers: Vec<PeerInfo> = api.get("/v1/peers")?;
    let offers: Vec<OfferInfo> = api.get("/v1/offers")?;
    Ok(View {
        peer: status.peer,
        started: asked.saturating_sub(status.uptime_ms),
        peers: peers.into_iter().map(|peer| peer.peer).collect(),
        offers: offers
            .into_iter()
            .map(|offer| (offer.peer, offer.issued_ms))
            .collect(),
    })
}
