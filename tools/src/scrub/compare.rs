//! What the states that the replicas of a sector tell mean, and what is to be done. Pure.

use ukai_proto::Version;
use ukai_proto::message::SectorState;

/// What is wrong with one replica of a sector.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Fault {
    /// Its data does not match its checksum, or cannot be read.
    Bad,
    /// It differs from a replica that has a later write.
    Behind,
}

/// Verdict on one sector. Replicas are named by their place in the list that was judged.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// All replicas are good and say the same.
    Equal,
    /// Not so, but a write may be under way: ask again.
    Unsettled,
    /// `targets` are to take the sector from `source`.
    Repair {
        source: usize,
        targets: Vec<(usize, Fault)>,
    },
    /// Nothing can be done that is surely right.
    Hopeless {
        faults: Vec<(usize, Fault)>,
        why: &'static str,
    },
}

fn is_bad(state: &SectorState) -> bool {
    state.flags & SectorState::BAD != 0
}

/// Zeros are equal whatever their versions: copies leave out zeros where nothing was written.
fn equal(a: &SectorState, b: &SectorState) -> bool {
    let both_zero = a.flags & b.flags & SectorState::ZERO != 0;
    both_zero || (a.version == b.version && a.crc == b.crc)
}

/// Later writes first; of one version, logged content before adopted, then the larger checksum: as
/// nodes decide (`PutRule::Repair`).
fn rank(state: &SectorState) -> (Version, bool, u32) {
    let logged = state.flags & SectorState::ADOPTED == 0;
    (state.version, logged, state.crc)
}

