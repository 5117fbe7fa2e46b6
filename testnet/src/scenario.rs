//! Scenario files: which nodes there are, how they are linked, what goes
//! wrong, and what work there is.
//!
//! TOML; everything but the groups has a default, and a key that is not known
//! is an error. The nodes of a group are alike but for what the seed draws.
//! Probabilities are between 0 and 1, spans are `[least, most]`.

use std::path::Path;

use serde::Deserialize;
use suanli_protocol::rank::Policy;

/// A network, its faults and its work.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// What people call it.
    pub name: String,
    /// How long work is handed in and things go wrong.
    #[serde(default = "sixty")]
    pub seconds: u64,
    /// How long everything is left in peace afterwards.
    #[serde(default = "hundred")]
    pub quiet_seconds: u64,
    /// Its nodes.
    #[serde(rename = "group")]
    pub groups: Vec<Group>,
    /// What lies between them.
    #[serde(default)]
    pub links: Links,
    /// What goes wrong.
    #[serde(default)]
    pub faults: Faults,
    /// What is wanted of them.
    #[serde(default)]
    pub workload: Workload,
    /// Instead of the workload: jobs of known size over a day.
    pub market: Option<Market>,
}

const fn sixty() -> u64 {
    60
}

const fn hundred() -> u64 {
    100
}

/// Nodes that are alike.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// What people call them; a number follows.
    pub name: String,
    /// How many.
    pub count: usize,
    /// What they do.
    pub role: Role,
    /// Where they are.
    pub region: String,
    /// What a second on a device costs there, in millionths.
    #[serde(default = "default_price")]
    pub price: u64,
    /// Executions that one of them runs at once.
    #[serde(default = "two")]
    pub slots: u32,
    /// Pieces of work that may wait at one of them for a slot.
    #[serde(default)]
    pub queue: u32,
    /// Whether their offers can be taken in one round trip.
    #[serde(default)]
    pub firm: bool,
    /// Whether providers know accounts of this group, or take them for strangers.
    #[serde(default = "yes")]
    pub known: bool,
    /// What they are really like.
    #[serde(default)]
    pub nature: Nature,
    /// How many results a cheat invents.
    #[serde(default = "all")]
    pub cheats: f64,
    /// How far their clocks are off, either way.
    #[serde(default)]
    pub skew_ms: u64,
    /// FP32 operations that a device does in a second; 0 where nobody measured.
    #[serde(default)]
    pub speed: u64,
    /// How much price and speed differ inside the group, either way.
    #[serde(default)]
    pub varies: f64,
    /// Watts under load; 0 where operators don't say.
    #[serde(default)]
    pub watts: u32,
    /// Grams of carbon dioxide per kilowatt-hour.
    #[serde(default)]
    pub carbon: u32,
    /// How much of a market's demand comes from one of these clients.
    #[serde(default = "one")]
    pub weight: u32,
    /// Firms that share one of these clients, each a principal with jobs and times of its
    /// own.
    #[serde(default = "one_firm")]
    pub firms: usize,
}

const fn one_firm() -> usize {
    1
}

const fn one() -> u32 {
    1
}

const fn all() -> f64 {
    1.0
}

const fn default_price() -> u64 {
    100_000
}

const fn two() -> u32 {
    2
}

const fn yes() -> bool {
    true
}

/// What a node does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Buys.
    Client,
    /// Sells.
    Provider,
    /// Buys and sells.
    Both,
}

impl Role {
    /// Whether it sells.
    pub const fn sells(self) -> bool {
        match self {
            Self::Provider | Self::Both => true,
            Self::Client => false,
        }
    }

    /// Whether it buys.
    pub const fn buys(self) -> bool {
        match self {
            Self::Client | Self::Both => true,
            Self::Provider => false,
        }
    }
}

/// What a node is really like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Nature {
    /// It does as the protocol says.
    #[default]
    Honest,
    /// It sends random, mutated, forged and replayed bytes.
    Forger,
    /// A provider that claims more than is due.
    Liar,
    /// A provider that quotes and never runs.
    Idler,
    /// A provider that invents its results.
    Cheat,
    /// A client that asks for quotes and takes none.
    Flooder,
}

