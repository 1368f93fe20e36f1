//! `lane`: one lane of a front between a guest and nodes that answer anything.
//!
//! Whatever the nodes say: each guest request ends once; a write ends well only if every in-sync replica
//! said that it has every piece of it (I1); a read ends well only with content that matched the
//! checksums it came with; payload lands in a guest's buffer only from the node that was asked.

use crate::frames::status;
use crate::front::{NODES, committed, config, fresh, holder, run_of};
use crate::input::Input;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use ublk_front::core::api::{
    BufferPart, GuestIo, GuestOp, GuestTag, LaneAction, LaneId, LaneOrder, LaneReport, Now,
    PeerIndex,
};
use ublk_front::core::config::{Heard, LaneConfig};
use ublk_front::core::{LaneCore, LaneLimits, SharedSeq};
use ukai_meta::transition;
use ukai_proto::crc::{crc32c, sector_crcs};
use ukai_proto::limits::{AUX_BYTES_MAX, SECTOR_BYTES, SEQ_MAX, WIRE_UNIT_BYTES};
use ukai_proto::message::{crc_table, read_crc_table};
use ukai_proto::{ChunkIndex, Flags, Header, NodeId, SectorInChunk, Seq, Status};

/// Guest requests in flight.
const TAGS: u8 = 8;
/// Events of one script.
const STEPS_MAX: usize = 400;

struct Guest {
    io: GuestIo,
    buffer: Vec<u8>,
    /// Of writes: pieces by wire tag, their chunk, length, and the configuration they began under.
    pieces: BTreeMap<u64, (ChunkIndex, u16, usize)>,
    /// Of reads: what was verified, by position in the buffer.
    content: BTreeMap<usize, Vec<u8>>,
}

struct Bench {
    lane: LaneCore,
    now: Now,
    configs: Vec<Arc<LaneConfig>>,
    installed: usize,
    epoch: u64,
    /// When control last heard from the nodes: reads are told only within a lease of it.
    heard: [Heard; 3],
    guests: BTreeMap<GuestTag, Guest>,
    up: [bool; 3],
    /// Sent and neither answered nor lost with its connection.
    out: Vec<(PeerIndex, Header)>,
    acked: BTreeSet<(u64, PeerIndex)>,
    failed: bool,
}

/// What a volume goes through, each step a new generation.
fn configs(heard: &[Heard; 3]) -> Vec<Arc<LaneConfig>> {
    let [_, b, c] = NODES;
    let mut map = committed(transition::attach(&fresh(), holder(), false).expect("legal"));
    let mut all = vec![config(map.clone(), heard)];
    let steps: [&dyn Fn(&_) -> _; 6] = [
        &|map| transition::mark_stale(map, &[b]),
        &|map| transition::begin_rejoin(map, b),
        &|map| transition::finish_rejoin(map, b),
        &|map: &ukai_meta::VolumeMap| transition::add_location(map, map.all(), c),
        &|map: &ukai_meta::VolumeMap| transition::promote(map, map.all(), c),
        &|map: &ukai_meta::VolumeMap| transition::remove_location(map, map.all(), b, 1),
    ];
    for step in steps {
        map = committed(step(&map).expect("legal"));
        all.push(config(map.clone(), heard));
    }
    all
}

impl Bench {
    fn new() -> Self {
        let seq = Arc::new(SharedSeq::default());
        let heard: [Heard; 3] = Default::default();
        Self {
            lane: LaneCore::new(LaneId(0), seq, LaneLimits::default()),
            now: Now(1),
            configs: configs(&heard),
            heard,
            installed: 0,
            epoch: 1,
            guests: BTreeMap::new(),
            up: [false; 3],
            out: Vec::new(),
            acked: BTreeSet::new(),
            failed: false,
        }
    }

