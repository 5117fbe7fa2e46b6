//! What the HTTP API says, as types that both ends use.
//!
//! The daemon fills them, the command line reads them, and `--json` prints
//! them as they are. Ids are whole in hex, amounts are decimal strings in the
//! network's unit, times are milliseconds since 1970 UTC.
//!
//! | method and path | body | answer |
//! |---|---|---|
//! | `GET /v1/status` | | [`Status`] |
//! | `GET /v1/peers` | | list of [`PeerInfo`] |
//! | `GET /v1/offers`, `/v1/offers/{id}` | | list of, one [`OfferInfo`]; id: prefix of offer or peer |
//! | `POST /v1/offers/{id}/challenge` | | [`OutcomeInfo`], when the provider has shown its speed |
//! | `GET /v1/standings`, `/v1/standings/{id}` | | list of, one [`AccountStanding`]; id: prefix of account or peer |
//! | `POST /v1/standings/{id}/references` | | [`ShownReferences`], when the provider has shown its references |
//! | `POST /v1/plan` | [`Submission`] | [`PlanInfo`] |
//! | `POST /v1/explain` | [`Submission`] | [`ExplainInfo`] |
//! | `POST /v1/blobs` | the bytes | [`BlobInfo`] |
//! | `POST /v1/jobs` | [`Submission`] | [`Submitted`] |
//! | `GET /v1/jobs`, `/v1/jobs/{id}` | | list of, one [`JobInfo`]; id: prefix |
//! | `GET /v1/jobs/{id}/events` | | [`JobLine`]s, one JSON object a line, until the job is settled or ended |
//! | `GET /v1/jobs/{id}/events?last=true` | | the last of these lines, once nothing more can happen |
//! | `POST /v1/jobs/{id}/cancel` | | [`JobInfo`] |
//! | `GET /v1/jobs/{id}/outputs/{name}` | | the bytes |
//! | `GET /v1/jobs/{id}/units?from=&limit=` | | list of [`UnitInfo`], of an array |
//! | `GET /v1/receipts`, `/v1/receipts/{id}` | | list of, one [`ReceiptInfo`] |
//! | `GET /v1/receipts/{id}/outputs/{name}` | | the bytes: of a unit, by its receipt |
//! | `GET /v1/receipts/{id}/bundle` | | the bundle's bytes |
//! | `GET /v1/channels`, `/v1/channels/{id}` | | list of, one [`ChannelInfo`] |
//! | `GET /v1/channels/{id}/statement?after=` | | [`StatementPart`]s, each from where the last ended |
//! | `POST /v1/settlements` | [`SettleOrder`] | [`ChannelInfo`], when it is on disk |
//! | `GET /v1/work` | | list of [`WorkInfo`] |
//! | `GET /v1/budgets` | | list of [`BudgetInfo`] |
//! | `GET /v1/keys` | | list of [`KeyInfo`] |
//! | `POST /v1/keys` | [`KeyOrder`] | [`KeyMade`], with the secret |
//! | `POST /v1/keys/{name}/revoke` | | [`KeyInfo`] |
//! | `POST /v1/pause` | [`PauseOrder`] | [`Status`]: nothing new is begun for others |
//! | `POST /v1/resume` | | [`Status`]: the node sells again |
//! | `POST /v1/shutdown` | | [`Status`], and the daemon stops cleanly |
//!
//! Every request carries `Authorization: Bearer TOKEN`; the token is in the
//! data directory, readable by its owner. Its `Host` names this server by a
//! loopback name or the bound address, and an `Origin`, where there is one, is
//! this server: else 403. JSON bodies say `Content-Type: application/json` and
//! have at most 4 MiB. An error is an [`ApiError`].
//!
//! Models are asked for as OpenAI's clients do (docs/models.md), and by an API key as well:
//! with one, `/v1/models`, `/v1/chat/completions`, `/v1/completions` and `/v1/embeddings`
//! are answered, and nothing else.
//!
//! A prefix is four or more hex digits; of several things: 409, and the
//! sentence names them; of none: 404. Too much at once or too often: 429 and
//! `Retry-After`; `cancel`, `pause`, `resume` and `shutdown` have places of their own. A request's
//! head has ten seconds to come, and so has a JSON body; an upload may fall ten
//! seconds behind 16 KiB a second: 408. A connection may idle for ten seconds.
//!
//! `POST /v1/blobs?hash=HEX`, where the uploader knows the hash: a blob that
//! is here already is answered for without its bytes, which are best held back
//! by `Expect: 100-continue`; other bytes than the hash names are refused. With
//! `Content-Length: 0` it is a question: 200 if the blob is here, else 404. With a
//! `Content-Length` a quota that is too small is known before any byte: 507.
//!
//! Lists have a `?limit=`: of jobs 50 and at most 200, of receipts 20 and at
//! most 100, newest first; of units 100 and at most 1000, `?from=` a unit. A list of jobs
//! leaves [`JobInfo::outputs`] out. A
//! job that is no longer in memory has the lines that the store remembers.

