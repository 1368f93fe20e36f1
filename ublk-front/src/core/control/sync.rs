//! Filling joining replicas: after an outage (only what was written since), or at a new location.
//!
//! One node at a time. Every chunk is copied by a PULL in mirror mode, ordered at the target (for a
//! relocation job by several, as its pace allows). What differed is looked at again at once, until
//! nothing differs at or below the ceiling: looked at after everything else, the copy would rest for as long as that takes. Since
//! lanes wait for joining replicas as for in-sync ones, nothing can come apart again between that
//! and the transaction (I3).

use super::ControlCore;
use super::request::Want;
use crate::core::api::{ControlAction, Now, PeerIndex};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use ukai_meta::transition::{self, Change, MapUpdate, TransitionError};
use ukai_meta::{NodeHealth, ReplicaState};
use ukai_proto::limits::SECTOR_BYTES;
use ukai_proto::message::{ChunkRange, HeldBack, PullMode, Pulled, read_chunk_list};
use ukai_proto::{
    ChunkIndex, Flags, Generation, Header, NodeId, Opcode, SectorInChunk, Seq, Status, Version,
};

/// Chunks copied at a time.
const COPY_WINDOW: usize = 4;
/// Pieces of a relocation job copied at a time, of 1 MiB at most.
const PACED_WINDOW: usize = 8;
/// Ranges of a relocation job that become in-sync in one transaction.
const PROMOTED_MAX: usize = 128;
/// Failed copies of one job before it pauses.
const FAILURES_MAX: u32 = 16;
/// Jobs that found a chunk with bad sectors on every in-sync replica, a pause and repairs between them, before
/// the next one takes these sectors over as bad: the rest of the chunk shall not stay where it is because of
/// them.
const BAD_TRIES: u32 = 4;
/// Chunks of which that is remembered.
const BAD_CHUNKS_MAX: usize = 1024;
/// An order that waited in vain for copy rates is given again after so long; nodes that answer so at once are not flooded.
const HELD_PAUSE: Duration = Duration::from_millis(250);
/// Looks at a part that never becomes equal before the job pauses: something is wrong with the replica.
const LOOKS_MAX: u32 = 8;

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    /// FENCE on all shards of a stale node.
    Fencing,
    /// The transaction "rejoining" is due.
    Begin,
    /// Lanes do not send it writes yet.
    Installing,
    /// Asking sources what was written.
    Listing { left: usize },
    /// Copying.
    Copying,
    /// Writes up to `last` have yet to end. Copies leave out what the source got after the ceiling, since
    /// it is on its way to the target too; but until it is there, the target has neither it nor what it
    /// replaces.
    Settling { last: Seq },
    /// FLUSH on all shards of the target: the guest's earlier flushes covered what was copied (I10).
    Flushing { left: usize },
    /// The transaction "in-sync" is due.
    Finish,
}

/// What one PULL is to make equal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Part {
    chunk: ChunkIndex,
    sector: SectorInChunk,
    count: u16,
}

impl Part {
    fn bytes(self) -> u64 {
        u64::from(self.count) * SECTOR_BYTES as u64
    }
}

#[derive(Debug)]
pub(super) struct Sync {
    /// Tells its requests from those of earlier jobs.
    job: u64,
    pub(super) node: NodeId,
    pub(super) stage: Stage,
    /// Of a relocation job: as fast as it may.
    paced: bool,
    since: Generation,
    /// Writes at or below it had reached every source when the job began.
    ceiling: Version,
    /// Joining at its start by the map itself (not by health): what may be promoted.
    ranges: Vec<ChunkRange>,
    todo: BTreeSet<Part>,
    /// How often a part of `todo` or `out` was found to differ.
    differed: BTreeMap<Part, u32>,
    /// Being copied, from where, and under which generation.
    out: BTreeMap<Part, (NodeId, Generation)>,
    /// Sources with bad sectors that the target lacks: another one must have them.
    bad: BTreeSet<(ChunkIndex, NodeId)>,
    failures: u32,
    /// Nodes answered that they are busy with copies.
    again_at: Now,
    pub(super) chunks_total: u64,
    pub(super) chunks_done: u64,
    pub(super) sectors_copied: u64,
}

