//! The store of a shard as the simulator hands it to the core: the real one, watched, and for a canary
//! with a lie in it. Planted bugs live here, at the seam, and nowhere in what is shipped.

use crate::Canary;
use crate::tally::{Mark, Tally};
use chunkstore::core::Storage;
use chunkstore::disk::api::{
    DiskResult, Fence, IoId, OpId, PutRule, StoreAction, StoreReply, StoreRequest, StoreView,
};
use chunkstore::disk::store::Store;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use ukai_proto::limits::SEQ_MAX;
use ukai_proto::message::{InventoryEntry, SectorState, ShardStats};
use ukai_proto::{ChunkIndex, Generation, Seq, Token, Version, VolumeId};

/// Marks, shared by the world and its stores.
pub(crate) type Marks = Rc<RefCell<Tally>>;

/// Canary: the lower token that shall pass for the fenced one, while a request is looked at.
pub(crate) type Claimed = Rc<Cell<Option<Token>>>;

#[derive(Clone, Copy)]
enum Watched {
    Write(u16),
    Put(u16),
}

/// See the module docs.
pub(crate) struct SeamStore {
    pub(crate) store: Store<Vec<u8>>,
    canary: Option<Canary>,
    claimed: Claimed,
    watched: BTreeMap<OpId, Watched>,
    marks: Marks,
}

impl SeamStore {
    pub(crate) fn new(
        store: Store<Vec<u8>>,
        canary: Option<Canary>,
        claimed: Claimed,
        marks: Marks,
    ) -> Self {
        Self {
            store,
            canary,
            claimed,
            watched: BTreeMap::new(),
            marks,
        }
    }

    /// Looks at the replies that a call emitted.
    fn watch(&mut self, replies: &[StoreAction<Vec<u8>>]) {
        for action in replies {
            let StoreAction::Reply(op, reply) = action else {
                continue;
            };
            let adopted = |state: &SectorState| state.flags & SectorState::ADOPTED != 0;
            if let StoreReply::List(states) = reply
                && states.iter().any(adopted)
            {
                self.marks.borrow_mut().hit(Mark::AdoptedCompared.name());
            }
            let (Some(watched), StoreReply::Done { applied }) = (self.watched.remove(op), reply)
            else {
                continue;
            };
            let mark = match watched {
                Watched::Write(count) if *applied < count => Mark::WriteIgnored,
                Watched::Put(count) if *applied < count => Mark::CopyLost,
                _ => continue,
            };
            self.marks.borrow_mut().hit(mark.name());
        }
    }
}

impl StoreView for SeamStore {
    fn fence(&self, volume: VolumeId) -> Option<Fence> {
        let fence = self.store.fence(volume)?;
        Some(match self.claimed.get() {
            Some(token) if token < fence.token => Fence {
                token,
                generation: Generation(0),
            },
            _ => fence,
        })
    }

    fn open_intents(
        &self,
        volume: VolumeId,
        start: ChunkIndex,
        limit: usize,
    ) -> (Vec<ChunkIndex>, bool) {
        if self.canary == Some(Canary::NoIntent) {
            return (Vec::new(), false);
        }
        self.store.open_intents(volume, start, limit)
    }

    fn written_since(
        &self,
        volume: VolumeId,
        since: Generation,
        start: ChunkIndex,
        limit: usize,
    ) -> (Vec<ChunkIndex>, bool) {
        self.store.written_since(volume, since, start, limit)
    }

    fn inventory(&self, after: VolumeId, limit: usize) -> (Vec<InventoryEntry>, bool) {
        self.store.inventory(after, limit)
    }

    fn settled_up_to(&self, volume: VolumeId) -> Version {
        self.store.settled_up_to(volume)
    }

    fn resumed(&mut self, volume: VolumeId, token: Token, seq: Seq) {
        self.store.resumed(volume, token, seq);
    }

    fn settled(&mut self, volume: VolumeId, token: Token, seq: Seq) {
        self.store.settled(volume, token, seq);
    }

    fn slots(&self) -> (u64, u64) {
        self.store.slots()
    }
}

impl Storage<Vec<u8>> for SeamStore {
    fn tick(&mut self) {
        self.store.tick();
    }

    fn submit(
        &mut self,
        op: OpId,
        mut request: StoreRequest<Vec<u8>>,
        out: &mut Vec<StoreAction<Vec<u8>>>,
    ) {
        match &mut request {
            StoreRequest::Write { range, .. } => {
                self.watched.insert(op, Watched::Write(range.count));
            }
            StoreRequest::Put { range, admit, .. } => {
                self.watched.insert(op, Watched::Put(range.count));
                if self.canary == Some(Canary::CopyOverNewer) {
                    *admit = PutRule::Mirror(Version::new(Token(u32::MAX), Seq(SEQ_MAX)));
                }
            }
            _ => {}
        }
        let from = out.len();
        self.store.submit(op, request, out);
        self.watch(&out[from..]);
    }

    fn disk_done(
        &mut self,
        io: IoId,
        result: DiskResult<Vec<u8>>,
        out: &mut Vec<StoreAction<Vec<u8>>>,
    ) {
        let from = out.len();
        self.store.disk_done(io, result, out);
        self.watch(&out[from..]);
    }

    fn turn_end(&mut self, out: &mut Vec<StoreAction<Vec<u8>>>) {
        let from = out.len();
        self.store.turn_end(out);
        self.watch(&out[from..]);
    }

    fn background(&mut self, out: &mut Vec<StoreAction<Vec<u8>>>) {
        let from = out.len();
        Storage::background(&mut self.store, out);
        self.watch(&out[from..]);
    }

    fn close(&mut self, out: &mut Vec<StoreAction<Vec<u8>>>) {
        self.store.close(out);
    }

    fn closed(&self) -> Option<bool> {
        Storage::closed(&self.store)
    }

    fn add_stats(&self, stats: &mut ShardStats) {
        self.store.add_stats(stats);
    }
}
