//! Counters of a shard.

use ukai_proto::limits::SECTOR_BYTES;
use ukai_proto::message::{SectorState, ShardStats};
use ukai_proto::{Opcode, Status};

/// What the core counts itself; the store adds space, log and checksum counters.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) stats: ShardStats,
}

impl Counters {
    /// A request was answered.
    pub(super) fn answered(&mut self, opcode: Opcode, status: Status, sectors: u16) {
        let bytes = u64::from(sectors) * SECTOR_BYTES as u64;
        let stats = &mut self.stats;
        match (opcode, status) {
            (Opcode::Read, Status::Ok) => {
                stats.reads += 1;
                stats.read_bytes += bytes;
            }
            (Opcode::Write, Status::Ok) => {
                stats.writes += 1;
                stats.write_bytes += bytes;
            }
            (Opcode::Zero, Status::Ok) => stats.zeroes += 1,
            (Opcode::Flush, Status::Ok) => stats.flushes += 1,
            (_, Status::StaleToken | Status::NotFenced | Status::StaleMap) => stats.refused += 1,
            _ => {}
        }
    }

    /// A copy stored sectors.
    pub(super) fn pulled(&mut self, sectors: u16, zeroes: bool) {
        self.stats.pulled_sectors += u64::from(sectors);
        if zeroes {
            self.stats.pulled_zeroes += u64::from(sectors);
        }
    }

    /// The data of these sectors was read and compared with its checksums.
    pub(super) fn verified(&mut self, states: &[SectorState]) {
        let written = states.iter().filter(|s| s.flags & SectorState::ZERO == 0);
        self.stats.verified_sectors += written.count() as u64;
    }
}
