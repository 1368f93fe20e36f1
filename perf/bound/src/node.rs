//! The node: reads and writes of a file as a node makes them, and a log block for the writes of each turn.

use crate::BoundError;
use crate::block::{ALIGN, Block};
use crate::frame::{Header, Kind, Line};
use crate::ring::{Done, Memory, Ring, Sends};
use crate::slab::Slab;
use crate::stream::Stream;
use clap::Args;
use rustix::thread::{CpuSet, sched_setaffinity};
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

/// Clients at a time; more are turned away.
const CLIENTS_MAX: usize = 64;

/// Serve a file
#[derive(Args, Debug)]
pub(crate) struct NodeArgs {
    /// Socket to listen on
    #[arg(long)]
    unix: PathBuf,
    /// An existing file or block device: data, and the log at its end
    #[arg(long)]
    file: PathBuf,
    /// Bytes of the log
    #[arg(long, default_value_t = 16 << 20)]
    log_bytes: u64,
    /// CPU to run on (default: any)
    #[arg(long)]
    cpu: Option<usize>,
}

#[derive(Clone, Copy, Debug)]
enum Token {
    Accept,
    /// Of a client
    Receive(usize),
    Send(usize),
    /// The data of a request
    Data(usize),
    /// The log block of a group of requests
    Log(usize),
    Sync,
}

#[derive(Debug)]
struct Client {
    line: Line,
    /// Requests that are not answered.
    open: usize,
    over: bool,
}

#[derive(Debug)]
struct Request {
    client: usize,
    header: Header,
    /// Operations under way.
    waits: u32,
    read: Option<Block>,
}

struct Node {
    ring: Ring<Token>,
    listener: UnixListener,
    data_bytes: u64,
    log_bytes: u64,
    log_next: u64,
    clients: Slab<Client>,
    requests: Slab<Request>,
    groups: Slab<Vec<usize>>,
    /// Writes of this turn
    writes: Vec<usize>,
    /// Flushes that wait for the next sync, and for the one under way
    flushes: Vec<usize>,
    syncing: Vec<usize>,
    /// Answered in this turn
    finished: Vec<usize>,
}

pub(crate) fn run(args: &NodeArgs) -> Result<(), BoundError> {
    if let Some(cpu) = args.cpu {
        let mut set = CpuSet::new();
        if cpu >= CpuSet::MAX_CPU {
            return Err(BoundError::Wrong(format!("there is no CPU {cpu}")));
        }
        set.set(cpu);
        let pinned = sched_setaffinity(None, &set);
        pinned.map_err(|error| BoundError::io(format!("run on CPU {cpu}"), error.into()))?;
    }
    let failed = |error| BoundError::io(format!("open {}", args.file.display()), error);
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_DIRECT);
    let mut file = options.open(&args.file).map_err(failed)?;
    let bytes = file.seek(SeekFrom::End(0)).map_err(failed)?;
    let align = ALIGN as u64;
    let log_bytes = args.log_bytes - args.log_bytes % align;
    let data_bytes = bytes.saturating_sub(log_bytes) / align * align;
    if log_bytes == 0 || data_bytes == 0 {
        return Err(BoundError::Wrong(format!(
            "{bytes} bytes are too few for a log of {log_bytes} and data"
        )));
    }
    let listener = UnixListener::bind(&args.unix)
        .map_err(|error| BoundError::io(format!("listen on {}", args.unix.display()), error))?;
    let node = Node::new(&file, listener, data_bytes, log_bytes);
    let mut node = node.map_err(|error| BoundError::io("make a ring".to_owned(), error))?;
    println!("ready");
    node.serve()
        .map_err(|error| BoundError::io("the ring".to_owned(), error))
}

impl Node {
    fn new(
        file: &File,
        listener: UnixListener,
        data_bytes: u64,
        log_bytes: u64,
    ) -> io::Result<Self> {
        // Its clients take what it sends without waiting for their own sends, or send nothing large when it does.
        let ring = Ring::create(Sends::Awaited)?;
        ring.set_file(file)?;
        Ok(Self {
            ring,
            listener,
            data_bytes,
            log_bytes,
            log_next: 0,
            clients: Slab::default(),
            requests: Slab::default(),
            groups: Slab::default(),
            writes: Vec::new(),
            flushes: Vec::new(),
            syncing: Vec::new(),
            finished: Vec::new(),
        })
    }

    fn serve(&mut self) -> io::Result<()> {
        let mut done = Vec::new();
        self.ring.accept(Token::Accept, self.listener.as_raw_fd());
        loop {
            self.ring.enter(&mut done)?;
            for done in done.drain(..) {
                self.completed(done);
            }
            self.take_requests();
            self.end_turn();
        }
    }

