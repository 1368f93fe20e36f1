//! The front as this program uses it: its control socket when it runs, and its binary as a child
//! when a detached volume has to be settled, read or written.

use crate::error::{Result, ToolError};
use serde_json::Value;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;
use ukai_meta::record::FrontRecord;

const BINARY: &str = "ublk-front";
/// A front gives up on its own threads after 10 s and says so; one that is silent for longer is stuck.
const CONTROL_TIMEOUT: Duration = Duration::from_secs(15);
/// Bounds the answer of a control socket: the statistics of 64 lanes are far below.
const CONTROL_BYTES_MAX: u64 = 1 << 20;
/// How much of a failed child's log is shown.
const LOG_LINES_SHOWN: usize = 8;

/// Where the front's binary is: where `UKAI_FRONT` says, else beside our own, else in `PATH`.
pub(crate) fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("UKAI_FRONT") {
        let path = PathBuf::from(path);
        return if path.is_file() {
            Ok(path)
        } else {
            Err(ToolError::not_found(format!(
                "UKAI_FRONT names no file: {}",
                path.display()
            )))
        };
    }
    let beside = std::env::current_exe()
        .ok()
        .and_then(|exe| Some(exe.parent()?.join(BINARY)));
    beside
        .filter(|path| path.is_file())
        .or_else(|| find_in_path(BINARY))
        .ok_or_else(|| {
            ToolError::not_found(format!("no {BINARY} beside this program or in PATH"))
                .next("install ublk-front on this machine, or name it in UKAI_FRONT")
        })
}

/// A program in `PATH`.
pub(crate) fn find_in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

/// Asks the front of an attached volume. Its socket is on its own host.
pub(crate) fn ask(front: &FrontRecord, request: &Value) -> Result<Value> {
    let failed = |doing: &str, error: std::io::Error| {
        ToolError::refused(format!(
            "{doing} the front's control socket {}: {error}",
            front.control
        ))
        .next(format!(
            "run this on host {}, where the front (process {}) is",
            front.host, front.pid
        ))
    };
    let mut stream =
        UnixStream::connect(&front.control).map_err(|error| failed("connect to", error))?;
    let ask = |stream: &mut UnixStream| -> std::io::Result<String> {
        stream.set_read_timeout(Some(CONTROL_TIMEOUT))?;
        stream.set_write_timeout(Some(CONTROL_TIMEOUT))?;
        stream.write_all(format!("{request}\n").as_bytes())?;
        let mut line = String::new();
        BufReader::new(stream.take(CONTROL_BYTES_MAX)).read_line(&mut line)?;
        Ok(line)
    };
    let line = ask(&mut stream).map_err(|error| failed("ask", error))?;
    let answer: Value = serde_json::from_str(&line).map_err(|error| {
        ToolError::refused(format!("the front's answer is no JSON: {error}"))
            .next("check that ublk-front and ukai-tools are of the same version")
    })?;
    if answer["ok"] == false {
        let said = answer["error"].as_str().unwrap_or("it does not say why");
        return Err(ToolError::refused(format!("the front refuses: {said}")));
    }
    Ok(answer)
}

/// Runs `ublk-front settle`: attach without a device until every replica is in sync. Its progress
/// goes to our standard error.
pub(crate) fn settle(volume: &str, meta: &str) -> Result<()> {
    let status = Command::new(binary()?)
        .args(["settle", volume, "--meta", meta])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .map_err(|error| ToolError::refused(format!("start {BINARY}: {error}")))?;
    if status.success() {
        return Ok(());
    }
    Err(
        ToolError::refused(format!("{BINARY} settle {volume} failed ({status})"))
            .next("read its messages above; `ukai-tools volume show` tells what is left to do"),
    )
}

/// A volume attached for this program alone, as an NBD export on a Unix socket in a folder that
/// nobody else can enter.
pub(crate) struct NbdExport {
    volume: String,
    folder: TempDir,
    front: PathBuf,
    child: Option<Child>,
}

impl NbdExport {
    pub(crate) fn attach(volume: &str, meta: &str) -> Result<Self> {
        let front = binary()?;
        let folder = tempfile::Builder::new()
            .prefix("ukai-tools-")
            .tempdir()
            .map_err(|error| ToolError::refused(format!("make a temporary folder: {error}")))?;
        let log = File::create(folder.path().join("front.log"))
            .map_err(|error| ToolError::refused(format!("make a log file: {error}")))?;
        let mut child = Command::new(&front)
            .args(["attach", volume, "--frontend", "nbd", "--meta", meta])
            .arg("--nbd-unix")
            .arg(folder.path().join("nbd.sock"))
            .arg("--run-dir")
            .arg(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .map_err(|error| ToolError::refused(format!("start {}: {error}", front.display())))?;
        let stdout = child.stdout.take();
        let export = Self {
            volume: volume.into(),
            folder,
            front,
            child: Some(child),
        };
        let mut line = String::new();
        let read = stdout.map(|stdout| BufReader::new(stdout).read_line(&mut line));
        if matches!(read, Some(Ok(_))) && line.starts_with("attached ") {
            return Ok(export);
        }
        let log = export.log_tail();
        Err(
            ToolError::refused(format!("volume {volume} could not be attached{log}")).next(
                format!("try `ublk-front attach {volume} --frontend nbd` to see it alone"),
            ),
        )
    }

    /// For NBD clients.
    pub(crate) fn uri(&self) -> String {
        format!(
            "nbd+unix:///{}?socket={}",
            self.volume,
            self.folder.path().join("nbd.sock").display()
        )
    }

    /// A folder that goes away with the export.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Clean end: everything is durable on the nodes when this returns Ok.
    pub(crate) fn detach(mut self) -> Result<()> {
        let ended = self.stop();
        let log = self.log_tail();
        match ended {
            Some(Ok(status)) if status.success() => Ok(()),
            Some(Ok(status)) => Err(ToolError::refused(format!(
                "the front of {} ended badly ({status}){log}",
                self.volume
            ))),
            Some(Err(error)) => Err(ToolError::refused(format!("wait for the front: {error}"))),
            None => Ok(()),
        }
    }

    fn stop(&mut self) -> Option<std::io::Result<std::process::ExitStatus>> {
        let mut child = self.child.take()?;
        let asked = Command::new(&self.front)
            .args(["detach", &self.volume, "--run-dir"])
            .arg(self.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if !asked.is_ok_and(|status| status.success()) {
            // It died or does not listen. A killed front is safe: the next attach reconciles.
            let _ = child.kill();
        }
        Some(child.wait())
    }

    fn log_tail(&self) -> String {
        tail_of(&self.folder.path().join("front.log"))
    }
}

impl Drop for NbdExport {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}

/// The last lines of a child's log, each on a line of its own, ready to be put behind a message.
pub(crate) fn tail_of(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..]
        .iter()
        .map(|line| format!("\n  | {line}"))
        .collect()
}
