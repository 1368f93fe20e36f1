//! Hand-made histories: each bad one is rejected with an explanation that names sector, writes and
//! reads; its good neighbour is accepted.
#![allow(clippy::unwrap_used)] // in a test a panic is the report

use ukai_checker::{Event, History, HistoryError, Kind, Mode, Report, SectorValue, ViolationKind};

const VOLUME: &str = "v";
const SECTOR: u64 = 42;

/// Writes a history, one call per event, each at the next time.
struct Script {
    history: History,
    t: u64,
}

impl Script {
    fn new(mode: Mode) -> Self {
        Self {
            history: History::new(mode),
            t: 0,
        }
    }
    fn push(&mut self, event: impl FnOnce(u64) -> Event) -> &mut Self {
        self.t += 1;
        self.history.push(event(self.t)).unwrap();
        self
    }
    fn start_write(&mut self, op: u64, write: u64) -> &mut Self {
        let kind = Kind::Write {
            volume: VOLUME.into(),
            sector: SECTOR,
            count: 1,
            write,
            token: 1,
            fua: false,
        };
        self.push(|t| Event::Invoke { t, op, kind })
    }
    fn start_zero(&mut self, op: u64) -> &mut Self {
        let kind = Kind::Zero {
            volume: VOLUME.into(),
            sector: SECTOR,
            count: 1,
            token: 1,
            fua: false,
        };
        self.push(|t| Event::Invoke { t, op, kind })
    }
    fn start_read(&mut self, op: u64) -> &mut Self {
        let kind = Kind::Read {
            volume: VOLUME.into(),
            sector: SECTOR,
            count: 1,
        };
        self.push(|t| Event::Invoke { t, op, kind })
    }
    fn ok(&mut self, op: u64) -> &mut Self {
        self.push(|t| Event::Ok {
            t,
            op,
            values: vec![],
        })
    }
    fn saw(&mut self, op: u64, value: u64) -> &mut Self {
        let values = vec![SectorValue::Write(value)];
        self.push(|t| Event::Ok { t, op, values })
    }
    fn fail(&mut self, op: u64) -> &mut Self {
        self.push(|t| Event::Fail { t, op })
    }
    fn fenced(&mut self, token: u32) -> &mut Self {
        self.push(|t| Event::Fenced {
            t,
            volume: VOLUME.into(),
            token,
        })
    }
    fn reissue(&mut self, op: u64, token: u32) -> &mut Self {
        self.push(|t| Event::Reissue { t, op, token })
    }
    fn flush(&mut self, op: u64) -> &mut Self {
        let kind = Kind::Flush {
            volume: VOLUME.into(),
        };
        self.push(|t| Event::Invoke { t, op, kind }).ok(op)
    }
    fn cut(&mut self) -> &mut Self {
        self.push(|t| Event::PowerCut { t })
    }
    fn replica(&mut self, node: &str, value: SectorValue) -> &mut Self {
        self.push(|t| Event::Replica {
            t,
            volume: VOLUME.into(),
            node: node.into(),
            sector: SECTOR,
            values: vec![value],
        })
    }
    fn write(&mut self, op: u64, write: u64) -> &mut Self {
        self.start_write(op, write).ok(op)
    }
    fn read(&mut self, op: u64, value: u64) -> &mut Self {
        self.start_read(op).saw(op, value)
    }
    fn check(&mut self) -> Report {
        std::mem::take(&mut self.history).check()
    }
    fn good(&mut self) {
        let report = self.check();
        assert!(report.is_good(), "{:?}", report.violations);
        assert_eq!(report.undecided, 0);
    }
    /// Rejected, naming the sector, these writes, and these operations in the text.
    fn bad(&mut self, kind: ViolationKind, writes: &[u64], ops: &[u64]) {
        let report = self.check();
        let [violation] = report.violations.as_slice() else {
            panic!("one violation expected: {:?}", report.violations)
        };
        assert_eq!(violation.kind, kind, "{violation}");
        let text = violation.to_string();
        assert!(text.contains("sector 42"), "{text}");
        for write in writes {
            assert!(violation.writes.contains(write), "{violation:?}");
            let name = if *write == 0 {
                "zero".into()
            } else {
                format!("write {write}")
            };
            assert!(text.contains(&name), "{name} not in {text}");
        }
        for op in ops {
            assert!(violation.ops.contains(op), "{violation:?}");
            assert!(
                text.contains(&format!("op {op}")),
                "op {op} is not in {text}"
            );
        }
    }
}

fn strict() -> Script {
    Script::new(Mode::Strict)
}