    fn install(&mut self, out: &mut Vec<LaneAction>) {
        self.epoch += 1;
        let order = LaneOrder::Install {
            epoch: self.epoch,
            config: Arc::clone(&self.configs[self.installed]),
        };
        self.lane.order(self.now, order, out);
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let mut out = Vec::new();
        let peer = PeerIndex(u32::from(input.below(3)));
        match input.below(16) {
            0..5 => self.guest(input, &mut out),
            5..12 => self.reply(input, &mut out),
            12 => {
                let index = peer.0 as usize;
                if self.up[index] {
                    self.up[index] = false;
                    self.lane.peer_down(self.now, peer, &mut out);
                    self.out.retain(|(to, _)| *to != peer);
                } else {
                    self.up[index] = true;
                    // Another run than the one that control fenced gets nothing.
                    let start = if input.rarely(8) { 2 } else { 1 };
                    self.lane.peer_up(self.now, peer, run_of(start), &mut out);
                }
            }
            13 => {
                let pause = Duration::from_millis(u64::from(input.u16()));
                self.now = self.now.after(pause);
                if !input.rarely(8) {
                    self.heard.iter().for_each(|heard| heard.answered(self.now));
                }
                self.lane.tick(self.now, &mut out);
            }
            14 if input.rarely(4) => {
                let chunks = vec![ChunkIndex(input.below(16).into())];
                let order = LaneOrder::Reconciled { chunks };
                self.lane.order(self.now, order, &mut out);
            }
            14 => {
                self.epoch += 1;
                let lost = if input.bool() {
                    vec![NODES[peer.0 as usize]]
                } else {
                    Vec::new()
                };
                let order = LaneOrder::Prepare {
                    epoch: self.epoch,
                    lost,
                };
                self.lane.order(self.now, order, &mut out);
            }
            _ => {
                let last = self.configs.len() - 1;
                self.installed = (self.installed + usize::from(input.below(2))).min(last);
                self.install(&mut out);
            }
        }
        self.act(out);
    }

    fn guest(&mut self, input: &mut Input<'_>, out: &mut Vec<LaneAction>) {
        let tag = GuestTag(input.below(TAGS).into());
        if self.guests.contains_key(&tag) {
            return;
        }
        let flags = input.u8();
        let (fua, unmap) = (flags & 1 == 1, flags & 2 == 2);
        let op = match input.below(8) {
            0..3 => GuestOp::Read,
            3..6 => GuestOp::Write { fua },
            6 => GuestOp::Zero { unmap, fua },
            _ => GuestOp::Flush,
        };
        let sector = match input.below(8) {
            0 => input.u64(),
            _ => u64::from(input.u16()),
        };
        let count = match op {
            GuestOp::Flush => 0,
            GuestOp::Zero { .. } if input.rarely(4) => input.u32(),
            // The shells never hand out more payload than a buffer holds.
            _ if input.rarely(8) => u32::from(input.u16() % 300),
            _ => u32::from(input.below(5)),
        };
        let io = GuestIo {
            tag,
            op,
            sector,
            count,
        };
        let bytes = if matches!(op, GuestOp::Read | GuestOp::Write { .. }) {
            count as usize * SECTOR_BYTES
        } else {
            0
        };
        let guest = Guest {
            io,
            buffer: vec![input.u8(); bytes],
            pieces: BTreeMap::new(),
            content: BTreeMap::new(),
        };
        let data = match op {
            GuestOp::Write { .. } => guest.buffer.clone(),
            _ => Vec::new(),
        };
        self.guests.insert(tag, guest);
        self.lane.guest(self.now, io, &data, out);
    }

