//! From what the protocol decides to what the HTTP API says, and back.
//!
//! Pure functions over values. One direction can fail: a [`Submission`] comes
//! from outside, and [`order`] says what is wrong with one, and what is
//! allowed.

mod standing;

use suanli_executor::limits::{PARALLEL_MAX, UNITS_MAX};
use suanli_protocol::{
    challenge::Wrong,
    deal::{BlobRef, Deal, Needs, UnitRange, Work},
    envelope::Verified,
    expression::{Expression, Scope},
    freivalds::{Freivalds, FreivaldsError, Numbers, Product},
    ids::{PeerId, ReceiptId},
    limits::{INPUTS_MAX, NAME_BYTES_MAX, ORDER_INPUTS_MAX, REPLICAS_MAX, RUN_MAX},
    message::InlineBlobs,
    offer::{Device, Name, Offer},
    peer::{BudgetView, ChannelView, JobView, WorkView, end_word},
    rank::Plan,
    receipt::{Receipt, Verdict},
    record::{JobEnd, JobOrder, Verify},
    registry::{Confidentiality, DeviceKind, Feature, Reason, Runtime, SandboxLevel, SpeedKind},
    standing::{Outcome as ChallengeOutcome, Standing},
    tolerance::{Tolerance, ToleranceError, Within},
    units::{Amount, Millis, Wall},
    wire::List,
};

pub use self::standing::account_standing;
use super::types::{
    BlobInfo, BudgetInfo, CandidateInfo, ChannelInfo, DeviceInfo, FreivaldsOrder, JobEventInfo,
    JobInfo, MisfitInfo, NumberType, OfferInfo, OutcomeInfo, OutputInfo, PauseInfo, PlanInfo,
    PriceInfo, ProductOrder, ReceiptInfo, RuntimeInfo, SpeedInfo, StandingInfo, Submission,
    UnitInfo, UnitsInfo, VerifyOrder, WithinOrder, WorkInfo,
};
use crate::{
    expression,
    handle::decline_words,
    pause::Pause,
    records::{JobStory, ReceiptStory, UnitStory},
};

/// How long a provider may keep a job's data after its end.
const RETENTION: Millis = Millis::new(3600 * 1000);
/// Receipts of an array that are named with it.
const ARRAY_RECEIPTS: usize = 64;

/// What is wrong with a submission.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// A name is too long or can't be shown.
    #[error(
        "{field} {text:?} can't be used: {why}; names have up to {NAME_BYTES_MAX} bytes of plain text"
    )]
    Text {
        /// Which field.
        field: &'static str,
        /// What stood there, cut.
        text: String,
        /// Why not.
        why: String,
    },
    /// A registered name is not known.
    #[error("{field} {text:?} is not known; known are {known}")]
    Unknown {
        /// Which field.
        field: &'static str,
        /// What stood there, cut.
        text: String,
        /// What is known.
        known: String,
    },
    /// Too many of something.
    #[error("{count} {field} are more than a job may name: {max}")]
    TooMany {
        /// Of what.
        field: &'static str,
        /// How many.
        count: usize,
        /// How many are allowed.
        max: usize,
    },
    /// An expression that can't be read.
    #[error("{field}: {why}; docs/expressions.md has the fields")]
    Expression {
        /// Which field.
        field: &'static str,
        /// What is wrong, and what is allowed.
        why: String,
    },
    /// A number of an array that is none.
    #[error("array.{field} is {value}; 1 to {max} are allowed")]
    Array {
        /// Which.
        field: &'static str,
        /// What stood there.
        value: u64,
        /// What is allowed.
        max: u64,
    },
    /// Units have more inputs for themselves than there are.
    #[error(
        "the array's units have {own} inputs for themselves, {inputs} are named; name them last, unit by unit"
    )]
    TooFewInputs {
        /// All that units have.
        own: u64,
        /// All that are named.
        inputs: usize,
    },
    /// A counter-offer that can't be made.
    #[error("counter_percent is {0}; up to 99 are allowed, and none for an array")]
    Counter(u8),
    /// A limit of nothing.
    #[error("{0} is 0; give the job some")]
    Zero(&'static str),
    /// A run limit over the protocol's.
    #[error("run_ms is {given}; the most that an agreement may ask for is {max}")]
    TooLong {
        /// What was asked for.
        given: u64,
        /// What is allowed.
        max: u64,
    },
    /// Results can't be compared so.
    #[error("verify.{field} is {value}; {min} to {max} are allowed")]
    Verify {
        /// Which number.
        field: &'static str,
        /// As given.
        value: u64,
        /// At least.
        min: u64,
        /// At most.
        max: u64,
    },
    /// No such tolerance.
    #[error("verify.within: {0}")]
    Tolerance(#[from] ToleranceError),
    /// A tolerance for nothing.
    #[error("verify.within.floats is empty; name the outputs that hold 32-bit floats")]
    NoFloats,
    /// No such products.
    #[error("verify.freivalds: {0}")]
    Freivalds(#[from] FreivaldsError),
    /// A tolerance for what is exact.
    #[error("verify.freivalds: a product of integers is exact; leave `tolerance` out")]
    Exact,
    /// Less time for all of it than for one execution.
    #[error(
        "total_ms ({total}) is less than run_ms ({run}); allow at least as much for all as for one run"
    )]
    TotalBelowRun {
        /// For all.
        total: u64,
        /// For one execution.
        run: u64,
    },
}

