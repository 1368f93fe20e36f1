//! The table of replica sets: each distinct combination of (node, state) that some chunk has.
//!
//! Sets are unique by content and counted by the runs that refer to them, so a set that no chunk has
//! any more gives its number back: however many moves were made, the table holds only what is in
//! use now.

use crate::record::{NodeHealth, Replica, ReplicaState};
use std::collections::HashMap;
use ukai_proto::limits::REPLICAS_MAX;
use ukai_proto::{Generation, NodeId};

/// Number of a replica set in its volume's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SetIndex(pub u16);

/// Sets of one volume. Each takes at most 17 bytes of the head, so the table stays below 136 KiB of
/// the head's 256 KiB.
pub const SETS_MAX: usize = 8192;

/// Nodes that one volume's sets may name: 16 bytes each, 32 KiB of the head.
pub const VOLUME_NODES_MAX: usize = 2048;

/// The replicas of one chunk, sorted by node. No allocation: it is copied out for each guest I/O.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ReplicaList {
    // Unused places hold FILLER, so that equality and hash may look at the whole array.
    list: [Replica; REPLICAS_MAX],
    len: u8,
}

const FILLER: Replica = Replica {
    node: NodeId::NIL,
    state: ReplicaState::InSync,
};

impl ReplicaList {
    /// No replica.
    pub const EMPTY: Self = Self {
        list: [FILLER; REPLICAS_MAX],
        len: 0,
    };

    /// The replicas.
    #[must_use]
    pub fn as_slice(&self) -> &[Replica] {
        &self.list[..usize::from(self.len)]
    }

    /// The replica on `node`.
    #[must_use]
    pub fn on(&self, node: NodeId) -> Option<ReplicaState> {
        self.iter().find(|r| r.node == node).map(|r| r.state)
    }

    /// Nodes whose replica is in this state.
    pub fn in_state(&self, state: ReplicaState) -> impl Iterator<Item = NodeId> + '_ {
        self.iter()
            .filter(move |r| r.state == state)
            .map(|r| r.node)
    }

    /// Nodes that have every acknowledged write.
    pub fn in_sync(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.in_state(ReplicaState::InSync)
    }

    /// How many have every acknowledged write.
    #[must_use]
    pub fn in_sync_count(&self) -> usize {
        self.in_sync().count()
    }

    /// Puts `state` for `node`, new or changed; `false` if the list is full.
    pub(crate) fn put(&mut self, node: NodeId, state: ReplicaState) -> bool {
        let len = usize::from(self.len);
        match self.as_slice().binary_search_by(|r| r.node.cmp(&node)) {
            Ok(at) => self.list[at].state = state,
            Err(_) if len == REPLICAS_MAX => return false,
            Err(at) => {
                self.list.copy_within(at..len, at + 1);
                self.list[at] = Replica { node, state };
                self.len += 1;
            }
        }
        true
    }

    /// Takes `node` out.
    pub(crate) fn remove(&mut self, node: NodeId) {
        if let Ok(at) = self.as_slice().binary_search_by(|r| r.node.cmp(&node)) {
            let len = usize::from(self.len);
            self.list.copy_within(at + 1..len, at);
            self.list[len - 1] = FILLER;
            self.len -= 1;
        }
    }

    /// The states after the nodes' health is taken into account.
    #[must_use]
    pub(crate) fn with_health(&self, health: &[(NodeId, NodeHealth)]) -> Self {
        let mut out = *self;
        for replica in &mut out.list[..usize::from(self.len)] {
            if let Some((_, health)) = health.iter().find(|(node, _)| *node == replica.node) {
                replica.state = effective(replica.state, *health);
            }
        }
        out
    }
}

impl std::ops::Deref for ReplicaList {
    type Target = [Replica];
    fn deref(&self) -> &[Replica] {
        self.as_slice()
    }
}

impl std::fmt::Debug for ReplicaList {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// State of a replica on a node that is not whole.
fn effective(stored: ReplicaState, health: NodeHealth) -> ReplicaState {
    match (stored, health) {
        (ReplicaState::Leaving, _) => ReplicaState::Leaving,
        (_, NodeHealth::Stale { .. }) => ReplicaState::Stale,
        (_, NodeHealth::Rejoining { .. }) => ReplicaState::Joining,
    }
}

impl NodeHealth {
    /// First generation whose writes the node may lack.
    #[must_use]
    pub fn since(self) -> Generation {
        match self {
            Self::Stale { since } | Self::Rejoining { since } => since,
        }
    }
}

/// The table. A number whose set is empty is free.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct SetTable {
    sets: Vec<ReplicaList>,
    /// Runs and uniform shards that refer to each set.
    counts: Vec<u32>,
}

impl SetTable {
    /// As read from an archive; every count is still zero.
    pub(crate) fn from_sets(sets: Vec<ReplicaList>) -> Self {
        assert!(sets.len() <= SETS_MAX, "{} sets", sets.len());
        let counts = vec![0; sets.len()];
        Self { sets, counts }
    }

    /// All places, free ones (empty) included.
    pub(crate) fn sets(&self) -> &[ReplicaList] {
        &self.sets
    }

