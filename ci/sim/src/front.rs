//! Front processes: what a front's shell does, around the real lane and control cores.

use crate::guest::Slot;
use crate::meta::MetaRequest;
use crate::net::{Client, Ending, LinkId};
use crate::queue::{MS, SECOND};
use crate::tally::Mark;
use crate::world::{CLUSTER, Event, FrontIndex, VOLUME, World};
use std::collections::BTreeMap;
use std::sync::Arc;
use ublk_front::core::api::{
    BufferPart, ControlAction, ControlError, ControlEvent, GuestTag, LaneAction, LaneId, LaneOrder,
    LaneReport, Now, Peer, PeerIndex,
};
use ublk_front::core::window::WINDOW;
use ublk_front::core::{ControlConfig, ControlCore, LaneCore, LaneLimits, SharedSeq};
use ukai_meta::Attach;
use ukai_meta::memory::MemoryStore;
use ukai_proto::header::PROTOCOL;
use ukai_proto::message::{Hello, Pull, Pulled, Role};
use ukai_proto::{BootId, Flags, Frame, Header, Incarnation, NodeId, Opcode, Status};

/// Between ticks of control and lanes.
const FRONT_TICK_NS: u64 = 50 * MS;

/// Which part of a front a connection belongs to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Conn {
    Control,
    Lane(LaneId),
}

#[derive(Clone, Copy, Debug)]
struct ConnState {
    link: LinkId,
    /// HELLO was answered.
    up: bool,
}

/// A front process, alive or dead.
pub(crate) struct Front {
    pub(crate) host: usize,
    /// The version of the protocol that it speaks.
    pub(crate) protocol: u8,
    /// It is there to settle the volume, then detaches.
    pub(crate) settles: bool,
    /// So many such before it were killed.
    pub(crate) runs: u32,
    /// The process runs.
    pub(crate) alive: bool,
    /// Control has ended: it only waits for its guests to see their errors.
    pub(crate) ended: bool,
    /// Guests are served.
    pub(crate) ready: bool,
    /// What earlier fronts left is equal on all replicas.
    reconciled: bool,
    pub(crate) started: u64,
    pub(crate) token: u32,
    control: ControlCore,
    pub(crate) lanes: Vec<LaneCore>,
    seq: Arc<SharedSeq>,
    peers: Vec<Peer>,
    conns: BTreeMap<(Conn, PeerIndex), ConnState>,
    pub(crate) meta: MemoryStore,
    /// The channels between control and lanes keep their order.
    order_at: Vec<u64>,
    report_at: Vec<u64>,
    /// Stands still until then.
    pub(crate) paused_until: u64,
    /// Its guest stops, so that it can detach.
    pub(crate) leaving: bool,
    pub(crate) detaching: bool,
    /// A transaction of its was answered with "unknown".
    pub(crate) outcome_unknown: bool,
    /// By lane, then tag.
    pub(crate) slots: Vec<Vec<Option<Slot>>>,
}

impl Front {
    /// Serves guests now.
    pub(crate) fn serves(&self) -> bool {
        self.alive && self.ready && !self.ended
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.slots.iter().flatten().flatten().count()
    }
}

impl World {
    fn now(&self) -> Now {
        Now(self.queue.now())
    }

    /// A process starts and wants the volume; with force, whoever has it.
    pub(crate) fn start_front(&mut self, host: usize, force: bool) {
        let index = self.fronts.len();
        let number = u8::try_from(index % 250).unwrap_or(0);
        let attach = Attach {
            host: format!("h{host}"),
            boot: BootId([u8::try_from(host).unwrap_or(0); 16]),
            front: [number + 1; 16],
        };
        let mut config = ControlConfig::new(VOLUME, attach);
        config.force = force;
        config.reports = self.swarm.reports;
        let seq = Arc::new(SharedSeq::default());
        let meta = self.meta.session();
        meta.set_unavailable(self.meta_down);
        self.say(|| format!("front f{index} starts on h{host}"));
        let next = std::mem::take(&mut self.next_front);
        self.fronts.push(Front {
            host,
            protocol: next.protocol.unwrap_or(PROTOCOL),
            settles: next.settles,
            runs: 0,
            alive: true,
            ended: false,
            ready: false,
            reconciled: false,
            started: self.queue.now(),
            token: 0,
            control: ControlCore::new(config, Arc::clone(&seq)),
            lanes: Vec::new(),
            seq,
            peers: Vec::new(),
            conns: BTreeMap::new(),
            meta,
            order_at: Vec::new(),
            report_at: Vec::new(),
            paused_until: 0,
            leaving: next.settles,
            detaching: false,
            outcome_unknown: false,
            slots: Vec::new(),
        });
        self.started_as(index, next);
        self.control(index, ControlEvent::Start);
        self.front_learns_of_jobs(index);
        let at = self.queue.now() + FRONT_TICK_NS;
        self.queue.push(at, Event::FrontTick { front: index });
    }

