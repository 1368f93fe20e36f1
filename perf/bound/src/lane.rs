//! The lane: a thread for each NBD client, which asks the node for everything.

use crate::BoundError;
use crate::block::{ALIGN, BLOCK_BYTES_MAX};
use crate::frame::{self, Header, Kind, Line};
use crate::ring::{Ring, Sends};
use crate::slab::Slab;
use crate::stream::Stream;
use clap::Args;
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use ublk_front::nbd::request::{Request, Work};
use ublk_front::nbd::session::{Event, Session};
use ublk_front::nbd::{Export, NbdError, reply};

/// Requests of a client that are not answered; it is not listened to above.
const REQUESTS_MAX: usize = 1024;

/// Serve what a node serves over NBD
#[derive(Args, Debug)]
pub(crate) struct LaneArgs {
    /// Socket of the node
    #[arg(long)]
    unix: String,
    /// Socket to listen on
    #[arg(long)]
    nbd: PathBuf,
}

#[derive(Clone, Copy, Debug)]
enum Token {
    ClientReceive,
    ClientSend,
    NodeReceive,
    NodeSend,
}

struct Lane {
    ring: Ring<Token>,
    client: Stream,
    node: Line,
    session: Session,
    size_bytes: u64,
    /// A write whose payload is arriving.
    filling: Option<Request>,
    requests: Slab<Request>,
    over: bool,
}

pub(crate) fn run(args: &LaneArgs) -> Result<(), BoundError> {
    let listening = |error| BoundError::io(format!("listen on {}", args.nbd.display()), error);
    let listener = UnixListener::bind(&args.nbd).map_err(listening)?;
    println!("ready");
    loop {
        let (socket, _) = listener.accept().map_err(listening)?;
        let path = args.unix.clone();
        let serve = move || {
            if let Err(error) = Lane::create(socket, &path).and_then(|mut lane| lane.serve()) {
                eprintln!("NBD client: {error}");
            }
        };
        let thread = std::thread::Builder::new().spawn(serve);
        thread.map_err(|error| BoundError::io("start a thread".to_owned(), error))?;
    }
}

impl Lane {
    fn create(socket: UnixStream, path: &str) -> io::Result<Self> {
        let (node, size_bytes) = frame::connect(path)?;
        let mut greeting = Vec::new();
        let name = String::new();
        let session = Session::new(Export { name, size_bytes }, &mut greeting);
        let mut client = Stream::new(socket.into());
        client.put(&greeting, None);
        Ok(Self {
            // Reads and writes may come mixed.
            ring: Ring::create(Sends::Apart)?,
            client,
            node,
            session,
            size_bytes,
            filling: None,
            requests: Slab::default(),
            over: false,
        })
    }

    fn serve(&mut self) -> io::Result<()> {
        let mut done = Vec::new();
        loop {
            self.answer()?;
            self.forward()?;
            if self.over {
                return Ok(());
            }
            let (receive, send) = (Token::ClientReceive, Token::ClientSend);
            self.client.submit(&mut self.ring, receive, send);
            let (receive, send) = (Token::NodeReceive, Token::NodeSend);
            self.node.stream.submit(&mut self.ring, receive, send);
            self.ring.enter(&mut done)?;
            for done in done.drain(..) {
                let (result, memory) = (done.result, done.memory);
                match done.token {
                    Token::ClientReceive => self.over |= !self.client.received(result, memory)?,
                    Token::ClientSend => self.client.sent(result, memory)?,
                    Token::NodeSend => self.node.stream.sent(result, memory)?,
                    Token::NodeReceive if self.node.stream.received(result, memory)? => {}
                    Token::NodeReceive => return Err(io::Error::other("the node is gone")),
                }
            }
        }
    }

    /// From the client to the node.
    fn forward(&mut self) -> io::Result<()> {
        while !self.over && self.requests.len() < REQUESTS_MAX {
            if let Some(request) = self.filling {
                let Some(block) = self.client.take_payload() else {
                    break;
                };
                self.filling = None;
                let header = self.ask(Kind::Write, request);
                self.node.put(&header, Some(block));
                continue;
            }
            let mut out = Vec::new();
            let (taken, event) = self
                .session
                .next(self.client.bytes(), &mut out)
                .map_err(io::Error::other)?;
            self.client.consume(taken);
            if !out.is_empty() {
                self.client.put(&out, None);
            }
            match event {
                None => break,
                Some(Event::Ended) => self.over = true,
                Some(Event::Request(request)) => self.begin(request)?,
            }
        }
        Ok(())
    }

    fn begin(&mut self, request: Request) -> io::Result<()> {
        if request.length as usize > BLOCK_BYTES_MAX && request.payload_bytes() > 0 {
            return Err(io::Error::other("a write of more than 1 MiB"));
        }
        let whole = (request.offset | u64::from(request.length)).is_multiple_of(ALIGN as u64)
            && (1..=BLOCK_BYTES_MAX).contains(&(request.length as usize));
        match request.work(self.size_bytes) {
            Ok(Work::Disconnect) => self.over = true,
            Ok(Work::Read) if whole => {
                let header = self.ask(Kind::Read, request);
                self.node.put(&header, None);
            }
            Ok(Work::Write { fua: false }) => {
                self.filling = Some(request);
                self.client.expect(request.length as usize);
            }
            Ok(Work::Flush) => {
                let header = self.ask(Kind::Flush, request);
                self.node.put(&header, None);
            }
            Ok(Work::Nothing) => {
                reply::plain(request.cookie, Ok(()), |head| self.client.put(head, None));
            }
            // What no client of a measurement asks for. A write's payload would have to be read past.
            _ if request.payload_bytes() > 0 => {
                return Err(io::Error::other("a write that the prototype does not do"));
            }
            Ok(_) => self.refuse(&request, NbdError::Unsupported),
            Err(error) => self.refuse(&request, error),
        }
        Ok(())
    }

    fn refuse(&mut self, request: &Request, error: NbdError) {
        let structured = self.session.negotiated().structured;
        let put = |head: &[u8]| self.client.put(head, None);
        if request.is_read() {
            reply::read_error(structured, request.cookie, error, put);
        } else {
            reply::plain(request.cookie, Err(error), put);
        }
    }

    fn ask(&mut self, kind: Kind, request: Request) -> Header {
        let (position, bytes) = (request.offset, request.length as usize);
        Header::request(kind, self.requests.insert(request), position, bytes)
    }

    /// From the node to the client.
    fn answer(&mut self) -> io::Result<()> {
        while let Some((header, payload)) = self.node.next()? {
            let key = usize::try_from(header.key).unwrap_or(usize::MAX);
            let Some(request) = self.requests.remove(key) else {
                return Err(io::Error::other("the node answered what it was not asked"));
            };
            if header.error != 0 {
                self.refuse(&request, NbdError::Io);
            } else if let Some(block) = payload {
                let structured = self.session.negotiated().structured;
                let Request {
                    cookie,
                    offset,
                    length,
                    ..
                } = request;
                let client = &mut self.client;
                let mut head = Vec::with_capacity(32);
                reply::data(structured, cookie, offset, length, |part| {
                    head.extend_from_slice(part);
                });
                client.put(&head, Some(block));
            } else {
                reply::plain(request.cookie, Ok(()), |head| self.client.put(head, None));
            }
        }
        Ok(())
    }
}
