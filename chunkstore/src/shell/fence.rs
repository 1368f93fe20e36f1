//! Keeps a new run off the device until the last I/O of a killed one has ended.
//!
//! A process that is killed is gone at once, but writes that it had handed to its ring may reach the
//! device later, when the successor has already read, or even rewritten, the same sectors. The
//! kernel keeps an open file description alive until the last request on it is done, and its locks
//! with it: so each descriptor that does ring I/O carries a shared lock on one byte, and a new run
//! takes that byte exclusively, once, before it reads anything. (Ownership of the file is another
//! lock, [`super::blocking::Access::Exclusive`], which ends with the process.)

use std::io;
use std::os::fd::AsRawFd;

/// The byte. Locks do not touch content; the position only has to be agreed on.
const BYTE: libc::off_t = 0x554b_4149;

fn lock(file: &impl AsRawFd, kind: libc::c_int, command: libc::c_int) -> io::Result<()> {
    // SAFETY: all-zero is a valid flock structure; open file description locks want pid 0.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    #[allow(clippy::cast_possible_truncation)] // three small constants
    {
        lock.l_type = kind as libc::c_short;
        lock.l_whence = libc::SEEK_SET as libc::c_short;
    }
    lock.l_start = BYTE;
    lock.l_len = 1;
    // SAFETY: the kernel reads `lock`, which outlives the call; the descriptor is the file's.
    match unsafe { libc::fcntl(file.as_raw_fd(), command, &raw const lock) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Mark a descriptor that will do ring I/O.
pub(super) fn mark(file: &impl AsRawFd) -> io::Result<()> {
    lock(file, libc::F_RDLCK, libc::F_OFD_SETLK)
}

/// Wait until no marked descriptor of another run is left. `file` must be writable.
pub(super) fn wait(file: &impl AsRawFd) -> io::Result<()> {
    match lock(file, libc::F_WRLCK, libc::F_OFD_SETLK) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
            tracing::warn!("I/O of a killed run is still under way; waiting for its end");
            lock(file, libc::F_WRLCK, libc::F_OFD_SETLKW)?;
        }
        result => result?,
    }
    lock(file, libc::F_UNLCK, libc::F_OFD_SETLK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn a_marked_descriptor_holds_a_new_run_back_until_it_is_closed() {
        let file = tempfile::NamedTempFile::new().expect("file");
        let open = || File::options().read(true).write(true).open(file.path());
        let (first, second, next) = (open(), open(), open());
        let (first, second, next) = (
            first.expect("open"),
            second.expect("open"),
            next.expect("open"),
        );
        mark(&first).expect("mark");
        mark(&second).expect("marks are shared");
        drop(first);
        let busy = lock(&next, libc::F_WRLCK, libc::F_OFD_SETLK);
        assert!(busy.is_err(), "the second is still marked");
        drop(second);
        wait(&next).expect("all closed");
        mark(&open().expect("open")).expect("wait leaves no lock behind");
    }
}