    /// Whether the number names a set.
    pub(crate) fn contains(&self, set: SetIndex) -> bool {
        self.sets
            .get(usize::from(set.0))
            .is_some_and(|list| !list.is_empty())
    }

    /// The stored replicas of a set.
    pub(crate) fn get(&self, set: SetIndex) -> &ReplicaList {
        &self.sets[usize::from(set.0)]
    }

    /// Sets that some chunk has.
    pub(crate) fn live(&self) -> impl Iterator<Item = SetIndex> + '_ {
        (0u16..)
            .zip(&self.sets)
            .filter(|(_, list)| !list.is_empty())
            .map(|(at, _)| SetIndex(at))
    }

    pub(crate) fn add(&mut self, set: SetIndex) {
        self.counts[usize::from(set.0)] += 1;
    }

    pub(crate) fn release(&mut self, set: SetIndex) {
        let count = &mut self.counts[usize::from(set.0)];
        assert!(*count > 0, "set {} released more often than used", set.0);
        *count -= 1;
    }

    /// Frees the numbers of sets that nothing refers to; `false` if there are none.
    pub(crate) fn collect_garbage(&mut self) -> bool {
        let mut freed = false;
        for (list, count) in self.sets.iter_mut().zip(&self.counts) {
            if *count == 0 && !list.is_empty() {
                *list = ReplicaList::EMPTY;
                freed = true;
            }
        }
        while self.sets.last().is_some_and(|list| list.is_empty()) {
            self.sets.pop();
            self.counts.pop();
        }
        freed
    }
}

/// Finds or makes the number of a set; built once per transition. It also knows sets that lost
/// their last reference meanwhile: they may come back, and are swept at the end.
pub(crate) struct Interner {
    by_content: HashMap<ReplicaList, SetIndex>,
    free: Vec<u16>,
}

/// The table is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TableFull;

impl Interner {
    pub(crate) fn new(table: &SetTable) -> Self {
        let by_content = table.live().map(|set| (*table.get(set), set)).collect();
        // The lowest free number is taken first, to keep the table short.
        let mut free: Vec<u16> = (0u16..)
            .zip(&table.sets)
            .filter(|(_, list)| list.is_empty())
            .map(|(at, _)| at)
            .collect();
        free.reverse();
        Self { by_content, free }
    }

    pub(crate) fn intern(
        &mut self,
        table: &mut SetTable,
        list: ReplicaList,
    ) -> Result<SetIndex, TableFull> {
        assert!(!list.is_empty(), "a chunk without a replica");
        if let Some(set) = self.by_content.get(&list) {
            return Ok(*set);
        }
        let set = if let Some(at) = self.free.pop() {
            table.sets[usize::from(at)] = list;
            SetIndex(at)
        } else {
            if table.sets.len() == SETS_MAX {
                return Err(TableFull);
            }
            #[allow(clippy::cast_possible_truncation)] // below SETS_MAX
            let at = table.sets.len() as u16;
            table.sets.push(list);
            table.counts.push(0);
            SetIndex(at)
        };
        self.by_content.insert(list, set);
        Ok(set)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(n: u8) -> NodeId {
        NodeId([n; 16])
    }

    #[test]
    fn lists_stay_sorted_and_equal_lists_are_equal() {
        let mut a = ReplicaList::EMPTY;
        let mut b = ReplicaList::EMPTY;
        for n in [3, 1, 2] {
            assert!(a.put(node(n), ReplicaState::InSync));
        }
        for n in [9, 2, 3, 1] {
            assert!(b.put(node(n), ReplicaState::InSync));
        }
        assert_ne!(a, b);
        b.remove(node(9));
        assert_eq!(a, b);
        assert!(a.windows(2).all(|pair| pair[0].node < pair[1].node));
    }

    #[test]
    fn a_full_list_takes_no_more() {
        let mut list = ReplicaList::EMPTY;
        for n in 0..8 {
            assert!(list.put(node(n + 1), ReplicaState::InSync));
        }
        assert!(!list.put(node(99), ReplicaState::Joining));
        assert!(list.put(node(1), ReplicaState::Leaving));
    }

    #[test]
    fn unused_numbers_are_given_back() {
        let mut table = SetTable::default();
        let lists: Vec<_> = (1..=3)
            .map(|n| {
                let mut list = ReplicaList::EMPTY;
                list.put(node(n), ReplicaState::InSync);
                list
            })
            .collect();
        let mut interner = Interner::new(&table);
        for list in &lists {
            let set = interner.intern(&mut table, *list).unwrap();
            table.add(set);
        }
        table.release(SetIndex(1));
        table.collect_garbage();
        assert!(!table.contains(SetIndex(1)));
        let mut other = ReplicaList::EMPTY;
        other.put(node(9), ReplicaState::InSync);
        let mut interner = Interner::new(&table);
        assert_eq!(interner.intern(&mut table, lists[2]), Ok(SetIndex(2)));
        assert_eq!(interner.intern(&mut table, other), Ok(SetIndex(1)));
    }
}