/// What lies between nodes.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Links {
    /// Connections that a node keeps for gossip, about.
    pub degree: usize,
    /// How long a message travels.
    pub delay_ms: [u64; 2],
    /// How much longer between regions.
    pub far_ms: [u64; 2],
    /// How often a message is lost.
    pub drop: f64,
    /// How often it arrives twice.
    pub duplicate: f64,
    /// How often it is held up on the way, so that later ones overtake it.
    pub reorder: f64,
    /// For how long, and how much later a second copy comes.
    pub reorder_ms: [u64; 2],
    /// Bytes per second of blobs.
    pub bytes_per_second: u64,
    /// Between regions, where that is another rate.
    pub far_bytes_per_second: Option<u64>,
    /// Whether each seller is connected to each buyer and one other seller, and nobody
    /// forwards: of a day's gossip only what buyers learn from it is simulated.
    pub direct: bool,
    /// Of direct connections between sellers and buyers, whether only those inside a region:
    /// all that is needed where nobody buys elsewhere.
    pub local: bool,
}

impl Default for Links {
    fn default() -> Self {
        Self {
            degree: 4,
            delay_ms: [1, 20],
            far_ms: [10, 40],
            drop: 0.0,
            duplicate: 0.0,
            reorder: 0.0,
            reorder_ms: [50, 1500],
            bytes_per_second: 10_000_000,
            far_bytes_per_second: None,
            direct: false,
            local: false,
        }
    }
}

/// What goes wrong.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Faults {
    /// Nodes stopped without warning, per minute, between any two outputs.
    pub crashes: u32,
    /// How long they are down.
    pub down_ms: [u64; 2],
    /// Partitions per minute.
    pub partitions: u32,
    /// How long they last.
    pub partition_ms: [u64; 2],
    /// How many of them cut one way only.
    pub one_way: f64,
    /// Connections broken, per minute.
    pub disconnects: u32,
    /// How long a record takes to be durable.
    pub disk_ms: [u64; 2],
    /// How often a disk stalls.
    pub disk_stall: f64,
    /// For how long.
    pub disk_stall_ms: [u64; 2],
    /// How far a clock jumps at most, either way, while its node is down.
    pub clock_jump_ms: u64,
    /// How often an execution fails through the provider.
    pub fail: f64,
    /// How often it fails through the job.
    pub job_fail: f64,
    /// How often it hangs.
    pub hang: f64,
    /// How often its result can't be collected.
    pub wrong: f64,
    /// How often a blob does not arrive.
    pub fetch_fail: f64,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            crashes: 0,
            down_ms: [100, 6000],
            partitions: 0,
            partition_ms: [500, 12_000],
            one_way: 0.3,
            disconnects: 0,
            disk_ms: [1, 8],
            disk_stall: 0.0,
            disk_stall_ms: [100, 1500],
            clock_jump_ms: 0,
            fail: 0.0,
            job_fail: 0.0,
            hang: 0.0,
            wrong: 0.0,
            fetch_fail: 0.0,
        }
    }
}

/// What is wanted of the network.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Workload {
    /// Jobs in all.
    pub jobs: u32,
    /// How many of them are arrays.
    pub arrays: f64,
    /// How many are leases.
    pub leases: f64,
    /// How many are cancelled.
    pub cancels: f64,
    /// How many take a firm offer.
    pub takes: f64,
    /// How many propose a lower price first.
    pub counters: f64,
    /// How many want two equal results of different accounts.
    pub replicas: f64,
    /// How many have a part of their results compared,
    pub audits: f64,
    /// and how large a part.
    pub audit_rate: f64,
    /// How many have programs whose results are floats, which no two machines compute
    /// alike.
    pub floats: f64,
    /// How many of the others say of small results that they are products.
    pub products: f64,
    /// How many have programs that keep checkpoints on their way.
    pub checkpoints: f64,
    /// Units of an array; a few in several ranges where left out.
    pub units: Option<[u32; 2]>,
    /// How many nobody can do.
    pub misfits: f64,
    /// How many are handed in twice.
    pub twice: f64,
    /// How long an execution runs.
    pub run_ms: [u64; 2],
    /// When a job must be over.
    pub total_ms: [u64; 2],
}

impl Default for Workload {
    fn default() -> Self {
        Self {
            jobs: 40,
            arrays: 0.2,
            leases: 0.1,
            cancels: 0.1,
            takes: 0.2,
            counters: 0.2,
            replicas: 0.1,
            audits: 0.1,
            audit_rate: 0.3,
            floats: 0.4,
            products: 0.3,
            checkpoints: 0.4,
            units: None,
            misfits: 0.03,
            twice: 0.05,
            run_ms: [20, 4000],
            total_ms: [10_000, 45_000],
        }
    }
}

