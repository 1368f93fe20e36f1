//! Checks histories of a virtual disk: is every sector a strictly linearizable register?
//!
//! Each sector is a register of its own. A write stores a value that no other write stores (its
//! write id, see [`stamp`]); discard and write-zeroes store zero, and so does the volume's creation.
//! The model is *strict* linearizability: a write that was never acknowledged took effect before its
//! interval ended, or never. The interval ends when the guest sees the error or when the write's
//! token is fenced; a reissue under a new token prolongs it.
//!
//! # Format
//!
//! One JSON object a line, times never decreasing (`t` is any logical clock: two operations are
//! ordered only if one ended at a *smaller* time than the other started):
//!
//! ```text
//! {"event":"invoke","t":1,"op":1,"kind":"write","volume":"v","sector":8,"count":2,"write":77,"token":1,"fua":false}
//! {"event":"ok","t":2,"op":1}
//! {"event":"invoke","t":3,"op":2,"kind":"read","volume":"v","sector":8,"count":3}
//! {"event":"ok","t":4,"op":2,"values":[77,77,0]}
//! {"event":"invoke","t":5,"op":3,"kind":"zero","volume":"v","sector":8,"count":1}
//! {"event":"fail","t":6,"op":3}
//! {"event":"invoke","t":7,"op":4,"kind":"flush","volume":"v"}
//! {"event":"ok","t":8,"op":4}
//! {"event":"reissue","t":9,"op":5,"token":2}
//! {"event":"fenced","t":9,"volume":"v","token":2}
//! {"event":"power-cut","t":10}
//! {"event":"replica","t":11,"volume":"v","node":"n0","sector":8,"values":[77,{"torn":"77,78"}]}
//! ```
//!
//! `write` is the value, not 0 and unique in the history; `values` are write ids, 0 for zeros, or what
//! is wrong with a sector that holds neither. `fenced` ends every open write under a lower token.
//! `replica` is a read straight from one replica when nothing is in flight: all replicas of a sector
//! must agree, and what they hold must be what a guest read at that time could see.
//!
//! # Flush mode
//!
//! Across a `power-cut` (all nodes at once) a volume with a volatile cache keeps only what a completed
//! FLUSH or FUA covered. With [`Mode::Flush`] each sector's history is split at the cuts: inside a part
//! the rules above hold; what a part starts with is one value that the part before may have ended with,
//! not older than the last write covered before the cut, and it never changes by itself.
//! What lies across a cut is judged leniently, never wrongly rejected: a read across it is not used, a
//! write across it may have taken effect on either side.
//! Without it, `power-cut` is ignored: everything acknowledged must survive.
//!
//! # Method and cost
//!
//! Gibbons and Korach's zones, O(n log n) per sector. Zeros written more than once are one value with
//! several writes, to which the theorem does not apply: such parts are also searched exhaustively
//! within a budget; beyond it they count as `undecided` in the [`Report`] (necessary conditions
//! were still checked). A history is read as a stream; kept are about 48 bytes for each sector of each
//! operation, which bounds memory: 10 million sector accesses take half a gigabyte.
#![forbid(unsafe_code)]

mod epoch;
pub mod event;
pub mod history;
mod search;
pub mod stamp;
pub mod violation;
mod zone;

pub use event::{Event, Kind, SectorValue};
pub use history::{History, HistoryError, Mode};
pub use stamp::{Content, Stamp};
pub use violation::{Report, Violation, ViolationKind};
