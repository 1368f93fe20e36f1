//! Parts of a volume as people name them: `0-64GiB` (bytes, the end not included), `64GiB-` (to the
//! end), `chunks:0-15` (chunk numbers, both included), `chunks:7`, `all`.

use crate::error::{Result, ToolError};
use crate::units::{ByteSize, join_nearest, nearest};
use std::fmt;
use std::str::FromStr;
use ukai_proto::ChunkIndex;
use ukai_proto::message::ChunkRange;

/// A range as typed; it becomes a [`ChunkRange`] only together with a volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum RangeArg {
    /// The whole volume.
    #[default]
    All,
    /// Bytes, `end` not included; without `end`: to the end of the volume.
    Bytes {
        start: ByteSize,
        end: Option<ByteSize>,
    },
    /// Chunk numbers, both included.
    Chunks { first: u32, last: Option<u32> },
}

impl FromStr for RangeArg {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let text = text.trim();
        let form = || {
            format!(
                "{text:?} is no range; write 0-64GiB (bytes, end not included), 64GiB- (to the end), \
                 chunks:0-15 (both included) or all"
            )
        };
        if text.eq_ignore_ascii_case("all") {
            return Ok(Self::All);
        }
        if let Some(chunks) = text.strip_prefix("chunks:") {
            let number = |s: &str| s.trim().parse::<u32>().map_err(|_| form());
            let (first, last) = match chunks.split_once('-') {
                None => (number(chunks)?, Some(number(chunks)?)),
                Some((first, "")) => (number(first)?, None),
                Some((first, last)) => (number(first)?, Some(number(last)?)),
            };
            if last.is_some_and(|last| last < first) {
                return Err(format!("range {text:?} ends before it starts"));
            }
            return Ok(Self::Chunks { first, last });
        }
        let (start, end) = text.split_once('-').ok_or_else(form)?;
        let size = |s: &str| {
            s.parse::<ByteSize>()
                .map_err(|error| format!("in range {text:?}: {error}"))
        };
        let start = size(start)?;
        let end = if end.trim().is_empty() {
            None
        } else {
            Some(size(end)?)
        };
        if end.is_some_and(|end| end <= start) {
            return Err(format!(
                "range {text:?} is empty: it ends where it starts or before"
            ));
        }
        Ok(Self::Bytes { start, end })
    }
}

impl fmt::Display for RangeArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Bytes { start, end: None } => write!(f, "{start}-"),
            Self::Bytes {
                start,
                end: Some(end),
            } => write!(f, "{start}-{end}"),
            Self::Chunks { first, last: None } => write!(f, "chunks:{first}-"),
            Self::Chunks {
                first,
                last: Some(last),
            } if last == first => write!(f, "chunks:{first}"),
            Self::Chunks {
                first,
                last: Some(last),
            } => write!(f, "chunks:{first}-{last}"),
        }
    }
}

impl RangeArg {
    /// The chunks meant, on a volume of `size_bytes` in chunks of `chunk_bytes`. Bytes must lie on
    /// chunk bounds (a chunk is the smallest thing that has a place of its own); the end of the
    /// volume counts as one.
    pub(crate) fn resolve(self, size_bytes: u64, chunk_bytes: u64) -> Result<ChunkRange> {
        assert!(
            size_bytes > 0 && chunk_bytes > 0,
            "volume of {size_bytes}, chunks of {chunk_bytes}"
        );
        let count = u32::try_from(size_bytes.div_ceil(chunk_bytes))
            .map_err(|_| ToolError::refused("the volume has more chunks than a map can hold"))?;
        let (first, last) = match self {
            Self::All => (0, count - 1),
            Self::Chunks { first, last } => (first, last.unwrap_or((count - 1).max(first))),
            Self::Bytes { start, end } => {
                let end = end.map_or(size_bytes.max(start.0), |end| end.0);
                if start.0 >= size_bytes || end > size_bytes.next_multiple_of(chunk_bytes) {
                    return Err(self.beyond(format!("it ends at {}", ByteSize(size_bytes))));
                }
                self.aligned(start.0, chunk_bytes)?;
                if end != size_bytes {
                    self.aligned(end, chunk_bytes)?;
                }
                let chunk = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
                (
                    chunk(start.0 / chunk_bytes),
                    chunk(end.div_ceil(chunk_bytes) - 1),
                )
            }
        };
        if first >= count || last >= count {
            return Err(self.beyond(format!("its last chunk is {}", count - 1)));
        }
        Ok(ChunkRange {
            start: ChunkIndex(first),
            count: last - first + 1,
        })
    }

    fn beyond(self, where_it_ends: String) -> ToolError {
        ToolError::usage(format!(
            "range {self} goes beyond the volume: {where_it_ends}"
        ))
    }

