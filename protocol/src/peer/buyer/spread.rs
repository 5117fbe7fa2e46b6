//! Which units go where.
//!
//! Units of an array, and copies of one whose results are to be compared, are
//! shared out among all providers that fit, the best first. A share is half of
//! what falls to its place, by the speed that is expected there: so the first
//! agreements are few and long, the last ones short, and nobody is waited for at
//! the end that had more than it could do. A provider whose unit takes several
//! times as long as units do elsewhere is not waited for either: when nothing else
//! is left to share out, others are given what it has, and the first result counts.
//!
//! Absent: prices. What a unit may cost is what is left of the budget, by the runs
//! that are still needed.

use std::sync::Arc;

use super::*;

/// A unit that takes so many times as long as others do is late,
const LATE_TIMES: u32 = 4;
/// but not before this.
const LATE_MIN: Duration = Duration::from_secs(2);
/// Units that are looked at for one round. There is another one soon.
const WANTED_MAX: usize = 8192;

/// What is asked of one provider.
#[derive(Debug)]
pub(super) struct Share {
    pub(super) offer: Verified<Offer>,
    /// What is expected there.
    pub(super) candidate: Candidate,
    pub(super) units: BTreeSet<u32>,
    /// What it may cost.
    pub(super) budget: Amount,
}

impl Share {
    /// Whether it can be taken in one round trip. One that can't be reached would keep
    /// a single job waiting alone.
    pub(super) fn is_firm(&self, core: &Core) -> bool {
        self.offer.body().firm && core.connected.contains_key(&self.offer.signer())
    }
}

/// Where one more agreement can stand.
#[derive(Debug, Clone)]
struct Place {
    offer: Verified<Offer>,
    candidate: Candidate,
    /// Whoever would run there.
    runner: Arc<Runner>,
}

/// Units that are shared out, and who has them.
#[derive(Debug)]
struct Dealing<'a> {
    job: &'a Job,
    /// How many more runs each needs.
    left: Vec<(u32, u32)>,
    runners: BTreeMap<u32, Vec<Arc<Runner>>>,
}

impl<'a> Dealing<'a> {
    fn of(job: &'a Job, wanted: &Wanted) -> Self {
        Self {
            job,
            left: wanted.units.clone(),
            runners: job.runners(&wanted.units),
        }
    }

    /// Where those are who have any.
    fn crowd(&self) -> Crowd {
        let mut crowd = Crowd::default();
        let mut counted: Vec<&Runner> = Vec::new();
        for runner in self.runners.values().flatten() {
            if !counted.contains(&&**runner) {
                counted.push(runner);
                crowd.add(runner);
            }
        }
        crowd
    }

    /// Takes units that somebody may run. What is compared is left to those who come
    /// later, if any of them has less in common with all who run it.
    fn deal_out(&mut self, to: &Arc<Runner>, later: &[Place], size: usize) -> BTreeSet<u32> {
        let mut others: Vec<_> = later.iter().map(|place| &place.runner).collect();
        others.dedup();
        let mut units = BTreeSet::new();
        let mut ranges = 0;
        let mut last = None;
        for (unit, runs) in self.left.iter_mut().filter(|(_, runs)| *runs > 0) {
            let runners = self.runners.entry(*unit).or_default();
            let common = to.in_common(runners);
            let further = || (others.iter()).any(|other| other.in_common(runners) > common);
            let waits = common < Common::Nothing && self.job.is_compared(*unit) && further();
            if common == Common::Account || waits {
                continue;
            }
            let follows = last.is_some_and(|last: u32| last.checked_add(1) == Some(*unit));
            ranges += usize::from(!follows);
            if units.len() >= size || ranges > UNIT_RANGES_MAX {
                break;
            }
            *runs -= 1;
            last = Some(*unit);
            units.insert(*unit);
            runners.push(Arc::clone(to));
        }
        units
    }
}

/// Units that need somebody who runs them.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    /// How many more runs each needs; the first of them, in order.
    units: Vec<(u32, u32)>,
    /// Runs that all of them need.
    runs: u64,
}

impl Wanted {
    pub(super) const fn is_empty(&self) -> bool {
        self.units.is_empty()
    }

    fn add(&mut self, unit: u32, runs: u32) {
        self.runs += u64::from(runs);
        if runs > 0 && self.units.len() < WANTED_MAX {
            self.units.push((unit, runs));
        }
    }

    /// What one run may cost.
    pub(super) fn budget(&self, job: &Job) -> Amount {
        Amount::from_micros(job.unspent().as_micros() / self.runs.max(1))
    }
}

impl Job {
    /// How many equal results decide a unit.
    pub(super) fn results_wanted(&self, unit: u32) -> u32 {
        let replicas = u32::from(self.order.verify.replicas.max(1));
        replicas.max(if self.audited.contains(&unit) { 2 } else { 1 })
    }

