//! Which sectors a PULL takes, and in which pieces.

use ukai_proto::limits::{SECTOR_BYTES, SLOT_SECTORS};
use ukai_proto::message::{PullMode, SectorState};
use ukai_proto::{SectorInChunk, Version};

/// Verdict on one sector.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// Nothing to do.
    Keep,
    /// Take the source's.
    Take,
    /// The source cannot help, and this side is not known to be right.
    Bad,
}

fn has(state: &SectorState, flag: u16) -> bool {
    state.flags & flag != 0
}

/// Is a bad sector of the source to be bad here too? What is only doubted may turn out to be good.
pub(super) fn takes_bad(mode: PullMode, source: &SectorState) -> bool {
    mode == PullMode::MirrorBad && !has(source, SectorState::DOUBTED)
}

/// Compare what is held here with what the source has. The store judges again when it applies the
/// copy ([`crate::disk::api::PutRule`]); this only decides what is worth fetching.
pub(super) fn judge(
    held: &SectorState,
    source: &SectorState,
    mode: PullMode,
    ceiling: Version,
) -> Verdict {
    let held_bad = has(held, SectorState::BAD);
    if has(source, SectorState::BAD) {
        // A mirror that differs from a bad original is not proven equal to anything. Adopted content proves nothing by its
        // version: after a loss of power that is zero, as of what was never written.
        let same_version = held.version == source.version;
        let unknown =
            same_version && (source.version == Version::ZERO || has(held, SectorState::ADOPTED));
        let differs = mode.is_mirror() && !same_version;
        if takes_bad(mode, source) && (held_bad || !unknown) {
            let in_reach = source.version <= ceiling && held.version <= ceiling;
            return match (differs && in_reach, held_bad && !same_version) {
                (true, _) => Verdict::Take,
                (false, true) => Verdict::Bad,
                (false, false) => Verdict::Keep,
            };
        }
        return if held_bad || differs || (mode.is_mirror() && unknown) {
            Verdict::Bad
        } else {
            Verdict::Keep
        };
    }
    if held.same(source) {
        return Verdict::Keep;
    }
    match mode {
        PullMode::Newer => {
            let adopted_here = has(held, SectorState::ADOPTED);
            let adopted_there = has(source, SectorState::ADOPTED);
            // Two adopted contents of one version were never acknowledged; either may survive, but
            // the same one everywhere. The larger checksum wins, whoever pulls from whom first.
            let tie = held.version == source.version
                && adopted_here
                && (!adopted_there || source.crc > held.crc);
            if held_bad || source.version > held.version || tie {
                Verdict::Take
            } else {
                Verdict::Keep
            }
        }
        PullMode::Repair => {
            let adopted_here = has(held, SectorState::ADOPTED);
            let adopted_there = has(source, SectorState::ADOPTED);
            let same_version = source.version == held.version;
            let tie = same_version && adopted_here && (!adopted_there || source.crc > held.crc);
            if source.version > held.version || tie || (held_bad && same_version) {
                Verdict::Take
            } else if held_bad {
                Verdict::Bad
            } else {
                Verdict::Keep
            }
        }
        // Written since the join began: on its way to this node too, which must answer it.
        PullMode::Mirror | PullMode::MirrorBad if source.version > ceiling => Verdict::Keep,
        PullMode::Mirror | PullMode::MirrorBad if held.version <= ceiling => Verdict::Take,
        PullMode::Mirror | PullMode::MirrorBad if held_bad => Verdict::Bad,
        PullMode::Mirror | PullMode::MirrorBad => Verdict::Keep,
    }
}

/// A run of sectors to take, inside one slot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Piece {
    pub(super) sector: SectorInChunk,
    pub(super) count: u16,
    /// The source has only zeros here: nothing to fetch, these states say it all.
    pub(super) zeros: Option<Vec<SectorState>>,
}

impl Piece {
    pub(super) fn bytes(&self) -> u64 {
        u64::from(self.count) * SECTOR_BYTES as u64
    }
}

