//! Wakes tasks of one executor: a flag with waiters.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::task::{Poll, Waker};

/// Remembers one notification; wakes everybody who waits.
#[derive(Debug, Default)]
pub(super) struct Notify {
    set: Cell<bool>,
    waiters: RefCell<Vec<Waker>>,
}

impl Notify {
    /// Wake those who wait, or let the next who comes pass.
    pub(super) fn notify(&self) {
        self.set.set(true);
        self.waiters.borrow_mut().drain(..).for_each(Waker::wake);
    }

    /// Wait for a notification made since the last one was taken.
    pub(super) async fn notified(&self) {
        poll_fn(|cx| {
            if self.set.take() {
                return Poll::Ready(());
            }
            let mut waiters = self.waiters.borrow_mut();
            if !waiters.iter().any(|waker| waker.will_wake(cx.waker())) {
                waiters.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }
}
