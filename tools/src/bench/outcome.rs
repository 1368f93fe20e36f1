//! The result, for programs and for people.

use super::args::Bench;
use crate::table::{Align, table};
use crate::units::ByteSize;
use serde::Serialize;
use std::time::Duration;
use ublk_front::shell::bench::{BenchFigures, BenchSide};

/// Reads, writes, or both. Latencies in microseconds, those of no request are null; requests that failed count as
/// errors and nowhere else.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(crate) struct Side {
    pub(crate) ios: u64,
    pub(crate) errors: u64,
    pub(crate) iops: f64,
    pub(crate) bytes_per_second: f64,
    pub(crate) mean_us: Option<f64>,
    pub(crate) p50_us: Option<f64>,
    pub(crate) p99_us: Option<f64>,
    pub(crate) p999_us: Option<f64>,
    pub(crate) max_us: Option<f64>,
}

#[allow(clippy::cast_precision_loss)] // counts and nanoseconds below 2^53
impl Side {
    fn new(side: &BenchSide, block_bytes: u64, elapsed: Duration) -> Self {
        let latency = &side.latency;
        let some = |us: f64| (!latency.is_empty()).then_some(us);
        let at = |quantile| some(latency.value_at_quantile(quantile) as f64 / 1000.0);
        let iops = if elapsed.is_zero() {
            0.0
        } else {
            latency.len() as f64 / elapsed.as_secs_f64()
        };
        Self {
            ios: latency.len(),
            errors: side.errors,
            iops,
            bytes_per_second: iops * block_bytes as f64,
            mean_us: some(latency.mean() / 1000.0),
            p50_us: at(0.5),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: some(latency.max() as f64 / 1000.0),
        }
    }
}

/// Everything: the sum of reads and writes, both apart, and what was asked for.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(crate) struct Outcome {
    #[serde(flatten)]
    pub(crate) all: Side,
    /// From the first request to the end of the last.
    pub(crate) seconds: f64,
    /// CPU time of this process, all its threads, per request.
    pub(crate) client_cpu_us_per_io: Option<f64>,
    pub(crate) interrupted: bool,
    pub(crate) read: Side,
    pub(crate) write: Side,
    pub(crate) volume: String,
    pub(crate) lanes: u16,
    pub(crate) depth: u32,
    pub(crate) block_bytes: u64,
    pub(crate) read_percent: u8,
    pub(crate) pattern: String,
    pub(crate) fsync: bool,
    pub(crate) seed: u64,
}

impl Outcome {
    pub(crate) fn new(args: &Bench, seed: u64, figures: &BenchFigures) -> Self {
        let elapsed = figures.elapsed();
        let side = |side: &BenchSide| Side::new(side, args.block_size.0, elapsed);
        let all = side(&figures.read.with(&figures.write));
        #[allow(clippy::cast_precision_loss)] // a count of requests
        let ios = all.ios as f64;
        let cpu_us = figures.cpu().as_secs_f64() * 1e6;
        Self {
            seconds: elapsed.as_secs_f64(),
            client_cpu_us_per_io: (all.ios > 0).then(|| cpu_us / ios),
            interrupted: figures.interrupted,
            read: side(&figures.read),
            write: side(&figures.write),
            all,
            volume: args.volume.clone(),
            lanes: args.lanes,
            depth: args.depth,
            block_bytes: args.block_size.0,
            read_percent: args.read_percent,
            pattern: args.pattern.to_string(),
            fsync: args.fsync,
            seed,
        }
    }

    pub(crate) fn human(&self) -> String {
        let columns = [
            ("", Align::Left),
            ("iops", Align::Right),
            ("per second", Align::Right),
            ("mean us", Align::Right),
            ("p50 us", Align::Right),
            ("p99 us", Align::Right),
            ("p99.9 us", Align::Right),
            ("max us", Align::Right),
            ("requests", Align::Right),
            ("errors", Align::Right),
        ];
        let sides = [("read", &self.read), ("write", &self.write)];
        let mut rows: Vec<_> = sides
            .into_iter()
            .filter(|(_, side)| side.ios + side.errors > 0)
            .collect();
        if rows.len() != 1 {
            rows.push(("both", &self.all));
        }
        let rows = rows.into_iter().map(|(name, side)| row(name, side));
        let mut end = format!("{:.1} s", self.seconds);
        if self.interrupted {
            end.push_str(", interrupted");
        }
        if let Some(cpu) = self.client_cpu_us_per_io {
            end.push_str(&format!("; CPU of this client {cpu:.1} us per request"));
        }
        format!(
            "{}\n\n{}\n\n{end}; --seed {}",
            self.what(),
            table(&columns, rows.collect()),
            self.seed
        )
    }

    fn what(&self) -> String {
        let mix = match self.read_percent {
            100 => "reads".to_owned(),
            0 => "writes".to_owned(),
            percent => format!("requests, {percent} % reads"),
        };
        format!(
            "{}: {} {} {mix}, depth {}{}{}",
            self.volume,
            ByteSize(self.block_bytes),
            self.pattern,
            self.depth,
            if self.lanes > 1 {
                format!(" on each of {} lanes", self.lanes)
            } else {
                String::new()
            },
            if self.fsync {
                ", a flush after each write"
            } else {
                ""
            }
        )
    }
}

fn row(name: &str, side: &Side) -> Vec<String> {
    let us = |value: Option<f64>| value.map_or("-".to_owned(), |us| format!("{us:.0}"));
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // bytes of a second
    let bytes = side.bytes_per_second as u64;
    vec![
        name.to_owned(),
        format!("{:.0}", side.iops),
        ByteSize(bytes).about(),
        us(side.mean_us),
        us(side.p50_us),
        us(side.p99_us),
        us(side.p999_us),
        us(side.max_us),
        side.ios.to_string(),
        side.errors.to_string(),
    ]
}
