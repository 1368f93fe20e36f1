//! Walks the chunks of a volume: verify on all in-sync replicas, compare, repair, look again.
//!
//! Asks nodes under the volume's current token, so that a front that attaches meanwhile shuts this walk
//! out; nodes refuse it as they refuse an old front. A difference counts only if its writes had ended
//! everywhere before the replicas were asked (nodes tell what the front has told them), and only while
//! the map that made those replicas in-sync is still the volume's map. Repairs are conditional PULLs:
//! the node decides again when it applies them.

use super::clients::{Clients, Listed, Stamp, is_stale};
use super::compare::{Fault, Verdict, judge};
use super::rate::Rate;
use super::report::{Left, Report};
use crate::client::{ClientError, shards};
use crate::context::{Context, Names};
use crate::error::{Result, ToolError};
use crate::progress::Progress;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use ukai_meta::map::VolumeMap;
use ukai_meta::{NodeRecord, catalog};
use ukai_proto::limits::{SECTOR_BYTES, SEQ_MAX, SLOT_SECTORS};
use ukai_proto::message::{ChunkRange, SectorState, read_chunk_list};
use ukai_proto::{
    ChunkIndex, Flags, Generation, Header, NodeId, Opcode, SectorInChunk, Seq, Version,
};

/// Sectors looked at in one piece: a default chunk, 4 MiB read per node.
const WINDOW: u16 = 1024;
/// How often sectors that differ are looked at again while writes may be under way.
const ROUNDS_MAX: u32 = 20;
/// Between two looks at sectors that change.
const ROUND_PAUSE: Duration = Duration::from_millis(50);
/// Between two looks if nothing changed: a front tells nodes every two seconds what is settled.
const ROUND_PAUSE_QUIET: Duration = Duration::from_millis(500);
/// Repairs of one sector that are tried.
const REPAIRS_MAX: u32 = 3;
/// How often a chunk is begun anew because the configuration changed or a node did not answer. A lost
/// node is recorded stale within seconds; then it is no longer asked.
const TRIES_MAX: u32 = 20;
const TRY_PAUSE: Duration = Duration::from_millis(250);

/// Why a chunk was not finished.
enum Stop {
    /// The map is old.
    Stale,
    /// A node does not answer.
    Node(NodeId, ClientError),
    /// The metadata store.
    Meta(ToolError),
}

pub(super) struct Walk<'a> {
    pub(super) context: &'a Context,
    pub(super) names: Names,
    pub(super) map: VolumeMap,
    pub(super) range: ChunkRange,
    pub(super) clients: Clients,
    pub(super) rate: Rate,
    /// Writes up to here had ended on all in-sync replicas.
    pub(super) settled: Version,
    pub(super) report: Report,
    pub(super) started: Instant,
    /// Nodes given up.
    pub(super) lost: BTreeSet<NodeId>,
    pub(super) repaired_on: BTreeSet<NodeId>,
}