    /// kill -9. Its bytes under way may still arrive.
    pub(crate) fn crash_front(&mut self, front: FrontIndex) {
        self.say(|| format!("front f{front} dies"));
        self.fronts[front].alive = false;
        self.fronts[front].paused_until = 0;
        let conns = std::mem::take(&mut self.fronts[front].conns);
        let now = self.queue.now();
        for state in conns.values() {
            let arrives = now + self.up_to(2 * self.swarm.net_delay_ns);
            let learns = arrives + self.up_to(SECOND / 5);
            self.end_link(
                state.link,
                Ending {
                    to_node_until: arrives,
                    to_client_until: now,
                    node_learns: Some(learns),
                    client_learns: Some(now),
                },
            );
        }
    }

    pub(crate) fn front_tick(&mut self, front: FrontIndex) {
        if !self.fronts[front].alive {
            return;
        }
        if self.fronts[front].ended && self.fronts[front].in_flight() == 0 {
            self.crash_front(front);
            return;
        }
        self.detach_when_idle(front);
        self.control(front, ControlEvent::Tick);
        for lane in 0..self.fronts[front].lanes.len() {
            self.lane(front, lane, |lane, now, out| lane.tick(now, out));
        }
        self.windows(front);
        let at = self.queue.now() + FRONT_TICK_NS;
        self.queue.push(at, Event::FrontTick { front });
    }

    /// Lanes tell what they measured, as often as those of a shell.
    fn windows(&mut self, front: FrontIndex) {
        let (now, window) = (self.now(), WINDOW.as_nanos());
        if u128::from(now.0) % window >= u128::from(FRONT_TICK_NS) {
            return;
        }
        for lane in 0..self.fronts[front].lanes.len() {
            if let Some(window) = self.fronts[front].lanes[lane].window(now) {
                self.control(front, ControlEvent::Window(lane_id(lane), window));
            }
        }
    }

    pub(crate) fn control(&mut self, front: FrontIndex, event: ControlEvent) {
        let now = self.now();
        if !self.fronts[front].alive {
            return;
        }
        let mut out = Vec::new();
        self.fronts[front].control.handle(now, event, &mut out);
        for action in out {
            self.control_action(front, action);
        }
        let state = &mut self.fronts[front];
        if !state.reconciled && state.control.is_reconciled() {
            state.reconciled = true;
            let started = state.started;
            for node in &mut self.nodes {
                // Fenced and reconciled: equal to the others again.
                node.suspect_since = node.suspect_since.filter(|at| *at >= started);
            }
        }
    }

    fn control_action(&mut self, front: FrontIndex, action: ControlAction) {
        let now = self.queue.now();
        match action {
            ControlAction::Peers(peers) => {
                self.fronts[front].peers = peers;
                self.connect_all(front, Conn::Control);
                for lane in 0..self.fronts[front].lanes.len() {
                    self.connect_all(front, Conn::Lane(lane_id(lane)));
                }
            }
            ControlAction::MetaLoad(id) => self.ask_meta(front, id, MetaRequest::Load),
            ControlAction::MetaCommit(id, update) => {
                self.ask_meta(front, id, MetaRequest::Commit(update));
            }
            ControlAction::JobLoad(id) => self.ask_meta(front, id, MetaRequest::JobLoad),
            ControlAction::JobStore(id, job, guard) => {
                self.ask_meta(front, id, MetaRequest::JobStore(job, guard));
            }
            ControlAction::Send { peer, header, aux } => {
                if let (Opcode::Pull, Ok(pull)) = (header.opcode, Pull::decode(&aux)) {
                    let (chunk, from) = (header.chunk, self.node_name(pull.source));
                    let how = (pull.mode, pull.ceiling);
                    self.say(|| {
                        format!("f{front}: chunk {chunk} from {from} to {peer:?}, {how:?}")
                    });
                }
                let frame = Frame {
                    header,
                    aux,
                    data: None,
                };
                self.send_up(front, Conn::Control, peer, frame);
            }
            ControlAction::Order(lane, order) => {
                let index = lane.0 as usize;
                let at = (now + self.up_to(MS / 5)).max(self.fronts[front].order_at[index]);
                self.fronts[front].order_at[index] = at;
                self.queue.push(at, Event::Order { front, lane, order });
            }
            ControlAction::Ready(presented) => self.front_ready(front, presented.token.0),
            ControlAction::Resized { .. } => {}
            ControlAction::Ended(result) => {
                self.say(|| format!("front f{front} ends: {result:?}"));
                self.fronts[front].ended = true;
                if result == Err(ControlError::Fenced) {
                    self.mark(Mark::FrontFenced);
                }
                if self.fronts[front].detaching {
                    self.handed_over(front, result.is_ok());
                } else if !self.fronts[front].ready && self.newest_front().is_none() {
                    self.replace_front(self.fronts[front].host);
                }
            }
            ControlAction::Note(text) => {
                if text.contains("no other in-sync replica") {
                    self.mark(Mark::LastInSyncHeld);
                }
                self.say(|| format!("front f{front}: {text}"));
            }
        }
    }

