//! Planted bugs, to see that the checks catch them.

use crate::Canary;
use crate::world::{FrontIndex, World};
use ublk_front::core::api::GuestTag;
use ukai_proto::Header;

impl World {
    pub(crate) fn canary_write_sent(
        &mut self,
        front: FrontIndex,
        lane: usize,
        tag: GuestTag,
        header: &Header,
    ) {
        if self.options.canary == Some(Canary::EarlyAck)
            && let Some(slot) = &mut self.fronts[front].slots[lane][tag.0 as usize]
        {
            slot.pieces
                .entry(header.tag)
                .or_insert((header.count, false));
        }
    }

    /// The planted bug: the guest is answered as soon as one replica has all of it.
    pub(crate) fn canary_write_acked(&mut self, front: FrontIndex, lane: usize, wire_tag: u64) {
        if self.options.canary != Some(Canary::EarlyAck) {
            return;
        }
        let slots = &mut self.fronts[front].slots[lane];
        let Some(place) = slots.iter_mut().find(|slot| {
            slot.as_ref()
                .is_some_and(|slot| slot.pieces.contains_key(&wire_tag))
        }) else {
            return;
        };
        let Some(mut slot) = place.take() else { return };
        if let Some((_, acked)) = slot.pieces.get_mut(&wire_tag) {
            *acked = true;
        }
        let sectors: u32 = slot
            .pieces
            .values()
            .filter(|(_, acked)| *acked)
            .map(|(count, _)| u32::from(*count))
            .sum();
        if sectors == slot.io.count && !slot.answered {
            slot.answered = true;
            self.answer(&slot, Ok(()));
        }
        let tag = slot.io.tag.0 as usize;
        self.fronts[front].slots[lane][tag] = Some(slot);
    }
}
