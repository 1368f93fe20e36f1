//! A connection to a real ZooKeeper that is reset in the middle of a question.
#![allow(clippy::unwrap_used)] // a test fails by panicking, in its helpers as well

mod support;

use std::io::{Read, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use support::Zookeeper;
use ukai_meta::zookeeper::ZookeeperStore;
use ukai_meta::{MetaError, MetaStore};

/// Passes on what client and server say, until it is to reset.
struct Relay {
    address: String,
    resets: Arc<AtomicBool>,
}

impl Relay {
    fn start(server: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let resets = Arc::new(AtomicBool::new(false));
        let this = Self {
            address,
            resets: resets.clone(),
        };
        // Ends with the test's process.
        thread::spawn(move || {
            for client in listener.incoming() {
                let (client, server) = (client.unwrap(), TcpStream::connect(&server).unwrap());
                let (to_client, from_server) =
                    (client.try_clone().unwrap(), server.try_clone().unwrap());
                let answers = thread::spawn(move || pass_on(from_server, to_client));
                let resets = resets.clone();
                thread::spawn(move || {
                    let mut bytes = [0; 4096];
                    let mut server = server;
                    loop {
                        // What is peeked at stays unread: closing the socket then resets the connection (RFC 2525, 2.17).
                        let count = client.peek(&mut bytes).unwrap_or(0);
                        if count == 0 || resets.swap(false, Ordering::SeqCst) {
                            break;
                        }
                        (&client).read_exact(&mut bytes[..count]).unwrap();
                        server.write_all(&bytes[..count]).unwrap();
                    }
                    let _ = server.shutdown(Shutdown::Both); // it may be closed already
                    answers.join().unwrap();
                });
            }
        });
        this
    }
}

fn pass_on(mut from: TcpStream, mut to: TcpStream) {
    let mut bytes = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        if to.write_all(&bytes[..count]).is_err() {
            return;
        }
    }
}

/// Somebody who tries again must be able to tell it from a store that is broken.
#[test]
fn a_question_whose_connection_is_reset_finds_the_store_unavailable() {
    let zookeeper = Zookeeper::start(1);
    let (server, chroot) = zookeeper.servers.split_once('/').unwrap();
    let relay = Relay::start(server.to_owned());
    let store = ZookeeperStore::connect(&format!("{}/{chroot}", relay.address)).unwrap();
    assert_eq!(store.get("x").unwrap(), None);
    let mut unanswered = 0;
    while unanswered == 0 {
        // The client's own pings may be what is reset: then the question finds a new connection.
        relay.resets.store(true, Ordering::SeqCst);
        match store.get("x") {
            Ok(None) => {}
            Err(MetaError::Unavailable(_)) => unanswered += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(store.get("x").unwrap(), None);
    store.renew().unwrap();
}
