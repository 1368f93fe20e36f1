//! The control thread's steps against a metadata store that can be told to fail.

use super::*;
use std::sync::atomic::AtomicU64;
use ukai_meta::memory::{MemoryCluster, MemoryStore};
use ukai_meta::{CommitError, KvVersion, Value, Watch, Write};
use ukai_proto::{BootId, ClusterId, NodeId};

const CLUSTER: ClusterId = ClusterId([7; 16]);
const NODE: NodeId = NodeId([1; 16]);

/// A session that the test keeps a hand on.
struct Session(Arc<MemoryStore>);

impl MetaStore for Session {
    fn get(&self, key: &str) -> Result<Option<Value>, MetaError> {
        self.0.get(key)
    }
    fn list(&self, key: &str) -> Result<Vec<String>, MetaError> {
        self.0.list(key)
    }
    fn commit(&self, writes: &[Write]) -> Result<Vec<KvVersion>, CommitError> {
        self.0.commit(writes)
    }
    fn watch(&self, key: &str) -> Result<Box<dyn Watch>, MetaError> {
        self.0.watch(key)
    }
    fn lease(&self) -> Duration {
        self.0.lease()
    }
    fn renew(&self) -> Result<(), MetaError> {
        self.0.renew()
    }
}

fn incarnation(start: u64) -> Incarnation {
    Incarnation {
        boot: BootId([3; 16]),
        start,
    }
}

fn record(host: &str, addresses: &[&str]) -> NodeRecord {
    NodeRecord {
        node: NODE,
        name: "n0".into(),
        site: "here".into(),
        labels: Vec::new(),
        shard_count: 1,
        shard_addresses: vec![addresses.iter().map(|a| (*a).to_owned()).collect()],
        host: host.into(),
        capacity_bytes: 1 << 30,
        draining: false,
    }
}

struct World {
    servers: MemoryCluster,
    session: Arc<MemoryStore>,
    control: Control,
    told: flume::Receiver<Command>,
}

fn world(isolation: Isolation) -> World {
    let servers = MemoryCluster::new();
    catalog::init_cluster(&servers.session(), CLUSTER).expect("cluster");
    let session = Arc::new(servers.session());
    let again = servers.clone();
    let (command, told) = flume::unbounded();
    let (events, _) = flume::unbounded();
    let control = Control {
        reopen: Box::new(move || Ok(Box::new(again.session()))),
        store: Box::new(Session(session.clone())),
        record: record("h", &[]),
        incarnation: incarnation(5),
        isolation,
        shared: Arc::new(Shared {
            lease_until: AtomicU64::new(0),
            used_bytes: vec![AtomicU64::new(77)],
        }),
        commands: vec![command],
        events,
        registered: false,
    };
    World {
        servers,
        session,
        control,
        told,
    }
}

impl World {
    fn until(&self) -> u64 {
        self.control.shared.lease_until.load(Ordering::Acquire)
    }

    fn live(&self) -> Option<NodeLive> {
        let node = catalog::node(&self.servers.session(), NODE).expect("catalog");
        node.and_then(|state| state.live)
    }
}

#[test]
fn registering_and_renewing_move_the_deadline_on() {
    let mut world = world(Isolation::Refuse);
    assert_eq!(world.until(), 0);
    world.control.register().expect("registered");
    let first = world.until();
    assert!(first > now_ns());
    assert_eq!(world.told.try_iter().collect::<Vec<_>>(), [Command::Lease]);
    let live = world.live().expect("live");
    assert_eq!((live.incarnation.start, live.used_bytes), (5, 77));
    world.control.renew().expect("renewed");
    assert!(world.until() >= first);
}

#[test]
fn an_unreachable_store_leaves_the_deadline_where_it_is() {
    let mut world = world(Isolation::Refuse);
    world.control.register().expect("registered");
    let until = world.until();
    world.session.set_unavailable(true);
    world.control.renew().expect("waited for, not given up");
    assert_eq!(world.until(), until);
    world.session.set_unavailable(false);
    world.control.renew().expect("renewed");
    assert!(world.until() >= until);
}

#[test]
fn a_session_that_ended_stops_service_until_registered_again() {
    let mut world = world(Isolation::Refuse);
    world.control.register().expect("registered");
    world.session.expire();
    assert!(world.live().is_none());
    // The store cannot be opened for a while: not serving, not given up.
    let servers = world.servers.clone();
    world.control.reopen = Box::new(|| Err(MetaError::Unavailable("down".into())));
    world.control.renew().expect("waited for");
    assert_eq!(world.until(), 0);
    world.control.renew().expect("still waited for");
    assert_eq!(world.until(), 0);
    world.control.reopen = Box::new(move || Ok(Box::new(servers.session())));
    world.control.renew().expect("registered again");
    assert!(world.until() > now_ns());
    assert_eq!(world.live().expect("live").incarnation, incarnation(5));
}

