//! Negotiation: greeting, options, and the step into transmission.

use super::{BLOCK_BYTES, Export, Negotiated, PAYLOAD_BYTES_MAX};

const NBDMAGIC: u64 = 0x4e42_444d_4147_4943;
const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

const FLAG_FIXED_NEWSTYLE: u16 = 1;
const FLAG_NO_ZEROES: u16 = 2;

const OPT_EXPORT_NAME: u32 = 1;
const OPT_ABORT: u32 = 2;
const OPT_LIST: u32 = 3;
const OPT_STARTTLS: u32 = 5;
const OPT_INFO: u32 = 6;
const OPT_GO: u32 = 7;
const OPT_STRUCTURED_REPLY: u32 = 8;

const REP_ACK: u32 = 1;
const REP_SERVER: u32 = 2;
const REP_INFO: u32 = 3;
const REP_ERR_UNSUP: u32 = 1 << 31 | 1;
const REP_ERR_POLICY: u32 = 1 << 31 | 2;
const REP_ERR_INVALID: u32 = 1 << 31 | 3;
const REP_ERR_UNKNOWN: u32 = 1 << 31 | 6;
const REP_ERR_TOO_BIG: u32 = 1 << 31 | 9;

const INFO_EXPORT: u16 = 0;
const INFO_NAME: u16 = 1;
const INFO_BLOCK_SIZE: u16 = 3;

/// Has flags, flush, FUA, trim, write-zeroes, DF, multi-conn.
const TRANSMISSION_FLAGS: u16 = 1 | 1 << 2 | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8;

/// Longest option: a 4 KiB name and 2000 information requests. Longer ones are read past and
/// refused, up to [`OPTION_SKIP_MAX`].
const OPTION_BYTES_MAX: u32 = 8 << 10;
/// Longer options than this are an attack or no NBD at all.
const OPTION_SKIP_MAX: u32 = 1 << 20;
/// Options of one client: real ones need about five.
const OPTIONS_MAX: u32 = 100;
const OPTION_HEAD_BYTES: usize = 16;

/// The client does not follow the protocol, or gave up: close the connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HandshakeError {
    /// Client flags that were not offered.
    #[error("client flags {0:#x} were not offered")]
    ClientFlags(u32),
    /// Not an option.
    #[error("option magic {0:#x}")]
    Magic(u64),
    /// Too much data.
    #[error("option {option} with {bytes} bytes of data")]
    TooLong {
        /// Which.
        option: u32,
        /// Its length.
        bytes: u32,
    },
    /// Too many options.
    #[error("more than {OPTIONS_MAX} options")]
    TooMany,
    /// EXPORT_NAME cannot be refused otherwise.
    #[error("no such export")]
    UnknownExport,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    ClientFlags,
    Options,
    /// So many bytes of an option that was too long are to be read past.
    Skip(u32),
    Transmission,
    Aborted,
}

/// How far the negotiation is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// More bytes are needed.
    Going,
    /// Requests follow.
    Transmission(Negotiated),
    /// The client said goodbye: send what is queued, then close.
    Aborted,
}

/// The server side of one negotiation.
#[derive(Clone, Debug)]
pub struct Handshake {
    export: Export,
    state: State,
    no_zeroes: bool,
    negotiated: Negotiated,
    options: u32,
}

