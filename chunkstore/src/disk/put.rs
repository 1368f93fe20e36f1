//! PUT: copied sectors with the states of their source.

use super::api::{PutRule, StoreAction, WriteData};
use super::change::{Purpose, Target, runs};
use super::op::{Kind, Op};
use super::record::{Record, Run};
use super::room::Need;
use super::store::{Step, Store};
use std::borrow::Cow;
use ukai_proto::crc::crc32c;
use ukai_proto::limits::SECTOR_BYTES;
use ukai_proto::message::SectorState;
use ukai_proto::{Buffer, Status, Version};

/// Does a copied sector replace what is held? A bad copy does only by [`PutRule::MirrorBad`].
fn admits(rule: PutRule, copy: &SectorState, held: &SectorState) -> bool {
    // The same with its record ends all doubt.
    let adopted = |state: &SectorState| state.flags & SectorState::ADOPTED != 0;
    let same = held.same(copy) && (!adopted(held) || adopted(copy));
    if copy.flags & SectorState::BAD != 0 {
        return matches!(rule, PutRule::MirrorBad(ceiling)
            if held.version <= ceiling && held.version != copy.version);
    }
    if same {
        return false;
    }
    match rule {
        PutRule::Mirror(ceiling) | PutRule::MirrorBad(ceiling) => held.version <= ceiling,
        PutRule::Repair => {
            let weak = held.flags & SectorState::BAD != 0
                || (held.flags & SectorState::ADOPTED != 0
                    && (copy.flags & SectorState::ADOPTED == 0 || copy.crc > held.crc));
            copy.version > held.version || (copy.version == held.version && weak)
        }
        PutRule::Newer => {
            // Two adopted contents of one version: both are legal, but both sides must choose the same.
            let adopted = held.flags & SectorState::ADOPTED != 0
                && copy.version == held.version
                && (copy.flags & SectorState::ADOPTED == 0 || copy.crc > held.crc);
            copy.version > held.version || held.flags & SectorState::BAD != 0 || adopted
        }
    }
}

