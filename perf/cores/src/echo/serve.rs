//! The server: one thread.

use crate::frames::{Batch, Cutter, Kind};
use crate::socket::{RECEIVE_BYTES, receive};
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

/// Until it is killed. Says `ready ADDRESS`.
pub(crate) fn serve(listen: SocketAddr, poll: Duration) -> io::Result<()> {
    let listener = TcpListener::bind(listen)?;
    println!("ready {}", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept()?;
        if let Err(error) = answer(&stream, poll) {
            eprintln!("ukai-echo: a connection ended: {error}");
        }
    }
}

/// All that a client asks, to its end.
pub(crate) fn answer(mut stream: &TcpStream, poll: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut arrived = vec![0; RECEIVE_BYTES];
    let (mut cutter, mut answers) = (Cutter::new(Kind::Request), Batch::new(Kind::Answer));
    loop {
        let bytes = receive(stream, &mut arrived, poll)?;
        if bytes == 0 {
            return Ok(());
        }
        cutter.feed(&arrived[..bytes], |head| answers.push(head))?;
        stream.write_all(answers.bytes())?;
        answers.clear();
    }
}
