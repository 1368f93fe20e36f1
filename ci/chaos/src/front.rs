//! A front process: attach, status, detach.

use crate::guest::broken;
use crate::net::{Member, Net};
use crate::process::Process;
use crate::wait::{Failure, Outcome, setup_at};
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

/// An attach waits for its nodes for half a minute; then for what the metadata store needs.
const ATTACH_MAX: Duration = Duration::from_secs(120);
/// A front answers from memory.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// A detach flushes and waits for the metadata store.
const DETACH_MAX: Duration = Duration::from_secs(90);
/// What a front that was fenced exits with.
const EXIT_FENCED: i32 = 6;

/// Where and how a front is started.
pub(crate) struct Place<'a> {
    /// The network.
    pub(crate) net: &'a Net,
    /// The host's namespace; its name is the host's.
    pub(crate) host: Member,
    /// `ublk-front`.
    pub(crate) program: &'a Path,
    /// For `--meta`.
    pub(crate) meta: &'a str,
    /// Holds `run/` and `log/`.
    pub(crate) scratch: &'a Path,
}

/// A front that serves.
#[derive(Debug)]
pub(crate) struct Front {
    /// Where.
    pub(crate) host: Member,
    /// Of its attach.
    pub(crate) token: u32,
    /// The NBD export.
    pub(crate) socket: PathBuf,
    control: PathBuf,
    volume: String,
    /// The process.
    pub(crate) process: Process,
}

impl Front {
    /// Attaches; the inner error is how the front ended instead.
    pub(crate) fn attach(
        place: &Place<'_>,
        volume: &str,
        number: u64,
        force: bool,
    ) -> Outcome<Result<Self, ExitStatus>> {
        let host = place.net.name(place.host);
        let run = place.scratch.join("run").join(host);
        std::fs::create_dir_all(&run).map_err(setup_at("create", &run))?;
        let socket = run.join(format!("{volume}-{number}.nbd"));
        let mut command = place.net.command(place.host, place.program);
        command
            .args(["attach", volume, "--frontend", "nbd", "--host", host])
            .args(["--meta", place.meta])
            .arg("--run-dir")
            .arg(&run)
            .arg("--nbd-unix")
            .arg(&socket);
        if force {
            command.arg("--force");
        }
        let log = place.scratch.join("log");
        let mut process = Process::start(&format!("front-{host}"), command, &log)?;
        if let Err(status) = process.line("attached", ATTACH_MAX)? {
            return Ok(Err(status));
        }
        let mut front = Self {
            host: place.host,
            token: 0,
            socket,
            control: run.join(format!("{volume}.sock")),
            volume: volume.to_owned(),
            process,
        };
        let token = front.status()?["control"]["token"].as_u64();
        front.token = token
            .and_then(|token| u32::try_from(token).ok())
            .ok_or_else(|| Failure::Broken("a front's status without a token".to_owned()))?;
        Ok(Ok(front))
    }

    fn ask(&self, request: &Value, patience: Duration) -> Outcome<Value> {
        let doing = format!("ask the front of {}", self.volume);
        let ask = || -> std::io::Result<String> {
            let mut stream = UnixStream::connect(&self.control)?;
            stream.set_read_timeout(Some(patience))?;
            stream.write_all(format!("{request}\n").as_bytes())?;
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line)?;
            Ok(line)
        };
        let line = ask().map_err(broken(&doing))?;
        serde_json::from_str(&line).map_err(broken(&doing))
    }

    /// `ublk-front status --json`.
    pub(crate) fn status(&self) -> Outcome<Value> {
        self.ask(&json!({ "cmd": "status" }), ANSWER_MAX)
    }

    /// Generation of its map, as it knows it.
    pub(crate) fn generation(&self) -> Outcome<u64> {
        let status = self.status()?;
        status["control"]["generation"]
            .as_u64()
            .ok_or_else(|| Failure::Broken(format!("status without a generation: {status}")))
    }

    /// Is anything left to copy, delete or record? Says what the front says.
    pub(crate) fn unsettled(&self) -> Outcome<Option<String>> {
        let status = self.status()?;
        let core = &status["control"];
        let connected = core["nodes"]
            .as_array()
            .is_some_and(|nodes| nodes.iter().all(|node| node["connected"] == true));
        let settled = core["settled"] == true && connected;
        Ok((!settled).then(|| core.to_string()))
    }

    /// Detaches, to the end of the process.
    pub(crate) fn detach(mut self) -> Outcome {
        let request = json!({ "cmd": "detach", "force": true });
        let answer = self.ask(&request, DETACH_MAX)?;
        if answer["ok"] != true {
            return Err(Failure::Broken(format!("detach: {answer}")));
        }
        let status = self.process.end()?;
        if status.success() {
            Ok(())
        } else {
            Err(Failure::Broken(format!(
                "after its detach the front ended with {status}"
            )))
        }
    }

    /// Waits until a front that was fenced has ended, as it must.
    pub(crate) fn expect_fenced(mut self) -> Outcome {
        let status = self.process.end()?;
        if status.code() == Some(EXIT_FENCED) {
            return Ok(());
        }
        Err(Failure::Broken(format!(
            "a fenced front ended with {status}, not with exit code {EXIT_FENCED}"
        )))
    }
}
