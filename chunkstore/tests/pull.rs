//! Copies between two real nodes.
#![allow(clippy::cast_possible_truncation)] // test data is small

mod client;

use client::{Client, Cluster, Node, pattern};
use ukai_proto::message::{Pull, PullMode, SectorState};
use ukai_proto::*;

fn order(source: &Node, mode: PullMode, addresses: Vec<String>) -> Pull {
    Pull {
        source: source.id,
        source_boot: source.boot,
        source_shard_count: 1,
        mode,
        ceiling: Version::new(Token(1), Seq(1000)),
        addresses,
    }
}

fn fenced(node: &Node) -> Client {
    let mut client = node.client();
    assert_eq!(client.fence(1, 1), Status::Ok);
    client
}

#[test]
fn a_chunk_is_copied_over_tcp_and_unix() {
    let cluster = Cluster::new();
    let (target, source) = (cluster.node("target"), cluster.node("source"));
    let (mut to, mut from) = (fenced(&target), fenced(&source));
    for (seq, sector) in [(1, 0), (2, 300), (3, 768)] {
        assert_eq!(from.write(5, sector, seq, pattern(seq, 200)), Status::Ok);
    }
    assert_eq!(from.zero(5, 310, 20, 4), Status::Ok);
    // Something newer that was never acknowledged: a mirror takes it back.
    assert_eq!(to.write(5, 0, 900, pattern(77, 3)), Status::Ok);
    // The zeros at 310..330 too: a replica that comes back later learns of them here.
    for (address, copied) in [(0, 600), (1, 0)] {
        let addresses = vec![source.shards[0][address].clone()];
        let pull = order(&source, PullMode::Mirror, addresses);
        let pulled = to.pull(5, 1024, &pull).expect("pulled");
        assert_eq!(pulled.sectors_compared, 1024);
        assert_eq!((pulled.sectors_copied, pulled.sectors_bad), (copied, 0));
    }
    let expected = from.list(5, 0, 1024);
    assert!(
        expected[310..330]
            .iter()
            .all(|state| state.flags == SectorState::ZERO)
    );
    assert_eq!(to.list(5, 0, 1024), expected);
    for slot in 0..4 {
        let (mine, theirs) = (to.read(5, slot * 256, 256), from.read(5, slot * 256, 256));
        assert!(mine.is_ok() && mine == theirs, "slot {slot}");
    }
    assert!(target.stop().success());
    assert!(source.stop().success());
}

#[test]
fn a_source_that_is_not_there_or_is_another_fails_the_order() {
    let cluster = Cluster::new();
    let (target, source) = (cluster.node("target"), cluster.node("source"));
    let mut to = fenced(&target);
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let nobody = format!("tcp:{}", free.local_addr().expect("address"));
    drop(free);
    for address in [
        &nobody,
        "unix:/nowhere",
        "carrier pigeon",
        &target.shards[0][0],
    ] {
        let pull = order(&source, PullMode::Newer, vec![address.to_string()]);
        assert_eq!(to.pull(0, 16, &pull), Err(Status::PeerFailed), "{address}");
    }
    // A right address after wrong ones is found; the source then refuses the token.
    let addresses = vec![nobody, source.shards[0][0].clone()];
    let pull = order(&source, PullMode::Newer, addresses);
    assert_eq!(to.pull(0, 16, &pull), Err(Status::PeerFailed), "not fenced");
    fenced(&source);
    assert!(to.pull(0, 16, &pull).is_ok());
}

#[test]
fn a_source_that_dies_in_the_middle_fails_the_order() {
    let cluster = Cluster::new();
    let (target, source) = (cluster.node("target"), cluster.node("source"));
    let (mut to, mut from) = (fenced(&target), fenced(&source));
    for slot in 0..8 {
        from.write(0, slot * 256, 1, pattern(slot.into(), 256));
    }
    let addresses = vec![source.shards[0][0].clone()];
    let pull = order(&source, PullMode::Newer, addresses);
    let header = to.header(Opcode::Pull, 0, 0, 2048);
    to.send(header, pull.encode(), None);
    source.kill();
    // It was done before the end, or it failed; it does not hang, and the target serves on.
    let status = to.receive().expect("answered").header.status;
    assert!(
        matches!(status, Status::Ok | Status::PeerFailed),
        "{status}"
    );
    assert_eq!(to.write(1, 0, 1, pattern(1, 1)), Status::Ok);
    assert!(target.stop().success());
}
