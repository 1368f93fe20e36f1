//! Which process on which boot of the machine a session belongs to, and whether it still lives.
//!
//! A SQLite store is shared by the processes of one machine, so the kernel can be asked: keys of a
//! killed process vanish at once, without waiting for its lease. The lease is for processes that are
//! stopped or hang. Time is the machine's uptime, the same for all and never set back.

use std::io;

/// A process, safe against reuse of its number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) boot: String,
    /// Its PID namespace: numbers of another one mean nothing here.
    pub(super) namespace: String,
    pub(super) pid: u32,
    /// When it started, in clock ticks since boot.
    pub(super) started: i64,
}

impl Owner {
    pub(super) fn this_process() -> io::Result<Self> {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let namespace = std::fs::read_link("/proc/self/ns/pid")?;
        let pid = std::process::id();
        let started = process_start(pid)
            .ok_or_else(|| io::Error::other("/proc/self/stat cannot be understood"))?;
        Ok(Self {
            boot: boot.trim().to_owned(),
            namespace: namespace.to_string_lossy().into_owned(),
            pid,
            started,
        })
    }

    /// Whether the process is surely gone, seen from `here`.
    pub(super) fn is_gone(&self, here: &Self) -> bool {
        if self.boot != here.boot {
            return true;
        }
        self.namespace == here.namespace && process_start(self.pid) != Some(self.started)
    }
}

/// Start time of a live (not zombie) process.
fn process_start(pid: u32) -> Option<i64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command name may hold anything; what follows its last parenthesis is numbers.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    // Field 22 of proc(5), of which state is the third.
    fields.nth(18)?.parse().ok()
}

/// Milliseconds since boot.
pub(super) fn uptime_ms() -> io::Result<i64> {
    let text = std::fs::read_to_string("/proc/uptime")?;
    let malformed = || io::Error::other("/proc/uptime cannot be understood");
    let (seconds, hundredths) = text
        .split_ascii_whitespace()
        .next()
        .and_then(|first| first.split_once('.'))
        .ok_or_else(malformed)?;
    let seconds: i64 = seconds.parse().map_err(|_| malformed())?;
    let hundredths: i64 = hundredths.parse().map_err(|_| malformed())?;
    Ok(seconds * 1000 + hundredths * 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_ended_is_gone_and_this_one_is_not() {
        let here = Owner::this_process().unwrap();
        assert!(!here.is_gone(&here));
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let owner = Owner {
            pid: child.id(),
            started: process_start(child.id()).unwrap(),
            ..here.clone()
        };
        assert!(!owner.is_gone(&here));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(owner.is_gone(&here));
        let other_boot = Owner {
            boot: "another".into(),
            ..here.clone()
        };
        assert!(other_boot.is_gone(&here));
        assert!(uptime_ms().unwrap() > 0);
    }
}
