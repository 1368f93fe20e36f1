//! A cluster for tests of the real binary: a SQLite store, nodes that keep sectors in memory, a front
//! as a child process, and a small NBD client.
#![allow(dead_code, unreachable_pub)] // shared by test binaries, each uses its part

pub mod nbd;
pub mod node;

use node::FakeNode;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use tempfile::TempDir;
use ublk_front::shell::process::random_id;
use ukai_meta::record::NodeLive;
use ukai_meta::transition::NewVolume;
use ukai_meta::{Durability, MetaStore, MetaUrl, NodeRecord, PlaceRule, catalog};
use ukai_proto::{ClusterId, VolumeId};

pub const VOLUME_BYTES: u64 = 256 << 20;

pub struct Cluster {
    pub dir: TempDir,
    /// Random, like everywhere: fronts of several tests run at once on this host.
    pub volume: VolumeId,
    pub nodes: Vec<FakeNode>,
    /// Keeps the nodes' leases.
    store: Box<dyn MetaStore>,
}

impl Cluster {
    /// Nodes in one site, and volume `vol` with a copy on each.
    pub fn new(nodes: u8) -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let cluster = ClusterId(random_id().expect("random bytes"));
        let volume = VolumeId(random_id().expect("random bytes"));
        let url = MetaUrl::Sqlite(dir.path().join("meta.db"));
        let store = ukai_meta::open(&url).expect("store");
        catalog::init_cluster(&*store, cluster).expect("cluster");
        let nodes: Vec<FakeNode> = (0..nodes).map(|n| FakeNode::start(cluster, n, 2)).collect();
        for node in &nodes {
            let record = NodeRecord {
                node: node.id(),
                name: node.name(),
                site: "here".into(),
                labels: Vec::new(),
                shard_count: 2,
                shard_addresses: node.addresses(),
                host: "test".into(),
                capacity_bytes: 1 << 40,
                draining: false,
            };
            let live = NodeLive {
                incarnation: node.incarnation(),
                used_bytes: 0,
            };
            catalog::register_node(&*store, &record, &live).expect("register");
        }
        let copies = u8::try_from(nodes.len()).expect("few nodes");
        let new = NewVolume {
            volume,
            name: "vol".into(),
            size_bytes: VOLUME_BYTES,
            chunk_bytes: 4 << 20,
            durability: Durability::Cache,
            place: vec![PlaceRule {
                site: "here".into(),
                copies,
            }],
            nodes: vec![nodes.iter().map(FakeNode::id).collect()],
        };
        catalog::create_volume(&*store, &new).expect("create");
        Self {
            dir,
            volume,
            nodes,
            store,
        }
    }

    pub fn store(&self) -> &dyn MetaStore {
        &*self.store
    }

    pub fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    /// A command of the binary, with the store and this cluster's run directory.
    pub fn command(&self, arguments: &[&str]) -> Command {
        self.command_in(&self.run_dir(), arguments)
    }

    pub fn command_in(&self, run_dir: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ublk-front"));
        command
            .args(arguments)
            .env(
                "UKAI_META",
                format!("sqlite:{}", self.dir.path().join("meta.db").display()),
            )
            .stdin(Stdio::null());
        if !arguments.contains(&"list") {
            command.arg("--run-dir").arg(run_dir);
        }
        command
    }

    pub fn output(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("run ublk-front")
    }

    pub fn attach(&self, more: &[&str]) -> Front {
        let arguments = [&["attach", "vol", "--frontend", "nbd"], more].concat();
        Front::spawn(self.command(&arguments))
    }
}

/// A front in the foreground; killed when dropped.
pub struct Front {
    pub child: Child,
    /// The line it printed when it had attached.
    pub line: String,
    stdout: BufReader<std::process::ChildStdout>,
}

impl Front {
    pub fn spawn(mut command: Command) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .spawn()
            .expect("start ublk-front");
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        stdout.read_line(&mut line).expect("read its line");
        Self {
            child,
            line,
            stdout,
        }
    }

    /// The socket in `attached vol nbd+unix:///vol?socket=PATH`.
    pub fn socket(&self) -> PathBuf {
        assert!(self.line.starts_with("attached vol "), "{:?}", self.line);
        let (_, path) = self
            .line
            .trim_end()
            .split_once("?socket=")
            .expect("an NBD URI");
        path.into()
    }

    pub fn signal(&self, signal: &str) {
        let status = Command::new("kill")
            .arg(signal)
            .arg(self.child.id().to_string())
            .status();
        assert!(status.expect("kill").success());
    }

    /// Waits for its end.
    pub fn exit_code(&mut self) -> Option<i32> {
        let mut rest = String::new();
        self.stdout
            .read_to_string(&mut rest)
            .expect("read to its end");
        self.child.wait().expect("wait").code()
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The same bytes for the same seed, different for different ones.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = (0..len.div_ceil(8)).flat_map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.take(len).collect()
}
