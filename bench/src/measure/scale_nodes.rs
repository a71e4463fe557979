//! Random destinations among many nodes: what finding the node of a packet adds to its cost.
//!
//! A cluster of its own, whose agents have set up everything and are stopped; then its maps are filled. Packets go as
//! far as the wire.

use std::path::PathBuf;

use aya::maps::{
    Array, MapData, MapError,
    lpm_trie::{Key, LpmTrie},
};
use flannel_common::{
    maps::{
        ABI, CONFIG_SLOTS, Config, FLAG_OTHER_LENGTHS, NO_SLOT, Peer, SUBNET_NUMBERS, subnet_number,
    },
    wire::Be32,
};

use super::{Context, Effort, Figure, Measure};
use crate::{
    testbed::{Error, Result, Special, Testbed},
    variants::{Carrier, Setting},
};

/// Numbers of nodes; the first is what the others are compared with.
const NODES: [u32; 3] = [1, 5_000, 100_000];
/// Room for as many subnets of that length.
const NETWORK: (&str, u8) = ("10.0.0.0/8", 25);
const SHIFT: u32 = u32::BITS - NETWORK.1 as u32;
/// Where the subnets begin.
const FIRST: u32 = u32::from_be_bytes([10, 0, 0, 0]);
const _: () = assert!((NODES[2] as u64) << SHIFT <= 1 << 24 && NODES[2] < SUBNET_NUMBERS);

/// An address and a node, as the maps hold them.
type Address = [u8; 4];
type Node = [u8; size_of::<Peer>()];

/// See the module.
#[derive(Default)]
pub struct ScaleNodes {
    bed: Option<Testbed>,
}

impl Measure for ScaleNodes {
    fn name(&self) -> &'static str {
        "scale-nodes"
    }

    fn title(&self, effort: &Effort) -> String {
        format!(
            "What random destinations among many nodes add to the cost of sending a packet, over one node; {} packets. \
             Subnets of the usual length, and by prefix: of another",
            effort.packets
        )
    }

    fn is_quick(&self) -> bool {
        false
    }

    fn carriers(&self) -> &'static [Carrier] {
        &[Carrier::Subnet]
    }

    /// Rules do not matter.
    fn applies(&self, setting: Setting, effort: &Effort) -> bool {
        (setting.services == 0) != effort.quick
    }

    fn run(&mut self, context: &mut Context<'_, '_>, carrier: Carrier) -> Result<Vec<Figure>> {
        let packets = context.effort.packets;
        let bed = match &mut self.bed {
            Some(bed) => bed,
            none => none.insert(start(context, carrier)?),
        };
        let mut maps = Maps::open(bed)?;
        let mut figures = Vec::new();
        for by_prefix in [false, true] {
            maps.clear()?;
            let mut one = None;
            for nodes in NODES {
                maps.fill(nodes, by_prefix)?;
                let run = bed.send_to_wire(FIRST, nodes, SHIFT, packets)?;
                let cost = run.spent.cost as f64 / run.arrived as f64;
                let how = if by_prefix { ", by prefix" } else { "" };
                match one {
                    None => {
                        let name = format!("packet to one node{how}");
                        figures.push(Figure::new(name, run.unit.into(), cost));
                        one = Some(cost);
                    }
                    Some(one) => figures.push(Figure::new(
                        format!("added by {} 000 nodes{how}", nodes / 1_000),
                        run.unit.into(),
                        cost - one,
                    )),
                }
            }
        }
        Ok(figures)
    }
}

fn start(context: &Context<'_, '_>, carrier: Carrier) -> Result<Testbed> {
    let special = Special {
        network: NETWORK,
        arguments: &[],
    };
    let mut bed = Testbed::start_as(&context.means, context.setting, carrier, &special)?;
    bed.end_at_wire()?;
    Ok(bed)
}

/// The maps of the first node.
struct Maps {
    config: Array<MapData, [u8; size_of::<Config>()]>,
    index: Array<MapData, u32>,
    nodes: Array<MapData, Node>,
    prefixes: LpmTrie<MapData, Address, Node>,
    /// What all nodes are: the second node of the cluster.
    node: Node,
}

