//! `header`: the fixed header of a frame.

use crate::alloc::measured;
use crate::input::Input;
use ukai_proto::crc::crc32c;
use ukai_proto::header::{HeaderError, MAGIC, PROTOCOL};
use ukai_proto::limits::{FRAME_BYTES_MAX, HEADER_BYTES};
use ukai_proto::{Header, Status};

/// How much of the header is made right, so that what comes after it gets its turn.
const FIX_NOTHING: u8 = 0;
const FIX_CRC: u8 = 1;

pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let fix = input.below(3);
    let mut raw: [u8; HEADER_BYTES] = input.array();
    if fix > FIX_CRC {
        raw[..2].copy_from_slice(&MAGIC);
        raw[2] = PROTOCOL;
    }
    if fix > FIX_NOTHING {
        let crc = crc32c(&raw[..HEADER_BYTES - 4]);
        raw[HEADER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
    }
    let (result, used) = measured(|| Header::decode(&raw));
    assert_eq!(used.total, 0, "a header is judged without memory");
    match result {
        Ok(header) => {
            assert_eq!(header.encode(), raw, "not what was read: {header:?}");
            assert!(header.frame_bytes() <= FRAME_BYTES_MAX, "{header:?}");
            let reply = header.reply(Status::Busy);
            assert_eq!(Header::decode(&reply.encode()), Ok(reply));
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            let excused = match error {
                HeaderError::Magic(_) | HeaderError::Protocol(_) => fix > FIX_CRC,
                HeaderError::Crc { .. } => fix > FIX_NOTHING,
                HeaderError::Opcode(_) | HeaderError::Bits { .. } | HeaderError::Length { .. } => {
                    false
                }
            };
            assert!(!excused, "{error:?} of what was made right");
        }
    }
}
