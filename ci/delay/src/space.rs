//! Network namespaces by name, as `ip netns` keeps them.

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fmt;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{Command, Stdio};

/// Where `ip netns` keeps them.
const NAMESPACES: &str = "/run/netns";
/// Of the namespaces that this program makes for a check; the process id follows.
const PREFIX: &str = "ukai-delay-";

/// One namespace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Space(String);

impl Space {
    #[must_use]
    pub(crate) fn named(name: &str) -> Self {
        Self(name.to_owned())
    }

    /// Runs `work` on a thread that is in the namespace.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, String> {
        let work = || {
            self.enter()?;
            Ok(work())
        };
        std::thread::scope(|scope| match scope.spawn(work).join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    /// Moves the calling thread into it.
    ///
    /// # Errors
    /// There is no such namespace, or not root.
    pub(crate) fn enter(&self) -> Result<(), String> {
        let path = Path::new(NAMESPACES).join(&self.0);
        let failed = |e: &dyn fmt::Display| format!("enter {}: {e}", path.display());
        let file = File::open(&path).map_err(|e| failed(&e))?;
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(|e| failed(&e))
    }

    /// `ip -batch` in it.
    ///
    /// # Errors
    /// What `ip` says.
    pub(crate) fn ip_batch(&self, lines: &str) -> Result<(), String> {
        ip(&["-n", &self.0, "-batch", "-"], lines)
    }
}

impl fmt::Display for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Two new namespaces, gone when dropped.
pub(crate) struct Pair {
    pub left: Space,
    pub right: Space,
}

impl Pair {
    /// Makes them, after removing those of runs that are dead.
    ///
    /// # Errors
    /// What `ip` says.
    pub(crate) fn new() -> Result<Self, String> {
        remove_leftovers();
        let name = |side: &str| Space(format!("{PREFIX}{}-{side}", std::process::id()));
        let pair = Self {
            left: name("left"),
            right: name("right"),
        };
        for space in [&pair.left, &pair.right] {
            ip(&["netns", "add", &space.0], "")?;
            space.ip_batch("link set lo up\n")?;
        }
        Ok(pair)
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for space in [&self.left, &self.right] {
            // What cannot be removed now is removed by the next check.
            let _ = ip(&["netns", "del", &space.0], "");
        }
    }
}

/// Namespaces whose owner was killed.
fn remove_leftovers() {
    let Ok(entries) = std::fs::read_dir(NAMESPACES) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(PREFIX).and_then(|s| s.split('-').next());
        if let Some(pid) = owner
            && !Path::new("/proc").join(pid).exists()
        {
            let _ = ip(&["netns", "del", &name], "");
        }
    }
}

/// `ip` to its end, with text on its standard input.
fn ip(arguments: &[&str], input: &str) -> Result<(), String> {
    let failed = |why: &dyn fmt::Display| format!("ip {}: {why}", arguments.join(" "));
    let mut child = Command::new("ip")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| failed(&e))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).map_err(|e| failed(&e))?;
    }
    let output = child.wait_with_output().map_err(|e| failed(&e))?;
    if output.status.success() {
        return Ok(());
    }
    Err(failed(&String::from_utf8_lossy(&output.stderr).trim()))
}
