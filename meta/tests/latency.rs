//! `latencies/<host>`: its JSON stays readable, records of probes and fronts add up, damage is named.
#![allow(clippy::unwrap_used)] // a test fails by panicking, in its helpers as well

use proptest::prelude::*;
use ukai_meta::catalog::{self, CatalogError};
use ukai_meta::latency::{HostLatency, LatencyPoints, NodeLatency};
use ukai_meta::memory::{CommitFault, MemoryCluster};
use ukai_meta::{MetaError, MetaStore, key};
use ukai_proto::NodeId;

fn points(count: u64, us: f64) -> Option<LatencyPoints> {
    LatencyPoints::from_quantiles(count, |quantile| us * (1.0 + quantile))
}

fn sample() -> HostLatency {
    HostLatency {
        host: "hv1.example".into(),
        at_unix_s: 1_790_000_000,
        by: "front of db".into(),
        nodes: vec![
            NodeLatency {
                node: NodeId([1; 16]),
                at_unix_s: 1_789_999_999,
                network: points(10, 83.25),
                read: points(11, 200.0),
                write: points(12, 300.0),
                read_large: points(15, 2000.0),
                write_large: points(16, 3000.0),
                read_service: points(13, 90.0),
                write_service: points(14, 150.0),
            },
            NodeLatency {
                network: points(7, 5000.0),
                ..NodeLatency::of(NodeId([2; 16]))
            },
        ],
    }
}

#[test]
fn the_record_is_written_and_read_as_ever() {
    let file = format!(
        "{}/tests/golden/latency-v1.json",
        env!("CARGO_MANIFEST_DIR")
    );
    let text = serde_json::to_string(&sample()).unwrap() + "\n";
    // To be set once, after a field was added.
    if std::env::var_os("UKAI_WRITE_GOLDEN").is_some() {
        std::fs::write(&file, &text).unwrap();
    }
    let golden = std::fs::read_to_string(&file).unwrap();
    assert_eq!(text, golden, "the JSON of latencies changed");
    assert_eq!(
        serde_json::from_str::<HostLatency>(&golden).unwrap(),
        sample()
    );
}

#[test]
fn records_of_probes_and_fronts_add_up() {
    let store = MemoryCluster::new().session();
    assert_eq!(catalog::host_latency(&store, "hv1"), Ok(None));
    let host = |n: u8, us, by: &str| HostLatency {
        host: "hv1".into(),
        at_unix_s: u64::from(n),
        by: by.into(),
        nodes: vec![NodeLatency {
            network: points(1, us),
            ..NodeLatency::of(NodeId([n; 16]))
        }],
    };
    catalog::put_host_latency(&store, &host(1, 10.0, "probe")).unwrap();
    for fault in [CommitFault::UnknownLanded, CommitFault::UnknownLost] {
        store.inject(fault);
        catalog::put_host_latency(&store, &host(2, 20.0, "front of v")).unwrap();
    }
    catalog::put_host_latency(&store, &host(1, 30.0, "probe")).unwrap();
    let found = catalog::host_latency(&store, "hv1").unwrap().unwrap();
    assert_eq!((found.at_unix_s, found.by.as_str()), (1, "probe"));
    assert_eq!(found.nodes.len(), 2);
    assert_eq!(
        found.node(NodeId([1; 16])).unwrap().network,
        points(1, 30.0)
    );
    assert_eq!(
        found.node(NodeId([2; 16])).unwrap().network,
        points(1, 20.0)
    );
    let other = HostLatency {
        host: "a".into(),
        ..found.clone()
    };
    catalog::put_host_latency(&store, &other).unwrap();
    assert_eq!(catalog::host_latencies(&store), Ok(vec![other, found]));
    for host in ["", "a/b", "x y"] {
        let error = catalog::host_latency(&store, host).unwrap_err();
        assert!(
            matches!(error, CatalogError::BadName { what: "host", .. }),
            "{error}"
        );
    }
}

/// As many nodes as a record keeps, with everything known of each, fit into a value of the store.
#[test]
fn the_largest_record_fits() {
    let store = MemoryCluster::new().session();
    let nodes = (0..u8::MAX).chain([u8::MAX]).map(|n| NodeLatency {
        node: NodeId([n; 16]),
        ..NodeLatency {
            network: points(u64::MAX, 59_999_999.9),
            read: points(u64::MAX, 59_999_999.9),
            write: points(u64::MAX, 59_999_999.9),
            read_large: points(u64::MAX, 59_999_999.9),
            write_large: points(u64::MAX, 59_999_999.9),
            at_unix_s: u64::MAX,
            read_service: points(u64::MAX, 59_999_999.9),
            write_service: points(u64::MAX, 59_999_999.9),
            ..NodeLatency::of(NodeId::NIL)
        }
    });
    let record = HostLatency {
        nodes: nodes.collect(),
        ..sample()
    };
    assert_eq!(record.nodes.len(), ukai_meta::latency::HOST_NODES_MAX);
    catalog::put_host_latency(&store, &record).unwrap();
    catalog::put_host_latency(&store, &record).unwrap();
}

#[test]
fn a_damaged_record_is_named() {
    let cluster = MemoryCluster::new();
    let store = cluster.session();
    catalog::put_host_latency(&store, &sample()).unwrap();
    let key = key::latency("hv1.example");
    cluster.damage(&key, |bytes| bytes.truncate(bytes.len() / 2));
    for error in [
        catalog::host_latencies(&store).unwrap_err(),
        catalog::put_host_latency(&store, &sample()).unwrap_err(),
    ] {
        let named =
            matches!(&error, CatalogError::Store(MetaError::Corrupt { key: k, .. }) if *k == key);
        assert!(named, "{error}");
    }
    assert!(store.get(&key).unwrap().is_some());
}

proptest! {
    #[test]
    fn changed_json_is_refused_or_obeys_the_invariants(
        at in any::<prop::sample::Index>(), byte in any::<u8>(),
    ) {
        let mut bytes = serde_json::to_vec(&sample()).unwrap();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(host) = serde_json::from_slice::<HostLatency>(&bytes) {
            let all = host.nodes.iter().flat_map(|n| [n.network, n.read, n.write, n.read_service, n.write_service]);
            for points in all.flatten() {
                prop_assert!(points.count > 0 && points.us.is_sorted() && points.us[0] >= 0.0);
            }
        }
    }
}