impl Sync {
    fn new(node: NodeId, stage: Stage) -> Self {
        Self {
            job: 0,
            node,
            stage,
            paced: false,
            since: Generation(0),
            ceiling: Version::ZERO,
            ranges: Vec::new(),
            todo: BTreeSet::new(),
            differed: BTreeMap::new(),
            out: BTreeMap::new(),
            bad: BTreeSet::new(),
            failures: 0,
            again_at: Now(0),
            chunks_total: 0,
            chunks_done: 0,
            sectors_copied: 0,
        }
    }

    pub(super) fn is_paced(&self) -> bool {
        self.paced
    }
}

impl ControlCore {
    pub(super) fn drive_sync(&mut self, now: Now, out: &mut Vec<ControlAction>) {
        // A node that missed writes goes before a relocation, which finds what it did when its turn comes.
        if self.sync.as_ref().is_some_and(Sync::is_paced) && self.next_resync(now).is_some() {
            self.sync = None;
        }
        if self.sync.is_none() {
            self.sync = self.next_sync(now);
            if let Some(sync) = &mut self.sync {
                self.syncs += 1;
                sync.job = self.syncs;
            }
        }
        let Some(sync) = &self.sync else { return };
        let node = sync.node;
        if self.all_up(node).is_none() {
            self.sync_failed(now, out);
            return;
        }
        let begun = !matches!(sync.stage, Stage::Fencing | Stage::Begin);
        if begun && matches!(self.map().health(node), Some(NodeHealth::Stale { .. })) {
            // By a transaction of ours whose outcome was not told, as the map shows: the job is void.
            self.stale_recorded(now, node);
            return;
        }
        match sync.stage.clone() {
            Stage::Fencing => match self.all_fenced(node) {
                None => self.fence_node(now, node, out),
                Some(run) => {
                    for entry in self.nodes.iter_mut().filter(|entry| entry.node == node) {
                        entry.incarnation = Some(run);
                    }
                    self.seen.entry(node).or_default().failed = None;
                    self.sync_stage(Stage::Begin);
                }
            },
            Stage::Installing => {
                if self.is_installed() && !self.reinstall && self.ceiling_holds() {
                    self.start_listing(now, out);
                }
            }
            Stage::Copying => self.copy_more(now, out),
            Stage::Settling { last } => self.flush_target(now, last, out),
            Stage::Begin | Stage::Listing { .. } | Stage::Flushing { .. } | Stage::Finish => {}
        }
    }

    fn sync_stage(&mut self, stage: Stage) {
        if let Some(sync) = &mut self.sync {
            sync.stage = stage;
        }
    }

    /// A node that has something to be filled, is reachable, and is not to be left alone for now.
    fn next_sync(&self, now: Now) -> Option<Sync> {
        if self.relocation.is_active()
            && let Some(sync) = self.next_resync(now)
        {
            return Some(sync);
        }
        let mut nodes = self.map().nodes().into_iter();
        nodes.find_map(|node| self.sync_for(now, node))
    }

    /// The same of the nodes that missed writes. What interrupts a relocation is decided by what would begin in its
    /// place: else it would be begun and interrupted for ever.
    pub(super) fn next_resync(&self, now: Now) -> Option<Sync> {
        let mut behind = self.map().head.health.iter();
        behind.find_map(|(node, _)| self.sync_for(now, *node))
    }

