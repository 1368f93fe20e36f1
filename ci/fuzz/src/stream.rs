//! `stream`: the decoder. Good frames, damaged ones and junk, cut anywhere: the same bytes give the same
//! frames and the same error however they arrive, and the frames before any damage are those that were
//! sent.

use crate::alloc::measured;
use crate::frames::any_frame;
use crate::input::Input;
use ukai_proto::Frame;
use ukai_proto::decode::{DecodeError, Decoder, Need, VecDecoder};
use ukai_proto::limits::{AUX_BYTES_MAX, FRAME_DATA_BYTES_MAX, HEADER_BYTES};

type Outcome = (Vec<Frame<Vec<u8>>>, Option<DecodeError>);

/// Frames in one script: 1 MiB of payload each at most.
const FRAMES_MAX: usize = 12;

pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let cuts: Vec<usize> = (0..input.below(16) + 1)
        .map(|_| usize::from(input.u16()) + 1)
        .collect();
    let (mut bytes, mut good, mut intact) = (Vec::new(), Vec::new(), true);
    for _ in 0..FRAMES_MAX {
        if input.is_empty() {
            break;
        }
        match input.below(8) {
            0 => {
                bytes.extend_from_slice(input.short());
                intact = false;
            }
            1 => {
                let start = bytes.len();
                bytes.extend_from_slice(&any_frame(&mut input).to_bytes());
                let at = start + input.u32() as usize % (bytes.len() - start);
                bytes[at] ^= input.u8();
                intact = false;
            }
            _ => {
                let frame = any_frame(&mut input);
                bytes.extend_from_slice(&frame.to_bytes());
                if intact {
                    good.push(frame);
                }
            }
        }
    }
    let whole = decode(&bytes, &[bytes.len().max(1)]);
    assert_eq!(decode(&bytes, &cuts), whole, "cut at {cuts:?}");
    assert_eq!(decode_in_place(&bytes, &cuts), whole, "cut at {cuts:?}");
    if bytes.len() <= 2048 {
        assert_eq!(decode(&bytes, &[1]), whole, "byte by byte");
    }
    assert_eq!(whole.0.get(..good.len()), Some(good.as_slice()));
    if intact {
        assert_eq!((whole.0.len(), whole.1), (good.len(), None));
    }
    for frame in &whole.0 {
        let len = frame.data.as_ref().map_or(0, Vec::len);
        assert_eq!(len, frame.header.data_bytes());
        assert_eq!(frame.aux.len(), frame.header.aux_bytes as usize);
    }
}

fn pieces<'a>(mut bytes: &'a [u8], cuts: &'a [usize]) -> impl Iterator<Item = &'a [u8]> {
    let mut cuts = cuts.iter().cycle();
    std::iter::from_fn(move || {
        let cut = cuts.next().copied().unwrap_or(1).min(bytes.len());
        let (piece, rest) = bytes.split_at(cut);
        bytes = rest;
        (!piece.is_empty()).then_some(piece)
    })
}

fn decode(bytes: &[u8], cuts: &[usize]) -> Outcome {
    let (mut decoder, mut frames) = (VecDecoder::default(), Vec::new());
    for piece in pieces(bytes, cuts) {
        if let Err(error) = decoder.feed(piece, &mut frames) {
            return (frames, Some(error));
        }
    }
    (frames, None)
}

/// As shells do it: heads through the decoder, payload past it; with an eye on memory.
fn decode_in_place(bytes: &[u8], cuts: &[usize]) -> Outcome {
    let (mut decoder, mut frames, mut data) = (Decoder::new(), Vec::new(), Vec::new());
    for mut piece in pieces(bytes, cuts) {
        loop {
            // Up to the end of the header nothing but the header may be held.
            let part = match decoder.header() {
                None => &piece[..piece.len().min(HEADER_BYTES)],
                Some(_) => piece,
            };
            let known = decoder.header().copied();
            let (taken, used) = measured(|| match decoder.need() {
                Need::Head(want) => decoder.feed_head(&part[..want.min(part.len())]),
                Need::Data(_) => Ok(0),
            });
            let limit = known.map_or(2 * HEADER_BYTES, |header| {
                assert!(header.aux_bytes as usize <= AUX_BYTES_MAX);
                2 * (HEADER_BYTES + header.aux_bytes as usize)
            });
            assert!(used.total <= limit, "{used:?} of at most {limit}");
            let taken = match taken {
                Ok(taken) => taken,
                Err(error) => return (frames, Some(error)),
            };
            piece = &piece[taken..];
            if let Need::Data(total) = decoder.need() {
                assert!(total <= FRAME_DATA_BYTES_MAX);
                let n = (total - data.len()).min(piece.len());
                data.extend_from_slice(&piece[..n]);
                piece = &piece[n..];
                if data.len() < total {
                    break;
                }
                let payload = (total > 0).then(|| std::mem::take(&mut data));
                frames.extend(decoder.finish(payload));
            } else if piece.is_empty() {
                break;
            }
        }
    }
    (frames, None)
}
