//! The real binary, a real SQLite metadata store, and nodes that are not real: registered through
//! `ukai_meta`, answering on Unix sockets with canned replies that the tests can look at.
#![allow(dead_code, unreachable_pub)] // each test binary uses its part

mod fake_node;

pub use fake_node::{FakeNode, Held};

use std::process::{Command, Output};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use tempfile::TempDir;
use ukai_meta::job::JobProgress;
use ukai_meta::map::VolumeMap;
use ukai_meta::record::FrontRecord;
use ukai_meta::report::{FrontReport, GuestReports, ServiceReport};
use ukai_meta::{
    Attach, LatencyPoints, MapUpdate, MetaStore, NodeLatency, NodeLive, NodeRecord,
    TransitionError, catalog, transition,
};
use ukai_proto::heat::HeatPage;
use ukai_proto::message::ReportKind;
use ukai_proto::{BootId, ClusterId, Incarnation, NodeId, Token};

pub const CLUSTER: ClusterId = ClusterId([0xc1; 16]);

pub fn node_id(n: u8) -> NodeId {
    NodeId([n; 16])
}

fn incarnation(n: u8) -> Incarnation {
    Incarnation {
        boot: BootId([n; 16]),
        start: 1,
    }
}

/// A cluster of fake nodes: n1, n2 at site-a, n3, n4 at site-b.
pub struct World {
    pub folder: TempDir,
    pub store: Arc<dyn MetaStore>,
    pub url: String,
    nodes: Mutex<Vec<FakeNode>>,
    renewer: Option<(Sender<()>, JoinHandle<()>)>,
}

