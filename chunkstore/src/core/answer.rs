//! Finishing requests: what the store and the copy engine answered, to the client.

use super::event::{OutData, OutFrame, ShardAction};
use super::shard::{ListId, ListOwner, Op, Request, ShardCore};
use super::storage::Storage;
use crate::disk::api::{OpId, StoreReply};
use ukai_proto::limits::{CHUNK_LIST_MAX, SEQ_MAX};
use ukai_proto::message::{HeldBack, Pulled, append_seqs, chunk_list, crc_table, sector_states};
use ukai_proto::{Buffer, ChunkIndex, Flags, Opcode, SectorInChunk, Seq, Status, Version};

impl<B: Buffer, S: Storage<B>> ShardCore<B, S> {
    /// The store answered.
    pub(super) fn replied(
        &mut self,
        now: u64,
        id: OpId,
        reply: StoreReply<B>,
        out: &mut Vec<ShardAction<B>>,
    ) {
        let Some(op) = self.ops.remove(&id) else {
            panic!(
                "the store answered {id:?}, which is not in flight: {:?}",
                kind(&reply)
            )
        };
        match op {
            Op::Client(request) => self.client_reply(now, request, reply, out),
            Op::Served(request) => {
                self.serving.served();
                self.client_reply(now, request, reply, out);
                self.serve_copies(now, out);
            }
            Op::ListPart { list, offset } => self.list_part(now, list, offset, reply, out),
            Op::CopyPut {
                order,
                piece,
                zeroes,
            } => {
                let applied = match reply {
                    StoreReply::Done { applied } => {
                        self.counters.pulled(applied, zeroes);
                        Ok(applied)
                    }
                    StoreReply::Failed { status, .. } => Err(status),
                    other => panic!("the store answered a Put with {}", kind(&other)),
                };
                self.copies
                    .put_done(now, order, piece, applied, &mut self.copy_out);
            }
        }
    }

    pub(super) fn client_reply(
        &mut self,
        now: u64,
        request: Request,
        reply: StoreReply<B>,
        out: &mut Vec<ShardAction<B>>,
    ) {
        let header = request.header;
        if header.opcode == Opcode::Fence {
            self.gate.closed(header.volume, header.token);
        }
        let service_ns = now.saturating_sub(request.admitted);
        let zeroes = |data: &OutData<B>| match data {
            OutData::None => Flags::ZEROES,
            _ => Flags::NONE,
        };
        match reply {
            StoreReply::Failed { status, sector } => self.fail(request, status, sector, out),
            StoreReply::Doubted { sector } => {
                self.fail_at(request, Status::BadCrc, sector, Seq(SEQ_MAX), out);
            }
            StoreReply::Read {
                versions,
                crcs,
                data,
            } => {
                self.service.read(header.count, service_ns);
                let data = OutData::from(data);
                let mut aux = crc_table(service_ns, crcs.into_iter());
                let flags = zeroes(&data);
                // What earlier tokens wrote was reconciled before this one could read it.
                let seq_of = |version: Version| match version {
                    Version { token, seq } if token == header.token => seq,
                    _ => Seq(0),
                };
                let newest = versions.iter().copied().map(seq_of).max();
                let newest = newest.unwrap_or(Seq(0));
                // The highest one says nothing about the others, which may end later.
                let settled = seq_of(self.store.settled_up_to(header.volume));
                if versions.len() > 1 && newest > settled {
                    append_seqs(&mut aux, versions.into_iter().map(seq_of));
                }
                self.done_at(request, aux, flags, data, newest, out);
            }
            StoreReply::ReadVersioned { states, data } => {
                let data = OutData::from(data);
                let aux = sector_states(service_ns, states.into_iter());
                self.done(now, request, aux, zeroes(&data), data, out);
            }
            StoreReply::Done { .. } if header.opcode == Opcode::Fence => {
                let (volume, token) = (header.volume, header.token);
                if self.store.fence(volume).is_some_and(|f| f.token > token) {
                    self.fail(request, Status::StaleToken, header.sector, out);
                    return;
                }
                self.store.resumed(volume, token, header.seq);
                let (chunks, more) = self
                    .store
                    .open_intents(volume, header.chunk, CHUNK_LIST_MAX);
                self.chunks(now, request, &chunks, more, out);
            }
            StoreReply::Done { .. } if matches!(header.opcode, Opcode::Write | Opcode::Zero) => {
                if header.opcode == Opcode::Write {
                    self.service.write(header.count, service_ns);
                }
                let (none, served) = (OutData::None, Seq(service_ns.min(SEQ_MAX)));
                self.done_at(request, Vec::new(), Flags::NONE, none, served, out);
            }
            StoreReply::Done { .. } => {
                if header.opcode == Opcode::DeleteVolume {
                    self.reports.forget(header.volume);
                }
                self.done(now, request, Vec::new(), Flags::NONE, OutData::None, out);
            }
            StoreReply::List(_) => panic!("the store answered {:?} with states", header.opcode),
        }
    }