/// Cut a window into pieces of sectors to take: runs of equal kind, never across a slot. Also
/// returns how many sectors are bad.
pub(super) fn cut(
    first: SectorInChunk,
    held: &[SectorState],
    source: &[SectorState],
    mode: PullMode,
    ceiling: Version,
) -> (Vec<Piece>, u32) {
    assert_eq!(held.len(), source.len(), "states of one window");
    let mut pieces: Vec<Piece> = Vec::new();
    let mut bad = 0;
    // Position up to which the last piece may still grow.
    let mut open_until = None;
    for (offset, (held, source)) in (0u16..).zip(held.iter().zip(source)) {
        let at = first.0 + offset;
        match judge(held, source, mode, ceiling) {
            Verdict::Keep => continue,
            Verdict::Bad => {
                bad += 1;
                continue;
            }
            Verdict::Take => {}
        }
        let zero = has(source, SectorState::ZERO);
        let grows = open_until == Some(at) && !usize::from(at).is_multiple_of(SLOT_SECTORS);
        match pieces.last_mut() {
            Some(piece) if grows && piece.zeros.is_some() == zero => {
                piece.count += 1;
                piece
                    .zeros
                    .as_mut()
                    .into_iter()
                    .for_each(|z| z.push(*source));
            }
            _ => pieces.push(Piece {
                sector: SectorInChunk(at),
                count: 1,
                zeros: zero.then(|| vec![*source]),
            }),
        }
        open_until = Some(at + 1);
    }
    (pieces, bad)
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation)] // test data is small
mod tests {
    use super::*;
    use proptest::prelude::*;
    use ukai_proto::{Seq, Token};

    fn state(seq: u64, crc: u32, flags: u16) -> SectorState {
        SectorState {
            version: Version::new(Token(1), Seq(seq)),
            crc,
            flags,
        }
    }

    const NONE: Version = Version::ZERO;

    #[test]
    fn newer_takes_newer_and_heals_bad() {
        let judge = |a: &_, b: &_| judge(a, b, PullMode::Newer, NONE);
        assert_eq!(judge(&state(1, 1, 0), &state(2, 2, 0)), Verdict::Take);
        assert_eq!(judge(&state(2, 2, 0), &state(1, 1, 0)), Verdict::Keep);
        let bad = state(2, 2, SectorState::BAD);
        assert_eq!(judge(&bad, &state(2, 2, 0)), Verdict::Take);
        assert_eq!(judge(&bad, &bad), Verdict::Bad);
        assert_eq!(judge(&state(2, 2, 0), &bad), Verdict::Keep);
    }

    #[test]
    fn repair_heals_bad_but_never_with_something_older() {
        let judge = |a: &_, b: &_| judge(a, b, PullMode::Repair, NONE);
        let bad = state(2, 2, SectorState::BAD);
        assert_eq!(judge(&bad, &state(2, 2, 0)), Verdict::Take);
        assert_eq!(judge(&bad, &state(3, 3, 0)), Verdict::Take);
        assert_eq!(
            judge(&bad, &state(1, 1, 0)),
            Verdict::Bad,
            "write 2 may be on its way to the source"
        );
        assert_eq!(judge(&bad, &bad), Verdict::Bad);
        assert_eq!(judge(&state(1, 1, 0), &state(2, 2, 0)), Verdict::Take);
        assert_eq!(judge(&state(2, 2, 0), &state(1, 1, 0)), Verdict::Keep);
        assert_eq!(judge(&state(2, 2, 0), &state(2, 3, 0)), Verdict::Keep);
        let adopted = state(2, 3, SectorState::ADOPTED);
        assert_eq!(judge(&adopted, &state(2, 2, 0)), Verdict::Take);
    }

    #[test]
    fn mirror_takes_older_too_but_not_above_the_ceiling() {
        let ceiling = Version::new(Token(1), Seq(5));
        let judge = |a: &_, b: &_| judge(a, b, PullMode::Mirror, ceiling);
        assert_eq!(judge(&state(5, 1, 0), &state(2, 2, 0)), Verdict::Take);
        assert_eq!(judge(&state(6, 1, 0), &state(2, 2, 0)), Verdict::Keep);
        assert_eq!(judge(&state(2, 1, 0), &state(6, 2, 0)), Verdict::Keep);
        let zeros = state(3, 0, SectorState::ZERO);
        assert_eq!(
            judge(&SectorState::UNWRITTEN, &zeros),
            Verdict::Take,
            "whoever comes back later must learn of the discard"
        );
        assert_eq!(judge(&state(2, 1, 0), &zeros), Verdict::Take);
        let bad = state(2, 2, SectorState::BAD);
        assert_eq!(judge(&state(3, 2, 0), &bad), Verdict::Bad);
        assert_eq!(judge(&state(2, 2, 0), &bad), Verdict::Keep);
        let adopted = state(2, 3, SectorState::ADOPTED);
        assert_eq!(judge(&adopted, &bad), Verdict::Bad);
        let after_power_loss = SectorState {
            version: Version::ZERO,
            ..state(0, 7, SectorState::ADOPTED)
        };
        let doubted = SectorState {
            flags: SectorState::ADOPTED | SectorState::BAD | SectorState::DOUBTED,
            ..after_power_loss
        };
        for held in [&SectorState::UNWRITTEN, &after_power_loss] {
            assert_eq!(judge(held, &doubted), Verdict::Bad, "{held:?}");
        }
    }

