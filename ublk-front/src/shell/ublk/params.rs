//! What the device looks like to the kernel.

use crate::core::api::{GUEST_SECTORS_MAX, LANE_DEPTH_MAX, LANES_MAX, Presented};
use libublk::sys;
use ukai_meta::Durability;
use ukai_proto::limits::{SECTOR_BYTES, SLOT_BYTES};

/// Largest read or write the kernel sends: half a slot, so that a queue's buffers (depth x this)
/// stay moderate.
pub(super) const IO_BYTES_MAX: u32 = 512 << 10;
const _: () = assert!(IO_BYTES_MAX as usize <= GUEST_SECTORS_MAX as usize * SECTOR_BYTES);

/// Longest discard or write-zeroes request: 64 slots, a few turns of the lane's piece window.
const ZERO_BYTES_MAX: u32 = 64 << 20;

#[allow(clippy::cast_possible_truncation)] // 12
const SECTOR_SHIFT: u8 = SECTOR_BYTES.trailing_zeros() as u8;
/// The driver's unit of length.
const UNIT_BYTES: u32 = 512;
#[allow(clippy::cast_possible_truncation)] // 2048
const SLOT_UNITS: u32 = (SLOT_BYTES / UNIT_BYTES as usize) as u32;

/// Everything that makes a device, and must be the same when a successor takes it over.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceShape {
    /// Size; a multiple of 4096.
    pub size_bytes: u64,
    /// Queues, one thread each.
    pub queues: u16,
    /// Requests in flight per queue.
    pub depth: u16,
    /// A volatile write cache is advertised: completed writes are durable only after FLUSH or with
    /// FUA.
    pub cache: bool,
}

impl DeviceShape {
    /// The shape for a volume, with the operator's wishes brought inside our limits.
    #[must_use]
    pub fn new(presented: &Presented, queues: u16, depth: u16) -> Self {
        #[allow(clippy::cast_possible_truncation)] // both far below 65536
        let (queues_max, depth_max) = (LANES_MAX as u16, LANE_DEPTH_MAX as u16);
        Self {
            size_bytes: presented.size_bytes,
            queues: queues.clamp(1, queues_max),
            depth: depth.clamp(1, depth_max),
            cache: presented.durability == Durability::Cache,
        }
    }

    /// The driver's parameters.
    pub(super) fn params(&self) -> sys::ublk_params {
        let attrs = if self.cache {
            sys::UBLK_ATTR_VOLATILE_CACHE | sys::UBLK_ATTR_FUA
        } else {
            0
        };
        sys::ublk_params {
            types: sys::UBLK_PARAM_TYPE_BASIC | sys::UBLK_PARAM_TYPE_DISCARD,
            basic: sys::ublk_param_basic {
                attrs,
                logical_bs_shift: SECTOR_SHIFT,
                physical_bs_shift: SECTOR_SHIFT,
                io_opt_shift: SECTOR_SHIFT,
                io_min_shift: SECTOR_SHIFT,
                max_sectors: IO_BYTES_MAX / UNIT_BYTES,
                // The block layer splits at slots, so that a read or write is one piece on a node.
                chunk_sectors: SLOT_UNITS,
                dev_sectors: self.size_bytes / u64::from(UNIT_BYTES),
                ..Default::default()
            },
            discard: sys::ublk_param_discard {
                discard_alignment: 0,
                discard_granularity: 1 << SECTOR_SHIFT,
                max_discard_sectors: ZERO_BYTES_MAX / UNIT_BYTES,
                max_write_zeroes_sectors: ZERO_BYTES_MAX / UNIT_BYTES,
                max_discard_segments: 1,
                reserved0: 0,
            },
            ..Default::default()
        }
    }

    /// Flags of ADD_DEV: a dead front leaves the device waiting for its successor, and what was in
    /// flight is issued again.
    pub(super) fn flags() -> u64 {
        u64::from(sys::UBLK_F_USER_RECOVERY) | u64::from(sys::UBLK_F_USER_RECOVERY_REISSUE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ukai_proto::{Generation, Token, VolumeId};

    fn presented(durability: Durability) -> Presented {
        Presented {
            volume: VolumeId([7; 16]),
            name: "v".into(),
            size_bytes: 1 << 30,
            chunk_bytes: 4 << 20,
            durability,
            token: Token(1),
            generation: Generation(1),
        }
    }

    #[test]
    fn a_cached_volume_offers_flush_and_fua_a_through_volume_neither() {
        let cached = DeviceShape::new(&presented(Durability::Cache), 2, 64).params();
        assert_eq!(
            cached.basic.attrs,
            sys::UBLK_ATTR_VOLATILE_CACHE | sys::UBLK_ATTR_FUA
        );
        let through = DeviceShape::new(&presented(Durability::Through), 2, 64).params();
        assert_eq!(through.basic.attrs, 0);
        assert_eq!(1u64 << through.basic.logical_bs_shift, SECTOR_BYTES as u64);
        assert_eq!(through.basic.dev_sectors, (1 << 30) / 512);
    }

    #[test]
    fn wishes_stay_inside_the_limits_of_lanes() {
        let shape = DeviceShape::new(&presented(Durability::Cache), 0, u16::MAX);
        assert_eq!((shape.queues, u32::from(shape.depth)), (1, LANE_DEPTH_MAX));
        let shape = DeviceShape::new(&presented(Durability::Cache), u16::MAX, 0);
        assert_eq!((usize::from(shape.queues), shape.depth), (LANES_MAX, 1));
    }
}
