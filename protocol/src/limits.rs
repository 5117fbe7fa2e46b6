//! Every bound in one place, each with its reason.
//!
//! A bound on the wire is part of the protocol: raising one needs a new
//! version of the streams. Bounds on what a node keeps are its own.

use std::time::Duration;

/// Bytes of one frame on a message stream. Holds an agreement with
/// [`INLINE_BYTES_MAX`] of blobs, or a page of offers, and little more.
pub const FRAME_BYTES_MAX: usize = 128 * 1024;
/// Bytes of one signed envelope. A gossiped offer must fit well below the
/// usual datagram-path buffers; the largest body, a request with all its
/// inputs, sets it.
pub const ENVELOPE_BYTES_MAX: usize = 16 * 1024;
/// Bytes of an offer's envelope: what every node stores for every other.
pub const OFFER_BYTES_MAX: usize = 8 * 1024;
/// Bytes of a delegation's envelope, carried inside offers and requests.
pub const DELEGATION_BYTES_MAX: usize = 512;
/// Bytes of blobs that travel inside an agreement or beside a receipt, which
/// saves a transfer for small jobs.
pub const INLINE_BYTES_MAX: usize = 64 * 1024;
/// Receipts kept that came before the countersignature of a firm offer that we
/// took. Each overtook it by a moment; one that is dropped is sent again, a second
/// later: there is room for those of several hundred jobs that are handed in at once.
pub const EARLY_RECEIPTS_MAX: usize = 512;
/// Bytes of outputs that these may bring along, all together.
pub const EARLY_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Blobs that travel inline together.
pub const INLINE_BLOBS_MAX: usize = 16;

/// Bytes of outputs that are written down with the word on their receipt, so
/// that the word need not wait until they are blobs. About what a job's other
/// records take; more would fill the journal with what blobs are for.
pub const JUDGED_BYTES_MAX: usize = 4 * 1024;
/// Outputs written down that become blobs again at a start, if they are none.
/// More than a driver that stopped may still have had to store: no driver has
/// more than a few hundred on their way.
pub const OUTPUTS_RESTORED: usize = 512;

/// Inputs of one request: its job's, or those that its part of an array reads.
pub const INPUTS_MAX: usize = 256;
/// Inputs of one job. An array of so many files is an evening's work; their names
/// are most of the largest record that a journal takes.
pub const ORDER_INPUTS_MAX: usize = 16 * 1024;
/// How long a grant may live: what it lets be read is kept for no longer.
pub const GRANT_TTL_MAX: Duration = Duration::from_hours(24);
/// Grants that a provider keeps of one agreement's results. They are asked for and used
/// within a minute; a client that needs more gives them again.
pub const GRANTS_KEPT: usize = 64;
/// Providers that a job passes over because those who are next may do better. Each is a
/// question, and so is a wait worth something.
pub const PASSED_MAX: usize = 24;
/// The same where a turn may come too late: more, for late is as good as never.
pub const PASSED_LATE_MAX: usize = 256;
/// Results that stay with providers and are remembered. The oldest are forgotten first: a
/// job that names one is refused then.
pub const STAYING_MAX: usize = 64 * 1024;
/// Providers whose results one request may read directly. What others have comes by way of
/// the client.
pub const HOLDERS_PER_REQUEST: usize = 16;
/// Outputs of one execution. A receipt names them all.
pub const OUTPUTS_MAX: usize = 64;

/// Buffers of one checkpoint of an execution.
pub const CHECKPOINT_BUFFERS_MAX: usize = 16;

/// Bytes of one checkpoint of an execution.
pub const CHECKPOINT_BYTES_MAX: u64 = 256 << 20;