/// Judges one sector. Every write up to `settled` had ended on all replicas *before* any of them was
/// asked; what is above may be under way.
pub(crate) fn judge(states: &[SectorState], settled: Version) -> Verdict {
    let bad: Vec<usize> = (0..states.len()).filter(|i| is_bad(&states[*i])).collect();
    let good = (0..states.len()).filter(|i| !is_bad(&states[*i]));
    let Some(best) = good.clone().max_by_key(|i| rank(&states[*i])) else {
        let under_way = states.iter().any(|state| state.version > settled);
        return match (bad.is_empty(), under_way) {
            (true, _) => Verdict::Equal,
            (false, true) => Verdict::Unsettled,
            (false, false) => Verdict::Hopeless {
                faults: bad.into_iter().map(|i| (i, Fault::Bad)).collect(),
                why: "no replica has good data",
            },
        };
    };
    let top = &states[best];
    let logged = |state: &SectorState| state.flags & SectorState::ADOPTED == 0;
    let behind: Vec<usize> = good.filter(|i| !equal(&states[*i], top)).collect();
    let twins: Vec<(usize, Fault)> = behind
        .iter()
        .filter(|i| states[**i].version == top.version && logged(&states[**i]) == logged(top))
        .filter(|i| logged(&states[**i]))
        .map(|i| (*i, Fault::Behind))
        .collect();
    let newer_is_bad: Vec<(usize, Fault)> = bad
        .iter()
        .filter(|i| states[**i].version > top.version)
        .map(|i| (*i, Fault::Bad))
        .collect();
    let mut targets: Vec<(usize, Fault)> = bad
        .iter()
        .filter(|i| states[**i].version <= top.version)
        .map(|i| (*i, Fault::Bad))
        .collect();
    if top.version <= settled && twins.is_empty() && newer_is_bad.is_empty() {
        targets.extend(behind.iter().map(|i| (*i, Fault::Behind)));
    }
    if !targets.is_empty() {
        targets.sort_unstable();
        return Verdict::Repair {
            source: best,
            targets,
        };
    }
    let highest = states.iter().map(|state| state.version).max();
    let under_way = highest.is_some_and(|highest| highest > settled);
    if behind.is_empty() && newer_is_bad.is_empty() {
        Verdict::Equal
    } else if under_way {
        Verdict::Unsettled
    } else if newer_is_bad.is_empty() {
        Verdict::Hopeless {
            faults: twins,
            why: "replicas have different data of the same write",
        }
    } else {
        Verdict::Hopeless {
            faults: newer_is_bad,
            why: "only an older version is good elsewhere",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use ukai_proto::{Seq, Token};

    fn version(seq: u64) -> Version {
        Version::new(Token(1), Seq(seq))
    }

    fn state(seq: u64, crc: u32, flags: u16) -> SectorState {
        SectorState {
            version: version(seq),
            crc,
            flags,
        }
    }

    fn repair(source: usize, targets: &[(usize, Fault)]) -> Verdict {
        Verdict::Repair {
            source,
            targets: targets.to_vec(),
        }
    }

    const BAD: u16 = SectorState::BAD;
    const ZERO: u16 = SectorState::ZERO;

    #[test]
    fn rot_is_repaired_from_a_good_replica_at_once() {
        let judge = |a, b| judge(&[a, b], version(5));
        let heal = repair(1, &[(0, Fault::Bad)]);
        assert_eq!(judge(state(5, 1, BAD), state(5, 1, 0)), heal);
        assert_eq!(
            judge(state(9, 1, BAD), state(9, 1, 0)),
            heal,
            "settled or not"
        );
        assert_eq!(judge(state(3, 1, BAD), state(9, 1, 0)), heal);
    }

    #[test]
    fn nothing_older_takes_the_place_of_a_bad_sector() {
        let judge = |a, b, settled| judge(&[a, b], version(settled));
        let (bad, old) = (state(7, 1, BAD), state(5, 2, 0));
        assert_eq!(judge(bad, old, 6), Verdict::Unsettled);
        assert!(matches!(judge(bad, old, 7), Verdict::Hopeless { .. }));
        assert!(matches!(judge(bad, bad, 7), Verdict::Hopeless { .. }));
        assert_eq!(judge(bad, bad, 6), Verdict::Unsettled);
    }

    #[test]
    fn differences_count_when_they_are_settled_and_are_rolled_forward() {
        let judge = |a, b, settled| judge(&[a, b], version(settled));
        let (old, new) = (state(5, 1, 0), state(7, 2, 0));
        assert_eq!(judge(old, new, 6), Verdict::Unsettled, "a write in flight");
        assert_eq!(judge(old, new, 7), repair(1, &[(0, Fault::Behind)]));
        assert_eq!(judge(old, old, 0), Verdict::Equal);
        let zeros = state(9, 0, ZERO);
        assert_eq!(judge(zeros, new, 9), repair(0, &[(1, Fault::Behind)]));
        assert_eq!(judge(zeros, SectorState::UNWRITTEN, 9), Verdict::Equal);
    }

    #[test]
    fn one_write_with_two_contents_is_left_to_a_person_unless_one_was_adopted() {
        let (one, other) = (state(5, 1, 0), state(5, 2, 0));
        let verdict = judge(&[one, other], version(5));
        assert!(matches!(verdict, Verdict::Hopeless { .. }), "{verdict:?}");
        assert_eq!(judge(&[one, other], version(4)), Verdict::Unsettled);
        let adopted = state(5, 9, SectorState::ADOPTED);
        let verdict = judge(&[one, adopted], version(5));
        assert_eq!(verdict, repair(0, &[(1, Fault::Behind)]));
    }

    #[test]
    fn three_replicas_with_a_fault_each_but_one() {
        let states = [state(5, 1, BAD), state(4, 2, 0), state(5, 1, 0)];
        let both = [(0, Fault::Bad), (1, Fault::Behind)];
        assert_eq!(judge(&states, version(5)), repair(2, &both));
        let bad_only = [(0, Fault::Bad)];
        assert_eq!(judge(&states, version(4)), repair(2, &bad_only));
    }

    fn any_state() -> impl Strategy<Value = SectorState> {
        (0u64..4, 0u32..3, prop::sample::select(vec![0u16, 1, 2, 4])).prop_map(
            |(seq, crc, flags)| match flags {
                ZERO => state(seq, 77, ZERO), // as all zeros have one checksum
                flags => state(seq, crc, flags),
            },
        )
    }

    proptest! {
        /// What is repaired ends equal, and no repair takes something older, or above what is settled
        /// into a good sector.
        #[test]
        fn repairs_are_right(
            states in prop::collection::vec(any_state(), 1..4), settled in 0u64..4,
        ) {
            let settled = version(settled);
            let mut now = states.clone();
            match judge(&states, settled) {
                Verdict::Repair { source, targets } => {
                    let from = states[source];
                    prop_assert_eq!(from.flags & BAD, 0);
                    for (target, fault) in &targets {
                        prop_assert_ne!(*target, source);
                        prop_assert!(from.version >= states[*target].version);
                        if *fault == Fault::Behind {
                            prop_assert!(from.version <= settled);
                        }
                        now[*target] = from;
                    }
                    let after = judge(&now, settled);
                    prop_assert!(!matches!(after, Verdict::Repair { .. }), "{:?}", after);
                }
                Verdict::Equal => {
                    prop_assert!(states.iter().all(|s| s.flags & BAD == 0));
                    prop_assert!(states.windows(2).all(|w| equal(&w[0], &w[1])));
                }
                Verdict::Unsettled => {
                    prop_assert!(states.iter().any(|s| s.version > settled));
                }
                Verdict::Hopeless { faults, .. } => {
                    prop_assert!(!faults.is_empty());
                    prop_assert!(states.iter().all(|s| s.version <= settled));
                }
            }
        }
    }
}