/// A submission as an order. `budget_default` stands in where no price is
/// named; `inline` is what travels with the agreement.
///
/// # Errors
/// [`Refused`], for the first thing that is wrong.
pub fn order(
    submission: &Submission,
    budget_default: Amount,
    inline: InlineBlobs,
) -> Result<JobOrder, Refused> {
    check_limits(submission)?;
    let principal = match submission.principal.as_str() {
        "" => "default",
        named => named,
    };
    let order = JobOrder {
        job: submission.job,
        name: name("name", &submission.name)?,
        principal: name("principal", principal)?,
        work: work(submission)?,
        spec: blob_ref(submission.spec),
        inputs: inputs(submission)?,
        needs: needs(submission)?,
        budget: submission.max_price.unwrap_or(budget_default),
        regions: few(
            "regions",
            submission.regions.iter().map(|r| name("region", r)),
        )?,
        providers: few("providers", submission.providers.iter().map(|&p| Ok(p)))?,
        condition: written(
            submission.condition.as_deref(),
            "where",
            expression::condition,
        )?,
        rank: written(submission.rank.as_deref(), "rank", expression::rank)?,
        policy: submission.policy,
        flops: submission.flops,
        confidentiality: Confidentiality::NONE,
        retention: RETENTION,
        total: Millis::new(submission.total_ms),
        parallel: submission.array.map_or(1, |array| array.parallel),
        max_failures: submission.array.map_or(0, |array| array.max_failures),
        // A firm offer that is taken is not haggled over.
        take: submission.counter_percent == 0,
        verify: verify(&submission.verify)?,
        counter_percent: submission.counter_percent,
        checkpoint_every: submission.checkpoint_ms.map(Millis::new),
        staying: few(
            "staying",
            submission.staying.iter().map(|o| name("staying", o)),
        )?,
        inline,
    };
    order.check_products()?;
    Ok(order)
}

fn verify(order: &VerifyOrder) -> Result<Verify, Refused> {
    let fields = [
        ("replicas", u64::from(order.replicas), 1, REPLICAS_MAX),
        ("audit_per_mille", u64::from(order.audit_per_mille), 0, 1000),
    ];
    for (field, value, min, max) in fields {
        if !(min..=max).contains(&value) {
            return Err(Refused::Verify {
                field,
                value,
                min,
                max,
            });
        }
    }
    Ok(Verify {
        replicas: order.replicas,
        audit: order.audit_per_mille,
        adaptive: order.adaptive,
        within: order.within.as_ref().map(within).transpose()?,
        freivalds: order.freivalds.as_ref().map(freivalds).transpose()?,
    })
}

