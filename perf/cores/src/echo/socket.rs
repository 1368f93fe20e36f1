//! Receiving as UKAI's programs with `--poll-us` do: look for a while, then sleep.
#![allow(clippy::disallowed_methods)] // the clock is what this is about

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use std::io;
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// What one call takes: a batch of sixty payloads of 4 KiB.
pub(crate) const RECEIVE_BYTES: usize = 256 << 10;

/// What has come, at least a byte; 0 at the end.
pub(crate) fn receive(stream: &TcpStream, out: &mut [u8], poll: Duration) -> io::Result<usize> {
    if !poll.is_zero() {
        let until = Instant::now() + poll;
        loop {
            match recv(stream, &mut *out, RecvFlags::DONTWAIT) {
                Ok((bytes, _)) => return Ok(bytes),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            if Instant::now() >= until {
                break;
            }
            std::hint::spin_loop();
        }
    }
    loop {
        match recv(stream, &mut *out, RecvFlags::empty()) {
            Ok((bytes, _)) => return Ok(bytes),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
