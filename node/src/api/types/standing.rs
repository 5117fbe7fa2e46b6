//! What a node thinks of an account, and why.

use serde::{Deserialize, Serialize};
use suanli_protocol::ids::{AccountId, PeerId, ReceiptId};

use super::OutcomeInfo;

/// What a node thinks of an account, and why. Weights are decimal strings, in fresh
/// results: `12.5`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountStanding {
    /// Of whom.
    pub account: AccountId,
    /// Whether it is this node's own.
    pub own: bool,
    /// Its nodes, as far as they offer something or were looked at.
    pub nodes: Vec<NodeStanding>,
    /// What it did, kind by kind.
    pub evidence: Vec<EvidenceInfo>,
    /// What it may vouch with for others.
    pub trade: TradeInfo,
    /// What others accepted of it.
    pub references: Vec<ReferenceInfo>,
    /// When it showed them.
    pub referred_ms: Option<u64>,
    /// What they weigh together.
    pub referred: String,
    /// Whether they count nothing: this node has found it wrong itself.
    pub doubted: bool,
    /// In how many of 1,000 units a result is compared, where audits are adaptive.
    pub audited_per_mille: u32,
    /// In how much of 1,000 it failed; decides between equal offers.
    pub failing_per_mille: u16,
    /// Until when it is not asked for work.
    pub left_out_until_ms: Option<u64>,
    /// How often it was left out.
    pub left_out_times: u32,
    /// What would change that, in sentences.
    pub next: Vec<String>,
}

/// A node of an account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStanding {
    /// Which.
    pub peer: PeerId,
    /// Whether there is an offer of it.
    pub offers: bool,
    /// How much of its speeds is believed, in percent; `None`: it is not asked.
    pub believed_percent: Option<u8>,
    /// Its last challenge.
    pub challenge: Option<OutcomeInfo>,
    /// The middle rate of real work, in percent of what the offer claimed,
    pub work_percent: Option<u8>,
    /// and how many rates there are.
    pub work_count: usize,
}

/// Events of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvidenceInfo {
    /// `accepted`, `agreed`, `agreed-in-a-row`, `contradicted`, `disputed`, `lost`,
    /// `refused`, `bait`, `paid`.
    pub kind: String,
    /// How many there ever were.
    pub count: u32,
    /// What they weigh now.
    pub weight: String,
    /// When the newest was.
    pub last_ms: u64,
}

/// An account's trade with this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TradeInfo {
    /// What its results weigh that were equal to others'.
    pub agreed: String,
    /// What receipts of this node weigh that it paid by vouchers,
    pub paid: String,
    /// and how much of those vouchers is settled, in thousandths.
    pub settled_per_mille: u16,
    /// What follows.
    pub weight: String,
    /// What it may say of all others together.
    pub vouches: String,
}

/// A co-signed receipt that a provider showed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReferenceInfo {
    /// Who accepted it.
    pub client: AccountId,
    /// The receipt.
    pub receipt: ReceiptId,
    /// When, by the client's clock.
    pub at_ms: u64,
    /// Whether the client says that the result was equal to others'.
    pub compared: bool,
    /// What the client's trade with this node weighs.
    pub client_trade: String,
    /// How many accounts the client's references that this node has are to.
    pub vouches_for: u32,
    /// What it weighs here.
    pub weight: String,
}

/// What a provider showed when it was asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShownReferences {
    /// Who was asked.
    pub peer: PeerId,
    /// How many valid references it showed.
    pub shown: usize,
    /// How many of them are by accounts that this node has traded with.
    pub known: usize,
    /// What the account's standing is now.
    pub standing: AccountStanding,
}