    fn list_part(
        &mut self,
        now: u64,
        id: ListId,
        offset: usize,
        reply: StoreReply<B>,
        out: &mut Vec<ShardAction<B>>,
    ) {
        let Some(list) = self.lists.get_mut(&id) else {
            panic!("a part of LIST {id} came after its end")
        };
        match reply {
            StoreReply::List(states) => {
                list.states[offset..offset + states.len()].copy_from_slice(&states);
                if list.verify {
                    self.counters.verified(&states);
                }
            }
            StoreReply::Failed { status, sector } => {
                list.failed.get_or_insert((status, sector));
            }
            other => panic!("the store answered a List with {}", kind(&other)),
        }
        list.parts_left -= 1;
        if list.parts_left > 0 {
            self.list_next(id);
            return;
        }
        let Some(list) = self.lists.remove(&id) else {
            return;
        };
        match (list.owner, list.failed) {
            (ListOwner::Copy(order), failed) => {
                let states = failed.map_or(Ok(list.states), |(status, _)| Err(status));
                self.copies.listed(now, order, states, &mut self.copy_out);
            }
            (ListOwner::Client(request), Some((status, sector))) => {
                self.fail(request, status, sector, out);
            }
            (ListOwner::Client(request), None) => {
                let service_ns = now.saturating_sub(request.admitted);
                let aux = sector_states(service_ns, list.states.into_iter());
                self.listed(request, aux, out);
            }
        }
    }

    /// States to a client, with what the front has told to be settled meanwhile.
    fn listed(&mut self, request: Request, aux: Vec<u8>, out: &mut Vec<ShardAction<B>>) {
        let header = &request.header;
        self.counters
            .answered(header.opcode, Status::Ok, header.count);
        if self.sessions.answered(request.conn, header) {
            let mut reply = header.reply(Status::Ok);
            let settled = self.store.settled_up_to(header.volume);
            if settled.token == header.token {
                reply.seq = settled.seq;
            }
            let frame = OutFrame::new(reply, aux, OutData::None);
            let conn = request.conn;
            out.push(ShardAction::Send { conn, frame });
        }
    }

    /// A copy ended.
    pub(super) fn pulled(
        &mut self,
        request: Request,
        result: Result<Pulled, Status>,
        held_back: HeldBack,
        out: &mut Vec<ShardAction<B>>,
    ) {
        let seq = held_back.to_seq();
        match result {
            Ok(pulled) => {
                let (aux, none) = (pulled.encode(), OutData::None);
                self.done_at(request, aux, Flags::NONE, none, seq, out);
            }
            Err(status) => self.fail_at(request, status, request.header.sector, seq, out),
        }
    }

    /// The piece of a mirror waits at the peer, which is told for how long.
    pub(super) fn refuse_piece(
        &mut self,
        request: Request,
        again_ns: u64,
        out: &mut Vec<ShardAction<B>>,
    ) {
        let sector = request.header.sector;
        self.fail_at(request, Status::Busy, sector, Seq(again_ns), out);
    }

    pub(super) fn chunks(
        &mut self,
        now: u64,
        request: Request,
        chunks: &[ChunkIndex],
        more: bool,
        out: &mut Vec<ShardAction<B>>,
    ) {
        let flags = if more { Flags::MORE } else { Flags::NONE };
        self.done(now, request, chunk_list(chunks), flags, OutData::None, out);
    }

    pub(super) fn done(
        &mut self,
        _now: u64,
        request: Request,
        aux: Vec<u8>,
        flags: Flags,
        data: OutData<B>,
        out: &mut Vec<ShardAction<B>>,
    ) {
        let seq = request.header.seq;
        self.done_at(request, aux, flags, data, seq, out);
    }

    /// As [`ShardCore::done`], with the sequence number that the reply tells.
    fn done_at(
        &mut self,
        request: Request,
        aux: Vec<u8>,
        flags: Flags,
        data: OutData<B>,
        seq: Seq,
        out: &mut Vec<ShardAction<B>>,
    ) {
        let header = &request.header;
        self.counters
            .answered(header.opcode, Status::Ok, header.count);
        if self.sessions.answered(request.conn, header) {
            let mut reply = header.reply(Status::Ok);
            reply.flags = reply.flags.with(flags);
            reply.seq = seq;
            let frame = OutFrame::new(reply, aux, data);
            let conn = request.conn;
            out.push(ShardAction::Send { conn, frame });
        }
    }

    pub(super) fn fail(
        &mut self,
        request: Request,
        status: Status,
        sector: SectorInChunk,
        out: &mut Vec<ShardAction<B>>,
    ) {
        let seq = request.header.reply(status).seq;
        self.fail_at(request, status, sector, seq, out);
    }

    /// As [`ShardCore::fail`], with a sequence number: the highest there is says that the record was lost.
    fn fail_at(
        &mut self,
        request: Request,
        status: Status,
        sector: SectorInChunk,
        seq: Seq,
        out: &mut Vec<ShardAction<B>>,
    ) {
        let header = &request.header;
        self.counters.answered(header.opcode, status, 0);
        if self.sessions.answered(request.conn, header) {
            let mut reply = header.reply(status);
            (reply.sector, reply.seq) = (sector, seq);
            let conn = request.conn;
            let frame = OutFrame::bare(reply);
            out.push(ShardAction::Send { conn, frame });
        }
    }
}

fn kind<B>(reply: &StoreReply<B>) -> &'static str {
    match reply {
        StoreReply::Read { .. } => "Read",
        StoreReply::ReadVersioned { .. } => "ReadVersioned",
        StoreReply::List(_) => "List",
        StoreReply::Done { .. } => "Done",
        StoreReply::Failed { .. } => "Failed",
        StoreReply::Doubted { .. } => "Doubted",
    }
}