fn freivalds(order: &FreivaldsOrder) -> Result<Freivalds, Refused> {
    let products = order.products.iter().map(product);
    Ok(Freivalds {
        rounds: order.rounds,
        products: few("verify.freivalds.products", products)?,
    })
}

fn product(order: &ProductOrder) -> Result<Product, Refused> {
    let error = order
        .tolerance
        .map(|tolerance| Tolerance::new(tolerance, 0.0));
    let numbers = match (order.numbers, error.transpose()?) {
        (NumberType::F32, error) => Numbers::Floats { error },
        (NumberType::I32 | NumberType::U32, None) => Numbers::Integers,
        (NumberType::I32 | NumberType::U32, Some(_)) => return Err(Refused::Exact),
    };
    Ok(Product {
        left: order.left,
        right: order.right,
        output: name("product", &order.product)?,
        rows: order.rows,
        inner: order.inner,
        columns: order.columns,
        numbers,
    })
}

fn within(order: &WithinOrder) -> Result<Within, Refused> {
    if order.floats.is_empty() {
        return Err(Refused::NoFloats);
    }
    let floats = order.floats.iter().map(|output| name("floats", output));
    Ok(Within {
        tolerance: Tolerance::new(order.relative, order.absolute)?,
        floats: few("verify.within.floats", floats)?,
    })
}

/// An offer in the book of the node `me`.
pub fn offer_info(offer: &Verified<Offer>, me: PeerId) -> OfferInfo {
    let body = offer.body();
    OfferInfo {
        offer: suanli_protocol::ids::OfferId(offer.hash()),
        peer: offer.signer(),
        account: body.account,
        own: offer.signer() == me,
        sequence: body.sequence,
        region: body.region.to_string(),
        addresses: body.addresses.iter().map(ToString::to_string).collect(),
        devices: body.devices.iter().map(device_info).collect(),
        prices: body
            .prices
            .iter()
            .map(|price| PriceInfo {
                meter: price.meter.to_string(),
                amount: price.amount,
                per: price.per,
            })
            .collect(),
        slots: body.slots,
        slots_free: body.slots_free,
        storage_bytes: body.storage_bytes,
        bandwidth_in: body.bandwidth_in,
        run_max_ms: body.run_max.get(),
        sandbox: body.sandbox.to_string(),
        firm: body.firm,
        strangers: body.terms.strangers,
        stranger_credit: body.terms.stranger_credit,
        accept: body.accept.as_ref().map(ToString::to_string),
        issued_ms: offer.issued().as_millis(),
        expires_ms: offer.expires().as_millis(),
        standing: None,
    }
}

/// Why nothing new is begun.
pub fn pause_info(pause: &Pause) -> PauseInfo {
    PauseInfo {
        why: pause.why.name().to_owned(),
        sentence: pause.why.sentence(),
        until_ms: pause.until.map(Wall::as_millis),
    }
}

/// A device of an offer.
pub fn device_info(device: &Device) -> DeviceInfo {
    DeviceInfo {
        kind: device.kind.to_string(),
        maker: device.maker.to_string(),
        model: device.model.to_string(),
        driver: device.driver.to_string(),
        memory_bytes: device.memory_bytes,
        slots: device.slots,
        runtimes: device
            .runtimes
            .iter()
            .map(|offered| RuntimeInfo {
                runtime: offered.runtime.to_string(),
                features: offered.features.iter().map(ToString::to_string).collect(),
            })
            .collect(),
        fp32_per_second: device.speed(SpeedKind::FP32),
        fuel_per_second: device.speed(SpeedKind::FUEL),
        speeds: device
            .speeds
            .iter()
            .map(|speed| SpeedInfo {
                kind: speed.kind.to_string(),
                per_second: speed.per_second,
                measured_ms: speed.measured.as_millis(),
            })
            .collect(),
    }
}

