//! Control's requests to nodes: what was asked, of whom, and who wants the answer.

use super::ControlCore;
use super::sync::Part;
use crate::core::api::{ControlAction, ControlError, Now, PeerIndex};
use std::collections::BTreeMap;
use std::time::Duration;
use ukai_proto::message::{
    ChunkRange, HeldBack, PULL_ADDRESS_BYTES_MAX, PULL_ADDRESSES_MAX, Pull, PullMode, Pulled,
    chunk_ranges, read_chunk_list,
};
use ukai_proto::{
    ChunkIndex, Flags, Frame, Header, NodeId, Opcode, SectorInChunk, Seq, Status, Version,
};

/// Requests that a node leaves unanswered longer are given up (the connection is likely dead).
const ANSWER_MAX: Duration = Duration::from_secs(20);

/// Who wants the answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Want {
    /// Attach or rejoin: this shard is fenced; the reply lists open intents.
    Fence(NodeId),
    /// A generation made known; nobody waits.
    Adopt,
    /// A report; whether it was kept does not matter.
    Report,
    /// What an earlier front told of the heat.
    Heat,
    /// The node admits our token still; round trip.
    Lease(NodeId),
    /// Reconcile after attach: `target` takes what is newer at `source`.
    Reconcile {
        chunk: ChunkIndex,
    },
    /// Chunks to copy, of one source shard.
    List {
        job: u64,
        source: NodeId,
    },
    /// A copy of one chunk, or of a part of it.
    Copy {
        job: u64,
        part: Part,
    },
    /// What was copied is durable at the target.
    SyncFlush {
        job: u64,
    },
    /// Repair of what is bad on a node, from `source`.
    Repair {
        source: NodeId,
        chunk: ChunkIndex,
        range: (SectorInChunk, u16),
        /// It was asked because the source of another repair was bad.
        again: bool,
    },
    /// Replicas deleted on a node.
    Release(NodeId, Vec<ChunkRange>),
    /// Detach: flush, then settle.
    Flush,
    Settle,
}

#[derive(Debug)]
struct Waiting {
    peer: PeerIndex,
    want: Want,
    sent: Now,
}

#[derive(Debug, Default)]
pub(super) struct Requests {
    next_tag: u64,
    waiting: BTreeMap<u64, Waiting>,
}

impl Requests {
    pub(super) fn count(&self, wanted: impl Fn(&Want) -> bool) -> usize {
        self.waiting
            .values()
            .filter(|waiting| wanted(&waiting.want))
            .count()
    }

    /// Has a request of this kind been unanswered for longer than `max`?
    pub(super) fn is_overdue(
        &self,
        now: Now,
        max: Duration,
        wanted: impl Fn(&Want) -> bool,
    ) -> bool {
        self.waiting
            .values()
            .any(|waiting| now.since(waiting.sent) > max && wanted(&waiting.want))
    }

    pub(super) fn count_on(&self, peer: PeerIndex, wanted: impl Fn(&Want) -> bool) -> usize {
        self.waiting
            .values()
            .filter(|waiting| waiting.peer == peer && wanted(&waiting.want))
            .count()
    }

    pub(super) fn on_peer(&self, peer: PeerIndex, wanted: impl Fn(&Want) -> bool) -> bool {
        self.waiting
            .values()
            .any(|waiting| waiting.peer == peer && wanted(&waiting.want))
    }
}

impl ControlCore {
    /// Sends a request for the volume under the current token and generation.
    pub(super) fn ask(
        &mut self,
        now: Now,
        peer: PeerIndex,
        opcode: Opcode,
        edit: impl FnOnce(&mut Header) -> Vec<u8>,
        want: Want,
        out: &mut Vec<ControlAction>,
    ) {
        let tag = self.requests.next_tag;
        self.requests.next_tag += 1;
        let head = &self.map().head;
        let mut header = Header {
            volume: head.volume,
            token: head.token,
            generation: head.generation,
            ..Header::request(opcode, tag)
        };
        let aux = edit(&mut header);
        let frame = Frame::<Vec<u8>>::new(header, aux, None);
        self.requests.waiting.insert(
            tag,
            Waiting {
                peer,
                want,
                sent: now,
            },
        );
        out.push(ControlAction::Send {
            peer,
            header: frame.header,
            aux: frame.aux,
        });
    }

