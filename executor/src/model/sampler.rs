//! Chooses the next token by logits.
//!
//! Without temperature it is the best one, the first of equals. With it, a token is
//! drawn: each is as likely as its logit divided by the temperature says, those below
//! [`min_p`](SamplerOptions::min_p) of the best one's likelihood are left out, and of
//! the rest the likeliest that make up [`top_p`](SamplerOptions::top_p).
//!
//! Chance is ChaCha8 from a seed, one 64-bit number a draw, of which each token gets noise of
//! its own (Gumbel's distribution): the token with the largest sum of logit and noise is
//! drawn. That is as likely as it should be, and it is hardly moved by small differences:
//! who computes the same logits in another arithmetic draws the same token but where two
//! sums are nearly equal. So a drawn answer can be held against the model that is said to
//! have written it ([`Sampler::doubt`]).
//!
//! A sampler is known by its options, its seed and how many draws it has made: with these
//! another machine goes on where this one stopped, and equal logits give equal tokens
//! everywhere, because only additions, multiplications, divisions and comparisons are used,
//! in a fixed order.
//!
//! What shifts logits before that, penalties for repetition and biases, is [`Shifts`]; what
//! leaves out tokens because of a form is a [`grammar`](super::grammar)'s. [`likelihoods`]
//! is what a model alone thinks of its tokens.

use std::collections::BTreeMap;

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng as _, SeedableRng as _},
};

use super::cpu::exponential;

/// Words of the generator that a draw takes.
const WORDS: u128 = 2;
/// A token so much less likely than the best one is never drawn: it would be once in
/// centuries, and without them there is little to sort.
const NEGLIGIBLE: f32 = 1.0 / 16_777_216.0;

/// The largest penalty, as OpenAI has it.
const PENALTY_MAX: f32 = 2.0;
/// The largest bias: more or less is for certain.
const BIAS_MAX: f32 = 100.0;

/// How tokens are chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SamplerOptions {
    /// Above 1 is more surprising, below is less; 0 takes the best token always.
    pub temperature: f32,
    /// The likeliest tokens that make up this share are drawn from; 1 is all.
    pub top_p: f32,
    /// Tokens less likely than this share of the best one's likelihood are left out; 0
    /// leaves out none.
    pub min_p: f32,
}

/// Options that can't be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SamplerError {
    /// A temperature that is none.
    #[error("the temperature must be from 0 to 100; 0 takes the best token always")]
    Temperature,
    /// A share that is none.
    #[error("top_p must be above 0, and at most 1")]
    TopP,
    /// A share that is none.
    #[error("min_p must be from 0 to 1")]
    MinP,
    /// A penalty that is none.
    #[error("penalties must be from -{PENALTY_MAX} to {PENALTY_MAX}")]
    Penalty,
    /// A bias that is none.
    #[error("biases must be from -{BIAS_MAX} to {BIAS_MAX}")]
    Bias,
}

/// Chooses tokens, one after the other.
#[derive(Debug, Clone)]
pub struct Sampler {
    options: SamplerOptions,
    random: ChaCha8Rng,
    draws: u64,
    /// Kept for its room.
    candidates: Vec<Candidate>,
}

/// A token that may be drawn.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    token: u32,
    /// As a part of the best one's.
    likelihood: f32,
}

impl SamplerOptions {
    /// The best token always.
    pub const GREEDY: Self = Self {
        temperature: 0.0,
        top_p: 1.0,
        min_p: 0.0,
    };

    fn check(&self) -> Result<(), SamplerError> {
        if !(0.0..=100.0).contains(&self.temperature) {
            return Err(SamplerError::Temperature);
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(SamplerError::TopP);
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            return Err(SamplerError::MinP);
        }
        Ok(())
    }
}

impl Sampler {
    /// One that has made no draw yet.
    ///
    /// # Errors
    ///
    /// If the options can't be.
    pub fn new(options: SamplerOptions, seed: [u8; 32]) -> Result<Self, SamplerError> {
        Self::resume(options, seed, 0)
    }

