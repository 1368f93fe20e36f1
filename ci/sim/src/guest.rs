//! Guests: what they ask, what they see, and the history of it.

use crate::Failure;
use crate::fault::FaultKind;
use crate::front::lane_id;
use crate::swarm::Swarm;
use crate::tally::Mark;
use crate::verify::Phase;
use crate::world::{Event, FrontIndex, VOLUME, World};
use rand::RngExt;
use std::collections::{BTreeMap, BTreeSet};
use ublk_front::core::api::{GuestError, GuestIo, GuestOp, GuestTag, LaneId};
use ukai_checker::{Content, Event as Line, History, Kind, Mode, SectorValue, Stamp};
use ukai_meta::ReplicaState;
use ukai_proto::limits::SECTOR_BYTES;

const NAME: &str = "v";

/// A guest request under way.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) op: u64,
    /// When the guest asked.
    pub(crate) since: u64,
    pub(crate) io: GuestIo,
    pub(crate) data: Vec<u8>,
    /// Canary: pieces sent, by wire tag, and whether any replica has them.
    pub(crate) pieces: BTreeMap<u64, (u16, bool)>,
    /// Canary: the guest has its answer already.
    pub(crate) answered: bool,
}

/// The guest side of a run.
pub(crate) struct Guest {
    pub(crate) history: History,
    /// Numbers the events of the history: their true order.
    t: u64,
    next_op: u64,
    next_write: u64,
    pub(crate) requests_left: u64,
    pub(crate) completed: u64,
    pub(crate) acked_writes: u64,
    /// Requests of a guest whose front died, for the next one on that host.
    orphans: Vec<(usize, Slot)>,
    /// Where the guest works.
    pub(crate) ranges: Vec<(u64, u32)>,
    /// Slots that were given back to make room at the end, and the one that is to be next.
    pub(crate) given_back: BTreeSet<u64>,
    pub(crate) gives_back: Option<u64>,
    /// Reads of the last phase.
    pub(crate) final_reads: Vec<(u64, u32)>,
}

impl Guest {
    pub(crate) fn new(swarm: &Swarm) -> Self {
        let mode = if swarm.has(FaultKind::Blackout) {
            Mode::Flush
        } else {
            Mode::Strict
        };
        Self {
            history: History::new(mode),
            t: 0,
            next_op: 1,
            next_write: 1,
            requests_left: swarm.requests,
            completed: 0,
            acked_writes: 0,
            orphans: Vec::new(),
            ranges: Vec::new(),
            given_back: BTreeSet::new(),
            gives_back: None,
            final_reads: Vec::new(),
        }
    }

    pub(crate) fn record(&mut self, line: impl FnOnce(u64) -> Line) {
        self.t += 1;
        let pushed = self.history.push(line(self.t));
        assert!(
            pushed.is_ok(),
            "the recorder makes a proper history: {pushed:?}"
        );
    }
}

/// Contents of sectors read, as values.
pub(crate) fn values(sector: u64, data: &[u8]) -> Vec<SectorValue> {
    data.chunks_exact(SECTOR_BYTES)
        .zip(sector..)
        .map(|(bytes, sector)| Content::read(bytes).value(VOLUME.0, sector))
        .collect()
}

impl World {
    pub(crate) fn choose_hot_sectors(&mut self) {
        let total = self.swarm.sectors();
        for _ in 0..self.swarm.hot_ranges {
            let count = self.rng.random_range(1..=40u32);
            let start = match self.rng.random_range(0..3u32) {
                // Across a slot or chunk boundary, at the very end, anywhere.
                0 => (self.rng.random_range(1..total / 256) * 256)
                    .saturating_sub(u64::from(count) / 2),
                1 => total - u64::from(count),
                _ => self.rng.random_range(0..total - u64::from(count)),
            };
            self.guest.ranges.push((start, count));
        }
    }

    /// A front serves: its guest goes on where it was, or a new guest starts.
    pub(crate) fn guest_moves_in(&mut self, front: FrontIndex) {
        let now = self.queue.now();
        let token = self.fronts[front].token;
        let orphans = std::mem::take(&mut self.guest.orphans);
        if !orphans.is_empty() {
            self.mark(Mark::Reissued);
        }
        for (_, slot) in &orphans {
            let op = slot.op;
            self.guest.record(|t| Line::Reissue { t, op, token });
        }
        self.guest.record(|t| Line::Fenced {
            t,
            volume: NAME.into(),
            token,
        });
        for (lane, mut slot) in orphans {
            let io = slot.io;
            slot.pieces.clear();
            self.fronts[front].slots[lane][io.tag.0 as usize] = Some(slot);
            self.start_guest_io(front, lane, io);
        }
        for lane in 0..self.swarm.lanes as usize {
            for tag in 0..self.swarm.depth as usize {
                if self.fronts[front].slots[lane][tag].is_none() {
                    let at = now + self.up_to(self.swarm.think_ns);
                    let (lane, tag) = (lane_id(lane), Self::guest_tag(tag));
                    self.queue.push(at, Event::GuestNext { front, lane, tag });
                }
            }
        }
    }

