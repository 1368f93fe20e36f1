//! A small blocking NBD client.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use ublk_front::nbd::request::Request;

pub const READ: u16 = 0;
pub const WRITE: u16 = 1;
pub const DISC: u16 = 2;
pub const FLUSH: u16 = 3;
pub const TRIM: u16 = 4;
pub const WRITE_ZEROES: u16 = 6;

pub struct NbdClient {
    stream: UnixStream,
    structured: bool,
    next_cookie: u64,
    /// Lengths of reads under way.
    reads: BTreeMap<u64, u32>,
    pub size_bytes: u64,
}

/// Error number, or data of a read.
pub type Reply = Result<Vec<u8>, u32>;

impl NbdClient {
    pub fn connect(path: &Path, structured: bool) -> io::Result<Self> {
        let mut stream = UnixStream::connect(path)?;
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting)?;
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        stream.write_all(&3u32.to_be_bytes())?;
        let mut client = Self {
            stream,
            structured,
            next_cookie: 1,
            reads: BTreeMap::new(),
            size_bytes: 0,
        };
        if structured {
            client.option(8, &[])?;
        }
        let mut go = 3u32.to_be_bytes().to_vec();
        go.extend(b"vol");
        go.extend([0, 1, 0, 3]);
        for info in client.option(7, &go)? {
            if info[..2] == [0, 0] {
                client.size_bytes = u64::from_be_bytes(info[2..10].try_into().expect("8"));
            }
        }
        Ok(client)
    }

    /// Sends an option; the data of its information replies.
    fn option(&mut self, option: u32, data: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        self.stream.write_all(b"IHAVEOPT")?;
        self.stream.write_all(&option.to_be_bytes())?;
        self.stream
            .write_all(&u32::try_from(data.len()).expect("short").to_be_bytes())?;
        self.stream.write_all(data)?;
        let mut infos = Vec::new();
        loop {
            self.bytes(12)?;
            let (kind, len) = (self.number()?, self.number()?);
            let data = self.bytes(len as usize)?;
            match kind {
                1 => return Ok(infos),
                3 => infos.push(data),
                other => panic!("option {option}: reply {other:#x}"),
            }
        }
    }

    fn bytes(&mut self, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn number(&mut self) -> io::Result<u32> {
        Ok(u32::from_be_bytes(self.bytes(4)?.try_into().expect("4")))
    }

    /// Sends a request, returns its cookie.
    pub fn send(&mut self, command: u16, flags: u16, offset: u64, data: &[u8], length: u32) -> u64 {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let request = Request {
            flags,
            command,
            cookie,
            offset,
            length,
        };
        if command == READ {
            self.reads.insert(cookie, length);
        }
        let mut bytes = request.encode().to_vec();
        bytes.extend(data);
        self.stream.write_all(&bytes).expect("send");
        cookie
    }

    /// The next reply, whichever it is.
    pub fn receive(&mut self) -> io::Result<(u64, Reply)> {
        let magic = self.number()?;
        if magic == 0x6744_6698 {
            let error = self.number()?;
            let cookie = u64::from_be_bytes(self.bytes(8)?.try_into().expect("8"));
            let length = self.reads.remove(&cookie);
            if error != 0 {
                return Ok((cookie, Err(error)));
            }
            assert!(
                length.is_none() || !self.structured,
                "simple reply to a read"
            );
            let data = self.bytes(length.unwrap_or(0) as usize)?;
            return Ok((cookie, Ok(data)));
        }
        assert_eq!(magic, 0x668e_33ef);
        let (flags_and_type, high, low) = (self.number()?, self.number()?, self.number()?);
        let cookie = u64::from(high) << 32 | u64::from(low);
        let length = self.number()?;
        let payload = self.bytes(length as usize)?;
        self.reads.remove(&cookie);
        match flags_and_type {
            0x0001_0001 => Ok((cookie, Ok(payload[8..].to_vec()))),
            0x0001_8001 => Ok((
                cookie,
                Err(u32::from_be_bytes(payload[..4].try_into().expect("4"))),
            )),
            other => panic!("chunk {other:#x}"),
        }
    }

    /// One request and its reply.
    pub fn call(&mut self, command: u16, offset: u64, data: &[u8], length: u32) -> Reply {
        let cookie = self.send(command, 0, offset, data, length);
        let (got, reply) = self.receive().expect("a reply");
        assert_eq!(got, cookie);
        reply
    }

    pub fn read(&mut self, offset: u64, length: usize) -> Vec<u8> {
        let length = u32::try_from(length).expect("length");
        self.call(READ, offset, &[], length).expect("read")
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let length = u32::try_from(data.len()).expect("length");
        self.call(WRITE, offset, data, length).expect("write");
    }

    pub fn flush(&mut self) {
        self.call(FLUSH, 0, &[], 0).expect("flush");
    }

    /// Says goodbye and waits for the server to close.
    pub fn disconnect(mut self) {
        self.send(DISC, 0, 0, &[], 0);
        let mut rest = Vec::new();
        self.stream.read_to_end(&mut rest).expect("end");
        assert!(rest.is_empty(), "bytes after the disconnect");
    }

    pub fn raw(&mut self) -> &mut UnixStream {
        &mut self.stream
    }
}