impl Walk<'_> {
    fn stamp(&self) -> Stamp {
        Stamp {
            volume: self.map.head.volume,
            token: self.map.head.token,
            generation: self.map.head.generation,
        }
    }

    fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Begins anew from the map of the moment.
    fn reload(&mut self) -> Result<()> {
        let map = catalog::load_volume(&*self.context.store, self.map.head.volume)?;
        // Attached: nodes tell, once what earlier fronts left halfway is reconciled. Detached: nobody writes.
        let base = match map.head.attach {
            None => Version::new(map.head.token, Seq(SEQ_MAX)),
            Some(_) => Version::ZERO,
        };
        let known = map.head.token == self.map.head.token && self.settled.seq.0 < SEQ_MAX;
        self.settled = if known { self.settled.max(base) } else { base };
        self.map = map;
        Ok(())
    }

    /// The whole walk.
    pub(super) async fn run(&mut self) -> Result<()> {
        self.reload()?;
        let chunks = self.allocated().await?;
        let progress = Progress::new(
            &format!("scrub {}", self.map.head.name),
            chunks.len() as u64,
        );
        for chunk in chunks {
            self.chunk(chunk).await?;
            progress.advance();
        }
        for node in std::mem::take(&mut self.repaired_on) {
            self.flush(node).await;
        }
        Ok(())
    }

    /// Chunks of the range that any in-sync replica has something of.
    async fn allocated(&mut self) -> Result<BTreeSet<ChunkIndex>> {
        let mut out = BTreeSet::new();
        for node in self.nodes_in_range() {
            let mut tries = 0;
            while self.is_source(node) && !self.lost.contains(&node) {
                match self.allocated_on(node, &mut out).await {
                    Ok(()) => break,
                    Err(stop) => self.recover(stop, &mut tries).await?,
                }
            }
        }
        Ok(out)
    }

    fn nodes_in_range(&self) -> Vec<NodeId> {
        let mut nodes = self.map.nodes();
        nodes.retain(|node| self.is_source(*node));
        nodes
    }

    fn is_source(&self, node: NodeId) -> bool {
        self.map
            .runs_in(self.range)
            .any(|(run, _)| self.map.is_in_sync(run.start, node))
    }

    async fn allocated_on(
        &mut self,
        node: NodeId,
        out: &mut BTreeSet<ChunkIndex>,
    ) -> std::result::Result<(), Stop> {
        let record = self.record(node)?;
        let end = self.range.start.0 + self.range.count;
        for shard in shards(&record) {
            let mut start = self.range.start;
            loop {
                let header = Header {
                    generation: Generation(0),
                    chunk: start,
                    ..self.stamp().header(Opcode::WrittenSince)
                };
                let asked = self.clients.ask(&record, shard, header, Vec::new()).await;
                let reply = asked.map_err(|error| stop_of(node, error))?;
                let chunks = read_chunk_list(&reply.aux)
                    .map_err(|error| Stop::Node(node, ClientError::Message(error)))?;
                let last = chunks.last().copied();
                out.extend(chunks.into_iter().filter(|chunk| chunk.0 < end));
                match last {
                    Some(last)
                        if reply.header.flags.has(Flags::MORE) && last.0 < end && last >= start =>
                    {
                        start = ChunkIndex(last.0 + 1);
                    }
                    _ => break,
                }
            }
        }
        Ok(())
    }

    fn record(&self, node: NodeId) -> std::result::Result<NodeRecord, Stop> {
        match self.names.state(node) {
            Some(state) => Ok(state.record.clone()),
            None => Err(Stop::Node(
                node,
                ClientError::Connect("its record is gone from the metadata store".into()),
            )),
        }
    }

    /// After a stop: wait, read the map and the nodes again, or give a node up.
    async fn recover(&mut self, stop: Stop, tries: &mut u32) -> Result<()> {
        *tries += 1;
        match stop {
            Stop::Meta(error) => return Err(error),
            Stop::Stale if *tries > TRIES_MAX => {
                return Err(ToolError::refused(format!(
                    "the configuration of volume {} keeps changing",
                    self.map.head.name
                ))
                .next("try again later; what was repaired stays repaired"));
            }
            Stop::Node(node, error) if *tries > TRIES_MAX => {
                self.report_for(node).problem = Some(match error {
                    ClientError::Refused(status) => format!("refuses: {status}"),
                    error => format!("does not answer: {error}"),
                });
                self.lost.insert(node);
            }
            Stop::Node(node, _) => self.clients.forget(node),
            Stop::Stale => {}
        }
        tokio::time::sleep(TRY_PAUSE).await;
        self.names = self.context.names()?;
        self.reload()
    }

    /// A node's part of the report, made when the node is first met.
    fn report_for(&mut self, node: NodeId) -> &mut super::report::NodeReport {
        if !self.report.nodes.iter().any(|known| known.id == node) {
            self.report.nodes.push(super::report::NodeReport {
                id: node,
                node: self.names.name(node),
                site: self.names.site(node),
                chunks: 0,
                sectors: 0,
                bytes_read: 0,
                bad: super::report::Count::default(),
                different: super::report::Count::default(),
                problem: None,
            });
        }
        self.report.node(node)
    }

    async fn chunk(&mut self, chunk: ChunkIndex) -> Result<()> {
        let mut tries = 0;
        let mut from = 0;
        let sectors = u16::try_from(self.map.chunk_sectors()).unwrap_or(u16::MAX);
        while from < sectors {
            let mut nodes: Vec<NodeId> = self.map.in_sync(chunk).collect();
            nodes.retain(|node| !self.lost.contains(node));
            if nodes.is_empty() {
                return Ok(());
            }
            let count = WINDOW.min(sectors - from);
            match self.window(chunk, (from, count), &nodes).await {
                Ok(()) => {
                    if from == 0 {
                        self.report.chunks += 1;
                        for node in nodes {
                            self.report_for(node).chunks += 1;
                        }
                    }
                    from += count;
                    tries = 0;
                }
                Err(stop) => self.recover(stop, &mut tries).await?,
            }
        }
        Ok(())
    }

    async fn window(
        &mut self,
        chunk: ChunkIndex,
        (first, count): (u16, u16),
        nodes: &[NodeId],
    ) -> std::result::Result<(), Stop> {
        let records: Vec<NodeRecord> = nodes
            .iter()
            .map(|node| self.record(*node))
            .collect::<std::result::Result<_, _>>()?;
        let pause = self.rate.wait(self.elapsed());
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        let (began, settled) = (self.elapsed(), self.settled);
        let told = self.list(&records, chunk, (first, count), true).await?;
        let mut most = 0;
        for (node, states) in nodes.iter().zip(&told) {
            let read = bytes_read(first, states);
            most = most.max(read);
            let report = self.report_for(*node);
            report.bytes_read += read;
            report.sectors += states.len() as u64;
        }
        self.rate.spend(began, most);
        self.report.sectors += u64::from(count);
        let mut open: BTreeMap<u16, Verdict> = verdicts(first, &told, settled);
        if open.is_empty() {
            return Ok(());
        }
        let mut found: BTreeSet<(u16, usize, Fault)> = BTreeSet::new();
        let mut why: BTreeMap<u16, String> = BTreeMap::new();
        let mut repairs: BTreeMap<u16, u32> = BTreeMap::new();
        // What was open at the look before.
        let mut last: Option<BTreeMap<u16, Verdict>> = None;
        for _ in 0..ROUNDS_MAX {
            // What differs counts only if these replicas are in-sync still: one that was lost is
            // recorded so before anything is settled without it.
            self.check_map()?;
            let mut waits = false;
            for (sector, verdict) in &open {
                match verdict {
                    Verdict::Equal => {}
                    Verdict::Unsettled => waits = true,
                    Verdict::Hopeless { faults, why: text } => {
                        found.extend(faults.iter().map(|(at, fault)| (*sector, *at, *fault)));
                        why.insert(*sector, (*text).into());
                    }
                    Verdict::Repair { targets, .. } => {
                        found.extend(targets.iter().map(|(at, fault)| (*sector, *at, *fault)));
                    }
                }
            }
            if self.report.repair {
                let due = |sector: &u16| repairs.get(sector).is_none_or(|n| *n < REPAIRS_MAX);
                let plan = plan(&open, due);
                for ((source, target), sector, run) in plan {
                    (sector..sector + run).for_each(|s| *repairs.entry(s).or_default() += 1);
                    let pair = (&records[source], &records[target]);
                    let stamp = self.stamp();
                    let at = (SectorInChunk(sector), run);
                    match self.clients.repair(pair, &stamp, chunk, at).await {
                        Ok(_) => {
                            self.repaired_on.insert(nodes[target]);
                        }
                        Err(error) if is_stale(&error) => return Err(Stop::Stale),
                        Err(ClientError::Refused(status)) => {
                            let text = format!("the repair was refused: {status}");
                            (sector..sector + run).for_each(|s| drop(why.insert(s, text.clone())));
                        }
                        Err(error) => return Err(Stop::Node(nodes[target], error)),
                    }
                    waits = true;
                }
            }
            if !waits {
                break;
            }
            match &last {
                None => {}
                Some(before) if *before == open => tokio::time::sleep(ROUND_PAUSE_QUIET).await,
                Some(_) => tokio::time::sleep(ROUND_PAUSE).await,
            }
            last = Some(open.clone());
            let (Some((low, _)), Some((high, _))) = (open.first_key_value(), open.last_key_value())
            else {
                break;
            };
            let (low, span) = (*low, high - low + 1);
            let settled = self.settled;
            let told = self.list(&records, chunk, (low, span), false).await?;
            let again = verdicts(low, &told, settled);
            // Others of the span may differ by now: they were equal when it was their turn.
            open = open
                .into_keys()
                .filter_map(|sector| again.get(&sector).map(|v| (sector, v.clone())))
                .collect();
            if open.is_empty() {
                break;
            }
        }
        self.report.unsettled += open
            .values()
            .filter(|verdict| **verdict == Verdict::Unsettled)
            .count() as u64;
        for (sector, at, fault) in found {
            // Without repairs it is as it was; with them, what is not open any more is good.
            let repaired = self.report.repair && !open.contains_key(&sector);
            self.report_for(nodes[at]);
            self.report.fault(nodes[at], fault, repaired);
            if !repaired {
                let text = why.get(&sector).cloned();
                let text = text.unwrap_or_else(|| match fault {
                    Fault::Bad => "bad".into(),
                    Fault::Behind => "differs".into(),
                });
                let byte = u64::from(chunk.0) * self.map.head.chunk_bytes
                    + u64::from(sector) * SECTOR_BYTES as u64;
                let node = self.names.name(nodes[at]);
                self.report.leave(Left {
                    chunk: chunk.0,
                    sector,
                    byte,
                    node,
                    why: text,
                });
            }
        }
        Ok(())
    }

    async fn list(
        &mut self,
        records: &[NodeRecord],
        chunk: ChunkIndex,
        (first, count): (u16, u16),
        verify: bool,
    ) -> std::result::Result<Vec<Vec<SectorState>>, Stop> {
        let stamp = self.stamp();
        let nodes: Vec<&NodeRecord> = records.iter().collect();
        let at = (SectorInChunk(first), count);
        let told = self.clients.list(&nodes, &stamp, chunk, at, verify).await;
        let told: Vec<Listed> = told.map_err(|(node, error)| stop_of(node, error))?;
        let settled = told.iter().map(|(_, settled)| *settled).max();
        self.settled = self.settled.max(settled.unwrap_or(Version::ZERO));
        Ok(told.into_iter().map(|(states, _)| states).collect())
    }

    fn check_map(&self) -> std::result::Result<(), Stop> {
        let head = catalog::load_head(&*self.context.store, self.map.head.volume)
            .map_err(|error| Stop::Meta(error.into()))?;
        let own = &self.map.head;
        let same = (head.token, head.generation) == (own.token, own.generation);
        if same { Ok(()) } else { Err(Stop::Stale) }
    }

    /// What was repaired is durable. Not reached: it is as safe as a guest's write without a flush.
    async fn flush(&mut self, node: NodeId) {
        let Ok(record) = self.record(node) else {
            return;
        };
        for shard in shards(&record) {
            let header = self.stamp().header(Opcode::Flush);
            let asked = self.clients.ask(&record, shard, header, Vec::new()).await;
            if let Err(error) = asked {
                let name = self.names.name(node);
                crate::table::warn(&format!("flush of node {name} after repairs: {error}"));
            }
        }
    }
}

