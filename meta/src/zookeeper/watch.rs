//! A persistent watch, pumped by a task on the session's runtime into a one-place channel: any number
//! of events before a `wait` are one.

use crate::store::{MetaError, Watch};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;
use tokio::task::AbortHandle;
use zookeeper_client as zk;

#[derive(Debug)]
pub(super) struct ZookeeperWatch {
    events: Receiver<()>,
    pump: AbortHandle,
}

impl ZookeeperWatch {
    pub(super) fn new(
        runtime: &tokio::runtime::Handle,
        mut watcher: zk::PersistentWatcher,
    ) -> Self {
        let (sender, events) = sync_channel(1);
        let pump = runtime.spawn(async move {
            loop {
                let event = watcher.changed().await;
                if event.event_type == zk::EventType::Session {
                    if event.session_state.is_terminated() {
                        return; // drops the sender: the receiver learns of it
                    }
                    // Changes during an interruption may go unreported, so its end counts as one.
                    if event.session_state == zk::SessionState::Disconnected {
                        continue;
                    }
                }
                // Full: an event that was not yet seen covers this one.
                let _ = sender.try_send(());
            }
        });
        Self {
            events,
            pump: pump.abort_handle(),
        }
    }
}

impl Watch for ZookeeperWatch {
    fn wait(&mut self, timeout: Duration) -> Result<bool, MetaError> {
        match self.events.recv_timeout(timeout) {
            Ok(()) => Ok(true),
            Err(RecvTimeoutError::Timeout) => Ok(false),
            Err(RecvTimeoutError::Disconnected) => Err(MetaError::SessionExpired),
        }
    }
}

impl Drop for ZookeeperWatch {
    fn drop(&mut self) {
        self.pump.abort();
    }
}
