//! Reports that fronts leave here for tools: memory only, bounded, the oldest dropped first.

use std::collections::BTreeMap;
use ukai_proto::VolumeId;
use ukai_proto::message::{Report, ReportKind};

/// Memory for reports of one shard: heat of about 40 TiB of volumes (24 KiB for 8192 chunks in full
/// use). What is dropped comes again: fronts go on publishing.
pub const REPORTS_BYTES_MAX: usize = 32 << 20;
/// What an entry costs beside its body, generously: bounds the number of empty ones.
const ENTRY_BYTES: usize = 256;

type Key = (VolumeId, ReportKind, u32);

#[derive(Debug)]
struct Kept {
    body: Vec<u8>,
    /// Numbers the puts.
    put: u64,
}

/// See the module docs.
#[derive(Debug)]
pub(super) struct Reports {
    kept: BTreeMap<Key, Kept>,
    /// By number of the put: the oldest first.
    order: BTreeMap<u64, Key>,
    puts: u64,
    bytes: usize,
    bytes_max: usize,
}

impl Default for Reports {
    fn default() -> Self {
        Self::with_limit(REPORTS_BYTES_MAX)
    }
}

impl Reports {
    fn with_limit(bytes_max: usize) -> Self {
        Self {
            kept: BTreeMap::new(),
            order: BTreeMap::new(),
            puts: 0,
            bytes: 0,
            bytes_max,
        }
    }

    /// Keeps a report in place of the one before; drops the oldest ones for it.
    pub(super) fn put(&mut self, volume: VolumeId, report: Report) {
        let key = (volume, report.kind, report.page);
        self.remove(&key);
        let bytes = report.body.len() + ENTRY_BYTES;
        while self.bytes + bytes > self.bytes_max {
            let Some((_, oldest)) = self.order.first_key_value() else {
                break;
            };
            let oldest = *oldest;
            self.remove(&oldest);
        }
        self.puts += 1;
        self.bytes += bytes;
        self.order.insert(self.puts, key);
        let kept = Kept {
            body: report.body,
            put: self.puts,
        };
        self.kept.insert(key, kept);
    }

    pub(super) fn get(&self, volume: VolumeId, kind: ReportKind, page: u32) -> Option<&[u8]> {
        let kept = self.kept.get(&(volume, kind, page));
        kept.map(|kept| kept.body.as_slice())
    }

    /// The volume is deleted.
    pub(super) fn forget(&mut self, volume: VolumeId) {
        let first = (volume, ReportKind(0), 0);
        let of_volume = self.kept.range(first..).map(|(key, _)| *key);
        let keys: Vec<Key> = of_volume.take_while(|key| key.0 == volume).collect();
        keys.iter().for_each(|key| self.remove(key));
    }

    fn remove(&mut self, key: &Key) {
        if let Some(kept) = self.kept.remove(key) {
            self.order.remove(&kept.put);
            self.bytes -= kept.body.len() + ENTRY_BYTES;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn volume(n: u8) -> VolumeId {
        VolumeId([n; 16])
    }

    fn report(page: u32, bytes: usize) -> Report {
        Report {
            kind: ReportKind::HEAT,
            page,
            body: vec![1; bytes],
        }
    }

    #[test]
    fn the_oldest_goes_first_and_putting_again_makes_young() {
        let mut reports = Reports::with_limit(3 * (100 + ENTRY_BYTES));
        for page in 0..3 {
            reports.put(volume(1), report(page, 100));
        }
        reports.put(volume(1), report(0, 100));
        reports.put(volume(2), report(9, 100));
        let there = |v, page| reports.get(volume(v), ReportKind::HEAT, page).is_some();
        assert_eq!(
            [there(1, 0), there(1, 1), there(1, 2), there(2, 9)],
            [true, false, true, true]
        );
        assert!(!there(1, 9) && reports.get(volume(1), ReportKind::FRONT, 0).is_none());
    }

    #[test]
    fn a_deleted_volume_leaves_nothing_and_others_stay() {
        let mut reports = Reports::default();
        for v in 1..=3 {
            for page in [0, 5, u32::MAX] {
                reports.put(volume(v), report(page, 10));
            }
        }
        reports.forget(volume(2));
        reports.forget(volume(9));
        assert_eq!(reports.kept.len(), 6);
        assert!(reports.kept.keys().all(|key| key.0 != volume(2)));
    }

    proptest! {
        #[test]
        fn memory_stays_bounded_and_is_counted(
            puts in prop::collection::vec((0u8..4, 0u32..4, 0usize..2000, any::<bool>()), 0..200),
        ) {
            let mut reports = Reports::with_limit(5000);
            for (v, page, bytes, forget) in puts {
                reports.put(volume(v), report(page, bytes));
                let latest = reports.get(volume(v), ReportKind::HEAT, page);
                prop_assert_eq!(latest.map(<[u8]>::len), Some(bytes));
                if forget {
                    reports.forget(volume(v));
                }
                let counted: usize = reports.kept.values().map(|k| k.body.len() + ENTRY_BYTES).sum();
                prop_assert_eq!(reports.bytes, counted);
                prop_assert!(counted <= 5000);
                prop_assert_eq!(reports.order.len(), reports.kept.len());
            }
        }
    }
}
