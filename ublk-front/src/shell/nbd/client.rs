//! One NBD client: its stream, its requests in flight, the replies on their way.

use super::requests::{Answer, Requests};
use super::slots::{SLOT_BYTES_MAX, Slots};
use crate::core::api::{BufferPart, GuestError, GuestIo, GuestOp, GuestTag};
use crate::nbd::request::{Request, Work};
use crate::nbd::session::{Event, Session};
use crate::nbd::{Export, NbdError, reply};
use crate::shell::address;
use crate::shell::buffers::{GuestBuffers, Holds};
use crate::shell::inbox::Inbox;
use crate::shell::lane::LaneDriver;
use crate::shell::outbox::Outbox;
use crate::shell::user_data::{Kind, pack};
use io_uring::{opcode, squeue, types};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use ukai_proto::limits::SECTOR_BYTES;

/// As in `peers::receive`: above this a payload is received straight into its slot.
const DIRECT_BYTES_MIN: usize = 32 << 10;

/// A WRITE whose payload is arriving.
#[derive(Debug)]
struct Filling {
    /// Its entry in [`Requests`]; `None`: refused, the payload is thrown away.
    request: Option<u32>,
    /// Next byte of the volume.
    offset: u64,
    /// Bytes not yet taken from the stream, those of `piece` included.
    left: usize,
    /// The piece being filled: slot, size, bytes there.
    piece: Option<(GuestTag, usize, usize)>,
    fua: bool,
}

/// See the module docs.
#[derive(Debug)]
pub(super) struct Client {
    socket: Arc<OwnedFd>,
    size_bytes: Arc<AtomicU64>,
    session: Session,
    inbox: Inbox,
    receiving: bool,
    /// The receive in flight goes into a slot.
    direct: bool,
    outbox: Outbox,
    /// Slots whose data is being sent.
    holds: Holds,
    /// Slots to give back when they are sent.
    sending: Vec<GuestTag>,
    requests: Requests,
    filling: Option<Filling>,
    /// A request that waits for free slots; nothing more is read meanwhile.
    stalled: Option<Request>,
    /// The stream has ended (by the client, by an error, by an order): no more requests.
    ended: bool,
    /// Nothing can be sent any more.
    broken: bool,
}

impl Client {
    pub(super) fn new(socket: Arc<OwnedFd>, name: &str, size_bytes: Arc<AtomicU64>) -> Self {
        let mut greeting = Vec::new();
        let export = Export {
            name: name.to_owned(),
            size_bytes: size_bytes.load(Ordering::Relaxed),
        };
        let session = Session::new(export, &mut greeting);
        let mut outbox = Outbox::default();
        outbox.head(&greeting);
        Self {
            socket,
            size_bytes,
            session,
            inbox: Inbox::default(),
            receiving: false,
            direct: false,
            outbox,
            holds: Holds::default(),
            sending: Vec::new(),
            requests: Requests::default(),
            filling: None,
            stalled: None,
            ended: false,
            broken: false,
        }
    }

    /// Does it wait for slots?
    pub(super) fn is_stalled(&self) -> bool {
        self.stalled.is_some() || self.waits_for_a_piece()
    }

    fn waits_for_a_piece(&self) -> bool {
        let wants = |f: &Filling| f.request.is_some() && f.left > 0 && f.piece.is_none();
        self.filling.as_ref().is_some_and(wants)
    }

    /// No request is left, everything is answered as far as that is possible.
    pub(super) fn is_done(&self) -> bool {
        let quiet = !self.receiving && !self.outbox.in_flight();
        self.ended && quiet && self.requests.is_empty() && (self.broken || self.outbox.is_empty())
    }

    /// Take no more requests.
    fn end(&mut self, slots: &mut Slots) {
        self.ended = true;
        self.stalled = None;
        if let Some(filling) = self.filling.take_if(|_| !self.direct || !self.receiving) {
            if let Some((tag, ..)) = filling.piece {
                slots.give_back(tag);
            }
            if let Some(request) = filling.request {
                self.requests.abandon(request);
            }
        }
    }

