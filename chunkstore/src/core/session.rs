//! One client connection: HELLO first, bounded work in flight, requests that make sense.

use super::event::{ConnId, ShardIdentity};
use std::collections::BTreeMap;
use ukai_proto::limits::{
    CHUNK_BYTES_MAX, CONN_BYTES_MAX, CONN_REQUESTS_MAX, SECTOR_BYTES, SLOT_SECTORS,
};
use ukai_proto::message::{Hello, Role};
use ukai_proto::route::shard_of;
use ukai_proto::{Flags, Header, Incarnation, Opcode, Status, Token, VolumeId};

/// Connections to one shard: 8 lanes, a control connection and peers of 100 volumes fit; each
/// costs the shell about 64 KiB of receive buffer.
pub const CONNS_MAX: usize = 1024;
/// A connection that has not said HELLO after so long is closed: scanners and lost clients must not
/// use up [`CONNS_MAX`].
pub const HELLO_TIMEOUT_NS: u64 = 10_000_000_000;
/// Requests in flight on a shard, those of closed connections included: 16 connections at their limit.
pub(super) const SHARD_REQUESTS_MAX: usize = 16 * CONN_REQUESTS_MAX;
/// Their payload: what a shard may hold in buffers, however often clients connect again while the
/// device is slow.
pub(super) const SHARD_BYTES_MAX: usize = 8 * CONN_BYTES_MAX;
/// Sectors of a LIST: its states fill half of the largest auxiliary section.
pub(super) const LIST_SECTORS_MAX: u16 = 2048;
/// Sectors of the largest chunk.
#[allow(clippy::cast_possible_truncation)] // 64 MiB / 4 KiB = 16384, asserted by the limits
pub(super) const CHUNK_SECTORS_MAX: u16 = (CHUNK_BYTES_MAX / SECTOR_BYTES as u64) as u16;

/// Sectors of a slot, and of a data frame.
#[allow(clippy::cast_possible_truncation)] // 256, asserted by the limits
pub(super) const SLOT: u16 = SLOT_SECTORS as u16;

#[derive(Debug, Default)]
struct Session {
    greeted: bool,
    opened_at: u64,
    requests: usize,
    bytes: usize,
}

/// The connections of a shard.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    open: BTreeMap<ConnId, Session>,
    /// Of all, closed ones included.
    requests: usize,
    bytes: usize,
}

impl Sessions {
    /// `false`: there are too many.
    pub(super) fn opened(&mut self, now: u64, conn: ConnId) -> bool {
        if self.open.len() >= CONNS_MAX {
            return false;
        }
        let session = Session {
            opened_at: now,
            ..Session::default()
        };
        let before = self.open.insert(conn, session);
        assert!(before.is_none(), "{conn:?} opened twice");
        true
    }

    pub(super) fn closed(&mut self, conn: ConnId) {
        self.open.remove(&conn);
    }

    /// Forget those that should have said HELLO by now, and name them.
    pub(super) fn silent(&mut self, now: u64) -> Vec<ConnId> {
        let late = |session: &Session| {
            !session.greeted && now.saturating_sub(session.opened_at) >= HELLO_TIMEOUT_NS
        };
        let silent = self.open.iter().filter(|(_, session)| late(session));
        let silent: Vec<ConnId> = silent.map(|(conn, _)| *conn).collect();
        for conn in &silent {
            self.open.remove(conn);
        }
        silent
    }

    /// `None`: not (or no longer) open.
    pub(super) fn greeted(&self, conn: ConnId) -> Option<bool> {
        self.open.get(&conn).map(|session| session.greeted)
    }

    pub(super) fn set_greeted(&mut self, conn: ConnId) {
        if let Some(session) = self.open.get_mut(&conn) {
            session.greeted = true;
        }
    }

    /// Takes the request into account, or Busy.
    pub(super) fn admit(&mut self, conn: ConnId, header: &Header) -> Result<(), Status> {
        let Some(session) = self.open.get_mut(&conn) else {
            return Err(Status::BadRequest);
        };
        let bytes = payload_bytes(header);
        let conn_full =
            session.requests >= CONN_REQUESTS_MAX || session.bytes + bytes > CONN_BYTES_MAX;
        let shard_full =
            self.requests >= SHARD_REQUESTS_MAX || self.bytes + bytes > SHARD_BYTES_MAX;
        if conn_full || shard_full {
            return Err(Status::Busy);
        }
        session.requests += 1;
        session.bytes += bytes;
        self.requests += 1;
        self.bytes += bytes;
        Ok(())
    }