    fn aligned(self, at: u64, chunk_bytes: u64) -> Result<()> {
        if at.is_multiple_of(chunk_bytes) {
            return Ok(());
        }
        let (down, up) = nearest(at, chunk_bytes);
        Err(ToolError::usage(format!(
            "range {self}: {} is not on a chunk bound ({}); the nearest are {}",
            ByteSize(at),
            ByteSize(chunk_bytes),
            join_nearest(down, up)
        )))
    }
}

/// Bytes covered by chunks, cut at the end of the volume.
pub(crate) fn bytes_of(range: ChunkRange, size_bytes: u64, chunk_bytes: u64) -> (u64, u64) {
    let start = u64::from(range.start.0) * chunk_bytes;
    let end = (u64::from(range.start.0) + u64::from(range.count)) * chunk_bytes;
    (start, end.min(size_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CHUNK: u64 = 4 << 20;

    fn resolve(text: &str, size: u64) -> std::result::Result<(u32, u32), String> {
        let arg: RangeArg = text.parse()?;
        arg.resolve(size, CHUNK)
            .map(|range| (range.start.0, range.count))
            .map_err(|error| error.what)
    }

    #[test]
    fn usual_spellings() {
        let size = 100 << 20; // 25 chunks
        assert_eq!(resolve("all", size), Ok((0, 25)));
        assert_eq!(resolve("0-8MiB", size), Ok((0, 2)));
        assert_eq!(resolve("96MiB-", size), Ok((24, 1)));
        assert_eq!(resolve("96MiB-100MiB", size), Ok((24, 1)));
        assert_eq!(resolve("chunks:0-15", size), Ok((0, 16)));
        assert_eq!(resolve("chunks:7", size), Ok((7, 1)));
        assert_eq!(resolve("chunks:20-", size), Ok((20, 5)));
    }

    #[test]
    fn a_short_last_chunk_may_be_named_by_either_bound() {
        let size = (9 << 20) + 4096; // 2 whole chunks and a short one
        assert_eq!(resolve("8MiB-", size), Ok((2, 1)));
        assert_eq!(resolve("8MiB-12MiB", size), Ok((2, 1)));
        assert_eq!(resolve("0-9220KiB", size), Ok((0, 3)));
    }

    #[test]
    fn refused_ranges_say_why() {
        let size = 100 << 20;
        let message = |text: &str| resolve(text, size).unwrap_err();
        assert!(message("0-6MiB").ends_with("the nearest are 4MiB and 8MiB"));
        assert!(message("1MiB-8MiB").contains("0B and 4MiB"));
        assert!(message("0-1GiB").contains("it ends at 100MiB"));
        assert!(message("100MiB-").contains("beyond"));
        assert!(message("chunks:0-25").contains("its last chunk is 24"));
        assert!(message("chunks:4000000000-").contains("its last chunk is 24"));
        assert!(message("8MiB-8MiB").contains("empty"));
        assert!(message("chunks:9-3").contains("ends before"));
        assert!(message("8MiB").contains("is no range"));
        assert!(message("0-8MB").contains("write 8MiB"));
    }

    proptest! {
        #[test]
        fn bytes_and_chunks_name_the_same(chunks in 1u32..10_000, tail in 0u64..1024, a in any::<u32>(), b in any::<u32>()) {
            let size = u64::from(chunks) * CHUNK - tail * 4096;
            let (a, b) = (a % chunks, b % chunks);
            let (first, last) = (a.min(b), a.max(b));
            let by_chunk = RangeArg::Chunks { first, last: Some(last) }.resolve(size, CHUNK).unwrap();
            let (start, end) = bytes_of(by_chunk, size, CHUNK);
            let by_bytes: RangeArg = format!("{}-{}", ByteSize(start), ByteSize(end)).parse().unwrap();
            prop_assert_eq!(by_bytes.resolve(size, CHUNK), Ok(by_chunk));
            prop_assert_eq!(by_chunk.count, last - first + 1);
        }

        #[test]
        fn printed_ranges_can_be_typed(start in any::<u32>(), len in 1u32..1000, chunks in any::<bool>(), open in any::<bool>()) {
            let arg = if chunks {
                RangeArg::Chunks { first: start, last: (!open).then(|| start.saturating_add(len)) }
            } else {
                let end = u64::from(start) + u64::from(len);
                RangeArg::Bytes { start: ByteSize(start.into()), end: (!open).then_some(ByteSize(end)) }
            };
            prop_assert_eq!(arg.to_string().parse(), Ok(arg));
        }

        #[test]
        fn resolved_ranges_lie_on_the_volume(text in "[0-9]{1,6}(KiB|MiB|)-[0-9]{0,6}(KiB|MiB|)", size in 1u64..1 << 36) {
            if let Ok(arg) = text.parse::<RangeArg>()
                && let Ok(range) = arg.resolve(size, CHUNK)
            {
                let count = size.div_ceil(CHUNK);
                prop_assert!(range.count > 0);
                prop_assert!(u64::from(range.start.0) + u64::from(range.count) <= count);
            }
        }
    }
}
