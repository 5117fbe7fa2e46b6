//! Which nodes a live network has, from a scenario file or a number.
//!
//! Live nodes are honest, on good links, with good clocks: of a scenario, the
//! groups count, and links, faults and workload are for the simulator.

use std::collections::BTreeSet;

use suanli_protocol::units::Amount;

use crate::scenario::{Group, Nature, Scenario};

/// Nodes of one live network, at most: each is a process with a worker.
pub const NODES_MAX: usize = 64;

/// The hubs of the national computing network, where there is a name needed
/// for a region: buyers in the east first, sellers in the west after them.
const REGIONS: [&str; 8] = [
    "CN-BJ", "CN-NX", "CN-GZ", "CN-NM", "CN-GS", "CN-SC", "CN-SH", "CN-GD",
];

/// Which nodes there are.
#[derive(Debug, Clone, PartialEq)]
pub struct Topology {
    /// In the order in which they start; the others join by the first.
    pub nodes: Vec<NodeSpec>,
}

/// One node.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeSpec {
    /// Names its folder, too: letters, digits, `-`, `_`.
    pub name: String,
    /// Where it says it is.
    pub region: String,
    /// What it sells, if anything.
    pub provide: Option<ProvideSpec>,
    /// Settings of `node.toml`, further ones or in the place of what follows from the rest.
    pub settings: toml::Table,
}

/// What a provider sells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProvideSpec {
    /// What a second on its device costs.
    pub price_per_second: Amount,
    /// Executions at once.
    pub slots: u32,
    /// Whether its offer can be taken in one round trip.
    pub firm: bool,
}

/// Why there is no such network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TopologyError {
    /// Too few or too many nodes.
    #[error("{0} nodes; a live network has 1 to {NODES_MAX}, more are for `suanli-testnet sim`")]
    Nodes(usize),
    /// A name that can't be a folder's.
    #[error("`{0}` can't name a node: use letters, digits, `-` and `_`, 32 at most")]
    Name(String),
    /// Two nodes have it.
    #[error("two nodes are called `{0}`; give each group a name of its own")]
    Twice(String),
    /// Live nodes do as the protocol says.
    #[error("group `{0}` is not honest; only `suanli-testnet sim` can play that")]
    Dishonest(String),
}

impl Topology {
    /// A small network: `node-1` only buys, the others sell as well, each a
    /// little dearer than the one before.
    ///
    /// # Errors
    /// [`TopologyError::Nodes`].
    pub fn small(nodes: usize) -> Result<Self, TopologyError> {
        let price = |position: u64| Amount::from_micros(400 + 100 * position);
        let nodes = (0..nodes).zip(0..).map(|(position, number)| NodeSpec {
            name: format!("node-{}", position + 1),
            region: REGIONS[position % REGIONS.len()].into(),
            provide: (position > 0).then(|| ProvideSpec {
                price_per_second: price(number),
                slots: 1,
                firm: true,
            }),
            settings: toml::Table::new(),
        });
        Self::checked(nodes.collect())
    }

    /// The nodes of a scenario. The only node of a group has the group's name;
    /// where there are more, a number follows.
    ///
    /// # Errors
    /// [`TopologyError`].
    pub fn of(scenario: &Scenario) -> Result<Self, TopologyError> {
        let mut nodes = Vec::new();
        if scenario.nodes() > NODES_MAX {
            return Err(TopologyError::Nodes(scenario.nodes()));
        }
        for group in &scenario.groups {
            if group.nature != Nature::Honest {
                return Err(TopologyError::Dishonest(group.name.clone()));
            }
            nodes.extend((1..=group.count).map(|number| member(group, number)));
        }
        Self::checked(nodes)
    }

    fn checked(nodes: Vec<NodeSpec>) -> Result<Self, TopologyError> {
        if nodes.is_empty() || nodes.len() > NODES_MAX {
            return Err(TopologyError::Nodes(nodes.len()));
        }
        let mut names = BTreeSet::new();
        for node in &nodes {
            if !is_name(&node.name) {
                return Err(TopologyError::Name(node.name.clone()));
            }
            if !names.insert(&node.name) {
                return Err(TopologyError::Twice(node.name.clone()));
            }
        }
        Ok(Self { nodes })
    }
}

fn member(group: &Group, number: usize) -> NodeSpec {
    NodeSpec {
        name: match group.count {
            1 => group.name.clone(),
            _ => format!("{}-{number}", group.name),
        },
        region: group.region.clone(),
        provide: group.role.sells().then(|| ProvideSpec {
            price_per_second: Amount::from_micros(group.price),
            slots: group.slots,
            firm: group.firm,
        }),
        settings: toml::Table::new(),
    }
}

fn is_name(name: &str) -> bool {
    (1..=32).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topology(groups: &str) -> Result<Topology, TopologyError> {
        Topology::of(&Scenario::parse(&format!("name = 'x'\n{groups}")).unwrap())
    }

    #[test]
    fn the_demo_has_a_buyer_and_two_providers_of_different_prices() {
        let demo = include_str!("../../scenarios/demo.toml");
        let topology = Topology::of(&Scenario::parse(demo).unwrap()).unwrap();
        let [beijing, ningxia, guizhou] = &topology.nodes[..] else {
            panic!("{topology:?}");
        };
        assert_eq!((&*beijing.name, &*beijing.region), ("beijing", "CN-BJ"));
        assert_eq!(beijing.provide, None);
        let price = |node: &NodeSpec| node.provide.unwrap().price_per_second;
        assert!(price(ningxia) < price(guizhou));
    }

    #[test]
    fn members_of_a_group_are_numbered() {
        let groups = "[[group]]\nname='a'\ncount=2\nrole='both'\nregion='CN-BJ'\nslots=3\n";
        let nodes = topology(groups).unwrap().nodes;
        assert_eq!(nodes[1].name, "a-2");
        assert_eq!(nodes[1].provide.unwrap().slots, 3);
    }

    #[test]
    fn what_can_not_run_live_is_refused() {
        let pair = |name: &str, other: &str, rest: &str| {
            topology(&format!(
                "[[group]]\nname='{name}'\ncount=1\nrole='client'\nregion='x'\n{rest}\n\
                 [[group]]\nname='{other}'\ncount=1\nrole='provider'\nregion='x'\n"
            ))
        };
        assert_eq!(pair("a", "a", ""), Err(TopologyError::Twice("a".into())));
        assert_eq!(
            pair("../a", "b", ""),
            Err(TopologyError::Name("../a".into()))
        );
        let liar = pair("a", "b", "nature='liar'");
        assert_eq!(liar, Err(TopologyError::Dishonest("a".into())));
        let many = Topology::small(NODES_MAX + 1);
        assert_eq!(many, Err(TopologyError::Nodes(NODES_MAX + 1)));
    }

    #[test]
    fn a_small_network_sells_at_rising_prices() {
        let nodes = Topology::small(3).unwrap().nodes;
        assert_eq!(nodes[0].provide, None);
        let price = |node: &NodeSpec| node.provide.unwrap().price_per_second;
        assert!(price(&nodes[1]) < price(&nodes[2]));
    }
}