/// What a node has seen of a provider.
pub fn standing_info(standing: &Standing) -> StandingInfo {
    let (work, results) = (standing.work(), standing.results());
    StandingInfo {
        believed_percent: standing.believed(),
        challenge: standing
            .challenge()
            .map(|outcome| outcome_info(outcome, None)),
        work_percent: work.map(|(percent, _)| percent),
        work_count: work.map_or(0, |(_, count)| count),
        accepted: results.accepted.count,
        agreed: results.agreed.count,
        agreed_in_a_row: results.in_a_row.count,
        contradicted: results.contradicted.count,
        disputed: results.disputed.count,
        left_out_until_ms: standing.left_out_until().map(Wall::as_millis),
    }
}

/// What a challenge came to.
pub fn outcome_info(outcome: &ChallengeOutcome, wrong: Option<Wrong>) -> OutcomeInfo {
    OutcomeInfo {
        peer: outcome.provider,
        at_ms: outcome.at.as_millis(),
        device: outcome.device.to_string(),
        claimed_per_second: outcome.claimed,
        shown_per_second: outcome.shown,
        took_ms: outcome.took.get(),
        right: outcome.right,
        kept: outcome.is_kept(),
        wrong: wrong.map(|wrong| wrong.to_string()),
    }
}

/// An expression of a submission, if it has one.
fn written(
    text: Option<&str>,
    field: &'static str,
    read: fn(&str, Scope) -> Result<Expression, String>,
) -> Result<Option<Expression>, Refused> {
    let read = text.map(|text| read(text, Scope::Offer)).transpose();
    read.map_err(|why| Refused::Expression { field, why })
}

/// A plan under a budget.
pub fn plan_info(plan: &Plan, unit: &str, budget: Amount) -> PlanInfo {
    PlanInfo {
        unit: unit.to_owned(),
        budget,
        left: None,
        nowhere: Vec::new(),
        fitting: plan.fitting,
        unfit: plan.unfit,
        candidates: plan
            .candidates
            .iter()
            .map(|candidate| CandidateInfo {
                peer: candidate.peer,
                offer: candidate.offer,
                region: candidate.region.to_string(),
                device: candidate.device.to_string(),
                slots: candidate.slots,
                expected_ms: candidate.expected.run.get(),
                finish_ms: candidate.expected.finish.get(),
                wait_ms: candidate.expected.wait.get(),
                transfer_ms: candidate.expected.transfer.get(),
                carbon_mg: candidate.expected.carbon_mg,
                traffic: candidate.expected.traffic,
                price: candidate.expected.price,
                cap: candidate.cap,
            })
            .collect(),
        misfits: plan
            .misfits
            .iter()
            .map(|misfit| {
                let (reason, mut sentence) = decline_words(&misfit.decline);
                if let Some(why) = &misfit.why {
                    sentence = format!("{sentence}: {why}");
                }
                MisfitInfo {
                    peer: misfit.peer,
                    region: misfit.region.to_string(),
                    reason,
                    sentence,
                }
            })
            .collect(),
    }
}

/// What a principal may spend, and has spent.
pub fn budget_info(view: &BudgetView) -> BudgetInfo {
    BudgetInfo {
        principal: view.principal.clone(),
        budget: view.budget.map(|budget| budget.amount),
        days: view.days,
        spent: view.spent,
        reserved: view.reserved,
        left: view.left(),
    }
}

