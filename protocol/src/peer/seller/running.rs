//! What executors say, and the receipts that follow from it.

use super::*;

/// How many checkpoints a client may be fetching: the newest, and the one before.
const CHECKPOINTS_TOLD: usize = 2;

/// Executions.
impl Seller {
    pub(crate) fn on_execution(
        &mut self,
        core: &mut Core,
        ledger: &mut Ledger,
        id: ExecutionId,
        event: ExecutionEvent,
    ) {
        let Some(deal) = self.deals.get_mut(&id.agreement) else {
            return;
        };
        if !deal.running.contains_key(&id.unit) {
            return;
        }
        match event {
            ExecutionEvent::Progress { done, total } => {
                deal.progress = (done, total);
                send_progress(core, id, deal);
            }
            ExecutionEvent::Log(line) => {
                deal.frames += 1;
                let frame = Frame::Log(LogLine {
                    agreement: id.agreement,
                    unit: id.unit,
                    number: deal.frames,
                    at: core.now.wall,
                    line: Text::<LOG_LINE_BYTES_MAX>::lossy(&line),
                });
                core.send(deal.deal.client(), frame);
            }
            ExecutionEvent::Checkpoint { done, state } => {
                deal.tell_checkpoint(core, id, (done, state));
            }
            ExecutionEvent::Interim(usage) => self.interim(core, ledger, id, usage),
            ExecutionEvent::Finished { outputs, usage } => {
                self.report(core, ledger, id, Outcome::Completed, outputs, usage);
            }
            ExecutionEvent::Failed { reason, usage } => {
                let outcome = if deal.is_used_up() {
                    Outcome::Completed
                } else if deal.cancelled {
                    Outcome::Cancelled
                } else {
                    Outcome::failed(reason)
                };
                self.report(core, ledger, id, outcome, Vec::new(), usage);
            }
        }
    }

    /// A part of a lease: receipted, as long as the client keeps accepting.
    fn interim(
        &mut self,
        core: &mut Core,
        ledger: &mut Ledger,
        id: ExecutionId,
        usage: Vec<Usage>,
    ) {
        let Some(deal) = self.deals.get(&id.agreement) else {
            return;
        };
        let is_lease = matches!(deal.deal.quote().body().work, Work::Lease { .. });
        if !is_lease {
            return;
        }
        if deal.unjudged() > 1 || deal.issued.values().any(Issued::is_disputed) {
            // Two parts without an answer, or one that won't be paid: no more
            // on credit.
            core.output(Output::Stop(id));
            return;
        }
        self.issue(
            core,
            ledger,
            id,
            Outcome::Completed,
            Vec::new(),
            usage,
            false,
        );
        if self
            .deals
            .get(&id.agreement)
            .is_some_and(Committed::is_used_up)
        {
            core.output(Output::Stop(id));
        }
    }

    fn report(
        &mut self,
        core: &mut Core,
        ledger: &mut Ledger,
        id: ExecutionId,
        outcome: Outcome,
        outputs: Vec<ProvidedOutput>,
        usage: Vec<Usage>,
    ) {
        self.issue(core, ledger, id, outcome, outputs, usage, true);
        let Some(deal) = self.deals.get_mut(&id.agreement) else {
            return;
        };
        let began = deal.running.remove(&id.unit);
        if let Some(began) = began.filter(|_| outcome == Outcome::Completed) {
            let limit = deal.deal.quote().body().run_max;
            self.turns.took(core.now.wall.since(began), limit);
        }
        if !deal.running.is_empty() {
            return;
        }
        let more = !deal.queue.is_empty() && !deal.cancelled;
        // A unit that fails by itself says nothing about the next.
        if more && matches!(outcome, Outcome::Completed | Outcome::JobFault(_)) {
            return self.start(core, id.agreement);
        }
        self.reported(core, id.agreement);
    }

    /// No more work here: receipts wait to be judged.
    pub(super) fn reported(&mut self, core: &mut Core, id: AgreementId) {
        let Some(deal) = self.deals.get_mut(&id) else {
            return;
        };
        if !deal.queue.is_empty() {
            // Units that will never run leave no receipt: without this a
            // restart would bring them back, beside what took their slot.
            deal.queue.clear();
            core.persist(Record::Closed {
                agreement: id,
                reason: Reason::CANCELLED,
            });
        }
        deal.stage = Stage::Reported;
        self.turns.forget(id);
        let Some(deal) = self.deals.get_mut(&id) else {
            return;
        };
        deal.resends = 0;
        deal.until = core
            .now
            .mono
            .after(deal.deal.quote().body().collect_max.duration());
        core.wake(Timer::Deal(id), core.config.timing.resend);
        self.close_if_judged(core, id);
    }