    pub(super) fn ask_fence(
        &mut self,
        now: Now,
        peer: PeerIndex,
        start: ChunkIndex,
        out: &mut Vec<ControlAction>,
    ) {
        let (node, token) = (self.node_of(peer), self.map().head.token);
        let seen = self.seen.entry(node).or_default();
        if let (false, Some(run)) = (
            seen.asked.is_some_and(|(under, _)| under == token),
            seen.up.get(&peer),
        ) {
            seen.asked = Some((token, *run));
        }
        let want = Want::Fence(node);
        let last = self.seq.last();
        // Not the map's generation, if lanes do not run under it yet: the node would refuse them.
        let installed = self.installed.as_ref().map(|config| config.generation);
        let edit = |header: &mut Header| {
            header.generation = installed.unwrap_or(header.generation);
            header.chunk = start;
            header.seq = last;
            Vec::new()
        };
        self.ask(now, peer, Opcode::Fence, edit, want, out);
    }

    #[allow(clippy::too_many_arguments)] // one message, as it goes out
    pub(super) fn ask_pull(
        &mut self,
        now: Now,
        peer: PeerIndex,
        chunk: ChunkIndex,
        (sector, count): (SectorInChunk, u16),
        pull: &Pull,
        want: Want,
        out: &mut Vec<ControlAction>,
    ) {
        let edit = |header: &mut Header| {
            (header.chunk, header.sector, header.count) = (chunk, sector, count);
            pull.encode()
        };
        self.ask(now, peer, Opcode::Pull, edit, want, out);
    }

    pub(super) fn ask_release(
        &mut self,
        now: Now,
        peer: PeerIndex,
        ranges: Vec<ChunkRange>,
        out: &mut Vec<ControlAction>,
    ) {
        let aux = chunk_ranges(&ranges);
        let want = Want::Release(self.node_of(peer), ranges);
        self.ask(now, peer, Opcode::Release, |_| aux, want, out);
    }

    pub(super) fn ask_plain(
        &mut self,
        now: Now,
        peer: PeerIndex,
        opcode: Opcode,
        want: Want,
        out: &mut Vec<ControlAction>,
    ) {
        // A node that is being filled keeps its intents: they tell what to compare.
        let announced = match self.map().health(self.node_of(peer)) {
            None => self.seq.announced(),
            Some(_) => Seq(0),
        };
        let edit = |header: &mut Header| {
            header.seq = if opcode == Opcode::Settled {
                announced
            } else {
                Seq(0)
            };
            Vec::new()
        };
        self.ask(now, peer, opcode, edit, want, out);
    }

    /// The order to copy a chunk from `source`.
    pub(super) fn pull_from(
        &self,
        source: NodeId,
        chunk: ChunkIndex,
        (mode, ceiling): (PullMode, Version),
    ) -> Option<Pull> {
        let peer = self.peer_of(source, chunk)?;
        let peer = &self.peers[peer.0 as usize];
        let entry = self.nodes.iter().find(|entry| entry.node == source)?;
        Some(Pull {
            source,
            source_boot: entry.incarnation?.boot,
            source_shard_count: peer.shard_count,
            mode,
            ceiling,
            // Those that a node's record has and no order can carry are left out.
            addresses: peer
                .addresses
                .iter()
                .filter(|address| address.len() <= PULL_ADDRESS_BYTES_MAX)
                .take(PULL_ADDRESSES_MAX)
                .cloned()
                .collect(),
        })
    }

    pub(super) fn peer_frame(
        &mut self,
        now: Now,
        peer: PeerIndex,
        header: &Header,
        aux: &[u8],
        out: &mut Vec<ControlAction>,
    ) {
        // Only who was asked can answer: what another node says must not make the request forgotten.
        let asked = self.requests.waiting.get(&header.tag);
        let answers = asked.is_some_and(|waiting| waiting.peer == peer);
        if !answers || !header.flags.has(Flags::REPLY) {
            return;
        }
        let Some(waiting) = self.requests.waiting.remove(&header.tag) else {
            return;
        };
        // Of an answer under a token that this front has renewed since, that is no news.
        if header.status == Status::StaleToken && header.token == self.map().head.token {
            self.end(Err(ControlError::Fenced), out);
            return;
        }
        if header.status == Status::StaleMap {
            self.reload_wanted = true;
        }
        let result = if header.status == Status::Ok {
            Ok(aux)
        } else {
            Err(header.status)
        };
        self.answered(now, peer, waiting, result, header, out);
    }

    /// Requests to a peer whose connection broke will not be answered.
    pub(super) fn requests_lost(
        &mut self,
        now: Now,
        peer: PeerIndex,
        out: &mut Vec<ControlAction>,
    ) {
        let tags: Vec<u64> = self
            .requests
            .waiting
            .iter()
            .filter(|(_, waiting)| waiting.peer == peer)
            .map(|(tag, _)| *tag)
            .collect();
        self.give_up(now, &tags, out);
    }