    fn sync_for(&self, now: Now, node: NodeId) -> Option<Sync> {
        // A source may still lack what another in-sync replica has.
        if !self.intents.is_empty() || self.is_renewing() {
            return None;
        }
        let paused = self.sync_retry_at.get(&node).is_some_and(|at| now < *at);
        if paused || self.all_up(node).is_none() {
            return None;
        }
        let map = self.map();
        if let Some(NodeHealth::Stale { .. }) = map.health(node) {
            return Some(Sync::new(node, Stage::Fencing));
        }
        let paced = map.health(node).is_none() && self.relocation.moves_to(node);
        let halted = paced && self.relocation.is_halted();
        let joining = || !map.ranges_of(node, ReplicaState::Joining).is_empty();
        (!halted && !self.is_doubtful(node) && joining()).then(|| Sync {
            paced,
            ..Sync::new(node, Stage::Installing)
        })
    }

    /// Lanes write to it: from here on only what was written before the barrier is to be copied.
    fn start_listing(&mut self, now: Now, out: &mut Vec<ControlAction>) {
        let Some(sync) = &self.sync else { return };
        let node = sync.node;
        let map = self.map().clone();
        let since = match map.health(node) {
            Some(NodeHealth::Rejoining { since }) => since,
            Some(NodeHealth::Stale { .. }) => {
                self.sync = None;
                return;
            }
            None => Generation(0),
        };
        // After an outage only what was written since is compared. What the map itself says is joining
        // needs a job of its own, whoever learns in which way that the node is whole.
        let ranges = if since > Generation(0) {
            Vec::new()
        } else {
            map.stored_ranges_of(node, ReplicaState::Joining)
        };
        let mut sources = BTreeSet::new();
        for set in map.sets_in_use() {
            let replicas = map.set(set);
            if replicas
                .iter()
                .any(|r| r.node == node && r.state == ReplicaState::Joining)
            {
                let in_sync = replicas.iter().filter(|r| r.state == ReplicaState::InSync);
                sources.extend(in_sync.map(|r| r.node));
            }
        }
        // A source that cannot be asked may be the only one of its chunks.
        if sources.is_empty() || sources.iter().any(|node| self.all_fenced(*node).is_none()) {
            self.sync_failed(now, out);
            return;
        }
        let peers: Vec<(NodeId, PeerIndex)> = sources
            .iter()
            .copied()
            // Its own too: what only it has (an earlier life at this node, a write that a dead front
            // sent nowhere else) must go, and no source would name it.
            .chain([node])
            .flat_map(|source| self.peers_of(source).map(move |peer| (source, peer)))
            .collect();
        // What a dead front may have left only there, and what a source may have lost.
        let open = sources.iter().chain([&node]);
        let open: BTreeSet<ChunkIndex> = open
            .filter_map(|node| self.seen.get(node))
            .flat_map(|seen| seen.intents.iter().copied())
            .collect();
        let ceiling = self.ceiling;
        let Some(sync) = &mut self.sync else { return };
        sync.since = since;
        sync.ranges = ranges;
        sync.stage = Stage::Listing { left: peers.len() };
        sync.ceiling = ceiling;
        for chunk in open {
            Self::add_candidate(&map, sync, chunk);
        }
        for (source, peer) in peers {
            self.ask_list(now, peer, source, since, ChunkIndex(0), out);
        }
    }

    fn add_candidate(map: &ukai_meta::map::VolumeMap, sync: &mut Sync, chunk: ChunkIndex) {
        let inside = chunk.0 < map.chunk_count();
        if inside && map.replicas(chunk).on(sync.node) == Some(ReplicaState::Joining) {
            sync.todo.insert(Part {
                chunk,
                sector: SectorInChunk(0),
                count: u16::try_from(map.chunk_sectors()).unwrap_or(u16::MAX),
            });
        }
    }