    /// Signs and sends a receipt.
    #[expect(clippy::too_many_arguments, reason = "a receipt says all of this")]
    fn issue(
        &mut self,
        core: &mut Core,
        ledger: &mut Ledger,
        id: ExecutionId,
        outcome: Outcome,
        outputs: Vec<ProvidedOutput>,
        usage: Vec<Usage>,
        last: bool,
    ) {
        let Some(deal) = self.deals.get_mut(&id.agreement) else {
            return;
        };
        let index = deal.next_index_of(id.unit);
        let (request, quote) = (deal.deal.request().body(), deal.deal.quote().body());
        let usage = clip_usage(usage, quote);
        let mut due = amount_due(quote, outcome, &usage).unwrap_or(quote.unit_cap);
        if matches!(quote.work, Work::Lease { .. }) {
            due = due.min(quote.cap.saturating_sub(deal.receipted()));
        }
        let receipt = Receipt {
            key: ReceiptKey {
                agreement: id.agreement,
                unit: id.unit,
                attempt: quote.attempt,
                index,
                last,
            },
            outcome,
            program: request.spec.blob,
            inputs: inputs_hash(&request.inputs),
            outputs: output_refs(&outputs),
            started: deal.running.get(&id.unit).copied().unwrap_or(core.now.wall),
            ended: core.now.wall,
            usage: List::truncated(usage),
            amount: due,
            verification: Verification::HASHES,
            extensions: Extensions::default(),
        };
        let receipt = core.sign(receipt);
        let inline = inline_outputs(outputs);
        let lsn = core.persist(Record::Receipted(receipt.clone()));
        let frame = Frame::Receipt(receipt.raw(), List::truncated(inline.clone()));
        core.send_after(lsn, deal.deal.client(), frame);
        let until = keep_outputs(core, quote, receipt.body());
        // What came with the receipt need not be on our disk.
        let here = receipt.body().outputs.iter().map(|output| output.blob.blob);
        let here = here.filter(|blob| !inline.iter().any(|inline| inline.blob == *blob));
        let account = request.account;
        for blob in here {
            let kept = self.kept.entry((account, blob)).or_insert(until);
            *kept = until.max(*kept);
        }
        let name = ReceiptId(receipt.hash());
        ledger.earn(core, deal_parties(&deal.deal), name, due);
        core.tell_after(
            lsn,
            Event::Receipted {
                agreement: id.agreement,
                receipt: name,
                amount: due,
            },
        );
        deal.issued.insert(
            (id.unit, index),
            Issued {
                receipt,
                inline,
                word: None,
                lsn,
            },
        );
    }

    /// Ends all units that are not receipted, for one reason.
    pub(super) fn fail_all(
        &mut self,
        core: &mut Core,
        ledger: &mut Ledger,
        id: AgreementId,
        reason: Reason,
    ) {
        let Some(deal) = self.deals.get_mut(&id) else {
            return;
        };
        let running: Vec<u32> = deal.running.keys().copied().collect();
        let next = deal.queue.front().copied();
        let outcome = Outcome::failed(reason);
        for unit in running
            .iter()
            .copied()
            .chain(next.filter(|_| running.is_empty()))
        {
            let execution = ExecutionId {
                agreement: id,
                unit,
            };
            if running.contains(&unit) {
                core.output(Output::Stop(execution));
            }
            self.issue(
                core,
                ledger,
                execution,
                outcome,
                Vec::new(),
                Vec::new(),
                true,
            );
        }
        if let Some(deal) = self.deals.get_mut(&id) {
            deal.running.clear();
        }
        self.reported(core, id);
    }
}

impl Committed {
    /// Tells the client from where another could go on.
    fn tell_checkpoint(
        &mut self,
        core: &mut Core,
        id: ExecutionId,
        (done, state): (u64, Vec<ProvidedOutput>),
    ) {
        let request = self.deal.request().body();
        let checkpoint = Checkpoint {
            unit: id.unit,
            done,
            state: List::truncated(output_refs(&state).into_vec()),
        };
        let is_whole = checkpoint.state.len() == state.len();
        if request.checkpoint_every.is_none() || !is_whole || !checkpoint.is_of(&request.work) {
            return;
        }
        self.told.push_back(checkpoint.clone());
        if self.told.len() > CHECKPOINTS_TOLD {
            self.told.pop_front();
        }
        let inline = List::truncated(inline_outputs(state));
        let frame = Frame::Checkpoint(id.agreement, checkpoint, inline);
        core.send(self.deal.client(), frame);
    }

