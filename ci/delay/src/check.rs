//! Sets a link up between two namespaces of its own, and compares what TCP sees with what was set.

use crate::carry::now;
use crate::link::{End, Link, LinkSetting, report};
use crate::space::{Pair, Space};
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::channel;
use std::time::Duration;

const LEFT: Ipv4Addr = Ipv4Addr::new(10, 79, 0, 1);
const RIGHT: Ipv4Addr = Ipv4Addr::new(10, 79, 0, 2);
/// A round trip carries so much, as a request without payload does.
const PING_BYTES: usize = 64;
/// The first are not counted: the connection and the caches are new.
const WARM_UP: u32 = 10;
/// An answer that does not come in this time will not come.
const ANSWER_MAX: Duration = Duration::from_secs(60);
/// The same in microseconds.
const ANSWER_US_MAX: u64 = 60_000_000;
const COPY_BYTES: usize = 1 << 18;

/// What was set and what was seen.
pub(crate) struct Checked {
    /// Twice the delay.
    set_round_trip: Duration,
    /// Twice what a packet is late on the average.
    set_jitter: Duration,
    set_rate: Option<u64>,
    round_trip_us: Histogram<u64>,
    bulk_bytes: u64,
    bulk_time: Duration,
    link: Value,
}

/// Runs a link for `pings` round trips and one transfer of `bulk_bytes`.
///
/// # Errors
/// Text: what could not be made, or what did not come through.
pub(crate) fn check(setting: &LinkSetting, pings: u32, bulk_bytes: u64) -> Result<Checked, String> {
    let pair = Pair::new()?;
    let end = |space: &Space, address| End {
        space: space.clone(),
        address,
    };
    let (left, right) = (end(&pair.left, LEFT), end(&pair.right, RIGHT));
    let link = Link::start(&left, &right, setting, &channel().0)?;
    let listener = right.space.run(|| TcpListener::bind((RIGHT, 0)))?;
    let listener = listener.map_err(|e| format!("listen: {e}"))?;
    let address = listener.local_addr().map_err(|e| e.to_string())?;
    let (round_trip_us, bulk_time) = std::thread::scope(|scope| {
        let server = scope.spawn(|| serve(&listener));
        let seen = left.space.run(|| client(address, pings, bulk_bytes))?;
        // A client that failed may have left the server waiting for it: its error says more.
        let seen = seen.map_err(|e| format!("client: {e}"));
        if seen.is_err() {
            unblock(&right.space, address);
        }
        let served = server
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let seen = seen?;
        served.map_err(|e| format!("server: {e}"))?;
        Ok::<_, String>(seen)
    })?;
    Ok(Checked {
        set_round_trip: 2 * setting.line.delay,
        set_jitter: setting.jitter,
        set_rate: setting.line.rate_bytes_per_s.map(std::num::NonZeroU64::get),
        round_trip_us,
        bulk_bytes,
        bulk_time,
        link: report(&link.stop()?),
    })
}

/// Two connections, one after the other: pings, then what only goes in and is counted.
fn serve(listener: &TcpListener) -> std::io::Result<()> {
    let (mut pings, _) = listener.accept()?;
    ready(&pings)?;
    let mut ping = [0; PING_BYTES];
    while pings.read_exact(&mut ping).is_ok() {
        pings.write_all(&ping)?;
    }
    let (mut bulk, _) = listener.accept()?;
    ready(&bulk)?;
    let mut buffer = vec![0; COPY_BYTES];
    let mut sum = 0u64;
    loop {
        let length = bulk.read(&mut buffer)?;
        if length == 0 {
            break;
        }
        sum += length as u64;
    }
    bulk.write_all(&sum.to_le_bytes())
}