    fn break_off(&mut self, why: &str, slots: &mut Slots) {
        if !self.broken {
            self.broken = true;
            tracing::info!("NBD client: {why}");
            address::shutdown(self.socket.as_raw_fd());
        }
        self.end(slots);
    }

    /// A RECV or SENDMSG on the client's socket has ended.
    pub(super) fn completed(&mut self, kind: Kind, result: i32, slots: &mut Slots) {
        let again = matches!(-result, libc::EINTR | libc::EAGAIN);
        match kind {
            Kind::ClientSend => {
                self.outbox
                    .completed(usize::try_from(result).unwrap_or(0), &mut self.holds);
                if result < 0 && !again {
                    let error = std::io::Error::from_raw_os_error(-result);
                    self.break_off(&error.to_string(), slots);
                }
                if self.broken && !self.outbox.in_flight() {
                    self.outbox.clear(&mut self.holds);
                }
                let holds = &self.holds;
                for tag in self.sending.extract_if(.., |tag| holds.free(*tag)) {
                    slots.give_back(tag);
                }
            }
            Kind::ClientReceive => {
                self.receiving = false;
                let direct = std::mem::take(&mut self.direct);
                match usize::try_from(result) {
                    Ok(n) if n > 0 && direct => {
                        if let Some(Filling {
                            left,
                            piece: Some((_, _, done)),
                            ..
                        }) = &mut self.filling
                        {
                            (*left, *done) = (*left - n, *done + n);
                        }
                    }
                    Ok(n) if n > 0 => self.inbox.filled(n),
                    Ok(_) => self.end(slots),
                    Err(_) if again => {}
                    Err(_) => {
                        let error = std::io::Error::from_raw_os_error(-result);
                        self.break_off(&error.to_string(), slots);
                    }
                }
                if self.ended {
                    self.end(slots);
                }
            }
            _ => unreachable!("not a client's operation: {kind:?}"),
        }
    }

    /// Takes from the inbox whatever can be taken now.
    pub(super) fn parse(&mut self, lane: &mut LaneDriver, slots: &mut Slots) {
        while !self.ended {
            if let Some(request) = self.stalled.take() {
                if !self.begin(request, lane, slots) {
                    return;
                }
            } else if self.filling.is_some() {
                if !self.fill(lane, slots) {
                    return;
                }
            } else {
                let mut out = Vec::new();
                let step = self.session.next(self.inbox.bytes(), &mut out);
                if !out.is_empty() {
                    self.outbox.head(&out);
                }
                match step {
                    Err(error) => self.break_off(&error.to_string(), slots),
                    Ok((taken, event)) => {
                        self.inbox.consume(taken);
                        match event {
                            None => return,
                            Some(Event::Ended) => self.end(slots),
                            Some(Event::Request(request)) => self.stalled = Some(request),
                        }
                    }
                }
            }
        }
    }

    /// Starts a request; `false`: it waits for slots.
    fn begin(&mut self, request: Request, lane: &mut LaneDriver, slots: &mut Slots) -> bool {
        let work = match request.work(self.size_bytes.load(Ordering::Relaxed)) {
            Ok(work) => work,
            Err(error) => {
                self.refuse(&request, error);
                return true;
            }
        };
        match work {
            Work::Disconnect => self.end(slots),
            Work::Nothing => self.answer(request.cookie, Ok(())),
            Work::Read => return self.begin_read(request, lane, slots),
            Work::Write { fua } => {
                let entry = self.requests.add(request, true);
                self.filling = Some(Filling {
                    request: Some(entry),
                    offset: request.offset,
                    left: request.length as usize,
                    piece: None,
                    fua,
                });
            }
            Work::Flush => return self.begin_bare(request, GuestOp::Flush, 0, 0, lane, slots),
            Work::Zero {
                offset,
                length,
                unmap,
                fua,
            } => {
                let op = GuestOp::Zero { unmap, fua };
                return self.begin_bare(request, op, offset, length, lane, slots);
            }
        }
        true
    }