    fn front_ready(&mut self, front: FrontIndex, token: u32) {
        self.say(|| format!("front f{front} serves, token {token}"));
        let lanes = self.swarm.lanes as usize;
        let state = &mut self.fronts[front];
        state.ready = true;
        state.token = token;
        state.order_at = vec![0; lanes];
        state.report_at = vec![0; lanes];
        state.slots = (0..lanes)
            .map(|_| (0..self.swarm.depth).map(|_| None).collect())
            .collect();
        for lane in 0..lanes {
            let core = LaneCore::new(lane_id(lane), Arc::clone(&state.seq), LaneLimits::default());
            state.lanes.push(core);
        }
        for lane in 0..lanes {
            self.control(front, ControlEvent::LaneAdded(lane_id(lane)));
            self.connect_all(front, Conn::Lane(lane_id(lane)));
        }
        self.guest_moves_in(front);
    }

    fn connect_all(&mut self, front: FrontIndex, conn: Conn) {
        let now = self.queue.now();
        for index in 0..self.fronts[front].peers.len() {
            let peer = PeerIndex(u32::try_from(index).unwrap_or(u32::MAX));
            if !self.fronts[front].conns.contains_key(&(conn, peer)) {
                let at = now + self.up_to(MS);
                self.queue.push(at, Event::Connect { front, conn, peer });
            }
        }
    }

    fn connect_later(&mut self, front: FrontIndex, conn: Conn, peer: PeerIndex) {
        let at = self.queue.now() + FRONT_TICK_NS + self.up_to(200 * MS);
        self.queue.push(at, Event::Connect { front, conn, peer });
    }

    pub(crate) fn front_connects(&mut self, front: FrontIndex, conn: Conn, peer: PeerIndex) {
        let state = &self.fronts[front];
        if !state.alive || state.conns.contains_key(&(conn, peer)) {
            return;
        }
        let wanted = state.peers[peer.0 as usize].clone();
        let place = wanted
            .addresses
            .iter()
            .find_map(|text| self.node_by_address(text));
        let client = Client::Front { front, conn, peer };
        let Some(link) = place.and_then(|(node, shard)| self.open_link(client, node, shard)) else {
            self.peer_down(front, conn, peer);
            self.connect_later(front, conn, peer);
            return;
        };
        self.fronts[front]
            .conns
            .insert((conn, peer), ConnState { link, up: false });
        let hello = Hello {
            cluster: CLUSTER,
            node: wanted.node,
            role: if conn == Conn::Control {
                Role::Control
            } else {
                Role::Lane
            },
            shard: wanted.shard,
            shard_count: 0,
            incarnation: Incarnation::default(),
        };
        let frame = Frame::new(Header::request(Opcode::Hello, 0), hello.encode(), None);
        self.transmit(link, true, frame);
    }

    fn peer_down(&mut self, front: FrontIndex, conn: Conn, peer: PeerIndex) {
        match conn {
            Conn::Control => self.control(front, ControlEvent::PeerDown { peer }),
            Conn::Lane(lane) => self.lane(front, lane.0 as usize, |lane, now, out| {
                lane.peer_down(now, peer, out);
            }),
        }
    }

