//! The history of one volume: one clock for all guests, what is in flight, and the rules that can be
//! judged at once.

use crate::wait::{Outcome, now, setup, setup_at};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::ops::Range;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use ukai_checker::{Content, Event, History, Kind, Mode, Report, SectorValue, Stamp};

/// Bytes of a sector.
pub(crate) const SECTOR: u64 = ukai_checker::stamp::SECTOR_BYTES as u64;

/// What a guest asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ask {
    /// What.
    pub(crate) verb: Verb,
    /// Which sectors; empty for a flush.
    pub(crate) sectors: Range<u64>,
    /// Durable when answered.
    pub(crate) fua: bool,
}

/// The kinds of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    /// Read.
    Read,
    /// Write.
    Write,
    /// Discard.
    Trim,
    /// Write zeroes.
    Zero,
    /// Flush.
    Flush,
}

impl Verb {
    /// Does it change sectors?
    #[must_use]
    pub(crate) fn changes(self) -> bool {
        matches!(self, Verb::Write | Verb::Trim | Verb::Zero)
    }
}

/// An operation that has begun.
#[derive(Clone, Debug)]
pub(crate) struct Open {
    /// Its number in the history.
    pub(crate) op: u64,
    /// What was asked.
    pub(crate) ask: Ask,
    /// Of the front that was asked.
    pub(crate) token: u32,
    /// It began when a later front had fenced this one.
    pub(crate) fenced: bool,
    /// And had overwritten everything: the only right answer is an error.
    pub(crate) stale: bool,
    begun: Instant,
}

/// Sums for the table at the end.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sums {
    /// Requests sent.
    pub(crate) operations: u64,
    /// Writes (zeroes included) that were answered well.
    pub(crate) acked: u64,
    /// Sectors read by guests.
    pub(crate) sectors_read: u64,
    /// Sectors read from single replicas.
    pub(crate) replica_sectors: u64,
    /// Longest time a guest that was not fenced waited for an answer.
    pub(crate) stall_max: Duration,
}

struct State {
    volume: [u8; 16],
    token: u32,
    /// Everything was overwritten under this token.
    overwritten: u32,
    t: u64,
    next: u64,
    history: History,
    file: BufWriter<File>,
    /// Under the current token.
    in_flight: BTreeSet<u64>,
    /// Values that must never be seen: written through a fenced front.
    forbidden: BTreeSet<u64>,
    sums: Sums,
    problem: Option<String>,
}

/// Shared by all guests.
pub(crate) struct Recorder(Mutex<State>);

/// Name of the volume in histories.
const NAME: &str = "v";