    /// One that has made so many draws.
    ///
    /// # Errors
    ///
    /// If the options can't be.
    pub fn resume(
        options: SamplerOptions,
        seed: [u8; 32],
        draws: u64,
    ) -> Result<Self, SamplerError> {
        options.check()?;
        let mut random = ChaCha8Rng::from_seed(seed);
        random.set_word_pos(u128::from(draws) * WORDS);
        Ok(Self {
            options,
            random,
            draws,
            candidates: Vec::new(),
        })
    }

    /// The draws so far. Choosing the best token is none.
    pub const fn draws(&self) -> u64 {
        self.draws
    }

    /// The next token. Logits that are no numbers are never chosen, unless all are: then
    /// it is token 0.
    pub fn sample(&mut self, logits: &[f32]) -> u32 {
        self.choose(logits).0
    }

    /// The next token, and by how much another one is less than it: in units of logits, over
    /// the temperature. 0 for the token itself.
    pub fn doubt(&mut self, logits: &[f32], token: u32) -> (u32, f32) {
        let own = usize::try_from(token).ok();
        let own = own.and_then(|token| logits.get(token)).copied();
        let own = own.filter(|logit| logit.is_finite());
        let (chosen, largest, noise) = self.choose(logits);
        let behind = own.map(|own| match noise {
            None => f64::from(largest - own),
            Some(noise) => {
                let scaled = f64::from((own - largest) * self.inverse());
                noise.best - (scaled + noise.of(token))
            }
        });
        #[allow(clippy::cast_possible_truncation, reason = "logits are of 32 bits")]
        let behind = behind.map_or(f32::MAX, |behind| behind.max(0.0) as f32);
        (chosen, if chosen == token { 0.0 } else { behind })
    }

    fn inverse(&self) -> f32 {
        1.0 / self.options.temperature
    }

    /// The next token, the largest logit, and the noise that was drawn.
    fn choose(&mut self, logits: &[f32]) -> (u32, f32, Option<Noise>) {
        let (best, largest) = best(logits);
        if self.options.temperature == 0.0 || !largest.is_finite() {
            return (best, largest, None);
        }
        self.narrow(logits, largest);
        let inverse = self.inverse();
        let mut noise = Noise {
            key: self.draw(),
            best: f64::NEG_INFINITY,
        };
        let mut chosen = best;
        for candidate in &self.candidates {
            let token = candidate.token;
            let logit = usize::try_from(token).map_or(largest, |token| logits[token]);
            let sum = f64::from((logit - largest) * inverse) + noise.of(token);
            if sum > noise.best {
                (chosen, noise.best) = (token, sum);
            }
        }
        (chosen, largest, Some(noise))
    }

    /// Finds the tokens that may be drawn.
    fn narrow(&mut self, logits: &[f32], largest: f32) {
        let inverse = self.inverse();
        let least = self.options.min_p.max(NEGLIGIBLE);
        self.candidates.clear();
        for (token, logit) in (0..).zip(logits) {
            let likelihood = exponential((logit - largest) * inverse);
            if likelihood >= least {
                self.candidates.push(Candidate { token, likelihood });
            }
        }
        if self.options.top_p >= 1.0 {
            return;
        }
        let share = |candidate: &Candidate| f64::from(candidate.likelihood);
        let likelier = |one: &Candidate, other: &Candidate| {
            let by_share = other.likelihood.total_cmp(&one.likelihood);
            by_share.then(one.token.cmp(&other.token))
        };
        self.candidates.sort_unstable_by(likelier);
        let all: f64 = self.candidates.iter().map(share).sum();
        let wanted = all * f64::from(self.options.top_p);
        let (mut kept, mut count) = (0.0, 0);
        while count < self.candidates.len() && kept < wanted {
            kept += share(&self.candidates[count]);
            count += 1;
        }
        self.candidates.truncate(count);
    }

    fn draw(&mut self) -> u64 {
        self.draws = self.draws.wrapping_add(1);
        self.random.next_u64()
    }
}

/// What one draw gives to each token.
#[derive(Debug, Clone, Copy)]
struct Noise {
    key: u64,
    /// The largest sum of a logit, over the temperature, and its noise.
    best: f64,
}

impl Noise {
    /// A token's noise.
    fn of(&self, token: u32) -> f64 {
        const UNIT: f64 = 1.0 / 9_007_199_254_740_992.0;
        // The finaliser of SplitMix64, over numbers that are far apart.
        let mut mixed = self.key ^ u64::from(token).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        #[allow(clippy::cast_precision_loss, reason = "53 bits are exact")]
        let even = ((mixed >> 11) as f64 + 0.5) * UNIT;
        -logarithm(-logarithm(even))
    }
}

