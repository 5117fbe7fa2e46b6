//! Ranking a whole book by its index.
//!
//! ```text
//! classes ─ runtime, device, region, sandbox, and what of the condition is about nothing else ─┐
//! offers ──▶ class ─▶ memory, limits, price ─▶ the offer's `accept` ─▶ view ─▶ numbers of the condition
//!                                                  ─▶ expectation ─▶ budget, the rest of it ─▶ score
//! ```
//!
//! What is the same for many devices is asked once; of the job's condition the
//! comparisons of one number come first, and whatever is longer runs on what is left.
//! It comes to the same as [`rank`](super::rank), which looks at each offer by itself:
//! a test holds them together.

use std::collections::BinaryHeap;

use super::{
    Candidate, Misfits, OfferFields, PLAN_MAX, Plan, View, Want, asker, candidate,
    expect::{Link, Score, Stated, believed_speed, by_policy, expected_of, score, speed_of},
    judge, rank, times,
};
use crate::{
    book::{Book, Class, Head, Index, Row},
    expression::{Answer, Comparison, Field, Fields, Number, Term, Value, evaluate},
    ids::PeerId,
    registry::Reason,
    units::{Amount, Meter, Wall},
};

/// What of a class is known beforehand.
#[derive(Debug, Clone, Copy)]
struct Known {
    /// Whether its devices could run the work, if they have the memory.
    able: bool,
    /// Whether they meet what of the condition is about the class.
    meets: bool,
    /// What is taken for granted of the way to them.
    link: Link,
    /// Whether they are where the client is.
    near: bool,
}

/// A job's condition, taken apart.
#[derive(Debug, Default)]
struct Parts<'a> {
    /// About nothing but the class.
    of_class: Vec<&'a [Term]>,
    /// A number of the offer, compared with one that is written.
    numbers: Vec<(Field, Comparison, Number)>,
    /// Everything else.
    rest: Vec<&'a [Term]>,
}

impl<'a> Parts<'a> {
    fn of(want: &Want<'a>) -> Self {
        let mut parts = Self::default();
        for part in want.condition.map(|all| all.parts()).unwrap_or_default() {
            match part {
                [
                    Term::Field(field),
                    Term::Number(number, _),
                    Term::Compare(how),
                ] if !field.is_expected() => {
                    parts.numbers.push((*field, *how, *number));
                }
                terms if terms.iter().all(is_of_class) => parts.of_class.push(terms),
                terms => parts.rest.push(terms),
            }
        }
        parts
    }
}

fn is_of_class(term: &Term) -> bool {
    match term {
        Term::Field(field) => field.is_of_class(),
        _ => true,
    }
}

fn is_true(terms: &[Term], fields: &OfferFields<'_>) -> bool {
    evaluate(terms, fields) == Answer::Known(Value::Bool(true))
}

/// An offer that could run the work.
struct Fit<'a> {
    head: &'a Head,
    rows: &'a [Row],
    view: View,
}

/// One question to the index.
struct Query<'a> {
    want: &'a Want<'a>,
    book: &'a Book,
    now: Wall,
    classes: Vec<Known>,
    parts: Parts<'a>,
    named: Named,
}

/// How many offers a plan is to name: each is looked at once more, and copied.
#[derive(Debug, Clone, Copy)]
pub struct Named {
    /// Of those that fit, the best,
    pub candidates: usize,
    /// and of the others.
    pub misfits: usize,
}

impl Named {
    /// What people are shown.
    pub const MANY: Self = Self {
        candidates: PLAN_MAX,
        misfits: PLAN_MAX,
    };
}

/// Sorts a book's offers for a job, those that have not expired. `view` tells what the
/// client knows of a provider, or why it does not ask it; those of whom `skip` is true
/// are not counted at all.
pub fn rank_book(
    book: &Book,
    now: Wall,
    want: &Want<'_>,
    skip: impl Fn(PeerId) -> bool,
    view: impl Fn(PeerId) -> Result<View, Reason>,
) -> Plan {
    rank_some(book, now, (want, Named::MANY), skip, view)
}

