//! WRITE: data in place and its record, together.

use super::api::{StoreAction, WriteData};
use super::change::{Purpose, is_newer, runs};
use super::layout::SlotIndex;
use super::op::{Kind, Op};
use super::record::{Record, Run};
use super::room::Need;
use super::store::{Step, Store};
use std::borrow::Cow;
use ukai_proto::Buffer;
use ukai_proto::limits::SECTOR_BYTES;
use ukai_proto::message::SectorState;

impl<B: Buffer> Store<B> {
    pub(super) fn advance_write(
        &mut self,
        key: u64,
        op: &mut Op<B>,
        out: &mut Vec<StoreAction<B>>,
    ) -> Step<B> {
        let Kind::Write {
            span,
            version,
            generation,
            fua,
            ..
        } = &op.kind
        else {
            panic!("called for writes");
        };
        let (span, version, generation, fua) = (*span, *version, *generation, *fua);
        let Some(target) = self.target(key, &span.key, out) else {
            return Step::Wait;
        };
        let runs = runs(&span, |sector| {
            is_newer(version, &target.state(self, sector))
        });
        if runs.is_empty() {
            return self.nothing_to_do(key, op, fua);
        }
        if let Some(stop) = self.intent(key, &span.key, version.token) {
            return stop.step();
        }
        if let Err(needs) = self.may_overwrite(key, op.needs, &target, &runs) {
            op.needs = Some(needs);
            return Step::Wait;
        }
        let Kind::Write { crcs, data, .. } = &mut op.kind else {
            panic!("called for writes");
        };
        let crcs = std::mem::take(crcs);
        let first = usize::from(span.first);
        let records = |slot: SlotIndex| {
            let crcs = &crcs;
            runs.iter().map(move |(at, count)| Record::Write {
                run: Run {
                    slot,
                    first: *at,
                    count: *count,
                },
                version,
                generation,
                crcs: Cow::Borrowed(&crcs[usize::from(*at) - first..][..usize::from(*count)]),
            })
        };
        let mut need = Need::default();
        records(SlotIndex(0)).for_each(|record| need.record(&record));
        let slot = match self.slot_for(key, &span.key, &target, generation, need, Purpose::Data) {
            Ok(slot) => slot,
            Err(stop) => {
                let Kind::Write { crcs: place, .. } = &mut op.kind else {
                    panic!("called for writes");
                };
                *place = crcs;
                return stop.step();
            }
        };
        records(slot).for_each(|record| {
            self.log.append(&record);
        });
        let group = self.commit.pending();
        let cached = self.cache.get(slot).expect("the page is at hand");
        for sector in runs.iter().flat_map(|(at, count)| {
            (Run {
                slot,
                first: *at,
                count: *count,
            })
            .sectors()
        }) {
            let page = cached.page.as_mut().expect("the slot has an owner");
            let over_zeros = page.state(sector).flags & SectorState::ZERO != 0;
            let crc = crcs[usize::from(sector) - first];
            page.set_state(
                sector,
                &SectorState {
                    version,
                    crc,
                    flags: 0,
                },
            );
            if over_zeros {
                cached.set_fresh(sector, group);
            }
        }
        self.touched(&span.key, slot, generation, version);
        let dsync = self.durability(key, fua);
        let data = data.take().expect("executed once");
        op.executed = true;
        op.applied = runs.iter().map(|(_, count)| count).sum();
        op.ios = u32::try_from(runs.len()).expect("at most 256 runs");
        if op.applied == span.count {
            self.write_data(
                key,
                slot,
                (span.first, span.count),
                WriteData::Payload(data),
                dsync,
                out,
            );
        } else {
            for (at, count) in runs {
                let start = (usize::from(at) - first) * SECTOR_BYTES;
                let bytes = &data.as_slice()[start..][..usize::from(count) * SECTOR_BYTES];
                let owned = WriteData::Owned(bytes.to_vec());
                self.write_data(key, slot, (at, count), owned, dsync, out);
            }
        }
        Step::Wait
    }
}
