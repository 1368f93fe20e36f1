//! SIGKILL under load: whatever was acknowledged is there, and everything else is old or new.
#![allow(clippy::cast_possible_truncation)] // test data is small

mod client;

use client::{Client, Cluster};
use std::collections::BTreeMap;
use ukai_proto::message::crc_table;
use ukai_proto::*;

const SECTORS: u16 = 64;
const IN_FLIGHT: usize = 48;
const ROUNDS: u32 = 6;

/// A sector that names its write.
fn stamped(token: u32, seq: u64) -> Vec<u8> {
    (u64::from(token) << 48 | seq).to_le_bytes().repeat(512)
}

fn stamp(sector: &[u8]) -> (u32, u64) {
    let first: [u8; 8] = sector[..8].try_into().expect("8 bytes");
    assert!(
        sector.chunks(8).all(|word| word == first),
        "a sector mixes two writes"
    );
    let word = u64::from_le_bytes(first);
    ((word >> 48) as u32, word & 0xffff_ffff_ffff)
}

fn send(client: &mut Client, sector: u16, seq: u64) -> u64 {
    let data = stamped(client.token, seq);
    // Spread over four chunks, so that intents and allocations are under way too.
    let header = Header {
        seq: Seq(seq),
        ..client.header(Opcode::Write, u32::from(sector % 4), sector, 1)
    };
    let aux = crc_table(0, crc::sector_crcs(&data));
    client.send(header, aux, Some(data))
}

#[test]
fn a_node_killed_under_load_loses_nothing_it_acknowledged() {
    let cluster = Cluster::new();
    let mut node = cluster.node("n0");
    // Per sector: the last acknowledged write, and all sent after it.
    let mut acked: BTreeMap<u16, (u32, u64)> = BTreeMap::new();
    let mut maybe: BTreeMap<u16, Vec<(u32, u64)>> = BTreeMap::new();
    for round in 1..=ROUNDS {
        let mut client = node.client();
        assert_eq!(client.fence(round, 1), Status::Ok);
        for sector in 0..SECTORS {
            let chunk = u32::from(sector % 4);
            let data = client.read(chunk, sector, 1).expect("read");
            let found = stamp(&data);
            let last = acked.get(&sector).copied().unwrap_or_default();
            let later = maybe.remove(&sector).unwrap_or_default();
            assert!(
                found == last || later.contains(&found),
                "round {round}, sector {sector}: found {found:?}, acknowledged {last:?}, sent {later:?}"
            );
            acked.insert(sector, found);
        }
        let (mut seq, mut waiting, mut replies) = (0, BTreeMap::new(), 0);
        let enough = 300 * u64::from(round);
        loop {
            while waiting.len() < IN_FLIGHT && replies < enough {
                seq += 1;
                // A stride prime to the sectors: neighbours in time are not neighbours in place, and
                // the same sector comes again while its last write is under way.
                let sector = (seq * 29 % 40) as u16 % SECTORS;
                let tag = send(&mut client, sector, seq);
                maybe.entry(sector).or_default().push((round, seq));
                waiting.insert(tag, (sector, seq));
            }
            if replies == enough {
                break;
            }
            let reply = client.receive().expect("reply");
            assert_eq!(reply.header.status, Status::Ok);
            let (sector, seq) = waiting.remove(&reply.header.tag).expect("asked");
            let last = acked.entry(sector).or_default();
            *last = (*last).max((round, seq));
            let last = *last;
            let later = maybe.entry(sector).or_default();
            later.retain(|sent| *sent > last);
            replies += 1;
        }
        // With requests in flight.
        node.kill();
        node = cluster.start("n0", &[]);
    }
    assert!(node.stop().success());
}
