//! How much each chunk is used: counters that lanes raise and control lets decay.
//!
//! Three 32-bit counters a chunk, so at most 3 MiB of memory per TiB of a volume with 4 MiB chunks (12 MiB with
//! 1 MiB chunks; what is never used takes none), shared by all lanes: a guest's request costs two relaxed additions, no lock. A use
//! counts half after [`HALF_LIFE`]: control takes a fixed share from every counter once per [`STEP`], a
//! few chunks at each of its ticks. Fractions are rounded up or down by a number made of chunk and
//! round, so that small counters fade as they should on average, and a run from the same events is
//! the same.

use std::f64::consts::LN_2;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use ukai_proto::ChunkIndex;
use ukai_proto::heat::{ChunkHeat, HEAT_PAGE_CHUNKS, HeatPage};
use ukai_proto::limits::SECTOR_BYTES;
use zerocopy::FromZeros;

/// After so long a use counts half: long enough that a pause of the guest does not make its data look
/// cold, short enough that a new hot spot outweighs the old one within the hour.
pub const HALF_LIFE: Duration = Duration::from_secs(600);
/// Every counter decays once in this time.
pub const STEP: Duration = Duration::from_secs(10);

/// One request, in units of the counter.
const OP_UNITS: u32 = 64;
/// One sector, in units of the counter.
const SECTOR_UNITS: u32 = 8;
/// Counters are cut down to this at each step; what comes within one step (a million requests or 50 GiB
/// per second and chunk) does not overflow above it.
const UNITS_MAX: u32 = 3 << 30;
/// Share that a step takes: 2^32 * (1 - 2^(-STEP / HALF_LIFE)).
const STEP_SHARE: u64 = 49_331_910;

#[derive(Debug, Default, FromZeros)]
struct Counters {
    reads: AtomicU32,
    writes: AtomicU32,
    sectors: AtomicU32,
}

/// See the module docs.
#[derive(Debug, Default)]
pub struct HeatTable {
    chunks: Box<[Counters]>,
}

/// How far the decay is: control's side of the table.
#[derive(Debug, Default)]
pub(super) struct Decay {
    /// Counters of a chunk that decayed, since the beginning.
    done: u64,
}

impl HeatTable {
    /// Nothing used yet.
    #[must_use]
    pub fn new(chunks: u32) -> Self {
        // Zeros of the kernel's, made where a chunk is first used: writing those of 16 TiB took 30 ms of the attach.
        let chunks = <[Counters]>::new_box_zeroed_with_elems(chunks as usize);
        Self {
            chunks: chunks.expect("memory for the heat of a volume"),
        }
    }

    /// The same use, for a volume of another size.
    #[must_use]
    pub fn resized(&self, chunks: u32) -> Self {
        let new = Self::new(chunks);
        let copy = |from: &AtomicU32, to: &AtomicU32| {
            let units = from.load(Ordering::Relaxed);
            // What is not written takes no memory.
            if units > 0 {
                to.store(units, Ordering::Relaxed);
            }
        };
        for (from, to) in self.chunks.iter().zip(&new.chunks) {
            copy(&from.reads, &to.reads);
            copy(&from.writes, &to.writes);
            copy(&from.sectors, &to.sectors);
        }
        new
    }

    /// Chunks it has counters for.
    #[must_use]
    pub fn chunk_count(&self) -> u32 {
        u32::try_from(self.chunks.len()).unwrap_or(u32::MAX)
    }

    /// Pages that the chunks fill.
    #[must_use]
    pub fn page_count(&self) -> u32 {
        self.chunk_count().div_ceil(HEAT_PAGE_CHUNKS)
    }

    /// Sectors of a chunk are read. For lanes.
    pub fn read(&self, chunk: ChunkIndex, sectors: u16) {
        if let Some(counters) = self.chunks.get(chunk.0 as usize) {
            counters.reads.fetch_add(OP_UNITS, Ordering::Relaxed);
            let sectors = u32::from(sectors) * SECTOR_UNITS;
            counters.sectors.fetch_add(sectors, Ordering::Relaxed);
        }
    }

    /// Sectors of a chunk are written. For lanes.
    pub fn write(&self, chunk: ChunkIndex, sectors: u16) {
        if let Some(counters) = self.chunks.get(chunk.0 as usize) {
            counters.writes.fetch_add(OP_UNITS, Ordering::Relaxed);
            let sectors = u32::from(sectors) * SECTOR_UNITS;
            counters.sectors.fetch_add(sectors, Ordering::Relaxed);
        }
    }