/// Checkpoints in one request: units that go on where others stopped.
pub const CHECKPOINTS_MAX: usize = 8;
/// Ranges of units that one request may name; a client with a more broken
/// array asks twice.
pub const UNIT_RANGES_MAX: usize = 64;
/// Units in an array job: enough for a day of work, few enough for a bitmap.
pub const UNITS_MAX: u32 = 1 << 20;
/// Lines of a price list, and of a usage: one per registered meter, with room.
pub const PRICES_MAX: usize = 16;
/// Devices in an offer: an eight-GPU machine, with its processors.
pub const DEVICES_MAX: usize = 16;
/// Measured speeds of one device.
pub const SPEEDS_MAX: usize = 8;
/// Addresses in an offer: a few interfaces, two transports each.
pub const ADDRESSES_MAX: usize = 8;
/// Runtimes in an offer.
pub const RUNTIMES_MAX: usize = 8;
/// Features of a runtime.
pub const FEATURES_MAX: usize = 32;
/// Models in an offer.
pub const MODELS_MAX: usize = 64;
/// Bytes of a question to a model: a context of a hundred thousand tokens, as JSON.
pub const CALL_QUESTION_BYTES_MAX: usize = 1 << 20;
/// Bytes of one event of an answer, or of one piece of an answer that comes as one.
pub const CALL_EVENT_BYTES_MAX: usize = 64 << 10;
/// Tokens of an answer that another goes on with: as long as most models go.
pub const CALL_BEGUN_TOKENS_MAX: usize = 1 << 16;
/// Tokens that one event of an answer brings at most. Text that is held back until it is
/// certain comes with several.
pub const CALL_EVENT_TOKENS_MAX: usize = 256;
/// Extensions at the end of a body.
pub const EXTENSIONS_MAX: usize = 8;
/// Bytes in one extension.
pub const EXTENSION_BYTES_MAX: usize = 1024;
/// Receipts that one voucher pays.
pub const VOUCHER_RECEIPTS_MAX: usize = 64;
/// Offers in one page of the book.
pub const OFFERS_PER_PAGE: usize = 12;
/// Known offers named in one pull: about as many bytes as the page that
/// answers it. A book is pulled in ranges of so many.
pub const PULL_KNOWN_MAX: usize = 512;
/// How often an unanswered pull is repeated: with a tenth of all frames lost,
/// a book of ten thousand still comes in one go.
pub const PULL_TRIES: u32 = 5;
/// Full pages without news that one comparison of books takes: those that
/// others brought first, or that this node does not take. More come from who
/// only wants to be asked.
pub const PULL_IDLE_MAX: u32 = 16;
/// Bytes of a name or a short text.
pub const NAME_BYTES_MAX: usize = 64;
/// Bytes of one line of a job's log.
pub const LOG_LINE_BYTES_MAX: usize = 1024;

/// Offers in the book. At two kilobytes each, 20 MB.
pub const BOOK_OFFERS_MAX: usize = 10_000;
/// Offers of one account in the book, so that an account with many keys can't
/// fill it.
pub const BOOK_OFFERS_PER_ACCOUNT: usize = 256;
/// Jobs that a client's node works on at once.
pub const JOBS_MAX: usize = 4096;

/// Principals of which a node knows what they have spent: more than it has API keys, so that
/// none of these has its tally forgotten.
pub const PRINCIPALS_MAX: usize = 16_384;

