//! Replies of the transmission phase: heads to be sent before the payload.

use super::NbdError;

const SIMPLE_MAGIC: u32 = 0x6744_6698;
const STRUCTURED_MAGIC: u32 = 0x668e_33ef;
const FLAG_DONE: u16 = 1;
const TYPE_OFFSET_DATA: u16 = 1;
const TYPE_ERROR: u16 = 1 << 15 | 1;

/// Answer without payload to anything but a READ.
pub fn plain(cookie: u64, result: Result<(), NbdError>, mut put: impl FnMut(&[u8])) {
    let error = result.err().map_or(0, |error| error as u32);
    put(&SIMPLE_MAGIC.to_be_bytes());
    put(&error.to_be_bytes());
    put(&cookie.to_be_bytes());
}

/// Head of the answer to a READ that succeeded; `length` bytes of data follow.
pub fn data(structured: bool, cookie: u64, offset: u64, length: u32, mut put: impl FnMut(&[u8])) {
    if structured {
        chunk(cookie, TYPE_OFFSET_DATA, length + 8, &mut put);
        put(&offset.to_be_bytes());
    } else {
        plain(cookie, Ok(()), put);
    }
}

/// Answer to a READ that failed.
pub fn read_error(structured: bool, cookie: u64, error: NbdError, mut put: impl FnMut(&[u8])) {
    if structured {
        let text = error.to_string();
        #[allow(clippy::cast_possible_truncation)] // our own short texts
        let len = text.len() as u16;
        chunk(cookie, TYPE_ERROR, 6 + u32::from(len), &mut put);
        put(&(error as u32).to_be_bytes());
        put(&len.to_be_bytes());
        put(text.as_bytes());
    } else {
        plain(cookie, Err(error), put);
    }
}

fn chunk(cookie: u64, kind: u16, length: u32, put: &mut impl FnMut(&[u8])) {
    put(&STRUCTURED_MAGIC.to_be_bytes());
    put(&FLAG_DONE.to_be_bytes());
    put(&kind.to_be_bytes());
    put(&cookie.to_be_bytes());
    put(&length.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_those_of_the_specification() {
        let mut out: Vec<u8> = Vec::new();
        plain(5, Err(NbdError::NoSpace), |b| out.extend(b));
        assert_eq!(
            out,
            [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 28, 0, 0, 0, 0, 0, 0, 0, 5]
        );
        out.clear();
        data(true, 5, 4096, 512, |b| out.extend(b));
        assert_eq!(out[..8], [0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 1]);
        assert_eq!(out[16..], [0, 0, 2, 8, 0, 0, 0, 0, 0, 0, 0x10, 0]);
        out.clear();
        data(false, 5, 4096, 512, |b| out.extend(b));
        assert_eq!(out.len(), 16);
        out.clear();
        read_error(true, 5, NbdError::Io, |b| out.extend(b));
        assert_eq!(out[6..8], [0x80, 1]);
        assert_eq!(out.len(), 20 + 6 + "input/output error".len());
    }
}