impl Recorder {
    /// A new history, written to `path` as well.
    pub(crate) fn new(volume: [u8; 16], path: &Path) -> Outcome<Self> {
        let file = File::create(path).map_err(setup_at("create", path))?;
        Ok(Self(Mutex::new(State {
            volume,
            token: 0,
            overwritten: 0,
            t: 0,
            next: 1,
            history: History::new(Mode::Strict),
            file: BufWriter::new(file),
            in_flight: BTreeSet::new(),
            forbidden: BTreeSet::new(),
            sums: Sums::default(),
            problem: None,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A guest that panicked has told so; what it wrote here is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first broken rule that was seen while running.
    pub(crate) fn problem(&self) -> Option<String> {
        self.state().problem.clone()
    }

    /// Notes a broken rule.
    pub(crate) fn complain(&self, text: String) {
        let mut state = self.state();
        let t = state.t;
        state.problem.get_or_insert(format!("{text} (at t={t})"));
    }

    /// The clock of the history.
    pub(crate) fn t(&self) -> u64 {
        self.state().t
    }

    /// So far.
    pub(crate) fn sums(&self) -> Sums {
        self.state().sums.clone()
    }

    /// A front serves under this token: lower ones are fenced, and what they had in flight is settled.
    pub(crate) fn fenced(&self, token: u32) {
        let mut state = self.state();
        state.token = token;
        state.in_flight.clear();
        let volume = NAME.to_owned();
        state.push(|t| Event::Fenced { t, volume, token });
    }

    /// Everything that guests use was written through the current front.
    pub(crate) fn overwritten(&self) {
        let mut state = self.state();
        state.overwritten = state.token;
    }

    /// An operation begins. For writes, `data` gets the contents.
    pub(crate) fn begin(&self, token: u32, ask: &Ask, data: &mut Vec<u8>) -> Open {
        let mut state = self.state();
        let fenced = token < state.token;
        let op = state.next;
        state.next += 1;
        let (volume, sector) = (NAME.to_owned(), ask.sectors.start);
        let count = u32::try_from(ask.sectors.end - ask.sectors.start).unwrap_or(u32::MAX);
        let fua = ask.fua;
        let kind = match ask.verb {
            Verb::Read => Kind::Read {
                volume,
                sector,
                count,
            },
            Verb::Flush => Kind::Flush { volume },
            Verb::Trim | Verb::Zero => Kind::Zero {
                volume,
                sector,
                count,
                token,
                fua,
            },
            Verb::Write => Kind::Write {
                volume,
                sector,
                count,
                // Operation numbers are unique, so they serve as values.
                write: op,
                token,
                fua,
            },
        };
        if ask.verb == Verb::Write {
            let bytes = usize::try_from(u64::from(count) * SECTOR).unwrap_or(0);
            data.resize(bytes, 0);
            let volume = state.volume;
            let sectors = data.chunks_exact_mut(ukai_checker::stamp::SECTOR_BYTES);
            for (bytes, sector) in sectors.zip(ask.sectors.start..) {
                Stamp {
                    volume,
                    sector,
                    write_id: op,
                }
                .write_to(bytes);
            }
            if fenced {
                state.forbidden.insert(op);
            }
        }
        state.push(|t| Event::Invoke { t, op, kind });
        if !fenced {
            state.in_flight.insert(op);
        }
        state.sums.operations += 1;
        Open {
            op,
            ask: ask.clone(),
            token,
            fenced,
            stale: fenced && state.overwritten == state.token,
            begun: now(),
        }
    }

    /// It succeeded; `data` is what was read.
    pub(crate) fn succeeded(&self, open: &Open, data: &[u8]) {
        let mut state = self.state();
        let values = match open.ask.verb {
            Verb::Read => state.values(open.ask.sectors.start, data),
            _ => Vec::new(),
        };
        state.forbid(&values, &format!("op {}", open.op));
        let op = open.op;
        state.sums.sectors_read += values.len() as u64;
        state.push(|t| Event::Ok { t, op, values });
        state.in_flight.remove(&op);
        if open.ask.verb.changes() {
            state.sums.acked += 1;
        }
        state.ended(open);
    }

    /// The guest saw an error.
    pub(crate) fn failed(&self, open: &Open) {
        let mut state = self.state();
        let op = open.op;
        state.push(|t| Event::Fail { t, op });
        state.in_flight.remove(&op);
        state.ended(open);
    }

    /// What one replica holds.
    pub(crate) fn replica(&self, node: &str, sector: u64, data: &[u8]) -> Vec<SectorValue> {
        let mut state = self.state();
        let values = state.values(sector, data);
        state.forbid(&values, &format!("the replica on {node}"));
        state.sums.replica_sectors += values.len() as u64;
        let (volume, node) = (NAME.to_owned(), node.to_owned());
        let copy = values.clone();
        state.push(|t| Event::Replica {
            t,
            volume,
            node,
            sector,
            values,
        });
        copy
    }

    /// Operations of guests that are under way under the current token.
    pub(crate) fn in_flight(&self) -> usize {
        self.state().in_flight.len()
    }

    /// Writes the file to its end.
    pub(crate) fn flush(&self) -> Outcome {
        self.state()
            .file
            .flush()
            .map_err(setup("write the history"))
    }

    /// The verdict; a new history must follow.
    pub(crate) fn check(&self) -> Report {
        std::mem::take(&mut self.state().history).check()
    }
}

impl State {
    fn push(&mut self, event: impl FnOnce(u64) -> Event) {
        self.t += 1;
        let event = event(self.t);
        // A full disk must not look like a broken product.
        let line = serde_json::to_string(&event).map_err(std::io::Error::from);
        let written = line.and_then(|line| writeln!(self.file, "{line}"));
        if let Err(error) = written {
            self.problem
                .get_or_insert(format!("write the history: {error}"));
        }
        let pushed = self.history.push(event);
        assert!(pushed.is_ok(), "the recorder makes a history: {pushed:?}");
    }

    fn values(&self, sector: u64, data: &[u8]) -> Vec<SectorValue> {
        data.chunks_exact(ukai_checker::stamp::SECTOR_BYTES)
            .zip(sector..)
            .map(|(bytes, sector)| Content::read(bytes).value(self.volume, sector))
            .collect()
    }

    fn forbid(&mut self, values: &[SectorValue], who: &str) {
        let seen = values.iter().find_map(|value| match value {
            SectorValue::Write(id) if self.forbidden.contains(id) => Some(*id),
            _ => None,
        });
        if let Some(id) = seen {
            let t = self.t;
            self.problem.get_or_insert(format!(
                "{who} shows write {id}, which a fenced front made (at t={t})"
            ));
        }
    }

    fn ended(&mut self, open: &Open) {
        if open.token == self.token {
            self.sums.stall_max = self.sums.stall_max.max(open.begun.elapsed());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(sector: u64) -> Ask {
        Ask {
            verb: Verb::Write,
            sectors: sector..sector + 1,
            fua: false,
        }
    }

    fn read(sector: u64) -> Ask {
        Ask {
            verb: Verb::Read,
            ..write(sector)
        }
    }

    fn recorder() -> Recorder {
        Recorder::new([7; 16], Path::new("/dev/null")).expect("a recorder")
    }

    #[test]
    fn what_a_fenced_front_wrote_must_not_be_seen() {
        let recorder = recorder();
        recorder.fenced(1);
        recorder.fenced(2);
        let mut data = Vec::new();
        let open = recorder.begin(1, &write(9), &mut data);
        assert!(open.fenced);
        recorder.failed(&open);
        assert_eq!(recorder.problem(), None);
        recorder.replica("n", 9, &data);
        assert!(recorder.problem().is_some());
    }

    #[test]
    fn a_lost_write_and_different_replicas_are_found() {
        let recorder = recorder();
        recorder.fenced(1);
        let mut data = Vec::new();
        let open = recorder.begin(1, &write(9), &mut data);
        recorder.succeeded(&open, &[]);
        recorder.replica("a", 9, &data);
        assert!(recorder.check().is_good());

        let recorder = self::recorder();
        recorder.fenced(1);
        let open = recorder.begin(1, &write(9), &mut data);
        recorder.succeeded(&open, &[]);
        let open = recorder.begin(1, &read(9), &mut Vec::new());
        recorder.succeeded(&open, &[0; 4096]);
        recorder.replica("a", 9, &data);
        recorder.replica("b", 9, &[0; 4096]);
        assert_eq!(recorder.check().violation_count, 2);
    }

    #[test]
    fn a_read_of_a_fenced_front_is_stale_once_all_is_overwritten() {
        let recorder = recorder();
        recorder.fenced(1);
        recorder.fenced(2);
        assert!(!recorder.begin(1, &read(3), &mut Vec::new()).stale);
        recorder.overwritten();
        assert!(recorder.begin(1, &read(3), &mut Vec::new()).stale);
        assert!(!recorder.begin(2, &read(3), &mut Vec::new()).stale);
    }
}
