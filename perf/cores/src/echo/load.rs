//! The client: one thread that keeps requests in flight, and times them as `ukai-tools bench` does.
#![allow(clippy::disallowed_methods)] // the clock is what this is about

use crate::Load;
use crate::frames::{Batch, Cutter, Head, Kind};
use crate::socket::{RECEIVE_BYTES, receive};
use hdrhistogram::Histogram;
use rustix::time::{ClockId, clock_gettime};
use std::io::{self, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// Longest latency told apart, nanoseconds: longer than any run without a failure has.
const LATENCY_NS_MAX: u64 = 60_000_000_000;

fn cpu_us() -> f64 {
    let spent = clock_gettime(ClockId::ProcessCPUTime);
    #[allow(clippy::cast_precision_loss)] // less than 2^53
    let (seconds, nanos) = (spent.tv_sec as f64, spent.tv_nsec as f64);
    seconds * 1e6 + nanos / 1e3
}

/// The figures, as one line of JSON with the names of `ukai-tools bench`.
pub(crate) fn load(load: &Load, poll: Duration) -> io::Result<String> {
    let mut stream = TcpStream::connect(load.address)?;
    stream.set_nodelay(true)?;
    let (sent, wanted) = if load.write {
        (load.block_size, 0)
    } else {
        (0, load.block_size)
    };
    let mut latencies =
        Histogram::<u64>::new_with_bounds(1_000, LATENCY_NS_MAX, 3).map_err(io::Error::other)?;
    let mut arrived = vec![0; RECEIVE_BYTES];
    let (mut cutter, mut requests) = (Cutter::new(Kind::Answer), Batch::new(Kind::Request));
    let began = Instant::now();
    let deadline = began + Duration::from_secs(load.seconds);
    let cpu_before = cpu_us();
    let (mut now, mut left) = (began, load.ios.unwrap_or(u64::MAX));
    let mut begun = vec![None; load.depth as usize];
    let mut idle: Vec<u32> = (0..load.depth).rev().collect();
    loop {
        while now < deadline
            && left > 0
            && let Some(tag) = idle.pop()
        {
            left -= 1;
            begun[tag as usize] = Some(now);
            requests.push(Head { tag, sent, wanted });
        }
        if idle.len() == begun.len() {
            break;
        }
        // The other end always reads on: of a read it owes more than it is owed, of a write the other way round, and
        // what is small fits into the socket's buffer.
        stream.write_all(requests.bytes())?;
        requests.clear();
        let bytes = receive(&stream, &mut arrived, poll)?;
        if bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        now = Instant::now();
        let mut unasked = None;
        cutter.feed(&arrived[..bytes], |head| {
            match begun.get_mut(head.tag as usize).and_then(Option::take) {
                Some(begin) => {
                    let nanos = now.duration_since(begin).as_nanos();
                    latencies.saturating_record(u64::try_from(nanos).unwrap_or(u64::MAX));
                    idle.push(head.tag);
                }
                None => unasked = Some(head),
            }
        })?;
        if let Some(head) = unasked {
            return Err(io::Error::other(format!(
                "an answer to nothing asked: {head:?}"
            )));
        }
    }
    let cpu_us = cpu_us() - cpu_before;
    let ios = latencies.len();
    #[allow(clippy::cast_precision_loss)] // a count of requests, nanoseconds of a run
    let line = {
        let us = |quantile| latencies.value_at_quantile(quantile) as f64 / 1e3;
        format!(
            "{{\"ios\": {ios}, \"iops\": {:.1}, \"p50_us\": {:.2}, \"p99_us\": {:.2}, \"p999_us\": {:.2}, \
             \"client_cpu_us_per_io\": {:.3}}}",
            ios as f64 / (now - began).as_secs_f64(),
            us(0.5),
            us(0.99),
            us(0.999),
            cpu_us / ios.max(1) as f64
        )
    };
    Ok(line)
}
