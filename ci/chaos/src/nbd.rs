//! A small NBD client: fixed newstyle, simple replies, many requests in flight. Written apart from the
//! front's side of the protocol, so that one mistake is not made twice.

use std::collections::BTreeMap;
use std::io::{self, Error, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// The front answers or breaks the connection long before: it holds requests for two minutes.
const SILENCE_MAX: Duration = Duration::from_secs(180);
/// The server is a process that runs, or one that is stopped for some seconds.
const HANDSHAKE_MAX: Duration = Duration::from_secs(60);

/// Command flag.
pub(crate) const FUA: u16 = 1;

/// No space left.
pub(crate) const ENOSPC: u32 = 28;

/// What is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Command {
    /// Read.
    Read = 0,
    /// Write.
    Write = 1,
    /// Make durable.
    Flush = 3,
    /// Discard.
    Trim = 4,
    /// Zeros.
    WriteZeroes = 6,
}

/// A connection in its transmission phase.
#[derive(Debug)]
pub(crate) struct Client {
    stream: UnixStream,
    /// Lengths of the replies' data, by cookie.
    expected: BTreeMap<u64, u32>,
}

/// Data of a read (empty for others), or the error number.
pub(crate) type Reply = Result<Vec<u8>, u32>;

fn protocol(text: String) -> Error {
    Error::new(ErrorKind::InvalidData, text)
}

impl Client {
    /// Connects and negotiates.
    pub(crate) fn connect(path: &Path) -> io::Result<Self> {
        let mut stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(HANDSHAKE_MAX))?;
        stream.set_write_timeout(Some(SILENCE_MAX))?;
        let greeting: [u8; 18] = read(&mut stream)?;
        if &greeting[..16] != b"NBDMAGICIHAVEOPT" {
            return Err(protocol(format!("greeting {greeting:02x?}")));
        }
        // Client flags: fixed newstyle, no zeroes; then GO with an empty name and no wishes.
        let mut hello = 3u32.to_be_bytes().to_vec();
        hello.extend(b"IHAVEOPT");
        hello.extend([0, 0, 0, 7, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0]);
        stream.write_all(&hello)?;
        loop {
            let head: [u8; 20] = read(&mut stream)?;
            let (kind, length) = (be32(&head[12..16]), be32(&head[16..20]));
            if length > 4096 {
                return Err(protocol(format!("option reply of {length} bytes")));
            }
            let mut data = vec![0; length as usize];
            stream.read_exact(&mut data)?;
            match kind {
                1 => break,
                3 => {}
                other => return Err(protocol(format!("option reply {other:#x}"))),
            }
        }
        stream.set_read_timeout(Some(SILENCE_MAX))?;
        Ok(Self {
            stream,
            expected: BTreeMap::new(),
        })
    }

    /// A handle that can break the connection from another thread.
    pub(crate) fn handle(&self) -> io::Result<UnixStream> {
        self.stream.try_clone()
    }

    /// Sends a request.
    pub(crate) fn send(
        &mut self,
        command: Command,
        flags: u16,
        cookie: u64,
        offset: u64,
        length: u32,
        data: &[u8],
    ) -> io::Result<()> {
        let mut bytes = 0x2560_9513u32.to_be_bytes().to_vec();
        bytes.extend(flags.to_be_bytes());
        bytes.extend((command as u16).to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        bytes.extend(length.to_be_bytes());
        bytes.extend(data);
        let expected = if command == Command::Read { length } else { 0 };
        self.expected.insert(cookie, expected);
        self.stream.write_all(&bytes)
    }

    /// The next reply, whichever it is.
    pub(crate) fn receive(&mut self) -> io::Result<(u64, Reply)> {
        let head: [u8; 16] = read(&mut self.stream)?;
        if be32(&head[..4]) != 0x6744_6698 {
            return Err(protocol(format!("reply {head:02x?}")));
        }
        let error = be32(&head[4..8]);
        let cookie = u64::from(be32(&head[8..12])) << 32 | u64::from(be32(&head[12..16]));
        let Some(length) = self.expected.remove(&cookie) else {
            return Err(protocol(format!("reply to {cookie}, which is not open")));
        };
        if error != 0 {
            return Ok((cookie, Err(error)));
        }
        let mut data = vec![0; length as usize];
        self.stream.read_exact(&mut data)?;
        Ok((cookie, Ok(data)))
    }

    /// Says goodbye.
    pub(crate) fn disconnect(mut self) {
        let mut bytes = 0x2560_9513u32.to_be_bytes().to_vec();
        bytes.extend([0, 0, 0, 2]);
        bytes.extend([0; 20]);
        // The server may be gone already.
        let _ = self.stream.write_all(&bytes);
    }
}

fn be32(bytes: &[u8]) -> u32 {
    let value = bytes.iter().fold(0u64, |v, b| v << 8 | u64::from(*b));
    u32::try_from(value).unwrap_or(u32::MAX)
}

fn read<const N: usize>(stream: &mut UnixStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}
