//! What a sector's content says about the log, after a crash.
//!
//! Between two flushes the device may keep or lose each data write and each log block by itself. The
//! records that survived, newest first, down to the state that was certainly flushed, form the sector's
//! *chain*. The decision must be legal whatever flush was the last to complete, although the recovery
//! may know only an earlier one:
//!
//! - zeros take no data, so what lies on disk below them says nothing: a chain ends at zeros, and if
//!   nothing newer matched, zeros are the truth. That is safe because a sector written over zeros is
//!   overwritten again only when the recovery is sure to know whether the first write was flushed (the
//!   rule of `marker.rs`);
//! - content that matches no record was written by a request whose record was lost. It is newer than
//!   all of them, and a sector is written whole: it becomes the truth, unless another replica is to be
//!   preferred, since rot looks the same. Which one is, depends on what died. After the death of the process
//!   alone this replica has everything that it ever answered, so one that has less than its newest record may
//!   lack what was acknowledged: one with that version or a later one whole is preferred. After a loss of power
//!   a newer record here proves nothing (the guest can only count on what was flushed everywhere), while
//!   every whole replica has at least that: it is preferred whatever its version.

use ukai_proto::Version;
use ukai_proto::message::SectorState;

/// What the log may lack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Lost {
    Nothing,
    /// Records of writes that were not answered: the process died.
    Unanswered,
    /// Records of writes that were not flushed: the machine lost power.
    Unflushed,
}

/// What to do with a sector.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// The newest state is the truth.
    Keep,
    /// An older one is.
    Revert(SectorState),
    /// A lost record's data is there.
    Adopt(SectorState),
    /// It cannot be read, or matches nothing where nothing can have been lost.
    Bad,
}

/// Judges `content` (its checksum; `None`: unreadable) against the chain, newest first.
pub(super) fn decide(
    chain: impl Iterator<Item = SectorState>,
    content: Option<u32>,
    lost: Lost,
) -> Verdict {
    let mut newest: Option<SectorState> = None;
    for state in chain {
        let top = *newest.get_or_insert(state);
        if content.is_none() {
            let usable = top.flags & (SectorState::ZERO | SectorState::BAD) != 0;
            return if usable { Verdict::Keep } else { Verdict::Bad };
        }
        let is_top = top == state;
        let zero = state.flags & SectorState::ZERO != 0;
        let bad = state.flags & SectorState::BAD != 0;
        if top.flags & SectorState::BAD != 0 {
            // Found bad before: only a match can make it good again.
            if !zero && content == Some(state.crc) {
                return Verdict::Revert(SectorState {
                    flags: state.flags & !SectorState::BAD,
                    ..state
                });
            }
        } else if zero || (!bad && content == Some(state.crc)) {
            return if is_top {
                Verdict::Keep
            } else {
                Verdict::Revert(state)
            };
        }
    }
    let Some(newest) = newest else {
        return Verdict::Keep;
    };
    match (content, lost) {
        _ if newest.flags & SectorState::BAD != 0 => Verdict::Keep,
        // Not above the newest known version: rot looks the same, and must not win over a replica that
        // has that version whole. What was acknowledged and lost its record here has it elsewhere.
        (Some(crc), Lost::Unanswered) => Verdict::Adopt(SectorState {
            version: newest.version,
            crc,
            flags: SectorState::ADOPTED,
        }),
        (Some(crc), Lost::Unflushed) => Verdict::Adopt(SectorState {
            version: Version::ZERO,
            crc,
            flags: SectorState::ADOPTED,
        }),
        _ => Verdict::Bad,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ukai_proto::{Seq, Token};

    fn data(seq: u64, crc: u32) -> SectorState {
        SectorState {
            version: Version::new(Token(2), Seq(seq)),
            crc,
            flags: 0,
        }
    }

    fn zero(seq: u64) -> SectorState {
        SectorState {
            version: Version::new(Token(2), Seq(seq)),
            ..SectorState::UNWRITTEN
        }
    }

    fn judge(chain: &[SectorState], content: Option<u32>) -> Verdict {
        decide(chain.iter().copied(), content, Lost::Unanswered)
    }

    #[test]
    fn verdicts() {
        let chain = [data(9, 90), data(8, 80)];
        assert_eq!(judge(&chain, Some(90)), Verdict::Keep);
        assert_eq!(judge(&chain, Some(80)), Verdict::Revert(data(8, 80)));
        let adopted = SectorState {
            version: Version::new(Token(2), Seq(9)),
            crc: 5,
            flags: SectorState::ADOPTED,
        };
        assert_eq!(judge(&chain, Some(5)), Verdict::Adopt(adopted));
        let unflushed = decide(chain.into_iter(), Some(5), Lost::Unflushed);
        let below_all = SectorState {
            version: Version::ZERO,
            ..adopted
        };
        assert_eq!(unflushed, Verdict::Adopt(below_all));
        assert_eq!(judge(&chain, None), Verdict::Bad);
        assert_eq!(
            decide(chain.into_iter(), Some(5), Lost::Nothing),
            Verdict::Bad
        );

        let fresh = [data(9, 90), zero(8), data(7, 70)];
        assert_eq!(judge(&fresh, Some(90)), Verdict::Keep);
        assert_eq!(
            judge(&fresh, Some(70)),
            Verdict::Revert(zero(8)),
            "zeros end the chain"
        );
        assert_eq!(
            judge(&fresh, Some(5)),
            Verdict::Revert(zero(8)),
            "garbage below zeros"
        );
        assert_eq!(judge(&[zero(8), data(7, 70)], Some(70)), Verdict::Keep);
        assert_eq!(judge(&[zero(8)], None), Verdict::Keep);
        assert_eq!(judge(&fresh, None), Verdict::Bad);

        let bad = SectorState {
            flags: SectorState::BAD,
            ..data(9, 90)
        };
        assert_eq!(
            judge(&[bad], Some(5)),
            Verdict::Keep,
            "rot is never adopted"
        );
        assert_eq!(judge(&[bad, zero(8)], Some(5)), Verdict::Keep);
        assert_eq!(judge(&[bad], Some(90)), Verdict::Revert(data(9, 90)));
    }
}
