//! A process of the product, and what may be done to it.

use crate::wait::{Failure, Look, Outcome, setup, setup_at, until};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

/// A process that does not end in this time after it should has hung.
const END_MAX: Duration = Duration::from_secs(60);

/// A child; killed when dropped.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    child: Child,
    /// Its standard output.
    out: PathBuf,
}

impl Process {
    /// Starts it. Standard output goes to `DIR/NAME.out` (new), standard error to `DIR/NAME.log`
    /// (appended).
    pub(crate) fn start(name: &str, mut command: Command, dir: &Path) -> Outcome<Self> {
        let out = dir.join(format!("{name}.out"));
        let log = dir.join(format!("{name}.log"));
        let stdout = File::create(&out).map_err(setup_at("create", &out))?;
        let stderr = File::options().create(true).append(true).open(&log);
        let stderr = stderr.map_err(setup_at("open", &log))?;
        let child = command.stdout(stdout).stderr(stderr).spawn();
        Ok(Self {
            name: name.to_owned(),
            child: child.map_err(setup(format!("start {name}")))?,
            out,
        })
    }

    /// What it printed, so far.
    pub(crate) fn printed(&self) -> Outcome<String> {
        let mut text = String::new();
        let mut file = File::open(&self.out).map_err(setup_at("open", &self.out))?;
        file.read_to_string(&mut text)
            .map_err(setup_at("read", &self.out))?;
        Ok(text)
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Outcome<Option<ExitStatus>> {
        self.child
            .try_wait()
            .map_err(setup(format!("wait for {}", self.name)))
    }

    /// Its first line that begins so; an error with its exit status if it ends before.
    pub(crate) fn line(
        &mut self,
        begin: &str,
        limit: Duration,
    ) -> Outcome<Result<String, ExitStatus>> {
        let what = format!("{} prints {begin:?}", self.name);
        until(limit, &what, || {
            let ended = self.ended()?;
            let text = self.printed()?;
            // A line counts when its end is there.
            let lines = text.split_inclusive('\n');
            let mut whole = lines.filter(|l| l.ends_with('\n') && l.starts_with(begin));
            if let Some(line) = whole.next() {
                return Ok(Look::Found(Ok(line.trim_end().to_owned())));
            }
            Ok(match ended {
                Some(status) => Look::Found(Err(status)),
                None => Look::NotYet(format!("{text:?}")),
            })
        })
    }

    fn signal(&self, signal: Signal) -> Outcome {
        let doing = format!("signal {}", self.name);
        kill_process(Pid::from_child(&self.child), signal).map_err(setup(doing))
    }

    /// SIGSTOP.
    pub(crate) fn stop(&self) -> Outcome {
        self.signal(Signal::STOP)
    }

    /// SIGCONT.
    pub(crate) fn go_on(&self) -> Outcome {
        self.signal(Signal::CONT)
    }

    /// SIGTERM; `end` waits.
    pub(crate) fn terminate(&self) -> Outcome {
        self.signal(Signal::TERM)
    }

    /// SIGKILL, to the end.
    pub(crate) fn kill(mut self) -> Outcome {
        let doing = format!("kill {}", self.name);
        self.child.kill().map_err(setup(doing.clone()))?;
        self.child.wait().map(drop).map_err(setup(doing))
    }

    /// Waits for an end that is on its way.
    pub(crate) fn end(&mut self) -> Outcome<ExitStatus> {
        let what = format!("{} ends", self.name);
        until(END_MAX, &what, || {
            Ok(match self.ended()? {
                Some(status) => Look::Found(status),
                None => Look::NotYet("it runs".to_owned()),
            })
        })
    }

    /// An error if it has ended although nobody ended it.
    pub(crate) fn check_runs(&mut self) -> Outcome {
        match self.ended()? {
            None => Ok(()),
            Some(status) => Err(Failure::Broken(format!(
                "{} ended by itself: {status}",
                self.name
            ))),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