    fn begin_bare(
        &mut self,
        request: Request,
        op: GuestOp,
        offset: u64,
        length: u32,
        lane: &mut LaneDriver,
        slots: &mut Slots,
    ) -> bool {
        let Some(tag) = slots.take_bare() else {
            self.stalled = Some(request);
            return false;
        };
        let entry = self.requests.add(request, false);
        self.requests.piece(entry, tag);
        let sector = offset / SECTOR_BYTES as u64;
        #[allow(clippy::cast_possible_truncation)] // a quotient of a u32
        let count = (u64::from(length) / SECTOR_BYTES as u64) as u32;
        lane.guest(
            GuestIo {
                tag,
                op,
                sector,
                count,
            },
            slots,
        );
        true
    }

    /// A read takes all its slots at once: its reply needs all its data in order.
    fn begin_read(&mut self, request: Request, lane: &mut LaneDriver, slots: &mut Slots) -> bool {
        let entry = self.requests.add(request, false);
        let end = request.offset + u64::from(request.length);
        let mut at = request.offset / SECTOR_BYTES as u64 * SECTOR_BYTES as u64;
        let end = end.next_multiple_of(SECTOR_BYTES as u64);
        let mut ios = Vec::new();
        while at < end {
            let bytes = piece_bytes(at, end - at);
            let Some(tag) = slots.take(bytes) else {
                for tag in self.requests.cancel(entry) {
                    slots.give_back(tag);
                }
                self.stalled = Some(request);
                return false;
            };
            self.requests.piece(entry, tag);
            ios.push(guest_io(tag, GuestOp::Read, at, bytes));
            at += bytes as u64;
        }
        for io in ios {
            lane.guest(io, slots);
        }
        true
    }

    /// Takes payload of a WRITE; `false`: more bytes or a slot are needed.
    fn fill(&mut self, lane: &mut LaneDriver, slots: &mut Slots) -> bool {
        let Some(filling) = &mut self.filling else {
            return true;
        };
        let bytes = self.inbox.bytes();
        let Some(request) = filling.request else {
            let n = bytes.len().min(filling.left);
            filling.left -= n;
            self.inbox.consume(n);
            if filling.left > 0 {
                return false;
            }
            self.filling = None;
            return true;
        };
        if filling.piece.is_none() && filling.left > 0 {
            let size = piece_bytes(filling.offset, filling.left as u64);
            let Some(tag) = slots.take(size) else {
                return false;
            };
            filling.piece = Some((tag, size, 0));
        }
        if let Some((tag, size, done)) = &mut filling.piece {
            let n = bytes.len().min(*size - *done);
            let part = BufferPart {
                tag: *tag,
                offset_bytes: as_u32(*done),
                bytes: as_u32(n),
            };
            let to = slots.part(part).as_ptr();
            // SAFETY: `part` checked that `n` bytes fit; the slot is ours until it goes to the lane;
            // the inbox is another allocation.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, n) };
            self.inbox.consume(n);
            filling.left -= n;
            *done += n;
            if *done < *size {
                return false;
            }
            let io = guest_io(
                *tag,
                GuestOp::Write { fua: filling.fua },
                filling.offset,
                *size,
            );
            filling.offset += *size as u64;
            filling.piece = None;
            self.requests.piece(request, io.tag);
            let whole = filling.left == 0;
            lane.guest(io, slots);
            if !whole {
                return true;
            }
        }
        self.filling = None;
        if let Some(answer) = self.requests.filled(request) {
            self.reply(&answer, slots);
        }
        true
    }

    /// A guest request has ended.
    pub(super) fn answered(
        &mut self,
        tag: GuestTag,
        result: Result<(), GuestError>,
        slots: &mut Slots,
    ) {
        let error = result.err().map(|error| match error {
            GuestError::Invalid => NbdError::Invalid,
            GuestError::NoSpace => NbdError::NoSpace,
            GuestError::Io => NbdError::Io,
            GuestError::Fenced => NbdError::Shutdown,
        });
        let (is_read, answer) = self.requests.ended(tag, error);
        if !is_read {
            slots.give_back(tag);
        }
        if let Some(answer) = answer {
            self.reply(&answer, slots);
        }
    }