/// Days that a budget may be for.
pub const BUDGET_DAYS_MAX: u16 = 366;
/// Ended jobs that stay in memory for `suanli job list`; the store has them all.
pub const ENDED_JOBS_KEPT: usize = 256;
/// Agreements of older jobs whose judgements are repeated when a late receipt
/// comes. At a kilobyte each, 8 MB.
pub const PAST_AGREEMENTS_KEPT: usize = 8192;
/// Attempts at one job.
pub const ATTEMPTS_MAX: usize = 16;
/// Providers asked at once for one job.
pub const ASKS_MAX: usize = 3;
/// Providers of an array that are asked at once: each is a signature and a record.
pub const ROUND_MAX: usize = 64;
/// Agreements of one job that stand at once, whatever it asks for.
pub const AGREEMENTS_PER_JOB_MAX: usize = 256;
/// Units of one agreement: their receipts are kept until it is over.
pub const SHARE_MAX: usize = 1024;
/// Equal results that a job may want of each unit.
pub const REPLICAS_MAX: u64 = 7;
/// Results of a unit that are compared, beyond twice as many as must agree: what so
/// many can't decide is not decided.
pub const RESULTS_MORE_MAX: u32 = 3;
/// Pairs of results whose floats are compared, and results whose products are checked, at
/// once, over all jobs. Each reads blobs on a thread of its own; more would only wait for
/// the same disk.
pub const COMPARISONS_MAX: usize = 4;
/// Products that a job may have checked in each of its results.
pub const PRODUCTS_MAX: usize = 8;
/// Rounds of such a check: after so many no computer that there is errs as seldom.
pub const FREIVALDS_ROUNDS_MAX: u8 = 64;
/// Columns of the matrices of a product that is checked. For each the check holds some
/// hundred bytes: 35 MB.
pub const MATRIX_SIDE_MAX: u32 = 1 << 18;
/// Bytes of such a matrix: no buffer has more.
pub const MATRIX_BYTES_MAX: u64 = 4 << 30;
/// Disputes over one agreement: an honest provider needs one for each unit
/// that was done elsewhere meanwhile, a liar signs receipts for ever.
pub const DISPUTES_MAX: usize = 1024;
/// Unanswered takes that one job remembers, to fence answers that come late.
pub const LATE_TAKES_MAX: usize = 16;
/// Holds that one client account may have: the few that a contest needs.
pub const HOLDS_PER_CLIENT: usize = 4;
/// Requests whose answers a provider keeps for repeats.
pub const ANSWERS_KEPT: usize = 4096;
/// Agreements that a provider keeps in memory, open and lately closed.
pub const AGREEMENTS_MAX: usize = 4096;
/// Channels in memory.
pub const CHANNELS_MAX: usize = 16_384;
/// Channels on which somebody says that we paid in advance, and nothing was
/// bought yet: whoever calls itself a provider can say so.
pub const PREPAID_CHANNELS_MAX: usize = 64;
/// Unacknowledged vouchers on one channel.
pub const VOUCHERS_UNACKED_MAX: usize = 8;
/// Outputs that wait in the core for their record. The driver stops feeding a
/// core that has more.
pub const OUTPUTS_WAITING_MAX: usize = 65_536;
/// Accounts, or receipts, in one record of a checkpoint: 40 KB. More take more
/// records.
pub const KEPT_LIST_MAX: usize = 1024;
/// Remembered failing providers.
pub const EXCLUSIONS_MAX: usize = 4096;

/// How far a peer's clock may be ahead of ours.
pub const SKEW_MAX: Duration = Duration::from_secs(60);
/// The longest that an offer may live: the time for which a silent provider
/// stays in books.
pub const OFFER_TTL_MAX: Duration = Duration::from_secs(15 * 60);
/// The longest hold: the time for which an undecided client locks capacity.
pub const HOLD_MAX: Duration = Duration::from_secs(30);
/// The longest execution that an agreement may ask for.
pub const RUN_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// Longest side of a challenge's matrices: a product of 64 MiB.
pub const CHALLENGE_SIDE_MAX: u32 = 4096;
/// Numbers in both factors of a challenge: about a third of a second to check on
/// one core, and a gibibyte on the device.
pub const CHALLENGE_ELEMENTS_MAX: u64 = 1 << 28;
/// Bytes of the rows that open a commitment. With sums and paths they fit a frame.
pub const CHALLENGE_OPENED_BYTES_MAX: usize = 72 * 1024;
/// Rows that open a commitment.
pub const CHALLENGE_OPENED_MAX: usize = 32;
/// Challenges that one node gives, or takes, at once. A product that waits to be
/// opened lies on the provider's disk; a check takes a core.
pub const CHALLENGES_MAX: usize = 4;
/// How often a peer may challenge a provider in an hour.
pub const CHALLENGES_PER_PEER: usize = 6;
/// Accounts, and nodes, whose standing is remembered, as many as the book may hold.
pub const STANDINGS_MAX: usize = BOOK_OFFERS_MAX;
/// Nodes of one account that are remembered for a wrong result or product. More only
/// show that the account is not to be asked.
pub const LIARS_KEPT: usize = 16;
/// References that a provider shows, of as many client accounts. Few of an asker's
/// acquaintances will be among more.
pub const REFERENCES_MAX: usize = 32;
/// Bytes of all references in one answer, with room for the rest of a frame. Most take
/// one to two kilobytes, those with many outputs more.
pub const REFERENCES_BYTES_MAX: usize = 96 * 1024;
/// Accounts whose references are remembered: 3 MB.
pub const REFERRED_MAX: usize = 1024;
/// Providers that are asked for references at once.
pub const REFERENCES_OPEN_MAX: usize = 16;
/// How often a peer is shown references in an hour: each time all work in memory is
/// looked through.
pub const REFERENCES_PER_PEER: usize = 12;
/// Peers of whom the way to them is remembered. Each is a few words.
pub const LINKS_MAX: usize = 4096;
/// How long work may wait for its turn: as long as anything may run.
pub const WAIT_MAX: Duration = RUN_MAX;