/// Jobs of known size: how many, when, and which providers they prefer.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Market {
    /// Work that is handed in, of all that the devices could do meanwhile.
    pub load: f64,
    /// How much of it comes in each of so many equal parts of the time: a day's hours.
    pub hours: Vec<u32>,
    /// In how many of them each client has work, by the seed, and then as much as any
    /// other client; 0 for clients that have it when all have.
    #[serde(default)]
    pub bursts: usize,
    /// FP32 operations of a job: as many jobs in each doubling.
    pub operations: [u64; 2],
    /// Bytes that a job reads, likewise.
    pub input_bytes: [u64; 2],
    /// How much more time a job has than it takes on the slowest and farthest device.
    pub slack_ms: [u64; 2],
    /// What a client pays for 10⁹ bytes that it sends to another region, in millionths of
    /// the unit.
    #[serde(default)]
    pub traffic_price: u64,
    /// Regions in the east; all others are in the west.
    pub east: Vec<String>,
    /// By what clients choose.
    #[serde(skip)]
    pub choice: Choice,
}

/// By what a market's clients choose among providers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// A policy of the protocol.
    Policy(Policy),
    /// A baseline: any provider that fits, by chance.
    Random,
    /// A baseline: only providers of the client's region, the cheapest first.
    OwnRegion,
}

impl Default for Choice {
    fn default() -> Self {
        Self::Policy(Policy::default())
    }
}

impl Market {
    fn check(&self) -> Result<(), ScenarioError> {
        let impossible = |what: &str| Err(ScenarioError::Impossible(what.into()));
        if !(0.0..=1000.0).contains(&self.load) {
            return impossible("market.load must be between 0 and 1000");
        }
        if self.hours.iter().all(|share| *share == 0) {
            return impossible("market.hours has no hour with demand; give one a share");
        }
        let spans = [self.operations, self.input_bytes, self.slack_ms];
        if spans.iter().any(|[least, most]| least > most) || self.operations[0] == 0 {
            return impossible("a span of market is not [least, most], or a job has no operations");
        }
        Ok(())
    }
}