    fn ask_list(
        &mut self,
        now: Now,
        peer: PeerIndex,
        source: NodeId,
        since: Generation,
        start: ChunkIndex,
        out: &mut Vec<ControlAction>,
    ) {
        let job = self.sync.as_ref().map_or(0, |sync| sync.job);
        let edit = |header: &mut Header| {
            header.generation = since;
            header.chunk = start;
            Vec::new()
        };
        self.ask(
            now,
            peer,
            Opcode::WrittenSince,
            edit,
            Want::List { job, source },
            out,
        );
    }

    pub(super) fn listed(
        &mut self,
        now: Now,
        peer: PeerIndex,
        source: NodeId,
        result: Result<&[u8], Status>,
        header: &Header,
        out: &mut Vec<ControlAction>,
    ) {
        let map = self.map().clone();
        let Some(sync) = &mut self.sync else { return };
        let Stage::Listing { left } = sync.stage else {
            return;
        };
        let Some(chunks) = result.ok().and_then(|aux| read_chunk_list(aux).ok()) else {
            self.sync_failed(now, out);
            return;
        };
        let last = chunks.last().copied();
        for chunk in chunks {
            Self::add_candidate(&map, sync, chunk);
        }
        let since = sync.since;
        match last {
            Some(last) if header.flags.has(Flags::MORE) => {
                let next = ChunkIndex(last.0.saturating_add(1));
                self.ask_list(now, peer, source, since, next, out);
            }
            _ if left > 1 => sync.stage = Stage::Listing { left: left - 1 },
            _ => {
                sync.chunks_total = sync.todo.len() as u64;
                sync.stage = Stage::Copying;
                let (node, chunks) = (sync.node, sync.chunks_total);
                let text = format!("node {}: comparing {chunks} chunks", self.name(node));
                out.push(ControlAction::Note(text));
                self.copy_more(now, out);
            }
        }
    }

    fn copy_more(&mut self, now: Now, out: &mut Vec<ControlAction>) {
        let doubtful = self.doubtful();
        let map = self.map().clone();
        loop {
            let Some(sync) = &mut self.sync else { return };
            let window = if sync.paced {
                PACED_WINDOW
            } else {
                COPY_WINDOW
            };
            if sync.out.len() >= window || now < sync.again_at {
                return;
            }
            let Some(mut part) = sync.todo.pop_first() else {
                if sync.out.is_empty() {
                    self.all_equal(now, out);
                }
                return;
            };
            let (node, chunk) = (sync.node, part.chunk);
            if map.replicas(chunk).on(node) != Some(ReplicaState::Joining) {
                continue; // taken away meanwhile
            }
            let preference = &self.preference;
            let bad = &sync.bad;
            let source = map
                .in_sync(chunk)
                .filter(|source| !doubtful.contains(source) && !bad.contains(&(chunk, *source)))
                .min_by_key(|source| preference.iter().position(|n| n == source));
            let (job, mut how) = (sync.job, (PullMode::Mirror, sync.ceiling));
            let (source, is_bad) = match source {
                Some(source) => (Some(source), false),
                None => {
                    let mut replicas = map.in_sync(chunk);
                    let all_bad =
                        replicas.all(|n| !doubtful.contains(&n) && bad.contains(&(chunk, n)));
                    let first = map.in_sync(chunk).next();
                    (first.filter(|_| all_bad), all_bad)
                }
            };
            if is_bad {
                // Repairs were ordered when it was found; if they could do nothing, it is lost.
                let tries = self.bad_everywhere.entry(chunk).or_default();
                *tries += 1;
                if *tries < BAD_TRIES {
                    if self.bad_everywhere.len() > BAD_CHUNKS_MAX {
                        self.bad_everywhere.pop_first();
                    }
                    self.sync_failed(now, out);
                    return;
                }
                how.0 = PullMode::MirrorBad;
                let text = format!(
                    "chunk {chunk}: what is bad on every in-sync replica is taken over as bad; scrub names the sectors"
                );
                self.note(text, out);
            }
            let Some(sync) = &mut self.sync else { return };
            if sync.paced {
                let first = part.count.min(self.relocation.piece_sectors());
                let rest = Part {
                    sector: SectorInChunk(part.sector.0 + first),
                    count: part.count - first,
                    ..part
                };
                let all = std::mem::replace(&mut part.count, first);
                if !self.relocation.may_copy(now, part.bytes()) {
                    part.count = all;
                    sync.todo.insert(part);
                    return;
                }
                if rest.count > 0 {
                    sync.todo.insert(rest);
                }
            }
            let target = self.peer_of(node, chunk);
            let pull = source.and_then(|source| self.pull_from(source, chunk, how));
            let (Some(source), Some(target), Some(pull)) = (source, target, pull) else {
                self.sync_failed(now, out); // no source is up, or none is whole
                return;
            };
            if let Some(sync) = &mut self.sync {
                sync.out.insert(part, (source, map.head.generation));
            }
            let range = (part.sector, part.count);
            let want = Want::Copy { job, part };
            self.ask_pull(now, target, chunk, range, &pull, want, out);
        }
    }

