//! Waking a thread that sleeps in a ring or in epoll: an eventfd, and channels that write it.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;

/// A counter that the kernel can wait for.
#[derive(Debug)]
pub struct EventFd(OwnedFd);

impl EventFd {
    /// A new one, at zero. Nonblocking for epoll users; rings wait for it by a READ, which needs
    /// `blocking`, else it answers EAGAIN at once.
    pub fn new(blocking: bool) -> io::Result<Self> {
        let flags = libc::EFD_CLOEXEC | if blocking { 0 } else { libc::EFD_NONBLOCK };
        // SAFETY: no pointers; the result is checked before it is owned.
        let fd = unsafe { libc::eventfd(0, flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just created, owned by nobody else.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Wake whoever waits.
    pub fn wake(&self) {
        let one = 1u64;
        // SAFETY: eight readable bytes. It can only fail by overflow of the counter (2^64 - 1
        // unread wake-ups), in which case the reader is woken anyway.
        let _ = unsafe {
            libc::write(
                self.0.as_raw_fd(),
                (&raw const one).cast(),
                size_of::<u64>(),
            )
        };
    }

    /// Take the wake-ups so far (nonblocking ones only).
    pub fn clear(&self) {
        let mut value = [0u8; 8];
        // SAFETY: eight writable bytes. EAGAIN means that there was nothing to clear.
        let _ = unsafe { libc::read(self.0.as_raw_fd(), value.as_mut_ptr().cast(), value.len()) };
    }
}

impl AsRawFd for EventFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// The sending end of a channel whose receiver sleeps in the kernel.
#[derive(Debug)]
pub struct Post<T> {
    channel: flume::Sender<T>,
    wake: Arc<EventFd>,
}

impl<T> Clone for Post<T> {
    fn clone(&self) -> Self {
        Self {
            channel: self.channel.clone(),
            wake: self.wake.clone(),
        }
    }
}

impl<T> Post<T> {
    /// Send and wake. `false`: the receiver is gone. Blocks while a bounded channel is full.
    pub fn send(&self, item: T) -> bool {
        let sent = self.channel.send(item).is_ok();
        self.wake.wake();
        sent
    }
}

/// The receiving end.
#[derive(Debug)]
pub struct Mailbox<T> {
    channel: flume::Receiver<T>,
    wake: Arc<EventFd>,
}

impl<T> Mailbox<T> {
    /// A pair. `blocking_fd` as in [`EventFd::new`]; `bound`: how many items may wait.
    pub fn new(blocking_fd: bool, bound: Option<usize>) -> io::Result<(Post<T>, Self)> {
        let wake = Arc::new(EventFd::new(blocking_fd)?);
        let (sender, channel) = match bound {
            Some(bound) => flume::bounded(bound),
            None => flume::unbounded(),
        };
        Ok((
            Post {
                channel: sender,
                wake: wake.clone(),
            },
            Self { channel, wake },
        ))
    }

    /// The next item, if one is there.
    #[must_use]
    pub fn try_recv(&self) -> Option<T> {
        self.channel.try_recv().ok()
    }

    /// Wait for the next item; `None`: all senders are gone.
    #[must_use]
    pub fn recv(&self) -> Option<T> {
        self.channel.recv().ok()
    }

    /// Wait for the next item, but not longer.
    #[must_use]
    pub fn recv_timeout(&self, time: std::time::Duration) -> Option<T> {
        self.channel.recv_timeout(time).ok()
    }

    /// What to wait for in a ring or epoll. After it fired, take all items.
    #[must_use]
    pub fn event(&self) -> &Arc<EventFd> {
        &self.wake
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readable(event: &EventFd) -> bool {
        let mut fd = libc::pollfd {
            fd: event.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one valid pollfd.
        unsafe { libc::poll(&raw mut fd, 1, 0) == 1 }
    }

    #[test]
    fn sending_wakes_and_clearing_ends_it() {
        let (post, mailbox) = Mailbox::new(false, Some(2)).expect("eventfd");
        assert!(!readable(mailbox.event()));
        assert!(post.send(1) && post.send(2));
        assert!(readable(mailbox.event()));
        mailbox.event().clear();
        assert!(!readable(mailbox.event()));
        assert_eq!(
            (mailbox.try_recv(), mailbox.recv(), mailbox.try_recv()),
            (Some(1), Some(2), None)
        );
        drop(mailbox);
        assert!(!post.send(3));
    }
}
