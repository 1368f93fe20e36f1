//! A real node: data, durability, restarts.
#![allow(clippy::cast_possible_truncation)] // test data is small

mod client;

use client::{Cluster, VOLUME, pattern, text};
use ukai_proto::message::ShardStats;
use ukai_proto::*;

#[test]
fn data_goes_in_and_comes_out_over_tcp_and_unix() {
    let cluster = Cluster::new();
    let node = cluster.node("n0");
    assert_eq!(node.shards[0].len(), 2, "{:?}", node.shards);
    let mut tcp = node.client();
    assert_eq!(tcp.fence(1, 1), Status::Ok);
    for (seq, sectors) in [1usize, 2, 7, 64, 256].into_iter().enumerate() {
        let chunk = seq as u32;
        let data = pattern(seq as u64, sectors);
        assert_eq!(
            tcp.write(chunk, 0, seq as u64 + 1, data.clone()),
            Status::Ok
        );
        assert!(tcp.read(chunk, 0, sectors as u16) == Ok(data));
    }
    assert!(
        tcp.read(77, 0, 256) == Ok(vec![0; 1 << 20]),
        "never written"
    );
    assert_eq!(tcp.flush(), Status::Ok);

    let mut unix = node.client_of(0, 1);
    (unix.token, unix.generation) = (1, 1);
    assert!(unix.read(4, 0, 256) == Ok(pattern(4, 256)));
    let reply = unix.ask(Header::request(Opcode::Stats, 0), Vec::new(), None);
    let stats = ShardStats::decode(&reply.aux);
    assert_eq!((stats.writes, stats.flushes, stats.slots_used), (5, 1, 5));
    assert!(node.stop().success(), "clean stop");
}

#[test]
fn a_write_may_be_repeated_and_an_older_one_is_ignored() {
    let cluster = Cluster::new();
    let node = cluster.node("n0");
    let mut client = node.client();
    client.fence(1, 1);
    assert_eq!(client.write(0, 5, 10, pattern(1, 1)), Status::Ok);
    assert_eq!(client.write(0, 5, 10, pattern(1, 1)), Status::Ok);
    assert_eq!(client.write(0, 5, 9, pattern(2, 1)), Status::Ok);
    assert!(client.read(0, 5, 1) == Ok(pattern(1, 1)));
    let state = client.list(0, 5, 1)[0];
    assert_eq!(state.version, Version::new(Token(1), Seq(10)));
}

#[test]
fn a_killed_node_keeps_what_it_acknowledged() {
    let cluster = Cluster::new();
    let mut node = cluster.node("n0");
    for round in 0..3u32 {
        let mut client = node.client();
        assert_eq!(client.fence(round + 1, 1), Status::Ok);
        // What the rounds before wrote, flushed or not, is there: the kernel lived on.
        for before in 0..round {
            let data = pattern(before.into(), 20);
            assert!(client.read(before, 3, 20) == Ok(data), "round {round}");
        }
        let data = pattern(round.into(), 20);
        assert_eq!(client.write(round, 3, 1, data), Status::Ok);
        if round == 1 {
            assert_eq!(client.flush(), Status::Ok);
        }
        node.kill();
        node = cluster.start("n0", &[]);
    }
    // Fences survive too.
    let mut client = node.client();
    assert_eq!(client.fence(2, 1), Status::StaleToken);
    client.token = 3;
    client.generation = 1;
    assert!(client.read(2, 3, 20) == Ok(pattern(2, 20)));
}

#[test]
fn a_clean_stop_and_start_keeps_everything_and_counts_starts() {
    let cluster = Cluster::new();
    let node = cluster.node("n0");
    let mut client = node.client();
    client.fence(1, 1);
    assert_eq!(client.write(9, 0, 1, pattern(9, 256)), Status::Ok);
    assert!(node.stop().success());
    let path = cluster.path("n0");
    let shown = cluster.run(&["show", path.to_str().expect("utf-8"), "--json"]);
    // The stop counts too: a copy made before it is old.
    assert!(text(&shown.stdout).contains("\"starts\":2"), "{shown:?}");
    let node = cluster.start("n0", &[]);
    let mut client = node.client();
    (client.token, client.generation) = (1, 1);
    assert!(client.read(9, 0, 256) == Ok(pattern(9, 256)));
    assert!(node.stop().success());
    let left = std::fs::read_dir(cluster.path("sockets")).expect("directory");
    assert_eq!(left.count(), 0, "sockets are removed at a clean stop");
}