fn client(
    address: SocketAddr,
    pings: u32,
    bulk_bytes: u64,
) -> std::io::Result<(Histogram<u64>, Duration)> {
    let mut stream = TcpStream::connect_timeout(&address, ANSWER_MAX)?;
    ready(&stream)?;
    let mut seen =
        Histogram::new_with_bounds(1, ANSWER_US_MAX, 3).map_err(std::io::Error::other)?;
    for number in 0..WARM_UP + pings {
        let ping = [number.to_le_bytes()[0]; PING_BYTES];
        let mut answer = [0; PING_BYTES];
        let begin = now();
        stream.write_all(&ping)?;
        stream.read_exact(&mut answer)?;
        let time = begin.elapsed();
        if answer != ping {
            return Err(std::io::Error::other("another answer than the ping"));
        }
        if number >= WARM_UP {
            seen.saturating_record(u64::try_from(time.as_micros()).unwrap_or(ANSWER_US_MAX));
        }
    }
    drop(stream);
    let mut stream = TcpStream::connect_timeout(&address, ANSWER_MAX)?;
    ready(&stream)?;
    let buffer = vec![0x5a; COPY_BYTES];
    let begin = now();
    let mut left = bulk_bytes;
    while left > 0 {
        let part = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        stream.write_all(&buffer[..part])?;
        left -= part as u64;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut sum = [0; 8];
    stream.read_exact(&mut sum)?;
    let time = begin.elapsed();
    if u64::from_le_bytes(sum) != bulk_bytes {
        return Err(std::io::Error::other(
            "another number of bytes came out than went in",
        ));
    }
    Ok((seen, time))
}

fn ready(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    stream.set_write_timeout(Some(ANSWER_MAX))
}

/// Connections that end at once, so that a server which waits for one ends.
fn unblock(space: &Space, address: SocketAddr) {
    for _ in 0..2 {
        // Only to wake it.
        let _ = space.run(|| TcpStream::connect_timeout(&address, ANSWER_MAX));
    }
}

impl Checked {
    fn quantile_us(&self, quantile: f64) -> u64 {
        self.round_trip_us.value_at_quantile(quantile)
    }

    /// By how much the median round trip is longer than was set.
    #[must_use]
    pub(crate) fn added(&self) -> Duration {
        Duration::from_micros(self.quantile_us(0.5))
            .saturating_sub(self.set_round_trip + self.set_jitter)
    }

    /// True if a packet came through before its time.
    #[must_use]
    pub(crate) fn early(&self) -> bool {
        // The histogram rounds to three digits.
        let least = Duration::from_micros(self.round_trip_us.min()) * 1001 / 1000;
        least + Duration::from_micros(1) < self.set_round_trip
    }

    fn bulk_rate(&self) -> f64 {
        self.bulk_bytes as f64 / self.bulk_time.as_secs_f64()
    }

    #[must_use]
    pub(crate) fn json(&self) -> Value {
        json!({
            "set_round_trip_us": u64::try_from(self.set_round_trip.as_micros()).unwrap_or(u64::MAX),
            "round_trip_us": {
                "min": self.round_trip_us.min(), "p50": self.quantile_us(0.5),
                "p99": self.quantile_us(0.99), "max": self.round_trip_us.max(),
                "count": self.round_trip_us.len(),
            },
            "set_rate_bytes_per_s": self.set_rate,
            "bulk_bytes": self.bulk_bytes,
            "bulk_bytes_per_s": self.bulk_rate().round(),
            "link": self.link,
        })
    }

    /// For people.
    #[must_use]
    pub(crate) fn text(&self) -> String {
        let ms = |us: u64| us as f64 / 1e3;
        let mib = |rate: f64| rate / f64::from(1 << 20);
        let rate = self
            .set_rate
            .map_or("none".into(), |rate| format!("{:.1}", mib(rate as f64)));
        format!(
            "round trip, ms: set {:.3}; TCP saw min {:.3}, p50 {:.3}, p99 {:.3}, max {:.3} ({} pings)\n\
             rate, MiB/s:    set {rate}; one TCP stream got {:.1}\n\
             the link itself: {}",
            ms(u64::try_from(self.set_round_trip.as_micros()).unwrap_or(u64::MAX)),
            ms(self.round_trip_us.min()),
            ms(self.quantile_us(0.5)),
            ms(self.quantile_us(0.99)),
            ms(self.round_trip_us.max()),
            self.round_trip_us.len(),
            mib(self.bulk_rate()),
            self.link,
        )
    }
}
