//! A new token for the same front.
//!
//! A write that fails halfway (held too long, or refused by a replica that could not be spared) may be on some
//! replicas, or still on its way to one. Its guest saw an error, so it must not take effect any more, and
//! what is there must not depend on which replica dies next (I7). So: lanes drain, nodes fence the next
//! token, which refuses what is under way, and the chunk is reconciled before anybody touches it again.

use super::ControlCore;
use super::change::Purpose;
use crate::core::api::{ControlAction, Now};
use std::collections::BTreeSet;
use std::time::Duration;
use ukai_meta::transition;
use ukai_proto::ChunkIndex;

/// Between renewals: each stops the volume for a round trip.
const RENEW_EVERY: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Step {
    /// None under way.
    #[default]
    None,
    /// The token is ours; lanes drain.
    Draining,
    /// Nodes are fenced; then lanes go on.
    Fencing,
}

#[derive(Debug, Default)]
pub(super) struct Renewal {
    pub(super) step: Step,
    /// Chunks with writes that failed halfway, or of which no replica is certain.
    chunks: BTreeSet<ChunkIndex>,
    not_before: Now,
}

impl ControlCore {
    pub(super) fn abandoned(&mut self, chunk: ChunkIndex) {
        self.renewal.chunks.insert(chunk);
    }

    /// Starts the transaction if one is due.
    pub(super) fn change_token(&mut self, now: Now, out: &mut Vec<ControlAction>) -> bool {
        if self.renewal.chunks.is_empty() || now < self.renewal.not_before {
            return false;
        }
        self.renewal.not_before = now.after(RENEW_EVERY);
        self.commit(Purpose::Renew, transition::renew(self.map()), out)
    }

    /// The token is committed. Who is fenced under it is to be seen.
    pub(super) fn token_renewed(&mut self, now: Now, out: &mut Vec<ControlAction>) {
        self.note(
            "replicas may differ: continuing under a new token".into(),
            out,
        );
        self.renewal.step = Step::Draining;
        self.sync_failed(now, out);
    }

    /// Lanes have drained: may the installation go on?
    pub(super) fn renewal_is_over(&mut self, now: Now) -> bool {
        if self.renewal.step == Step::Draining {
            self.renewal.step = Step::Fencing;
            for entry in &mut self.nodes {
                entry.incarnation = None;
            }
            for seen in self.seen.values_mut() {
                seen.fenced.clear();
            }
        }
        if self.renewal.step == Step::None {
            return true;
        }
        if self.awaits_fence(now) {
            return false;
        }
        let count = self.map().chunk_count();
        let mut chunks = std::mem::take(&mut self.renewal.chunks);
        chunks.append(&mut self.recovered);
        self.recovered = self.doubted_chunks();
        self.intents
            .extend(chunks.into_iter().filter(|chunk| chunk.0 < count));
        self.seq.renewed();
        self.seq.set_doubted(!self.intents.is_empty());
        self.renewal.step = Step::None;
        true
    }

    pub(super) fn is_renewing(&self) -> bool {
        self.renewal.step != Step::None
    }

    pub(super) fn is_fencing_anew(&self) -> bool {
        self.renewal.step == Step::Fencing
    }

    /// Nodes must not be fenced while lanes wait for answers under the former token.
    pub(super) fn may_fence(&self) -> bool {
        self.renewal.step != Step::Draining
    }
}