/// The same, and names no more than is asked for.
pub fn rank_some(
    book: &Book,
    now: Wall,
    (want, named): (&Want<'_>, Named),
    skip: impl Fn(PeerId) -> bool,
    view: impl Fn(PeerId) -> Result<View, Reason>,
) -> Plan {
    if want.needs.model.is_some() {
        // A model is few offers' and not in the index.
        let live = book
            .iter()
            .filter(|offer| offer.expires() > now && !skip(offer.signer()));
        let mut plan = rank(live, want, view);
        plan.candidates.truncate(named.candidates);
        plan.misfits.truncate(named.misfits);
        return plan;
    }
    let parts = Parts::of(want);
    let classes = book.index().classes().iter();
    let query = Query {
        want,
        book,
        now,
        classes: classes.map(|class| known(class, want, &parts)).collect(),
        parts,
        named,
    };
    query.plan(skip, view)
}

/// What can be said of all devices of a class.
fn known(class: &Class, want: &Want<'_>, parts: &Parts<'_>) -> Known {
    let needs = want.needs;
    let runtime = class.device.runtime(needs.runtime);
    let able = runtime
        .is_some_and(|runtime| (needs.features.iter()).all(|need| runtime.features.contains(need)))
        && needs.device.is_none_or(|kind| kind == class.device.kind)
        && class.sandbox >= needs.sandbox
        && (want.regions.is_empty() || want.regions.contains(&class.region));
    let meets = || {
        let fields = OfferFields {
            figures: Index::of_class(class),
            believed: 100,
            expected: super::Expected::NONE,
        };
        parts.of_class.iter().all(|part| is_true(part, &fields))
    };
    Known {
        able,
        meets: able && meets(),
        link: Link::assumed(want.home, &class.region),
        near: want.home == &*class.region,
    }
}

/// What an expectation of a device is made of.
fn stated(head: &Head, (row, known): (&Row, &Known), want: &Want<'_>) -> Stated {
    let runtime = want.needs.runtime;
    Stated {
        speed: row.speeds.get(speed_of(runtime)),
        fixed: head.fixed,
        metered: head.price(Meter::of(runtime)),
        slots: head.slots,
        slots_free: head.slots_free,
        bandwidth_in: head.bandwidth_in,
        energy: head.energy,
        link: known.link,
        near: known.near,
    }
}

impl<'a> Query<'a> {
    fn plan(
        &self,
        skip: impl Fn(PeerId) -> bool,
        view: impl Fn(PeerId) -> Result<View, Reason>,
    ) -> Plan {
        let mut misfits = Misfits::default();
        let mut fitting = Vec::with_capacity(self.book.len());
        let mut slowest = u64::MAX;
        for (head, rows) in self.book.index().iter() {
            if head.expires <= self.now || skip(head.peer) {
                continue;
            }
            let Some((view, speed)) = self.fits(head, rows, &view) else {
                self.misfit(&mut misfits, head.peer, &view);
                continue;
            };
            slowest = slowest.min(believed_speed(speed, view.believed));
            fitting.push(Fit { head, rows, view });
        }
        let mut best = Best::of(self.named.candidates);
        for fit in &fitting {
            match self.score(fit, slowest) {
                Some(score) => best.add((score, fit.view.failing), fit.head.peer),
                None => self.missed(&mut misfits, fit.head.peer, &view, slowest),
            }
        }
        misfits.named.sort_by_key(|misfit| misfit.peer);
        Plan {
            fitting: best.count,
            candidates: best
                .sorted()
                .filter_map(|peer| self.candidate(peer, &view, slowest))
                .collect(),
            unfit: misfits.count,
            misfits: misfits.named,
        }
    }

    /// What the client knows of a provider whose offer fits, and what its fastest able
    /// device claims.
    fn fits(
        &self,
        head: &Head,
        rows: &[Row],
        view: impl Fn(PeerId) -> Result<View, Reason>,
    ) -> Option<(View, u64)> {
        let needs = self.want.needs;
        let kind = speed_of(needs.runtime);
        let able = rows.iter().filter(|row| self.is_able(row));
        let speed = able.map(|row| row.speeds.get(kind)).max()?;
        let least = head.fixed.map_or(Some(Amount::ZERO), |price| price.of(1));
        let least = least.map_or(Amount::MAX, |once| times(once, self.want.work.unit_count()));
        let fits = needs.quantity_max() > 0
            && needs.run_max <= head.run_max
            && needs.output_bytes_max <= head.storage_bytes
            && (self.want.says_work() || least <= self.want.budget);
        if !fits || (head.accepts && !self.is_accepted(head.peer)) {
            return None;
        }
        view(head.peer).ok().map(|view| (view, speed))
    }

    fn known(&self, row: &Row) -> Option<&Known> {
        self.classes.get(usize::try_from(row.class).ok()?)
    }

    fn is_able(&self, row: &Row) -> bool {
        row.memory_bytes >= self.want.needs.memory_bytes
            && self.known(row).is_some_and(|known| known.able)
    }

    fn is_accepted(&self, peer: PeerId) -> bool {
        let offer = self.book.of(peer);
        let accept = offer.and_then(|offer| offer.body().accept.as_ref());
        accept.is_none_or(|accept| {
            accept.evaluate(&asker(self.want)) != Answer::Known(Value::Bool(false))
        })
    }

    /// The best score of an offer's devices that meet the job's condition and budget.
    fn score(&self, fit: &Fit<'_>, slowest: u64) -> Option<Score> {
        let scores = fit.rows.iter().filter_map(|row| {
            let known = self.known(row).filter(|known| known.meets)?;
            if !self.is_able(row) {
                return None;
            }
            self.score_on(fit, (row, known), slowest)
        });
        scores.min()
    }

    fn score_on(&self, fit: &Fit<'_>, (row, known): (&Row, &Known), slowest: u64) -> Option<Score> {
        let (want, parts) = (self.want, &self.parts);
        let expected = || {
            expected_of(
                &stated(fit.head, (row, known), want),
                fit.view,
                want,
                slowest,
            )
        };
        if parts.numbers.is_empty() && parts.rest.is_empty() && want.rank.is_none() {
            // Nobody reads the fields.
            let expected = expected();
            let score = || by_policy(want.policy, None, want.within, &expected);
            return want.pays(&expected).then(score);
        }
        let classes = self.book.index().classes();
        let class = classes.get(usize::try_from(row.class).ok()?)?;
        let mut fields = OfferFields {
            figures: Index::figures(fit.head, row, class),
            believed: fit.view.believed,
            expected: super::Expected::NONE,
        };
        let holds = |(field, how, number): &(Field, Comparison, Number)| {
            let value = fields.get(*field);
            value.and_then(|value| how.holds(&value, &Value::Number(*number))) == Some(true)
        };
        if !parts.numbers.iter().all(holds) {
            return None;
        }
        fields.expected = expected();
        if !want.pays(&fields.expected) || !parts.rest.iter().all(|part| is_true(part, &fields)) {
            return None;
        }
        Some(score(want.policy, want.rank, want.within, &fields))
    }

    fn misfit(
        &self,
        misfits: &mut Misfits,
        peer: PeerId,
        view: impl Fn(PeerId) -> Result<View, Reason>,
    ) {
        if misfits.named.len() < self.named.misfits
            && let Some(offer) = self.book.of(peer)
            && let Err(decline) = judge(offer, self.want, view)
        {
            misfits.add(offer, decline, self.want);
        } else {
            misfits.count += 1;
        }
    }

    fn missed(
        &self,
        misfits: &mut Misfits,
        peer: PeerId,
        view: impl Fn(PeerId) -> Result<View, Reason>,
        slowest: u64,
    ) {
        if misfits.named.len() < self.named.misfits
            && let Some(offer) = self.book.of(peer)
            && let Ok(able) = judge(offer, self.want, view)
        {
            misfits.miss(offer, &able, self.want, slowest);
        } else {
            misfits.count += 1;
        }
    }

    fn candidate(
        &self,
        peer: PeerId,
        view: impl Fn(PeerId) -> Result<View, Reason>,
        slowest: u64,
    ) -> Option<Candidate> {
        let offer = self.book.of(peer)?;
        let able = judge(offer, self.want, view).ok()?;
        candidate(offer, &able, self.want, slowest)
    }
}

/// The best few, and how many there were.
struct Best {
    kept: BinaryHeap<((Score, u16), PeerId)>,
    most: usize,
    count: usize,
}

impl Best {
    fn of(most: usize) -> Self {
        Self {
            kept: BinaryHeap::new(),
            most,
            count: 0,
        }
    }

    fn add(&mut self, score: (Score, u16), peer: PeerId) {
        self.count += 1;
        if self.kept.len() < self.most {
            self.kept.push((score, peer));
        } else if let Some(mut worst) = self.kept.peek_mut()
            && (score, peer) < *worst
        {
            *worst = (score, peer);
        }
    }

    /// Best first.
    fn sorted(self) -> impl Iterator<Item = PeerId> {
        let sorted = self.kept.into_sorted_vec().into_iter();
        sorted.map(|(_, peer)| peer)
    }
}
