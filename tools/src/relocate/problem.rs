//! What the planner works on: nodes, distinct replica sets, and chunks grouped by replica set and load,
//! so that its work grows with how many *kinds* of chunks there are, not with how many chunks.

mod grouping;

use self::grouping::{Grouping, load_known};
use super::model::Distribution;
use super::target::Kind;
use super::together::{Dependence, Measured};
use std::collections::HashMap;
use ukai_meta::map::VolumeMap;
use ukai_meta::{PlaceRule, ReplicaState};
use ukai_proto::NodeId;
use ukai_proto::message::ChunkRange;

/// Index into [`Problem::nodes`].
pub(crate) type NodeIndex = u16;

/// Round trips from the host to one node.
#[derive(Clone, Debug)]
pub(crate) struct NodeModel {
    pub(crate) read: Distribution,
    pub(crate) write: Distribution,
}

impl NodeModel {
    pub(crate) fn of(&self, kind: Kind) -> &Distribution {
        match kind {
            Kind::Read => &self.read,
            Kind::Write => &self.write,
        }
    }
}

/// A node as the planner sees it.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) name: String,
    pub(crate) site: String,
    pub(crate) is_alive: bool,
    pub(crate) is_draining: bool,
    /// Everything is to be moved off it.
    pub(crate) is_evacuated: bool,
    pub(crate) free_bytes: u64,
    /// Absent: nothing was measured between the host and this node.
    pub(crate) model: Option<NodeModel>,
}

impl Node {
    /// Decides from which replica a chunk is read: the lowest median.
    pub(crate) fn read_median_us(&self) -> f64 {
        let model = self.model.as_ref();
        model.map_or(f64::INFINITY, |model| model.read.quantile(0.5))
    }

    /// Why it gets no chunks, whatever its space.
    pub(crate) fn unusable(&self) -> Option<&'static str> {
        match self {
            Self {
                is_evacuated: true, ..
            } => Some("to be emptied"),
            Self {
                is_draining: true, ..
            } => Some("draining"),
            Self {
                is_alive: false, ..
            } => Some("not alive"),
            _ => None,
        }
    }
}

/// Load of each chunk, as two logarithmic codes.
#[derive(Clone, Debug)]
pub(crate) struct Heat {
    /// Codes of reads and writes per second, by chunk. Chunks beyond the end have none.
    pub(crate) codes: Vec<[u8; 2]>,
    /// What a code means, per second, of reads and of writes; ascending.
    pub(crate) rates: [Box<[f64; 256]>; 2],
}

/// What must hold of every chunk that the plan moves.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Rules {
    /// Copies in a site, at least.
    pub(crate) copies: Vec<PlaceRule>,
    /// If not empty: copies lie in these only.
    pub(crate) only_sites: Vec<String>,
    /// As many copies as `copies` leaves free lie in this one.
    pub(crate) to_site: Option<String>,
    /// Copies stay in at least as many sites as now.
    pub(crate) keep_sites: bool,
    /// No copy is taken away; one may be added.
    pub(crate) only_add: bool,
}

/// A share `probability` of reads or writes is to take at most `limit_us`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Demand {
    pub(crate) kind: Kind,
    pub(crate) probability: f64,
    pub(crate) limit_us: f64,
}

/// A distinct replica set.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Set {
    /// Have everything; what reads and writes are about.
    pub(crate) in_sync: Vec<NodeIndex>,
    /// Are being filled: may become part of a goal.
    pub(crate) joining: Vec<NodeIndex>,
    /// Hold something that is no base for a new copy: stale or to be deleted.
    pub(crate) busy: Vec<NodeIndex>,
    /// Not in sync, on a node to be emptied: replaced too.
    pub(crate) forced_out: Vec<NodeIndex>,
}

/// Chunks of one replica set with equal load and size. Only those in the range asked for may move.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Class {
    pub(crate) set: u32,
    /// Inside the range that may move.
    pub(crate) movable: bool,
    /// Share of the volume's reads that one of its chunks gets.
    pub(crate) read: f64,
    /// The same for writes.
    pub(crate) write: f64,
    /// Of one chunk; 0 if nothing was ever written there.
    pub(crate) bytes: u64,
    pub(crate) chunks: u64,
    /// (first chunk, chunks), ascending.
    pub(crate) runs: Vec<(u32, u32)>,
}

impl Class {
    pub(crate) fn load(&self, kind: Kind) -> f64 {
        match kind {
            Kind::Read => self.read,
            Kind::Write => self.write,
        }
    }

    /// Orders chunks by what there is to gain.
    pub(crate) fn heat(&self) -> f64 {
        self.read + self.write
    }
}

