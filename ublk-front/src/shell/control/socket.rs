//! The front's control socket: one JSON object per line, answered by one line.
//!
//! `{"cmd":"status"}`, `{"cmd":"stats"}`, `{"cmd":"detach","force":false}`. Answers have `"ok"`, and
//! `"error"` if it is false. A thread per client; few clients.

use crate::shell::context::{ControlInput, ControlPort};
use serde_json::{Value, json};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Longest request: commands are short.
const REQUEST_BYTES_MAX: u64 = 4 << 10;
/// Clients at a time: tools ask and go.
const CLIENTS_MAX: usize = 16;
/// Control answers within a turn, a stop of lanes aside.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// A client that does not speak or listen is dropped.
const CLIENT_IDLE_MAX: Duration = Duration::from_secs(60);

/// A question to the control thread.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Question {
    /// [`crate::core::control::ControlStatus`] and where the device is.
    Status,
    /// Counters and latencies.
    Stats,
}

/// The listening socket; its file is removed on drop.
#[derive(Debug)]
pub struct ControlSocket {
    path: PathBuf,
    clients: Arc<AtomicUsize>,
}

impl ControlSocket {
    /// Binds. The caller holds the volume's lock in this directory, so a file that is there belongs
    /// to a front that is gone.
    pub fn bind(path: &Path) -> io::Result<(UnixListener, Self)> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        Ok((
            listener,
            Self {
                path: path.to_owned(),
                clients: Arc::default(),
            },
        ))
    }

    /// Answers clients on threads of its own, until the process ends.
    pub fn serve(&self, listener: UnixListener, port: ControlPort) -> io::Result<()> {
        let clients = Arc::clone(&self.clients);
        let body = move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { continue };
                if clients.fetch_add(1, Ordering::Relaxed) >= CLIENTS_MAX {
                    clients.fetch_sub(1, Ordering::Relaxed);
                    continue;
                }
                let (port, count) = (port.clone(), Arc::clone(&clients));
                let body = move || {
                    if let Err(error) = converse(&stream, &port) {
                        tracing::debug!("control socket: {error}");
                    }
                    count.fetch_sub(1, Ordering::Relaxed);
                };
                if std::thread::Builder::new()
                    .name("ask".into())
                    .spawn(body)
                    .is_err()
                {
                    clients.fetch_sub(1, Ordering::Relaxed);
                }
            }
        };
        std::thread::Builder::new()
            .name("control-socket".into())
            .spawn(body)
            .map(|_| ())
    }

    /// Clients that are being answered.
    #[must_use]
    pub fn clients(&self) -> usize {
        self.clients.load(Ordering::Relaxed)
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // An administrator may have tidied up before us.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn converse(stream: &UnixStream, port: &ControlPort) -> io::Result<()> {
    stream.set_read_timeout(Some(CLIENT_IDLE_MAX))?;
    stream.set_write_timeout(Some(CLIENT_IDLE_MAX))?;
    loop {
        let mut line = String::new();
        BufReader::new(stream.take(REQUEST_BYTES_MAX)).read_line(&mut line)?;
        if line.is_empty() {
            return Ok(());
        }
        let (answer, last) = answer(&line, port);
        let mut out = stream;
        out.write_all(format!("{answer}\n").as_bytes())?;
        if last {
            return Ok(());
        }
    }
}

fn failure(error: impl std::fmt::Display) -> Value {
    json!({ "ok": false, "error": error.to_string() })
}

/// The answer, and whether it is the last of this conversation.
fn answer(line: &str, port: &ControlPort) -> (Value, bool) {
    let request: Value = match serde_json::from_str(line) {
        Ok(request) => request,
        Err(error) => {
            return (
                failure(format!("not a JSON object on one line: {error}")),
                true,
            );
        }
    };
    let question = match request["cmd"].as_str() {
        Some("status") => Question::Status,
        Some("stats") => Question::Stats,
        Some("detach") => return (detach(request["force"].as_bool() == Some(true), port), true),
        _ => {
            return (
                failure("unknown cmd; there are status, stats, detach"),
                false,
            );
        }
    };
    let (reply, answer) = flume::bounded(1);
    port.post(ControlInput::Ask(question, reply));
    let answer = answer.recv_timeout(ANSWER_MAX);
    (
        answer.unwrap_or_else(|_| failure("the front does not answer")),
        false,
    )
}

/// Returns when the volume is detached, or with the reason why it is not.
fn detach(force: bool, port: &ControlPort) -> Value {
    let (refused, why) = flume::bounded(1);
    let (done, ended) = flume::bounded(1);
    port.post(ControlInput::Detach {
        force,
        refused,
        done: Some(done),
    });
    // The sender is dropped when the order is accepted.
    if let Ok(why) = why.recv() {
        return failure(why);
    }
    match ended.recv() {
        Ok(Ok(())) => json!({ "ok": true }),
        Ok(Err(error)) => failure(error),
        Err(_) => failure("the front ended without saying how"),
    }
}

/// Asks the front behind a control socket.
pub fn ask(path: &Path, request: &Value, patience: Option<Duration>) -> io::Result<Value> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(patience)?;
    stream.write_all(format!("{request}\n").as_bytes())?;
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line)?;
    if line.is_empty() {
        let text = "the front ended without an answer";
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
    }
    serde_json::from_str(&line).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}
