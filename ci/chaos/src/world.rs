//! The system under test, and what every scenario does with it.

use crate::front::{Front, Place};
use crate::guest::{Guests, Profile, broken};
use crate::inspect;
use crate::meta::{Meta, not_whole};
use crate::net::{Member, Net};
use crate::nodes::{Node, Stable, find_programs};
use crate::recorder::Recorder;
use crate::story::Story;
use crate::tally::Tally;
use crate::wait::{self, Failure, Look, Outcome, setup};
use crate::zookeeper::Ensemble;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use ukai_proto::{ClusterId, VolumeId};

/// Size of a volume: small, so that replicas are compared in a moment.
pub(crate) const VOLUME_MIB: u64 = 128;
/// Two slots.
const CHUNK_MIB: u64 = 2;
/// Chunks that are moved together.
pub(crate) const GROUP_CHUNKS: u64 = 8;
/// Two replicas of what guests leave of a volume need more than all nodes have: one of them can be filled, wherever
/// the chunks were moved.
const NODE_MIB: u64 = 64;
const _: () = assert!(NODE_MIB * NODES.len() as u64 <= 2 * (VOLUME_MIB - GUEST_SLOTS_MAX));
/// Ranges of a volume that guests use, the one at its end included.
const RANGES: u64 = 12;
/// None is longer than a slot, so each lies in two at most.
const GUEST_SLOTS_MAX: u64 = 2 * RANGES;
/// Slots of 1 MiB, in sectors.
pub(crate) const SLOT: u64 = 256;
/// From the end of the faults until everything is in sync: flap damping alone may take 64 s.
const WHOLE_MAX: Duration = Duration::from_secs(100);
/// Guests that are not hindered do a request in milliseconds.
const PROGRESS_MAX: Duration = Duration::from_secs(30);

/// Places in the network, in the order of [`NAMES`].
const ADMIN: Member = Member(0);
const ZOOKEEPERS: [Member; 3] = [Member(1), Member(2), Member(3)];
const NODES: [(Member, &str); 3] = [
    (Member(4), "site-a"),
    (Member(5), "site-b"),
    (Member(6), "site-c"),
];
/// Hosts of fronts.
pub(crate) const HOSTS: [Member; 2] = [Member(7), Member(8)];
const NAMES: [&str; 9] = ["admin", "z1", "z2", "z3", "a1", "b1", "c1", "h1", "h2"];

/// Everything. Fields are dropped in this order: processes before the network.
pub(crate) struct World {
    /// Of the current front.
    pub(crate) guests: Option<Guests>,
    /// The front that has the volume.
    pub(crate) front: Option<Front>,
    /// Storage nodes.
    pub(crate) nodes: Vec<Node>,
    /// ZooKeeper.
    pub(crate) zk: Ensemble,
    /// A look at the metadata.
    pub(crate) meta: Meta,
    /// The network.
    pub(crate) net: Net,
    /// Decides everything that is drawn.
    pub(crate) rng: ChaCha8Rng,
    /// Sums.
    pub(crate) tally: Tally,
    /// Tells what happens.
    pub(crate) story: Story,
    /// History of the current volume.
    pub(crate) recorder: Arc<Recorder>,
    /// The current volume.
    pub(crate) volume: VolumeId,
    /// Its name.
    pub(crate) name: String,
    /// What guests do.
    pub(crate) profile: Profile,
    /// More sectors to compare: filled and emptied by scenarios.
    pub(crate) touched: Vec<Range<u64>>,
    /// Starts nodes.
    pub(crate) stable: Stable,
    cluster: ClusterId,
    bin: PathBuf,
    scratch: PathBuf,
    attaches: u64,
    volumes: u64,
}

