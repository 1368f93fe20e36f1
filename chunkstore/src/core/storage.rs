//! The store as the core sees it; a seam so that scripted stores can drive the core in tests.

use crate::disk::api::{DiskResult, IoId, OpId, StoreAction, StoreRequest, StoreView};
use crate::disk::store::Store;
use ukai_proto::Buffer;
use ukai_proto::message::ShardStats;

/// What a shard core needs of [`crate::disk::store::Store`].
pub trait Storage<B>: StoreView {
    /// Start a request.
    fn submit(&mut self, op: OpId, request: StoreRequest<B>, out: &mut Vec<StoreAction<B>>);
    /// A device operation ended.
    fn disk_done(&mut self, io: IoId, result: DiskResult<B>, out: &mut Vec<StoreAction<B>>);
    /// End of a batch: group commit.
    fn turn_end(&mut self, out: &mut Vec<StoreAction<B>>);
    /// Four times a second, about.
    fn tick(&mut self);
    /// One step of background work; the store decides what may go on beside requests.
    fn background(&mut self, out: &mut Vec<StoreAction<B>>);
    /// Clean stop: checkpoint. Call once, when nothing is in flight.
    fn close(&mut self, out: &mut Vec<StoreAction<B>>);
    /// After [`Storage::close`]: `Some(clean)` once nothing more will happen.
    fn closed(&self) -> Option<bool>;
    /// Fill in the store's own counters (space, log, intents, bad sectors).
    fn add_stats(&self, stats: &mut ShardStats);
}

impl<B: Buffer> Storage<B> for Store<B> {
    fn submit(&mut self, op: OpId, request: StoreRequest<B>, out: &mut Vec<StoreAction<B>>) {
        Store::submit(self, op, request, out);
    }

    fn disk_done(&mut self, io: IoId, result: DiskResult<B>, out: &mut Vec<StoreAction<B>>) {
        Store::disk_done(self, io, result, out);
    }

    fn turn_end(&mut self, out: &mut Vec<StoreAction<B>>) {
        Store::turn_end(self, out);
    }

    fn tick(&mut self) {
        Store::tick(self);
    }

    fn background(&mut self, out: &mut Vec<StoreAction<B>>) {
        // Whether there is more to do does not matter: each completion ends a turn, which asks again.
        let _more = Store::background(self, out);
    }

    fn close(&mut self, out: &mut Vec<StoreAction<B>>) {
        Store::close(self, out);
    }

    fn closed(&self) -> Option<bool> {
        Store::closed(self).then(|| !Store::poisoned(self))
    }

    fn add_stats(&self, stats: &mut ShardStats) {
        let own = Store::stats(self);
        stats.intents_open = own.intents_open;
        stats.log_bytes = own.log_bytes;
        stats.checkpoints = own.checkpoints;
        stats.bad_sectors = own.bad_sectors;
        (stats.slots_used, stats.slots_total) = self.slots();
    }
}
