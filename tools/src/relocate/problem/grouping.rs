//! Chunks by kind: as many classes as there are kinds. One pass over the volume finds them, another fills them.

use super::{Class, Heat};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use ukai_meta::map::VolumeMap;
use ukai_proto::message::ChunkRange;

/// Kinds of chunks kept apart at most: it bounds time and memory of the search. Above it loads are told apart
/// less finely, by a quarter, a half, ... instead of an eighth.
const CLASSES_MAX: usize = 1 << 14;
/// One bit is left of a load's code: used, or hardly.
const SHIFT_MAX: u32 = 7;

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
    map: &'a VolumeMap,
    number: &'a HashMap<ukai_meta::SetIndex, u32>,
    range: ChunkRange,
    /// Empty: not known.
    codes: &'a [[u8; 2]],
    written: Option<&'a [bool]>,
    /// Load of a chunk with this code, of reads and writes, without and with data.
    rates: Box<[[[f64; 256]; 2]; 2]>,
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

/// Neighbouring chunks that are alike in everything.
#[derive(Clone, Copy)]
struct Stretch {
    start: u32,
    count: u32,
    set: u32,
    movable: bool,
    written: bool,
    codes: [u8; 2],
}

impl Stretch {
    /// Of its class, if loads are told apart down to this bit.
    fn key(&self, shift: u32) -> u64 {
        u64::from(self.set) << 18
            | u64::from(self.written) << 17
            | u64::from(self.movable) << 16
            | u64::from(self.codes[0] >> shift) << 8
            | u64::from(self.codes[1] >> shift)
    }
}

/// The key with one bit less of each load.
fn coarser(key: u64) -> u64 {
    key >> 16 << 16 | (key >> 9 & 0x7f) << 8 | (key >> 1 & 0x7f)
}

/// Which class each stretch belongs to; classes are numbered as they first appear.
#[derive(Default)]
struct Kinds {
    found: HashMap<u64, u32, BuildHasherDefault<Mix>>,
    /// Key and stretches of each class.
    classes: Vec<(u64, usize)>,
    of_stretch: Vec<u32>,
    /// Low bits of the codes that are disregarded.
    shift: u32,
}

impl Kinds {
    fn add(&mut self, stretch: &Stretch) {
        let class = self.class(stretch.key(self.shift), 1);
        self.of_stretch.push(class);
        while self.classes.len() > CLASSES_MAX && self.shift < SHIFT_MAX {
            self.coarsen();
        }
    }

    fn class(&mut self, key: u64, stretches: usize) -> u32 {
        let next = u32::try_from(self.classes.len()).expect("not more than chunks");
        let class = *self.found.entry(key).or_insert(next);
        if class == next {
            self.classes.push((key, 0));
        }
        self.classes[class as usize].1 += stretches;
        class
    }

    /// What was found so far, with loads told apart less finely.
    fn coarsen(&mut self) {
        self.shift += 1;
        self.found.clear();
        let finer = std::mem::take(&mut self.classes);
        let joined: Vec<u32> = finer
            .into_iter()
            .map(|(key, stretches)| self.class(coarser(key), stretches))
            .collect();
        for class in &mut self.of_stretch {
            *class = joined[*class as usize];
        }
    }
}

impl<'a> Grouping<'a> {
    pub(super) fn new(
        map: &'a VolumeMap,
        number: &'a HashMap<ukai_meta::SetIndex, u32>,
        range: ChunkRange,
        heat: Option<&'a Heat>,
        written: Option<&'a [bool]>,
    ) -> Self {
        let known = load_known(heat);
        let nothing_written = written.is_some_and(|written| !written.contains(&true));
        let rate = |kind: usize, has_data: bool, code: usize| match heat {
            // Of what holds no data, only what was seen to be used is.
            Some(_) if known[kind] && code == 0 && !has_data => 0.0,
            Some(heat) if known[kind] => heat.rates[kind][code],
            // Where the load is not known, all that was ever written counts the same.
            _ if has_data || nothing_written => 1.0,
            _ => 0.0,
        };
        let of_kind = |kind| {
            [false, true].map(|has_data| std::array::from_fn(|code| rate(kind, has_data, code)))
        };
        Self {
            map,
            number,
            range,
            codes: heat.map_or(&[], |heat| &heat.codes),
            written,
            rates: Box::new([0, 1].map(of_kind)),
        }
    }

    pub(super) fn classes(&self) -> Vec<Class> {
        let mut kinds = Kinds::default();
        self.stretches(|stretch| kinds.add(&stretch));
        let chunk_bytes = self.map.head.chunk_bytes;
        let class = |(key, stretches): &(u64, usize)| Class {
            set: u32::try_from(key >> 18).expect("made of u32"),
            movable: key >> 16 & 1 == 1,
            read: 0.0,
            write: 0.0,
            bytes: if key >> 17 & 1 == 1 { chunk_bytes } else { 0 },
            chunks: 0,
            runs: Vec::with_capacity(*stretches),
        };
        let mut classes: Vec<Class> = kinds.classes.iter().map(class).collect();
        let mut of_stretch = kinds.of_stretch.iter();
        self.stretches(|stretch| {
            let class = *of_stretch.next().expect("the same stretches again");
            let class = &mut classes[class as usize];
            let rate = |kind: usize| {
                let code = usize::from(stretch.codes[kind]);
                f64::from(stretch.count) * self.rates[kind][usize::from(stretch.written)][code]
            };
            class.read += rate(0);
            class.write += rate(1);
            class.chunks += u64::from(stretch.count);
            match class.runs.last_mut() {
                Some(last) if last.0 + last.1 == stretch.start => last.1 += stretch.count,
                _ => class.runs.push((stretch.start, stretch.count)),
            }
        });
        let total = classes.iter().fold([0.0; 2], |sum, class| {
            [sum[0] + class.read, sum[1] + class.write]
        });
        for class in &mut classes {
            #[allow(clippy::cast_precision_loss)] // chunks are counted in u32
            let chunks = class.chunks as f64;
            class.read = class.read / total[0] / chunks;
            class.write = class.write / total[1] / chunks;
        }
        classes
    }

    /// All chunks, in their order.
    fn stretches(&self, mut each: impl FnMut(Stretch)) {
        let end = self.range.start.0 + self.range.count;
        let is_known = !self.codes.is_empty() || self.written.is_some();
        for (run, set) in self.map.runs() {
            let set = self.number[&set];
            let stop = run.start.0 + run.count;
            let mut start = run.start.0;
            while start < stop {
                // Cut where the range begins and ends.
                let cut = [self.range.start.0, end]
                    .into_iter()
                    .filter(|cut| *cut > start);
                let part_end = cut.fold(stop, u32::min);
                let movable = start >= self.range.start.0 && start < end;
                while start < part_end {
                    let (codes, written) = (self.codes(start), self.is_written(start));
                    let differs = |chunk: &u32| {
                        self.codes(*chunk) != codes || self.is_written(*chunk) != written
                    };
                    let next = if is_known {
                        (start + 1..part_end).find(differs).unwrap_or(part_end)
                    } else {
                        part_end
                    };
                    each(Stretch {
                        start,
                        count: next - start,
                        set,
                        movable,
                        written,
                        codes,
                    });
                    start = next;
                }
            }
        }
    }

    fn codes(&self, chunk: u32) -> [u8; 2] {
        self.codes.get(chunk as usize).copied().unwrap_or_default()
    }

    fn is_written(&self, chunk: u32) -> bool {
        self.written
            .is_none_or(|written| written.get(chunk as usize).copied().unwrap_or(false))
    }
}
