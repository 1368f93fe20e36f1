//! Starting requests: shape, life, lease, gate, then the store or the copy engine.

use super::event::{OutData, ShardAction};
use super::gate::Rule;
use super::session::{SLOT, check_shape};
use super::shard::{List, ListId, ListOwner, Op, Request, ShardCore};
use super::storage::Storage;
use crate::disk::api::{OpId, SectorRange, StoreRequest};
use std::collections::VecDeque;
use ukai_proto::crc::sector_crcs;
use ukai_proto::limits::{CHUNK_LIST_MAX, SECTOR_BYTES, SEQ_MAX};
use ukai_proto::message::{
    INVENTORY_MAX, Pull, Report, ReportKind, SectorState, inventory, read_chunk_ranges,
    read_crc_table,
};
use ukai_proto::{Buffer, Flags, Frame, Header, Opcode, SectorInChunk, Seq, Status};

impl<B: Buffer, S: Storage<B>> ShardCore<B, S> {
    /// Start an admitted request, or say why not.
    pub(super) fn start(
        &mut self,
        now: u64,
        request: Request,
        frame: Frame<B>,
        out: &mut Vec<ShardAction<B>>,
    ) -> Result<(), (Status, SectorInChunk)> {
        let header = request.header;
        let whole = |status| (status, header.sector);
        check_shape(&self.identity, &header).map_err(whole)?;
        if !self.is_serving() {
            return Err(whole(Status::Stopping));
        }
        self.pass(&header).map_err(whole)?;
        let bad = |_| whole(Status::BadRequest);
        let range = range_of(&header);
        let fua = header.flags.has(Flags::FUA);
        let (volume, token, generation) = (header.volume, header.token, header.generation);
        let store_request = match header.opcode {
            Opcode::Read => StoreRequest::Read(range),
            Opcode::ReadVersioned if header.seq > Seq(0) => {
                let asked = self.serving.ask(now, bytes_of(&header), request);
                asked.unwrap_or_else(|again_ns| self.refuse_piece(request, again_ns, out));
                self.serve_copies(now, out);
                return Ok(());
            }
            Opcode::ReadVersioned => StoreRequest::ReadVersioned(range),
            Opcode::Write => {
                let Some(data) = frame.data else {
                    return Err(whole(Status::BadRequest));
                };
                let (settled, crcs) = read_crc_table(&frame.aux, header.count).map_err(bad)?;
                let crcs: Vec<u32> = crcs.collect();
                verify(&crcs, data.as_slice(), header.sector)?;
                self.settled(&header, settled).map_err(whole)?;
                StoreRequest::Write {
                    range,
                    version: header.version(),
                    generation,
                    crcs,
                    data,
                    fua,
                }
            }
            Opcode::Zero => {
                let (settled, _) = read_crc_table(&frame.aux, 0).map_err(bad)?;
                self.settled(&header, settled).map_err(whole)?;
                StoreRequest::Zero {
                    range,
                    version: header.version(),
                    generation,
                    unmap: header.flags.has(Flags::UNMAP),
                    fua,
                }
            }
            Opcode::Flush => StoreRequest::Flush,
            Opcode::Fence => {
                self.gate.close(volume, token);
                // Copies ordered under a lower token would be stopped at their next Put; stop now.
                self.copies
                    .fail(now, Status::StaleToken, &mut self.copy_out, |order| {
                        order.volume == volume && order.token < token
                    });
                StoreRequest::Fence {
                    volume,
                    token,
                    generation,
                }
            }
            Opcode::Adopt => StoreRequest::Adopt {
                volume,
                token,
                generation,
            },
            Opcode::Release => StoreRequest::Release {
                volume,
                token,
                generation,
                ranges: read_chunk_ranges(&frame.aux).map_err(bad)?,
            },
            Opcode::DeleteVolume => StoreRequest::DeleteVolume { volume },
            Opcode::List => {
                let verify = header.flags.has(Flags::VERIFY);
                self.list(ListOwner::Client(request), range, verify);
                return Ok(());
            }
            Opcode::Pull => {
                let pull = Pull::decode(&frame.aux).map_err(bad)?;
                let order = self.copies.order(now, header, pull).map_err(whole)?;
                self.pulls.insert(order, request);
                self.copies.advance(now, &mut self.copy_out);
                return Ok(());
            }
            Opcode::Settled => {
                self.settled(&header, header.seq.0).map_err(whole)?;
                self.done(now, request, Vec::new(), Flags::NONE, OutData::None, out);
                return Ok(());
            }
            Opcode::WrittenSince => {
                let (chunks, more) =
                    self.store
                        .written_since(volume, generation, header.chunk, CHUNK_LIST_MAX);
                self.chunks(now, request, &chunks, more, out);
                return Ok(());
            }
            Opcode::Inventory => {
                let (entries, more) = self.store.inventory(volume, INVENTORY_MAX);
                let flags = if more { Flags::MORE } else { Flags::NONE };
                self.done(now, request, inventory(&entries), flags, OutData::None, out);
                return Ok(());
            }
            Opcode::Stats => {
                let mut stats = self.counters.stats;
                self.store.add_stats(&mut stats);
                self.done(
                    now,
                    request,
                    stats.encode(),
                    Flags::NONE,
                    OutData::None,
                    out,
                );
                return Ok(());
            }
            Opcode::PutReport => {
                let report = Report::decode(&frame.aux).map_err(bad)?;
                if report.kind == ReportKind::SERVICE {
                    return Err(whole(Status::BadRequest)); // the shard's own
                }
                self.reports.put(volume, report);
                self.done(now, request, Vec::new(), Flags::NONE, OutData::None, out);
                return Ok(());
            }
            Opcode::GetReport => {
                let asked = Report::decode(&frame.aux).map_err(bad)?;
                let body = if asked.kind == ReportKind::SERVICE {
                    Some(self.service.report().encode())
                } else {
                    let kept = self.reports.get(volume, asked.kind, asked.page);
                    kept.map(<[u8]>::to_vec)
                };
                let body = body.ok_or(whole(Status::NotFound))?;
                let aux = Report { body, ..asked }.encode();
                self.done(now, request, aux, Flags::NONE, OutData::None, out);
                return Ok(());
            }
            Opcode::Ping => {
                self.done(now, request, Vec::new(), Flags::NONE, OutData::None, out);
                return Ok(());
            }
            Opcode::Hello => return Err(whole(Status::BadRequest)),
        };
        self.submit(Op::Client(request), store_request);
        Ok(())
    }

