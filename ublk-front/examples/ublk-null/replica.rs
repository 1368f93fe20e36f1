//! A node in the place of a lane's sockets, which answers everything well in the turn in which it is
//! asked. Reads are answered with data of which the lane verifies the checksums, as it does with a
//! node's.

use crate::cluster::RUN;
use io_uring::squeue;
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use ublk_front::core::LaneLimits;
use ublk_front::core::api::{BufferPart, GuestIo, Now, Peer, PeerIndex};
use ublk_front::shell::buffers::{GuestBuffers, Holds};
use ublk_front::shell::context::LaneSeat;
use ublk_front::shell::lane::{Completion, LaneDriver};
use ublk_front::shell::peers::{PeerEvents, Peers};
use ublk_front::shell::ublk::{Lane, QueueBuffers};
use ublk_front::shell::user_data::{Kind, pack};
use ukai_proto::crc::crc32c;
use ukai_proto::limits::SECTOR_BYTES;
use ukai_proto::message::crc_table;
use ukai_proto::{Flags, Header, Opcode, Status};

/// A lane of the front on a replica of its own.
pub(crate) struct FrontLane {
    lane: LaneDriver<Replica>,
    /// The replica was asked something. Then the lane is told that its receive has completed.
    asked: Rc<Cell<bool>>,
}

impl FrontLane {
    pub(crate) fn new(seat: LaneSeat) -> Self {
        let asked = Rc::new(Cell::new(false));
        let replica = Replica::new(Rc::clone(&asked));
        let lane = LaneDriver::with_peers(seat, LaneLimits::default(), replica);
        Self { lane, asked }
    }
}

impl Lane for FrontLane {
    fn guest(&mut self, io: GuestIo, buffers: &QueueBuffers) {
        Lane::guest(&mut self.lane, io, buffers);
    }

    fn completed(&mut self, user_data: u64, result: i32, buffers: &QueueBuffers) {
        Lane::completed(&mut self.lane, user_data, result, buffers);
    }

    fn turn(
        &mut self,
        buffers: &QueueBuffers,
        push: &mut dyn FnMut(squeue::Entry),
        answers: &mut Vec<Completion>,
    ) {
        while self.asked.take() {
            Lane::completed(&mut self.lane, pack(Kind::PeerReceive, 0), 0, buffers);
        }
        Lane::turn(&mut self.lane, buffers, push, answers);
    }

    fn close(&mut self) {
        Lane::close(&mut self.lane);
    }

    fn is_quiet(&self) -> bool {
        Lane::is_quiet(&self.lane)
    }
}

struct Replica {
    /// Not answered yet.
    requests: Vec<(PeerIndex, Header)>,
    asked: Rc<Cell<bool>>,
    up: bool,
    sector: Box<[u8; SECTOR_BYTES]>,
    sector_crc: u32,
}

impl Replica {
    fn new(asked: Rc<Cell<bool>>) -> Self {
        let sector = Box::new([7; SECTOR_BYTES]);
        Self {
            requests: Vec::new(),
            asked,
            up: false,
            sector_crc: crc32c(&*sector),
            sector,
        }
    }

    fn answer<B: GuestBuffers>(
        &self,
        peer: PeerIndex,
        header: &Header,
        buffers: &B,
        events: &mut impl PeerEvents,
    ) {
        let mut reply = header.reply(Status::Ok);
        if header.opcode != Opcode::Read {
            events.frame(peer, &reply, &[], &[]);
            return;
        }
        reply.flags = reply.flags.with(Flags::DATA);
        let Some(part) = events.target(peer, &reply) else {
            return; // nobody waits for it any more
        };
        let crcs = std::iter::repeat_n(self.sector_crc, usize::from(header.count));
        let aux = crc_table(0, crcs);
        let (start, bytes) = (buffers.part(part), part.bytes as usize);
        // SAFETY: `part` checked that it lies inside the guest's buffer, which nobody else touches
        // before the request is answered.
        let payload = unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), bytes) };
        for sector in payload.chunks_exact_mut(SECTOR_BYTES) {
            sector.copy_from_slice(&*self.sector);
        }
        events.frame(peer, &reply, &aux, payload);
    }
}

impl Peers for Replica {
    fn set_peers(&mut self, _now: Now, peers: &Arc<Vec<Peer>>, events: &mut impl PeerEvents) {
        assert_eq!(peers.len(), 1, "one replica");
        if !std::mem::replace(&mut self.up, true) {
            events.up(PeerIndex(0), RUN);
        }
    }

    fn send(
        &mut self,
        peer: PeerIndex,
        header: &Header,
        _aux: &[u8],
        _payload: Option<BufferPart>,
        _holds: &mut Holds,
    ) -> bool {
        self.requests.push((peer, *header));
        self.asked.set(true);
        true
    }

    fn disconnect(&mut self, _peer: PeerIndex, why: &str, _holds: &mut Holds) {
        panic!("the lane gives up a replica that answers everything: {why}");
    }

    fn tick(&mut self, _now: Now, _holds: &mut Holds, _events: &mut impl PeerEvents) {}

    fn completed<B: GuestBuffers>(
        &mut self,
        _now: Now,
        _kind: Kind,
        _slot: u16,
        _result: i32,
        buffers: &B,
        _holds: &mut Holds,
        events: &mut impl PeerEvents,
    ) {
        let mut requests = std::mem::take(&mut self.requests);
        for (peer, header) in requests.drain(..) {
            self.answer(peer, &header, buffers, events);
        }
        // Kept for its capacity.
        self.requests = requests;
    }

    fn submit<B: GuestBuffers>(&mut self, _buffers: &B, _push: &mut dyn FnMut(squeue::Entry)) {}

    fn close(&mut self, _now: Now, _holds: &mut Holds) {}

    fn is_quiet(&self) -> bool {
        self.requests.is_empty()
    }
}