    pub(crate) fn front_link_closed(
        &mut self,
        front: FrontIndex,
        conn: Conn,
        peer: PeerIndex,
        link: LinkId,
    ) {
        let current = self.fronts[front]
            .conns
            .get(&(conn, peer))
            .map(|state| state.link);
        if current != Some(link) || !self.fronts[front].alive {
            return;
        }
        self.fronts[front].conns.remove(&(conn, peer));
        self.peer_down(front, conn, peer);
        self.connect_later(front, conn, peer);
    }

    /// The front closes a connection by itself.
    fn disconnect(&mut self, front: FrontIndex, conn: Conn, peer: PeerIndex) {
        if let Some(state) = self.fronts[front].conns.remove(&(conn, peer)) {
            self.close_from(state.link, false);
            self.peer_down(front, conn, peer);
            self.connect_later(front, conn, peer);
        }
    }

    fn send_up(&mut self, front: FrontIndex, conn: Conn, peer: PeerIndex, frame: Frame<Vec<u8>>) {
        let state = self.fronts[front].conns.get(&(conn, peer)).copied();
        if let Some(ConnState { link, up: true }) = state {
            self.transmit(link, true, frame);
        }
    }

    pub(crate) fn front_frame(
        &mut self,
        front: FrontIndex,
        conn: Conn,
        peer: PeerIndex,
        link: LinkId,
        frame: Frame<Vec<u8>>,
    ) {
        let Some(state) = self.fronts[front].conns.get_mut(&(conn, peer)) else {
            return;
        };
        if state.link != link {
            return;
        }
        if !state.up {
            let hello = Hello::decode(&frame.aux);
            let (Opcode::Hello, Status::Ok, Ok(hello)) =
                (frame.header.opcode, frame.header.status, hello)
            else {
                self.disconnect(front, conn, peer);
                return;
            };
            state.up = true;
            let incarnation = hello.incarnation;
            match conn {
                Conn::Control => self.control(front, ControlEvent::PeerUp { peer, incarnation }),
                Conn::Lane(lane) => self.lane(front, lane.0 as usize, |lane, now, out| {
                    lane.peer_up(now, peer, incarnation, out);
                }),
            }
            return;
        }
        match conn {
            Conn::Control => {
                let (header, aux) = (frame.header, frame.aux);
                if let (Opcode::Pull, Ok(pulled)) = (header.opcode, Pulled::decode(&aux)) {
                    let chunk = header.chunk;
                    self.say(|| format!("f{front}: copy of chunk {chunk} to {peer:?}: {pulled:?}"));
                }
                self.control(front, ControlEvent::PeerFrame { peer, header, aux });
            }
            Conn::Lane(lane) => self.lane_frame(front, lane.0 as usize, peer, &frame),
        }
    }

    fn lane_frame(
        &mut self,
        front: FrontIndex,
        lane: usize,
        peer: PeerIndex,
        frame: &Frame<Vec<u8>>,
    ) {
        let payload = match (
            &frame.data,
            self.fronts[front].lanes[lane].read_target(peer, &frame.header),
        ) {
            (Some(data), Some(part)) if data.len() == part.bytes as usize => {
                self.buffer(front, lane, part).copy_from_slice(data);
                data.as_slice()
            }
            _ => &[],
        };
        if frame.header.opcode == Opcode::Write && frame.header.status == Status::Ok {
            self.canary_write_acked(front, lane, frame.header.tag);
        }
        self.lane(front, lane, |core, now, out| {
            core.peer_frame(now, peer, &frame.header, &frame.aux, payload, out);
        });
    }

    fn buffer(&mut self, front: FrontIndex, lane: usize, part: BufferPart) -> &mut [u8] {
        let slot = self.fronts[front].slots[lane][part.tag.0 as usize].as_mut();
        let slot = slot.unwrap_or_else(|| panic!("the buffer of tag {} is in use", part.tag.0));
        let from = part.offset_bytes as usize;
        &mut slot.data[from..from + part.bytes as usize]
    }

    /// Lets a lane do something, then does what it wants.
    pub(crate) fn lane(
        &mut self,
        front: FrontIndex,
        lane: usize,
        act: impl FnOnce(&mut LaneCore, Now, &mut Vec<LaneAction>),
    ) {
        let now = self.now();
        if !self.fronts[front].alive {
            return;
        }
        let Some(core) = self.fronts[front].lanes.get_mut(lane) else {
            return;
        };
        let mut out = Vec::new();
        act(core, now, &mut out);
        for action in out {
            self.lane_action(front, lane, action);
        }
    }

