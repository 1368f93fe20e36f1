//! What a seed decides before anything runs: sizes, delays, and how likely each fault is.
//!
//! Every probability is drawn anew per seed, often as zero, so that some runs hammer one kind of fault
//! while the rest of the world is calm: rare combinations come up that fixed settings never reach.

use crate::fault::FaultKind;
use crate::queue::MS;
use rand::{Rng, RngExt};
use std::collections::BTreeMap;

/// The options of one run.
#[derive(Clone, Debug)]
pub(crate) struct Swarm {
    pub(crate) nodes: usize,
    pub(crate) shards: u16,
    pub(crate) copies: u8,
    pub(crate) chunks: u32,
    pub(crate) chunk_bytes: u64,
    pub(crate) through: bool,
    pub(crate) lanes: u32,
    pub(crate) depth: u32,
    /// Guest requests in the safety phase.
    pub(crate) requests: u64,
    pub(crate) think_ns: u64,
    /// Sectors that the guest uses, in runs of up to 40.
    pub(crate) hot_ranges: usize,
    pub(crate) read_percent: u32,
    pub(crate) zero_percent: u32,
    pub(crate) flush_percent: u32,
    pub(crate) fua_percent: u32,
    /// Longest ordinary delay of a frame.
    pub(crate) net_delay_ns: u64,
    pub(crate) disk_delay_ns: u64,
    pub(crate) meta_delay_ns: u64,
    /// Frames that are also taken apart and decoded again, in 1/256.
    pub(crate) recode_in_256: u32,
    /// Mean time between faults of each kind that may happen.
    pub(crate) faults: BTreeMap<FaultKind, u64>,
    /// Commits whose outcome is lost, in 1/256.
    pub(crate) meta_unknown_in_256: u32,
    /// Longest time a crashed node stays away.
    pub(crate) node_away_ns: u64,
    /// A guest that survives its front gives the same requests to the next one.
    pub(crate) reissue: bool,
    pub(crate) log_bytes: u64,
    /// Changes of the map that a front's watch does not tell, in 1/256: it finds them by reading.
    pub(crate) lost_watch_in_256: u32,
    /// Nodes that lose their membership stop serving (`--isolated refuse`).
    pub(crate) isolated_refuse: bool,
    /// Slots of each shard of nodes that are too small for the volume; by node, then for those that come in place of
    /// wiped ones there is room.
    pub(crate) small: Vec<Option<u64>>,
    /// Bytes per second that mirrors may move to each shard, and from it (`--copy-rate`).
    pub(crate) copy_rate: Option<u64>,
    /// Fronts tell nodes of heat.
    pub(crate) reports: bool,
}

/// Seeds whose nodes have a copy rate, in percent.
const COPY_RATE_PERCENT: u32 = 20;

fn percent(rng: &mut impl Rng, chance: u32) -> bool {
    rng.random_range(0..100) < chance
}

/// Seeds with faults of the kinds that came later.
const LATER_PERCENT: u32 = 25;
/// Of these, seeds whose fronts tell nodes of heat.
const REPORTS_PERCENT: u32 = 40;
/// Of these, seeds with nodes that are too small.
const SMALL_PERCENT: u32 = 30;

/// Mean times between faults of some kinds; the others never happen.
fn rates(
    rng: &mut impl Rng,
    kinds: impl Iterator<Item = FaultKind>,
    into: &mut BTreeMap<FaultKind, u64>,
) {
    for kind in kinds {
        let odds = kind.odds();
        if percent(rng, odds.percent) {
            into.insert(kind, rng.random_range(odds.from_ms..odds.to_ms) * MS);
        }
    }
}

impl Swarm {
    /// What `rng` decides, and, for what came later, `later`.
    pub(crate) fn draw(rng: &mut impl Rng, later: &mut impl Rng) -> Self {
        let mut swarm = Self::draw_first(rng);
        if !percent(later, LATER_PERCENT) {
            return swarm;
        }
        let kinds = FaultKind::ALL.iter().copied();
        rates(
            later,
            kinds.filter(|kind| kind.is_later()),
            &mut swarm.faults,
        );
        if percent(later, SMALL_PERCENT) {
            // What one shard has of the volume, about.
            let whole = (swarm.sectors() / 256).div_ceil(swarm.shards.into());
            swarm.small = (0..swarm.nodes)
                .map(|_| percent(later, 60).then(|| later.random_range(1..=whole)))
                .collect();
        }
        swarm.reports = percent(later, REPORTS_PERCENT);
        swarm.copy_rate =
            percent(later, COPY_RATE_PERCENT).then(|| later.random_range(32 << 10..1 << 20));
        swarm
    }

    fn draw_first(rng: &mut impl Rng) -> Self {
        let nodes = rng.random_range(2..=5);
        let slow = |rng: &mut _, fast: u64, slow: u64| {
            if percent(rng, 70) { fast } else { slow }
        };
        Self {
            nodes,
            shards: rng.random_range(1..=2),
            copies: u8::try_from(rng.random_range(1..=nodes.min(3)))
                .unwrap_or(1)
                .max(
                    // One copy is the least interesting case: rarely.
                    if percent(rng, 90) { 2 } else { 1 },
                ),
            chunks: rng.random_range(2..=6),
            chunk_bytes: if percent(rng, 80) { 1 << 20 } else { 2 << 20 },
            through: percent(rng, 15),
            lanes: rng.random_range(1..=3),
            depth: rng.random_range(1..=8),
            requests: rng.random_range(200..=900),
            think_ns: rng.random_range(1..=30) * MS,
            hot_ranges: rng.random_range(1..=6),
            read_percent: rng.random_range(10..=70),
            zero_percent: if percent(rng, 50) {
                rng.random_range(0..=20)
            } else {
                0
            },
            flush_percent: rng.random_range(0..=10),
            fua_percent: rng.random_range(0..=20),
            net_delay_ns: slow(rng, MS / 2, 40 * MS),
            disk_delay_ns: slow(rng, MS / 5, 20 * MS),
            meta_delay_ns: slow(rng, 5 * MS, 200 * MS),
            recode_in_256: if percent(rng, 30) { 64 } else { 4 },
            faults: {
                let mut faults = BTreeMap::new();
                let kinds = FaultKind::ALL.iter().copied();
                rates(rng, kinds.filter(|kind| !kind.is_later()), &mut faults);
                faults
            },
            meta_unknown_in_256: if percent(rng, 40) { 48 } else { 0 },
            node_away_ns: slow(rng, 500 * MS, 8000 * MS),
            reissue: percent(rng, 60),
            log_bytes: if percent(rng, 50) { 256 << 10 } else { 1 << 20 },
            lost_watch_in_256: if percent(rng, 30) { 96 } else { 0 },
            isolated_refuse: percent(rng, 30),
            small: Vec::new(),
            copy_rate: None,
            reports: false,
        }
    }

    /// Does this kind of fault happen?
    pub(crate) fn has(&self, kind: FaultKind) -> bool {
        self.faults.contains_key(&kind)
    }

    /// Sectors of the volume.
    pub(crate) fn sectors(&self) -> u64 {
        u64::from(self.chunks) * self.chunk_bytes / 4096
    }
}
