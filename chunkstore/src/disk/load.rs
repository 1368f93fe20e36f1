//! Pages on a miss.

use super::api::{DiskOp, StoreAction, StoreReply};
use super::hole::SlotKey;
use super::layout::{BLOCK_BYTES_U32, SlotIndex};
use super::op::Io;
use super::page::{self, Page, PageCheck};
use super::store::Store;
use ukai_proto::{Buffer, SectorInChunk, Status};

impl<B: Buffer> Store<B> {
    pub(super) fn slot_page_position(&self, slot: SlotIndex) -> u64 {
        self.geometry.page_position(slot.page())
    }

    /// The page of a slot; a miss reads it and parks the request.
    pub(super) fn page_ready(
        &mut self,
        slot: SlotIndex,
        waiter: Option<u64>,
        out: &mut Vec<StoreAction<B>>,
    ) -> bool {
        if self.cache.get(slot).is_some() {
            return true;
        }
        if let Some(waiting) = self.reading.get_mut(&slot) {
            waiting.extend(waiter);
            return false;
        }
        self.reading.insert(slot, waiter.into_iter().collect());
        let io = self.io(Io::Page { slot });
        let position = self.slot_page_position(slot);
        let bytes = BLOCK_BYTES_U32;
        out.push(StoreAction::Disk(DiskOp::Read {
            io,
            position,
            bytes,
        }));
        false
    }

    pub(super) fn page_read(
        &mut self,
        slot: SlotIndex,
        read: Option<B>,
        out: &mut Vec<StoreAction<B>>,
    ) {
        // Nobody waits any more if the slot changed its owner meanwhile.
        let Some(waiting) = self.reading.remove(&slot) else {
            return;
        };
        let page = read.as_ref().and_then(|data| {
            let image = data.as_slice();
            match page::check(image, &self.place, slot.page()) {
                PageCheck::Valid(head) if head.kind == page::KIND_SLOT => {
                    Some(Page::from_image(image))
                }
                _ => None,
            }
        });
        match page {
            Some(page) => {
                self.cache.insert(slot, Some(page));
                self.ready.extend(waiting);
            }
            None => {
                // The slot cannot be served until its page can be read again.
                self.sweep_skips(slot);
                for key in waiting {
                    if self.ops.get(key).is_some_and(|op| !op.executed) {
                        let status = Status::IoError;
                        self.reply(
                            key,
                            StoreReply::Failed {
                                status,
                                sector: SectorInChunk(0),
                            },
                            out,
                        );
                    }
                }
            }
        }
    }

    /// Settled?
    pub(super) fn settled_ready(
        &mut self,
        key: &SlotKey,
        slot: SlotIndex,
        waiter: u64,
        out: &mut Vec<StoreAction<B>>,
    ) -> bool {
        if !self.sweep.suspects.contains(key) {
            return true;
        }
        self.settle(key, slot, Some(waiter), out);
        false
    }
}