    /// The admitted request was answered. `false`: the connection is gone, drop the reply.
    pub(super) fn answered(&mut self, conn: ConnId, header: &Header) -> bool {
        let bytes = payload_bytes(header);
        assert!(self.requests > 0, "more replies than requests admitted");
        self.requests -= 1;
        self.bytes -= bytes;
        let Some(session) = self.open.get_mut(&conn) else {
            return false;
        };
        assert!(
            session.requests > 0,
            "{conn:?}: more replies than requests admitted"
        );
        session.requests -= 1;
        session.bytes -= bytes;
        true
    }
}

/// Payload that a request brings or takes away.
fn payload_bytes(header: &Header) -> usize {
    match header.opcode {
        Opcode::Read | Opcode::ReadVersioned | Opcode::Write => {
            usize::from(header.count) * SECTOR_BYTES
        }
        // Read, though not sent.
        Opcode::List if header.flags.has(Flags::VERIFY) => usize::from(header.count) * SECTOR_BYTES,
        _ => 0,
    }
}

/// Answer a HELLO: the reply's content and status. Anything but Ok closes the connection.
pub(super) fn greet(identity: &ShardIdentity, aux: &[u8]) -> (Hello, Status) {
    let mine = Hello {
        cluster: identity.cluster,
        node: identity.node,
        role: Role::Node,
        shard: identity.shard,
        shard_count: identity.shard_count,
        incarnation: identity.incarnation,
    };
    let status = match Hello::decode(aux) {
        Err(_) => Status::BadRequest,
        Ok(hello) if hello.role == Role::Node => Status::BadRequest,
        Ok(hello) if hello.cluster != mine.cluster => Status::WrongCluster,
        Ok(hello) if hello.node != mine.node => Status::WrongNode,
        Ok(hello) if hello.shard != mine.shard => Status::WrongShard,
        Ok(_) => Status::Ok,
    };
    (mine, status)
}

/// What a peer's HELLO request says.
pub(super) fn hello_to(
    identity: &ShardIdentity,
    node: ukai_proto::NodeId,
    shard: ukai_proto::ShardIndex,
) -> Hello {
    Hello {
        cluster: identity.cluster,
        node,
        role: Role::Peer,
        shard,
        shard_count: 0,
        incarnation: Incarnation::default(),
    }
}

/// Does the request make sense, and is it this shard's? Judged before lease, gate and store.
pub(super) fn check_shape(identity: &ShardIdentity, header: &Header) -> Result<(), Status> {
    if header.flags.has(Flags::REPLY) {
        return Err(Status::BadRequest);
    }
    let count = header.count;
    let first = header.sector.0;
    let fits = |limit: u16| {
        count >= 1
            && count <= limit
            && u32::from(first) + u32::from(count) <= CHUNK_SECTORS_MAX.into()
    };
    let in_slot = || fits(SLOT) && first % SLOT + count <= SLOT;
    let writes = header.token >= Token(1);
    let (sane, routed) = match header.opcode {
        Opcode::Hello => (false, false),
        Opcode::Read | Opcode::ReadVersioned => (in_slot(), true),
        Opcode::Write => (in_slot() && writes && header.flags.has(Flags::DATA), true),
        Opcode::Zero => (in_slot() && writes, true),
        Opcode::List => (fits(LIST_SECTORS_MAX), true),
        Opcode::Pull => (fits(CHUNK_SECTORS_MAX) && writes, true),
        Opcode::Fence => (writes, false),
        Opcode::Adopt
        | Opcode::Flush
        | Opcode::WrittenSince
        | Opcode::Release
        | Opcode::Settled
        | Opcode::DeleteVolume
        | Opcode::Stats
        | Opcode::Ping
        | Opcode::Inventory
        | Opcode::PutReport
        | Opcode::GetReport => (true, false),
    };
    let needs_volume = !matches!(
        header.opcode,
        Opcode::Stats | Opcode::Ping | Opcode::Inventory | Opcode::GetReport
    );
    if !sane || (needs_volume && header.volume == VolumeId::NIL) {
        return Err(Status::BadRequest);
    }
    if routed && shard_of(header.volume, header.chunk, identity.shard_count) != identity.shard {
        return Err(Status::WrongShard);
    }
    Ok(())
}