/// Everything the planner knows.
#[derive(Clone, Debug)]
pub(crate) struct Problem {
    pub(crate) nodes: Vec<Node>,
    pub(crate) sets: Vec<Set>,
    pub(crate) classes: Vec<Class>,
    pub(crate) rules: Rules,
    pub(crate) demands: Vec<Demand>,
    pub(crate) chunk_bytes: u64,
    /// For reads and writes: whether the load is known. Otherwise every chunk counts the same.
    pub(crate) heat_known: [bool; 2],
    /// Between the nodes that a write waits for.
    pub(crate) dependence: Dependence,
}

/// What is known besides the map.
#[derive(Clone, Debug)]
pub(crate) struct Known<'a> {
    /// Every node of the map, and others.
    pub(crate) nodes: Vec<Node>,
    pub(crate) heat: Option<&'a Heat>,
    /// By chunk: whether anything was ever written there; if not, it costs nothing to move.
    pub(crate) written: Option<&'a [bool]>,
}

impl Problem {
    /// Groups the chunks of `map`.
    pub(crate) fn new(
        map: &VolumeMap,
        known: Known<'_>,
        range: ChunkRange,
        rules: Rules,
        demands: Vec<Demand>,
    ) -> Self {
        let Known {
            nodes,
            heat,
            written,
        } = known;
        let index: HashMap<NodeId, NodeIndex> =
            (0..).zip(&nodes).map(|(at, node)| (node.id, at)).collect();
        let mut number = HashMap::new();
        let mut sets = Vec::new();
        for set in map.sets_in_use() {
            number.insert(
                set,
                u32::try_from(sets.len()).expect("sets are counted in u16"),
            );
            sets.push(Set::new(map.set(set), &index, &nodes));
        }
        let heat_known = load_known(heat);
        let classes = Grouping::new(map, &number, range, heat, written).classes();
        Self {
            nodes,
            sets,
            classes,
            rules,
            demands,
            chunk_bytes: map.head.chunk_bytes,
            heat_known,
            dependence: Dependence::default(),
        }
    }

    /// With nodes as dependent as they were measured.
    pub(crate) fn depending(mut self, measured: Option<&Measured>) -> Self {
        let fitting = measured.and_then(|measured| self.dependence_fitting(measured));
        self.dependence = fitting.unwrap_or_default();
        self
    }

    /// Makes the loads shares of the whole again, after classes were taken out.
    pub(crate) fn normalise(&mut self) {
        for kind in Kind::BOTH {
            #[allow(clippy::cast_precision_loss)] // chunks are counted in u32
            let total: f64 = self
                .classes
                .iter()
                .map(|class| class.load(kind) * class.chunks as f64)
                .sum();
            for class in &mut self.classes {
                let load = match kind {
                    Kind::Read => &mut class.read,
                    Kind::Write => &mut class.write,
                };
                *load = if total > 0.0 { *load / total } else { 1.0 };
            }
        }
    }

    /// Node from which chunks with these in-sync replicas are read.
    pub(crate) fn reader(&self, in_sync: &[NodeIndex]) -> NodeIndex {
        let median = |at: &&NodeIndex| self.nodes[usize::from(**at)].read_median_us();
        *in_sync
            .iter()
            .min_by(|a, b| median(a).total_cmp(&median(b)))
            .expect("every chunk has an in-sync replica (I1)")
    }

    pub(crate) fn site(&self, node: NodeIndex) -> &str {
        &self.nodes[usize::from(node)].site
    }

    pub(crate) fn node(&self, node: NodeIndex) -> &Node {
        &self.nodes[usize::from(node)]
    }

    /// Share of the requests of a kind to chunks on these replicas that are done within `us`.
    pub(crate) fn share_within(&self, in_sync: &[NodeIndex], kind: Kind, us: f64) -> f64 {
        let of = |node: NodeIndex| {
            let model = self.node(node).model.as_ref();
            model.map_or(0.0, |model| model.of(kind).share_within(us))
        };
        match kind {
            Kind::Read => of(self.reader(in_sync)),
            Kind::Write => self.dependence.all(in_sync.iter().map(|node| of(*node))),
        }
    }
}

impl Set {
    fn new(
        replicas: &[ukai_meta::Replica],
        index: &HashMap<NodeId, NodeIndex>,
        nodes: &[Node],
    ) -> Self {
        let mut set = Self::default();
        for replica in replicas {
            let at = index[&replica.node];
            let evacuated = nodes[usize::from(at)].is_evacuated;
            match replica.state {
                ReplicaState::InSync => set.in_sync.push(at),
                ReplicaState::Joining => set.joining.push(at),
                ReplicaState::Stale | ReplicaState::Leaving => set.busy.push(at),
            }
            if evacuated && matches!(replica.state, ReplicaState::Joining | ReplicaState::Stale) {
                set.forced_out.push(at);
            }
        }
        set
    }

    /// All its replicas, in whatever state.
    pub(crate) fn replicas(&self) -> usize {
        self.in_sync.len() + self.joining.len() + self.busy.len()
    }
}