impl World {
    /// An initialised cluster without nodes.
    pub fn empty() -> Self {
        let folder = TempDir::new().unwrap();
        let url = format!("sqlite:{}", folder.path().join("meta.db").display());
        let store: Arc<dyn MetaStore> = Arc::from(ukai_meta::open(&url.parse().unwrap()).unwrap());
        catalog::init_cluster(&*store, CLUSTER).unwrap();
        let (stop, stopped) = channel::<()>();
        let renewed = Arc::clone(&store);
        let renewer = std::thread::spawn(move || {
            let every = renewed.lease() / 4;
            while stopped.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
                renewed.renew().unwrap();
            }
        });
        Self {
            folder,
            store,
            url,
            nodes: Mutex::default(),
            renewer: Some((stop, renewer)),
        }
    }

    /// With the four nodes.
    pub fn new() -> Self {
        let world = Self::empty();
        for (n, site) in [(1, "site-a"), (2, "site-a"), (3, "site-b"), (4, "site-b")] {
            world.add_node(n, site);
        }
        world
    }

    pub fn record(&self, n: u8, site: &str) -> NodeRecord {
        let address = |shard: u16| format!("unix:{}/n{n}-{shard}", self.folder.path().display());
        NodeRecord {
            node: node_id(n),
            name: format!("n{n}"),
            site: site.into(),
            labels: vec![format!("rack={n}")],
            shard_count: 2,
            shard_addresses: (0..2).map(|shard| vec![address(shard)]).collect(),
            host: "here".into(),
            capacity_bytes: 100 << 30,
            draining: false,
        }
    }

    /// A node that lives and answers.
    pub fn add_node(&self, n: u8, site: &str) {
        let record = self.record(n, site);
        let live = NodeLive {
            incarnation: incarnation(n),
            used_bytes: u64::from(n) << 30,
        };
        catalog::register_node(&*self.store, &record, &live).unwrap();
        self.nodes
            .lock()
            .unwrap()
            .push(FakeNode::start(CLUSTER, &record));
    }

    /// The node's lease ends and it answers no more.
    pub fn kill_node(&self, n: u8) {
        let live = NodeLive {
            incarnation: incarnation(n),
            used_bytes: u64::from(n) << 30,
        };
        catalog::deregister_live(&*self.store, node_id(n), &live).unwrap();
        self.nodes
            .lock()
            .unwrap()
            .retain(|node| node.id() != node_id(n));
    }

    /// Looks at, or changes, what a node holds and was asked.
    pub fn held<T>(&self, n: u8, look: impl FnOnce(&mut Held) -> T) -> T {
        let nodes = self.nodes.lock().unwrap();
        let node = nodes.iter().find(|node| node.id() == node_id(n)).unwrap();
        node.held(look)
    }

    /// Runs the program on this world's store.
    pub fn run(&self, args: &[&str]) -> Ran {
        self.run_with(args, &[])
    }

    pub fn run_with(&self, args: &[&str], env: &[(&str, &str)]) -> Ran {
        let mut command = command();
        command.args(args).env("UKAI_META", &self.url);
        for (name, value) in env {
            command.env(name, value);
        }
        Ran::new(args, command.output().unwrap())
    }

    /// A good run; its standard output.
    pub fn ok(&self, args: &[&str]) -> String {
        let ran = self.run(args);
        assert_eq!(ran.code, 0, "{ran:?}");
        ran.stdout
    }

    /// A good run with `--json`.
    pub fn json(&self, args: &[&str]) -> serde_json::Value {
        let mut all = args.to_vec();
        all.push("--json");
        serde_json::from_str(&self.ok(&all)).unwrap()
    }

    /// A refused run: this exit code, these words in the message, and a store that is byte for byte
    /// what it was.
    pub fn refused(&self, args: &[&str], code: i32, words: &[&str]) {
        let before = self.dump();
        let ran = self.run(args);
        assert_eq!(ran.code, code, "{ran:?}");
        for word in words {
            assert!(ran.stderr.contains(word), "no {word:?} in {ran:?}");
        }
        assert!(ran.stdout.is_empty(), "{ran:?}");
        assert_eq!(self.dump(), before, "{args:?} changed the store");
    }

    /// Every key and value.
    pub fn dump(&self) -> Vec<(String, Vec<u8>)> {
        let mut out = Vec::new();
        for root in [
            "cluster",
            "nodes",
            "node-names",
            "live",
            "forgotten",
            "names",
            "volumes",
            "fronts",
            "latencies",
        ] {
            walk(&*self.store, root.into(), &mut out);
        }
        out
    }

    pub fn map(&self, name: &str) -> VolumeMap {
        let id = catalog::volume_id(&*self.store, name).unwrap().unwrap();
        catalog::load_volume(&*self.store, id).unwrap()
    }

    /// Makes a transition behind the tools' back, as a front would.
    pub fn transition(
        &self,
        name: &str,
        decide: impl FnOnce(&VolumeMap) -> Result<MapUpdate, TransitionError>,
    ) -> VolumeMap {
        let update = decide(&self.map(name)).unwrap();
        catalog::commit_update(&*self.store, update).unwrap()
    }

    /// The volume attached by a front on host `elsewhere`.
    pub fn attach(&self, name: &str) {
        let by = Attach {
            host: "elsewhere".into(),
            boot: BootId([9; 16]),
            front: [1; 16],
        };
        self.transition(name, |map| transition::attach(map, by, false));
    }

    /// A front's announcement, with this control socket.
    pub fn announce_front(&self, name: &str, control: &str) {
        let front = FrontRecord {
            host: "elsewhere".into(),
            control: control.into(),
            device: "/dev/ublkb7".into(),
            pid: 4711,
        };
        catalog::set_front(&*self.store, self.map(name).head.volume, &front).unwrap();
    }

    /// Node `n` was told this by a front of that token, on host hv7: seven reads.
    pub fn tell_front(&self, n: u8, token: u32, at_unix_s: u64) {
        let points = LatencyPoints::from_quantiles(7, |quantile| 100.0 + quantile);
        let mut report = FrontReport {
            host: "hv7".into(),
            token: Token(token),
            at_unix_s,
            since_unix_s: None,
            guest: GuestReports::default(),
            wake: None,
            write_replicated: None,
            nodes: vec![NodeLatency {
                network: points,
                ..NodeLatency::of(node_id(1))
            }],
            job: None,
        };
        report.guest.read.latency = points;
        self.tell(n, report);
    }

    /// Node `n` was told then, by a front on that host, how far its job is.
    pub fn tell_job(&self, n: u8, host: &str, at_unix_s: u64, job: JobProgress) {
        self.tell(
            n,
            FrontReport {
                host: host.into(),
                token: Token(1),
                at_unix_s,
                since_unix_s: None,
                guest: GuestReports::default(),
                wake: None,
                write_replicated: None,
                nodes: Vec::new(),
                job: Some(job),
            },
        );
    }

    fn tell(&self, n: u8, report: FrontReport) {
        let key = (ReportKind::FRONT.0, 0);
        self.held(n, |held| held.reports.insert(key, report.encode()));
    }

    /// Each shard of node `n` has served five reads, 80 us each, and no write.
    pub fn serve(&self, n: u8) {
        let read = LatencyPoints::from_quantiles(5, |_| 80.0);
        let report = ServiceReport { read, write: None };
        let key = (ReportKind::SERVICE.0, 0);
        self.held(n, |held| held.reports.insert(key, report.encode()));
    }

    /// Node `n` was told this page of the heat.
    pub fn tell_heat(&self, n: u8, number: u32, page: &HeatPage) {
        let key = (ReportKind::HEAT.0, number);
        self.held(n, |held| held.reports.insert(key, page.encode()));
    }

    /// A run that fails; how.
    pub fn fails(&self, args: &[&str]) -> Ran {
        let ran = self.run(args);
        assert_ne!(ran.code, 0, "{ran:?}");
        ran
    }

    /// A file in the world's folder.
    pub fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // While the folder with their sockets is still there.
        self.nodes.lock().unwrap().clear();
        if let Some((stop, renewer)) = self.renewer.take() {
            drop(stop);
            let _ = renewer.join();
        }
    }
}

fn walk(store: &dyn MetaStore, key: String, out: &mut Vec<(String, Vec<u8>)>) {
    for name in store.list(&key).unwrap() {
        walk(store, format!("{key}/{name}"), out);
    }
    if let Some(value) = store.get(&key).unwrap() {
        out.push((key, value.bytes));
    }
}

/// The program with nothing of the caller's environment that could matter.
pub fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ukai-tools"));
    command
        .env_remove("UKAI_META")
        .stdin(std::process::Stdio::null());
    command
}

/// How a run ended.
#[derive(Debug)]
pub struct Ran {
    pub args: Vec<String>,
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    pub fn new(args: &[&str], output: Output) -> Self {
        Self {
            args: args.iter().map(|arg| (*arg).into()).collect(),
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}