impl Maps {
    fn open(bed: &Testbed) -> Result<Self> {
        let pins = bed.cluster().node(1).agent().pin_directory();
        let open = |name: &'static str| {
            let path: PathBuf = pins.join(format!("v{ABI}/maps/{name}"));
            MapData::from_pin(path).map_err(|cause| failed(name, cause))
        };
        let mut maps = Self {
            config: array("CONFIG", open("CONFIG")?)?,
            index: array("SUBNET_INDEX", open("SUBNET_INDEX")?)?,
            nodes: array("PEERS", open("PEERS")?)?,
            prefixes: LpmTrie::try_from(aya::maps::Map::LpmTrie(open("SUBNETS_LPM")?))
                .map_err(|cause| failed("SUBNETS_LPM", cause))?,
            node: [0; size_of::<Peer>()],
        };
        maps.node = maps.any_node()?;
        Ok(maps)
    }

    /// The second node of the cluster: the only one, so in the first slot or in the trie.
    fn any_node(&self) -> Result<Node> {
        let by_prefix = self.prefixes.iter().next();
        let node = match by_prefix {
            Some(entry) => entry.map(|(_, node)| node),
            None => self.nodes.get(&(NO_SLOT + 1), 0),
        };
        node.map_err(|cause| failed("PEERS", cause))
    }

    fn clear(&mut self) -> Result<()> {
        for number in 0..SUBNET_NUMBERS {
            let cleared = self.index.set(number, NO_SLOT, 0);
            cleared.map_err(|cause| failed("SUBNET_INDEX", cause))?;
        }
        let keys: Vec<_> = self.prefixes.keys().filter_map(|key| key.ok()).collect();
        for key in keys {
            let removed = self.prefixes.remove(&key);
            removed.map_err(|cause| failed("SUBNETS_LPM", cause))?;
        }
        Ok(())
    }

    /// Makes the first `nodes` subnets known, beside what is.
    fn fill(&mut self, nodes: u32, by_prefix: bool) -> Result<()> {
        for slot in 0..CONFIG_SLOTS {
            let config = self.config.get(&slot, 0);
            let config = config.map_err(|cause| failed("CONFIG", cause))?;
            let mut config: Config = bytemuck::pod_read_unaligned(&config);
            config.flags &= !FLAG_OTHER_LENGTHS;
            if by_prefix {
                config.flags |= FLAG_OTHER_LENGTHS;
            }
            let config: [u8; size_of::<Config>()] = bytemuck::cast(config);
            let set = self.config.set(slot, config, 0);
            set.map_err(|cause| failed("CONFIG", cause))?;
        }
        for node in 0..nodes {
            let subnet = Be32::new(FIRST + (node << SHIFT));
            let mut peer: Peer = bytemuck::pod_read_unaligned(&self.node);
            peer.subnet = subnet;
            let peer: Node = bytemuck::cast(peer);
            if by_prefix {
                let key = Key::new(NETWORK.1.into(), subnet.get().to_be_bytes());
                let inserted = self.prefixes.insert(&key, peer, 0);
                inserted.map_err(|cause| failed("SUBNETS_LPM", cause))?;
            } else {
                let slot = NO_SLOT + 1 + node;
                let set = self.nodes.set(slot, peer, 0);
                set.map_err(|cause| failed("PEERS", cause))?;
                let set = self.index.set(subnet_number(subnet, SHIFT), slot, 0);
                set.map_err(|cause| failed("SUBNET_INDEX", cause))?;
            }
        }
        Ok(())
    }
}

fn array<V: aya::Pod>(name: &'static str, data: MapData) -> Result<Array<MapData, V>> {
    Array::try_from(aya::maps::Map::Array(data)).map_err(|cause| failed(name, cause))
}

fn failed(map: &'static str, cause: MapError) -> Error {
    crate::generator::Error::Map {
        map,
        cause: cause.into(),
    }
    .into()
}