    /// Decays as many chunks as are due `since` the beginning; at most all of them once, so that a
    /// front that was stopped for long catches up in the ticks that follow.
    pub(super) fn decay(&self, decay: &mut Decay, since: Duration) {
        let count = self.chunks.len() as u64;
        let due = since.as_nanos() * u128::from(count) / STEP.as_nanos();
        let due = u64::try_from(due).unwrap_or(u64::MAX);
        let until = due.min(decay.done + count);
        while decay.done < until {
            #[allow(clippy::cast_possible_truncation)] // below the chunks, which a u32 numbers
            let chunk = (decay.done % count) as u32;
            let round = decay.done / count;
            let mut dither = mix(u64::from(chunk) << 32 | (round & 0xffff_ffff));
            let counters = &self.chunks[chunk as usize];
            for counter in [&counters.reads, &counters.writes, &counters.sectors] {
                let units = counter.load(Ordering::Relaxed);
                if units > 0 {
                    // Lanes only add meanwhile, so it never goes below zero.
                    let fades = (u64::from(units) * STEP_SHARE + (dither & 0xffff_ffff)) >> 32;
                    #[allow(clippy::cast_possible_truncation)] // a share of 32 bits
                    let fades = (fades as u32).max(units.saturating_sub(UNITS_MAX));
                    counter.fetch_sub(fades.min(units), Ordering::Relaxed);
                }
                dither = mix(dither);
            }
            decay.done += 1;
        }
    }

    /// Use of a page's chunks, measured for `age`.
    #[must_use]
    pub fn page(&self, page: u32, age: Duration) -> HeatPage {
        let per_unit = rate_of_one(age);
        #[allow(clippy::cast_precision_loss)] // 4096
        let (op, byte) = (
            per_unit / f64::from(OP_UNITS),
            per_unit / f64::from(SECTOR_UNITS) * SECTOR_BYTES as f64,
        );
        let units = |counter: &AtomicU32| f64::from(counter.load(Ordering::Relaxed));
        let first = page as usize * HEAT_PAGE_CHUNKS as usize;
        let chunks = self.chunks.iter().skip(first);
        let chunks = chunks.take(HEAT_PAGE_CHUNKS as usize).map(|counters| {
            ChunkHeat::from_rates(
                units(&counters.reads) * op,
                units(&counters.writes) * op,
                units(&counters.sectors) * byte,
            )
        });
        HeatPage {
            age_s: u32::try_from(age.as_secs()).unwrap_or(u32::MAX),
            half_life_s: u32::try_from(HALF_LIFE.as_secs()).unwrap_or(u32::MAX),
            chunks: chunks.collect(),
        }
    }

    /// Adds what an earlier front measured.
    pub(super) fn seed(&self, page: u32, heat: &HeatPage) {
        let per_unit = rate_of_one(Duration::from_secs(heat.age_s.into()));
        let add = |counter: &AtomicU32, amount: f64| {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // bounded, positive
            let units = (amount / per_unit).clamp(0.0, f64::from(UNITS_MAX / 2)) as u32;
            if units > 0 {
                counter.fetch_add(units, Ordering::Relaxed);
            }
        };
        let first = page as usize * HEAT_PAGE_CHUNKS as usize;
        for (counters, heat) in self.chunks.iter().skip(first).zip(&heat.chunks) {
            let op = f64::from(OP_UNITS);
            add(&counters.reads, heat.reads_per_s() * op);
            add(&counters.writes, heat.writes_per_s() * op);
            #[allow(clippy::cast_precision_loss)] // 4096
            let sector = f64::from(SECTOR_UNITS) / SECTOR_BYTES as f64;
            add(&counters.sectors, heat.bytes_per_s() * sector);
        }
    }
}

/// What one decayed use means as a rate per second, if it has been counted for `age`: a counter under
/// a constant rate grows towards `rate * HALF_LIFE / ln 2`.
fn rate_of_one(age: Duration) -> f64 {
    let age = age.as_secs_f64().max(1.0) / HALF_LIFE.as_secs_f64();
    LN_2 / HALF_LIFE.as_secs_f64() / (1.0 - (-age).exp2())
}

