//! Finding the device of a volume again: after its front was killed the device waits in the kernel,
//! with its users' I/O, for a successor.
//!
//! The driver keeps 64 bits for the server with each device (`ublksrv_flags`). A fingerprint of the
//! volume goes there, so that no file has to survive for a successor to know its device; a file
//! would also name a wrong device once numbers have been used again.

use super::error::{DeviceError, check};
use libublk::ctrl::UblkCtrl;
use libublk::sys;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use ukai_proto::VolumeId;

/// How long a front that no longer serves may take to die: it has to unmap its buffers.
const DEATH_WAIT_MS: i32 = 10_000;

/// Names the volume in the kernel. Zero is what other programs leave there.
pub(super) fn fingerprint(volume: VolumeId) -> u64 {
    let mut halves = [[0u8; 8]; 2];
    halves[0].copy_from_slice(&volume.0[..8]);
    halves[1].copy_from_slice(&volume.0[8..]);
    let mixed = u64::from_le_bytes(halves[0]).rotate_left(32) ^ u64::from_le_bytes(halves[1]);
    mixed | 1 << 63
}

/// What became of a device whose front is not us.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LeftoverState {
    /// Its front lives and serves it.
    Served,
    /// Its front is gone; users wait for a successor.
    Waiting,
    /// It never was started, or has been stopped: nobody can use it.
    Dead,
}

/// A device of a volume, made by an earlier front.
#[derive(Clone, Copy, Debug)]
pub struct Leftover {
    /// Its number.
    pub id: u32,
    /// How it is.
    pub state: LeftoverState,
    /// Who serves or served it.
    pub pid: i32,
    /// Queues it was made with.
    pub queues: u16,
    /// Requests in flight per queue it was made with.
    pub depth: u16,
    /// Its largest request.
    pub io_bytes: u32,
}

impl Leftover {
    /// Its block device.
    #[must_use]
    pub fn path(&self) -> String {
        format!("/dev/ublkb{}", self.id)
    }
}

/// The device that an earlier front of this host made for the volume.
pub fn find(volume: VolumeId) -> Result<Option<Leftover>, DeviceError> {
    let entries = match fs::read_dir("/sys/class/ublk-char") {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(DeviceError::io("list ublk devices")(error)),
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("ublkc"));
        let Some(id) = number.and_then(|number| number.parse::<i32>().ok()) else {
            continue;
        };
        // Removed since it was listed, or not ours to look at: not this volume's.
        let Ok(control) = UblkCtrl::new_simple(id) else {
            continue;
        };
        let info = control.dev_info();
        if info.ublksrv_flags == fingerprint(volume) {
            return Ok(Some(Leftover {
                id: info.dev_id,
                state: state_of(&info),
                pid: info.ublksrv_pid,
                queues: info.nr_hw_queues,
                depth: info.queue_depth,
                io_bytes: info.max_io_buf_bytes,
            }));
        }
    }
    Ok(None)
}

fn state_of(info: &sys::ublksrv_ctrl_dev_info) -> LeftoverState {
    match u32::from(info.state) {
        sys::UBLK_S_DEV_QUIESCED | sys::UBLK_S_DEV_FAIL_IO => LeftoverState::Waiting,
        // A front that was just killed may still be dying, and its device LIVE until it has.
        sys::UBLK_S_DEV_LIVE if !has_died(info.ublksrv_pid) => LeftoverState::Served,
        sys::UBLK_S_DEV_LIVE => LeftoverState::Waiting,
        _ => LeftoverState::Dead,
    }
}

/// Waits a little for a process to end. This process counts as ended: it has just started, so a
/// device cannot be its own.
fn has_died(pid: i32) -> bool {
    if pid <= 0 || u32::try_from(pid) == Ok(std::process::id()) {
        return true;
    }
    // SAFETY: no pointers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let Ok(fd) = i32::try_from(fd) else {
        return true;
    };
    if fd < 0 {
        return io::Error::last_os_error().raw_os_error() == Some(libc::ESRCH);
    }
    // SAFETY: just created, owned by nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // Wait only for one that has been killed; one that lives is the usual mistake of attaching
    // twice, and is told at once.
    let timeout = if is_exiting(pid) { DEATH_WAIT_MS } else { 0 };
    let mut poll = libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one valid pollfd.
    let ready = unsafe { libc::poll(&raw mut poll, 1, timeout) };
    ready > 0
}

/// Has it been killed, though it is not gone yet?
fn is_exiting(pid: i32) -> bool {
    // In this order: the signal is taken off the list shortly before the flag is set.
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    is_killed(&status) || is_ending(&stat)
}