    /// Gives up requests that were never answered (a send dropped in between, a silent node).
    pub(super) fn expire_requests(&mut self, now: Now, out: &mut Vec<ControlAction>) {
        let tags: Vec<u64> = self
            .requests
            .waiting
            .iter()
            .filter(|(_, waiting)| now.since(waiting.sent) > ANSWER_MAX)
            .map(|(tag, _)| *tag)
            .collect();
        self.give_up(now, &tags, out);
    }

    fn give_up(&mut self, now: Now, tags: &[u64], out: &mut Vec<ControlAction>) {
        for tag in tags {
            if let Some(waiting) = self.requests.waiting.remove(tag) {
                let header = Header::request(Opcode::Ping, *tag);
                let peer = waiting.peer;
                self.answered(now, peer, waiting, Err(Status::PeerFailed), &header, out);
            }
        }
    }

    fn answered(
        &mut self,
        now: Now,
        peer: PeerIndex,
        waiting: Waiting,
        result: Result<&[u8], Status>,
        header: &Header,
        out: &mut Vec<ControlAction>,
    ) {
        match waiting.want {
            Want::Fence(node) => {
                let aux = match result {
                    Ok(aux) => aux,
                    Err(status) => return self.fence_refused(now, node, status, out),
                };
                self.round_trip(node, now.since(waiting.sent));
                let Ok(chunks) = read_chunk_list(aux) else {
                    self.note(
                        format!("node {} sent a bad list of intents", self.name(node)),
                        out,
                    );
                    return;
                };
                let last = chunks.last().copied();
                self.fenced_intents(node, chunks);
                match last {
                    Some(last) if header.flags.has(Flags::MORE) => {
                        self.ask_fence(now, peer, ChunkIndex(last.0.saturating_add(1)), out);
                    }
                    // Under a token that was renewed since: asked again.
                    _ if header.token != self.map().head.token => {}
                    _ => {
                        let fenced = self.map().head.generation;
                        let seen = self.seen.entry(node).or_default();
                        seen.fenced.insert(peer, fenced);
                        self.heard(node, waiting.sent);
                    }
                }
            }
            Want::Lease(node) => {
                if header.flags.has(Flags::REPLY) {
                    self.seen.entry(node).or_default().silent = false;
                    self.update_down(now, node);
                }
                if result.is_ok() && self.peers_of(node).next() == Some(peer) {
                    let round_trip = now.since(waiting.sent);
                    self.round_trip(node, round_trip);
                    let seen = self.seen.entry(node).or_default();
                    seen.round_trips.add(round_trip);
                    self.heard(node, waiting.sent);
                }
            }
            Want::Adopt | Want::Flush | Want::Settle | Want::Report => {}
            Want::Heat => self.heat_told(now, result.ok(), out),
            Want::Reconcile { chunk } => self.reconciled(now, peer, chunk, result, out),
            // Answers to an earlier job say nothing about the present one.
            Want::List { job, .. } | Want::Copy { job, .. } | Want::SyncFlush { job }
                if !self.is_sync_job(job) => {}
            Want::List { source, .. } => self.listed(now, peer, source, result, header, out),
            Want::Copy { part, .. } => {
                let held_back = match result {
                    Ok(_) | Err(Status::Busy) => HeldBack::from_seq(header.seq),
                    Err(_) => HeldBack::default(),
                };
                self.chunk_copied(now, part, result, held_back, out);
            }
            Want::SyncFlush { .. } => self.target_flushed(now, result.is_ok(), out),
            Want::Repair {
                source,
                chunk,
                range,
                again,
            } => {
                self.repairs_out = self.repairs_out.saturating_sub(1);
                let bad = result.is_ok_and(|aux| {
                    Pulled::decode(aux).is_ok_and(|pulled| pulled.sectors_bad > 0)
                });
                // Once: where all are bad there is nothing to be done.
                if bad && !again {
                    let from = self.node_of(peer);
                    self.repair_range(now, (chunk, range), source, Some(from), out);
                    let third = |node| node != from && node != source;
                    if self.map().in_sync(chunk).any(third) {
                        self.repair_range(now, (chunk, range), from, Some(source), out);
                    }
                }
            }
            Want::Release(node, ranges) => {
                if result.is_ok() {
                    let seen = self.seen.entry(node).or_default();
                    seen.released.insert(peer, ranges);
                }
            }
        }
    }
}
