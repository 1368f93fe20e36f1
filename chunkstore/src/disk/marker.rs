//! The marker rule: when a sector that was written over zeros may be overwritten.
//!
//! A sector written over zeros lies on garbage until its data has reached the medium.
//! If its record survives a crash and its data does not, recovery must answer zeros, which is legal
//! while the write was not answered (if the process dies) or not flushed (if the power fails). If it
//! *was*, and was then overwritten by a write whose record is lost, the content matches nothing either,
//! but zeros would be wrong. So the overwriting waits until a block is written that tells that the first
//! write was; and, if a flush of it was asked for, until a block (or superblock) is durable that tells
//! of that flush. Blocks tell both all the time, so only a second write on the heels of the first waits.

use super::change::Target;
use super::layout::SlotIndex;
use super::op::Needs;
use super::record::Run;
use super::store::Store;
use ukai_proto::Buffer;
use ukai_proto::message::SectorState;

impl<B: Buffer> Store<B> {
    /// May these sectors be overwritten? If not, the request is parked, with what it needs.
    pub(super) fn may_overwrite(
        &mut self,
        key: u64,
        held: Option<Needs>,
        target: &Target,
        runs: &[(u8, u16)],
    ) -> Result<(), Needs> {
        let Target::Slot(slot) = *target else {
            return Ok(());
        };
        let needs = match held {
            Some(needs) => needs,
            None => self.needs(slot, runs),
        };
        // Of the power, only what was promised to be durable matters: a flush may have been asked for
        // since the request was looked at last.
        let (first, last) = needs.fresh;
        let flushed = if first <= self.commit.claim {
            last.min(self.commit.claim)
        } else {
            0
        };
        if flushed <= self.commit.marker
            && last <= self.commit.written_marker.max(self.commit.marker)
        {
            return Ok(());
        }
        self.marker_wanted = self.marker_wanted.max(flushed);
        self.written_marker_wanted = self.written_marker_wanted.max(last);
        self.wait_marker.push(key);
        Err(needs)
    }

    fn needs(&mut self, slot: SlotIndex, runs: &[(u8, u16)]) -> Needs {
        let marker = self.commit.marker;
        let cached = self.cache.get(slot).expect("the page is at hand");
        if cached.fresh_group <= marker {
            cached.clear_fresh();
            return Needs::default();
        }
        let page = cached.page.as_ref().expect("the slot has an owner");
        let risky = runs
            .iter()
            .flat_map(|(at, count)| {
                (Run {
                    slot,
                    first: *at,
                    count: *count,
                })
                .sectors()
            })
            .any(|sector| {
                cached.is_fresh(sector) && page.state(sector).flags & SectorState::ZERO == 0
            });
        let fresh = if risky {
            (cached.fresh_first, cached.fresh_group)
        } else {
            (0, 0)
        };
        Needs { fresh }
    }

    /// Before sealing: a block that tells the marks, if one is wanted and they can be told.
    pub(super) fn want_marker(&mut self) {
        let wanted = self.written_marker_wanted;
        if wanted > self.commit.written_marker_coming() && wanted <= self.commit.complete() {
            self.touch_marker();
        }
        if self.marker_wanted <= self.commit.marker || self.marker_group.is_some() {
            return;
        }
        if self.commit.flushed < self.marker_wanted {
            self.commit.request(self.marker_wanted);
            return;
        }
        if self.touch_marker() {
            self.commit.durable_wanted = true;
            self.marker_group = Some(self.commit.pending());
        }
    }

    /// A block of its own for marks, if no other goes out. A ring without room for it is due for a
    /// checkpoint, whose blocks and superblock tell them too.
    fn touch_marker(&mut self) -> bool {
        self.marker_stalled = self.log.is_empty() && self.log_room(0, 0) == 0;
        if !self.marker_stalled {
            self.log.touch();
        }
        !self.marker_stalled
    }

    pub(super) fn marker_progress(&mut self) {
        if self
            .marker_group
            .is_some_and(|group| group <= self.commit.log_durable())
        {
            self.marker_group = None;
        }
        let seen = (self.commit.marker, self.commit.written_marker);
        if self.markers_seen != seen {
            self.markers_seen = seen;
            self.ready.extend(self.wait_marker.drain(..));
        }
    }
}