    /// The front of a guest died. The guest waits for the next one, or is dead too.
    pub(crate) fn guest_left_alone(&mut self, front: FrontIndex, waits: bool) {
        for lane in 0..self.fronts[front].slots.len() {
            for tag in 0..self.fronts[front].slots[lane].len() {
                if let Some(slot) = self.fronts[front].slots[lane][tag].take()
                    && waits
                    && !slot.answered
                {
                    self.guest.orphans.push((lane, slot));
                }
            }
        }
    }

    pub(crate) fn has_orphans(&self) -> bool {
        !self.guest.orphans.is_empty()
    }

    pub(crate) fn forget_orphans(&mut self) {
        self.guest.orphans.clear();
    }

    pub(crate) fn guest_next(&mut self, front: FrontIndex, lane: LaneId, tag: GuestTag) {
        let busy =
            |world: &Self| world.fronts[front].slots[lane.0 as usize][tag.0 as usize].is_some();
        if !self.fronts[front].serves() || self.fronts[front].leaving || busy(self) {
            return;
        }
        let io = match self.phase {
            Phase::Safety if self.guest.requests_left > 0 => {
                let Some(io) = self.choose_free_request(front, tag) else {
                    let at = self.queue.now() + 1 + self.up_to(self.swarm.think_ns);
                    self.queue.push(at, Event::GuestNext { front, lane, tag });
                    return;
                };
                self.guest.requests_left -= 1;
                io
            }
            Phase::Settling { .. } => match self.discard_to_make_room(front, tag) {
                Some(io) => io,
                None => return,
            },
            Phase::FinalReads => match self.guest.final_reads.pop() {
                Some((sector, count)) => GuestIo {
                    tag,
                    op: GuestOp::Read,
                    sector,
                    count,
                },
                None => return,
            },
            _ => return,
        };
        self.invoke(front, lane.0 as usize, io);
    }

    /// A request that does not touch what is in flight in a way that the guest must avoid.
    fn choose_free_request(&mut self, front: FrontIndex, tag: GuestTag) -> Option<GuestIo> {
        for _ in 0..8 {
            let io = self.choose_request(tag);
            if !self.collides(front, &io) {
                return Some(io);
            }
        }
        None
    }

    /// A guest whose requests are issued again after its front died must not overwrite what is still
    /// being written: the older write would be done again after the newer one.
    pub(crate) fn collides(&self, front: FrontIndex, io: &GuestIo) -> bool {
        let writes = |op: GuestOp| matches!(op, GuestOp::Write { .. } | GuestOp::Zero { .. });
        let end = |io: &GuestIo| io.sector + u64::from(io.count);
        let mut running = self.fronts[front].slots.iter().flatten().flatten();
        running.any(|slot| {
            let overlap = slot.io.sector < end(io) && io.sector < end(&slot.io);
            overlap && self.swarm.reissue && writes(slot.io.op) && writes(io.op)
        })
    }

    fn choose_request(&mut self, tag: GuestTag) -> GuestIo {
        let index = self.rng.random_range(0..self.guest.ranges.len());
        let (start, len) = self.guest.ranges[index];
        let first = self.rng.random_range(0..len);
        let count = if self.in_256(128) {
            1
        } else {
            self.rng.random_range(1..=len - first)
        };
        let sector = start + u64::from(first);
        let fua = self.rng.random_range(0..100u32) < self.swarm.fua_percent;
        let roll = self.rng.random_range(0..100u32);
        let (reads, flushes, zeroes) = (
            self.swarm.read_percent,
            self.swarm.flush_percent,
            self.swarm.zero_percent,
        );
        if roll < reads {
            GuestIo {
                tag,
                op: GuestOp::Read,
                sector,
                count,
            }
        } else if roll < reads + flushes {
            GuestIo {
                tag,
                op: GuestOp::Flush,
                sector: 0,
                count: 0,
            }
        } else if roll < reads + flushes + zeroes {
            let unmap = self.in_256(128);
            if unmap && self.in_256(40) {
                // A whole slot, so that it is freed.
                let slot = self.rng.random_range(0..self.swarm.sectors() / 256);
                return GuestIo {
                    tag,
                    op: GuestOp::Zero { unmap, fua },
                    sector: slot * 256,
                    count: 256,
                };
            }
            GuestIo {
                tag,
                op: GuestOp::Zero { unmap, fua },
                sector,
                count,
            }
        } else {
            GuestIo {
                tag,
                op: GuestOp::Write { fua },
                sector,
                count,
            }
        }
    }