    #[test]
    fn what_is_bad_everywhere_is_taken_as_bad_if_that_is_asked_for() {
        let ceiling = Version::new(Token(1), Seq(5));
        let judge = |a: &_, b: &_| judge(a, b, PullMode::MirrorBad, ceiling);
        let bad = state(2, 2, SectorState::BAD);
        assert_eq!(judge(&SectorState::UNWRITTEN, &bad), Verdict::Take);
        assert_eq!(judge(&state(3, 3, 0), &bad), Verdict::Take);
        assert_eq!(judge(&bad, &bad), Verdict::Keep, "equal now");
        assert_eq!(judge(&state(2, 2, 0), &bad), Verdict::Keep, "better here");
        assert_eq!(judge(&state(6, 2, 0), &bad), Verdict::Keep, "written since");
        let late = state(6, 2, SectorState::BAD);
        assert_eq!(judge(&state(1, 1, 0), &late), Verdict::Keep, "on its way");
        let doubted = state(2, 2, SectorState::BAD | SectorState::DOUBTED);
        assert_eq!(judge(&SectorState::UNWRITTEN, &doubted), Verdict::Bad);
        assert_eq!(judge(&state(1, 1, 0), &state(2, 2, 0)), Verdict::Take);
    }

    fn any_state() -> impl Strategy<Value = SectorState> {
        (0u64..3, 0u32..3, prop::sample::select(vec![0u16, 1, 2, 4]))
            .prop_map(|(seq, crc, flags)| state(seq, crc, flags))
    }

    proptest! {
        /// Reconcile: pulled both ways at the same time, two good copies do not swap for ever.
        #[test]
        fn newer_both_ways_never_swaps(a in any_state(), b in any_state()) {
            for mode in [PullMode::Newer, PullMode::Repair] {
                let takes = |x: &_, y: &_| judge(x, y, mode, NONE) == Verdict::Take;
                prop_assert!(!(takes(&a, &b) && takes(&b, &a)));
            }
        }

        #[test]
        fn pieces_cover_exactly_what_is_taken(
            first in 0u16..600,
            pairs in prop::collection::vec((any_state(), any_state()), 1..600),
            mode in prop::sample::select(vec![
                PullMode::Newer, PullMode::Mirror, PullMode::Repair, PullMode::MirrorBad,
            ]),
        ) {
            let ceiling = Version::new(Token(1), Seq(1));
            let (held, source): (Vec<_>, Vec<_>) = pairs.iter().copied().unzip();
            let (pieces, bad) = cut(SectorInChunk(first), &held, &source, mode, ceiling);
            let mut covered = Vec::new();
            for piece in &pieces {
                let slots = SLOT_SECTORS as u16;
                prop_assert_eq!(piece.sector.0 / slots, (piece.sector.0 + piece.count - 1) / slots);
                for offset in 0..piece.count {
                    let at = piece.sector.0 + offset;
                    let theirs = source[usize::from(at - first)];
                    prop_assert_eq!(piece.zeros.is_some(), theirs.flags & SectorState::ZERO != 0);
                    if let Some(zeros) = &piece.zeros {
                        prop_assert_eq!(zeros[usize::from(offset)], theirs);
                    }
                    covered.push(at);
                }
            }
            let verdicts: Vec<_> =
                pairs.iter().map(|(h, s)| judge(h, s, mode, ceiling)).collect();
            let wanted: Vec<u16> = (first..).zip(&verdicts)
                .filter(|(_, v)| **v == Verdict::Take).map(|(at, _)| at).collect();
            prop_assert_eq!(covered, wanted);
            prop_assert_eq!(bad as usize, verdicts.iter().filter(|v| **v == Verdict::Bad).count());
        }
    }
}