    /// A node answers something that was asked, or something else.
    fn reply(&mut self, input: &mut Input<'_>, out: &mut Vec<LaneAction>) {
        if self.out.is_empty() {
            return;
        }
        let index = usize::from(input.u8()) % self.out.len();
        let (mut peer, request) = self.out[index];
        let mut header = request.reply(Status::Ok);
        let mut payload = Vec::new();
        let mut aux = Vec::new();
        if request.opcode == ukai_proto::Opcode::Read {
            if input.rarely(4) {
                header.flags = header.flags.with(Flags::ZEROES);
            } else {
                payload = vec![input.u8(); usize::from(request.count) * SECTOR_BYTES];
            }
            aux = crc_table(1, sector_crcs(&payload));
        }
        // Bad in one way or several.
        for _ in 0..input.below(4).saturating_sub(1) {
            match input.below(12) {
                0 => header.status = status(input),
                1 => header.flags = Flags(input.u8() & 63 & !Flags::DATA.0),
                2 => header.tag ^= 1 << (input.u8() % 64),
                3 => header.opcode = crate::frames::opcode(input),
                4 => header.count = input.u16(),
                5 if input.bool() => header.seq = Seq(input.u64() & SEQ_MAX),
                5 => header.sector = SectorInChunk(input.u16()),
                6 => aux.truncate(usize::from(input.u8())),
                7 if !aux.is_empty() => {
                    let at = usize::from(input.u8()) % aux.len();
                    aux[at] ^= input.u8();
                }
                8 => payload.truncate(usize::from(input.below(3)) * SECTOR_BYTES),
                9 => payload.resize(usize::from(input.below(5)) * SECTOR_BYTES, input.u8()),
                10 => peer = PeerIndex(u32::from(input.below(3))),
                _ if !payload.is_empty() => {
                    let at = usize::from(input.u16()) % payload.len();
                    payload[at] ^= input.u8();
                }
                _ => {}
            }
        }
        self.deliver(peer, header, aux, &payload, out);
    }

    /// As the shell: the payload goes where `read_target` says, if it fits, and is verified there.
    fn deliver(
        &mut self,
        peer: PeerIndex,
        mut header: Header,
        mut aux: Vec<u8>,
        payload: &[u8],
        out: &mut Vec<LaneAction>,
    ) {
        aux.resize(
            aux.len()
                .next_multiple_of(WIRE_UNIT_BYTES)
                .min(AUX_BYTES_MAX),
            0,
        );
        header.aux_bytes = u32::try_from(aux.len()).expect("bounded above");
        if !payload.is_empty() {
            // The decoder sees to it that they agree.
            header.flags = header.flags.with(Flags::DATA);
            header.count = u16::try_from(payload.len() / SECTOR_BYTES).expect("one frame");
        }
        let asked = self
            .out
            .iter()
            .position(|(to, request)| *to == peer && request.tag == header.tag);
        let target = self.lane.read_target(peer, &header);
        let target =
            target.filter(|part| !payload.is_empty() && part.bytes as usize == payload.len());
        if let Some(part) = target {
            assert!(
                asked.is_some(),
                "payload of peer {} lands in the buffer of a read it was not asked for: {header:?}",
                peer.0
            );
            self.part(part).copy_from_slice(payload);
        }
        let seen = if target.is_some() { payload } else { &[] };
        if let (Some(index), true) = (asked, header.flags.has(Flags::REPLY)) {
            let request = self.out[index].1;
            if request.opcode == header.opcode {
                self.out.remove(index);
                if header.status == Status::Ok {
                    self.acked.insert((header.tag, peer));
                }
            }
            if let Some(part) = target
                && !header.flags.has(Flags::ZEROES)
                && matches(&header, &aux, seen)
                && let Some(guest) = self.guests.get_mut(&part.tag)
            {
                guest
                    .content
                    .insert(part.offset_bytes as usize, seen.to_vec());
            }
        }
        self.lane
            .peer_frame(self.now, peer, &header, &aux, seen, out);
    }

    fn part(&mut self, part: BufferPart) -> &mut [u8] {
        let guest = self.guests.get_mut(&part.tag);
        let guest = guest.unwrap_or_else(|| panic!("{part:?} of nobody's buffer"));
        let start = part.offset_bytes as usize;
        &mut guest.buffer[start..start + part.bytes as usize]
    }

