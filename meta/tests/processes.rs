//! Several real processes on one store: this test binary starts itself again as the others.
#![allow(clippy::unwrap_used)] // a test fails by panicking, in its helpers as well

mod support;

use std::io::{BufRead, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;
use support::{Backend, Sqlite, Zookeeper};
use ukai_meta::sqlite::SqliteStore;
use ukai_meta::zookeeper::ZookeeperStore;
use ukai_meta::{CommitError, MetaError, MetaStore, MetaUrl, Write};

/// Of the process that is stopped. Longer than a busy machine leaves a process waiting, or it is lost before; and
/// the longest that a server with ticks of half a second (`ci/zk/zk.sh`) grants.
const LEASE: Duration = Duration::from_secs(10);
/// Of the process that observes: longer than any pause of a busy machine.
const OBSERVER_LEASE: Duration = Duration::from_secs(60);
const ROUNDS: usize = 20;

fn open(url: &MetaUrl, lease: Duration) -> Box<dyn MetaStore> {
    match url {
        MetaUrl::Sqlite(path) => Box::new(SqliteStore::open_with_lease(path, lease).unwrap()),
        MetaUrl::Zookeeper(servers) => {
            Box::new(ZookeeperStore::connect_with_session(servers, lease).unwrap())
        }
        MetaUrl::Memory => panic!("not for several processes"),
    }
}

/// A process of its own, which does what it is told line by line.
struct Other {
    process: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Other {
    fn start(url: &str) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "the_other_process", "--nocapture"])
            .env("UKAI_TEST_OTHER", url)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            orders: process.stdin.take().unwrap(),
            answers: BufReader::new(process.stdout.take().unwrap()),
            process,
        }
    }

    fn order(&mut self, order: &str) {
        writeln!(self.orders, "{order}").unwrap();
    }

    /// The next answer; the test harness's own lines are passed over.
    fn answer(&mut self) -> String {
        loop {
            let mut line = String::new();
            assert!(
                self.answers.read_line(&mut line).unwrap() > 0,
                "the other process ended"
            );
            if let Some((_, answer)) = line.split_once("ANSWER ") {
                return answer.trim().to_owned();
            }
        }
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args([&format!("-{name}"), &self.process.id().to_string()])
            .status()
            .unwrap();
        assert!(status.success());
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        // It may be dead already, which is as good.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn count_up(store: &dyn MetaStore) {
    let mut done = 0;
    while done < ROUNDS {
        let value = store.get("n").unwrap().unwrap();
        let n: usize = String::from_utf8(value.bytes).unwrap().parse().unwrap();
        let write = Write::Set {
            key: "n".into(),
            bytes: (n + 1).to_string().into_bytes(),
            expected: value.version,
        };
        match store.commit(&[write]) {
            Ok(_) => done += 1,
            Err(CommitError::Conflict { .. }) => {}
            Err(other) => panic!("{other}"),
        }
    }
}

fn hold(store: &dyn MetaStore) {
    let write = Write::Create {
        key: "live/x".into(),
        bytes: b"held".to_vec(),
        ephemeral: true,
    };
    store.commit(&[write]).unwrap();
}

/// What the other process does; nothing in an ordinary test run.
#[test]
fn the_other_process() {
    let Ok(url) = std::env::var("UKAI_TEST_OTHER") else {
        return;
    };
    let store = open(&url.parse().unwrap(), LEASE);
    for order in std::io::stdin().lines() {
        match order.unwrap().as_str() {
            "count" => count_up(&*store),
            "hold" => hold(&*store),
            "until-expired" => loop {
                // Back to back, so no sleep is needed: each is a round trip to the store.
                match store.renew() {
                    Ok(()) | Err(MetaError::Unavailable(_)) => {}
                    Err(MetaError::SessionExpired) => break,
                    Err(other) => panic!("{other}"),
                }
            },
            "create" => {
                let write = Write::Create {
                    key: "zombie".into(),
                    bytes: Vec::new(),
                    ephemeral: true,
                };
                let result = store.commit(&[write]);
                println!("ANSWER {result:?}");
                continue;
            }
            other => panic!("{other}"),
        }
        println!("ANSWER done");
    }
}

fn until_gone(store: &dyn MetaStore, key: &str) {
    // The watch is what a daemon would use; its deadline only ends a test that fails.
    let mut watch = store.watch(key).unwrap();
    while store.get(key).unwrap().is_some() {
        assert!(watch.wait(Duration::from_secs(60)).unwrap(), "{key} stays");
    }
}

fn a_stopped_process_loses_its_lease(url: &str) {
    let store = open(&url.parse().unwrap(), OBSERVER_LEASE);
    let mut other = Other::start(url);
    other.order("hold");
    assert_eq!(other.answer(), "done");
    assert!(store.get("live/x").unwrap().is_some());
    other.signal("STOP");
    until_gone(&*store, "live/x");
    hold(&*store);
    other.signal("CONT");
    // It learns that it is over, is refused everything, and does not get its key back.
    other.order("until-expired");
    assert_eq!(other.answer(), "done");
    other.order("create");
    assert!(other.answer().contains("SessionExpired"));
    assert!(store.get("live/x").unwrap().is_some());
    assert!(store.get("zombie").unwrap().is_none());
}

#[test]
fn sqlite_processes_race_without_loss() {
    let sqlite = Sqlite::new();
    // The file does not exist yet: they also race to make it.
    let url = format!("sqlite:{}", sqlite.path().display());
    let mut others: Vec<Other> = (0..3).map(|_| Other::start(&url)).collect();
    let store = sqlite.open();
    let write = Write::Create {
        key: "n".into(),
        bytes: b"0".to_vec(),
        ephemeral: false,
    };
    store.commit(&[write]).unwrap();
    for other in &mut others {
        other.order("count");
    }
    count_up(&*store);
    for other in &mut others {
        assert_eq!(other.answer(), "done");
    }
    let n = store.get("n").unwrap().unwrap().bytes;
    assert_eq!(n, (4 * ROUNDS).to_string().into_bytes());
}

#[test]
fn sqlite_keys_of_a_killed_process_vanish_at_once() {
    let sqlite = Sqlite::new();
    let url = format!("sqlite:{}", sqlite.path().display());
    let store = sqlite.open();
    let mut other = Other::start(&url);
    other.order("hold");
    assert_eq!(other.answer(), "done");
    assert!(store.get("live/x").unwrap().is_some());
    other.process.kill().unwrap();
    other.process.wait().unwrap();
    // No lease has to run out for that: the very next look says so.
    assert_eq!(store.get("live/x").unwrap(), None);
    assert!(store.list("live").unwrap().is_empty());
    hold(&*store);
}

#[test]
fn sqlite_takes_the_lease_of_a_stopped_process() {
    let sqlite = Sqlite::new();
    a_stopped_process_loses_its_lease(&format!("sqlite:{}", sqlite.path().display()));
}

#[test]
fn zookeeper_takes_the_lease_of_a_stopped_process() {
    let zookeeper = Zookeeper::start(1);
    a_stopped_process_loses_its_lease(&format!("zk:{}", zookeeper.servers));
}
