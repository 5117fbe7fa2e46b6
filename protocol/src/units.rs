//! Time, money and metered quantities.
//!
//! Two clocks that never mix: [`Mono`] for timers, [`Wall`] for what is signed
//! and for expiry. Amounts are integers of a millionth of the network's unit;
//! running totals are twice as wide. All arithmetic is checked or saturating;
//! a price rounds up once per receipt line.

use std::{fmt, str::FromStr, time::Duration};

use bincode::{Decode, Encode};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::registry::Runtime;

/// A point on a clock that never goes back, in microseconds since some start.
/// Means nothing outside the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Mono(u64);

impl Mono {
    /// Microseconds since the clock's start.
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// Microseconds since the clock's start.
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// Later by `duration`.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self(
            self.0
                .saturating_add(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)),
        )
    }

    /// The time since `earlier`, or none.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

/// A point in civil time, in milliseconds since 1970 UTC. May jump.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    Encode,
    Decode,
    Serialize,
    Deserialize,
)]
#[serde(transparent)]
pub struct Wall(u64);

impl Wall {
    /// Milliseconds since 1970 UTC.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Milliseconds since 1970 UTC.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// Later by `duration`.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self(
            self.0
                .saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)),
        )
    }

    /// Days since 1970 UTC.
    pub const fn day(self) -> u64 {
        self.0 / 86_400_000
    }

    /// The time since `earlier`, or none.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// Both clocks, read at once. Every step of the core gets one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// For timers.
    pub mono: Mono,
    /// For signatures and expiry.
    pub wall: Wall,
}

/// A time span on the wire, in milliseconds.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Encode, Decode, Serialize,
)]
#[serde(transparent)]
pub struct Millis(u64);

impl Millis {
    /// From milliseconds.
    pub const fn new(millis: u64) -> Self {
        Self(millis)
    }

    /// As milliseconds.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// As a duration.
    pub const fn duration(self) -> Duration {
        Duration::from_millis(self.0)
    }
}

impl From<Duration> for Millis {
    fn from(duration: Duration) -> Self {
        Self(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
    }
}

/// How many parts a unit of account has.
const PARTS: u64 = 1_000_000;

/// An amount of the network's unit of account, in millionths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Encode, Decode)]
pub struct Amount(u64);

impl Amount {
    /// Nothing.
    pub const ZERO: Self = Self(0);
    /// The largest amount.
    pub const MAX: Self = Self(u64::MAX);

    /// From millionths.
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// As millionths.
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// The sum, unless it leaves the type.
    pub const fn checked_add(self, other: Self) -> Option<Self> {
        match self.0.checked_add(other.0) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }

    /// The sum, at most [`Amount::MAX`].
    #[must_use]
    pub const fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// The difference, at least zero.
    #[must_use]
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

/// A running total, in millionths; wide enough that adding amounts for ever
/// does not reach its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Encode, Decode)]
pub struct Total(u128);

impl Total {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// From millionths.
    pub const fn from_micros(micros: u128) -> Self {
        Self(micros)
    }

    /// As millionths.
    pub const fn as_micros(self) -> u128 {
        self.0
    }

    /// With an amount added, unless that leaves the type.
    pub fn checked_add(self, amount: Amount) -> Option<Self> {
        self.0.checked_add(u128::from(amount.0)).map(Self)
    }

    /// What this is over `other`, or zero; clipped to the widest amount.
    pub fn over(self, other: Self) -> Amount {
        Amount(u64::try_from(self.0.saturating_sub(other.0)).unwrap_or(u64::MAX))
    }
}

/// Text that is no amount.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no amount; write a number with up to six decimals, like \"0.25\"")]
pub struct ParseAmountError(String);

impl FromStr for Amount {
    type Err = ParseAmountError;

    fn from_str(text: &str) -> Result<Self, ParseAmountError> {
        let error = || ParseAmountError(text.chars().take(40).collect());
        let (whole, parts) = text.split_once('.').unwrap_or((text, ""));
        let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
        if whole.is_empty() || parts.len() > 6 || !digits(whole) || !digits(parts) {
            return Err(error());
        }
        let whole: u64 = whole.parse().map_err(|_| error())?;
        let parts: u64 = format!("{parts:0<6}").parse().map_err(|_| error())?;
        whole
            .checked_mul(PARTS)
            .and_then(|micros| micros.checked_add(parts))
            .map(Self)
            .ok_or_else(error)
    }
}

fn show(micros: u128, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let (whole, parts) = (micros / u128::from(PARTS), micros % u128::from(PARTS));
    let mut text = format!("{whole}.{parts:06}");
    let two_decimals = text.len() - 4;
    while text.ends_with('0') && text.len() > two_decimals {
        text.pop();
    }
    f.pad(&text)
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(u128::from(self.0), f)
    }
}

impl fmt::Display for Total {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(self.0, f)
    }
}

