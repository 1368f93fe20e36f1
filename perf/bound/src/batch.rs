//! What one SENDMSG sends: heads that are copied, and blocks that are not.

use crate::block::Block;

/// Pieces of one SENDMSG; the kernel refuses more than 1024.
const PIECES_MAX: usize = 512;

#[derive(Debug)]
enum Piece {
    /// So many bytes of the heads.
    Head(usize),
    Payload(Block),
}

pub(crate) struct Batch {
    heads: Vec<u8>,
    pieces: Vec<Piece>,
    bytes: usize,
    iovecs: Vec<libc::iovec>,
    /// Where the kernel finds it, wherever the batch is moved.
    message: Box<libc::msghdr>,
}

impl Default for Batch {
    fn default() -> Self {
        Self {
            heads: Vec::new(),
            pieces: Vec::new(),
            bytes: 0,
            iovecs: Vec::new(),
            message: Box::new(libc::msghdr {
                msg_name: std::ptr::null_mut(),
                msg_namelen: 0,
                msg_iov: std::ptr::null_mut(),
                msg_iovlen: 0,
                msg_control: std::ptr::null_mut(),
                msg_controllen: 0,
                msg_flags: 0,
            }),
        }
    }
}

impl std::fmt::Debug for Batch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (bytes, pieces) = (self.bytes, self.pieces.len());
        write!(f, "Batch {{ bytes: {bytes}, pieces: {pieces} }}")
    }
}

impl Batch {
    pub(crate) fn is_full(&self) -> bool {
        self.pieces.len() >= PIECES_MAX
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn head(&mut self, head: &[u8]) {
        self.heads.extend_from_slice(head);
        self.bytes += head.len();
        match self.pieces.last_mut() {
            Some(Piece::Head(bytes)) => *bytes += head.len(),
            _ => self.pieces.push(Piece::Head(head.len())),
        }
    }

    pub(crate) fn payload(&mut self, block: Block) {
        self.bytes += block.bytes().len();
        self.pieces.push(Piece::Payload(block));
    }

    pub(crate) fn clear(&mut self) {
        self.heads.clear();
        self.pieces.clear();
        self.bytes = 0;
    }

    /// All of it; valid until the batch is changed or dropped. It may be moved.
    pub(crate) fn message(&mut self) -> *const libc::msghdr {
        self.iovecs.clear();
        let mut at = 0;
        for piece in &self.pieces {
            let bytes = match piece {
                Piece::Head(len) => {
                    at += len;
                    &self.heads[at - len..at]
                }
                Piece::Payload(block) => block.bytes(),
            };
            self.iovecs.push(libc::iovec {
                iov_base: bytes.as_ptr().cast_mut().cast(),
                iov_len: bytes.len(),
            });
        }
        self.message.msg_iov = self.iovecs.as_mut_ptr();
        self.message.msg_iovlen = self.iovecs.len();
        &raw const *self.message
    }
}
