//! Whether a volume's data should follow to where it is used now. Pure: no clock, no store.
//!
//! A look tells where the volume is attached and whether the targets are broken there, by prediction. A job is
//! made when they were broken in two looks in a row from the same host, in the hours for it, and no job is there:
//! one bad look may be a host that is only passed through, or heat that has just changed. A job that was made so is
//! paused when these hours end, and goes on when they come again.

use std::fmt;
use std::str::FromStr;

/// Looks in a row that must say the same.
pub(crate) const LOOKS: u32 = 2;
/// After a job that failed or was cancelled nothing is begun for so long: whoever cancelled it had a reason.
pub(crate) const BACKOFF_S: u64 = 3600;
const DAY_MIN: u32 = 24 * 60;

/// Hours of a day, UTC: from, to (not included), in minutes; may go over midnight.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Hours {
    from_min: u32,
    to_min: u32,
}

impl Hours {
    fn contains(self, minute: u32) -> bool {
        if self.from_min < self.to_min {
            (self.from_min..self.to_min).contains(&minute)
        } else {
            minute >= self.from_min || minute < self.to_min
        }
    }
}

impl FromStr for Hours {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = || format!("{text:?} are no hours; write 22:00-06:00");
        let minute = |text: &str| {
            let (hours, minutes) = text.trim().split_once(':')?;
            let (hours, minutes): (u32, u32) = (hours.parse().ok()?, minutes.parse().ok()?);
            (hours < 24 && minutes < 60).then_some(hours * 60 + minutes)
        };
        let (from, to) = text.split_once('-').ok_or_else(form)?;
        let (from_min, to_min) = minute(from).zip(minute(to)).ok_or_else(form)?;
        if from_min == to_min {
            return Err(form());
        }
        Ok(Self { from_min, to_min })
    }
}

/// When, and under which policy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Now {
    /// Seconds since 1970.
    pub(crate) unix_s: u64,
    /// The only hours in which something is begun.
    pub(crate) hours: Option<Hours>,
    /// Looks in a row that must say the same.
    pub(crate) looks: u32,
}

/// The job that is there, if it is of following.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Own {
    /// There is none, it was made or paused by somebody else, or it has ended.
    #[default]
    No,
    Running,
    /// Because the hours ended.
    Paused,
}

/// What one look tells of a volume.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Look {
    /// Who has it attached.
    pub(crate) host: Option<String>,
    /// A job that has not ended, also one that is paused.
    pub(crate) has_job: bool,
    pub(crate) own: Own,
    /// When the last job failed or was cancelled, seconds since 1970.
    pub(crate) gave_up_unix_s: Option<u64>,
    /// A target is broken there.
    pub(crate) is_broken: bool,
    /// A plan that meets the targets moves something.
    pub(crate) is_possible: bool,
}

/// All that is known: the last look, and how long it has been like that.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Seen {
    look: Look,
    /// Looks in a row in which the targets were broken from this host.
    broken: u32,
}

impl Seen {
    /// One more look.
    pub(crate) fn add(&mut self, look: Look) {
        let is_same = self.look.host == look.host;
        self.broken = match look.is_broken && !look.has_job {
            true if is_same => self.broken.saturating_add(1),
            true => 1,
            false => 0,
        };
        self.look = look;
    }
}

/// What is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Action {
    /// Make the job.
    Move,
    /// The hours of the job have ended.
    Pause,
    /// They have come again.
    Resume,
    /// Nothing is wanted.
    Rest(Rest),
}

/// Why nothing is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Rest {
    Detached,
    HasJob,
    Paused,
    Met,
    OnceMore,
    Impossible,
    NotNow,
    GaveUp,
}

impl fmt::Display for Rest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Detached => "nobody has it attached",
            Self::HasJob => "a job is there",
            Self::Paused => "its job is paused; it is not the time to move",
            Self::Met => "the targets are met",
            Self::OnceMore => "a target is broken; one more look",
            Self::Impossible => "a target is broken, and no plan meets it; `ukai-tools plan` with the same options says why",
            Self::NotNow => "a target is broken; it is not the time to move",
            Self::GaveUp => {
                "a target is broken; the last job failed or was cancelled less than an hour ago"
            }
        })
    }
}