fn stop_of(node: NodeId, error: ClientError) -> Stop {
    if is_stale(&error) {
        Stop::Stale
    } else {
        Stop::Node(node, error)
    }
}

/// What a node reads to verify these states: whole slots of which anything is written, as far as they
/// were asked for.
fn bytes_read(first: u16, states: &[SectorState]) -> u64 {
    let mut sectors = 0;
    let mut at = usize::from(first);
    let mut rest = states;
    while !rest.is_empty() {
        let len = rest.len().min(SLOT_SECTORS - at % SLOT_SECTORS);
        let (part, tail) = rest.split_at(len);
        if part
            .iter()
            .any(|state| state.flags & SectorState::ZERO == 0)
        {
            sectors += len as u64;
        }
        at += len;
        rest = tail;
    }
    sectors * SECTOR_BYTES as u64
}

/// All verdicts but Equal, by sector.
fn verdicts(first: u16, told: &[Vec<SectorState>], settled: Version) -> BTreeMap<u16, Verdict> {
    let count = told.first().map_or(0, Vec::len);
    (first..)
        .zip(0..count)
        .filter_map(|(sector, at)| {
            let states: Vec<SectorState> = told.iter().map(|states| states[at]).collect();
            match judge(&states, settled) {
                Verdict::Equal => None,
                verdict => Some((sector, verdict)),
            }
        })
        .collect()
}