/// Spreads the bits of a number (the finalizer of SplitMix64).
fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// The bound that is promised: 4 MiB per TiB at chunks of 4 MiB.
const _: () = assert!(size_of::<Counters>() * (1 << 40) / (4 << 20) <= 4 << 20);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn total(table: &HeatTable) -> u64 {
        let units = |counters: &Counters| u64::from(counters.reads.load(Ordering::Relaxed));
        table.chunks.iter().map(units).sum()
    }

    #[test]
    fn half_is_left_after_a_half_life_also_of_single_uses() {
        let table = HeatTable::new(4096);
        for chunk in 0..4096 {
            table.read(ChunkIndex(chunk), 1);
        }
        for _ in 0..10_000 {
            table.read(ChunkIndex(7), 1);
        }
        let (before, hot) = (total(&table), 10_001 * u64::from(OP_UNITS));
        let mut decay = Decay::default();
        // Slices of odd sizes, as ticks come.
        let mut at = Duration::ZERO;
        while at < HALF_LIFE {
            at += Duration::from_millis(53);
            table.decay(&mut decay, at.min(HALF_LIFE));
        }
        assert_eq!(decay.done, 60 * 4096);
        let near = |got: u64, want: u64| {
            #[allow(clippy::cast_precision_loss)]
            let ratio = got as f64 / want as f64;
            assert!((0.98..1.02).contains(&ratio), "{got}, not {want}");
        };
        let seven = u64::from(table.chunks[7].reads.load(Ordering::Relaxed));
        near(seven, hot / 2);
        near(total(&table) - seven, (before - hot) / 2);
    }

    #[test]
    fn a_constant_rate_is_told_from_the_first_seconds_on() {
        let table = HeatTable::new(1);
        let mut decay = Decay::default();
        for second in 1..=3600u64 {
            for _ in 0..50 {
                table.read(ChunkIndex(0), 2);
                table.write(ChunkIndex(0), 2);
            }
            let at = Duration::from_secs(second);
            table.decay(&mut decay, at);
            if [5, 60, 600, 3600].contains(&second) {
                let heat = table.page(0, at).chunks[0];
                let near = |got: f64, want: f64| {
                    assert!((got / want - 1.0).abs() < 0.1, "{got} at {second} s");
                };
                near(heat.reads_per_s(), 50.0);
                near(heat.writes_per_s(), 50.0);
                near(heat.bytes_per_s(), 100.0 * 8192.0);
            }
        }
    }

    #[test]
    fn a_front_goes_on_from_what_the_one_before_told() {
        let (old, new) = (HeatTable::new(10_000), HeatTable::new(10_000));
        for chunk in [0, 8191, 8192, 9999] {
            for _ in 0..=chunk {
                old.write(ChunkIndex(chunk), 1);
            }
        }
        let age = Duration::from_secs(90);
        for page in 0..old.page_count() {
            new.seed(page, &old.page(page, age));
        }
        assert_eq!(old.page_count(), 2);
        for page in 0..2 {
            let (was, is) = (old.page(page, age), new.page(page, age));
            for (was, is) in was.chunks.iter().zip(&is.chunks) {
                assert!(was.writes.abs_diff(is.writes) <= 1, "{was:?} {is:?}");
                assert!(was.bytes.abs_diff(is.bytes) <= 1, "{was:?} {is:?}");
            }
        }
    }

    #[test]
    fn chunks_beyond_the_table_and_hot_ones_do_no_harm() {
        let table = HeatTable::new(2);
        table.read(ChunkIndex(2), 1);
        table.chunks[1].reads.store(u32::MAX - 5, Ordering::Relaxed);
        let mut decay = Decay::default();
        table.decay(&mut decay, STEP);
        let left = table.chunks[1].reads.load(Ordering::Relaxed);
        assert!(left <= UNITS_MAX, "{left}");
        let grown = table.resized(5);
        assert_eq!(grown.chunks[1].reads.load(Ordering::Relaxed), left);
        assert_eq!((grown.chunk_count(), grown.page_count()), (5, 1));
        assert!(HeatTable::new(0).page(0, STEP).chunks.is_empty());
        HeatTable::new(0).decay(&mut decay, STEP * 9);
    }

    proptest! {
        /// However it is sliced, the same uses fade to the same counters.
        #[test]
        fn decay_does_not_depend_on_slices(
            uses in prop::collection::vec((0u32..100, 1u16..256), 0..50),
            slices in prop::collection::vec(1u64..9_000, 1..20),
        ) {
            let tables = [HeatTable::new(100), HeatTable::new(100)];
            for table in &tables {
                uses.iter().for_each(|(chunk, sectors)| table.write(ChunkIndex(*chunk), *sectors));
            }
            let mut decays = [Decay::default(), Decay::default()];
            let mut at = Duration::ZERO;
            for slice in slices {
                at += Duration::from_millis(slice);
                tables[0].decay(&mut decays[0], at);
            }
            while decays[1].done < decays[0].done {
                tables[1].decay(&mut decays[1], at);
            }
            for page in 0..tables[0].page_count() {
                prop_assert_eq!(tables[0].page(page, at), tables[1].page(page, at));
            }
        }
    }
}
