//! The announcement after a take-over and after an expired session.

use super::*;
use crate::core::SharedSeq;
use crate::shell::wake::Mailbox;
use ukai_meta::memory::MemoryCluster;
use ukai_proto::ClusterId;

const VOLUME: VolumeId = VolumeId([7; 16]);

fn front(pid: u32) -> FrontRecord {
    FrontRecord {
        host: "h".into(),
        control: format!("/run/{pid}"),
        device: format!("/dev/ublkb{pid}"),
        pid,
    }
}

fn announcer(store: Arc<dyn MetaStore>, pid: u32) -> (Announcer, Mailbox<ControlInput>) {
    let (port, mailbox) =
        ControlPort::new(Arc::new(SharedSeq::default()), ClusterId([1; 16])).unwrap();
    let meta = MetaHandle {
        url: "memory:".parse().unwrap(),
        store: Arc::new(Mutex::new(store)),
    };
    let announcer = Announcer {
        meta,
        volume: VOLUME,
        port,
        current: Some((front(pid), false)),
        announced: false,
        troubled: false,
    };
    (announcer, mailbox)
}

/// Chaos seed 4849225043443021585: the predecessor, which had not noticed yet, announced itself over the new front,
/// and ended.
#[test]
fn an_announcement_that_a_predecessor_replaced_is_made_again() {
    let memory = MemoryCluster::new();
    let reader = memory.session();
    let there = || {
        catalog::front(&reader, VOLUME)
            .unwrap()
            .map(|front| front.pid)
    };
    let (mut new, _inputs) = announcer(Arc::new(memory.session()), 2);
    new.keep();
    assert_eq!(there(), Some(2));
    let former: Arc<dyn MetaStore> = Arc::new(memory.session());
    catalog::set_front(&*former, VOLUME, &front(1)).unwrap();
    new.keep();
    assert_eq!(there(), Some(1), "who is there may have come later");
    drop(former);
    assert_eq!(there(), None);
    new.keep();
    assert_eq!(there(), Some(2));
}

/// The session that answers need not be the one that announced.
#[test]
fn an_announcement_whose_session_was_replaced_is_made_again() {
    let memory = MemoryCluster::new();
    let reader = memory.session();
    let (mut front, _inputs) = announcer(Arc::new(memory.session()), 2);
    front.keep();
    *front.meta.store.lock().unwrap() = Arc::new(memory.session());
    assert_eq!(catalog::front(&reader, VOLUME).unwrap(), None);
    front.keep();
    assert!(catalog::front(&reader, VOLUME).unwrap().is_some());
}