/// Repairs that are due, as runs of sectors: (source, target), first sector, count.
fn plan(
    open: &BTreeMap<u16, Verdict>,
    due: impl Fn(&u16) -> bool,
) -> Vec<((usize, usize), u16, u16)> {
    let mut runs: BTreeMap<(usize, usize), Vec<(u16, u16)>> = BTreeMap::new();
    for (sector, verdict) in open.iter().filter(|(sector, _)| due(sector)) {
        let Verdict::Repair { source, targets } = verdict else {
            continue;
        };
        for (target, _) in targets {
            let runs = runs.entry((*source, *target)).or_default();
            match runs.last_mut() {
                Some((first, count)) if *first + *count == *sector => *count += 1,
                _ => runs.push((*sector, 1)),
            }
        }
    }
    let flat = runs
        .into_iter()
        .flat_map(|(pair, runs)| runs.into_iter().map(move |(at, count)| (pair, at, count)));
    flat.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ukai_proto::Token;

    fn written() -> SectorState {
        SectorState {
            version: Version::new(Token(1), Seq(1)),
            crc: 1,
            flags: 0,
        }
    }

    #[test]
    fn only_slots_with_data_count_as_read() {
        let mut states = vec![SectorState::UNWRITTEN; 1024];
        assert_eq!(bytes_read(0, &states), 0);
        states[300] = written();
        assert_eq!(bytes_read(0, &states), 1 << 20);
        states[700] = written();
        assert_eq!(bytes_read(0, &states), 2 << 20);
        assert_eq!(bytes_read(0, &[written(); 3]), 3 * 4096);
        assert_eq!(bytes_read(255, &[written(), SectorState::UNWRITTEN]), 4096);
    }

    #[test]
    fn repairs_are_ordered_in_runs() {
        let repair = |source, target| Verdict::Repair {
            source,
            targets: vec![(target, Fault::Bad)],
        };
        let open = BTreeMap::from([
            (3, repair(0, 1)),
            (4, repair(0, 1)),
            (5, repair(1, 0)),
            (6, Verdict::Unsettled),
            (7, repair(0, 1)),
            (9, repair(0, 1)),
        ]);
        assert_eq!(
            plan(&open, |sector| *sector != 9),
            [((0, 1), 3, 2), ((0, 1), 7, 1), ((1, 0), 5, 1)]
        );
    }
}
