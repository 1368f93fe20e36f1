//! `nbd`: what an NBD client may send: negotiation and requests, good and bad, cut anywhere.

use crate::alloc::measured;
use crate::input::Input;
use ublk_front::nbd::request::{Request, Work};
use ublk_front::nbd::session::{Event, Session, SessionError};
use ublk_front::nbd::{BLOCK_BYTES, Export, NbdError, PAYLOAD_BYTES_MAX, reply};

type Outcome = (Vec<u8>, Vec<Event>, Option<SessionError>);

const SIZE: u64 = 1 << 30;
/// 100 options (the session's limit), each answered by at most five short replies.
const NEGOTIATION_BYTES_MAX: usize = 100 * 5 * 150;
/// Bytes of one script: most of it is payload that nobody looks at.
const STREAM_BYTES_MAX: usize = 256 << 10;

fn script(input: &mut Input<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if input.rarely(4) {
        bytes.extend(input.short());
    } else {
        bytes.extend(u32::from(input.below(4)).to_be_bytes());
    }
    while !input.is_empty() && bytes.len() < STREAM_BYTES_MAX {
        match input.below(8) {
            0 => bytes.extend(input.short()),
            1..4 => option(input, &mut bytes),
            _ => request(input, &mut bytes),
        }
    }
    bytes
}

fn option(input: &mut Input<'_>, bytes: &mut Vec<u8>) {
    let option = u32::from(input.below(10));
    let mut data = Vec::new();
    match input.below(4) {
        0 => {}
        1 => data.extend(input.short()),
        2 => data.resize(usize::from(input.u16()), 7),
        _ => {
            let name = input.pick(&["", "vol", "other"]);
            data.extend(u32::try_from(name.len()).unwrap_or(0).to_be_bytes());
            data.extend(name.as_bytes());
            let kinds = input.below(4);
            data.extend(u16::from(kinds).to_be_bytes());
            (0..kinds).for_each(|kind| data.extend(u16::from(kind).to_be_bytes()));
        }
    }
    bytes.extend(b"IHAVEOPT");
    bytes.extend(option.to_be_bytes());
    let len = u32::try_from(data.len()).unwrap_or(0) + u32::from(input.rarely(16));
    bytes.extend(len.to_be_bytes());
    bytes.extend(data);
}

fn request(input: &mut Input<'_>, bytes: &mut Vec<u8>) {
    let request = Request {
        flags: u16::from(input.below(32)),
        command: u16::from(input.below(8)),
        cookie: input.u64(),
        offset: if input.bool() {
            u64::from(input.u16()) * 4096
        } else {
            input.u64()
        },
        length: if input.rarely(8) {
            input.u32()
        } else {
            u32::from(input.u16())
        },
    };
    bytes.extend(request.encode());
    let payload = request.payload_bytes() as usize;
    bytes.resize(bytes.len() + payload.min(STREAM_BYTES_MAX), 9);
}

/// Everything that a stream leads to when it comes in these pieces.
fn run_session(bytes: &[u8], cuts: &[usize]) -> Outcome {
    let (mut out, mut events) = (Vec::new(), Vec::new());
    let export = Export {
        name: "vol".into(),
        size_bytes: SIZE,
    };
    let mut session = Session::new(export, &mut out);
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
                    assert!(at <= end, "took more than there was");
                    events.extend(event);
                    match event {
                        None => break,
                        Some(Event::Ended) => return (out, events, None),
                        Some(Event::Request(request)) => skip = request.payload_bytes() as usize,
                    }
                }
            }
        }
    }
    (out, events, None)
}

fn check_request(request: &Request, size: u64) {
    assert_eq!(Request::decode(&request.encode()).as_ref(), Some(request));
    assert!(request.payload_bytes() <= PAYLOAD_BYTES_MAX);
    match request.work(size) {
        Ok(Work::Read | Work::Write { .. }) => {
            assert!(request.offset + u64::from(request.length) <= size);
            assert!(request.length <= PAYLOAD_BYTES_MAX);
        }
        Ok(Work::Zero { offset, length, .. }) => {
            assert!(offset + u64::from(length) <= size && length > 0);
            let block = u64::from(BLOCK_BYTES);
            assert!(offset.is_multiple_of(block) && length.is_multiple_of(BLOCK_BYTES));
        }
        Ok(Work::Flush | Work::Nothing | Work::Disconnect) => {}
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    for structured in [false, true] {
        let (cookie, mut out) = (request.cookie, Vec::<u8>::new());
        reply::read_error(structured, cookie, NbdError::Io, |b| {
            out.extend_from_slice(b);
        });
        let length = request.length.min(PAYLOAD_BYTES_MAX);
        reply::data(structured, cookie, request.offset, length, |b| {
            out.extend_from_slice(b);
        });
        assert!(out.len() < 200);
    }
}

pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let cuts: Vec<usize> = (0..input.below(8) + 1)
        .map(|_| usize::from(input.u16() % 3000) + 1)
        .collect();
    let size = input.pick(&[SIZE, 0, BLOCK_BYTES.into(), !4095]);
    let bytes = script(&mut input);
    let (whole, used) = measured(|| run_session(&bytes, &[bytes.len().max(1)]));
    let (out, events, error) = &whole;
    assert!(
        out.len() <= NEGOTIATION_BYTES_MAX,
        "{} bytes told",
        out.len()
    );
    // The client's bytes are not kept: only what is answered, and this harness's list of events.
    let limit = 8 * NEGOTIATION_BYTES_MAX + 8 * events.len() * size_of::<Event>() + 4096;
    assert!(used.total <= limit, "{used:?} for {} bytes", bytes.len());
    if let Some(error) = error {
        assert!(!error.to_string().is_empty());
    }
    for event in events {
        if let Event::Request(request) = event {
            check_request(request, size);
        }
    }
    assert_eq!(run_session(&bytes, &cuts), whole, "cut at {cuts:?}");
    if bytes.len() <= 1024 {
        assert_eq!(run_session(&bytes, &[1]), whole, "byte by byte");
    }
}
