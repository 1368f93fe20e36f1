//! Waiting for many descriptors on the control thread.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// Events taken per wait; more are delivered by the next one.
const EVENTS_MAX: usize = 64;

/// An epoll instance, level-triggered.
#[derive(Debug)]
pub(super) struct Poller(OwnedFd);

/// What a descriptor is ready for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Readiness {
    /// As given when it was added.
    pub(super) token: u64,
    /// There is something to read, or an end or error to learn of.
    pub(super) read: bool,
    /// There is room to write, or an error to learn of.
    pub(super) write: bool,
}

impl Poller {
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: no pointers; the result is checked before it is owned.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just created, owned by nobody else.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Watch for reading.
    pub(super) fn add(&self, fd: RawFd, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, token, false)
    }

    /// Watch for reading and, if `write`, for writing.
    pub(super) fn set(&self, fd: RawFd, token: u64, write: bool) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, token, write)
    }

    fn control(&self, op: i32, fd: RawFd, token: u64, write: bool) -> io::Result<()> {
        let bits = libc::EPOLLIN | if write { libc::EPOLLOUT } else { 0 };
        let mut event = libc::epoll_event {
            events: bits.cast_unsigned(),
            u64: token,
        };
        // SAFETY: `event` is a valid epoll_event, only read.
        let rc = unsafe { libc::epoll_ctl(self.0.as_raw_fd(), op, fd, &raw mut event) };
        if rc < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }

    /// Waits until something is ready or time is up.
    pub(super) fn wait(&self, timeout: Duration, out: &mut Vec<Readiness>) -> io::Result<()> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; EVENTS_MAX];
        let millis = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
        #[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap)] // 64
        let max = EVENTS_MAX as i32;
        // SAFETY: the array has room for `max` events.
        let n = unsafe { libc::epoll_wait(self.0.as_raw_fd(), events.as_mut_ptr(), max, millis) };
        let Ok(n) = usize::try_from(n) else {
            let error = io::Error::last_os_error();
            let interrupted = error.raw_os_error() == Some(libc::EINTR);
            return if interrupted { Ok(()) } else { Err(error) };
        };
        out.extend(events[..n].iter().map(|event| {
            let bits = event.events.cast_signed();
            let broken = bits & (libc::EPOLLERR | libc::EPOLLHUP) != 0;
            Readiness {
                token: event.u64,
                read: broken || bits & libc::EPOLLIN != 0,
                write: broken || bits & libc::EPOLLOUT != 0,
            }
        }));
        Ok(())
    }
}