/// Why a scenario can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// The file can't be read.
    #[error("{path} can't be read ({source}); name a scenario file, or leave --scenario out")]
    Unreadable {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// It is no scenario.
    #[error("{0}; see testnet/scenarios for files to start from")]
    Malformed(#[from] toml::de::Error),
    /// It says what can't be.
    #[error("{0}")]
    Impossible(String),
}

impl Scenario {
    /// Fifty nodes with everything that goes wrong.
    ///
    /// # Errors
    /// [`ScenarioError`], never for what this crate is built with.
    pub fn faults() -> Result<Self, ScenarioError> {
        Self::parse(include_str!("../scenarios/faults.toml"))
    }

    /// Twenty providers, two of whom lie, and audited work.
    ///
    /// # Errors
    /// [`ScenarioError`], never for what this crate is built with.
    pub fn liars() -> Result<Self, ScenarioError> {
        Self::parse(include_str!("../scenarios/liars.toml"))
    }

    /// Two hundred providers in ten regions, and a day's demand, most of it in the east.
    ///
    /// # Errors
    /// [`ScenarioError`], never for what this crate is built with.
    pub fn market() -> Result<Self, ScenarioError> {
        Self::parse(include_str!("../scenarios/market.toml"))
    }

    /// A client and a provider.
    ///
    /// # Errors
    /// [`ScenarioError`], never for what this crate is built with.
    pub fn pair() -> Result<Self, ScenarioError> {
        Self::parse(include_str!("../scenarios/pair.toml"))
    }

    /// A provider, a client that it knows, and so many that it does not.
    ///
    /// # Errors
    /// [`ScenarioError`], never for what this crate is built with.
    pub fn strangers(count: usize) -> Result<Self, ScenarioError> {
        let mut scenario = Self::parse(include_str!("../scenarios/strangers.toml"))?;
        for group in scenario.groups.iter_mut().filter(|group| !group.known) {
            group.count = count;
        }
        Ok(scenario)
    }

    /// Firms with bursts of work, and machines.
    ///
    /// # Errors
    /// [`ScenarioError`], never for what this crate is built with.
    pub fn ownership() -> Result<Self, ScenarioError> {
        Self::parse(include_str!("../scenarios/ownership.toml"))
    }

    /// From a file.
    ///
    /// # Errors
    /// [`ScenarioError`].
    pub fn read(path: &Path) -> Result<Self, ScenarioError> {
        let text = std::fs::read_to_string(path).map_err(|source| ScenarioError::Unreadable {
            path: path.display().to_string(),
            source,
        })?;
        Self::parse(&text)
    }

    /// From the text of a file.
    ///
    /// # Errors
    /// [`ScenarioError`].
    pub fn parse(text: &str) -> Result<Self, ScenarioError> {
        let scenario: Self = toml::from_str(text)?;
        scenario.check()?;
        Ok(scenario)
    }

    /// How many nodes there are.
    pub fn nodes(&self) -> usize {
        self.groups.iter().map(|group| group.count).sum()
    }

    /// The same network with another number of nodes: groups keep their
    /// shares, and at least one node each while there are enough.
    pub fn scale(&mut self, nodes: usize) {
        let before = self.nodes().max(1);
        let mut left = nodes;
        let groups = self.groups.len();
        for (n, group) in self.groups.iter_mut().enumerate() {
            let others = groups - n - 1;
            let share = (group.count * nodes).div_ceil(before).max(1);
            group.count = if others == 0 {
                left
            } else {
                share.min(left.saturating_sub(others))
            };
            left -= group.count;
        }
    }

    fn check(&self) -> Result<(), ScenarioError> {
        let impossible = |what: String| Err(ScenarioError::Impossible(what));
        if self.nodes() < 2 {
            return impossible("a network needs at least two nodes: raise group.count".into());
        }
        let (links, faults, work) = (&self.links, &self.faults, &self.workload);
        let shares = [
            ("links.drop", links.drop),
            ("links.duplicate", links.duplicate),
            ("links.reorder", links.reorder),
            ("faults.one_way", faults.one_way),
            ("faults.disk_stall", faults.disk_stall),
            ("faults.fail", faults.fail),
            ("faults.job_fail", faults.job_fail),
            ("faults.hang", faults.hang),
            ("faults.wrong", faults.wrong),
            ("faults.fetch_fail", faults.fetch_fail),
            ("workload.arrays", work.arrays),
            ("workload.leases", work.leases),
            ("workload.cancels", work.cancels),
            ("workload.takes", work.takes),
            ("workload.counters", work.counters),
            ("workload.misfits", work.misfits),
            ("workload.twice", work.twice),
            ("workload.replicas", work.replicas),
            ("workload.audits", work.audits),
            ("workload.audit_rate", work.audit_rate),
            ("workload.floats", work.floats),
            ("workload.products", work.products),
            ("workload.checkpoints", work.checkpoints),
        ];
        if let Some((key, share)) = shares
            .iter()
            .find(|(_, share)| !(0.0..=1.0).contains(share))
        {
            return impossible(format!("{key} is {share}; it must be between 0 and 1"));
        }
        let spans = [
            ("links.delay_ms", links.delay_ms),
            ("links.far_ms", links.far_ms),
            ("links.reorder_ms", links.reorder_ms),
            ("faults.down_ms", faults.down_ms),
            ("faults.partition_ms", faults.partition_ms),
            ("faults.disk_ms", faults.disk_ms),
            ("faults.disk_stall_ms", faults.disk_stall_ms),
            ("workload.run_ms", work.run_ms),
            ("workload.total_ms", work.total_ms),
        ];
        if let Some((key, [least, most])) = spans.iter().find(|(_, [least, most])| least > most) {
            return impossible(format!(
                "{key} is [{least}, {most}]; the smaller number comes first"
            ));
        }
        self.market.as_ref().map_or(Ok(()), Market::check)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_scenario_has_fifty_nodes() {
        assert_eq!(Scenario::faults().unwrap().nodes(), 50);
    }

    #[test]
    fn unknown_keys_are_refused() {
        let text = include_str!("../scenarios/faults.toml").replace("seconds =", "secnods =");
        let error = Scenario::parse(&text).unwrap_err().to_string();
        assert!(error.contains("secnods"), "{error}");
    }

    #[test]
    fn shares_and_spans_are_checked() {
        let start = "name = 'x'\n[[group]]\nname='a'\ncount=2\nrole='both'\nregion='CN-BJ'\n";
        assert!(Scenario::parse(start).is_ok());
        for wrong in ["[links]\ndrop = 2.0", "[faults]\ndown_ms = [5, 1]"] {
            let text = format!("{start}{wrong}\n");
            assert!(matches!(
                Scenario::parse(&text),
                Err(ScenarioError::Impossible(_))
            ));
        }
    }

    #[test]
    fn scaling_keeps_every_group() {
        let mut scenario = Scenario::faults().unwrap();
        for nodes in [12, 50, 333] {
            scenario.scale(nodes);
            assert_eq!(scenario.nodes(), nodes);
            assert!(scenario.groups.iter().all(|group| group.count > 0));
        }
    }
}