mod key;
mod standing;

use serde::{Deserialize, Serialize};
use suanli_protocol::{
    ids::{AccountId, AgreementId, BlobId, ChannelId, JobId, OfferId, PeerId, ReceiptId},
    rank::Policy,
    units::Amount,
};

pub use self::{
    key::{KeyInfo, KeyMade, KeyOrder, ShownSecret},
    standing::{
        AccountStanding, EvidenceInfo, NodeStanding, ReferenceInfo, ShownReferences, TradeInfo,
    },
};
use crate::statement::Document;

/// An error, for every status that is not 2xx.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiError {
    /// What is wrong and what to do.
    pub error: String,
    /// The exit code that the command line ends with.
    pub exit_code: u8,
}

/// The node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "fields are what they are called")]
pub struct Status {
    pub version: String,
    pub network: String,
    pub unit: String,
    pub peer: PeerId,
    pub account: AccountId,
    pub region: String,
    pub pid: u32,
    pub uptime_ms: u64,
    pub listen: Vec<String>,
    pub peers: u32,
    pub offers: u32,
    pub providing: bool,
    pub slots: u32,
    pub slots_used: u32,
    /// Agreements that wait for a slot.
    #[serde(default)]
    pub waiting: u32,
    /// Agreements whose work is not done, or whose results are not yet collected.
    #[serde(default)]
    pub work_open: u32,
    /// Whether strangers are served only over the loopback interface.
    pub local_only: bool,
    pub sandbox: String,
    pub devices: Vec<DeviceInfo>,
    pub jobs_open: u32,
    /// What is wrong with the store, if anything.
    pub store_failed: Option<String>,
    /// Why nothing new is begun for others, if so.
    #[serde(default)]
    pub paused: Option<PauseInfo>,
}

/// Why a node that sells begins nothing new.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PauseInfo {
    /// `ordered`, `hours` or `neighbour`.
    pub why: String,
    /// It as a sentence, with what to do.
    pub sentence: String,
    /// Until when, where that is known.
    pub until_ms: Option<u64>,
}

/// An order to pause.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PauseOrder {
    /// For how long; until a resume if not given.
    #[serde(default)]
    pub for_ms: Option<u64>,
    /// Whether what runs for others ends, as this node's fault.
    #[serde(default)]
    pub now: bool,
}

/// A connected peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "fields are what they are called")]
pub struct PeerInfo {
    pub peer: PeerId,
    pub address: String,
    /// For how long.
    pub connected_ms: u64,
    pub rtt_us: Option<u64>,
    pub agent: String,
    pub region: Option<String>,
    pub offers: bool,
}

/// A device in an offer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "fields are what they are called")]
pub struct DeviceInfo {
    pub kind: String,
    pub maker: String,
    pub model: String,
    pub driver: String,
    pub memory_bytes: u64,
    /// Executions at once.
    pub slots: u32,
    /// What it can run.
    pub runtimes: Vec<RuntimeInfo>,
    /// Measured 32-bit floating-point operations per second; 0 if not measured.
    pub fp32_per_second: u64,
    /// Units of WebAssembly fuel per second, in one program; 0 where unknown.
    #[serde(default)]
    pub fuel_per_second: u64,
    /// All that was measured.
    #[serde(default)]
    pub speeds: Vec<SpeedInfo>,
}

/// A runtime of a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "fields are what they are called")]
pub struct RuntimeInfo {
    pub runtime: String,
    pub features: Vec<String>,
}

/// A measured speed of a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "fields are what they are called")]
pub struct SpeedInfo {
    /// Of what: `fp32`, `memory` and others.
    pub kind: String,
    pub per_second: u64,
    pub measured_ms: u64,
}