    pub(super) fn chunk_copied(
        &mut self,
        now: Now,
        part: Part,
        result: Result<&[u8], Status>,
        held_back: HeldBack,
        out: &mut Vec<ControlAction>,
    ) {
        let chunk_sectors = self.map().chunk_sectors();
        let generation = self.map().head.generation;
        let Some(sync) = &mut self.sync else { return };
        let Some((source, asked)) = sync.out.remove(&part) else {
            return; // of an earlier job
        };
        let (chunk, paced) = (part.chunk, sync.paced);
        if paced {
            self.relocation.held_back(
                now,
                [
                    (sync.node, held_back.at_target_ms),
                    (source, held_back.at_source_ms),
                ],
            );
        }
        match result.map(Pulled::decode) {
            Ok(Ok(pulled)) => {
                sync.sectors_copied += u64::from(pulled.sectors_copied);
                let is_last = u32::from(part.sector.0) + u32::from(part.count) >= chunk_sectors;
                let is_first = !sync.differed.contains_key(&part);
                if is_first && is_last {
                    sync.chunks_done += 1;
                }
                if pulled.sectors_copied > 0 {
                    let times = sync.differed.entry(part).or_default();
                    *times += 1;
                    if *times > LOOKS_MAX {
                        self.sync_failed(now, out);
                        return;
                    }
                    sync.todo.insert(part);
                } else {
                    sync.differed.remove(&part);
                }
                if paced {
                    let copied = u64::from(pulled.sectors_copied.min(part.count.into()));
                    let copied = copied * SECTOR_BYTES as u64;
                    self.relocation.copied(part.bytes(), copied);
                }
                self.copied.sectors_copied = self
                    .copied
                    .sectors_copied
                    .saturating_add(pulled.sectors_copied);
                if pulled.sectors_bad > 0 {
                    // Not proven equal (I3): what the source cannot give may be old or missing here.
                    sync.bad.insert((chunk, source));
                    sync.todo.insert(part);
                    let bad = pulled.sectors_bad;
                    let name = self.name(source);
                    let text = format!("chunk {chunk}: {bad} sectors are bad on node {name}");
                    self.note(text, out);
                    let count = u16::try_from(self.map().chunk_sectors()).unwrap_or(u16::MAX);
                    let range = (SectorInChunk(0), count);
                    self.repair_range(now, (chunk, range), source, None, out);
                    self.bad_at_source(chunk);
                }
            }
            // The nodes are busy with copies, of others too: no fault of anybody.
            Err(Status::Busy) if held_back.is_any() => {
                sync.todo.insert(part);
                sync.again_at = now.after(HELD_PAUSE);
            }
            failed => {
                sync.todo.insert(part);
                // What a relocation removes elsewhere meanwhile makes new generations: no fault of anybody.
                let overtaken = matches!(failed, Err(Status::StaleMap)) && asked < generation;
                let is_fault = !(paced && overtaken);
                sync.failures += u32::from(is_fault);
                let (node, give_up) = (sync.node, sync.failures > FAILURES_MAX);
                if let (Err(status), true) = (failed, is_fault) {
                    let text = format!(
                        "node {}: a chunk cannot be copied: {status}",
                        self.name(node)
                    );
                    self.note(text, out);
                }
                if give_up {
                    self.sync_failed(now, out);
                    return;
                }
            }
        }
        self.copy_more(now, out);
    }

