//! From what was measured between a host and nodes to what the planner takes for true, and what it had to
//! assume for it.

use super::args::AssumeArg;
use super::model::Distribution;
use super::problem::NodeModel;
use super::target::{Kind, latency_text};
use std::collections::BTreeMap;
use ukai_meta::latency::SMALL_SECTORS_MAX;
use ukai_meta::report::FrontReport;
use ukai_meta::{LatencyPoints, NodeLatency, NodeRecord};
use ukai_proto::NodeId;

/// Requests of the last minute that a measurement of the front's own time needs.
const FRONT_SAMPLES_MIN: u64 = 100;
/// More is no overhead of a request, but a load or a way that was another one when the network was measured.
const BEYOND_US_MAX: f64 = 5000.0;

/// Where a node's numbers come from, for the list of assumptions.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Source {
    Measured,
    /// Network and service, each measured.
    Parts,
    /// The service is that of other nodes.
    OtherService,
    /// No service is known at all.
    NetworkOnly,
    /// Large requests, for want of anything else.
    Large,
    /// Reads for writes, or writes for reads.
    OtherKind,
    /// `--assume`.
    Assumed,
    /// `--assume`, and the service of other nodes.
    AssumedAndService,
}

impl Source {
    /// `kind`: "read", "write" or "read or write". `larger`: such were measured, but only larger ones than what plans
    /// are made for.
    fn text(self, kind: &str, larger: bool) -> Option<String> {
        let no = match larger {
            true => format!(
                "no {kind} of at most {} KiB was measured, only larger ones",
                u32::from(SMALL_SECTORS_MAX) * 4
            ),
            false => format!("no {kind} was measured"),
        };
        match self {
            Self::Measured => None,
            Self::Parts => Some(format!(
                "{no}: network round trip plus the node's own service time"
            )),
            Self::OtherService => Some(format!(
                "{no}: network round trip plus the service time of other nodes"
            )),
            Self::NetworkOnly => Some(format!(
                "{no}, and no service time: network round trip alone"
            )),
            Self::OtherKind => Some(format!("{no}: taken to be as the other kind")),
            Self::Large => Some(format!("{no}: those are taken, so it will be faster")),
            Self::Assumed => Some("nothing was measured: as told by --assume".into()),
            Self::AssumedAndService => Some(
                "nothing was measured: as told by --assume, plus the service time of other nodes"
                    .into(),
            ),
        }
    }
}

/// Models of nodes as seen from one host.
pub(crate) struct Models {
    pub(crate) models: BTreeMap<NodeId, NodeModel>,
    /// One line for each thing that had to be assumed.
    pub(crate) assumed: Vec<String>,
}

/// Makes them, from what the host's record and the report of a front there tell. Of each node the later word counts;
/// see [`NodeLatency::fill_in`] for what the earlier one adds.
pub(crate) fn models(
    nodes: &[NodeRecord],
    record: &[NodeLatency],
    front: &[NodeLatency],
    assume: &[AssumeArg],
) -> Models {
    let known: BTreeMap<NodeId, NodeLatency> = nodes
        .iter()
        .map(|node| (node.node, merged(node.node, record, front)))
        .collect();
    let typical = Kind::BOTH.map(|kind| Typical::of(known.values(), kind));
    let mut out = Models {
        models: BTreeMap::new(),
        assumed: Vec::new(),
    };
    let mut beyond: BTreeMap<(Kind, u64), Vec<&str>> = BTreeMap::new();
    let mut notes: BTreeMap<(Kind, Source, bool), Vec<&str>> = BTreeMap::new();
    for node in nodes {
        let assumed = assume
            .iter()
            .find(|one| one.who == node.name || one.who.parse() == Ok(node.node))
            .or_else(|| assume.iter().find(|one| one.who == node.site));
        #[allow(clippy::cast_precision_loss)] // at most 100 s
        let assumed = assumed.map(|one| one.latency.us as f64);
        let latency = &known[&node.node];
        let (Some((read, by_read, read_us)), Some((write, by_write, write_us))) = (
            round_trip(latency, Kind::Read, &typical, assumed),
            round_trip(latency, Kind::Write, &typical, assumed),
        ) else {
            continue;
        };
        for (kind, source, beyond_us) in [
            (Kind::Read, by_read, read_us),
            (Kind::Write, by_write, write_us),
        ] {
            if beyond_us > 0 {
                beyond
                    .entry((kind, beyond_us))
                    .or_default()
                    .push(&node.name);
            }
            let larger = large(latency, kind).is_some();
            notes
                .entry((kind, source, larger))
                .or_default()
                .push(&node.name);
        }
        out.models.insert(node.node, NodeModel { read, write });
    }
    // The same said of the same nodes' reads and writes is said once.
    let mut said: BTreeMap<(Source, bool, Vec<&str>), Vec<&str>> = BTreeMap::new();
    for ((kind, source, larger), names) in notes {
        said.entry((source, larger, names))
            .or_default()
            .push(kind.name());
    }
    for ((source, larger, names), kinds) in said {
        if let Some(text) = source.text(&kinds.join(" or "), larger) {
            out.assumed.push(format!("{}: {text}", names.join(", ")));
        }
    }
    for ((kind, us), names) in beyond {
        #[allow(clippy::cast_precision_loss)] // microseconds
        let text = latency_text(us as f64);
        out.assumed.push(format!(
            "{}: plus {text} that a {} takes beyond these, as measured on other nodes",
            names.join(", "),
            kind.name()
        ));
    }
    out
}