    fn invoke(&mut self, front: FrontIndex, lane: usize, io: GuestIo) {
        let token = self.fronts[front].token;
        let through = self.swarm.through;
        let (volume, sector, count) = (NAME.to_owned(), io.sector, io.count);
        let op = self.guest.next_op;
        self.guest.next_op += 1;
        let mut data = vec![0xee; count as usize * SECTOR_BYTES];
        let kind = match io.op {
            GuestOp::Read => Kind::Read {
                volume,
                sector,
                count,
            },
            GuestOp::Flush => Kind::Flush { volume },
            GuestOp::Zero { fua, .. } => Kind::Zero {
                volume,
                sector,
                count,
                token,
                fua: fua || through,
            },
            GuestOp::Write { fua } => {
                let write = self.guest.next_write;
                self.guest.next_write += 1;
                for (bytes, sector) in data.chunks_exact_mut(SECTOR_BYTES).zip(sector..) {
                    Stamp {
                        volume: VOLUME.0,
                        sector,
                        write_id: write,
                    }
                    .write_to(bytes);
                }
                Kind::Write {
                    volume,
                    sector,
                    count,
                    write,
                    token,
                    fua: fua || through,
                }
            }
        };
        self.say(|| format!("f{front}: op {op} starts: {kind:?}"));
        self.guest.record(|t| Line::Invoke { t, op, kind });
        self.trace.mix(op);
        let since = self.queue.now();
        let slot = Slot {
            op,
            since,
            io,
            data,
            pieces: BTreeMap::new(),
            answered: false,
        };
        self.fronts[front].slots[lane][io.tag.0 as usize] = Some(slot);
        self.start_guest_io(front, lane, io);
    }

    pub(crate) fn guest_answered(
        &mut self,
        front: FrontIndex,
        lane: usize,
        tag: GuestTag,
        result: Result<(), GuestError>,
    ) {
        let slot = self.fronts[front].slots[lane][tag.0 as usize].take();
        let slot = slot.unwrap_or_else(|| panic!("tag {} was completed but not in flight", tag.0));
        self.trace.mix(slot.op << 1 | u64::from(result.is_ok()));
        self.say(|| format!("f{front}: op {} ends: {result:?}", slot.op));
        if !slot.answered {
            self.answer(&slot, result);
        }
        if result == Err(GuestError::Io) && self.is_excused(&slot.io) {
            self.give_up("the guest asked for a sector whose last good copy is gone");
        } else if self.is_for_want_of_room(&slot, result) {
            self.mark(Mark::GuestNoSpace);
        } else if let Err(error @ (GuestError::Io | GuestError::NoSpace | GuestError::Invalid)) =
            result
        {
            // No fault of the simulator lasts as long as requests are held.
            let what = format!(
                "op {} fails: {error}; {}; {}",
                slot.op,
                self.chunk_status(self.chunk_of(slot.io.sector)),
                self.front_status(front)
            );
            self.fail(Failure::Liveness(what));
        }
        if result != Err(GuestError::Fenced) {
            let at = self.queue.now() + self.up_to(self.swarm.think_ns);
            self.queue.push(
                at,
                Event::GuestNext {
                    front,
                    lane: lane_id(lane),
                    tag,
                },
            );
        }
    }

    pub(crate) fn answer(&mut self, slot: &Slot, result: Result<(), GuestError>) {
        let op = slot.op;
        self.guest.completed += 1;
        match result {
            Ok(()) => {
                let values = match slot.io.op {
                    GuestOp::Read => values(slot.io.sector, &slot.data),
                    _ => Vec::new(),
                };
                if matches!(slot.io.op, GuestOp::Write { .. } | GuestOp::Zero { .. }) {
                    self.guest.acked_writes += 1;
                    if self.is_degraded(&slot.io) {
                        self.mark(Mark::DegradedAck);
                    }
                }
                self.say(|| format!("op {op} values {}", summary(&values)));
                self.guest.record(|t| Line::Ok { t, op, values });
            }
            Err(_) => self.guest.record(|t| Line::Fail { t, op }),
        }
    }
}

impl World {
    /// No good copy is left of something that the request is about.
    fn is_excused(&mut self, io: &GuestIo) -> bool {
        (io.sector..io.sector + u64::from(io.count)).any(|sector| self.is_lost(sector))
    }

    /// A replica of its first chunk is recorded stale.
    fn is_degraded(&self, io: &GuestIo) -> bool {
        self.map.as_ref().is_some_and(|map| {
            let replicas = map.replicas(self.chunk_of(io.sector));
            let mut health = map.head.health.iter();
            health.any(|(node, _)| replicas.on(*node) == Some(ReplicaState::Stale))
        })
    }
}

fn summary(values: &[SectorValue]) -> String {
    let text: Vec<String> = values
        .iter()
        .map(|value| match value {
            SectorValue::Write(id) => id.to_string(),
            SectorValue::Torn { torn } => format!("[{torn}]"),
        })
        .collect();
    text.join(" ")
}
