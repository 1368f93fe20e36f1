//! Collects events into one history per sector, and checks them.

use crate::epoch::{Flushes, check_sector};
use crate::event::{Event, Kind, SectorValue};
use crate::violation::{Report, Violation, ViolationKind};
use crate::zone::{Access, NEVER, OP_INITIAL, OP_REPLICA};
use std::collections::{BTreeMap, HashMap, HashSet};

/// What a power cut may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Mode {
    /// Nothing acknowledged.
    #[default]
    Strict,
    /// What no completed FLUSH or FUA covered.
    Flush,
}

/// Events that make no history. The recorder is wrong, not the disk.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HistoryError {
    /// Time went back.
    #[error("time {t} after time {last}")]
    Time {
        /// Of the event.
        t: u64,
        /// Before it.
        last: u64,
    },
    /// Beyond what the doubled clock holds.
    #[error("number {0} is too large")]
    TooLarge(u64),
    /// An operation that is not open.
    #[error("operation {0} is not open")]
    NotOpen(u64),
    /// Invoked twice.
    #[error("operation {0} is invoked while it is open")]
    AlreadyOpen(u64),
    /// Two writes of one value, or value 0.
    #[error("write id {0} is 0 or was used before")]
    WriteId(u64),
    /// A read's values do not fit its range.
    #[error("operation {op} read {actual} values for {requested} sectors")]
    ValueCount {
        /// The operation.
        op: u64,
        /// Sectors asked for.
        requested: u32,
        /// Values given.
        actual: usize,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verb {
    Read,
    Write,
    Flush,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    verb: Verb,
    volume: u32,
    sector: u64,
    count: u32,
    value: u64,
    token: u32,
    fua: bool,
    start: u64,
    fenced: u64,
}

type SectorKey = (u32, u64);

/// A history being collected.
#[derive(Debug, Default)]
pub struct History {
    mode: Mode,
    last: u64,
    volumes: Vec<String>,
    nodes: Vec<String>,
    open: BTreeMap<u64, Open>,
    write_ids: HashSet<u64>,
    sectors: BTreeMap<SectorKey, Vec<Access>>,
    flushes: HashMap<u32, Vec<(u64, u64)>>,
    cuts: Vec<u64>,
    /// Replica contents seen since the last write began.
    replicas: HashMap<SectorKey, (usize, u64)>,
    report: Report,
}

impl History {
    /// Nothing happened yet.
    #[must_use]
    pub fn new(mode: Mode) -> Self {
        Self {
            mode,
            ..Self::default()
        }
    }

    /// Add the next event.
    pub fn push(&mut self, event: Event) -> Result<(), HistoryError> {
        let t = event.time();
        if t < self.last {
            return Err(HistoryError::Time { t, last: self.last });
        }
        if t >= 1 << 62 {
            return Err(HistoryError::TooLarge(t));
        }
        self.last = t;
        let (start, end) = (2 * t + 2, 2 * t + 3);
        match event {
            Event::Invoke { op, kind, .. } => self.invoke(op, start, kind),
            Event::Ok { op, values, .. } => self.complete(op, end, values),
            Event::Fail { op, .. } => {
                let open = self.open.remove(&op).ok_or(HistoryError::NotOpen(op))?;
                self.record_write(op, &open, open.fenced.min(end), false);
                Ok(())
            }
            Event::Reissue { op, token, .. } => {
                let open = self.open.get_mut(&op).ok_or(HistoryError::NotOpen(op))?;
                open.token = open.token.max(token);
                Ok(())
            }
            Event::Fenced { volume, token, .. } => {
                let volume = index_of(&mut self.volumes, &volume);
                for open in self.open.values_mut() {
                    if open.volume == volume && open.token < token {
                        open.fenced = open.fenced.min(end);
                    }
                }
                Ok(())
            }
            Event::PowerCut { .. } => {
                if self.mode == Mode::Flush && self.cuts.last() != Some(&start) {
                    self.cuts.push(start);
                }
                Ok(())
            }
            Event::Replica {
                volume,
                node,
                sector,
                values,
                ..
            } => {
                let volume = index_of(&mut self.volumes, &volume);
                let node = index_of(&mut self.nodes, &node) as usize;
                for (sector, value) in (sector..).zip(values) {
                    self.replica(node, (volume, sector), value, start, end);
                }
                Ok(())
            }
        }
    }

    fn invoke(&mut self, op: u64, start: u64, kind: Kind) -> Result<(), HistoryError> {
        if op >= OP_REPLICA {
            return Err(HistoryError::TooLarge(op));
        }
        if self.open.contains_key(&op) {
            return Err(HistoryError::AlreadyOpen(op));
        }
        let (verb, volume, sector, count, value, token, fua) = match kind {
            Kind::Read {
                volume,
                sector,
                count,
            } => (Verb::Read, volume, sector, count, 0, 0, false),
            Kind::Write {
                volume,
                sector,
                count,
                write,
                token,
                fua,
            } => {
                if write == 0 || write == NEVER || !self.write_ids.insert(write) {
                    return Err(HistoryError::WriteId(write));
                }
                (Verb::Write, volume, sector, count, write, token, fua)
            }
            Kind::Zero {
                volume,
                sector,
                count,
                token,
                fua,
            } => (Verb::Write, volume, sector, count, 0, token, fua),
            Kind::Flush { volume } => (Verb::Flush, volume, 0, 0, 0, 0, false),
        };
        if sector.checked_add(count.into()).is_none() {
            return Err(HistoryError::TooLarge(sector));
        }
        if verb == Verb::Write {
            self.replicas.clear();
        }
        let volume = index_of(&mut self.volumes, &volume);
        let open = Open {
            verb,
            volume,
            sector,
            count,
            value,
            token,
            fua,
            start,
            fenced: NEVER,
        };
        self.open.insert(op, open);
        Ok(())
    }

    fn complete(
        &mut self,
        op: u64,
        end: u64,
        values: Vec<SectorValue>,
    ) -> Result<(), HistoryError> {
        let open = self.open.remove(&op).ok_or(HistoryError::NotOpen(op))?;
        match open.verb {
            Verb::Flush => self
                .flushes
                .entry(open.volume)
                .or_default()
                .push((open.start, end)),
            // Acknowledged late by a front that was fenced: it took effect before the fence.
            Verb::Write => self.record_write(op, &open, open.fenced.min(end), true),
            Verb::Read => {
                if values.len() != open.count as usize {
                    let (requested, actual) = (open.count, values.len());
                    return Err(HistoryError::ValueCount {
                        op,
                        requested,
                        actual,
                    });
                }
                for (sector, value) in (open.sector..).zip(values) {
                    self.record_read(op, (open.volume, sector), value, open.start, end);
                }
            }
        }
        Ok(())
    }

    fn record_write(&mut self, op: u64, open: &Open, end: u64, acked: bool) {
        if open.verb != Verb::Write {
            return;
        }
        let access = Access {
            op,
            value: open.value,
            start: open.start,
            end,
            is_write: true,
            acked,
            fua: open.fua,
        };
        self.report.writes += u64::from(open.count);
        for sector in open.sector..open.sector + u64::from(open.count) {
            self.sectors
                .entry((open.volume, sector))
                .or_default()
                .push(access);
        }
    }

    fn record_read(&mut self, op: u64, key: SectorKey, value: SectorValue, start: u64, end: u64) {
        self.report.reads += 1;
        match value {
            SectorValue::Write(value) => self.sectors.entry(key).or_default().push(Access {
                op,
                value,
                start,
                end,
                is_write: false,
                acked: true,
                fua: false,
            }),
            SectorValue::Torn { torn } => {
                let reader = self.reader(op);
                self.violate(
                    key,
                    ViolationKind::TornSector,
                    vec![],
                    vec![op],
                    format!("{reader} found {torn}"),
                );
            }
        }
    }

    fn replica(&mut self, node: usize, key: SectorKey, value: SectorValue, start: u64, end: u64) {
        let op = OP_REPLICA + node as u64;
        if let SectorValue::Write(value) = value {
            let (first_node, first) = *self.replicas.entry(key).or_insert((node, value));
            if first != value {
                let text = format!(
                    "replicas differ: {} holds {}, {} holds {}",
                    self.nodes[first_node],
                    crate::zone::name(first),
                    self.nodes[node],
                    crate::zone::name(value)
                );
                self.violate(
                    key,
                    ViolationKind::ReplicasDiffer,
                    vec![first, value],
                    vec![],
                    text,
                );
                return;
            }
        }
        self.record_read(op, key, value, start, end);
    }

    fn reader(&self, op: u64) -> String {
        match op.checked_sub(OP_REPLICA) {
            Some(node) => format!(
                "a direct read of the replica on {}",
                self.nodes[usize::try_from(node).unwrap_or(usize::MAX)]
            ),
            None => format!("op {op}"),
        }
    }

    fn violate(
        &mut self,
        key: SectorKey,
        kind: ViolationKind,
        writes: Vec<u64>,
        ops: Vec<u64>,
        text: String,
    ) {
        let volume = self.volumes[key.0 as usize].clone();
        self.report.add(Violation {
            kind,
            volume,
            sector: key.1,
            writes,
            ops,
            explanation: text,
        });
    }

    /// The verdict. Operations still open are unacknowledged writes without end, or reads that say
    /// nothing.
    #[must_use]
    pub fn check(mut self) -> Report {
        for (op, open) in std::mem::take(&mut self.open) {
            self.record_write(op, &open, open.fenced, false);
        }
        let flushes: HashMap<u32, Flushes> = self
            .flushes
            .drain()
            .map(|(volume, intervals)| (volume, Flushes::new(intervals)))
            .collect();
        let none = Flushes::default();
        for (key, accesses) in std::mem::take(&mut self.sectors) {
            self.report.sectors += 1;
            match check_sector(&accesses, &self.cuts, flushes.get(&key.0).unwrap_or(&none)) {
                Ok(undecided) => self.report.undecided += undecided,
                Err(fault) => {
                    let mut ops: Vec<u64> = fault.accesses.iter().map(|access| access.op).collect();
                    ops.retain(|op| *op != OP_INITIAL);
                    ops.sort_unstable();
                    ops.dedup();
                    let nodes: Vec<String> = ops
                        .iter()
                        .filter(|op| **op >= OP_REPLICA)
                        .map(|op| self.reader(*op))
                        .collect();
                    ops.retain(|op| *op < OP_REPLICA);
                    let mut text = fault.text;
                    if !nodes.is_empty() {
                        text = format!("{text} ({})", nodes.join(", "));
                    }
                    self.violate(key, fault.kind, fault.writes, ops, text);
                }
            }
        }
        self.report
    }
}

fn index_of(names: &mut Vec<String>, name: &str) -> u32 {
    let index = names
        .iter()
        .position(|known| known == name)
        .unwrap_or_else(|| {
            names.push(name.to_owned());
            names.len() - 1
        });
    // A history of four billion volumes would not fit in memory long before.
    u32::try_from(index).unwrap_or(u32::MAX)
}