    fn lane_action(&mut self, front: FrontIndex, lane: usize, action: LaneAction) {
        let conn = Conn::Lane(lane_id(lane));
        match action {
            LaneAction::Send {
                peer,
                header,
                aux,
                payload,
            } => {
                let data = payload.map(|part| {
                    self.canary_write_sent(front, lane, part.tag, &header);
                    self.buffer(front, lane, part).to_vec()
                });
                assert_eq!(
                    data.as_ref().map_or(0, Vec::len),
                    if header.flags.has(Flags::DATA) {
                        header.data_bytes()
                    } else {
                        0
                    },
                    "the header tells the payload's length"
                );
                self.send_up(front, conn, peer, Frame { header, aux, data });
            }
            LaneAction::FillZeroes(part) => self.buffer(front, lane, part).fill(0),
            LaneAction::Complete { tag, result } => self.guest_answered(front, lane, tag, result),
            LaneAction::Disconnect { peer, why } => {
                self.say(|| format!("front f{front} lane {lane} disconnects {peer:?}: {why}"));
                self.disconnect(front, conn, peer);
            }
            LaneAction::Report(report) => {
                let at =
                    (self.queue.now() + self.up_to(MS / 5)).max(self.fronts[front].report_at[lane]);
                self.fronts[front].report_at[lane] = at;
                let lane = lane_id(lane);
                self.queue.push(
                    at,
                    Event::Report {
                        front,
                        lane,
                        report,
                    },
                );
            }
        }
    }

    pub(crate) fn order_arrives(&mut self, front: FrontIndex, lane: LaneId, order: LaneOrder) {
        self.lane(front, lane.0 as usize, |core, now, out| {
            core.order(now, order, out);
        });
    }

    pub(crate) fn report_arrives(&mut self, front: FrontIndex, lane: LaneId, report: LaneReport) {
        self.control(front, ControlEvent::Lane(lane, report));
    }

    /// The operator starts another front if none is left.
    pub(crate) fn replace_front(&mut self, host: usize) {
        let at = self.queue.now() + FRONT_TICK_NS + self.up_to(2 * SECOND);
        self.queue.push(at, Event::FrontStart { host, force: true });
    }

    /// The process that has the volume, or will have it.
    pub(crate) fn newest_front(&self) -> Option<FrontIndex> {
        self.fronts
            .iter()
            .rposition(|front| front.alive && !front.ended)
    }

    /// Nothing is left to copy, delete or record, as the front sees it.
    pub(crate) fn is_settled(&self, front: FrontIndex) -> bool {
        self.fronts[front].control.status().settled
    }

    /// Has the newest front made equal what earlier ones had open?
    pub(crate) fn are_replicas_reconciled(&self) -> bool {
        let newest = self.newest_front();
        newest.is_some_and(|front| self.fronts[front].control.is_reconciled())
    }

    /// What control knows of its nodes, for explanations.
    pub(crate) fn front_status(&self, front: FrontIndex) -> String {
        let state = &self.fronts[front];
        format!(
            "f{front} alive {} ready {} ended {} in flight {}: {:?}",
            state.alive,
            state.ready,
            state.ended,
            state.in_flight(),
            state.control.status()
        )
    }

    pub(crate) fn node_name(&self, id: NodeId) -> String {
        self.nodes
            .iter()
            .position(|node| node.id == id)
            .map_or_else(|| id.to_string(), |index| format!("n{index}"))
    }

    pub(crate) fn start_guest_io(
        &mut self,
        front: FrontIndex,
        lane: usize,
        io: ublk_front::core::api::GuestIo,
    ) {
        let data = match io.op {
            ublk_front::core::api::GuestOp::Write { .. } => {
                let slot = self.fronts[front].slots[lane][io.tag.0 as usize].as_ref();
                slot.map(|slot| slot.data.clone()).unwrap_or_default()
            }
            _ => Vec::new(),
        };
        self.lane(front, lane, |core, now, out| {
            core.guest(now, io, &data, out);
        });
    }

    pub(crate) fn guest_tag(tag: usize) -> GuestTag {
        GuestTag(u32::try_from(tag).unwrap_or(u32::MAX))
    }
}

pub(crate) fn lane_id(lane: usize) -> LaneId {
    LaneId(u32::try_from(lane).unwrap_or(u32::MAX))
}