/// The natural logarithm of a positive number that is not subnormal, with an error below
/// 1e-12, by operations that give the same everywhere.
fn logarithm(number: f64) -> f64 {
    const EXPONENT: u64 = 0x7ff;
    let bits = number.to_bits();
    let mut exponent = ((bits >> 52) & EXPONENT).cast_signed() - 1023;
    let mut rest = f64::from_bits((bits & !(EXPONENT << 52)) | (1023 << 52));
    if rest > std::f64::consts::SQRT_2 {
        rest *= 0.5;
        exponent += 1;
    }
    // ln((1 + s) / (1 - s)) = 2 (s + s^3 / 3 + s^5 / 5 + …), and s is below 0.172.
    let s = (rest - 1.0) / (rest + 1.0);
    let square = s * s;
    let mut series = 0.0;
    for divisor in [15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0] {
        series = series * square + 1.0 / divisor;
    }
    #[allow(clippy::cast_precision_loss, reason = "below 2000")]
    let exponent = exponent as f64;
    2.0 * s * series + exponent * std::f64::consts::LN_2
}

/// What is added to logits, or taken from them, because of what a question says and of what
/// its answer has already.
#[derive(Debug, Clone, Default)]
pub struct Shifts {
    presence: f32,
    frequency: f32,
    biases: Vec<(u32, f32)>,
    /// How often the answer has each of its tokens.
    counts: BTreeMap<u32, u16>,
}

impl Shifts {
    /// Those of an answer that has no token yet.
    ///
    /// # Errors
    ///
    /// If they can't be.
    pub fn new(
        presence: f32,
        frequency: f32,
        biases: Vec<(u32, f32)>,
    ) -> Result<Self, SamplerError> {
        let are_penalties = [presence, frequency]
            .iter()
            .all(|penalty| (-PENALTY_MAX..=PENALTY_MAX).contains(penalty));
        if !are_penalties {
            return Err(SamplerError::Penalty);
        }
        if !(biases.iter()).all(|(_, bias)| (-BIAS_MAX..=BIAS_MAX).contains(bias)) {
            return Err(SamplerError::Bias);
        }
        Ok(Self {
            presence,
            frequency,
            biases,
            counts: BTreeMap::new(),
        })
    }

    /// Whether they change nothing, ever.
    pub fn is_none(&self) -> bool {
        !self.counts_tokens() && self.biases.is_empty()
    }

    fn counts_tokens(&self) -> bool {
        self.presence != 0.0 || self.frequency != 0.0
    }

    /// The answer has one token more.
    pub fn took(&mut self, token: u32) {
        if self.counts_tokens() {
            let count = self.counts.entry(token).or_default();
            *count = count.saturating_add(1);
        }
    }

    /// Shifts the logits of the next token.
    pub fn apply(&self, logits: &mut [f32]) {
        let place = |token: u32| usize::try_from(token).unwrap_or(usize::MAX);
        for (token, count) in &self.counts {
            if let Some(logit) = logits.get_mut(place(*token)) {
                *logit -= self.presence + self.frequency * f32::from(*count);
            }
        }
        for (token, bias) in &self.biases {
            if let Some(logit) = logits.get_mut(place(*token)) {
                *logit += bias;
            }
        }
    }
}