/// What this node has seen of a provider itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "fields are what they are called")]
pub struct StandingInfo {
    /// How much of its speeds this node believes, in percent; `None`: it is not asked.
    pub believed_percent: Option<u8>,
    pub challenge: Option<OutcomeInfo>,
    /// The middle rate of real work, in percent of what the offer claimed.
    pub work_percent: Option<u8>,
    /// How many rates there are.
    pub work_count: usize,
    /// Its results that were accepted,
    #[serde(default)]
    pub accepted: u32,
    /// those of them that agreed with others' of the same unit,
    #[serde(default)]
    pub agreed: u32,
    /// how many of these since the last that did not,
    #[serde(default)]
    pub agreed_in_a_row: u32,
    /// those that others' contradict,
    #[serde(default)]
    pub contradicted: u32,
    /// and those that were disputed for another reason.
    #[serde(default)]
    pub disputed: u32,
    /// Until when it is not asked for work, because of what was contradicted.
    #[serde(default)]
    pub left_out_until_ms: Option<u64>,
}

/// What a capacity challenge came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "fields are what they are called")]
pub struct OutcomeInfo {
    pub peer: PeerId,
    pub at_ms: u64,
    pub device: String,
    /// Operations per second that the offer claimed in a matrix product.
    pub claimed_per_second: u64,
    /// What the answer shows at least; 0 if it was wrong.
    pub shown_per_second: u64,
    pub took_ms: u64,
    pub right: bool,
    /// Whether the offer's word held.
    pub kept: bool,
    /// What was wrong.
    #[serde(default)]
    pub wrong: Option<String>,
}

/// A price.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "fields are what they are called")]
pub struct PriceInfo {
    pub meter: String,
    pub amount: Amount,
    pub per: u64,
}

/// An offer in the book.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "fields are what they are called")]
pub struct OfferInfo {
    pub offer: OfferId,
    pub peer: PeerId,
    pub account: AccountId,
    pub own: bool,
    pub sequence: u64,
    pub region: String,
    pub addresses: Vec<String>,
    pub devices: Vec<DeviceInfo>,
    pub prices: Vec<PriceInfo>,
    pub slots: u32,
    pub slots_free: u32,
    pub storage_bytes: u64,
    /// Bytes per second to it, as it has seen them; 0 where unknown.
    #[serde(default)]
    pub bandwidth_in: u64,
    pub run_max_ms: u64,
    pub sandbox: String,
    pub firm: bool,
    pub strangers: bool,
    pub stranger_credit: Amount,
    /// What it wants of jobs, as an expression.
    #[serde(default)]
    pub accept: Option<String>,
    pub issued_ms: u64,
    pub expires_ms: u64,
    /// What this node has seen of it, if anything; in answers about one offer.
    #[serde(default)]
    pub standing: Option<StandingInfo>,
}

/// A job to plan or to run. The command line reads the job file, uploads spec
/// and inputs as blobs, and sends this.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Submission {
    /// Made by the client, so that a repeat is not a second job.
    pub job: JobId,
    /// Its name for people.
    pub name: String,
    /// Whom it is for; the default is `default`.
    #[serde(default)]
    pub principal: String,
    /// `wgsl` or `wasm`.
    pub runtime: String,
    /// The program.
    pub spec: BlobInfo,
    /// What the program reads.
    pub inputs: Vec<BlobInfo>,
    /// Features of the runtime.
    #[serde(default)]
    pub features: Vec<String>,
    /// A kind of device; none for any.
    #[serde(default)]
    pub device: Option<String>,
    /// The weakest sandbox that it allows; none for any.
    #[serde(default)]
    pub sandbox: Option<String>,
    /// Bytes of device memory.
    pub memory_bytes: u64,
    /// Bytes of all outputs.
    pub output_bytes_max: u64,
    /// Units of fuel that one execution may use; 0 for `wgsl`.
    #[serde(default)]
    pub fuel_max: u64,
    /// How long one execution may run.
    pub run_ms: u64,
    /// When all must be over.
    pub total_ms: u64,
    /// How long after a checkpoint the next one is wanted; none for a program that keeps
    /// none.
    #[serde(default)]
    pub checkpoint_ms: Option<u64>,
    /// The most that it may cost; none for the node's default.
    #[serde(default)]
    pub max_price: Option<Amount>,
    /// By how many percent less than the best quote is proposed, once; 0 for not at all. Not
    /// for arrays.
    #[serde(default)]
    pub counter_percent: u8,
    /// Regions that it allows; empty for all.
    #[serde(default)]
    pub regions: Vec<String>,
    /// Providers that it allows; empty for all.
    #[serde(default)]
    pub providers: Vec<PeerId>,
    /// What it wants of an offer, as an expression: `gpu.memory >= bytes("8GiB")`.
    #[serde(default, rename = "where")]
    pub condition: Option<String>,
    /// What is best, as an expression: the highest number, before the policy.
    #[serde(default)]
    pub rank: Option<String>,
    /// What matters.
    #[serde(default)]
    pub policy: Policy,
    /// Floating-point operations, where known.
    #[serde(default)]
    pub flops: u64,
    /// Its units, if it is an array.
    #[serde(default)]
    pub array: Option<ArrayOrder>,
    /// How its results are compared with those of others.
    #[serde(default)]
    pub verify: VerifyOrder,
    /// Outputs that stay where they are made, for other jobs to read.
    #[serde(default)]
    pub staying: Vec<String>,
}

