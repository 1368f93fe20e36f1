//! Detach: flush, settle (so that no intents stay open), give the volume back.

use super::request::Want;
use super::{ControlCore, Phase};
use crate::core::api::{ControlAction, ControlError, Now};
use std::time::Duration;
use ukai_proto::Opcode;

/// A node that does not flush in time leaves its intents open: the next attach looks at them.
const STEP_MAX: Duration = Duration::from_secs(5);
/// A metadata store that does not answer so long keeps the volume attached.
const COMMIT_MAX: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    Flush,
    Settle,
    Commit,
}

impl ControlCore {
    pub(super) fn begin_detach(&mut self, now: Now, out: &mut Vec<ControlAction>) {
        match self.phase {
            Phase::Idle | Phase::Attaching => self.end(Ok(()), out),
            Phase::Fencing { .. } => {
                self.phase = Phase::Detaching {
                    since: now,
                    step: Step::Commit,
                };
            }
            Phase::Serving => {
                self.sync = None;
                self.ask_all(now, Opcode::Flush, &Want::Flush, out);
                self.phase = Phase::Detaching {
                    since: now,
                    step: Step::Flush,
                };
            }
            Phase::Detaching { .. } | Phase::Ended => {}
        }
    }

    fn ask_all(&mut self, now: Now, opcode: Opcode, want: &Want, out: &mut Vec<ControlAction>) {
        for node in self.map().nodes() {
            if self.is_active(node) && self.all_fenced(node).is_some() {
                for peer in self.peers_of(node) {
                    self.ask_plain(now, peer, opcode, want.clone(), out);
                }
            }
        }
    }

    pub(super) fn drive_detach(
        &mut self,
        now: Now,
        since: Now,
        step: Step,
        out: &mut Vec<ControlAction>,
    ) {
        let late = now.since(since) > STEP_MAX;
        let next = match step {
            Step::Flush if late => Step::Commit,
            Step::Flush if self.requests.count(|want| *want == Want::Flush) == 0 => Step::Settle,
            Step::Settle if late || self.requests.count(|want| *want == Want::Settle) == 0 => {
                Step::Commit
            }
            Step::Commit if now.since(since) > COMMIT_MAX => {
                let text = "the volume could not be given back: the metadata store does not answer";
                self.end(Err(ControlError::Meta(text.into())), out);
                return;
            }
            same => same,
        };
        if next != step {
            // Settled only if every write of this front reached every replica that takes writes.
            let whole = self.doubtful().is_empty() && self.seq.announced() == self.seq.last();
            if next == Step::Settle && whole {
                self.ask_all(now, Opcode::Settled, &Want::Settle, out);
            }
            self.phase = Phase::Detaching {
                since: now,
                step: next,
            };
        }
    }
}