impl World {
    /// Network, ZooKeeper, nodes.
    pub(crate) fn new(seed: u64, bin: &Path, scratch: &Path, story: Story) -> Outcome<Self> {
        find_programs(bin)?;
        for dir in ["log", "nodes", "run"] {
            let dir = scratch.join(dir);
            std::fs::create_dir_all(&dir).map_err(setup(format!("create {}", dir.display())))?;
        }
        let net = Net::new(&NAMES)?;
        net.enter(ADMIN)?;
        story.tell("starting ZooKeeper");
        let zk = Ensemble::start(&net, &ZOOKEEPERS, scratch)?;
        let url = zk.url();
        let stable = Stable {
            program: bin.join("chunkstore"),
            meta: url.clone(),
            scratch: scratch.to_owned(),
        };
        story.tell("starting nodes");
        let mut nodes = Vec::new();
        for (member, site) in NODES {
            let mut node = stable.format(&net, member, site, &format!("{NODE_MIB}MiB"))?;
            node.start(&net, &stable)?;
            nodes.push(node);
        }
        let mut meta = Meta::new(&url)?;
        let cluster = meta.cluster().map_err(setup("read the cluster's record"))?;
        let recorder = Arc::new(Recorder::new([0; 16], &scratch.join("log/none.jsonl"))?);
        Ok(Self {
            guests: None,
            front: None,
            nodes,
            zk,
            meta,
            net,
            rng: ChaCha8Rng::seed_from_u64(seed),
            tally: Tally::default(),
            story,
            recorder,
            volume: VolumeId([0; 16]),
            name: String::new(),
            profile: Profile {
                guests: 4,
                depth: 4,
                ranges: Vec::new(),
            },
            touched: Vec::new(),
            stable,
            cluster,
            bin: bin.to_owned(),
            scratch: scratch.to_owned(),
            attaches: 0,
            volumes: 0,
        })
    }

    /// Says something in the log of the run.
    pub(crate) fn tell(&self, text: &str) {
        self.story.tell(&format!("t={} {text}", self.recorder.t()));
    }

    /// Something is done to the system.
    pub(crate) fn begins(&mut self, kind: &str) {
        self.tally.fault(kind);
        self.tell(kind);
    }

    /// "No space" is what guests may be told, or not.
    pub(crate) fn expect_full(&self, full: bool) {
        if let Some(guests) = &self.guests {
            guests.expect_full(full);
        }
    }

    /// Waits until the metadata store answers nobody.
    pub(crate) fn meta_is_away(&mut self) -> Outcome {
        let volume = self.volume;
        self.until(PROGRESS_MAX, "the metadata store is away", |world| {
            Ok(match world.meta.front_lives(volume) {
                Ok(_) => Look::NotYet("it answers".to_owned()),
                Err(_) => Look::Found(()),
            })
        })
    }

    /// For who looks into a failure: what the front and the metadata say.
    pub(crate) fn tell_states(&mut self) {
        if let Some(front) = &self.front {
            match front.status() {
                Ok(status) => self.tell(&format!("front: {status}")),
                Err(error) => self.tell(&format!("front: {error}")),
            }
        }
        match self.tools(&["volume", "show", &self.name]) {
            Ok(text) => self.tell(&format!("volume:\n{text}")),
            Err(error) => self.tell(&format!("volume: {error}")),
        }
        self.tell(&format!("{} requests in flight", self.recorder.in_flight()));
    }

    /// `ukai-tools ARGUMENTS` to its end; what it printed.
    pub(crate) fn tools(&self, arguments: &[&str]) -> Outcome<String> {
        let output = Command::new(self.bin.join("ukai-tools"))
            .args(arguments)
            .env("UKAI_META", &self.stable.meta)
            .env("PATH", path_with(&self.bin))
            .output()
            .map_err(setup("run ukai-tools"))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(Failure::Broken(format!(
            "ukai-tools {}: {}: {said}",
            arguments.join(" "),
            output.status
        )))
    }

    /// [`wait::until`] that ends as well when a guest saw what it must not.
    pub(crate) fn until<T>(
        &mut self,
        limit: Duration,
        what: &str,
        mut look: impl FnMut(&mut Self) -> Outcome<Look<T>>,
    ) -> Outcome<T> {
        wait::until(limit, what, || {
            self.check_problem()?;
            look(self)
        })
    }

    /// What a guest saw and must not.
    pub(crate) fn check_problem(&self) -> Outcome {
        match self.recorder.problem() {
            None => Ok(()),
            Some(text) => Err(Failure::Broken(text)),
        }
    }