/// Reads `/proc/PID/stat`: does its flags word have PF_EXITING?
fn is_ending(stat: &str) -> bool {
    const PF_EXITING: u64 = 4;
    // The name before the last parenthesis may hold anything; the flags are the 7th field after.
    let fields = stat
        .rsplit_once(')')
        .map(|(_, rest)| rest.split_whitespace());
    let flags = fields
        .and_then(|mut fields| fields.nth(6))
        .and_then(|word| word.parse().ok());
    flags.is_none_or(|flags: u64| flags & PF_EXITING != 0)
}

/// Reads `/proc/PID/status`: SIGKILL pending, or a state that only ending processes have.
fn is_killed(status: &str) -> bool {
    const SIGKILL_BIT: u64 = 1 << (libc::SIGKILL - 1);
    status.lines().any(|line| {
        let Some((key, value)) = line.split_once(':') else {
            return false;
        };
        let value = value.trim();
        match key {
            "State" => value.starts_with(['Z', 'X']),
            "SigPnd" | "ShdPnd" => {
                u64::from_str_radix(value, 16).is_ok_and(|bits| bits & SIGKILL_BIT != 0)
            }
            _ => false,
        }
    })
}

/// Removes the device that a dead front left behind; its users get errors. The device's path, or
/// `None` if there is none.
pub fn remove_leftover(volume: VolumeId) -> Result<Option<String>, DeviceError> {
    let Some(leftover) = find(volume)? else {
        return Ok(None);
    };
    if leftover.state == LeftoverState::Served {
        return Err(DeviceError::Served {
            path: leftover.path(),
            pid: leftover.pid,
        });
    }
    remove(&leftover)?;
    Ok(Some(leftover.path()))
}

pub(super) fn remove(leftover: &Leftover) -> Result<(), DeviceError> {
    let path = leftover.path();
    let id = i32::try_from(leftover.id);
    let id = id.unwrap_or_else(|_| panic!("the driver numbers devices from 0, not {path}"));
    let control = UblkCtrl::new_simple(id);
    let control = control.map_err(|error| DeviceError::Refused {
        doing: format!("look at {path}"),
        source: super::error::plain(error),
    })?;
    check(&format!("stop {path}"), control.kill_dev())?;
    delete(&control, &path)
}

/// Deletes a stopped device. Both its files are gone afterwards; its number is free when the last
/// user has let go, for which nobody waits: a file system that is mounted in some forgotten
/// namespace would hold the front for ever.
pub(super) fn delete(control: &UblkCtrl, path: &str) -> Result<(), DeviceError> {
    let doing = format!("remove {path}");
    let is_gone = |error: &DeviceError| {
        let DeviceError::Refused { source, .. } = error else {
            return false;
        };
        source.raw_os_error() == Some(libc::ENODEV)
    };
    match check(&doing, control.del_dev_async()) {
        // Removed by someone else: what we want is done.
        Err(error) if is_gone(&error) => Ok(()),
        // Older kernels know only the command that waits.
        Err(_) => check(&doing, control.del_dev()),
        Ok(()) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_differ_and_are_never_what_others_leave_there() {
        let mut volume = VolumeId([0; 16]);
        assert_ne!(fingerprint(volume), 0);
        let first = fingerprint(volume);
        volume.0[3] = 1;
        assert_ne!(fingerprint(volume), first);
        volume.0[3] = 0;
        volume.0[11] = 1;
        assert_ne!(fingerprint(volume), first);
    }

    #[test]
    fn ending_processes_are_recognised() {
        assert!(is_killed("Name:\tfront\nState:\tZ (zombie)\n"));
        assert!(is_killed(
            "State:\tD (disk sleep)\nSigPnd:\t0000000000000100\n"
        ));
        assert!(is_killed(
            "State:\tR (running)\nShdPnd:\t0000000000000100\n"
        ));
        assert!(!is_killed(
            "State:\tS (sleeping)\nSigPnd:\t0\nShdPnd:\t0000000000004000\n"
        ));
        assert!(is_ending("17 (a) b) R 1 17 17 0 -1 4194308 95"));
        assert!(!is_ending("17 (a) b) R 1 17 17 0 -1 4194304 95"));
        assert!(is_ending(""), "it ended while we looked");
    }

    #[test]
    fn a_process_that_ended_counts_as_dead_and_a_living_one_does_not() -> io::Result<()> {
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()?;
        let pid = i32::try_from(child.id()).expect("pids fit");
        assert!(!has_died(pid));
        child.kill()?;
        child.wait()?;
        assert!(has_died(pid));
        Ok(())
    }
}