/// How results are compared with those of others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VerifyOrder {
    /// So many equal results of different accounts decide a unit.
    pub replicas: u8,
    /// In so many of 1,000 units a second result is asked for all the same.
    pub audit_per_mille: u16,
    /// Instead: as often as a provider's past results leave doubt.
    pub adaptive: bool,
    /// Which outputs need not be equal to the last bit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub within: Option<WithinOrder>,
    /// Which outputs are products of inputs, to be checked as such.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub freivalds: Option<FreivaldsOrder>,
}

/// Outputs that are products of inputs, by Freivalds' check.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FreivaldsOrder {
    /// How often; each lets something wrong pass with a chance of at most a half.
    pub rounds: u8,
    /// Which.
    pub products: Vec<ProductOrder>,
}

/// An output that is the product of two inputs, all row by row, four bytes a number.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProductOrder {
    /// The left factor's number among a unit's inputs: those that all read, then its own.
    pub left: u16,
    /// The right factor's.
    pub right: u16,
    /// The output's name.
    pub product: String,
    /// Rows of the left factor and the product.
    pub rows: u32,
    /// Columns of the left factor, rows of the right one.
    pub inner: u32,
    /// Columns of the right factor and the product.
    pub columns: u32,
    /// What the numbers are.
    #[serde(default, rename = "type")]
    pub numbers: NumberType,
    /// Of floats: how far a number may be off, as a part of the sum of the sizes of the
    /// products that it is the sum of; none for as far as rounding can bring it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tolerance: Option<f32>,
}

/// What four bytes are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NumberType {
    /// IEEE 754 single precision.
    #[default]
    F32,
    /// Signed.
    I32,
    /// Unsigned.
    U32,
}

/// Outputs of 32-bit floats, and how far two of their numbers may be apart.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WithinOrder {
    /// By so large a part of the larger one,
    pub relative: f32,
    /// and by so much beside.
    #[serde(default)]
    pub absolute: f32,
    /// The outputs' names.
    pub floats: Vec<String>,
}

impl Default for VerifyOrder {
    fn default() -> Self {
        Self {
            replicas: 1,
            audit_per_mille: 0,
            adaptive: false,
            within: None,
            freivalds: None,
        }
    }
}

/// How a job of many units is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArrayOrder {
    /// How many units, which count from 0.
    pub units: u32,
    /// Inputs that each unit has for itself: the last of [`Submission::inputs`], unit
    /// by unit.
    #[serde(default)]
    pub inputs_each: u16,
    /// The most agreements at once.
    pub parallel: u16,
    /// So many units may fail before the job does.
    #[serde(default)]
    pub max_failures: u32,
}

/// A blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobInfo {
    /// Its hash.
    pub blob: BlobId,
    /// Its size.
    pub bytes: u64,
}

/// A ranked plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanInfo {
    /// The network's unit.
    pub unit: String,
    /// The most that it may cost.
    pub budget: Amount,
    /// What whom it is for may spend yet, where that is limited.
    #[serde(default)]
    pub left: Option<Amount>,
    /// Best first, a hundred at most.
    pub candidates: Vec<CandidateInfo>,
    /// How many could run it.
    #[serde(default)]
    pub fitting: usize,
    /// Who can't, and why; a hundred at most.
    pub misfits: Vec<MisfitInfo>,
    /// How many can't.
    #[serde(default)]
    pub unfit: usize,
    /// Of each region that the job names and no offer is in, what to say.
    #[serde(default)]
    pub nowhere: Vec<String>,
}

/// What a principal may spend in so many days, today included, and has spent in them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "fields are what they are called")]
pub struct BudgetInfo {
    pub principal: String,
    /// None where it may spend anything.
    pub budget: Option<Amount>,
    pub days: u16,
    pub spent: Amount,
    /// What its open jobs may still cost.
    pub reserved: Amount,
    /// What another job may cost.
    pub left: Option<Amount>,
}