    /// What the client has of this work, after a restart that cost us all of it.
    pub(super) fn go_on_from(&mut self, kept: Vec<Checkpoint>) {
        let work = &self.deal.request().body().work;
        for checkpoint in kept.into_iter().filter(|kept| kept.is_of(work)) {
            self.resume.insert(checkpoint.unit, checkpoint);
        }
    }

    /// All that has to be here before it begins.
    pub(super) fn needs(&self) -> impl Iterator<Item = BlobRef> {
        let state = self.resume.values().flat_map(Checkpoint::blobs);
        self.deal.request().body().read().chain(state)
    }

    fn next_index_of(&mut self, unit: u32) -> u32 {
        match self.deal.quote().body().work {
            Work::Lease { .. } => {
                let index = self.next_index;
                self.next_index += 1;
                index
            }
            Work::Job | Work::Array { .. } => {
                u32::try_from(self.issued.range((unit, 0)..=(unit, u32::MAX)).count()).unwrap_or(0)
            }
        }
    }
}

/// Where units go on by the agreement.
pub(super) fn resumed_as_agreed(deal: &Deal) -> BTreeMap<u32, Checkpoint> {
    let resume = deal.request().body().resume.iter();
    resume.map(|kept| (kept.unit, kept.clone())).collect()
}

/// Never more than was agreed: an executor's clock may run over.
fn clip_usage(usage: Vec<Usage>, quote: &Quote) -> Vec<Usage> {
    let clip = |line: Usage| match line.meter {
        Meter::GPU_MS => Usage {
            quantity: line.quantity.min(quote.run_max.get()),
            ..line
        },
        Meter::WASM_FUEL => Usage {
            quantity: line.quantity.min(quote.fuel_max),
            ..line
        },
        _ => line,
    };
    usage.into_iter().map(clip).collect()
}

/// Outputs stay until their client has had the agreed time to collect them.
fn keep_outputs(core: &mut Core, quote: &Quote, receipt: &Receipt) -> Wall {
    let until = core.now.wall.after(quote.collect_max.duration());
    for output in receipt.outputs.iter() {
        core.output(Output::Retain {
            blob: output.blob.blob,
            until,
        });
    }
    until
}

fn output_refs(outputs: &[ProvidedOutput]) -> List<OutputRef, OUTPUTS_MAX> {
    let refs = outputs.iter().map(|output| OutputRef {
        name: output.name.clone(),
        blob: output.blob,
    });
    List::truncated(refs.collect())
}

/// Outputs small enough to travel with the receipt.
fn inline_outputs(outputs: Vec<ProvidedOutput>) -> Vec<InlineBlob> {
    let mut left = INLINE_BYTES_MAX;
    let mut inline = Vec::new();
    for output in outputs {
        let Some(bytes) = output.inline.filter(|bytes| bytes.len() <= left) else {
            continue;
        };
        if inline.len() == INLINE_BLOBS_MAX {
            break;
        }
        left -= bytes.len();
        if let Ok(bytes) = Bytes::new(bytes) {
            inline.push(InlineBlob {
                blob: output.blob.blob,
                bytes,
            });
        }
    }
    inline
}

/// A client that asks after an agreement that it has judged completely is a
/// restored backup: it gets what it has lost, and need not buy it again.
pub(super) fn resend_lost(
    core: &mut Core,
    id: AgreementId,
    deal: &Committed,
    (shown, is_done): (&[ReceiptId], impl Fn(&u32) -> bool),
) {
    let client = deal.deal.client();
    let mut lost = (deal.issued.values())
        .filter(|issued| {
            let is_shown = shown.contains(&ReceiptId(issued.receipt.hash()));
            !is_shown && !is_done(&issued.receipt.body().key.unit)
        })
        .peekable();
    if lost.peek().is_none() {
        return core.send(client, Frame::Lost(id));
    }
    for issued in lost {
        let inline = List::truncated(issued.inline.clone());
        let frame = Frame::Receipt(issued.receipt.raw(), inline);
        core.send_after(issued.lsn, client, frame);
    }
}

pub(super) fn send_progress(core: &mut Core, id: ExecutionId, deal: &mut Committed) {
    deal.frames += 1;
    let frame = Frame::Progress(Progress {
        agreement: id.agreement,
        unit: id.unit,
        number: deal.frames,
        done: deal.progress.0,
        total: deal.progress.1,
    });
    core.send(deal.deal.client(), frame);
}