    /// Bad at every source: if one of them adopted it when its process died under this front, nobody will ever know better.
    fn bad_at_source(&mut self, chunk: ChunkIndex) {
        let Some(sync) = &self.sync else { return };
        let mut sources = self.map().in_sync(chunk).filter(|node| *node != sync.node);
        let is_bad = |source| sync.bad.contains(&(chunk, source));
        if sources.all(is_bad) && self.recovered.contains(&chunk) {
            self.abandoned(chunk);
        }
    }

    /// Everything was compared, and found equal.
    fn all_equal(&mut self, now: Now, out: &mut Vec<ControlAction>) {
        let last = self.seq.last();
        self.sync_stage(Stage::Settling { last });
        self.flush_target(now, last, out);
    }

    /// The target has what the copies left out: all that is left is to make it durable there.
    fn flush_target(&mut self, now: Now, last: Seq, out: &mut Vec<ControlAction>) {
        let Some(sync) = &self.sync else { return };
        if self.seq.settled() < last {
            return;
        }
        let (node, job) = (sync.node, sync.job);
        let peers: Vec<PeerIndex> = self.peers_of(node).collect();
        self.sync_stage(Stage::Flushing { left: peers.len() });
        for peer in peers {
            self.ask_plain(now, peer, Opcode::Flush, Want::SyncFlush { job }, out);
        }
    }

    pub(super) fn target_flushed(&mut self, now: Now, done: bool, out: &mut Vec<ControlAction>) {
        let Some(sync) = &mut self.sync else { return };
        let Stage::Flushing { left } = sync.stage else {
            return; // of an earlier job
        };
        match (done, left) {
            (false, _) => self.sync_failed(now, out),
            (true, 0 | 1) => sync.stage = Stage::Finish,
            (true, _) => sync.stage = Stage::Flushing { left: left - 1 },
        }
    }

    /// The next part of what this job has filled that is still joining. `None`: done. Ranges that
    /// were not joining when it began were not filled by it.
    pub(super) fn promotable(&self) -> Option<ChunkRange> {
        let sync = self.sync.as_ref()?;
        let joining = self
            .map()
            .stored_ranges_of(sync.node, ReplicaState::Joining);
        let overlap = common(&joining, &sync.ranges).next()?;
        self.map().batches(overlap).into_iter().next()
    }

    /// The transaction that makes what this job has filled in-sync, or its next part. `None`: done.
    pub(super) fn promotion(&self) -> Option<Result<MapUpdate, TransitionError>> {
        let (range, sync) = (self.promotable()?, self.sync.as_ref()?);
        let (map, node) = (self.map(), sync.node);
        if sync.paced {
            // Hot chunks lie apart: one by one, each would cost a generation.
            let joining = map.stored_ranges_of(node, ReplicaState::Joining);
            let parts = common(&joining, &sync.ranges).take(PROMOTED_MAX);
            let changes: Vec<Change> = parts.map(|range| Change::Promote { range, node }).collect();
            match transition::apply(map, &changes) {
                Err(TransitionError::TooLarge(_)) => {}
                result => return Some(result),
            }
        }
        Some(transition::promote(map, range, node))
    }

    /// A new map: what is not joining any more is not filled by the job, should it be joining again later.
    pub(super) fn trim_sync(&mut self) {
        let (Some(sync), Some(map)) = (&mut self.sync, &self.map) else {
            return;
        };
        let joining = map.stored_ranges_of(sync.node, ReplicaState::Joining);
        sync.ranges = common(&joining, &sync.ranges).collect();
    }

