//! What had been promised to the guest at a moment of the log.
//!
//! After flushes the exerciser puts a mark into the log: how many lines the history had. Marks are put one
//! after another, each after its lines. So at an entry between two marks all that the lines of the first mark
//! say had happened; and no operation had begun that is not in the lines of the mark after the second.

use std::fs;
use std::path::Path;
use ukai_checker::{Event, History, Kind, Mode, Report, SectorValue};

/// Sectors of one read event.
const READ_SECTORS: usize = 256;

/// A history.
#[derive(Debug)]
pub(crate) struct Past {
    events: Vec<Event>,
    name: String,
}

impl Past {
    pub(crate) fn read(path: &Path, name: &str) -> Result<Self, String> {
        let text =
            fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let events = text
            .lines()
            .enumerate()
            .map(|(number, line)| {
                serde_json::from_str(line)
                    .map_err(|error| format!("{} line {}: {error}", path.display(), number + 1))
            })
            .collect::<Result<_, _>>()?;
        let name = name.to_owned();
        Ok(Self { events, name })
    }

    pub(crate) fn lines(&self) -> usize {
        self.events.len()
    }

    /// Judges what a node holds after a cut when the first `sure` events had happened, and no operation beyond
    /// the first `possible` had begun.
    pub(crate) fn judge(
        &self,
        sure: usize,
        possible: usize,
        values: &[SectorValue],
    ) -> Result<Report, String> {
        let mut history = History::new(Mode::Flush);
        let (mut t, mut op_max) = (0, 0);
        let mut push = |event: Event| history.push(event).map_err(|error| error.to_string());
        for (index, event) in self.events[..possible].iter().enumerate() {
            let begins = match event {
                Event::Invoke { op, kind, .. } => {
                    op_max = op_max.max(*op);
                    matches!(kind, Kind::Write { .. } | Kind::Zero { .. })
                }
                _ => false,
            };
            if index < sure || begins {
                t = event.time();
                push(event.clone())?;
            }
        }
        push(Event::PowerCut { t: t + 1 })?;
        t += 1;
        for (at, values) in values.chunks(READ_SECTORS).enumerate() {
            op_max += 1;
            t += 2;
            let kind = Kind::Read {
                volume: self.name.clone(),
                sector: (at * READ_SECTORS) as u64,
                // At most READ_SECTORS.
                count: u32::try_from(values.len()).unwrap_or(u32::MAX),
            };
            let (t0, op, values) = (t - 1, op_max, values.to_vec());
            push(Event::Invoke { t: t0, op, kind })?;
            push(Event::Ok { t, op, values })?;
        }
        Ok(history.check())
    }
}
