//! Bad frames, bad identities, old tokens: refused with the right words, and nobody else notices.
#![allow(clippy::cast_possible_truncation)] // test data is small

mod client;

use client::{Client, Cluster, Node, pattern};
use ukai_proto::limits::HEADER_BYTES;
use ukai_proto::message::{Hello, crc_table};
use ukai_proto::*;

fn still_serves(node: &Node) {
    let mut client = node.client();
    assert_eq!(client.status(Header::request(Opcode::Ping, 0)), Status::Ok);
}

#[test]
fn frames_that_are_none_close_the_connection_and_nothing_else() {
    let cluster = Cluster::new();
    let node = cluster.node("n0");
    let ping = Header::request(Opcode::Ping, 7);
    let flipped = |at: usize| {
        let mut bytes = ping.encode();
        bytes[at] ^= 0x40;
        bytes.to_vec()
    };
    // Lengths beyond the limits under a right checksum.
    let resealed = |at: usize, value: u8| {
        let mut bytes = ping.encode();
        bytes[at] = value;
        bytes[at + 1] = 0xff;
        let crc = crc::crc32c(&bytes[..HEADER_BYTES - 4]);
        bytes[HEADER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
        bytes.to_vec()
    };
    let mut bad_aux = Frame::<Vec<u8>>::new(ping, vec![1; 64], None).to_bytes();
    bad_aux[HEADER_BYTES + 5] ^= 1;
    let huge_data = Header {
        flags: Flags::DATA,
        count: 257,
        ..Header::request(Opcode::Write, 7)
    };
    let cases = [
        ("noise", pattern(3, 1)),
        (
            "an HTTP request",
            b"GET / HTTP/1.1\r\nHost: node\r\nAccept: everything there is, and more\r\n\r\n\r\n"
                .to_vec(),
        ),
        ("a damaged magic", flipped(0)),
        ("a damaged field", flipped(20)),
        ("a damaged checksum", flipped(63)),
        ("an oversized auxiliary section", resealed(6, 0xff)),
        ("an oversized sequence", resealed(54, 1)),
        ("an oversized payload", huge_data.encode().to_vec()),
        ("a damaged auxiliary section", bad_aux),
    ];
    for (what, bytes) in cases {
        for greeted in [true, false] {
            let mut client = if greeted {
                node.client()
            } else {
                Client::dial(&node.shards[0][0])
            };
            client.send_bytes(&bytes);
            assert!(client.receive().is_none(), "{what}, greeted: {greeted}");
        }
        still_serves(&node);
    }
    assert!(node.stop().success());
}

#[test]
fn a_connection_cut_in_the_middle_of_a_write_leaves_nothing_behind() {
    let cluster = Cluster::new();
    let node = cluster.node("n0");
    let mut client = node.client();
    client.fence(1, 1);
    let data = pattern(1, 64);
    let header = Header {
        seq: Seq(1),
        ..client.header(Opcode::Write, 0, 0, 64)
    };
    let aux = crc_table(0, crc::sector_crcs(&data));
    let bytes = Frame::new(header, aux, Some(data)).to_bytes();
    for cut in [10, 64, 100, 5000, bytes.len() - 1] {
        let mut client = node.client();
        client.send_bytes(&bytes[..cut]);
        drop(client);
    }
    assert!(client.read(0, 0, 64) == Ok(vec![0; 64 * 4096]));
    assert!(node.stop().success());
}

#[test]
fn a_damaged_payload_is_refused_and_the_connection_goes_on() {
    let cluster = Cluster::new();
    let node = cluster.node("n0");
    let mut client = node.client();
    client.fence(1, 1);
    let data = pattern(1, 4);
    let aux = crc_table(0, crc::sector_crcs(&data));
    let mut damaged = data;
    damaged[3 * 4096] ^= 1;
    let header = Header {
        seq: Seq(1),
        ..client.header(Opcode::Write, 0, 8, 4)
    };
    let reply = client.ask(header, aux, Some(damaged));
    assert_eq!(reply.header.status, Status::BadCrc);
    assert_eq!(reply.header.sector, SectorInChunk(11));
    assert!(client.read(0, 8, 4) == Ok(vec![0; 4 * 4096]));
}

#[test]
fn identities_are_checked() {
    let cluster = Cluster::new();
    let node = cluster.node("n0");
    type Change = fn(&mut Hello);
    let cases: [(Change, Status); 3] = [
        (|h| h.cluster = ClusterId([1; 16]), Status::WrongCluster),
        (|h| h.node = NodeId([1; 16]), Status::WrongNode),
        (|h| h.shard = ShardIndex(1), Status::WrongShard),
    ];
    for (change, status) in cases {
        let mut client = Client::dial(&node.shards[0][0]);
        let reply = client.hello(&node, 0, change);
        assert_eq!(reply.header.status, status);
        let mine = Hello::decode(&reply.aux).expect("identity");
        assert_eq!((mine.node, mine.incarnation.start), (node.id, 1));
        assert!(client.receive().is_none(), "closed");
    }
    let mut client = Client::dial(&node.shards[0][0]);
    let status = client.status(Header::request(Opcode::Ping, 0));
    assert_eq!(status, Status::BadRequest, "before HELLO");
    assert!(client.receive().is_none(), "closed");
    still_serves(&node);
}

#[test]
fn old_tokens_and_maps_are_refused_also_after_a_restart() {
    let cluster = Cluster::new();
    let node = cluster.node("n0");
    let mut old = node.client();
    assert_eq!(
        old.write(0, 0, 1, pattern(1, 1)),
        Status::BadRequest,
        "token 0"
    );
    old.token = 4;
    assert_eq!(old.write(0, 0, 1, pattern(1, 1)), Status::NotFenced);
    assert_eq!(old.fence(4, 10), Status::Ok);
    assert_eq!(old.write(0, 0, 1, pattern(1, 1)), Status::Ok);
    let mut new = node.client();
    assert_eq!(new.fence(5, 11), Status::Ok);
    assert_eq!(old.write(0, 0, 2, pattern(2, 1)), Status::StaleToken);
    assert_eq!(old.read(0, 0, 1), Err(Status::StaleToken));
    assert_eq!(old.flush(), Status::StaleToken);
    new.generation = 10;
    assert_eq!(new.write(0, 0, 1, pattern(3, 1)), Status::StaleMap);
    node.kill();
    let node = cluster.start("n0", &[]);
    let mut old = node.client();
    (old.token, old.generation) = (4, 11);
    assert_eq!(old.write(0, 0, 3, pattern(2, 1)), Status::StaleToken);
    let mut new = node.client();
    (new.token, new.generation) = (5, 11);
    assert!(new.read(0, 0, 1) == Ok(pattern(1, 1)));
    new.generation = 10;
    assert_eq!(new.read(0, 0, 1), Err(Status::StaleMap));
}