    /// How many more runs a unit needs, if those under way agree with the most that
    /// are here.
    pub(super) fn runs_wanted(&self, unit: u32) -> u32 {
        let running = self.runs.get(&unit).map_or(0, Vec::len);
        let running = u32::try_from(running).unwrap_or(u32::MAX);
        let here = self.equal_held(unit).saturating_add(running);
        self.results_wanted(unit).saturating_sub(here)
    }

    /// How many equal results of a unit are here, at most.
    fn equal_held(&self, unit: u32) -> u32 {
        let held = self.representative(unit).map_or(0, |(_, equal)| equal);
        u32::try_from(held).unwrap_or(u32::MAX)
    }

    /// What is to be run by somebody now.
    pub(super) fn wanted(&self, core: &Core) -> Wanted {
        let mut wanted = Wanted::default();
        if matches!(self.order.work, Work::Lease { .. }) && !self.live.is_empty() {
            return wanted;
        }
        for &unit in &self.open {
            wanted.add(unit, self.runs_wanted(unit));
        }
        if wanted.is_empty() && self.spreads() {
            for active in self.live.values().filter(|live| self.is_late(core, live)) {
                let alone = |unit: &&u32| {
                    let alone = self.runs.get(*unit).is_none_or(|runs| runs.len() < 2);
                    // Its results may be here, and be looked at.
                    alone && self.equal_held(**unit) < self.results_wanted(**unit)
                };
                for &unit in active.left.iter().filter(alone) {
                    wanted.add(unit, 1);
                }
            }
        }
        wanted
    }

    /// Whether an agreement's unit takes much longer than others did.
    fn is_late(&self, core: &Core, active: &Active) -> bool {
        let late = (self.pace.mean * LATE_TIMES).max(LATE_MIN);
        self.pace.seen > 0 && active.acked && core.now.mono.since(active.began) > late
    }

    /// How many more agreements may stand at once.
    pub(super) fn room(&self) -> usize {
        let most = match self.spreads() {
            true => usize::from(self.order.parallel.max(1)).min(AGREEMENTS_PER_JOB_MAX),
            false => 1,
        };
        // A few more, so that late units find room.
        let most = most + usize::from(self.order.verify.replicas);
        most.saturating_sub(self.live.len()).min(ROUND_MAX)
    }

    /// There is nothing to share out: looks again when somebody may be late.
    pub(super) fn rest(&self, core: &mut Core) {
        if self.spreads() && !self.live.is_empty() {
            wake(core, self, core.config.timing.heartbeat);
        } else {
            core.timers.set(Timer::Job(self.order.job), self.deadline);
        }
    }

    /// A provider that can't now is asked again later, and later each time.
    pub(super) fn is_busy(&mut self, core: &Core, peer: PeerId, decline: Decline) {
        let lends = decline.reason == Reason::CREDIT_EXHAUSTED;
        if !is_passing(decline.reason) && !lends {
            return;
        }
        // Its no is not about the offer.
        self.declined.remove(&peer);
        let busy = self.busy.entry(peer).or_insert(Busy {
            times: 0,
            until: core.now.mono,
            credit: None,
        });
        let pause = core.config.timing.retry * (1 << busy.times.min(6));
        busy.times += 1;
        busy.until = core.now.mono.after(pause);
        busy.credit = lends.then(|| Amount::from_micros(decline.have));
    }

    /// Whether results of a unit are compared with each other.
    fn is_compared(&self, unit: u32) -> bool {
        self.results_wanted(unit) > 1
    }

    /// Who runs units, or has run them.
    fn runners(&self, units: &[(u32, u32)]) -> BTreeMap<u32, Vec<Arc<Runner>>> {
        let mut known = BTreeMap::new();
        let mut runners: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (unit, _) in units {
            let runs = self.runs.get(unit).into_iter().flatten().copied();
            let held = self.held.get(unit).into_iter().flatten();
            let held = held.map(|held| held.receipt.body().key.agreement);
            for agreement in runs.chain(held) {
                if let Some(deal) = self.deal(agreement) {
                    let runner = || Runner::of(deal.offer().body());
                    let runner = known.entry(agreement).or_insert_with(runner);
                    runners.entry(*unit).or_default().push(Arc::clone(runner));
                }
            }
        }
        runners
    }