/// A job that the driver knows. Region and outputs are the caller's to find.
pub fn job_info(view: &JobView, region: Option<String>, outputs: Vec<OutputInfo>) -> JobInfo {
    JobInfo {
        job: view.job,
        name: view.name.clone(),
        principal: view.principal.clone(),
        submitted_ms: view.submitted.as_millis(),
        state: view.state.to_owned(),
        reason: view.end.and_then(end_reason),
        attempt: view.attempt,
        provider: view.provider,
        region,
        agreement: view.agreement,
        done: view.progress.0,
        total: view.progress.1,
        checkpoints: view.reached.clone(),
        units: (view.units.1 > 1).then(|| {
            let failed = u32::try_from(view.failed.len()).unwrap_or(u32::MAX);
            let ended = view.units.1.saturating_sub(view.units.0);
            UnitsInfo {
                total: view.units.1,
                done: ended.saturating_sub(failed),
                failed,
            }
        }),
        spent: view.spent,
        declined: view
            .declined
            .iter()
            .map(|(peer, decline)| (*peer, decline_words(decline).1))
            .collect(),
        receipts: some(view.receipts.iter().copied(), view.units.1),
        outputs,
    }
}

/// A job's receipts; of an array's a few, for its units are asked for by page.
fn some(receipts: impl Iterator<Item = ReceiptId>, units: u32) -> Vec<ReceiptId> {
    let few = if units > 1 {
        ARRAY_RECEIPTS
    } else {
        usize::MAX
    };
    receipts.take(few).collect()
}

/// A job that only the store knows. What providers said is not kept there.
pub fn stored_job_info(story: &JobStory) -> JobInfo {
    let deal = story.deals.last();
    let accepted = || {
        story
            .judged
            .iter()
            .filter(|(_, word)| word.body().verdict == Verdict::Accepted)
            .map(|(receipt, _)| receipt)
    };
    let end = story.end.map(|(end, _)| end);
    let units = u64::from(story.order.work.unit_count());
    JobInfo {
        job: story.order.job,
        name: story.order.name.to_string(),
        principal: story.order.principal.to_string(),
        submitted_ms: story.submitted.as_millis(),
        state: end.map_or("waiting", end_word).to_owned(),
        reason: end.and_then(end_reason),
        attempt: story.attempt,
        provider: deal.map(Deal::provider),
        region: deal.map(|deal| deal.offer().body().region.to_string()),
        agreement: deal.map(Deal::id),
        done: if end == Some(JobEnd::Done) { units } else { 0 },
        total: units,
        checkpoints: Vec::new(),
        units: (units > 1).then(|| UnitsInfo {
            total: story.order.work.unit_count(),
            done: if end == Some(JobEnd::Done) {
                story.order.work.unit_count()
            } else {
                0
            },
            failed: 0,
        }),
        spent: accepted().fold(Amount::ZERO, |sum, r| sum.saturating_add(r.body().amount)),
        declined: Vec::new(),
        receipts: some(
            accepted().map(|receipt| ReceiptId(receipt.hash())),
            story.order.work.unit_count(),
        ),
        outputs: if units > 1 {
            Vec::new()
        } else {
            let each = accepted().flat_map(|r| outputs(r.body()));
            each.fold(Vec::new(), with_output)
        },
    }
}

/// Adds an output, once: those of replicas are equal.
pub fn with_output(mut outputs: Vec<OutputInfo>, output: OutputInfo) -> Vec<OutputInfo> {
    if !outputs.contains(&output) {
        outputs.push(output);
    }
    outputs
}

/// What came out of an execution.
pub fn outputs(receipt: &Receipt) -> Vec<OutputInfo> {
    receipt
        .outputs
        .iter()
        .map(|output| OutputInfo {
            name: output.name.to_string(),
            blob: output.blob.blob,
            bytes: output.blob.bytes,
        })
        .collect()
}

/// A unit of an array.
pub fn unit_info(story: &UnitStory) -> UnitInfo {
    let receipt = story.receipt.as_ref();
    let failure = story.failure();
    let state = match (story.is_done(), failure) {
        (true, _) => "done",
        (false, Some(_)) => "failed",
        (false, None) => "open",
    };
    UnitInfo {
        unit: story.unit,
        state: state.to_owned(),
        reason: failure.map(|reason| reason.to_string()),
        provider: receipt.map(Verified::signer),
        receipt: receipt.map(|receipt| ReceiptId(receipt.hash())),
        outputs: receipt.map_or_else(Vec::new, |receipt| outputs(receipt.body())),
    }
}