impl<B: Buffer> Store<B> {
    pub(super) fn advance_put(
        &mut self,
        key: u64,
        op: &mut Op<B>,
        out: &mut Vec<StoreAction<B>>,
    ) -> Step<B> {
        let Kind::Put {
            span,
            states,
            data,
            generation,
            rule,
        } = &op.kind
        else {
            panic!("called for puts");
        };
        let (span, generation, rule) = (*span, *generation, *rule);
        let first = usize::from(span.first);
        if let Some(data) = data {
            let sectors = data.as_slice().chunks_exact(SECTOR_BYTES);
            let usable = SectorState::ZERO | SectorState::BAD;
            let wrong = span
                .sectors()
                .zip(states)
                .zip(sectors)
                .find(|((_, state), content)| {
                    state.flags & usable == 0 && crc32c(content) != state.crc
                });
            if let Some(((sector, _), _)) = wrong {
                return Step::fail(Status::BadCrc, span.in_chunk(sector));
            }
        }
        let Some(target) = self.target(key, &span.key, out) else {
            return Step::Wait;
        };
        let copied = |sector: u8| states[usize::from(sector) - first];
        let admitted = runs(&span, |sector| {
            admits(rule, &copied(sector), &target.state(self, sector))
        });
        if admitted.is_empty() {
            return self.nothing_to_do(key, op, false);
        }
        let version = states
            .iter()
            .map(|state| state.version)
            .max()
            .unwrap_or(Version::ZERO);
        let fenced = self
            .directory
            .fence(span.key.volume)
            .unwrap_or_default()
            .token;
        if let Some(stop) = self.intent(key, &span.key, fenced.max(version.token)) {
            return stop.step();
        }
        let has_data = |sector: u8| copied(sector).flags & SectorState::ZERO == 0;
        let sectors = |runs: &[(u8, u16)]| -> Vec<u8> {
            runs.iter()
                .flat_map(|(at, count)| {
                    let run = Run {
                        slot: super::layout::SlotIndex(0),
                        first: *at,
                        count: *count,
                    };
                    run.sectors()
                })
                .collect()
        };
        let changed = sectors(&admitted);
        if !changed.iter().any(|sector| has_data(*sector)) {
            let mut after = self.states_of(&target);
            changed
                .iter()
                .for_each(|sector| after[usize::from(*sector)] = copied(*sector));
            // A copy of zeros takes no slot, and gives back one that it empties, as the discard did
            // where it comes from.
            let done = match &target {
                Target::None(_) => self.make_hole(key, &span.key, &target, &after, generation),
                Target::Slot(slot) => self.free_slot(key, &span.key, *slot, &after, generation),
            };
            match done {
                Err(stop) => return stop.step(),
                Ok(true) => {
                    self.touched_chunk(&span.key, version);
                    self.durability(key, false);
                    op.executed = true;
                    op.applied = admitted.iter().map(|(_, count)| count).sum();
                    return Step::Wait;
                }
                // Zeros over what reads as zeros already. Nothing older is in flight that the versions
                // would have to hold off (what is below the ceiling has ended everywhere); they are only
                // worth a hole, because its generation tells a replica that comes back of the discard.
                Ok(false) if rule.is_mirror() && matches!(target, Target::None(_)) => {
                    return self.nothing_to_do(key, op, false);
                }
                Ok(false) => {}
            }
        }
        let data_runs: Vec<(u8, u16)> = admitted
            .iter()
            .flat_map(|(at, count)| {
                let part = super::op::Span {
                    first: *at,
                    count: *count,
                    ..span
                };
                runs(&part, has_data)
            })
            .collect();
        if let Err(needs) = self.may_overwrite(key, op.needs, &target, &data_runs) {
            op.needs = Some(needs);
            return Step::Wait;
        }
        let records = |slot| {
            admitted.iter().map(move |(at, count)| Record::States {
                run: Run {
                    slot,
                    first: *at,
                    count: *count,
                },
                generation,
                states: Cow::Borrowed(&states[usize::from(*at) - first..][..usize::from(*count)]),
            })
        };
        let purpose = if rule.is_mirror() {
            Purpose::Data
        } else {
            Purpose::Equal
        };
        let mut need = Need::default();
        records(super::layout::SlotIndex(0)).for_each(|record| need.record(&record));
        let slot = match self.slot_for(key, &span.key, &target, generation, need, purpose) {
            Ok(slot) => slot,
            Err(stop) => return stop.step(),
        };
        for record in records(slot) {
            self.log.append(&record);
        }
        let group = self.commit.pending();
        let cached = self.cache.get(slot).expect("the page is at hand");
        for sector in changed {
            let page = cached.page.as_mut().expect("the slot has an owner");
            let over_zeros = page.state(sector).flags & SectorState::ZERO != 0;
            page.set_state(sector, &copied(sector));
            if over_zeros && has_data(sector) {
                cached.set_fresh(sector, group);
            }
        }
        self.touched(&span.key, slot, generation, version);
        self.durability(key, false);
        op.executed = true;
        op.applied = admitted.iter().map(|(_, count)| count).sum();
        op.ios = u32::try_from(data_runs.len()).expect("at most 256 runs");
        let Kind::Put { data, .. } = &mut op.kind else {
            panic!("called for puts");
        };
        if data_runs == [(span.first, span.count)] {
            let data = WriteData::Payload(data.take().expect("checked on arrival"));
            self.write_data(key, slot, (span.first, span.count), data, false, out);
        } else {
            for (at, count) in data_runs {
                let data = data.as_ref().expect("checked on arrival").as_slice();
                let start = (usize::from(at) - first) * SECTOR_BYTES;
                let owned = data[start..][..usize::from(count) * SECTOR_BYTES].to_vec();
                self.write_data(key, slot, (at, count), WriteData::Owned(owned), false, out);
            }
        }
        Step::Wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ukai_proto::{Seq, Token};

    fn state(seq: u64, crc: u32, flags: u16) -> SectorState {
        SectorState {
            version: Version::new(Token(1), Seq(seq)),
            crc,
            flags,
        }
    }

    #[test]
    fn rules() {
        let newer = |copy, held| admits(PutRule::Newer, &copy, &held);
        assert!(newer(state(2, 1, 0), state(1, 2, 0)));
        assert!(!newer(state(1, 1, 0), state(1, 2, 0)) && !newer(state(1, 1, 0), state(2, 1, 0)));
        assert!(newer(state(1, 1, 0), state(2, 1, SectorState::BAD)));
        assert!(!newer(state(9, 1, SectorState::BAD), state(1, 1, 0)));
        let adopted = SectorState::ADOPTED;
        assert!(newer(state(1, 1, 0), state(1, 2, adopted)));
        assert!(newer(state(1, 3, adopted), state(1, 2, adopted)));
        assert!(
            !newer(state(1, 2, adopted), state(1, 3, adopted)),
            "both sides choose the same"
        );
        let repair = |copy, held| admits(PutRule::Repair, &copy, &held);
        assert!(repair(state(2, 2, 0), state(2, 2, SectorState::BAD)));
        assert!(repair(state(3, 1, 0), state(2, 2, SectorState::BAD)));
        assert!(
            !repair(state(1, 1, 0), state(2, 2, SectorState::BAD)),
            "the source has not got write 2 yet"
        );
        assert!(
            !repair(state(2, 2, 0), state(3, 3, 0)),
            "a newer write came between"
        );
        let mirror = |copy, held| {
            admits(
                PutRule::Mirror(Version::new(Token(1), Seq(5))),
                &copy,
                &held,
            )
        };
        assert!(mirror(state(1, 1, 0), state(5, 2, 0)) && !mirror(state(1, 1, 0), state(6, 2, 0)));
        assert!(!mirror(state(5, 2, 0), state(5, 2, 0)));
    }
}