/// A plan, and what would make it longer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainInfo {
    /// As the job is.
    pub plan: PlanInfo,
    /// Single changes that let more providers run it, the most first.
    pub changes: Vec<ChangeInfo>,
}

/// A change of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeInfo {
    /// What to write in the job file.
    pub change: String,
    /// How many more providers could run it then.
    pub admits: usize,
}

/// A provider that could run it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "fields are what they are called")]
pub struct CandidateInfo {
    pub peer: PeerId,
    pub offer: OfferId,
    pub region: String,
    pub device: String,
    /// Executions at once.
    #[serde(default)]
    pub slots: u32,
    /// How long one execution takes,
    pub expected_ms: u64,
    /// and until all are done: with waiting, and the inputs' way.
    #[serde(default)]
    pub finish_ms: u64,
    #[serde(default)]
    pub wait_ms: u64,
    #[serde(default)]
    pub transfer_ms: u64,
    /// Milligrams of carbon dioxide of all, if the operator says what the power is like.
    #[serde(default)]
    pub carbon_mg: Option<u64>,
    /// What it costs the client beside to send the inputs there.
    #[serde(default)]
    pub traffic: Amount,
    pub price: Amount,
    pub cap: Amount,
}

/// A provider that can't.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MisfitInfo {
    /// Who.
    pub peer: PeerId,
    /// Where.
    pub region: String,
    /// The registered reason.
    pub reason: String,
    /// It as a sentence, with what to do.
    pub sentence: String,
}

/// A job was taken, or was already.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submitted {
    /// Its id.
    pub job: JobId,
}

/// A job of ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "fields are what they are called")]
pub struct JobInfo {
    pub job: JobId,
    pub name: String,
    pub principal: String,
    pub submitted_ms: u64,
    /// `waiting`, `asking`, `running`, `done`, `failed`, `cancelled`, `declined`, `expired`.
    pub state: String,
    /// The registered reason of its end, and it as a sentence.
    pub reason: Option<(String, String)>,
    pub attempt: u32,
    pub provider: Option<PeerId>,
    pub region: Option<String>,
    pub agreement: Option<AgreementId>,
    pub done: u64,
    pub total: u64,
    /// Units of which a checkpoint is here, and after how many steps: from there they go on
    /// if their provider is lost.
    #[serde(default)]
    pub checkpoints: Vec<(u32, u64)>,
    /// How far its units are, if it is an array. Then `outputs` is empty, and
    /// `receipts` are some of them: ask for its units.
    #[serde(default)]
    pub units: Option<UnitsInfo>,
    pub spent: Amount,
    /// What each provider that declined said, as sentences.
    pub declined: Vec<(PeerId, String)>,
    pub receipts: Vec<ReceiptId>,
    pub outputs: Vec<OutputInfo>,
}

/// How far the units of an array are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "fields are what they are called")]
pub struct UnitsInfo {
    pub total: u32,
    pub done: u32,
    pub failed: u32,
}

/// A unit of an array.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "fields are what they are called")]
pub struct UnitInfo {
    pub unit: u32,
    /// `done`, `failed`, or `open`: nothing is known of it yet.
    pub state: String,
    /// The registered reason of its failure.
    pub reason: Option<String>,
    pub provider: Option<PeerId>,
    pub receipt: Option<ReceiptId>,
    pub outputs: Vec<OutputInfo>,
}

impl JobInfo {
    /// Whether nothing more will happen to it.
    pub fn is_over(&self) -> bool {
        !matches!(&*self.state, "waiting" | "asking" | "running")
    }
}

/// An output of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "fields are what they are called")]
pub struct OutputInfo {
    pub name: String,
    pub blob: BlobId,
    pub bytes: u64,
}

/// One line of a job's events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobLine {
    /// When, by this node's clock.
    pub at_ms: u64,
    /// Microseconds since the node's start, by a clock that never jumps; none
    /// for what was read from the journal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub up_us: Option<u64>,
    /// What.
    #[serde(flatten)]
    pub event: JobEventInfo,
}