/// A receipt, as the node `me` has it.
pub fn receipt_info(story: &ReceiptStory, me: PeerId) -> ReceiptInfo {
    let (body, deal) = (story.receipt.body(), &story.deal);
    let (outcome, reason) = (body.outcome.word(), body.outcome.reason());
    let (device_index, device) = deal.device();
    ReceiptInfo {
        receipt: ReceiptId(story.receipt.hash()),
        agreement: body.key.agreement,
        job: deal.quote().body().job,
        unit: body.key.unit,
        attempt: body.key.attempt,
        index: body.key.index,
        last: body.key.last,
        bought: deal.client() == me,
        client: deal.client(),
        provider: deal.provider(),
        region: deal.offer().body().region.to_string(),
        device: device.to_string(),
        device_index,
        outcome: outcome.to_owned(),
        reason: reason.map(|reason| reason.to_string()),
        amount: body.amount,
        usage: body
            .usage
            .iter()
            .map(|usage| (usage.meter.to_string(), usage.quantity))
            .collect(),
        outputs: outputs(body),
        verdict: story
            .acceptance
            .as_ref()
            .map(|word| verdict_word(word.body().verdict).to_owned()),
        verification: story
            .acceptance
            .as_ref()
            .map(|word| word.body().verification.to_string()),
        paid: story.voucher.is_some(),
        acknowledged: story.acknowledged,
        started_ms: body.started.as_millis(),
        ended_ms: body.ended.as_millis(),
    }
}

/// A channel, with the other party's node and account.
pub fn channel_info(view: &ChannelView) -> ChannelInfo {
    let parties = view.parties;
    let (peer, account) = if view.paying {
        (parties.payee, parties.payee_account)
    } else {
        (parties.payer, parties.payer_account)
    };
    ChannelInfo {
        channel: view.channel,
        paying: view.paying,
        peer,
        account,
        sequence: view.sequence,
        acknowledged: view.acknowledged,
        cumulative: view.cumulative.to_string(),
        pending: view.pending.to_string(),
        disputed: view.disputed.to_string(),
        settled: view.settled.to_string(),
        settlements: view.settlements,
        outstanding: view.outstanding().to_string(),
        prepaid: view.prepaid().to_string(),
        credit_left: view.credit_left.map(|left| left.to_string()),
        synced: view.synced,
        frozen: view.frozen,
    }
}

/// Work for somebody.
pub fn work_info(view: &WorkView) -> WorkInfo {
    WorkInfo {
        agreement: view.agreement,
        job: view.job,
        client: view.client,
        account: view.client_account,
        stage: view.stage.to_owned(),
        done: view.progress.0,
        total: view.progress.1,
        receipts: view.receipts.clone(),
    }
}

/// How a job ended.
pub fn ended(end: JobEnd) -> JobEventInfo {
    JobEventInfo::Ended {
        state: end_word(end).to_owned(),
        reason: end_reason(end),
    }
}

/// The registered reason of an end, and it as a sentence.
pub fn end_reason(end: JobEnd) -> Option<(String, String)> {
    match end {
        JobEnd::Failed(reason) | JobEnd::Declined(reason) => Some(reason_words(reason)),
        JobEnd::Expired => Some(reason_words(Reason::JOB_DEADLINE)),
        JobEnd::Done | JobEnd::Cancelled => None,
    }
}

fn reason_words(reason: Reason) -> (String, String) {
    (reason.to_string(), reason.sentence().to_owned())
}

const fn verdict_word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Accepted => "accepted",
        Verdict::Disputed(_) => "disputed",
    }
}

const fn blob_ref(info: BlobInfo) -> BlobRef {
    BlobRef {
        blob: info.blob,
        bytes: info.bytes,
    }
}