    pub(super) fn is_sync_job(&self, job: u64) -> bool {
        self.sync.as_ref().is_some_and(|sync| sync.job == job)
    }

    pub(super) fn sync_committed(&mut self, now: Now, node: NodeId, out: &mut Vec<ControlAction>) {
        let whole = self.map().health(node).is_none();
        let filled = self.promotable().is_none();
        let Some(sync) = &mut self.sync else { return };
        match sync.stage {
            Stage::Begin => sync.stage = Stage::Installing,
            Stage::Finish if whole && filled => self.sync_over(now, out),
            _ => {}
        }
    }

    pub(super) fn sync_over(&mut self, now: Now, out: &mut Vec<ControlAction>) {
        let Some(sync) = self.sync.take() else { return };
        let seen = self.seen.entry(sync.node).or_default();
        seen.in_sync_at = Some(now);
        seen.intents.clear();
        self.forget_notes_about(sync.node);
        let text = format!(
            "node {} is in sync: {} chunks compared, {} sectors copied",
            self.name(sync.node),
            sync.chunks_total,
            sync.sectors_copied,
        );
        out.push(ControlAction::Note(text));
    }

    pub(super) fn sync_failed(&mut self, now: Now, out: &mut Vec<ControlAction>) {
        let Some(sync) = self.sync.take() else { return };
        let text = format!(
            "node {}: synchronisation stopped at {:?}, will be tried again",
            self.name(sync.node),
            sync.stage
        );
        self.note(text, out);
        let at = now.after(self.config.retry);
        self.sync_retry_at.insert(sync.node, at);
    }

    /// What is bad on a node is taken from another in-sync one, if there is one. `not_from`: it is bad
    /// there as well, or was.
    pub(super) fn repair_range(
        &mut self,
        now: Now,
        (chunk, range): (ChunkIndex, (SectorInChunk, u16)),
        bad: NodeId,
        not_from: Option<NodeId>,
        out: &mut Vec<ControlAction>,
    ) {
        if self.intents.contains(&chunk) {
            return; // its reconcile sees to that, or the next read finds it again
        }
        let sources = self.map().in_sync(chunk).filter(|node| *node != bad);
        let source = sources.min_by_key(|node| Some(*node) == not_from);
        // The guest's newer write may be under way: nothing older may take its place.
        let how = (PullMode::Repair, self.ceiling);
        let pull = source.and_then(|source| self.pull_from(source, chunk, how));
        if let (Some(peer), Some(pull)) = (self.peer_of(bad, chunk), pull) {
            self.repairs_out += 1;
            let want = Want::Repair {
                source: pull.source,
                chunk,
                range,
                again: not_from.is_some(),
            };
            self.ask_pull(now, peer, chunk, range, &pull, want, out);
        }
    }

    /// One sector at a time: the bad replica takes the good one's content.
    pub(super) fn drive_repairs(&mut self, now: Now, out: &mut Vec<ControlAction>) {
        while self.repairs_out < COPY_WINDOW {
            let Some((node, chunk, sector)) = self.repairs.pop_front() else {
                return;
            };
            self.repair_range(now, (chunk, (sector, 1)), node, None, out);
        }
    }
}

/// The parts that both have, in order.
fn common(one: &[ChunkRange], other: &[ChunkRange]) -> impl Iterator<Item = ChunkRange> {
    let parts = one.iter().flat_map(move |a| {
        other.iter().filter_map(move |b| {
            let start = a.start.max(b.start).0;
            let end = (a.start.0 + a.count).min(b.start.0 + b.count);
            (start < end).then(|| ChunkRange {
                start: ChunkIndex(start),
                count: end - start,
            })
        })
    });
    parts.collect::<Vec<_>>().into_iter()
}
