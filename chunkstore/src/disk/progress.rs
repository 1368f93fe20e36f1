//! What completions set in motion: marks of the log, who waits for them, syncs, and poison.

use super::api::{DiskOp, IoId, StoreAction};
use super::op::{Io, Waiter};
use super::store::Store;
use ukai_proto::Buffer;
use ukai_proto::limits::SLOT_BYTES;

impl<B: Buffer> Store<B> {
    /// Looks at the marks of the log and wakes who waits for them.
    pub(super) fn progress(&mut self, out: &mut Vec<StoreAction<B>>) {
        if self.poisoned {
            return;
        }
        let mut told = std::mem::take(&mut self.told);
        self.commit.advance(&mut told);
        for key in told.drain(..) {
            self.log_ok(key, out);
        }
        self.told = told;
        while let Some((group, waiter)) = self.on_log_durable.front().copied() {
            if group > self.commit.log_durable() {
                break;
            }
            self.on_log_durable.pop_front();
            self.wake(waiter, out);
        }
        while let Some((group, waiter)) = self.on_flushed.front().copied() {
            if group > self.commit.flushed {
                break;
            }
            self.on_flushed.pop_front();
            self.wake(waiter, out);
        }
        self.space.flushed(self.commit.flushed);
        while let Some(slot) = self.space.punch() {
            let io = self.io(Io::Punch { slot });
            let position = self.geometry.slot_position(slot);
            let bytes = SLOT_BYTES as u64;
            out.push(StoreAction::Disk(DiskOp::Punch {
                io,
                position,
                bytes,
            }));
        }
        self.wake_slots();
        self.wake_intent_room();
        self.marker_progress();
        self.checkpoint_progress(out);
    }

    fn log_ok(&mut self, key: u64, out: &mut Vec<StoreAction<B>>) {
        if let Some(op) = self.ops.get_mut(key) {
            op.log_ok = true;
            self.settle_up(key, out);
        }
    }

    fn wake(&mut self, waiter: Waiter, out: &mut Vec<StoreAction<B>>) {
        match waiter {
            Waiter::Op(key) => self.log_ok(key, out),
            Waiter::Intent(volume, chunk) => {
                if let Some(intent) = self.intents.get_mut(volume, chunk) {
                    intent.opening = None;
                    self.ready.extend(intent.waiting.drain(..));
                }
            }
            Waiter::Checkpoint => self.checkpoint_logged(out),
        }
    }

    pub(super) fn io(&mut self, io: Io) -> IoId {
        IoId(self.ios.insert(io))
    }

    pub(super) fn begin_sync(&mut self, out: &mut Vec<StoreAction<B>>) {
        if !self.poisoned && self.commit.begin_sync() {
            let io = self.io(Io::Sync);
            out.push(StoreAction::Disk(DiskOp::Sync { io }));
        }
    }

    /// The log or a flush failed: what is on disk is no longer known. Reads go on, nothing else does.
    pub(super) fn poison(&mut self, out: &mut Vec<StoreAction<B>>) {
        if std::mem::replace(&mut self.poisoned, true) {
            return;
        }
        self.disowning = true;
        if !self.checkpoint.superblock_under_way() {
            self.disown(out);
        }
        self.on_log_durable.clear();
        self.on_flushed.clear();
        let keys: Vec<u64> = self.ops.keys().collect();
        for key in keys {
            let Some(op) = self.ops.get(key) else {
                continue;
            };
            if op.kind.changes() && op.executed {
                self.settle_up(key, out);
            } else if op.started {
                // Writers find the poison; readers that waited for room or a turn look again.
                self.ready.push_back(key);
            }
        }
    }

    pub(super) fn maybe_closed(&mut self) {
        if self.closing && self.poisoned && !self.disowning && self.ops.len() == 0 {
            self.closed = true;
        }
    }
}