/// The logarithm of a token's likelihood, and the likeliest tokens with theirs: so many,
/// the likeliest first, and of equals the first. All are at most 0, and finite.
pub fn likelihoods(logits: &[f32], token: u32, count: usize) -> (f32, Vec<(u32, f32)>) {
    let (_, largest) = best(logits);
    let shares = logits.iter().map(|logit| exponential(logit - largest));
    let sum: f64 = shares
        .filter(|share| share.is_finite())
        .map(f64::from)
        .sum();
    #[allow(
        clippy::cast_possible_truncation,
        reason = "a logarithm of at most a million"
    )]
    let sum = sum.ln() as f32;
    let logarithm = |logit: f32| {
        let logarithm = logit - largest - sum;
        // What is not finite is as unlikely as can be.
        if logarithm.is_finite() {
            logarithm.min(0.0)
        } else {
            f32::MIN
        }
    };
    let mut order: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
    order.retain(|(_, logit)| !logit.is_nan());
    let likelier =
        |(one, a): &(u32, f32), (other, b): &(u32, f32)| b.total_cmp(a).then(one.cmp(other));
    if count > 0 && count < order.len() {
        order.select_nth_unstable_by(count - 1, likelier);
    }
    order.truncate(count);
    order.sort_unstable_by(likelier);
    let likeliest = order.into_iter();
    let likeliest = likeliest.map(|(token, logit)| (token, logarithm(logit)));
    let own = usize::try_from(token)
        .ok()
        .and_then(|token| logits.get(token));
    let own = logarithm(own.copied().unwrap_or(f32::NAN));
    (own, likeliest.collect())
}