/// A step of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[expect(missing_docs, reason = "fields are what they are called")]
pub enum JobEventInfo {
    Submitted,
    Asked {
        attempt: u32,
        peers: Vec<PeerId>,
    },
    Quoted {
        peer: PeerId,
        cap: Amount,
    },
    Declined {
        peer: PeerId,
        reason: String,
        sentence: String,
    },
    Agreed {
        peer: PeerId,
        region: Option<String>,
        agreement: AgreementId,
        cap: Amount,
        /// Units that go on where others stopped, and after how many steps.
        #[serde(default)]
        resumed: Vec<(u32, u64)>,
    },
    Started,
    Progress {
        done: u64,
        total: u64,
    },
    Log {
        line: String,
    },
    Accepted {
        receipt: ReceiptId,
        amount: Amount,
    },
    /// A unit of an array, or one whose results were compared, is over.
    Decided {
        unit: u32,
        failure: Option<(String, String)>,
    },
    Disputed {
        peer: PeerId,
        reason: String,
        sentence: String,
    },
    GaveUp {
        peer: PeerId,
        reason: String,
        sentence: String,
    },
    /// The provider acknowledged the voucher that pays this.
    Settled {
        receipt: ReceiptId,
    },
    Ended {
        state: String,
        reason: Option<(String, String)>,
    },
}

/// A receipt, of our job or of our work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "fields are what they are called")]
pub struct ReceiptInfo {
    pub receipt: ReceiptId,
    pub agreement: AgreementId,
    pub job: JobId,
    pub unit: u32,
    pub attempt: u32,
    pub index: u32,
    pub last: bool,
    /// Whether this node was the client.
    pub bought: bool,
    pub client: PeerId,
    pub provider: PeerId,
    pub region: String,
    /// The device that ran it, as the offer names it,
    #[serde(default)]
    pub device: String,
    /// and its place there.
    #[serde(default)]
    pub device_index: u16,
    /// `completed`, `job-fault`, `provider-fault` or `cancelled`.
    pub outcome: String,
    pub reason: Option<String>,
    pub amount: Amount,
    pub usage: Vec<(String, u64)>,
    pub outputs: Vec<OutputInfo>,
    /// `accepted`, `disputed`, or nothing yet.
    pub verdict: Option<String>,
    /// What the client did before it said so: `hashes`, `replicas`, `audit` or `undecided`.
    #[serde(default)]
    pub verification: Option<String>,
    pub paid: bool,
    pub acknowledged: bool,
    pub started_ms: u64,
    pub ended_ms: u64,
}

/// A running account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "fields are what they are called")]
pub struct ChannelInfo {
    pub channel: ChannelId,
    /// Whether this node pays.
    pub paying: bool,
    pub peer: PeerId,
    pub account: AccountId,
    pub sequence: u64,
    pub acknowledged: u64,
    /// Decimal totals in the network's unit.
    pub cumulative: String,
    pub pending: String,
    pub disputed: String,
    pub settled: String,
    /// How often something was declared paid.
    #[serde(default)]
    pub settlements: u64,
    /// What is in vouchers and not paid,
    #[serde(default)]
    pub outstanding: String,
    /// or paid and not in vouchers yet.
    #[serde(default)]
    pub prepaid: String,
    /// What the client may still run here; none where we pay.
    #[serde(default)]
    pub credit_left: Option<String>,
    pub synced: bool,
    pub frozen: bool,
}

/// A part of what is signed on a channel, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatementPart {
    /// The network.
    pub network: String,
    /// Its unit of account.
    pub unit: String,
    /// The channel.
    pub channel: ChannelId,
    /// What is signed.
    pub documents: Vec<Document>,
    /// Where the next part begins; none after the last.
    pub next: Option<u64>,
}

/// Declares that a client has paid. Either the channel is named, or the
/// client's node and account: then it may be one that has bought nothing yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SettleOrder {
    /// The first digits of the channel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channel: Option<String>,
    /// The client's node,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<PeerId>,
    /// and its account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountId>,
    /// How much.
    pub amount: Amount,
    /// How: an invoice number, a transfer. The same amount with the same
    /// reference as last time is no second payment.
    pub reference: String,
}

/// Work for somebody.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "fields are what they are called")]
pub struct WorkInfo {
    pub agreement: AgreementId,
    pub job: JobId,
    pub client: PeerId,
    pub account: AccountId,
    pub stage: String,
    pub done: u64,
    pub total: u64,
    pub receipts: Vec<ReceiptId>,
}

/// What changed when the node looked at its shelf of models.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StockInfo {
    /// Models that are served from now on.
    pub added: Vec<String>,
    /// Models that are not served any more.
    pub removed: Vec<String>,
    /// Models that can't be served.
    pub failed: Vec<NotServedInfo>,
}

/// A model that can't be served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotServedInfo {
    /// Which.
    pub name: String,
    /// Why not.
    pub why: String,
}
