//! Planted bugs, to see that the checks catch them.

use crate::Canary;
use crate::world::{FrontIndex, NodeIndex, VOLUME, World};
use ublk_front::core::api::GuestTag;
use ukai_proto::message::{Pull, PullMode};
use ukai_proto::{Frame, Header, Opcode, Token};

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

    /// The planted bugs of nodes that show in a request: the token under which it shall pass, and copies
    /// that take only what is newer at the source.
    pub(crate) fn canary_request(
        &mut self,
        node: NodeIndex,
        shard: u16,
        frame: &mut Frame<Vec<u8>>,
    ) -> Option<Token> {
        match self.options.canary? {
            Canary::SkipFence if frame.header.volume == VOLUME => {
                let is_io = matches!(
                    frame.header.opcode,
                    Opcode::Read | Opcode::Write | Opcode::Zero
                );
                is_io.then_some(frame.header.token)
            }
            Canary::NewerThanResync if frame.header.opcode == Opcode::Pull => {
                let mut pull = Pull::decode(&frame.aux).ok()?;
                if pull.mode == PullMode::Mirror {
                    pull.mode = PullMode::Newer;
                    *frame = Frame::new(frame.header, pull.encode(), None);
                    self.say(|| format!("canary: n{node} shard {shard} copies only newer sectors"));
                }
                None
            }
            _ => None,
        }
    }
}