impl Serialize for Amount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl Serialize for Total {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A registered thing that is metered. A number on the wire, so that a node
/// forwards prices on meters that it has never heard of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct Meter(pub u16);

impl Meter {
    /// One job, or one unit of an array job.
    pub const JOB: Self = Self(1);
    /// Milliseconds on a GPU or other accelerator.
    pub const GPU_MS: Self = Self(2);
    /// Milliseconds of processor time.
    pub const CPU_MS: Self = Self(3);
    /// Units of WebAssembly fuel.
    pub const WASM_FUEL: Self = Self(4);
    /// Bytes moved for a job.
    pub const BLOB_BYTE: Self = Self(5);
    /// Bytes kept, times seconds.
    pub const STORAGE_BYTE_S: Self = Self(6);
    /// Tokens read by a model.
    pub const TOKEN_IN: Self = Self(7);
    /// Tokens written by a model.
    pub const TOKEN_OUT: Self = Self(8);

    const NAMES: [(Self, &'static str); 8] = [
        (Self::JOB, "job"),
        (Self::GPU_MS, "gpu.ms"),
        (Self::CPU_MS, "cpu.ms"),
        (Self::WASM_FUEL, "wasm.fuel"),
        (Self::BLOB_BYTE, "blob.byte"),
        (Self::STORAGE_BYTE_S, "storage.byte_s"),
        (Self::TOKEN_IN, "token.in"),
        (Self::TOKEN_OUT, "token.out"),
    ];

    /// What executions of a runtime are metered by, beside their number.
    pub fn of(runtime: Runtime) -> Self {
        match runtime {
            Runtime::WASM => Self::WASM_FUEL,
            Runtime::MODEL => Self::TOKEN_OUT,
            _ => Self::GPU_MS,
        }
    }

    /// The meter of a name.
    pub fn named(name: &str) -> Option<Self> {
        Self::NAMES
            .iter()
            .find(|(_, known)| *known == name)
            .map(|(meter, _)| *meter)
    }

    /// All names, for messages.
    pub fn names() -> impl Iterator<Item = &'static str> {
        Self::NAMES.iter().map(|(_, name)| *name)
    }
}

impl fmt::Display for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Self::NAMES.iter().find(|(meter, _)| meter == self) {
            Some((_, name)) => f.pad(name),
            None => write!(f, "meter-{}", self.0),
        }
    }
}

impl Serialize for Meter {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// An amount for a quantity of a meter: 0.15 per 1,000,000 `token.in`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Encode, Decode, Serialize)]
pub struct Price {
    /// What is metered.
    pub meter: Meter,
    /// What the quantity costs.
    pub amount: Amount,
    /// How much of the meter; zero is refused where prices are checked.
    pub per: u64,
}

impl Price {
    /// What `quantity` costs, rounded up once; `None` when that leaves the
    /// type, or for a price per nothing.
    pub fn of(&self, quantity: u64) -> Option<Amount> {
        if self.per == 0 {
            return None;
        }
        // Nearly always: a wide division takes several times as long.
        if let Some(product) = self.amount.0.checked_mul(quantity) {
            return Some(Amount(product.div_ceil(self.per)));
        }
        let product = u128::from(self.amount.0).checked_mul(u128::from(quantity))?;
        u64::try_from(product.div_ceil(u128::from(self.per)))
            .ok()
            .map(Amount)
    }
}

/// How much of a meter was used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Encode, Decode, Serialize)]
pub struct Usage {
    /// What was metered.
    pub meter: Meter,
    /// How much of it.
    pub quantity: u64,
}

/// What a usage costs under a price list: each line rounds up once. A meter
/// without a price is free. `None` when the sum leaves the type.
pub fn cost(usage: &[Usage], prices: &[Price]) -> Option<Amount> {
    usage.iter().try_fold(Amount::ZERO, |sum, line| {
        let Some(price) = prices.iter().find(|price| price.meter == line.meter) else {
            return Some(sum);
        };
        sum.checked_add(price.of(line.quantity)?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_read_and_show_the_same() {
        for (text, micros, shown) in [
            ("0", 0, "0.00"),
            ("0.25", 250_000, "0.25"),
            ("12.000001", 12_000_001, "12.000001"),
            ("3.100", 3_100_000, "3.10"),
        ] {
            let amount: Amount = text.parse().unwrap();
            assert_eq!(amount, Amount::from_micros(micros));
            assert_eq!(amount.to_string(), shown);
        }
        for wrong in [
            "",
            ".5",
            "-1",
            "1e3",
            "0.1234567",
            "99999999999999999999",
            "1,5",
        ] {
            assert!(wrong.parse::<Amount>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_line_rounds_up_once() {
        let price = Price {
            meter: Meter::TOKEN_IN,
            amount: Amount::from_micros(150_000),
            per: 1_000_000,
        };
        assert_eq!(price.of(1), Some(Amount::from_micros(1)));
        assert_eq!(price.of(7), Some(Amount::from_micros(2)));
        assert_eq!(price.of(1_000_000), Some(Amount::from_micros(150_000)));
    }

    #[test]
    fn abuse_61_amounts_at_the_edge_are_errors_not_wraps() {
        let price = Price {
            meter: Meter::JOB,
            amount: Amount::MAX,
            per: 1,
        };
        assert_eq!(price.of(2), None);
        assert_eq!(Price { per: 0, ..price }.of(1), None);
        let usage = [Usage {
            meter: Meter::JOB,
            quantity: 1,
        }; 2];
        assert_eq!(cost(&usage, &[price]), None);
        assert_eq!(Amount::MAX.checked_add(Amount::from_micros(1)), None);
        assert_eq!(
            Total::from_micros(u128::MAX).checked_add(Amount::from_micros(1)),
            None
        );
    }
}
