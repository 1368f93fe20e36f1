//! Scripted events against the shard core, over a store that is a map.
#![allow(clippy::cast_possible_truncation)] // test data is small

mod copy;
mod copy_rate;
mod fake;
mod fence;
mod reports;
mod requests;
mod scrub;

use super::{ConnId, OutFrame, PeerId, ShardAction, ShardCore, ShardEvent, ShardIdentity};
use fake::FakeStore;
use std::collections::BTreeMap;
use ukai_proto::message::{ChunkRange, Hello, Role, crc_table};
use ukai_proto::*;

pub(super) const CLUSTER: ClusterId = ClusterId([7; 16]);
pub(super) const VOLUME: VolumeId = VolumeId([9; 16]);
pub(super) const CHUNK: ChunkIndex = ChunkIndex(3);

type Out = Vec<ShardAction<Vec<u8>>>;

/// One shard with a client connection.
pub(super) struct Node {
    pub(super) core: ShardCore<Vec<u8>, FakeStore>,
    pub(super) now: u64,
    pub(super) out: Out,
    pub(super) replies: Vec<(ConnId, OutFrame<Vec<u8>>)>,
    tag: u64,
}

pub(super) const CONN: ConnId = ConnId(1);

impl Node {
    /// A single-shard node that holds its lease, with one greeted connection.
    pub(super) fn new(id: u8) -> Self {
        let mut node = Self::cold(id);
        node.event(ShardEvent::LeaseHeld);
        node.event(ShardEvent::ConnOpened { conn: CONN });
        let reply = node.hello(CONN, |_| {});
        assert_eq!(reply.header.status, Status::Ok);
        node
    }

    /// Without lease and connection.
    pub(super) fn cold(id: u8) -> Self {
        let identity = ShardIdentity {
            cluster: CLUSTER,
            node: NodeId([id; 16]),
            shard: ShardIndex(0),
            shard_count: 1,
            incarnation: Incarnation {
                boot: BootId([id; 16]),
                start: 1,
            },
        };
        Self {
            core: ShardCore::new(identity, FakeStore::default()),
            now: 1,
            out: Vec::new(),
            replies: Vec::new(),
            tag: 100,
        }
    }

    /// One event, one turn; replies are set aside, other actions stay in `out`.
    pub(super) fn event(&mut self, event: ShardEvent<Vec<u8>>) {
        self.core.handle(self.now, event, &mut self.out);
        self.core.turn_end(self.now, &mut self.out);
        for action in std::mem::take(&mut self.out) {
            match action {
                ShardAction::Send { conn, frame } => self.replies.push((conn, frame)),
                other => self.out.push(other),
            }
        }
    }

    pub(super) fn hello(&mut self, conn: ConnId, change: impl Fn(&mut Hello)) -> OutFrame<Vec<u8>> {
        let mut hello = Hello {
            cluster: CLUSTER,
            node: self.core.identity().node,
            role: Role::Lane,
            shard: ShardIndex(0),
            shard_count: 0,
            incarnation: Incarnation::default(),
        };
        change(&mut hello);
        let frame = Frame::new(Header::request(Opcode::Hello, 1), hello.encode(), None);
        self.event(ShardEvent::Frame { conn, frame });
        self.replies.pop().expect("HELLO is answered").1
    }

    /// Send without waiting for the reply; returns the tag.
    pub(super) fn send(&mut self, header: Header, aux: Vec<u8>, data: Option<Vec<u8>>) -> u64 {
        self.tag += 1;
        let header = Header {
            tag: self.tag,
            ..header
        };
        let frame = Frame::new(header, aux, data);
        self.event(ShardEvent::Frame { conn: CONN, frame });
        self.tag
    }

    /// The reply to a tag, if it came.
    pub(super) fn reply(&mut self, tag: u64) -> Option<OutFrame<Vec<u8>>> {
        let replies = &mut self.replies;
        let at = replies
            .iter()
            .position(|(_, frame)| frame.header.tag == tag)?;
        Some(replies.remove(at).1)
    }

    /// Send and get the reply.
    pub(super) fn ask(
        &mut self,
        header: Header,
        aux: Vec<u8>,
        data: Option<Vec<u8>>,
    ) -> OutFrame<Vec<u8>> {
        let tag = self.send(header, aux, data);
        self.reply(tag).expect("answered at once")
    }