/// What is known of a node, the later word first.
fn merged(node: NodeId, record: &[NodeLatency], front: &[NodeLatency]) -> NodeLatency {
    let find = |list: &[NodeLatency]| list.iter().find(|known| known.node == node).cloned();
    match (find(front), find(record)) {
        (Some(front), Some(record)) => {
            let (mut later, earlier) = match front.at_unix_s >= record.at_unix_s {
                true => (front, record),
                false => (record, front),
            };
            later.fill_in(&earlier);
            later
        }
        (one, other) => one.or(other).unwrap_or(NodeLatency::of(node)),
    }
}

fn large(latency: &NodeLatency, kind: Kind) -> Option<&LatencyPoints> {
    match kind {
        Kind::Read => latency.read_large.as_ref(),
        Kind::Write => latency.write_large.as_ref(),
    }
}

fn measured(latency: &NodeLatency, kind: Kind) -> Option<&LatencyPoints> {
    match kind {
        Kind::Read => latency.read.as_ref(),
        Kind::Write => latency.write.as_ref(),
    }
}

fn service_of(latency: &NodeLatency, kind: Kind) -> Option<&LatencyPoints> {
    match kind {
        Kind::Read => latency.read_service.as_ref(),
        Kind::Write => latency.write_service.as_ref(),
    }
}

/// Service time of any node: the mixture of those that told theirs; else by how much round trips are above
/// the network's, in the median.
fn typical_service<'a>(
    known: impl Iterator<Item = &'a NodeLatency> + Clone,
    kind: Kind,
) -> Option<Distribution> {
    let told: Vec<Distribution> = known
        .clone()
        .filter_map(|node| service_of(node, kind))
        .map(Distribution::from_points)
        .collect();
    if !told.is_empty() {
        return Some(Distribution::mixture(told.iter().map(|one| (1.0, one))));
    }
    let above = known
        .filter_map(|node| Some(measured(node, kind)?.quantile(0.5) - node.network?.quantile(0.5)));
    let mut above: Vec<f64> = above.collect();
    above.sort_by(f64::total_cmp);
    let median = *above.get(above.len() / 2)?;
    (median > 1.0).then(|| Distribution::constant(median))
}

/// What is known of nodes in general, for those of which a kind of request was not measured.
struct Typical {
    service: Option<Distribution>,
    /// (network round trip, what requests took beyond it and the service): medians of each node, microseconds.
    beyond: Vec<(f64, f64)>,
}

impl Typical {
    fn of<'a>(known: impl Iterator<Item = &'a NodeLatency> + Clone, kind: Kind) -> Self {
        let beyond = |node: &NodeLatency| {
            let network = node.network?.quantile(0.5);
            let parts = network + service_of(node, kind)?.quantile(0.5);
            let above = (measured(node, kind)?.quantile(0.5) - parts).max(0.0);
            (above <= BEYOND_US_MAX).then_some((network, above))
        };
        Self {
            beyond: known.clone().filter_map(beyond).collect(),
            service: typical_service(known, kind),
        }
    }

    /// Round trips that are asked for alone are faster than those of requests, which carry data and meet others. By how
    /// much tells the node that is as near, as far as there is one.
    fn beyond_us(&self, network_us: f64) -> u64 {
        let apart = |(other, _): &(f64, f64)| (other.max(1.0) / network_us.max(1.0)).ln().abs();
        let nearest = self
            .beyond
            .iter()
            .min_by(|a, b| apart(a).total_cmp(&apart(b)));
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // 0 to BEYOND_US_MAX
        nearest.map_or(0, |(_, us)| us.round() as u64)
    }
}

