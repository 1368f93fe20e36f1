//! Backends of the metadata store for the tests, a real ZooKeeper among them.
#![allow(dead_code)] // each test binary uses its own part

use std::path::PathBuf;
use std::process::{Command, Output};
use ukai_meta::memory::MemoryCluster;
use ukai_meta::sqlite::SqliteStore;
use ukai_meta::zookeeper::ZookeeperStore;
use ukai_meta::{MetaStore, MetaUrl};

/// Somewhere to open sessions of one store.
pub(crate) trait Backend: Sync {
    /// A new session.
    fn open(&self) -> Box<dyn MetaStore>;
}

#[derive(Default)]
pub(crate) struct Memory(pub(crate) MemoryCluster);

impl Backend for Memory {
    fn open(&self) -> Box<dyn MetaStore> {
        Box::new(self.0.session())
    }
}

pub(crate) struct Sqlite {
    dir: tempfile::TempDir,
}

impl Sqlite {
    pub(crate) fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("meta.db")
    }
}

impl Backend for Sqlite {
    fn open(&self) -> Box<dyn MetaStore> {
        Box::new(SqliteStore::open(&self.path()).unwrap())
    }
}

/// Real servers, stopped when this is dropped or the test process ends.
pub(crate) struct Zookeeper {
    dir: Option<tempfile::TempDir>,
    pub(crate) servers: String,
}

impl Zookeeper {
    /// Starts servers; or uses `UKAI_TEST_ZK`, with a chroot of its own, if one is enough.
    pub(crate) fn start(count: u8) -> Self {
        if let (1, Ok(server)) = (count, std::env::var("UKAI_TEST_ZK")) {
            let unique = tempfile::tempdir().unwrap();
            let name = unique
                .path()
                .file_name()
                .unwrap()
                .to_string_lossy()
                .replace('.', "");
            return Self {
                dir: None,
                servers: format!("{server}/ukai-test-{name}-{}", std::process::id()),
            };
        }
        let dir = tempfile::tempdir().unwrap();
        let mut this = Self {
            dir: Some(dir),
            servers: String::new(),
        };
        let owner = std::process::id().to_string();
        this.servers = this.script("start", &[&count.to_string(), &owner]);
        // A chroot, so that it is tested, too.
        this.servers.push_str("/ukai/test");
        this
    }

    /// Runs `ci/zk/zk.sh COMMAND DIR ARGS...`; what it prints.
    pub(crate) fn script(&self, command: &str, args: &[&str]) -> String {
        match self.try_script(command, args) {
            Ok(text) => text,
            Err(text) => panic!("zk.sh {command}: {text}"),
        }
    }

    pub(crate) fn try_script(&self, command: &str, args: &[&str]) -> Result<String, String> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../ci/zk/zk.sh");
        let dir = self.dir.as_ref().expect("servers that were started here");
        let Output {
            status,
            stdout,
            stderr,
        } = Command::new(script)
            .arg(command)
            .arg(dir.path())
            .args(args)
            .output()
            .unwrap();
        if status.success() {
            Ok(String::from_utf8(stdout).unwrap().trim().to_owned())
        } else {
            Err(String::from_utf8_lossy(&stderr).into_owned())
        }
    }

    pub(crate) fn session(&self) -> ZookeeperStore {
        ZookeeperStore::connect(&self.servers).unwrap()
    }
}

impl Backend for Zookeeper {
    fn open(&self) -> Box<dyn MetaStore> {
        ukai_meta::open(&MetaUrl::Zookeeper(self.servers.clone())).unwrap()
    }
}

impl Drop for Zookeeper {
    fn drop(&mut self) {
        if self.dir.is_some()
            && let Err(text) = self.try_script("stop", &[])
        {
            eprintln!("zk.sh stop: {text}");
        }
    }
}