    /// Read for peers' mirrors what may be read now.
    pub(super) fn serve_copies(&mut self, now: u64, out: &mut Vec<ShardAction<B>>) {
        while let Some((mut request, held_ns)) = self.serving.next(now) {
            let header = &mut request.header;
            // What is told with the answer.
            header.seq = Seq(held_ns.min(SEQ_MAX));
            // It was admitted a while ago.
            let passes = if self.sessions.greeted(request.conn).is_none() {
                Err(Status::PeerFailed)
            } else {
                self.pass(header)
            };
            if let Err(status) = passes {
                self.serving.served();
                self.serving.give_back(bytes_of(&request.header));
                self.fail(request, status, request.header.sector, out);
                continue;
            }
            let range = range_of(header);
            self.submit(Op::Served(request), StoreRequest::ReadVersioned(range));
        }
    }

    /// Whatever waits is refused.
    pub(super) fn serve_none(&mut self, status: Status, out: &mut Vec<ShardAction<B>>) {
        for request in self.serving.clear() {
            self.fail(request, status, request.header.sector, out);
        }
    }

    /// Lease and gate.
    pub(super) fn pass(&self, header: &Header) -> Result<(), Status> {
        let rule = match header.opcode {
            Opcode::Hello
            | Opcode::Stats
            | Opcode::Ping
            | Opcode::Inventory
            | Opcode::GetReport => return Ok(()),
            Opcode::Fence => Rule::Fence,
            Opcode::Adopt
            | Opcode::Read
            | Opcode::Write
            | Opcode::Zero
            | Opcode::Pull
            | Opcode::Release => Rule::TokenAndMap,
            Opcode::Flush
            | Opcode::List
            | Opcode::ReadVersioned
            | Opcode::WrittenSince
            | Opcode::Settled
            | Opcode::DeleteVolume
            | Opcode::PutReport => Rule::Token,
        };
        if !self.lease_held {
            return Err(Status::NoLease);
        }
        let recorded = self.store.fence(header.volume);
        self.gate.check(
            rule,
            header.volume,
            header.token,
            header.generation,
            recorded,
        )
    }