fn check_limits(submission: &Submission) -> Result<(), Refused> {
    for (field, value) in [
        ("run_ms", submission.run_ms),
        ("total_ms", submission.total_ms),
        ("memory_bytes", submission.memory_bytes),
        ("output_bytes_max", submission.output_bytes_max),
    ] {
        if value == 0 {
            return Err(Refused::Zero(field));
        }
    }
    let max = Millis::from(RUN_MAX).get();
    if submission.run_ms > max {
        return Err(Refused::TooLong {
            given: submission.run_ms,
            max,
        });
    }
    if submission.counter_percent > 99
        || (submission.counter_percent > 0 && submission.array.is_some())
    {
        return Err(Refused::Counter(submission.counter_percent));
    }
    if submission.total_ms < submission.run_ms {
        return Err(Refused::TotalBelowRun {
            total: submission.total_ms,
            run: submission.run_ms,
        });
    }
    Ok(())
}

/// One request names all that is shared and what some units have: a job that is no
/// array, and an array's shared part, fit into it.
fn inputs(submission: &Submission) -> Result<List<BlobRef, ORDER_INPUTS_MAX>, Refused> {
    let all = submission.inputs.iter().map(|&blob| Ok(blob_ref(blob)));
    let all: List<BlobRef, ORDER_INPUTS_MAX> = few("inputs", all)?;
    let own = submission.array.map_or(0, |array| {
        let units = usize::try_from(array.units).unwrap_or(usize::MAX);
        units.saturating_mul(usize::from(array.inputs_each))
    });
    let shared = all.len().saturating_sub(own);
    if shared > INPUTS_MAX {
        return Err(Refused::TooMany {
            field: "inputs",
            count: shared,
            max: INPUTS_MAX,
        });
    }
    Ok(all)
}

fn work(submission: &Submission) -> Result<Work, Refused> {
    let Some(array) = submission.array else {
        return Ok(Work::Job);
    };
    for (field, value, max) in [
        ("units", u64::from(array.units), UNITS_MAX as u64),
        (
            "parallel",
            u64::from(array.parallel),
            u64::from(PARALLEL_MAX),
        ),
    ] {
        if !(1..=max).contains(&value) {
            return Err(Refused::Array { field, value, max });
        }
    }
    let own = u64::from(array.units).saturating_mul(u64::from(array.inputs_each));
    if own > submission.inputs.len() as u64 {
        return Err(Refused::TooFewInputs {
            own,
            inputs: submission.inputs.len(),
        });
    }
    let units = UnitRange {
        first: 0,
        count: array.units,
    };
    Ok(Work::Array {
        units: List::truncated(vec![units]),
        inputs_each: array.inputs_each,
    })
}

fn needs(submission: &Submission) -> Result<Needs, Refused> {
    let runtime = Runtime::named(&submission.runtime)
        .ok_or_else(|| unknown("runtime", &submission.runtime, Runtime::names()))?;
    if runtime == Runtime::WASM && submission.fuel_max == 0 {
        return Err(Refused::Zero("fuel_max"));
    }
    let device = match &submission.device {
        None => None,
        Some(kind) => Some(
            DeviceKind::named(kind).ok_or_else(|| unknown("device", kind, DeviceKind::names()))?,
        ),
    };
    let sandbox = match &submission.sandbox {
        None => SandboxLevel::PROCESS,
        Some(level) => SandboxLevel::named(level)
            .ok_or_else(|| unknown("sandbox", level, SandboxLevel::names()))?,
    };
    let features = submission.features.iter().map(|feature| {
        Feature::named(feature).ok_or_else(|| unknown("feature", feature, Feature::names()))
    });
    Ok(Needs {
        runtime,
        features: few("features", features)?,
        device,
        memory_bytes: submission.memory_bytes,
        sandbox,
        run_max: Millis::new(submission.run_ms),
        output_bytes_max: submission.output_bytes_max,
        fuel_max: submission.fuel_max,
        model: None,
    })
}

fn name(field: &'static str, text: &str) -> Result<Name, Refused> {
    Name::new(text).map_err(|why| Refused::Text {
        field,
        text: cut(text),
        why: why.to_string(),
    })
}

