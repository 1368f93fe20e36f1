//! Storage nodes: format, start, end in every way.

use crate::net::{Member, Net};
use crate::process::Process;
use crate::wait::{Failure, Outcome, setup};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A start recovers a small log; the lease of a run that was killed is waited for.
const READY_MAX: Duration = Duration::from_secs(90);

/// A node and its file.
pub(crate) struct Node {
    /// Its name, and its namespace's.
    pub(crate) name: String,
    /// Its place in the network.
    pub(crate) member: Member,
    process: Option<Process>,
}

/// What all nodes need to be started.
pub(crate) struct Stable {
    /// `chunkstore`.
    pub(crate) program: PathBuf,
    /// For `--meta`.
    pub(crate) meta: String,
    /// Holds `nodes/` and `log/`.
    pub(crate) scratch: PathBuf,
}

impl Stable {
    /// Formats a node; the first one founds the cluster.
    pub(crate) fn format(
        &self,
        net: &Net,
        member: Member,
        site: &str,
        size: &str,
    ) -> Outcome<Node> {
        let name = net.name(member).to_owned();
        let output = net
            .command(member, &self.program)
            .arg("format")
            .arg(self.file(&name))
            .args(["--size", size, "--site", site, "--name", &name])
            .args(["--meta", &self.meta, "--cluster-init"])
            .output()
            .map_err(setup(format!("format node {name}")))?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            return Err(Failure::Setup(format!("format node {name}: {text}")));
        }
        Ok(Node {
            name,
            member,
            process: None,
        })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.scratch.join("nodes").join(name)
    }

    fn log(&self) -> PathBuf {
        self.scratch.join("log")
    }
}

impl Node {
    /// Starts it without waiting.
    pub(crate) fn launch(&mut self, net: &Net, stable: &Stable) -> Outcome {
        let mut command = net.command(self.member, &stable.program);
        let address = format!("{}:7000", net.ip(self.member));
        command
            .arg("run")
            .arg(stable.file(&self.name))
            .args(["--listen", &address, "--insecure-plaintext"])
            .args(["--host", &self.name, "--meta", &stable.meta]);
        self.process = Some(Process::start(&self.name, command, &stable.log())?);
        Ok(())
    }

    /// Waits until it serves.
    pub(crate) fn wait_ready(&mut self) -> Outcome {
        let name = self.name.clone();
        match self.running_mut()?.line("ready", READY_MAX)? {
            Ok(_) => Ok(()),
            Err(status) => Err(Failure::Broken(format!(
                "node {name} did not start: {status}"
            ))),
        }
    }

    /// Both.
    pub(crate) fn start(&mut self, net: &Net, stable: &Stable) -> Outcome {
        self.launch(net, stable)?;
        self.wait_ready()
    }

    /// Its process.
    pub(crate) fn running(&self) -> Outcome<&Process> {
        let absent = || Failure::Setup(format!("node {} does not run", self.name));
        self.process.as_ref().ok_or_else(absent)
    }

    /// Its process.
    pub(crate) fn running_mut(&mut self) -> Outcome<&mut Process> {
        let absent = || Failure::Setup(format!("node {} does not run", self.name));
        self.process.as_mut().ok_or_else(absent)
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) -> Outcome {
        self.process.take().map_or(Ok(()), Process::kill)
    }

    /// SIGTERM, to the clean end.
    pub(crate) fn terminate(&mut self) -> Outcome {
        let Some(mut process) = self.process.take() else {
            return Ok(());
        };
        process.terminate()?;
        let status = process.end()?;
        if status.success() {
            return Ok(());
        }
        Err(Failure::Broken(format!(
            "node {} did not stop cleanly: {status}",
            self.name
        )))
    }
}

/// The programs, all in one folder.
pub(crate) fn find_programs(bin: &Path) -> Outcome {
    for program in ["chunkstore", "ublk-front", "ukai-tools"] {
        let path = bin.join(program);
        if !path.exists() {
            return Err(Failure::Setup(format!(
                "no {}; run `cargo build --workspace --release`",
                path.display()
            )));
        }
    }
    Ok(())
}
