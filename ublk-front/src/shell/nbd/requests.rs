//! NBD requests in flight, each made of one or more guest requests (one slot each).

use super::slots::SLOTS;
use crate::core::api::GuestTag;
use crate::nbd::NbdError;
use crate::nbd::request::Request;

#[derive(Debug)]
struct Entry {
    request: Request,
    live: bool,
    /// In order of their place on the volume.
    pieces: Vec<GuestTag>,
    /// Pieces not yet ended.
    left: usize,
    /// Its payload is still arriving: more pieces will come.
    filling: bool,
    /// Its client is gone in the middle of the payload: it is not answered.
    abandoned: bool,
    error: Option<NbdError>,
}

/// A request that is finished. The slots of `pieces` (reads only) are the caller's now.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) request: Request,
    pub(super) error: Option<NbdError>,
    pub(super) pieces: Vec<GuestTag>,
}

/// A slab; bounded because each entry has a slot, except for the one that is being filled.
#[derive(Debug)]
pub(super) struct Requests {
    entries: Vec<Entry>,
    free: Vec<u32>,
    live: usize,
    /// Entry of each slot.
    of_slot: Vec<u32>,
}

impl Default for Requests {
    fn default() -> Self {
        Self {
            entries: Vec::new(),
            free: Vec::new(),
            live: 0,
            of_slot: vec![u32::MAX; SLOTS as usize],
        }
    }
}

impl Requests {
    pub(super) fn is_empty(&self) -> bool {
        self.live == 0
    }

    /// A new one without pieces.
    pub(super) fn add(&mut self, request: Request, filling: bool) -> u32 {
        self.live += 1;
        let entry = Entry {
            request,
            live: true,
            pieces: Vec::new(),
            left: 0,
            filling,
            abandoned: false,
            error: None,
        };
        if let Some(index) = self.free.pop() {
            self.entries[index as usize] = entry;
            return index;
        }
        self.entries.push(entry);
        let index = self.entries.len() - 1;
        assert!(index <= SLOTS as usize, "{index} requests on {SLOTS} slots");
        #[allow(clippy::cast_possible_truncation)] // just asserted
        let index = index as u32;
        index
    }

    /// A guest request made for it.
    pub(super) fn piece(&mut self, index: u32, tag: GuestTag) {
        let entry = &mut self.entries[index as usize];
        assert!(entry.live, "a piece of a request that has ended");
        entry.left += 1;
        if entry.request.is_read() {
            entry.pieces.push(tag);
        }
        self.of_slot[tag.0 as usize] = index;
    }

    /// A read could not get all its slots: forget it, and give back these.
    pub(super) fn cancel(&mut self, index: u32) -> Vec<GuestTag> {
        let pieces = std::mem::take(&mut self.entries[index as usize].pieces);
        self.remove(index);
        pieces
    }

    /// Its payload is all there.
    pub(super) fn filled(&mut self, index: u32) -> Option<Answer> {
        self.entries[index as usize].filling = false;
        self.finish(index)
    }

    /// Its payload will never be all there.
    pub(super) fn abandon(&mut self, index: u32) {
        let entry = &mut self.entries[index as usize];
        (entry.filling, entry.abandoned) = (false, true);
        self.finish(index);
    }

    /// A guest request has ended: was it a read's, and is the whole request finished?
    pub(super) fn ended(
        &mut self,
        tag: GuestTag,
        error: Option<NbdError>,
    ) -> (bool, Option<Answer>) {
        let index = std::mem::replace(&mut self.of_slot[tag.0 as usize], u32::MAX);
        let entry = &mut self.entries[index as usize];
        assert!(entry.live && entry.left > 0, "slot {} ended twice", tag.0);
        entry.left -= 1;
        entry.error = entry.error.or(error);
        let is_read = entry.request.is_read();
        (is_read, self.finish(index))
    }

    fn finish(&mut self, index: u32) -> Option<Answer> {
        let entry = &mut self.entries[index as usize];
        if entry.left > 0 || entry.filling {
            return None;
        }
        let answer = Answer {
            request: entry.request,
            error: entry.error,
            pieces: std::mem::take(&mut entry.pieces),
        };
        let abandoned = entry.abandoned;
        self.remove(index);
        (!abandoned).then_some(answer)
    }

    fn remove(&mut self, index: u32) {
        self.entries[index as usize].live = false;
        self.live -= 1;
        self.free.push(index);
    }
}
