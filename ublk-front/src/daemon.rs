//! `attach --daemon`: the same program again, in the background.
//!
//! Started anew rather than forked, so that it begins with one thread and nothing inherited but its
//! log and the pipe on which it says that it has attached.

use super::cli::AttachArgs;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode, Stdio};
use ublk_front::shell::process;

/// How much of the log is shown when the start fails.
const LOG_SHOWN_BYTES: u64 = 4 << 10;

/// Starts the front; returns when it has attached, or has failed.
pub(crate) fn start(args: &AttachArgs) -> ExitCode {
    match try_start(args) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("ublk-front: start in the background: {error}");
            ExitCode::FAILURE
        }
    }
}

fn try_start(args: &AttachArgs) -> io::Result<ExitCode> {
    let run_dir = &args.run_dir.run_dir;
    std::fs::create_dir_all(run_dir)?;
    let path = run_dir.join(format!("{}.log", args.volume));
    let log = File::options().create(true).append(true).open(&path)?;
    let begin = log.metadata()?.len();
    let arguments = std::env::args_os()
        .skip(1)
        .filter(|argument| argument != "--daemon");
    let mut child = Command::new(std::env::current_exe()?)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        // Signals of the terminal are for the foreground.
        .process_group(0)
        .spawn()?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut line)?;
    }
    if line.starts_with("attached ") {
        process::say(line.trim_end());
        return Ok(ExitCode::SUCCESS);
    }
    failed(child, &path, begin)
}

/// Shows why, exits as it did.
fn failed(mut child: Child, log: &std::path::Path, begin: u64) -> io::Result<ExitCode> {
    let status = child.wait()?;
    let mut file = File::open(log)?;
    let end = file.metadata()?.len();
    file.seek(SeekFrom::Start(
        begin.max(end.saturating_sub(LOG_SHOWN_BYTES)),
    ))?;
    let mut text = Vec::new();
    file.take(LOG_SHOWN_BYTES).read_to_end(&mut text)?;
    eprint!("{}", String::from_utf8_lossy(&text));
    let code = status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .filter(|code| *code != 0);
    Ok(ExitCode::from(code.unwrap_or(1)))
}