/// The distribution, where it comes from, and what of it was added for requests, microseconds.
fn round_trip(
    latency: &NodeLatency,
    kind: Kind,
    typical: &[Typical; 2],
    assumed: Option<f64>,
) -> Option<(Distribution, Source, u64)> {
    let other = match kind {
        Kind::Read => Kind::Write,
        Kind::Write => Kind::Read,
    };
    if let Some(points) = measured(latency, kind) {
        return Some((Distribution::from_points(points), Source::Measured, 0));
    }
    let own_service = service_of(latency, kind).map(Distribution::from_points);
    let [read, write] = typical;
    let other_service = match kind {
        Kind::Read => read.service.as_ref().or(write.service.as_ref()),
        Kind::Write => write.service.as_ref().or(read.service.as_ref()),
    };
    if let Some(network) = &latency.network {
        let beyond_us = match kind {
            Kind::Read => read.beyond_us(network.quantile(0.5)),
            Kind::Write => write.beyond_us(network.quantile(0.5)),
        };
        let network = Distribution::from_points(network);
        #[allow(clippy::cast_precision_loss)] // microseconds
        let with = |service| match beyond_us {
            0 => network.sum(service),
            us => network.sum(service).later(us as f64),
        };
        return Some(match (own_service, other_service) {
            (Some(service), _) => (with(&service), Source::Parts, beyond_us),
            (None, Some(service)) => (with(service), Source::OtherService, beyond_us),
            (None, None) => match large(latency, kind) {
                Some(large) => (Distribution::from_points(large), Source::Large, 0),
                None => (network, Source::NetworkOnly, 0),
            },
        });
    }
    if let Some(points) = measured(latency, other) {
        return Some((Distribution::from_points(points), Source::OtherKind, 0));
    }
    if let Some(points) = large(latency, kind).or_else(|| large(latency, other)) {
        return Some((Distribution::from_points(points), Source::Large, 0));
    }
    let network = Distribution::constant(assumed?);
    let service = own_service.as_ref().or(other_service);
    Some(match service {
        Some(service) => (network.sum(service), Source::AssumedAndService, 0),
        None => (network, Source::Assumed, 0),
    })
}

/// What the guest waits for a read and for a write beside the nodes: the front's own time, as it measures it request by
/// request, and the way to the guest and back. On that two threads are woken that the front does not see wake; each is
/// taken to be as late as the front's own threads are for a timer. `None`: not told.
pub(crate) fn overhead(front: &FrontReport) -> Option<[Distribution; 2]> {
    let enough = |points: &Option<LatencyPoints>| {
        let points = points.filter(|points| points.count >= FRONT_SAMPLES_MIN)?;
        Some(Distribution::from_points(&points))
    };
    let guest = &front.guest;
    let (read, write) = (enough(&guest.read.front), enough(&guest.write.front));
    // What is only known of one kind is much the same for the other.
    let (read, write) = (read.clone().or(write.clone())?, write.or(read)?);
    let Some(wake) = &front.wake else {
        return Some([read, write]);
    };
    let wake = Distribution::from_points(wake);
    let way = wake.sum(&wake);
    Some([read.sum(&way), write.sum(&way)])
}

pub(crate) fn add_overhead(models: &mut BTreeMap<NodeId, NodeModel>, overhead: &[Distribution; 2]) {
    let [read, write] = overhead;
    for model in models.values_mut() {
        model.read = model.read.sum(read);
        model.write = model.write.sum(write);
    }
}