#[test]
fn many_requests_in_flight_and_a_slow_reader() {
    let cluster = Cluster::new();
    let node = cluster.node("n0");
    let mut client = node.client();
    client.fence(1, 1);
    for chunk in 0..4 {
        assert_eq!(
            client.write(chunk, 0, 1, pattern(chunk.into(), 256)),
            Status::Ok
        );
    }
    // 48 MiB of replies, none of them read until all are asked for: more than socket buffers take.
    let asked: Vec<u64> = (0..48)
        .map(|i| {
            let header = client.header(Opcode::Read, i % 4, 0, 256);
            client.send(header, Vec::new(), None)
        })
        .collect();
    // The node goes on serving others meanwhile.
    let mut other = node.client();
    (other.token, other.generation) = (1, 1);
    assert!(other.read(1, 0, 1) == Ok(pattern(1, 256)[..4096].to_vec()));
    let mut seen = Vec::new();
    for _ in &asked {
        let reply = client.receive().expect("reply");
        assert_eq!(reply.header.status, Status::Ok);
        let data = reply.data.expect("data");
        assert!(data == pattern(reply.header.chunk.0.into(), 256));
        seen.push(reply.header.tag);
    }
    seen.sort_unstable();
    assert_eq!(seen, asked);
}

#[test]
fn a_full_node_says_so_and_a_discard_makes_room() {
    let cluster = Cluster::new();
    let node = cluster.node("n0");
    let mut client = node.client();
    client.fence(1, 1);
    let mut written = 0;
    let status = loop {
        match client.write(written, 0, 1, pattern(written.into(), 1)) {
            Status::Ok => written += 1,
            status => break status,
        }
        assert!(written < 64, "64 MiB hold no 64 slots");
    };
    assert_eq!(status, Status::NoSpace);
    assert!(written > 50, "{written} slots of 64 MiB");
    for chunk in 0..written {
        assert!(client.read(chunk, 0, 1) == Ok(pattern(chunk.into(), 1)));
    }
    // Overwriting needs no space; a discarded slot can be used once its release is durable.
    assert_eq!(client.write(0, 0, 2, pattern(100, 1)), Status::Ok);
    assert_eq!(client.zero(1, 0, 256, 3), Status::Ok);
    assert_eq!(client.flush(), Status::Ok);
    assert_eq!(client.write(written, 0, 4, pattern(101, 1)), Status::Ok);
    assert!(client.read(1, 0, 256) == Ok(vec![0; 1 << 20]));
    assert!(client.read(written, 0, 1) == Ok(pattern(101, 1)));
    assert!(node.stop().success());
}

#[test]
fn two_shards_share_a_node_and_know_their_chunks() {
    let cluster = Cluster::new();
    let output = cluster.format("n0", &["--size", "128MiB", "--shards", "2"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let node = cluster.start("n0", &["--cores", "0,1"]);
    assert_eq!(node.shards.len(), 2);
    let mut clients = [node.client_of(0, 0), node.client_of(1, 0)];
    for client in &mut clients {
        assert_eq!(client.fence(1, 1), Status::Ok);
    }
    for chunk in 0..16 {
        let owner = route::shard_of(VOLUME, ChunkIndex(chunk), 2).0;
        for (shard, client) in clients.iter_mut().enumerate() {
            let status = client.write(chunk, 0, 1, pattern(chunk.into(), 1));
            let expected = if shard == usize::from(owner) {
                Status::Ok
            } else {
                Status::WrongShard
            };
            assert_eq!(status, expected, "chunk {chunk} at shard {shard}");
        }
    }
    assert!(node.stop().success());
}

#[test]
fn a_service_manager_is_told() {
    let cluster = Cluster::new();
    assert!(cluster.format("n0", &["--size", "64MiB"]).status.success());
    let path = cluster.path("notify");
    let socket = std::os::unix::net::UnixDatagram::bind(&path).expect("bind");
    socket
        .set_read_timeout(Some(std::time::Duration::from_secs(60)))
        .expect("timeout");
    let told = || {
        let mut buffer = [0; 64];
        let n = socket.recv(&mut buffer).expect("a notification");
        text(&buffer[..n])
    };
    let node = cluster.start_with("n0", &[], &[("NOTIFY_SOCKET", &path)]);
    assert_eq!(told(), "READY=1");
    assert!(node.stop().success());
    assert_eq!(told(), "STOPPING=1");
}
