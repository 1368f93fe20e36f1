//! The NBD frontend of the real binary, on nodes that keep sectors in memory.

mod common;

use common::nbd::{FLUSH, NbdClient, READ, TRIM, WRITE, WRITE_ZEROES};
use common::{Cluster, VOLUME_BYTES, pattern};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use ukai_proto::Opcode;

#[test]
fn what_is_written_is_read_on_every_connection_and_from_every_replica() {
    let cluster = Cluster::new(2);
    let mut front = cluster.attach(&[]);
    for structured in [false, true] {
        let mut client = NbdClient::connect(&front.socket(), structured).unwrap();
        assert_eq!(client.size_bytes, VOLUME_BYTES);
        let seed = u64::from(structured);
        for (index, len) in [4096, 8192, 65536, 1 << 20, (1 << 20) + 4096]
            .into_iter()
            .enumerate()
        {
            let offset = ((index as u64) << 22) + 12288;
            let data = pattern(seed + len as u64, len);
            client.write(offset, &data);
            assert!(client.read(offset, len) == data, "{len} bytes differ");
            let mut other = NbdClient::connect(&front.socket(), !structured).unwrap();
            assert!(
                other.read(offset, len) == data,
                "{len} bytes differ on another connection"
            );
            other.disconnect();
        }
        client.flush();
        assert!(client.read(200 << 20, 8192).iter().all(|byte| *byte == 0));
        client.disconnect();
    }
    assert_eq!(cluster.nodes[0].content(), cluster.nodes[1].content());
    assert!(
        cluster
            .nodes
            .iter()
            .all(|node| node.seen(Opcode::Flush) > 0)
    );
    let output = cluster.output(&["detach", "vol"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(front.exit_code(), Some(0));
}

#[test]
fn the_largest_requests_are_split_and_put_together_again() {
    let cluster = Cluster::new(1);
    let front = cluster.attach(&[]);
    let mut client = NbdClient::connect(&front.socket(), true).unwrap();
    let data = pattern(5, 32 << 20);
    let length = 32 << 20;
    // Two at once, not aligned to slots: more than the buffers hold.
    let first = client.send(WRITE, 1, 4096, &data, length);
    let second = client.send(WRITE, 1, (64 << 20) + 4096, &data, length);
    let mut done: Vec<u64> = (0..2)
        .map(|_| client.receive().unwrap())
        .map(|(c, _)| c)
        .collect();
    done.sort_unstable();
    assert_eq!(done, [first, second]);
    let reads = [4096, (64 << 20) + 4096, 4096].map(|at| client.send(READ, 4, at, &[], length));
    for _ in reads {
        let (_, reply) = client.receive().unwrap();
        assert!(reply.unwrap() == data);
    }
    // Reads need not be aligned.
    assert_eq!(client.read(4096 + 513, 9000), data[513..9513]);
    assert_eq!(client.read(4095, 2), [0, data[0]]);
    client.disconnect();
}

#[test]
fn trims_and_zeroes_read_as_zeros_and_bad_requests_change_nothing() {
    let cluster = Cluster::new(1);
    let front = cluster.attach(&[]);
    let mut client = NbdClient::connect(&front.socket(), true).unwrap();
    let data = pattern(1, 65536);
    client.write(0, &data);
    client.call(TRIM, 100, &[], 8192).unwrap();
    client.call(WRITE_ZEROES, 16384, &[], 8192).unwrap();
    let got = client.read(0, 65536);
    assert_eq!(got[..4096], data[..4096]);
    assert!(got[4096..8192].iter().all(|byte| *byte == 0));
    assert_eq!(got[8192..16384], data[8192..16384]);
    assert!(got[16384..24576].iter().all(|byte| *byte == 0));
    assert_eq!(got[24576..], data[24576..]);
    // A discard of the whole volume is one request.
    client
        .call(TRIM, 0, &[], u32::try_from(VOLUME_BYTES).unwrap())
        .unwrap();
    assert!(client.read(0, 65536).iter().all(|byte| *byte == 0));
    assert_eq!(client.call(READ, VOLUME_BYTES, &[], 4096), Err(22));
    assert_eq!(
        client.call(WRITE, VOLUME_BYTES - 4096, &data[..8192], 8192),
        Err(28)
    );
    assert_eq!(client.call(WRITE, 512, &data[..4096], 4096), Err(22));
    assert_eq!(client.call(FLUSH, 0, &[], 1), Err(22));
    assert_eq!(client.call(77, 0, &[], 4096), Err(95));
    assert!(
        client
            .read(VOLUME_BYTES - 4096, 4096)
            .iter()
            .all(|byte| *byte == 0)
    );
    client.disconnect();
}

#[test]
fn many_requests_in_flight_are_all_answered() {
    let cluster = Cluster::new(2);
    let front = cluster.attach(&[]);
    let mut client = NbdClient::connect(&front.socket(), true).unwrap();
    let mut model: BTreeMap<u64, u64> = BTreeMap::new();
    for round in 0..10u64 {
        // More than there are slots.
        for n in 0..300u64 {
            let sector = (n * 37 + round * 11) % 5000;
            let data = pattern(round << 32 | n, 4096);
            client.send(WRITE, 0, sector * 4096, &data, 4096);
            model.insert(sector, round << 32 | n);
        }
        for _ in 0..300 {
            assert_eq!(client.receive().unwrap().1, Ok(Vec::new()));
        }
    }
    let model: Vec<(u64, u64)> = model.into_iter().collect();
    // A client that sends without taking replies blocks itself; so does this one above some number.
    for batch in model.chunks(50) {
        let sent: BTreeMap<u64, u64> = batch
            .iter()
            .map(|(sector, seed)| (client.send(READ, 0, sector * 4096, &[], 4096), *seed))
            .collect();
        for _ in 0..sent.len() {
            let (cookie, reply) = client.receive().unwrap();
            assert!(reply.unwrap() == pattern(sent[&cookie], 4096));
        }
    }
    client.disconnect();
    assert_eq!(cluster.nodes[0].content(), cluster.nodes[1].content());
}

#[test]
fn a_broken_connection_is_made_again_and_nothing_is_lost() {
    let cluster = Cluster::new(2);
    let front = cluster.attach(&[]);
    let mut client = NbdClient::connect(&front.socket(), true).unwrap();
    for round in 0..5u64 {
        let data = pattern(round, 1 << 20);
        let offset = round << 20;
        client.send(WRITE, 0, offset, &data, 1 << 20);
        cluster.nodes[usize::from(round % 2 == 0)].disconnect(false);
        assert_eq!(client.receive().unwrap().1, Ok(Vec::new()));
        client.send(READ, 0, offset, &[], 1 << 20);
        cluster.nodes[usize::from(round % 2 == 1)].disconnect(false);
        assert!(client.receive().unwrap().1.unwrap() == data);
    }
    client.disconnect();
}

#[test]
fn a_lost_node_is_recorded_stale_and_io_goes_on() {
    let cluster = Cluster::new(2);
    let front = cluster.attach(&[]);
    let mut client = NbdClient::connect(&front.socket(), true).unwrap();
    let data = pattern(1, 65536);
    client.write(0, &data);
    cluster.nodes[0].disconnect(true);
    client.write(65536, &data);
    assert!(client.read(0, 65536) == data);
    assert!(client.read(65536, 65536) == data);
    let head = ukai_meta::catalog::load_head(cluster.store(), cluster.volume).unwrap();
    assert_eq!(head.health.len(), 1);
    assert_eq!(head.health[0].0, cluster.nodes[0].id());
    client.disconnect();
}

#[test]
fn damage_on_the_way_is_noticed_and_read_from_the_other_replica() {
    let cluster = Cluster::new(2);
    let front = cluster.attach(&[]);
    let mut client = NbdClient::connect(&front.socket(), true).unwrap();
    let data = pattern(3, 1 << 20);
    client.write(0, &data);
    for node in &cluster.nodes {
        node.corrupt_reads(true);
        assert!(client.read(0, 1 << 20) == data);
        node.corrupt_reads(false);
    }
    client.disconnect();
}

#[test]
fn nodes_that_speak_nonsense_or_are_others_do_no_harm() {
    let cluster = Cluster::new(2);
    let front = cluster.attach(&[]);
    let mut client = NbdClient::connect(&front.socket(), true).unwrap();
    let data = pattern(3, 1 << 20);
    for round in 0..4u64 {
        cluster.nodes[usize::from(round % 2 == 0)].junk();
        client.write(round << 20, &data);
        assert!(client.read(round << 20, 1 << 20) == data);
    }
    // Another node answers at the address: as good as lost.
    cluster.nodes[1].impostor(true);
    cluster.nodes[1].disconnect(false);
    client.write(0, &data);
    assert!(client.read(0, 1 << 20) == data);
    let head = ukai_meta::catalog::load_head(cluster.store(), cluster.volume).unwrap();
    assert_eq!(head.health.len(), 1);
    assert_eq!(head.health[0].0, cluster.nodes[1].id());
    client.disconnect();
}

#[test]
fn a_node_that_does_not_serve_for_a_moment_gets_the_write_again() {
    for nodes in [1, 2] {
        let cluster = Cluster::new(nodes);
        let front = cluster.attach(&[]);
        let mut client = NbdClient::connect(&front.socket(), false).unwrap();
        client.write(0, &pattern(1, 4096));
        for seed in 2..5 {
            let data = pattern(seed, 4096);
            cluster.nodes[0].refuse_a_write();
            client.write(0, &data);
            assert!(client.read(0, 4096) == data);
        }
        client.disconnect();
    }
}

#[test]
fn junk_and_vanishing_clients_do_no_harm() {
    let cluster = Cluster::new(1);
    let front = cluster.attach(&[]);
    let data = pattern(3, 1 << 20);
    for seed in 0..8 {
        let mut junk = UnixStream::connect(front.socket()).unwrap();
        junk.write_all(&pattern(seed, 5000)).unwrap();
        let _ = junk.read(&mut [0; 64]);
        // Gone in the middle of a payload, and with replies outstanding.
        let mut client = NbdClient::connect(&front.socket(), true).unwrap();
        client.send(READ, 0, 0, &[], 1 << 20);
        client.send(WRITE, 0, 0, &data[..300_000], 1 << 20);
    }
    let mut client = NbdClient::connect(&front.socket(), true).unwrap();
    client.write(0, &data);
    assert!(client.read(0, 1 << 20) == data);
    client.raw().write_all(&[0xff; 28]).unwrap();
    assert_eq!(client.raw().read(&mut [0; 1]).unwrap(), 0);
}