    /// A new volume on the first two nodes, attached, with guests.
    pub(crate) fn new_volume(&mut self) -> Outcome {
        self.volumes += 1;
        self.name = format!("v{}", self.volumes);
        let (size, chunk) = (format!("{VOLUME_MIB}MiB"), format!("{CHUNK_MIB}MiB"));
        let name = self.name.clone();
        let nodes = format!("{},{}", self.nodes[0].name, self.nodes[1].name);
        self.tools(&[
            "volume", "create", &name, "--size", &size, "--chunk", &chunk, "--node", &nodes,
        ])?;
        let id = self
            .meta
            .ask(|store| ukai_meta::catalog::volume_id(store, &name));
        let id = id.map_err(setup("find the volume"))?;
        self.volume = id.ok_or_else(|| Failure::Broken("a new volume is not there".to_owned()))?;
        let path = self.history_path();
        self.recorder = Arc::new(Recorder::new(self.volume.0, &path)?);
        self.profile.ranges = draw_ranges(&mut self.rng);
        self.touched.clear();
        self.attach(HOSTS[0], false)?;
        self.start_guests()
    }

    /// Where the history of the current volume is written.
    #[must_use]
    pub(crate) fn history_path(&self) -> PathBuf {
        self.scratch
            .join(format!("log/history-{}.jsonl", self.name))
    }

    /// The volume's end: judged, detached, deleted.
    pub(crate) fn end_volume(&mut self) -> Outcome {
        self.drain_guests()?;
        self.judge()?;
        self.detach()?;
        let name = self.name.clone();
        self.tools(&["volume", "delete", &name, "--yes"])?;
        // Judged and good: not needed any more.
        std::fs::remove_file(self.history_path()).map_err(setup("remove a history"))
    }

    /// The checker's verdict over the current history.
    pub(crate) fn judge(&mut self) -> Outcome {
        self.recorder.flush()?;
        let (sums, report) = (self.recorder.sums(), self.recorder.check());
        if let Some(first) = report.violations.first() {
            return Err(Failure::Broken(format!(
                "the checker: {:?}: {first} ({} violations)",
                first.kind, report.violation_count
            )));
        }
        self.tally.history(&sums, &report);
        Ok(())
    }

    /// A front on this host takes the volume.
    pub(crate) fn attach(&mut self, host: Member, force: bool) -> Outcome {
        self.attaches += 1;
        let place = Place {
            net: &self.net,
            host,
            program: &self.bin.join("ublk-front"),
            meta: &self.stable.meta,
            scratch: &self.scratch,
        };
        let front = Front::attach(&place, &self.name, self.attaches, force)?;
        let front = front.map_err(|status| {
            let host = self.net.name(host);
            Failure::Broken(format!("the attach on {host} failed: {status}"))
        })?;
        self.recorder.fenced(front.token);
        self.tell(&format!(
            "attached on {} with token {}",
            self.net.name(host),
            front.token
        ));
        if force {
            self.tally.forced += 1;
        }
        self.front = Some(front);
        Ok(())
    }

    /// The current front.
    pub(crate) fn front(&self) -> Outcome<&Front> {
        let none = || Failure::Setup("no front".to_owned());
        self.front.as_ref().ok_or_else(none)
    }

    /// Its host, and the other one.
    pub(crate) fn hosts(&self) -> Outcome<(Member, Member)> {
        let here = self.front()?.host;
        let other = if here == HOSTS[0] { HOSTS[1] } else { HOSTS[0] };
        Ok((here, other))
    }

    /// Guests of the current front begin.
    pub(crate) fn start_guests(&mut self) -> Outcome {
        let seed = self.rng.random();
        let front = self.front()?;
        let guests = Guests::start(
            &front.socket,
            front.token,
            &self.recorder,
            &self.profile,
            seed,
        )?;
        self.guests = Some(guests);
        Ok(())
    }

    /// Guests end; everything that they asked for is answered.
    pub(crate) fn drain_guests(&mut self) -> Outcome {
        if let Some(guests) = self.guests.take() {
            let watch = Arc::clone(&guests.watch);
            guests.drain()?;
            self.tally.guests(&watch);
        }
        self.check_problem()
    }

    /// Guests of a front that is gone end.
    pub(crate) fn abandon_guests(&mut self, guests: Option<Guests>) -> Outcome {
        if let Some(guests) = guests {
            let watch = Arc::clone(&guests.watch);
            guests.abandon()?;
            self.tally.guests(&watch);
        }
        self.check_problem()
    }