    fn act(&mut self, actions: Vec<LaneAction>) {
        for action in actions {
            match action {
                LaneAction::Send {
                    peer,
                    header,
                    aux,
                    payload,
                } => {
                    let on_wire =
                        Header::decode(&header.encode()).expect("a lane sends no nonsense");
                    assert_eq!(header.aux_bytes as usize, aux.len());
                    assert_eq!(
                        on_wire.data_bytes(),
                        payload.map_or(0, |p| p.bytes as usize)
                    );
                    // Sent before the lane knew that the connection is gone: shells drop it.
                    let up = self.up[peer.0 as usize];
                    if let Some(part) = payload {
                        let len = self.part(part).len();
                        assert_eq!(len, usize::from(header.count) * SECTOR_BYTES);
                        let piece = (header.chunk, header.count, self.installed);
                        let guest = self.guests.get_mut(&part.tag);
                        guest
                            .expect("has a buffer")
                            .pieces
                            .insert(header.tag, piece);
                    }
                    self.out.extend(up.then_some((peer, header)));
                }
                LaneAction::FillZeroes(part) => {
                    self.part(part).fill(0);
                    let zeros = vec![0; part.bytes as usize];
                    let guest = self.guests.get_mut(&part.tag).expect("has a buffer");
                    guest.content.insert(part.offset_bytes as usize, zeros);
                }
                LaneAction::Complete { tag, result } => self.completed(tag, result.is_ok()),
                LaneAction::Disconnect { peer, why } => {
                    assert!(!why.is_empty());
                    let index = peer.0 as usize;
                    if std::mem::take(&mut self.up[index]) {
                        let mut more = Vec::new();
                        self.lane.peer_down(self.now, peer, &mut more);
                        self.out.retain(|(to, _)| *to != peer);
                        self.act(more);
                    }
                }
                LaneAction::Report(LaneReport::Fenced) => self.failed = true,
                LaneAction::Report(_) => {}
            }
        }
    }

    fn completed(&mut self, tag: GuestTag, well: bool) {
        let guest = self.guests.remove(&tag);
        let guest = guest.unwrap_or_else(|| panic!("{tag:?} ended, which is not in flight"));
        if !well {
            return;
        }
        let (io, bytes) = (guest.io, guest.buffer.len());
        match io.op {
            GuestOp::Write { .. } => {
                let sectors: u32 = guest.pieces.values().map(|piece| u32::from(piece.1)).sum();
                assert_eq!(sectors, io.count, "all of {io:?} was sent");
                for (wire_tag, (chunk, _, began)) in &guest.pieces {
                    // What a replica lacks from before it joined, copies bring (not here).
                    let configs = &self.configs[*began..=self.installed];
                    let bound =
                        |node: NodeId| configs.iter().all(|c| c.map.is_in_sync(*chunk, node));
                    self.check_acked(*wire_tag, bound);
                }
            }
            GuestOp::Read => {
                let mut at = 0;
                for (start, content) in &guest.content {
                    assert_eq!(*start, at, "{io:?}: a hole");
                    at += content.len();
                    assert_eq!(guest.buffer[*start..at], **content, "{io:?}");
                }
                assert_eq!(at, bytes, "{io:?}");
            }
            GuestOp::Zero { .. } | GuestOp::Flush => {}
        }
    }
}

impl Bench {
    /// Every replica that was in sync all the time has said that it has the piece.
    fn check_acked(&self, wire_tag: u64, mut bound: impl FnMut(NodeId) -> bool) {
        for (index, node) in (0..).zip(NODES) {
            assert!(
                self.acked.contains(&(wire_tag, PeerIndex(index))) || !bound(node),
                "piece {wire_tag:#x} of a write that ended: in-sync node {index} has not said so (I1)"
            );
        }
    }
}

fn matches(header: &Header, aux: &[u8], payload: &[u8]) -> bool {
    read_crc_table(aux, header.count)
        .is_ok_and(|(_, crcs)| payload.chunks_exact(SECTOR_BYTES).map(crc32c).eq(crcs))
}

pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut bench = Bench::new();
    if input.below(8) > 0 {
        let mut out = Vec::new();
        for index in 0..3 {
            bench.up[index as usize] = true;
            bench
                .lane
                .peer_up(bench.now, PeerIndex(index), run_of(1), &mut out);
        }
        bench.install(&mut out);
        bench.act(out);
    }
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        bench.step(&mut input);
        assert_eq!(bench.lane.in_flight(), bench.guests.len());
    }
    // Nothing is left when the front gives up.
    let mut out = Vec::new();
    bench.lane.order(bench.now, LaneOrder::Fail, &mut out);
    bench.act(out);
    assert!(bench.guests.is_empty(), "left without an answer");
}
