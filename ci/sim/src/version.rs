//! Processes that speak another version of the protocol, as in a rolling upgrade gone wrong: refused by whoever reads the
//! first bytes, counted as down, and whole again in the right version.

use crate::moving::NextFront;
use crate::net::{Client, Link, LinkId};
use crate::queue::{MS, SECOND};
use crate::tally::Mark;
use crate::world::{Event, FrontIndex, NodeIndex, World};
use ukai_proto::Frame;
use ukai_proto::crc::crc32c;
use ukai_proto::decode::{DecodeError, VecDecoder};
use ukai_proto::header::{HeaderError, PROTOCOL};
use ukai_proto::limits::HEADER_BYTES;

/// The frame as a sender of that version would make it: what reads bytes must refuse it, for that reason, before anything
/// else sees it.
pub(crate) fn assert_refused(frame: &Frame<Vec<u8>>, version: u8) {
    let mut bytes = frame.to_bytes();
    bytes[2] = version;
    let crc = crc32c(&bytes[..HEADER_BYTES - 4]);
    bytes[HEADER_BYTES - 4..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
    let mut out = Vec::new();
    let fed = VecDecoder::default().feed(&bytes, &mut out);
    let named =
        matches!(&fed, Err(DecodeError::Header(HeaderError::Protocol(named))) if *named == version);
    assert!(
        named && out.is_empty(),
        "a frame of protocol version {version} was not refused as such: {fed:?}"
    );
}

impl World {
    fn other_version(&mut self) -> u8 {
        if self.in_256(128) {
            PROTOCOL + 1
        } else {
            PROTOCOL - 1
        }
    }

    /// Does the node speak another version than its client? Then it closes the connection at the first frame.
    pub(crate) fn refuses_version(
        &mut self,
        id: LinkId,
        link: &Link,
        frame: &Frame<Vec<u8>>,
    ) -> bool {
        let theirs = match link.client {
            Client::Front { front, .. } => self.fronts[front].protocol,
            Client::Peer { node, .. } => self.nodes[node].protocol,
            Client::Inspector | Client::Scrub { .. } | Client::Stranger => PROTOCOL,
        };
        let ours = self.nodes[link.node].protocol;
        if theirs == ours || self.nodes[link.node].epoch != link.epoch {
            return false;
        }
        // The code here speaks one version: which of the two is the odd one makes no difference to it.
        assert_refused(frame, if theirs == PROTOCOL { ours } else { theirs });
        self.mark(Mark::VersionRefused);
        self.close_from(id, true);
        self.conn_closed(link.node, link.shard, id);
        true
    }

    /// A node is restarted in another version; later in the right one.
    pub(crate) fn restart_in_other_version(&mut self) -> bool {
        let Some(node) = self.any_dispensable_node() else {
            return false;
        };
        if self.is_fragile(node) || self.nodes[node].protocol != PROTOCOL {
            return false;
        }
        self.crash_node(node);
        let version = self.other_version();
        self.nodes[node].protocol = version;
        self.say(|| format!("n{node} is to start in protocol version {version}"));
        let starts = self.queue.now() + MS + self.up_to(500 * MS);
        let ends = starts + self.up_to(6 * SECOND);
        self.troubled(node, ends + SECOND);
        self.queue.push(starts, Event::NodeStart { node });
        self.queue.push(ends, Event::RightVersion { node });
        true
    }

    pub(crate) fn right_version(&mut self, node: NodeIndex) {
        if self.nodes[node].protocol == PROTOCOL {
            return;
        }
        let now = self.queue.now();
        if self.is_fragile(node) {
            self.queue
                .push(now + SECOND / 10, Event::RightVersion { node });
            return;
        }
        if self.nodes[node].process.is_some() {
            self.crash_node(node);
            self.queue.push(now + MS, Event::NodeStart { node });
        }
        self.nodes[node].protocol = PROTOCOL;
        self.nodes[node].was_other = true;
    }

    /// A node takes writes.
    pub(crate) fn mark_version_returned(&mut self, link: LinkId) {
        let node = self.links.get(&link).map(|link| link.node);
        if node.is_some_and(|node| std::mem::take(&mut self.nodes[node].was_other)) {
            self.mark(Mark::VersionReturned);
        }
    }

    /// The front that served dies, and the next one is of another version.
    pub(crate) fn front_of_other_version(&mut self) -> bool {
        if !self.crash_the_front() {
            return false;
        }
        // No version that nodes are started in: two of one odd version would rightly understand each other.
        let protocol = Some(self.other_version() + 3);
        self.next_front = NextFront {
            protocol,
            ..NextFront::default()
        };
        true
    }

    /// It takes the volume, reaches no node, and is ended by its operator.
    pub(crate) fn right_front(&mut self, front: FrontIndex) {
        if !self.fronts[front].alive {
            return;
        }
        assert!(
            !self.fronts[front].ready,
            "a front serves, although no node speaks its version"
        );
        let ended = self.fronts[front].ended;
        self.crash_front(front);
        self.mark(Mark::FrontReturned);
        if !ended && self.newest_front().is_none() {
            self.replace_front(self.fronts[front].host);
        }
    }
}