fn few<T, const MAX: usize>(
    field: &'static str,
    elements: impl ExactSizeIterator<Item = Result<T, Refused>>,
) -> Result<List<T, MAX>, Refused> {
    let too_many = Refused::TooMany {
        field,
        count: elements.len(),
        max: MAX,
    };
    if elements.len() > MAX {
        return Err(too_many);
    }
    List::new(elements.collect::<Result<_, _>>()?).map_err(|_| too_many)
}

fn unknown(field: &'static str, text: &str, names: impl Iterator<Item = &'static str>) -> Refused {
    Refused::Unknown {
        field,
        text: cut(text),
        known: names.collect::<Vec<_>>().join(", "),
    }
}

fn cut(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{api::types::ArrayOrder, records::dealt};

    fn refused(change: impl FnOnce(&mut Submission)) -> String {
        let mut submission = dealt::submission(1);
        change(&mut submission);
        let budget = Amount::from_micros(1);
        order(&submission, budget, InlineBlobs::default())
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn a_submission_that_names_no_price_gets_the_nodes_default() {
        let mut submission = dealt::submission(1);
        let default = Amount::from_micros(7);
        let ordered =
            |submission: &Submission| order(submission, default, InlineBlobs::default()).unwrap();
        assert_eq!(ordered(&submission).budget, default);
        submission.max_price = Some(Amount::from_micros(9));
        submission.device = Some("gpu".to_owned());
        submission.features = vec!["f16".to_owned()];
        let order = ordered(&submission);
        assert_eq!(order.budget, Amount::from_micros(9));
        assert_eq!(order.needs.device, Some(DeviceKind::GPU));
        assert_eq!(&*order.needs.features, [Feature::F16]);
        assert_eq!((&*order.principal, order.take), ("default", true));
    }

    #[test]
    fn what_is_out_of_range_is_refused_with_what_is_allowed() {
        let long = "n".repeat(65);
        let array = ArrayOrder {
            units: 2,
            inputs_each: 0,
            parallel: 1,
            max_failures: 0,
        };
        for (sentence, says) in [
            (refused(|s| s.name = long.clone()), "up to 64 bytes"),
            (refused(|s| s.principal = "a\u{202e}b".into()), "U+202E"),
            (
                refused(|s| s.runtime = "cuda".into()),
                "wgsl, wasm, model, oci",
            ),
            (refused(|s| s.device = Some("tpu".into())), "cpu, gpu, npu"),
            (
                refused(|s| s.features = vec!["f64".into()]),
                "f16, subgroups",
            ),
            (refused(|s| s.run_ms = 0), "run_ms is 0"),
            (refused(|s| s.memory_bytes = 0), "memory_bytes is 0"),
            (refused(|s| s.run_ms = u64::MAX), "604800000"),
            (refused(|s| s.total_ms = 999), "less than run_ms (1000)"),
            (
                refused(|s| s.regions = vec!["CN-BJ".into(); 17]),
                "17 regions",
            ),
            (
                refused(|s| s.inputs = vec![dealt::blob(b"x"); 16_385]),
                "16385 inputs",
            ),
            (
                refused(|s| s.inputs = vec![dealt::blob(b"x"); 257]),
                "257 inputs",
            ),
            (
                refused(|s| {
                    s.array = Some(ArrayOrder {
                        units: 65_537,
                        ..array
                    })
                }),
                "array.units is 65537; 1 to 65536",
            ),
            (
                refused(|s| {
                    s.array = Some(ArrayOrder {
                        parallel: 0,
                        ..array
                    })
                }),
                "array.parallel is 0",
            ),
            (
                refused(|s| {
                    s.array = Some(ArrayOrder {
                        inputs_each: 1,
                        ..array
                    })
                }),
                "2 inputs for themselves, 1 are named",
            ),
        ] {
            assert!(sentence.contains(says), "{sentence}");
        }
    }
}
