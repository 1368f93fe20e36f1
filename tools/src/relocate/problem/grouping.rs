//! Chunks by kind: one pass over the volume, as many classes as there are kinds.

use super::{Class, Heat};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use ukai_meta::map::VolumeMap;
use ukai_proto::message::ChunkRange;

/// Kinds of chunks kept apart at most: it bounds time and memory of the search. Above it loads are told apart
/// less finely, by a quarter, a half, ... instead of an eighth.
const CLASSES_MAX: usize = 1 << 14;

/// Whether there is a load of each kind to go by.
pub(super) fn load_known(heat: Option<&Heat>) -> [bool; 2] {
    let some = |kind: usize| {
        heat.is_some_and(|heat| {
            heat.codes
                .iter()
                .any(|codes| heat.rates[kind][usize::from(codes[kind])] > 0.0)
        })
    };
    [some(0), some(1)]
}

pub(super) struct Grouping<'a> {
    pub(super) map: &'a VolumeMap,
    pub(super) number: &'a HashMap<ukai_meta::SetIndex, u32>,
    pub(super) range: ChunkRange,
    pub(super) heat: Option<&'a Heat>,
    pub(super) heat_known: [bool; 2],
    pub(super) written: Option<&'a [bool]>,
    pub(super) nothing_written: bool,
    /// Low bits of the codes that are disregarded.
    pub(super) shift: u32,
}

/// Four million lookups of small keys: a multiplication mixes them well enough, and nobody chooses them
/// to collide.
#[derive(Default)]
struct Mix(u64);

impl Hasher for Mix {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }
    fn write_u64(&mut self, key: u64) {
        self.0 = (self.0 ^ key)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(26);
    }
    fn finish(&self) -> u64 {
        self.0
    }
}

impl Grouping<'_> {
    /// `None`: more than are kept apart.
    pub(super) fn classes(&self) -> Option<Vec<Class>> {
        let (mut classes, mut sums): (Vec<Class>, Vec<[f64; 2]>) = (Vec::new(), Vec::new());
        let mut found: HashMap<u64, usize, BuildHasherDefault<Mix>> = HashMap::default();
        let head = &self.map.head;
        let end = self.range.start.0 + self.range.count;
        for (run, set) in self.map.runs() {
            let set = self.number[&set];
            // Cut where the range begins and ends.
            let stop = run.start.0 + run.count;
            let mut cuts = vec![run.start.0];
            cuts.extend(
                [self.range.start.0, end]
                    .into_iter()
                    .filter(|cut| *cut > run.start.0 && *cut < stop),
            );
            cuts.push(stop);
            for part in cuts.windows(2) {
                let movable = part[0] >= self.range.start.0 && part[0] < end;
                let mut at = part[0];
                while at < part[1] {
                    let (codes, written) = (self.codes(at), self.is_written(at));
                    let differs = |chunk: &u32| {
                        self.codes(*chunk) != codes || self.is_written(*chunk) != written
                    };
                    let next = if self.heat.is_none() && self.written.is_none() {
                        part[1]
                    } else {
                        (at + 1..part[1]).find(differs).unwrap_or(part[1])
                    };
                    let key = u64::from(set) << 18
                        | u64::from(written) << 17
                        | u64::from(movable) << 16
                        | u64::from(codes[0] >> self.shift) << 8
                        | u64::from(codes[1] >> self.shift);
                    let class = *found.entry(key).or_insert_with(|| {
                        let bytes = if written { head.chunk_bytes } else { 0 };
                        classes.push(Class {
                            set,
                            movable,
                            read: 0.0,
                            write: 0.0,
                            bytes,
                            chunks: 0,
                            runs: Vec::new(),
                        });
                        sums.push([0.0; 2]);
                        classes.len() - 1
                    });
                    if classes.len() > CLASSES_MAX && self.shift < 7 {
                        return None;
                    }
                    let count = next - at;
                    for (kind, sum) in sums[class].iter_mut().enumerate() {
                        *sum += f64::from(count) * self.rate(kind, codes, written);
                    }
                    let class = &mut classes[class];
                    class.chunks += u64::from(count);
                    match class.runs.last_mut() {
                        Some(last) if last.0 + last.1 == at => last.1 += count,
                        _ => class.runs.push((at, count)),
                    }
                    at = next;
                }
            }
        }
        let total = sums
            .iter()
            .fold([0.0; 2], |sum, add| [sum[0] + add[0], sum[1] + add[1]]);
        for (class, sum) in classes.iter_mut().zip(sums) {
            #[allow(clippy::cast_precision_loss)] // chunks are counted in u32
            let chunks = class.chunks as f64;
            class.read = sum[0] / total[0] / chunks;
            class.write = sum[1] / total[1] / chunks;
        }
        Some(classes)
    }

    fn codes(&self, chunk: u32) -> [u8; 2] {
        let codes = self.heat.and_then(|heat| heat.codes.get(chunk as usize));
        codes.copied().unwrap_or_default()
    }

    fn is_written(&self, chunk: u32) -> bool {
        self.written
            .is_none_or(|written| written.get(chunk as usize).copied().unwrap_or(false))
    }

    /// Where the load is not known, all that was ever written counts the same.
    fn rate(&self, kind: usize, codes: [u8; 2], written: bool) -> f64 {
        match self.heat {
            // Of what holds no data, only what was seen to be used is.
            Some(_) if self.heat_known[kind] && codes[kind] == 0 && !written => 0.0,
            Some(heat) if self.heat_known[kind] => heat.rates[kind][usize::from(codes[kind])],
            _ if written || self.nothing_written => 1.0,
            _ => 0.0,
        }
    }
}
