//! A WRITE request of 4 KiB encoded and decoded.

use std::hint::black_box;
use ukai_proto::decode::VecDecoder;
use ukai_proto::limits::SECTOR_BYTES;
use ukai_proto::message::crc_table;
use ukai_proto::{Flags, Frame, Header, Opcode};

pub(crate) fn both_ways(count: u32) {
    let mut decoder = VecDecoder::default();
    let mut frames = Vec::new();
    let data = vec![7; SECTOR_BYTES];
    for tag in 0..count {
        let header = Header {
            count: 1,
            flags: Flags::DATA,
            ..Header::request(Opcode::Write, tag.into())
        };
        let frame = Frame::new(
            header,
            crc_table(0, std::iter::once(tag)),
            Some(data.clone()),
        );
        let bytes = black_box(frame.to_bytes());
        decoder.feed(&bytes, &mut frames).expect("well-formed");
        assert_eq!(frames.len(), 1);
        black_box(frames.pop());
    }
}