    /// Guests expect errors from now on.
    pub(crate) fn doom_guests(&self) {
        if let Some(guests) = &self.guests {
            guests.doom();
        }
    }

    /// Clean detach, after the guests have ended.
    pub(crate) fn detach(&mut self) -> Outcome {
        self.front.take().map_or(Ok(()), Front::detach)
    }

    /// Waits until guests have done so many more requests, and so many of them writes.
    pub(crate) fn expect_progress(&mut self, requests: u64, why: &str) -> Outcome {
        let Some(guests) = &self.guests else {
            return Ok(());
        };
        let watch = Arc::clone(&guests.watch);
        let (done, writes) = (&watch.done, &watch.writes_done);
        let goal = done.load(Ordering::Relaxed) + requests;
        let goal_writes = writes.load(Ordering::Relaxed) + requests / 4;
        self.until(PROGRESS_MAX, &format!("guests go on {why}"), |_| {
            let (now, now_writes) = (done.load(Ordering::Relaxed), writes.load(Ordering::Relaxed));
            Ok(if now >= goal && now_writes >= goal_writes {
                Look::Found(())
            } else {
                Look::NotYet(format!("{} requests to go", goal.saturating_sub(now)))
            })
        })
    }

    /// Waits until all replicas are in sync and nothing is left to do.
    pub(crate) fn wait_whole(&mut self) -> Outcome {
        let names: BTreeMap<_, _> = self.node_names()?;
        self.until(WHOLE_MAX, "everything is in sync", |world| {
            for node in &mut world.nodes {
                node.running_mut()?.check_runs()?;
            }
            let Some(front) = &mut world.front else {
                return Ok(Look::NotYet("no front".to_owned()));
            };
            front.process.check_runs()?;
            let map = match world.meta.map(world.volume) {
                Ok(map) => map,
                Err(error) => return Ok(Look::NotYet(error.to_string())),
            };
            let name = |id| names.get(&id).cloned().unwrap_or_default();
            let text = match not_whole(&map, name) {
                Some(text) => Some(text),
                None => world.front()?.unsettled()?,
            };
            Ok(text.map_or(Look::Found(()), Look::NotYet))
        })
    }

    fn node_names(&mut self) -> Outcome<BTreeMap<ukai_proto::NodeId, String>> {
        let nodes = self.until(PROGRESS_MAX, "the metadata answers", |world| {
            Ok(match world.meta.nodes() {
                Ok(nodes) => Look::Found(nodes),
                Err(error) => Look::NotYet(error.to_string()),
            })
        })?;
        Ok(nodes.into_iter().map(|n| (n.node, n.name)).collect())
    }

    /// The end of a round: whole under load, quiet, whole again, all replicas compared.
    pub(crate) fn end_round(&mut self) -> Outcome {
        self.wait_whole()?;
        self.drain_guests()?;
        self.wait_whole()?;
        let map = self.meta.map(self.volume).map_err(broken("load the map"))?;
        let nodes = self.meta.nodes().map_err(broken("load the nodes"))?;
        let nodes = nodes.into_iter().map(|n| (n.node, n)).collect();
        let mut ranges = self.profile.ranges.clone();
        ranges.extend(self.touched.iter().cloned());
        inspect::compare(&self.recorder, self.cluster, &map, &nodes, &ranges)?;
        self.check_problem()?;
        self.tally.rounds += 1;
        Ok(())
    }
}

/// `ukai-tools` starts `ublk-front` for what needs one.
fn path_with(bin: &Path) -> std::ffi::OsString {
    let mut path = bin.as_os_str().to_owned();
    if let Some(old) = std::env::var_os("PATH") {
        path.push(":");
        path.push(old);
    }
    path
}

/// Where guests work: a dozen small ranges, some across slots, one at the very end.
fn draw_ranges(rng: &mut ChaCha8Rng) -> Vec<Range<u64>> {
    let total = VOLUME_MIB * SLOT;
    let mut ranges = Vec::new();
    ranges.push(total - 40..total);
    for n in 1..RANGES {
        let length = rng.random_range(8..64);
        let start = if n % 3 == 1 {
            rng.random_range(1..total / SLOT) * SLOT - length / 2
        } else {
            rng.random_range(0..total - length)
        };
        ranges.push(start..start + length);
    }
    ranges
}