    fn reply(&mut self, answer: &Answer, slots: &mut Slots) {
        let Answer {
            request,
            error,
            pieces,
        } = answer;
        if self.broken || !request.is_read() {
            for tag in pieces {
                slots.give_back(*tag);
            }
            if !self.broken {
                self.answer(request.cookie, error.map_or(Ok(()), Err));
            }
            return;
        }
        let structured = self.session.negotiated().structured;
        if let Some(error) = error {
            let put = |bytes: &[u8]| self.outbox.head(bytes);
            reply::read_error(structured, request.cookie, *error, put);
            for tag in pieces {
                slots.give_back(*tag);
            }
            return;
        }
        let put = |bytes: &[u8]| self.outbox.head(bytes);
        reply::data(
            structured,
            request.cookie,
            request.offset,
            request.length,
            put,
        );
        // An unaligned read leaves out what was read before and after it.
        let mut at = request.offset / SECTOR_BYTES as u64 * SECTOR_BYTES as u64;
        let end = request.offset + u64::from(request.length);
        let read_end = end.next_multiple_of(SECTOR_BYTES as u64);
        for tag in pieces {
            let size = piece_bytes(at, read_end - at) as u64;
            let (from, to) = (at.max(request.offset), (at + size).min(end));
            #[allow(clippy::cast_possible_truncation)] // at most a slot
            let part = BufferPart {
                tag: *tag,
                offset_bytes: (from - at) as u32,
                bytes: (to - from) as u32,
            };
            self.outbox.payload(part, &mut self.holds);
            self.sending.push(*tag);
            at += size;
        }
    }

    fn answer(&mut self, cookie: u64, result: Result<(), NbdError>) {
        if !self.broken {
            reply::plain(cookie, result, |bytes| self.outbox.head(bytes));
        }
    }

    /// Answers an error, and reads past the payload that comes all the same.
    fn refuse(&mut self, request: &Request, error: NbdError) {
        if request.is_read() {
            let structured = self.session.negotiated().structured;
            let put = |bytes: &[u8]| self.outbox.head(bytes);
            reply::read_error(structured, request.cookie, error, put);
        } else {
            self.answer(request.cookie, Err(error));
        }
        let left = request.payload_bytes() as usize;
        if left > 0 {
            let (offset, fua) = (request.offset, false);
            self.filling = Some(Filling {
                request: None,
                offset,
                left,
                piece: None,
                fua,
            });
        }
    }

    /// Hands out the operations that are due.
    pub(super) fn submit(&mut self, slots: &mut Slots, push: &mut dyn FnMut(squeue::Entry)) {
        let fd = self.socket.as_raw_fd();
        if !self.receiving && !self.ended && !self.is_stalled() {
            self.receiving = true;
            let entry = match &self.filling {
                Some(Filling {
                    piece: Some((tag, size, done)),
                    ..
                }) if size - done >= DIRECT_BYTES_MIN => {
                    self.direct = true;
                    let (offset_bytes, bytes) = (as_u32(*done), as_u32(size - done));
                    let part = BufferPart {
                        tag: *tag,
                        offset_bytes,
                        bytes,
                    };
                    let at = slots.part(part).as_ptr();
                    opcode::Recv::new(types::Fd(fd), at, bytes)
                        .flags(libc::MSG_WAITALL)
                        .build()
                }
                _ => self.inbox.receive(fd),
            };
            push(entry.user_data(pack(Kind::ClientReceive, 0)));
        }
        if !self.broken
            && let Some(entry) = self.outbox.send(fd, slots)
        {
            push(entry.user_data(pack(Kind::ClientSend, 0)));
        }
    }
}

/// Bytes of the piece that begins at `offset`: up to the next multiple of the largest piece.
fn piece_bytes(offset: u64, left: u64) -> usize {
    let max = SLOT_BYTES_MAX as u64;
    #[allow(clippy::cast_possible_truncation)] // at most SLOT_BYTES_MAX
    let bytes = left.min(max - offset % max) as usize;
    bytes
}

#[allow(clippy::cast_possible_truncation)] // offsets and sizes inside a slot
fn as_u32(value: usize) -> u32 {
    value as u32
}

fn guest_io(tag: GuestTag, op: GuestOp, offset: u64, bytes: usize) -> GuestIo {
    let sector = offset / SECTOR_BYTES as u64;
    GuestIo {
        tag,
        op,
        sector,
        count: as_u32(bytes / SECTOR_BYTES),
    }
}