impl Handshake {
    /// A new client: `out` gets the greeting.
    #[must_use]
    pub fn new(export: Export, out: &mut Vec<u8>) -> Self {
        out.extend(NBDMAGIC.to_be_bytes());
        out.extend(IHAVEOPT.to_be_bytes());
        out.extend((FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes());
        Self {
            export,
            state: State::ClientFlags,
            no_zeroes: false,
            negotiated: Negotiated::default(),
            options: 0,
        }
    }

    /// How far it is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        match self.state {
            State::Transmission => Progress::Transmission(self.negotiated),
            State::Aborted => Progress::Aborted,
            State::ClientFlags | State::Options | State::Skip(_) => Progress::Going,
        }
    }

    /// Takes bytes from the front of `bytes`, returns how many; the rest is to be offered again with
    /// more behind it. Replies are appended to `out`.
    pub fn feed(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<usize, HandshakeError> {
        let mut taken = 0;
        loop {
            let rest = &bytes[taken..];
            taken += match self.state {
                State::ClientFlags => {
                    let Some(raw) = rest.first_chunk::<4>() else {
                        return Ok(taken);
                    };
                    let flags = u32::from_be_bytes(*raw);
                    if flags & !u32::from(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES) != 0 {
                        return Err(HandshakeError::ClientFlags(flags));
                    }
                    self.no_zeroes = flags & u32::from(FLAG_NO_ZEROES) != 0;
                    self.state = State::Options;
                    4
                }
                State::Options => {
                    let Some(n) = self.option(rest, out)? else {
                        return Ok(taken);
                    };
                    n
                }
                State::Skip(left) => {
                    let n = rest.len().min(left as usize);
                    #[allow(clippy::cast_possible_truncation)] // at most `left`
                    let left = left - n as u32;
                    self.state = if left == 0 {
                        State::Options
                    } else {
                        State::Skip(left)
                    };
                    if n == 0 && left > 0 {
                        return Ok(taken);
                    }
                    n
                }
                State::Transmission | State::Aborted => return Ok(taken),
            };
        }
    }

    /// One option, if it is all there.
    fn option(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<Option<usize>, HandshakeError> {
        let Some((head, rest)) = bytes.split_first_chunk::<OPTION_HEAD_BYTES>() else {
            return Ok(None);
        };
        let magic = be64(&head[..8]);
        if magic != IHAVEOPT {
            return Err(HandshakeError::Magic(magic));
        }
        let (option, len) = (be32(&head[8..12]), be32(&head[12..]));
        if len > OPTION_SKIP_MAX || (len > OPTION_BYTES_MAX && option == OPT_EXPORT_NAME) {
            return Err(HandshakeError::TooLong { option, bytes: len });
        }
        if len <= OPTION_BYTES_MAX && rest.len() < len as usize {
            return Ok(None);
        }
        self.options += 1;
        if self.options > OPTIONS_MAX {
            return Err(HandshakeError::TooMany);
        }
        if len > OPTION_BYTES_MAX {
            reply(out, option, REP_ERR_TOO_BIG, b"option too long");
            self.state = State::Skip(len);
            return Ok(Some(OPTION_HEAD_BYTES));
        }
        let data = &rest[..len as usize];
        match option {
            OPT_EXPORT_NAME => self.export_name(data, out)?,
            OPT_ABORT => {
                reply(out, option, REP_ACK, &[]);
                self.state = State::Aborted;
            }
            OPT_LIST if data.is_empty() => {
                let name = self.export.name.as_bytes();
                #[allow(clippy::cast_possible_truncation)] // volume names have at most 64 bytes
                let mut entry = (name.len() as u32).to_be_bytes().to_vec();
                entry.extend(name);
                reply(out, option, REP_SERVER, &entry);
                reply(out, option, REP_ACK, &[]);
            }
            OPT_STRUCTURED_REPLY if data.is_empty() => {
                self.negotiated.structured = true;
                reply(out, option, REP_ACK, &[]);
            }
            OPT_LIST | OPT_STRUCTURED_REPLY => {
                reply(out, option, REP_ERR_INVALID, b"this option takes no data");
            }
            OPT_STARTTLS => reply(out, option, REP_ERR_POLICY, b"this server has no TLS"),
            OPT_INFO | OPT_GO => self.info(option, data, out),
            _ => reply(out, option, REP_ERR_UNSUP, b"unknown option"),
        }
        Ok(Some(OPTION_HEAD_BYTES + data.len()))
    }

    fn is_export(&self, name: &[u8]) -> bool {
        name.is_empty() || name == self.export.name.as_bytes()
    }

    fn export_name(&mut self, name: &[u8], out: &mut Vec<u8>) -> Result<(), HandshakeError> {
        if !self.is_export(name) {
            return Err(HandshakeError::UnknownExport);
        }
        out.extend(self.export.size_bytes.to_be_bytes());
        out.extend(TRANSMISSION_FLAGS.to_be_bytes());
        if !self.no_zeroes {
            out.extend([0; 124]);
        }
        self.state = State::Transmission;
        Ok(())
    }

    fn info(&mut self, option: u32, data: &[u8], out: &mut Vec<u8>) {
        let Some((name, wanted)) = parse_info(data) else {
            return reply(
                out,
                option,
                REP_ERR_INVALID,
                b"malformed information request",
            );
        };
        if !self.is_export(name) {
            return reply(out, option, REP_ERR_UNKNOWN, b"no such export");
        }
        let mut info = INFO_EXPORT.to_be_bytes().to_vec();
        info.extend(self.export.size_bytes.to_be_bytes());
        info.extend(TRANSMISSION_FLAGS.to_be_bytes());
        reply(out, option, REP_INFO, &info);
        if wanted.clone().any(|kind| kind == INFO_NAME) {
            let mut info = INFO_NAME.to_be_bytes().to_vec();
            info.extend(self.export.name.as_bytes());
            reply(out, option, REP_INFO, &info);
        }
        // Told also if it was not asked for: clients that know it do better with it.
        let mut info = INFO_BLOCK_SIZE.to_be_bytes().to_vec();
        for size in [BLOCK_BYTES, BLOCK_BYTES, PAYLOAD_BYTES_MAX] {
            info.extend(size.to_be_bytes());
        }
        reply(out, option, REP_INFO, &info);
        reply(out, option, REP_ACK, &[]);
        if option == OPT_GO {
            self.state = State::Transmission;
        }
    }
}

/// Name and wanted information types of INFO and GO.
fn parse_info(data: &[u8]) -> Option<(&[u8], impl Iterator<Item = u16> + Clone + '_)> {
    let (len, rest) = data.split_first_chunk::<4>()?;
    let (name, rest) = rest.split_at_checked(u32::from_be_bytes(*len) as usize)?;
    let (count, wanted) = rest.split_first_chunk::<2>()?;
    let (kinds, tail) = wanted.as_chunks::<2>();
    let valid = tail.is_empty() && kinds.len() == usize::from(u16::from_be_bytes(*count));
    valid.then(|| (name, kinds.iter().map(|kind| u16::from_be_bytes(*kind))))
}

fn reply(out: &mut Vec<u8>, option: u32, kind: u32, data: &[u8]) {
    out.extend(REPLY_MAGIC.to_be_bytes());
    out.extend(option.to_be_bytes());
    out.extend(kind.to_be_bytes());
    #[allow(clippy::cast_possible_truncation)] // our own short texts and records
    out.extend((data.len() as u32).to_be_bytes());
    out.extend(data);
}

fn be32(bytes: &[u8]) -> u32 {
    bytes
        .iter()
        .fold(0, |value, byte| value << 8 | u32::from(*byte))
}

fn be64(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0, |value, byte| value << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn export() -> Export {
        Export {
            name: "vol".into(),
            size_bytes: 1 << 30,
        }
    }

    fn option(option: u32, data: &[u8]) -> Vec<u8> {
        let mut out = IHAVEOPT.to_be_bytes().to_vec();
        out.extend(option.to_be_bytes());
        out.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
        out.extend(data);
        out
    }

    fn go(name: &str, wanted: &[u16]) -> Vec<u8> {
        let mut data = u32::try_from(name.len()).unwrap().to_be_bytes().to_vec();
        data.extend(name.as_bytes());
        data.extend(u16::try_from(wanted.len()).unwrap().to_be_bytes());
        wanted
            .iter()
            .for_each(|kind| data.extend(kind.to_be_bytes()));
        data
    }

    /// Types of the option replies in `out`.
    fn kinds(mut out: &[u8]) -> Vec<u32> {
        let mut kinds = Vec::new();
        while let Some((head, rest)) = out.split_first_chunk::<20>() {
            assert_eq!(be64(&head[..8]), REPLY_MAGIC);
            kinds.push(be32(&head[12..16]));
            out = &rest[be32(&head[16..]) as usize..];
        }
        kinds
    }

    fn run(input: &[u8]) -> (Handshake, Vec<u8>, Result<usize, HandshakeError>) {
        let mut handshake = Handshake::new(export(), &mut Vec::new());
        let mut out = Vec::new();
        let mut bytes = 3u32.to_be_bytes().to_vec();
        bytes.extend(input);
        let result = handshake.feed(&bytes, &mut out);
        (handshake, out, result)
    }

    #[test]
    fn go_tells_size_name_and_blocks_then_transmits() {
        let input = [
            option(OPT_STRUCTURED_REPLY, &[]),
            option(OPT_GO, &go("vol", &[1, 3])),
        ]
        .concat();
        let (handshake, out, _) = run(&input);
        assert_eq!(
            kinds(&out),
            [REP_ACK, REP_INFO, REP_INFO, REP_INFO, REP_ACK]
        );
        let negotiated = Negotiated { structured: true };
        assert_eq!(handshake.progress(), Progress::Transmission(negotiated));
    }

    #[test]
    fn an_unknown_export_is_refused_and_negotiation_goes_on() {
        let input = [
            option(OPT_GO, &go("other", &[])),
            option(OPT_INFO, &go("", &[])),
        ]
        .concat();
        let (handshake, out, _) = run(&input);
        assert_eq!(kinds(&out), [REP_ERR_UNKNOWN, REP_INFO, REP_INFO, REP_ACK]);
        assert_eq!(handshake.progress(), Progress::Going);
        let (_, _, result) = run(&option(OPT_EXPORT_NAME, b"other"));
        assert_eq!(result, Err(HandshakeError::UnknownExport));
    }

    #[test]
    fn export_name_has_no_reply_header_and_pads_unless_agreed() {
        let (_, out, _) = run(&option(OPT_EXPORT_NAME, b"vol"));
        assert_eq!(out.len(), 10);
        let mut handshake = Handshake::new(export(), &mut Vec::new());
        let bytes = [1u32.to_be_bytes().to_vec(), option(OPT_EXPORT_NAME, b"")].concat();
        let mut out = Vec::new();
        handshake.feed(&bytes, &mut out).unwrap();
        assert_eq!(out.len(), 134);
    }

    #[test]
    fn list_abort_tls_and_unknown_options() {
        let input = [
            option(OPT_STARTTLS, &[]),
            option(OPT_LIST, &[]),
            option(OPT_LIST, b"x"),
            option(99, b"whatever"),
            option(OPT_GO, b"junk"),
            option(OPT_ABORT, &[]),
        ];
        let (handshake, out, _) = run(&input.concat());
        let want = [
            REP_ERR_POLICY,
            REP_SERVER,
            REP_ACK,
            REP_ERR_INVALID,
            REP_ERR_UNSUP,
            REP_ERR_INVALID,
            REP_ACK,
        ];
        assert_eq!(kinds(&out), want);
        assert_eq!(handshake.progress(), Progress::Aborted);
    }

    #[test]
    fn long_options_are_read_past_and_very_long_ones_end_it() {
        let input = [option(99, &vec![0; 100_000]), option(OPT_LIST, &[])].concat();
        let (_, out, _) = run(&input);
        assert_eq!(kinds(&out), [REP_ERR_TOO_BIG, REP_SERVER, REP_ACK]);
        let mut head = option(99, &[]);
        head[12..].copy_from_slice(&u32::MAX.to_be_bytes());
        let (_, _, result) = run(&head);
        assert!(matches!(result, Err(HandshakeError::TooLong { .. })));
    }

    #[test]
    fn bad_magic_flags_and_endless_options_end_it() {
        assert!(matches!(run(&[7; 16]).2, Err(HandshakeError::Magic(_))));
        let mut handshake = Handshake::new(export(), &mut Vec::new());
        let result = handshake.feed(&u32::MAX.to_be_bytes(), &mut Vec::new());
        assert!(matches!(result, Err(HandshakeError::ClientFlags(_))));
        let input = option(99, &[]).repeat(200);
        assert_eq!(run(&input).2, Err(HandshakeError::TooMany));
    }
}
