//! Frames that a script describes.

use crate::input::Input;
use ukai_proto::limits::{SECTOR_BYTES, SEQ_MAX};
use ukai_proto::{
    ChunkIndex, Flags, Frame, Generation, Header, Opcode, SectorInChunk, Seq, Status, Token,
    VolumeId,
};

/// All operations.
pub(crate) fn opcode(input: &mut Input<'_>) -> Opcode {
    let byte = input.below(17) + 1;
    Opcode::from_byte(byte).unwrap_or(Opcode::Ping)
}

/// Most often Ok.
pub(crate) fn status(input: &mut Input<'_>) -> Status {
    Status::from_byte(input.u8()).unwrap_or(Status::Ok)
}

/// Any header that the decoder lets pass, without lengths.
pub(crate) fn any_header(input: &mut Input<'_>) -> Header {
    let opcode = opcode(input);
    let flags = Flags(input.u8() & 127 & !Flags::DATA.0);
    let is_reply = flags.has(Flags::REPLY);
    Header {
        flags,
        status: if is_reply { status(input) } else { Status::Ok },
        volume: VolumeId([input.u8(); 16]),
        chunk: ChunkIndex(input.u32()),
        sector: SectorInChunk(input.u16()),
        count: input.u16(),
        token: Token(input.u32()),
        generation: Generation(input.u32()),
        seq: Seq(input.u64() & SEQ_MAX),
        ..Header::request(opcode, input.u64())
    }
}

/// Any well-formed frame of moderate size.
pub(crate) fn any_frame(input: &mut Input<'_>) -> Frame<Vec<u8>> {
    let mut header = any_header(input);
    let mut aux = input.short().to_vec();
    if input.rarely(8) {
        aux.resize(usize::from(input.u16()), 0x5a);
    }
    let may_have_data = header.flags.has(Flags::REPLY) || header.opcode.request_has_data();
    let sectors = input.below(5);
    let data = (may_have_data && sectors > 0).then(|| {
        let sectors = if input.rarely(32) {
            256
        } else {
            sectors.into()
        };
        header.count = sectors;
        vec![input.u8(); usize::from(sectors) * SECTOR_BYTES]
    });
    Frame::new(header, aux, data)
}