    pub(super) fn status(&mut self, header: Header) -> Status {
        self.ask(header, Vec::new(), None).header.status
    }

    pub(super) fn fence(&mut self, token: u32, generation: u32) -> Status {
        self.status(Header {
            token: Token(token),
            generation: Generation(generation),
            ..on(Opcode::Fence)
        })
    }

    pub(super) fn write(&mut self, token: u32, seq: u64, sector: u16, fill: &[u8]) -> Status {
        let header = write_header(token, seq, sector, fill.len() as u16);
        let data = content(fill);
        let aux = crc_table(0, crc::sector_crcs(&data));
        self.ask(header, aux, Some(data)).header.status
    }

    /// What peers asked for, as (peer, address).
    pub(super) fn connects(&self) -> Vec<PeerId> {
        let connects = self.out.iter().filter_map(|action| match action {
            ShardAction::PeerConnect { peer, .. } => Some(*peer),
            _ => None,
        });
        connects.collect()
    }
}

/// A request header on the test volume and chunk.
pub(super) fn on(opcode: Opcode) -> Header {
    Header {
        volume: VOLUME,
        chunk: CHUNK,
        ..Header::request(opcode, 0)
    }
}

pub(super) fn ranged(opcode: Opcode, token: u32, sector: u16, count: u16) -> Header {
    Header {
        sector: SectorInChunk(sector),
        count,
        token: Token(token),
        ..on(opcode)
    }
}

pub(super) fn write_header(token: u32, seq: u64, sector: u16, count: u16) -> Header {
    Header {
        seq: Seq(seq),
        ..ranged(Opcode::Write, token, sector, count)
    }
}

/// One sector per byte, filled with it.
pub(super) fn content(fill: &[u8]) -> Vec<u8> {
    fill.iter().flat_map(|byte| [*byte; 4096]).collect()
}

pub(super) fn ranges(start: u32, count: u32) -> Vec<u8> {
    message::chunk_ranges(&[ChunkRange {
        start: ChunkIndex(start),
        count,
    }])
}

/// Two nodes with a perfect wire between the target's peers and the source's connections.
pub(super) struct Pair {
    pub(super) target: Node,
    pub(super) source: Node,
    pub(super) peers: BTreeMap<PeerId, ConnId>,
    /// Frames from source to target that pass through here may be changed; `false` drops them.
    pub(super) tamper: fn(&mut Frame<Vec<u8>>) -> bool,
}

impl Pair {
    pub(super) fn new() -> Self {
        Self {
            target: Node::new(1),
            source: Node::new(2),
            peers: BTreeMap::new(),
            tamper: |_| true,
        }
    }

    /// Move everything between the two until nothing moves.
    pub(super) fn pump(&mut self) {
        loop {
            let mut moved = false;
            for action in std::mem::take(&mut self.target.out) {
                moved = true;
                match action {
                    ShardAction::PeerConnect { peer, .. } => {
                        let conn = ConnId(1000 + peer.0);
                        self.peers.insert(peer, conn);
                        self.source.event(ShardEvent::ConnOpened { conn });
                        self.target.event(ShardEvent::PeerOpened { peer });
                    }
                    ShardAction::PeerSend { peer, frame } => {
                        let conn = self.peers[&peer];
                        self.source.event(ShardEvent::Frame { conn, frame });
                    }
                    ShardAction::PeerClose { peer } => {
                        if let Some(conn) = self.peers.remove(&peer) {
                            self.source.event(ShardEvent::ConnClosed { conn });
                        }
                    }
                    other => panic!("unexpected {other:?}"),
                }
            }
            let (peer_frames, own): (Vec<_>, Vec<_>) = std::mem::take(&mut self.source.replies)
                .into_iter()
                .partition(|(conn, _)| *conn != CONN);
            self.source.replies = own;
            for (conn, frame) in peer_frames {
                moved = true;
                let peer = self
                    .peers
                    .iter()
                    .find(|(_, c)| **c == conn)
                    .map(|(p, _)| *p);
                let mut frame = frame.into_frame();
                if let Some(peer) = peer
                    && (self.tamper)(&mut frame)
                {
                    self.target.event(ShardEvent::PeerFrame { peer, frame });
                }
            }
            if !moved {
                return;
            }
        }
    }
}