    fn completed(&mut self, done: Done<Token>) {
        let error = match done.result {
            Ok(_) => 0,
            Err(code) => code.unsigned_abs(),
        };
        match done.token {
            Token::Accept => {
                match done.memory {
                    Memory::Socket(socket) => self.accepted(socket),
                    _ => eprintln!(
                        "accept: {}",
                        io::Error::from_raw_os_error(error.cast_signed())
                    ),
                }
                self.ring.accept(Token::Accept, self.listener.as_raw_fd());
            }
            Token::Receive(at) => {
                if let Some(client) = self.clients.get_mut(at) {
                    let received = client.line.stream.received(done.result, done.memory);
                    client.over |= !received.unwrap_or(false);
                }
            }
            Token::Send(at) => {
                if let Some(client) = self.clients.get_mut(at) {
                    client.over |= client.line.stream.sent(done.result, done.memory).is_err();
                }
            }
            Token::Data(at) => {
                if let Some(request) = self.requests.get_mut(at) {
                    let short = done
                        .result
                        .is_ok_and(|bytes| bytes != request.header.bytes as usize);
                    let error = if short {
                        libc::EIO.unsigned_abs()
                    } else {
                        error
                    };
                    if let (Kind::Read, Memory::Block(block), 0) =
                        (request.header.kind, done.memory, error)
                    {
                        request.read = Some(block);
                    }
                    self.step(at, error);
                }
            }
            Token::Log(at) => {
                let group = self.groups.remove(at).unwrap_or_default();
                group
                    .into_iter()
                    .for_each(|request| self.step(request, error));
            }
            Token::Sync => {
                let flushed = std::mem::take(&mut self.syncing);
                flushed
                    .into_iter()
                    .for_each(|request| self.step(request, error));
            }
        }
    }

    fn accepted(&mut self, socket: OwnedFd) {
        if self.clients.len() == CLIENTS_MAX {
            return eprintln!("a client is turned away: {CLIENTS_MAX} are connected");
        }
        self.clients.insert(Client {
            line: Line::new(Stream::new(socket)),
            open: 0,
            over: false,
        });
    }

    /// One operation of a request has ended.
    fn step(&mut self, at: usize, error: u32) {
        if let Some(request) = self.requests.get_mut(at) {
            request.waits -= 1;
            if request.header.error == 0 {
                request.header.error = error;
            }
            if request.waits == 0 {
                self.finished.push(at);
            }
        }
    }

    fn take_requests(&mut self) {
        let Self {
            ring,
            data_bytes,
            clients,
            requests,
            writes,
            flushes,
            finished,
            ..
        } = self;
        for (at, client) in clients.iter_mut() {
            while !client.over {
                let (header, payload) = match client.line.next() {
                    Ok(Some(frame)) => frame,
                    Ok(None) => break,
                    Err(error) => {
                        eprintln!("a client is dropped: {error}");
                        client.over = true;
                        break;
                    }
                };
                client.open += 1;
                let request = requests.insert(Request {
                    client: at,
                    header: Header {
                        payload_bytes: 0,
                        ..header
                    },
                    waits: 1,
                    read: None,
                });
                let Some(new) = requests.get_mut(request) else {
                    unreachable!("just inserted");
                };
                match (header.kind, payload) {
                    _ if !header.is_valid_request(*data_bytes) => {
                        (new.header.error, new.waits) = (libc::EINVAL.unsigned_abs(), 0);
                        finished.push(request);
                    }
                    (Kind::Write, Some(block)) => {
                        new.waits = 2;
                        ring.write(Token::Data(request), block, header.position);
                        writes.push(request);
                    }
                    (Kind::Flush, _) => flushes.push(request),
                    (Kind::Size, _) => {
                        (new.header.position, new.waits) = (*data_bytes, 0);
                        finished.push(request);
                    }
                    (Kind::Read | Kind::Write, _) => {
                        let block = Block::new(header.bytes as usize);
                        ring.read(Token::Data(request), block, header.position);
                    }
                }
            }
        }
    }

    fn end_turn(&mut self) {
        if !self.writes.is_empty() {
            let position = self.data_bytes + self.log_next;
            self.log_next = (self.log_next + ALIGN as u64) % self.log_bytes;
            let group = self.groups.insert(std::mem::take(&mut self.writes));
            self.ring
                .write(Token::Log(group), Block::new(ALIGN), position);
        }
        if self.syncing.is_empty() && !self.flushes.is_empty() {
            std::mem::swap(&mut self.syncing, &mut self.flushes);
            self.ring.sync(Token::Sync);
        }
        for at in self.finished.drain(..) {
            let Some(request) = self.requests.remove(at) else {
                continue;
            };
            if let Some(client) = self.clients.get_mut(request.client) {
                client.open -= 1;
                let mut header = request.header;
                #[allow(clippy::cast_possible_truncation)] // at most BLOCK_BYTES_MAX
                let bytes = request
                    .read
                    .as_ref()
                    .map_or(0, |block| block.bytes().len() as u32);
                header.payload_bytes = bytes;
                client.line.put(&header, request.read);
            }
        }
        let mut gone = Vec::new();
        for (at, client) in self.clients.iter_mut() {
            if !client.over {
                let stream = &mut client.line.stream;
                stream.submit(&mut self.ring, Token::Receive(at), Token::Send(at));
            } else if client.open == 0 && client.line.stream.is_quiet() {
                gone.push(at);
            }
        }
        for at in gone {
            self.clients.remove(at);
        }
    }
}