#[test]
fn stale_read() {
    strict().write(1, 101).write(2, 102).read(3, 101).bad(
        ViolationKind::LostWrite,
        &[101, 102],
        &[2, 3],
    );
    strict().write(1, 101).write(2, 102).read(3, 102).good();
}

#[test]
fn flip_flop() {
    strict()
        .start_write(1, 101)
        .start_write(2, 102)
        .ok(1)
        .ok(2)
        .read(3, 101)
        .read(4, 102)
        .read(5, 101)
        .bad(ViolationKind::OverlappingZones, &[101, 102], &[4, 5]);
    strict()
        .start_write(1, 101)
        .start_write(2, 102)
        .ok(1)
        .ok(2)
        .read(3, 101)
        .read(5, 101)
        .good();
}

#[test]
fn overlapping_forward_zones() {
    strict()
        .start_write(1, 101)
        .start_write(2, 102)
        .read(3, 101)
        .ok(1)
        .read(4, 102)
        .ok(2)
        .read(5, 101)
        .read(6, 102)
        .bad(ViolationKind::OverlappingZones, &[101, 102], &[3, 4, 5, 6]);
}

#[test]
fn lost_ack() {
    strict()
        .write(1, 101)
        .read(2, 0)
        .bad(ViolationKind::LostWrite, &[101, 0], &[1, 2]);
    strict().start_write(1, 101).read(2, 0).ok(1).good();
}

#[test]
fn read_of_a_write_that_began_later() {
    strict()
        .read(1, 101)
        .write(2, 101)
        .bad(ViolationKind::ReadFromFuture, &[101], &[1, 2]);
}

#[test]
fn value_of_nobody() {
    strict()
        .write(1, 101)
        .read(2, 999)
        .bad(ViolationKind::UnknownValue, &[999], &[2]);
}

#[test]
fn torn_sector() {
    let torn = SectorValue::Torn {
        torn: "32 units of write 101, 32 units of write 102".into(),
    };
    let mut script = strict();
    script.write(1, 101).start_read(2).push(|t| Event::Ok {
        t,
        op: 2,
        values: vec![torn],
    });
    script.bad(ViolationKind::TornSector, &[], &[2]);
}

#[test]
fn unacknowledged_write_is_old_or_new_but_never_flips() {
    strict().start_write(1, 101).read(2, 0).read(3, 101).good();
    strict().start_write(1, 101).fail(1).read(2, 0).good();
    strict().start_write(1, 101).fail(1).read(2, 101).good();
    strict().start_write(1, 101).read(2, 101).read(3, 0).bad(
        ViolationKind::StaleRead,
        &[101],
        &[2, 3],
    );
}

#[test]
fn unacknowledged_write_may_not_appear_after_its_interval() {
    // The guest saw the error, read the old value, and only then the write shows up.
    strict()
        .start_write(1, 101)
        .fail(1)
        .read(2, 0)
        .read(3, 101)
        .bad(ViolationKind::OverlappingZones, &[101, 0], &[1, 2, 3]);
    // The same for a fence; a reissue prolongs.
    strict()
        .start_write(1, 101)
        .fenced(2)
        .read(2, 0)
        .read(3, 101)
        .bad(ViolationKind::OverlappingZones, &[101, 0], &[1, 2, 3]);
    strict()
        .start_write(1, 101)
        .reissue(1, 2)
        .fenced(2)
        .read(2, 0)
        .read(3, 101)
        .good();
}

#[test]
fn late_ack_of_a_fenced_front_counts_up_to_the_fence() {
    strict()
        .start_write(1, 101)
        .fenced(2)
        .write(2, 102)
        .ok(1)
        .read(3, 102)
        .good();
    strict()
        .start_write(1, 101)
        .fenced(2)
        .write(2, 102)
        .ok(1)
        .read(3, 101)
        .bad(ViolationKind::LostWrite, &[102, 101], &[2, 3]);
}

#[test]
fn repeated_zeros() {
    strict()
        .write(1, 101)
        .start_zero(2)
        .ok(2)
        .read(3, 0)
        .write(4, 102)
        .read(5, 102)
        .good();
    strict().write(1, 101).start_zero(2).ok(2).read(3, 101).bad(
        ViolationKind::LostWrite,
        &[0, 101],
        &[2, 3],
    );
    // Zeros come back without a discard that could explain it.
    strict()
        .write(1, 101)
        .start_zero(2)
        .ok(2)
        .write(3, 102)
        .read(4, 0)
        .bad(ViolationKind::StaleRead, &[0, 102], &[4]);
    // One unacknowledged discard can be seen before or after the read of 103, not both.
    strict()
        .write(1, 101)
        .start_zero(2)
        .fail(2)
        .write(3, 102)
        .read(4, 0)
        .bad(ViolationKind::StaleRead, &[0, 102], &[4]);
    strict()
        .write(1, 101)
        .start_zero(2)
        .start_write(3, 103)
        .read(4, 0)
        .read(5, 103)
        .read(6, 0)
        .bad(ViolationKind::NoOrder, &[0], &[6]);
}