/// For the list of assumptions.
pub(crate) fn overhead_text(overhead_us: [f64; 2], host: &str) -> String {
    format!(
        "beside the nodes, the guest waits {} for a read and {} for a write: the front's own time and that of waking threads on {host} now",
        latency_text(overhead_us[0]),
        latency_text(overhead_us[1])
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use ukai_meta::latency::STALE_S;

    fn points(us: f64) -> Option<LatencyPoints> {
        LatencyPoints::from_quantiles(100, |q| us * (1.0 + q))
    }

    fn record(n: u8) -> NodeRecord {
        NodeRecord {
            node: NodeId([n; 16]),
            name: format!("n{n}"),
            site: format!("site-{}", n / 10),
            labels: Vec::new(),
            shard_count: 1,
            shard_addresses: Vec::new(),
            host: "h".into(),
            capacity_bytes: 1,
            draining: false,
        }
    }

    fn latency(n: u8) -> NodeLatency {
        NodeLatency::of(NodeId([n; 16]))
    }

    #[test]
    fn what_is_missing_is_taken_from_others_and_said() {
        let known = [
            NodeLatency {
                network: points(100.0),
                read: points(300.0),
                read_service: points(200.0),
                ..latency(1)
            },
            NodeLatency {
                network: points(1000.0),
                ..latency(2)
            },
            NodeLatency {
                network: points(1000.0),
                read_service: points(4000.0),
                ..latency(3)
            },
            latency(4),
        ];
        let nodes: Vec<NodeRecord> = (1..=5).map(record).collect();
        let assume = ["n5=7ms".parse().unwrap(), "site-9=1ms".parse().unwrap()];
        let got = models(&nodes, &known, &[], &assume);
        let read = |n: u8| {
            got.models
                .get(&NodeId([n; 16]))
                .map(|model| model.read.quantile(0.5).round())
        };
        let near =
            |us: Option<f64>, exact: f64| us.is_some_and(|us| (us / exact - 1.0).abs() < 0.05);
        assert!(near(read(1), 450.0), "{:?}", read(1));
        assert!(
            near(read(2), 1500.0 + 1.5 * (200.0 + 4000.0) / 2.0) || read(2) > read(1),
            "{:?}",
            read(2)
        );
        assert!(near(read(3), 7500.0), "{:?}", read(3));
        assert_eq!(read(4), None, "nothing is known");
        assert!(read(5).is_some_and(|us| us > 7000.0), "{:?}", read(5));
        let text = got.assumed.join("\n");
        assert!(
            text.contains(
                "n3: no read was measured: network round trip plus the node's own service"
            ),
            "{text}"
        );
        assert!(
            text.contains(
                "n2: no read was measured: network round trip plus the service time of other nodes"
            ),
            "{text}"
        );
        assert!(
            text.contains("n5: nothing was measured: as told by --assume, plus"),
            "{text}"
        );
        assert!(!text.contains("n1: no read"), "{text}");
        assert!(text.contains("n1, n2, n3: no write was measured: network round trip plus the service time of other"), "{text}");
    }

    /// n1 is far and measured, n2 and n3 were only asked for their round trip.
    #[test]
    fn what_requests_take_beyond_a_round_trip_is_added() {
        let flat = |us: f64| LatencyPoints::from_quantiles(100, |_| us);
        let known = [
            NodeLatency {
                network: flat(10_000.0),
                read: flat(10_500.0),
                read_service: flat(200.0),
                ..latency(1)
            },
            NodeLatency {
                network: flat(50.0),
                ..latency(2)
            },
        ];
        let nodes = [record(1), record(2), record(3)];
        let p50 = |known: &[NodeLatency]| {
            models(&nodes, known, &[], &[]).models[&NodeId([2; 16])]
                .read
                .quantile(0.5)
        };
        let near =
            |us: f64, exact: f64| assert!((us / exact - 1.0).abs() < 0.05, "{us}, not {exact}");
        near(p50(&known), 50.0 + 200.0 + 300.0);
        let text = models(&nodes, &known, &[], &[]).assumed.join("\n");
        assert!(
            text.contains("n2: plus 300us that a read takes beyond these"),
            "{text}"
        );
        // A node as near as n2 tells more of it.
        let as_near = NodeLatency {
            network: flat(60.0),
            read: flat(360.0),
            read_service: flat(200.0),
            ..latency(3)
        };
        near(
            p50(&[known[0].clone(), known[1].clone(), as_near]),
            50.0 + 200.0 + 100.0,
        );
        // What took so much longer had something else in its way.
        let loaded = NodeLatency {
            read: flat(90_000.0),
            ..known[0].clone()
        };
        near(p50(&[loaded, known[1].clone()]), 250.0);
    }

    #[test]
    fn the_front_and_two_threads_that_wake_are_between_guest_and_nodes() {
        let flat = |count, us: f64| LatencyPoints::from_quantiles(count, |_| us);
        let mut front = FrontReport {
            host: "h".into(),
            token: ukai_proto::Token(1),
            at_unix_s: 1,
            since_unix_s: None,
            guest: ukai_meta::report::GuestReports::default(),
            wake: flat(9, 60.0),
            write_replicated: None,
            nodes: Vec::new(),
            job: None,
        };
        front.guest.write.front = flat(FRONT_SAMPLES_MIN - 1, 30.0);
        assert!(overhead(&front).is_none());
        front.guest.read.front = flat(FRONT_SAMPLES_MIN, 30.0);
        for one in overhead(&front).expect("told") {
            assert!(
                (one.quantile(0.5) / 150.0 - 1.0).abs() < 0.05,
                "{}",
                one.quantile(0.5)
            );
        }
        front.wake = None;
        let [read, _] = overhead(&front).expect("told");
        assert!((read.quantile(0.5) / 30.0 - 1.0).abs() < 0.03);
    }

    #[test]
    fn large_requests_stand_for_small_ones_only_for_want_of_all_else() {
        let node = |n: u8| NodeLatency {
            read_large: points(50_000.0),
            ..latency(n)
        };
        let nodes = [record(1), record(2)];
        let p50 = |got: &Models| got.models[&NodeId([1; 16])].read.quantile(0.5);
        let known = NodeLatency {
            network: points(100.0),
            ..node(1)
        };
        let served = NodeLatency {
            network: points(100.0),
            read_service: points(100.0),
            ..latency(2)
        };
        let got = models(&nodes, &[known.clone(), served], &[], &[]);
        assert!((p50(&got) / 300.0 - 1.0).abs() < 0.05, "{}", p50(&got));
        let text = got.assumed.join("\n");
        assert!(
            text.contains("n1: no read of at most 32 KiB was measured, only larger ones: network round trip plus"),
            "{text}"
        );
        for known in [known, node(1)] {
            let got = models(&nodes, &[known], &[], &[]);
            assert!((p50(&got) / 75_000.0 - 1.0).abs() < 0.03);
            let text = got.assumed.join("\n");
            assert!(text.contains("only larger ones: those are taken"), "{text}");
        }
    }

    #[test]
    fn a_report_of_long_ago_gives_way_to_a_probe() {
        let front = NodeLatency {
            at_unix_s: 1000,
            network: points(4000.0),
            read: points(5000.0),
            read_service: points(50.0),
            ..latency(1)
        };
        let probe = |at_unix_s| NodeLatency {
            at_unix_s,
            network: points(100.0),
            ..latency(1)
        };
        let p50 = |record: NodeLatency| {
            let got = models(
                &[self::record(1)],
                &[record],
                std::slice::from_ref(&front),
                &[],
            );
            got.models[&NodeId([1; 16])].read.quantile(0.5)
        };
        let near =
            |us: f64, exact: f64| assert!((us / exact - 1.0).abs() < 0.05, "{us}, not {exact}");
        near(p50(probe(900)), 7500.0);
        near(p50(probe(1000 + STALE_S)), 7500.0);
        near(p50(probe(1001 + STALE_S)), 150.0 + 75.0);
    }

    #[test]
    fn the_later_word_counts() {
        let nodes = [record(1)];
        let old = [NodeLatency {
            read: points(5000.0),
            write: points(9000.0),
            ..latency(1)
        }];
        let new = [NodeLatency {
            read: points(100.0),
            ..latency(1)
        }];
        let mut got = models(&nodes, &old, &new, &[]).models;
        let p50 =
            |got: &BTreeMap<NodeId, NodeModel>, kind| got[&NodeId([1; 16])].of(kind).quantile(0.5);
        assert!((p50(&got, Kind::Read) / 150.0 - 1.0).abs() < 0.03);
        assert!((p50(&got, Kind::Write) / 13_500.0 - 1.0).abs() < 0.03);
        add_overhead(&mut got, &[50.0, 1.0].map(Distribution::constant));
        assert!((p50(&got, Kind::Read) / 200.0 - 1.0).abs() < 0.03);
    }
}