#[test]
fn a_lease_taken_by_another_run_expels() {
    let mut world = world(Isolation::Refuse);
    world.control.register().expect("registered");
    world.session.expire();
    let other = world.servers.session();
    let live = NodeLive {
        incarnation: incarnation(6),
        used_bytes: 0,
    };
    catalog::register_node(&other, &world.control.record, &live).expect("the other's");
    let error = world.control.renew().expect_err("expelled");
    assert!(error.is_refusal(), "{error}");
    assert!(error.to_string().contains("same uuid"), "{error}");
    assert_eq!(world.until(), 0);
}

#[test]
fn service_outlives_the_store_and_the_session_unless_told_to_refuse() {
    for (isolation, until) in [(Isolation::Serve, u64::MAX), (Isolation::Refuse, 0)] {
        let mut world = world(isolation);
        world.control.register().expect("registered");
        world.session.set_unavailable(true);
        world.control.renew().expect("waited for");
        assert!(world.until() > 0, "the lease has not run out yet");
        world.session.set_unavailable(false);
        world.session.expire();
        world.control.reopen = Box::new(|| Err(MetaError::Unavailable("down".into())));
        world.control.renew().expect("waited for");
        assert_eq!(world.until(), until, "{isolation:?}");
    }
}

#[test]
fn a_report_tells_the_space_and_finds_a_lost_lease() {
    let mut world = world(Isolation::Refuse);
    world.control.register().expect("registered");
    world.control.shared.used_bytes[0].store(99, Ordering::Relaxed);
    world.control.report().expect("reported");
    assert_eq!(world.live().expect("live").used_bytes, 99);
}

#[test]
fn before_the_start_the_cluster_is_compared() {
    let world = world(Isolation::Refuse);
    let store = world.servers.session();
    assert!(check(&store, CLUSTER, NODE, 5, "h").is_ok());
    let error = check(&store, ClusterId([8; 16]), NODE, 5, "h").expect_err("another");
    assert!(matches!(error, MembershipError::WrongCluster { .. }));
    let empty = MemoryCluster::new().session();
    let error = check(&empty, CLUSTER, NODE, 5, "h").expect_err("empty");
    assert!(error.to_string().contains("cluster"), "{error}");
}

#[test]
fn before_the_start_an_older_copy_is_refused() {
    let mut world = world(Isolation::Refuse);
    world.control.register().expect("run 5");
    let (stopped, stop) = flume::bounded(1);
    stopped.send(6).expect("room");
    let World {
        servers, control, ..
    } = world;
    control.run(&stop);
    let store = servers.session();
    check(&store, CLUSTER, NODE, 6, "h").expect("the node itself");
    let error = check(&store, CLUSTER, NODE, 5, "h").expect_err("a copy made while it ran");
    assert!(error.is_refusal(), "{error}");
    assert!(error.to_string().contains("older copy"), "{error}");
}

#[test]
fn the_lease_of_a_dead_run_on_this_host_is_taken_over() {
    let mut world = world(Isolation::Refuse);
    // Nothing listens there.
    world.control.record = record("h", &["unix:/nowhere/n0.sock"]);
    world.control.register().expect("the former run");
    assert!(world.live().is_some());
    check(&world.servers.session(), CLUSTER, NODE, 5, "h").expect("dead");
    assert!(world.live().is_none());
}

#[test]
fn an_address_that_answers_as_this_node_is_a_twin() {
    use std::io::{Read, Write as _};
    use ukai_proto::message::{Hello, Role};
    use ukai_proto::{Frame, Header, Opcode, ShardIndex, Status};
    let mut world = world(Isolation::Refuse);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = format!("tcp:{}", listener.local_addr().expect("address"));
    let answering = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("accept");
        let mut request = [0; 192];
        stream.read_exact(&mut request[..64]).expect("HELLO");
        let hello = Hello {
            cluster: CLUSTER,
            node: NODE,
            role: Role::Node,
            shard: ShardIndex(0),
            shard_count: 1,
            incarnation: incarnation(4),
        };
        let header = Header::request(Opcode::Hello, 1).reply(Status::Ok);
        let reply = Frame::<Vec<u8>>::new(header, hello.encode(), None);
        stream.write_all(&reply.to_bytes()).expect("answer");
        // Keep it open until the other side has read.
        let _ = stream.read(&mut request);
        let _ = stream.read(&mut request);
    });
    world.control.record = record("h", &[&address]);
    world.control.register().expect("the other");
    let error = check(&world.servers.session(), CLUSTER, NODE, 5, "h").expect_err("a twin");
    assert!(error.to_string().contains(&address), "{error}");
    assert!(world.live().is_some(), "its lease stands");
    answering.join().expect("thread");
}