    pub(super) fn settled(&mut self, header: &Header, seq: u64) -> Result<(), Status> {
        if seq > SEQ_MAX {
            return Err(Status::BadRequest);
        }
        if seq > 0 {
            self.store.settled(header.volume, header.token, Seq(seq));
        }
        Ok(())
    }

    pub(super) fn submit(&mut self, op: Op, request: StoreRequest<B>) {
        let id = OpId(self.next_op);
        self.next_op += 1;
        self.ops.insert(id, op);
        self.submitted = true;
        self.store.submit(id, request, &mut self.store_out);
    }

    /// Ask the store for the states of any range, slot by slot: all at once, or, if the data is to be
    /// verified, one after the other.
    pub(super) fn list(&mut self, owner: ListOwner, range: SectorRange, verify: bool) {
        let list = self.next_op;
        self.next_op += 1;
        let parts: VecDeque<(usize, SectorRange)> = slots_of(range.sector.0, range.count)
            .map(|(sector, count)| {
                let part = SectorRange {
                    sector: SectorInChunk(sector),
                    count,
                    ..range
                };
                (usize::from(sector - range.sector.0), part)
            })
            .collect();
        let at_once = if verify { 1 } else { parts.len() };
        let pending = List {
            owner,
            states: vec![SectorState::UNWRITTEN; range.count.into()],
            parts_left: parts.len(),
            verify,
            parts_waiting: parts,
            failed: None,
        };
        self.lists.insert(list, pending);
        for _ in 0..at_once {
            self.list_next(list);
        }
    }

    /// The next part of a LIST that waits, if any does.
    pub(super) fn list_next(&mut self, list: ListId) {
        let Some(pending) = self.lists.get_mut(&list) else {
            return;
        };
        let Some((offset, part)) = pending.parts_waiting.pop_front() else {
            return;
        };
        let request = if pending.verify {
            StoreRequest::Verify(part)
        } else {
            StoreRequest::List(part)
        };
        self.submit(Op::ListPart { list, offset }, request);
    }
}

fn range_of(header: &Header) -> SectorRange {
    SectorRange {
        volume: header.volume,
        chunk: header.chunk,
        sector: header.sector,
        count: header.count,
    }
}

fn bytes_of(header: &Header) -> u64 {
    u64::from(header.count) * SECTOR_BYTES as u64
}

/// The parts of a sector range, slot by slot.
fn slots_of(first: u16, count: u16) -> impl Iterator<Item = (u16, u16)> {
    let end = first + count;
    let mut at = first;
    std::iter::from_fn(move || {
        (at < end).then(|| {
            let stop = end.min((at / SLOT + 1).saturating_mul(SLOT));
            let part = (at, stop - at);
            at = stop;
            part
        })
    })
}

/// Does each sector match its checksum? Names the first that does not.
fn verify(crcs: &[u32], data: &[u8], first: SectorInChunk) -> Result<(), (Status, SectorInChunk)> {
    let wrong = sector_crcs(data)
        .zip(crcs)
        .position(|(got, told)| got != *told);
    match wrong {
        None => Ok(()),
        #[allow(clippy::cast_possible_truncation)] // below the frame's 256 sectors
        Some(at) => Err((Status::BadCrc, SectorInChunk(first.0 + at as u16))),
    }
}