#[test]
fn replicas_that_differ_or_hold_something_old() {
    strict()
        .write(1, 101)
        .write(2, 102)
        .replica("n0", SectorValue::Write(102))
        .replica("n1", SectorValue::Write(102))
        .good();
    let report = strict()
        .write(1, 101)
        .write(2, 102)
        .replica("n0", SectorValue::Write(102))
        .replica("n1", SectorValue::Write(101))
        .check();
    assert_eq!(report.violations[0].kind, ViolationKind::ReplicasDiffer);
    assert!(report.violations[0].explanation.contains("n1"));
    let report = strict()
        .write(1, 101)
        .write(2, 102)
        .replica("n0", SectorValue::Write(101))
        .replica("n1", SectorValue::Write(101))
        .check();
    assert_eq!(report.violations[0].kind, ViolationKind::LostWrite);
    assert!(report.violations[0].explanation.contains("n1"));
}

#[test]
fn power_cut_takes_only_what_was_not_flushed() {
    let flush = || Script::new(Mode::Flush);
    flush().write(1, 101).cut().read(2, 0).read(3, 0).good();
    flush().write(1, 101).cut().read(2, 101).read(3, 101).good();
    flush()
        .write(1, 101)
        .flush(9)
        .cut()
        .read(2, 0)
        .bad(ViolationKind::LostFlush, &[0], &[2]);
    flush()
        .write(1, 101)
        .flush(9)
        .write(2, 102)
        .cut()
        .read(3, 101)
        .good();
    // After the cut it is one value, and stays.
    flush()
        .write(1, 101)
        .write(2, 102)
        .cut()
        .read(3, 101)
        .read(4, 102)
        .bad(ViolationKind::LostFlush, &[101, 102], &[3, 4]);
    // A flush that began before the write ended does not cover it.
    let kind = Kind::Flush {
        volume: VOLUME.into(),
    };
    flush()
        .start_write(1, 101)
        .push(|t| Event::Invoke { t, op: 9, kind })
        .ok(1)
        .ok(9)
        .cut()
        .read(2, 0)
        .good();
    // Without the mode, everything acknowledged must be there.
    strict()
        .write(1, 101)
        .cut()
        .read(2, 0)
        .bad(ViolationKind::LostWrite, &[101, 0], &[1, 2]);
}

#[test]
fn what_is_no_history_is_an_error() {
    let mut history = History::new(Mode::Strict);
    let read = |t, op| Event::Invoke {
        t,
        op,
        kind: Kind::Read {
            volume: VOLUME.into(),
            sector: 0,
            count: 2,
        },
    };
    history.push(read(5, 1)).unwrap();
    assert_eq!(
        history.push(read(4, 2)),
        Err(HistoryError::Time { t: 4, last: 5 })
    );
    assert_eq!(history.push(read(5, 1)), Err(HistoryError::AlreadyOpen(1)));
    assert_eq!(
        history.push(Event::Fail { t: 6, op: 9 }),
        Err(HistoryError::NotOpen(9))
    );
    let values = vec![SectorValue::Write(0)];
    assert!(matches!(
        history.push(Event::Ok {
            t: 6,
            op: 1,
            values
        }),
        Err(HistoryError::ValueCount { .. })
    ));
    let write = |t, op| Event::Invoke {
        t,
        op,
        kind: Kind::Write {
            volume: VOLUME.into(),
            sector: 0,
            count: 1,
            write: 7,
            token: 1,
            fua: false,
        },
    };
    history.push(write(7, 3)).unwrap();
    assert_eq!(history.push(write(8, 4)), Err(HistoryError::WriteId(7)));
}

#[test]
fn lines_round_trip_as_documented() {
    let lines = [
        r#"{"event":"invoke","t":1,"op":1,"kind":"write","volume":"v","sector":8,"count":2,"write":77,"token":1,"fua":false}"#,
        r#"{"event":"ok","t":2,"op":1}"#,
        r#"{"event":"ok","t":4,"op":2,"values":[77,{"torn":"x"},0]}"#,
        r#"{"event":"power-cut","t":10}"#,
        r#"{"event":"replica","t":11,"volume":"v","node":"n0","sector":8,"values":[77]}"#,
    ];
    for line in lines {
        let event: Event = serde_json::from_str(line).unwrap();
        assert_eq!(serde_json::to_string(&event).unwrap(), line);
    }
}
