//! One client's byte stream: negotiation, then requests.

use super::handshake::{Handshake, HandshakeError, Progress};
use super::request::{REQUEST_BYTES, Request};
use super::{Export, Negotiated, PAYLOAD_BYTES_MAX};

/// The stream cannot be followed any more: close the connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SessionError {
    /// In the negotiation.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// Something else where a request should begin.
    #[error("request without its magic")]
    Magic,
    /// A WRITE with more payload than any client may send.
    #[error("a write of {0} bytes; at most {PAYLOAD_BYTES_MAX} are taken")]
    Payload(u32),
}

/// What the stream brought.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// A request; its [`Request::payload_bytes`] follow in the stream and are the caller's to take.
    Request(Request),
    /// The client ended the negotiation.
    Ended,
}

/// See the module docs.
#[derive(Clone, Debug)]
pub struct Session {
    handshake: Handshake,
}

impl Session {
    /// A new client: `out` gets the greeting.
    #[must_use]
    pub fn new(export: Export, out: &mut Vec<u8>) -> Self {
        Self {
            handshake: Handshake::new(export, out),
        }
    }

    /// What was agreed; meaningful once a request has come.
    #[must_use]
    pub fn negotiated(&self) -> Negotiated {
        match self.handshake.progress() {
            Progress::Transmission(negotiated) => negotiated,
            Progress::Going | Progress::Aborted => Negotiated::default(),
        }
    }

    /// Takes bytes from the front of `bytes`, returns how many, and what they meant. No event: more
    /// bytes are needed. Replies of the negotiation are appended to `out`.
    pub fn next(
        &mut self,
        bytes: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(usize, Option<Event>), SessionError> {
        let taken = self.handshake.feed(bytes, out)?;
        match self.handshake.progress() {
            Progress::Going => Ok((taken, None)),
            Progress::Aborted => Ok((taken, Some(Event::Ended))),
            Progress::Transmission(_) => {
                let Some(raw) = bytes[taken..].first_chunk::<REQUEST_BYTES>() else {
                    return Ok((taken, None));
                };
                let request = Request::decode(raw).ok_or(SessionError::Magic)?;
                if request.payload_bytes() > PAYLOAD_BYTES_MAX {
                    return Err(SessionError::Payload(request.payload_bytes()));
                }
                Ok((taken + REQUEST_BYTES, Some(Event::Request(request))))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn export() -> Export {
        Export {
            name: "vol".into(),
            size_bytes: 1 << 30,
        }
    }

    /// Everything a stream leads to, when it arrives in pieces of the given sizes.
    fn run(bytes: &[u8], cuts: &[usize]) -> (Vec<u8>, Vec<Event>, Option<SessionError>) {
        let (mut out, mut events) = (Vec::new(), Vec::new());
        let mut session = Session::new(export(), &mut out);
        let (mut at, mut end, mut skip) = (0, 0, 0usize);
        for cut in cuts.iter().cycle() {
            if end == bytes.len() {
                break;
            }
            end = (end + cut).min(bytes.len());
            loop {
                let n = skip.min(end - at);
                (skip, at) = (skip - n, at + n);
                if skip > 0 {
                    break;
                }
                match session.next(&bytes[at..end], &mut out) {
                    Err(error) => return (out, events, Some(error)),
                    Ok((taken, event)) => {
                        at += taken;
                        events.extend(event);
                        match event {
                            None => break,
                            Some(Event::Ended) => return (out, events, None),
                            Some(Event::Request(r)) => skip = r.payload_bytes() as usize,
                        }
                    }
                }
            }
        }
        (out, events, None)
    }

    fn stream(requests: &[(u16, u32)]) -> Vec<u8> {
        let mut bytes = 3u32.to_be_bytes().to_vec();
        for (option, data) in [(8u32, vec![]), (99, vec![1; 40]), (7, vec![0; 6])] {
            bytes.extend(b"IHAVEOPT");
            bytes.extend(option.to_be_bytes());
            bytes.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
            bytes.extend(data);
        }
        for (cookie, (command, length)) in (0..).zip(requests) {
            let request = Request {
                flags: 0,
                command: *command,
                cookie,
                offset: 0,
                length: *length,
            };
            bytes.extend(request.encode());
            bytes.extend(vec![9; request.payload_bytes() as usize]);
        }
        bytes
    }

    proptest! {
        #[test]
        fn any_cut_of_the_stream_means_the_same(
            requests in prop::collection::vec((0u16..8, 0u32..9000), 0..8),
            cuts in prop::collection::vec(1usize..3000, 1..20),
        ) {
            let bytes = stream(&requests);
            let whole = run(&bytes, &[bytes.len()]);
            prop_assert_eq!(whole.1.len(), requests.len());
            prop_assert_eq!(whole.2, None);
            prop_assert_eq!(run(&bytes, &cuts), whole);
        }

        #[test]
        fn arbitrary_bytes_never_panic(
            tail in prop::collection::vec(any::<u8>(), 0..600), keep in 0usize..150,
        ) {
            let mut bytes = stream(&[(0, 4096)]);
            bytes.truncate(keep);
            bytes.extend(tail);
            run(&bytes, &[64]);
        }
    }

    #[test]
    fn a_huge_write_and_a_wrong_magic_end_the_session() {
        let mut bytes = stream(&[]);
        let request = Request {
            flags: 0,
            command: 1,
            cookie: 0,
            offset: 0,
            length: u32::MAX,
        };
        bytes.extend(request.encode());
        assert_eq!(
            run(&bytes, &[bytes.len()]).2,
            Some(SessionError::Payload(u32::MAX))
        );
        let mut bytes = stream(&[]);
        bytes.extend([0; REQUEST_BYTES]);
        assert_eq!(run(&bytes, &[bytes.len()]).2, Some(SessionError::Magic));
    }
}
