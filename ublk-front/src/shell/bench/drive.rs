//! The loop of one lane: keeps the requests of a phase in flight.

use super::buffers::BenchBuffers;
use crate::core::LaneLimits;
use crate::core::api::{GuestError, GuestIo, GuestOp, GuestTag, Now};
use crate::shell::clock;
use crate::shell::context::LaneSeat;
use crate::shell::lane::{Completion, LaneDriver};
use crate::shell::ring::LaneRing;
use std::io;
use std::time::Duration;

/// Requests that end within the turn that began them (all of them fail) are followed by others so often before
/// the kernel is asked for news.
const PASSES_MAX: u32 = 4;

/// What a phase wants done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Step {
    pub(super) op: GuestOp,
    pub(super) sector: u64,
    pub(super) sectors: u32,
    /// A flush follows, which is part of the request.
    pub(super) flush: bool,
}

/// A part of a lane's life.
pub(super) trait Phase {
    /// The next request; `None`: no more, the phase ends when all are answered.
    fn next(&mut self, now: Now) -> Option<Step>;
    /// One has ended. From the turn that began it to the turn that heard of its end: what lies between two
    /// requests on the same tag is counted with them.
    fn ended(&mut self, step: Step, begin: Now, now: Now, result: Result<(), GuestError>);
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    step: Step,
    begin: Now,
    flushing: bool,
}

/// A lane on a ring of its own.
pub(super) struct Driver {
    // First, so that it is dropped first should anything fail.
    ring: LaneRing,
    lane: LaneDriver,
    arrived: Vec<(u64, i32)>,
    finished: Vec<Completion>,
    writes: u64,
}

impl Driver {
    pub(super) fn new(seat: LaneSeat, poll: Duration) -> io::Result<Self> {
        Ok(Self {
            ring: LaneRing::new(poll)?,
            lane: LaneDriver::new(seat, LaneLimits::default()),
            arrived: Vec::new(),
            finished: Vec::new(),
            writes: 0,
        })
    }

    /// Runs a phase with up to `depth` requests in flight until it has no more and all are answered.
    pub(super) fn drive(&mut self, buffers: &BenchBuffers, depth: u32, phase: &mut impl Phase) {
        let mut slots: Vec<Option<Slot>> = vec![None; depth as usize];
        let mut idle: Vec<GuestTag> = (0..depth).rev().map(GuestTag).collect();
        let (mut now, mut open) = (clock::now(), true);
        loop {
            let mut passes = 0;
            let settled = loop {
                while open && let Some(tag) = idle.pop() {
                    let Some(step) = phase.next(now) else {
                        open = false;
                        idle.push(tag);
                        break;
                    };
                    slots[tag.0 as usize] = Some(Slot {
                        step,
                        begin: now,
                        flushing: false,
                    });
                    self.begin(buffers, tag, step);
                }
                self.turn(buffers);
                if self.finished.is_empty() || passes == PASSES_MAX {
                    break self.finished.is_empty();
                }
                passes += 1;
                let mut finished = std::mem::take(&mut self.finished);
                for (tag, result) in finished.drain(..) {
                    let slot = &mut slots[tag.0 as usize];
                    let Some(under_way) = slot else {
                        panic!("tag {} was answered twice", tag.0);
                    };
                    if result.is_ok() && under_way.step.flush && !under_way.flushing {
                        under_way.flushing = true;
                        self.flush(buffers, tag);
                        continue;
                    }
                    phase.ended(under_way.step, under_way.begin, now, result);
                    *slot = None;
                    idle.push(tag);
                }
                self.finished = finished;
            };
            if !open && idle.len() == slots.len() {
                return;
            }
            self.enter(buffers, usize::from(settled));
            now = clock::now();
        }
    }

    fn begin(&mut self, buffers: &BenchBuffers, tag: GuestTag, step: Step) {
        if matches!(step.op, GuestOp::Write { .. }) {
            self.writes += 1;
            buffers.stamp(tag, step.sectors, step.sector ^ (self.writes << 32));
        }
        let io = GuestIo {
            tag,
            op: step.op,
            sector: step.sector,
            count: step.sectors,
        };
        self.lane.guest(io, buffers);
    }

    fn flush(&mut self, buffers: &BenchBuffers, tag: GuestTag) {
        let io = GuestIo {
            tag,
            op: GuestOp::Flush,
            sector: 0,
            count: 0,
        };
        self.lane.guest(io, buffers);
    }

    /// Puts what is due on the ring, and takes what is finished.
    fn turn(&mut self, buffers: &BenchBuffers) {
        let Self {
            ring,
            lane,
            finished,
            ..
        } = self;
        finished.extend(lane.turn(buffers, &mut |entry| ring.push(&entry)));
    }

    fn enter(&mut self, buffers: &BenchBuffers, want: usize) {
        self.ring.enter(want, &mut self.arrived);
        for (user_data, result) in self.arrived.drain(..) {
            assert!(
                LaneDriver::owns(user_data),
                "completion {user_data:#x} belongs to nobody"
            );
            self.lane.completed(user_data, result, buffers);
        }
    }

    /// Ends the lane; nothing is in flight.
    pub(super) fn close(mut self, buffers: &BenchBuffers) {
        self.lane.close();
        loop {
            self.turn(buffers);
            if self.lane.is_quiet() {
                return;
            }
            self.enter(buffers, 1);
        }
    }
}
