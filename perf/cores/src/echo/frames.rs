//! A request or an answer: a head of 64 bytes, as UKAI's, and the payload that it tells of.

/// Bytes of a head.
pub(crate) const HEAD_BYTES: usize = 64;
/// Most payload of a request or an answer.
pub(crate) const PAYLOAD_BYTES_MAX: u32 = 1 << 20;

/// What a request says; the answer repeats it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Head {
    /// Which request of the connection.
    pub(crate) tag: u32,
    /// Payload of the request, bytes.
    pub(crate) sent: u32,
    /// Payload of the answer, bytes.
    pub(crate) wanted: u32,
}

/// A payload that is too large: the peer is no echo.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct BadHead(Head);

impl From<BadHead> for std::io::Error {
    fn from(bad: BadHead) -> Self {
        Self::other(format!("no head of an echo: {:?}", bad.0))
    }
}

impl Head {
    fn encode(self, out: &mut [u8]) {
        for (at, word) in [self.tag, self.sent, self.wanted].into_iter().enumerate() {
            out[at * 4..][..4].copy_from_slice(&word.to_le_bytes());
        }
    }

    fn decode(bytes: &[u8]) -> Result<Self, BadHead> {
        let word = |at: usize| {
            let mut word = [0; 4];
            word.copy_from_slice(&bytes[at * 4..][..4]);
            u32::from_le_bytes(word)
        };
        let head = Self {
            tag: word(0),
            sent: word(1),
            wanted: word(2),
        };
        if head.sent.max(head.wanted) > PAYLOAD_BYTES_MAX {
            return Err(BadHead(head));
        }
        Ok(head)
    }
}

/// Which payload follows the head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Request,
    Answer,
}

impl Kind {
    fn payload(self, head: Head) -> usize {
        match self {
            Self::Request => head.sent as usize,
            Self::Answer => head.wanted as usize,
        }
    }
}

/// Finds the heads in what arrives, and drops the payload.
#[derive(Debug)]
pub(crate) struct Cutter {
    kind: Kind,
    head: [u8; HEAD_BYTES],
    filled: usize,
    /// Of the payload, still to come.
    missing: usize,
}

impl Cutter {
    pub(crate) fn new(kind: Kind) -> Self {
        Self {
            kind,
            head: [0; HEAD_BYTES],
            filled: 0,
            missing: 0,
        }
    }

    /// Tells of each one whose last byte is among these.
    pub(crate) fn feed(
        &mut self,
        mut bytes: &[u8],
        mut whole: impl FnMut(Head),
    ) -> Result<(), BadHead> {
        while !bytes.is_empty() {
            if self.filled < HEAD_BYTES {
                let here = bytes.len().min(HEAD_BYTES - self.filled);
                self.head[self.filled..][..here].copy_from_slice(&bytes[..here]);
                self.filled += here;
                bytes = &bytes[here..];
                if self.filled < HEAD_BYTES {
                    break;
                }
                self.missing = self.kind.payload(Head::decode(&self.head)?);
            }
            let here = bytes.len().min(self.missing);
            self.missing -= here;
            bytes = &bytes[here..];
            if self.missing == 0 {
                whole(Head::decode(&self.head)?);
                self.filled = 0;
            }
        }
        Ok(())
    }
}

/// What is to be sent by one call. Only heads are written into it: the payload is what lay there before.
#[derive(Debug)]
pub(crate) struct Batch {
    kind: Kind,
    memory: Vec<u8>,
    used: usize,
}

impl Batch {
    pub(crate) fn new(kind: Kind) -> Self {
        Self {
            kind,
            memory: Vec::new(),
            used: 0,
        }
    }

    pub(crate) fn push(&mut self, head: Head) {
        let end = self.used + HEAD_BYTES + self.kind.payload(head);
        if self.memory.len() < end {
            self.memory.resize(end, 0xa5);
        }
        head.encode(&mut self.memory[self.used..]);
        self.used = end;
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.memory[..self.used]
    }

    pub(crate) fn clear(&mut self) {
        self.used = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(tag: u32, sent: u32, wanted: u32) -> Head {
        Head { tag, sent, wanted }
    }

    #[test]
    fn what_a_batch_holds_comes_out_however_it_is_cut() {
        let heads = [head(1, 0, 4096), head(2, 4096, 0), head(3, 0, 0)];
        for kind in [Kind::Request, Kind::Answer] {
            let mut batch = Batch::new(kind);
            heads.into_iter().for_each(|head| batch.push(head));
            assert_eq!(batch.bytes().len(), 3 * HEAD_BYTES + 4096);
            for piece in [1, 63, 64, 65, 4160, 10_000] {
                let (mut cutter, mut found) = (Cutter::new(kind), Vec::new());
                for bytes in batch.bytes().chunks(piece) {
                    cutter.feed(bytes, |head| found.push(head)).expect("heads");
                }
                assert_eq!(found, heads, "{kind:?} in pieces of {piece}");
            }
            batch.clear();
            assert!(batch.bytes().is_empty());
        }
    }

    #[test]
    fn one_is_told_of_with_its_last_byte() {
        let mut batch = Batch::new(Kind::Request);
        batch.push(head(1, 100, 0));
        let (last, before) = batch.bytes().split_last().expect("164 bytes");
        let (mut cutter, mut found) = (Cutter::new(Kind::Request), 0);
        cutter.feed(before, |_| found += 1).expect("a head");
        assert_eq!(found, 0);
        cutter.feed(&[*last], |_| found += 1).expect("its end");
        assert_eq!(found, 1);
    }

    #[test]
    fn a_payload_out_of_bounds_is_refused() {
        let mut batch = Batch::new(Kind::Request);
        batch.push(head(1, 0, PAYLOAD_BYTES_MAX + 1));
        let fed = Cutter::new(Kind::Request).feed(batch.bytes(), |_| panic!("not whole"));
        assert!(fed.is_err());
    }
}