    /// Shares out what is wanted: results that are compared to those that are near nobody
    /// who runs the same, as far as there are any.
    pub(super) fn shares(
        &self,
        core: &Core,
        found: Vec<(Verified<Offer>, Candidate)>,
        wanted: &Wanted,
    ) -> Vec<Share> {
        let mut dealing = Dealing::of(self, wanted);
        let places = self.places(core, found, &dealing);
        let weight =
            |candidate: &Candidate| 1_000_000 / candidate.expected.run.get().clamp(1, 1_000_000);
        let whole: u64 = places.iter().map(|place| weight(&place.candidate)).sum();
        let live = u64::try_from(self.live.len()).unwrap_or(0);
        let count = u64::try_from(places.len()).unwrap_or(0).max(1);
        // Those at work come back for more: they are as fast as these, on average.
        let whole = whole + whole * live / count;
        // Nobody waits for one that is alone.
        let halves = if count + live > 1 { 2 } else { 1 };
        let unit_budget = wanted.budget(self);
        let mut shares = Vec::new();
        let mut places = places.as_slice();
        while let Some((place, later)) = places.split_first() {
            places = later;
            let part = wanted.runs * weight(&place.candidate) / (whole.max(1) * halves);
            let most = self.share_max(&place.offer, unit_budget);
            let size = usize::try_from(part).unwrap_or(usize::MAX).clamp(1, most);
            let units = dealing.deal_out(&place.runner, later, size);
            if units.is_empty() {
                continue;
            }
            let count = u32::try_from(units.len()).unwrap_or(u32::MAX);
            shares.push(Share {
                offer: place.offer.clone(),
                candidate: place.candidate.clone(),
                units,
                budget: rank::times(unit_budget, count),
            });
        }
        shares
    }

    /// Where one more agreement can stand: a provider has as many places as it has
    /// slots. Where all results are compared, those come first that are in other networks
    /// than those at work and each other, then those in other regions.
    fn places(
        &self,
        core: &Core,
        found: Vec<(Verified<Offer>, Candidate)>,
        dealing: &Dealing<'_>,
    ) -> Vec<Place> {
        let place = |(offer, candidate): (Verified<Offer>, Candidate)| Place {
            runner: Runner::of(offer.body()),
            offer,
            candidate,
        };
        let mut found: Vec<_> = found.into_iter().map(place).collect();
        let mut wanted = dealing.left.iter();
        if wanted.all(|(unit, _)| self.is_compared(*unit)) {
            let mut crowd = dealing.crowd();
            let place = |place: Place| (crowd.add(&place.runner), place);
            let mut turns: Vec<_> = found.into_iter().map(place).collect();
            turns.sort_by_key(|(turn, _)| *turn);
            found = turns.into_iter().map(|(_, place)| place).collect();
        }
        let mut places = Vec::new();
        for place in found {
            let peer = place.offer.signer();
            let waits = self.busy.get(&peer).map(|busy| busy.until);
            if waits.is_some_and(|until| until > core.now.mono) {
                continue;
            }
            let there = |active: &&Active| active.deal.provider() == peer;
            let taken = self.live.values().filter(there).count();
            let slots = usize::try_from(place.offer.body().slots).unwrap_or(usize::MAX);
            let free = slots.saturating_sub(taken).min(HOLDS_PER_CLIENT);
            places.extend(std::iter::repeat_n(place, free));
            if places.len() >= self.room() {
                break;
            }
        }
        places.truncate(self.room());
        places
    }

    /// Units that one agreement can have: as its inputs fit into a request, and as its
    /// provider gives credit for.
    fn share_max(&self, offer: &Verified<Offer>, unit_budget: Amount) -> usize {
        let work = &self.order.work;
        let shared = work.shared_inputs(self.order.inputs.len());
        let each = match work {
            Work::Array { inputs_each, .. } => usize::from(*inputs_each),
            Work::Job | Work::Lease { .. } => 0,
        };
        let room = INPUTS_MAX.saturating_sub(shared);
        let fitting = room.checked_div(each).unwrap_or(SHARE_MAX);
        let terms = &offer.body().terms;
        let told = self.busy.get(&offer.signer()).and_then(|busy| busy.credit);
        let lent = (terms.strangers && terms.stranger_credit > Amount::ZERO)
            .then_some(terms.stranger_credit);
        let unit = rank::affordable(&offer.body().prices, &self.order.needs, unit_budget);
        let unit = unit.map_or(0, |(_, cap)| cap.as_micros());
        let paid = told.or(lent).map_or(u64::MAX, |credit| {
            credit.as_micros().checked_div(unit).unwrap_or(u64::MAX)
        });
        let paid = usize::try_from(paid).unwrap_or(usize::MAX);
        fitting.min(paid).clamp(1, SHARE_MAX)
    }

    /// The work of some units, and what it reads.
    pub(super) fn part(&self, units: &BTreeSet<u32>) -> (Work, Vec<BlobRef>) {
        let work = match &self.order.work {
            Work::Array { inputs_each, .. } => Work::Array {
                units: ranges(units),
                inputs_each: *inputs_each,
            },
            whole @ (Work::Job | Work::Lease { .. }) => whole.clone(),
        };
        let inputs = self.order.inputs_for(&work).to_vec();
        (work, inputs)
    }
}
