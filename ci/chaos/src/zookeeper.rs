//! An ensemble of three ZooKeeper servers, each in its own namespace.

use crate::net::{Member, Net};
use crate::process::Process;
use crate::wait::{Failure, Look, Outcome, setup_at, until};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

const JAR: &str = "/usr/share/java/zookeeper.jar";
const MAIN: &str = "org.apache.zookeeper.server.quorum.QuorumPeerMain";
const PORT: u16 = 2181;
/// JVMs start slowly on a busy machine.
const START_MAX: Duration = Duration::from_secs(120);
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// The servers.
pub(crate) struct Ensemble {
    dir: PathBuf,
    members: Vec<Member>,
    addresses: Vec<SocketAddr>,
    processes: Vec<Option<Process>>,
}

impl Ensemble {
    /// Starts all, waits for a leader.
    pub(crate) fn start(net: &Net, members: &[Member], dir: &Path) -> Outcome<Self> {
        if !Path::new(JAR).exists() {
            return Err(Failure::Setup(format!("no {JAR}; run ci/setup")));
        }
        let mut config = "tickTime=500\ninitLimit=20\nsyncLimit=10\nadmin.enableServer=false\n\
                          4lw.commands.whitelist=srvr\nmaxClientCnxns=0\n"
            .to_owned();
        for (n, member) in (1..).zip(members) {
            config += &format!("server.{n}={}:2888:3888\n", net.ip(*member));
        }
        let mut ensemble = Self {
            dir: dir.to_owned(),
            members: members.to_vec(),
            addresses: members.iter().map(|m| (net.ip(*m), PORT).into()).collect(),
            processes: members.iter().map(|_| None).collect(),
        };
        for (index, member) in members.iter().enumerate() {
            let home = ensemble.home(index);
            let data = home.join("data");
            std::fs::create_dir_all(&data).map_err(setup_at("create", &data))?;
            let id = data.join("myid");
            std::fs::write(&id, format!("{}\n", index + 1)).map_err(setup_at("write", &id))?;
            let file = home.join("zoo.cfg");
            let own = format!(
                "{config}dataDir={}\nclientPortAddress={}\nclientPort={PORT}\n",
                data.display(),
                net.ip(*member)
            );
            std::fs::write(&file, own).map_err(setup_at("write", &file))?;
            ensemble.run(net, index)?;
        }
        ensemble.wait_serving()?;
        Ok(ensemble)
    }

    fn home(&self, server: usize) -> PathBuf {
        self.dir.join(format!("z{}", server + 1))
    }

    /// Starts one again.
    pub(crate) fn run(&mut self, net: &Net, server: usize) -> Outcome {
        let mut command = net.command(self.members[server], Path::new("java"));
        command
            .args([
                "-Xmx96m",
                "-Xms32m",
                "-XX:+UseSerialGC",
                "-XX:TieredStopAtLevel=1",
            ])
            .args(["-cp", JAR, MAIN])
            .arg(self.home(server).join("zoo.cfg"));
        let name = format!("z{}", server + 1);
        self.processes[server] = Some(Process::start(&name, command, &self.dir.join("log"))?);
        Ok(())
    }

    /// How many.
    #[must_use]
    pub(crate) fn len(&self) -> usize {
        self.members.len()
    }

    /// Its place in the network.
    #[must_use]
    pub(crate) fn member(&self, server: usize) -> Member {
        self.members[server]
    }

    /// The process of a server that runs.
    pub(crate) fn process(&self, server: usize) -> Outcome<&Process> {
        let process = self.processes[server].as_ref();
        process.ok_or_else(|| Failure::Setup(format!("z{} does not run", server + 1)))
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self, server: usize) -> Outcome {
        self.processes[server].take().map_or(Ok(()), Process::kill)
    }

    /// For `--meta`.
    #[must_use]
    pub(crate) fn url(&self) -> String {
        let hosts: Vec<String> = self.addresses.iter().map(ToString::to_string).collect();
        format!("zk:{}/chaos", hosts.join(","))
    }

    /// The server that leads, if one does.
    #[must_use]
    pub(crate) fn leader(&self) -> Option<usize> {
        (0..self.len()).find(|server| self.mode(*server).as_deref() == Some("leader"))
    }

    /// `leader`, `follower`, or nothing while it does not serve.
    fn mode(&self, server: usize) -> Option<String> {
        self.processes[server].as_ref()?;
        let mut socket = TcpStream::connect_timeout(&self.addresses[server], ANSWER_MAX).ok()?;
        socket.set_read_timeout(Some(ANSWER_MAX)).ok()?;
        socket.write_all(b"srvr").ok()?;
        let mut text = String::new();
        socket.read_to_string(&mut text).ok()?;
        let mode = text.lines().find_map(|line| line.strip_prefix("Mode: "))?;
        Some(mode.to_owned())
    }

    /// Until every server that runs serves.
    pub(crate) fn wait_serving(&self) -> Outcome {
        until(START_MAX, "all ZooKeeper servers serve", || {
            let silent: Vec<usize> = (0..self.len())
                .filter(|server| self.processes[*server].is_some())
                .filter(|server| self.mode(*server).is_none())
                .map(|server| server + 1)
                .collect();
            Ok(if silent.is_empty() {
                Look::Found(())
            } else {
                Look::NotYet(format!("servers {silent:?} do not"))
            })
        })
    }
}