/// What is due.
pub(crate) fn decide(now: Now, seen: &Seen) -> Action {
    let look = &seen.look;
    let minute = u32::try_from(now.unix_s / 60 % u64::from(DAY_MIN)).unwrap_or(0);
    let is_time = now.hours.is_none_or(|hours| hours.contains(minute));
    let rest = if look.has_job {
        match (look.own, is_time) {
            (Own::Running, false) => return Action::Pause,
            (Own::Paused, true) => return Action::Resume,
            (Own::Paused, false) => Rest::Paused,
            (Own::Running, true) | (Own::No, _) => Rest::HasJob,
        }
    } else if look.host.is_none() {
        Rest::Detached
    } else if !look.is_broken {
        Rest::Met
    } else if seen.broken < now.looks {
        Rest::OnceMore
    } else if !look.is_possible {
        Rest::Impossible
    } else if look
        .gave_up_unix_s
        .is_some_and(|at| now.unix_s < at.saturating_add(BACKOFF_S))
    {
        Rest::GaveUp
    } else if !is_time {
        Rest::NotNow
    } else {
        return Action::Move;
    };
    Action::Rest(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: u64 = 1_790_000_000 / 86_400 * 86_400 + 12 * 3600;

    fn now(unix_s: u64) -> Now {
        Now {
            unix_s,
            hours: None,
            looks: LOOKS,
        }
    }

    fn broken(host: &str) -> Look {
        Look {
            host: Some(host.into()),
            is_broken: true,
            is_possible: true,
            ..Look::default()
        }
    }

    fn after(looks: &[Look]) -> Seen {
        let mut seen = Seen::default();
        looks.iter().for_each(|look| seen.add(look.clone()));
        seen
    }

    #[test]
    fn two_looks_in_a_row_from_one_host() {
        let decide = |looks: &[Look]| decide(now(NOON), &after(looks));
        let met = Look {
            is_broken: false,
            ..broken("h1")
        };
        let once_more = Action::Rest(Rest::OnceMore);
        assert_eq!(decide(&[]), Action::Rest(Rest::Detached));
        assert_eq!(decide(&[broken("h1")]), once_more);
        assert_eq!(decide(&[broken("h1"), broken("h1")]), Action::Move);
        assert_eq!(decide(&[broken("h1"), broken("h2")]), once_more);
        assert_eq!(
            decide(&[broken("h1"), met.clone(), broken("h1")]),
            once_more
        );
        assert_eq!(decide(&[broken("h1"), met]), Action::Rest(Rest::Met));
        let detached = [broken("h1"), Look::default(), broken("h1")];
        assert_eq!(decide(&detached), once_more);
    }

    #[test]
    fn never_beside_a_job_and_not_soon_after_one_that_was_given_up() {
        let job = Look {
            has_job: true,
            ..broken("h1")
        };
        let looks = [broken("h1"), broken("h1"), job.clone()];
        assert_eq!(
            decide(now(NOON), &after(&looks)),
            Action::Rest(Rest::HasJob)
        );
        // What was seen before the job does not count after it.
        let looks = [broken("h1"), job, broken("h1")];
        assert_eq!(
            decide(now(NOON), &after(&looks)),
            Action::Rest(Rest::OnceMore)
        );
        let gave_up = Look {
            gave_up_unix_s: Some(NOON),
            ..broken("h1")
        };
        let seen = after(&[gave_up.clone(), gave_up]);
        assert_eq!(decide(now(NOON + 3599), &seen), Action::Rest(Rest::GaveUp));
        assert_eq!(decide(now(NOON + 3600), &seen), Action::Move);
        let stuck = Look {
            is_possible: false,
            ..broken("h1")
        };
        let seen = after(&[stuck.clone(), stuck]);
        assert_eq!(decide(now(NOON), &seen), Action::Rest(Rest::Impossible));
    }

    #[test]
    fn its_own_job_pauses_when_the_hours_end_and_goes_on_when_they_come_again() {
        let at = |own, hour: u64| {
            let seen = after(&[Look {
                has_job: true,
                own,
                ..broken("h1")
            }]);
            let hours = Some("22:00-06:00".parse().unwrap());
            decide(
                Now {
                    hours,
                    ..now(NOON - 12 * 3600 + hour * 3600)
                },
                &seen,
            )
        };
        assert_eq!(at(Own::Running, 23), Action::Rest(Rest::HasJob));
        assert_eq!(at(Own::Running, 6), Action::Pause);
        assert_eq!(at(Own::Paused, 7), Action::Rest(Rest::Paused));
        assert_eq!(at(Own::Paused, 22), Action::Resume);
        // What others made or paused is theirs.
        assert_eq!(at(Own::No, 7), Action::Rest(Rest::HasJob));
        assert_eq!(at(Own::No, 23), Action::Rest(Rest::HasJob));
        let seen = after(&[Look {
            has_job: true,
            own: Own::Running,
            ..broken("h1")
        }]);
        assert_eq!(decide(now(NOON), &seen), Action::Rest(Rest::HasJob));
    }

    #[test]
    fn only_in_its_hours() {
        let seen = after(&[broken("h1"), broken("h1")]);
        let at = |hours: &str, unix_s| {
            let hours = Some(hours.parse().unwrap());
            decide(
                Now {
                    hours,
                    ..now(unix_s)
                },
                &seen,
            ) == Action::Move
        };
        assert!(!at("22:00-06:00", NOON));
        assert!(at("22:00-06:00", NOON + 10 * 3600));
        assert!(at("22:00-06:00", NOON + 12 * 3600));
        assert!(at("22:00-06:00", NOON + 18 * 3600 - 1));
        assert!(!at("22:00-06:00", NOON + 18 * 3600));
        assert!(at("12:00-12:01", NOON) && !at("12:01-13:00", NOON));
        for bad in ["", "22-6", "24:00-01:00", "06:00-06:00", "06:60-07:00"] {
            assert!(bad.parse::<Hours>().is_err(), "{bad}");
        }
    }
}