/// The first of the largest logits, and it.
fn best(logits: &[f32]) -> (u32, f32) {
    let mut best = (0, f32::NEG_INFINITY);
    for (token, logit) in (0..).zip(logits) {
        if *logit > best.1 {
            best = (token, *logit);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 6] = [1.0, 3.0, 2.5, f32::NAN, 3.0, -40.0];

    fn options(temperature: f32, top_p: f32, min_p: f32) -> SamplerOptions {
        SamplerOptions {
            temperature,
            top_p,
            min_p,
        }
    }

    fn counts(options: SamplerOptions) -> [u32; 6] {
        let mut sampler = Sampler::new(options, [7; 32]).unwrap();
        let mut counts = [0; 6];
        for _ in 0..4000 {
            counts[usize::try_from(sampler.sample(&LOGITS)).unwrap()] += 1;
        }
        counts
    }

    #[test]
    fn without_temperature_the_first_of_the_best_is_taken_and_nothing_drawn() {
        let mut sampler = Sampler::new(SamplerOptions::GREEDY, [0; 32]).unwrap();
        assert_eq!(sampler.sample(&LOGITS), 1);
        assert_eq!(sampler.sample(&[f32::NAN; 3]), 0);
        assert_eq!(sampler.sample(&[]), 0);
        assert_eq!(sampler.draws(), 0);
    }

    #[test]
    fn tokens_come_as_often_as_they_are_likely() {
        let all = counts(options(1.0, 1.0, 0.0));
        // e^-2, 1, e^-0.5 and 1 of their sum.
        for (count, wanted) in all.iter().zip([197.0, 1459.0, 885.0, 0.0, 1459.0, 0.0]) {
            assert!((f64::from(*count) - wanted).abs() < 120.0, "{all:?}");
        }
        assert_eq!(counts(options(1.0, 0.7, 0.0))[0], 0);
        assert_eq!(counts(options(1.0, 1.0, 0.9))[2], 0);
        let few = counts(options(1.0, 0.1, 0.0));
        assert_eq!(few, [0, 4000, 0, 0, 0, 0]);
    }

    #[test]
    fn another_machine_goes_on_where_one_stopped() {
        let options = options(1.5, 0.95, 0.0);
        let mut first = Sampler::new(options, [3; 32]).unwrap();
        for _ in 0..100 {
            first.sample(&LOGITS);
        }
        let mut second = Sampler::resume(options, [3; 32], first.draws()).unwrap();
        for _ in 0..100 {
            assert_eq!(first.sample(&LOGITS), second.sample(&LOGITS));
        }
    }

    #[test]
    fn draws_are_the_same_on_every_machine() {
        let mut sampler = Sampler::new(options(1.0, 1.0, 0.0), [9; 32]).unwrap();
        let tokens: Vec<u32> = (0..12).map(|_| sampler.sample(&LOGITS)).collect();
        assert_eq!(tokens, [4, 4, 1, 0, 1, 4, 4, 1, 4, 1, 1, 1]);
    }

    #[test]
    fn the_logarithm_is_near_the_true_one() {
        for power in -60..10 {
            for part in [1.0, 1.2, 1.414, 1.415, 1.7, 1.999_999] {
                let number = part * 2.0_f64.powi(power);
                let error = (logarithm(number) - number.ln()).abs();
                assert!(
                    error < 1e-12 * number.ln().abs().max(1.0),
                    "{number} {error}"
                );
            }
        }
    }

    #[test]
    fn a_little_other_logits_mostly_draw_the_same_token() {
        let logits: Vec<f32> = (0..2000_u16).map(|n| f32::from(n % 97) * 0.1).collect();
        let other: Vec<f32> = (0..2000_u16)
            .map(|n| f32::from(n % 97) * 0.1 + f32::from(n % 7) * 0.002)
            .collect();
        let mut first = Sampler::new(options(1.0, 1.0, 0.0), [4; 32]).unwrap();
        let mut second = first.clone();
        let mut equal = 0;
        for _ in 0..500 {
            let token = first.sample(&logits);
            let (instead, behind) = second.doubt(&other, token);
            equal += u32::from(instead == token);
            // What is not drawn here was nearly drawn.
            assert!((0.0..0.02).contains(&behind), "{behind}");
        }
        assert!(equal > 490, "{equal}");
        // Another seed draws others, that lie far behind.
        let mut third = Sampler::new(options(1.0, 1.0, 0.0), [5; 32]).unwrap();
        let behind: f32 = (0..500)
            .map(|_| third.doubt(&logits, first.sample(&logits)).1)
            .sum();
        assert!(behind / 500.0 > 2.0, "{behind}");
        let mut greedy = Sampler::new(SamplerOptions::GREEDY, [0; 32]).unwrap();
        assert_eq!(greedy.doubt(&LOGITS, 2), (1, 0.5));
        assert_eq!(greedy.doubt(&LOGITS, 3), (1, f32::MAX));
        assert_eq!(greedy.doubt(&LOGITS, 99), (1, f32::MAX));
    }

    #[test]
    fn penalties_and_biases_shift_what_they_name() {
        let mut shifts = Shifts::new(0.5, 0.25, vec![(0, 3.0), (99, 1.0)]).unwrap();
        shifts.took(1);
        shifts.took(1);
        shifts.took(2);
        let mut logits = [1.0, 3.0, 2.5, 0.0];
        shifts.apply(&mut logits);
        assert_eq!(logits, [4.0, 2.0, 1.75, 0.0]);
        assert!(!shifts.is_none());
        assert!(Shifts::new(0.0, 0.0, Vec::new()).unwrap().is_none());
        for (presence, frequency, bias) in [
            (2.1, 0.0, 0.0),
            (0.0, f32::NAN, 0.0),
            (0.0, 0.0, -101.0),
            (0.0, 0.0, f32::INFINITY),
        ] {
            assert!(Shifts::new(presence, frequency, vec![(1, bias)]).is_err());
        }
    }

    #[test]
    fn likelihoods_are_what_they_are_by_definition() {
        let (own, likeliest) = likelihoods(&LOGITS, 2, 3);
        // ln(e^-2 + 1 + e^-0.5 + 1 + e^-43) = 1.00873.
        let near = |a: f32, b: f32| assert!((a - b).abs() < 1e-4, "{a} {b}");
        near(own, -1.50873);
        let tokens: Vec<u32> = likeliest.iter().map(|(token, _)| *token).collect();
        assert_eq!(tokens, [1, 4, 2]);
        near(likeliest[0].1, -1.00873);
        near(likeliest[2].1, own);
        assert_eq!(likelihoods(&LOGITS, 3, 0), (f32::MIN, Vec::new()));
        assert_eq!(likelihoods(&LOGITS, 0, 99).1.len(), 5);
        assert_eq!(likelihoods(&[], 0, 1).1, []);
        assert_eq!(likelihoods(&[f32::NAN], 0, 1), (f32::MIN, Vec::new()));
    }

    #[test]
    fn options_that_cannot_be_are_refused() {
        for (wrong, error) in [
            (options(-1.0, 1.0, 0.0), SamplerError::Temperature),
            (options(f32::NAN, 1.0, 0.0), SamplerError::Temperature),
            (options(1.0, 0.0, 0.0), SamplerError::TopP),
            (options(1.0, 1.1, 0.0), SamplerError::TopP),
            (options(1.0, 1.0, f32::NAN), SamplerError::MinP),
        ] {
            assert_eq!(Sampler::new(wrong, [0; 32]).unwrap_err(), error);
        }
    }
}
