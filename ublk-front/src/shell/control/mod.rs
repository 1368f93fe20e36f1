//! The control thread: runs [`ControlCore`] over sockets, channels and the metadata store's threads.

mod meta;
mod node;
mod poller;
mod publish;
mod socket;
mod stats;

pub use meta::MetaHandle;
pub use socket::{ControlSocket, Question, ask};

use super::clock;
use super::context::{ControlInput, ControlPort, FrontendOrder, LaneMail};
use super::process;
use super::wake::{Mailbox, Post};
use crate::core::SharedSeq;
use crate::core::api::{
    ControlAction, ControlError, ControlEvent, LaneId, LaneOrder, Now, Presented,
};
use crate::core::config::NodeEntry;
use crate::core::control::{ControlConfig, ControlCore};
use meta::{Announce, Work};
use node::Nodes;
use poller::{Poller, Readiness};
use publish::Publisher;
use serde_json::{Value, json};
use stats::Counters;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use ukai_meta::FrontRecord;
use ukai_proto::ClusterId;

/// Reconnects and timeouts are looked at this often.
const TICK: Duration = Duration::from_millis(50);
/// Lanes that do not tell their counters in this time are left out of an answer.
const STATS_MAX: Duration = Duration::from_secs(1);
/// A store that does not take an announcement back in this time lets it expire.
const GOODBYE_MAX: Duration = Duration::from_secs(2);
/// Tokens of the poller: the mailbox, then the node connections.
const MAILBOX: u64 = 0;
const NODES: u64 = 1;

/// What the control thread needs.
#[derive(Debug)]
pub struct ControlSetup {
    /// For the core.
    pub config: ControlConfig,
    /// The volume's name.
    pub name: String,
    /// The cluster.
    pub cluster: ClusterId,
    /// The metadata store.
    pub meta: MetaHandle,
    /// The shared write counter.
    pub seq: Arc<SharedSeq>,
    /// This thread's own port, for the threads it starts.
    pub port: ControlPort,
    /// Inputs.
    pub mailbox: Mailbox<ControlInput>,
    /// Gets the volume's properties once, when the device may be presented; dropped if that never
    /// happens.
    pub ready: flume::Sender<Presented>,
    /// Orders to the frontend.
    pub frontend: Post<FrontendOrder>,
    /// The control socket, as announced.
    pub control_path: PathBuf,
    /// This host.
    pub host: String,
}

/// Why the control thread ended.
#[derive(Debug, thiserror::Error)]
pub enum ControlFailure {
    /// The core decided so.
    #[error(transparent)]
    Core(#[from] ControlError),
    /// The kernel refused something it never should.
    #[error("control thread: {0}")]
    Io(#[from] io::Error),
}

/// Who serves the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Frontend {
    /// Not yet.
    None,
    Serving,
    /// It has returned.
    Ended,
}

type Done = flume::Sender<Result<(), String>>;

struct Control {
    core: ControlCore,
    name: String,
    host: String,
    control_path: PathBuf,
    nodes: Nodes,
    poller: Poller,
    works: flume::Sender<Work>,
    announce: flume::Sender<Announce>,
    ready: Option<flume::Sender<Presented>>,
    frontend_orders: Post<FrontendOrder>,
    frontend: Frontend,
    device: Option<String>,
    /// Scripts wait for the device's name on standard output.
    tell: bool,
    lanes: BTreeMap<LaneId, Post<LaneMail>>,
    /// By slot, from the latest installation.
    entries: Vec<NodeEntry>,
    counters: Counters,
    publisher: Publisher,
    /// Answers that wait for lanes: whom to tell, for which lanes, until when.
    asked: Vec<(flume::Sender<Value>, Vec<LaneId>, Now)>,
    detachers: Vec<Done>,
    events: Vec<ControlEvent>,
    ended: Option<Result<(), ControlError>>,
}

/// Runs until the volume is detached, or cannot be served any more *and* the frontend has ended.
pub fn run(setup: ControlSetup) -> Result<(), ControlFailure> {
    let ControlSetup {
        config,
        name,
        cluster,
        meta,
        seq,
        port,
        mailbox,
        ..
    } = setup;
    let volume = config.volume;
    let works = meta::worker(meta.clone(), volume, port.clone())?;
    let _watching = meta::watchers(&meta, volume, &port)?;
    let announce = meta::announcer(meta, volume, port)?;
    let poller = Poller::new()?;
    poller.add(mailbox.event().as_raw_fd(), MAILBOX)?;
    let mut control = Control {
        core: ControlCore::new(config, seq),
        name,
        host: setup.host,
        control_path: setup.control_path,
        nodes: Nodes::new(cluster, NODES),
        poller,
        works,
        announce,
        ready: Some(setup.ready),
        frontend_orders: setup.frontend,
        frontend: Frontend::None,
        device: None,
        tell: false,
        lanes: BTreeMap::new(),
        entries: Vec::new(),
        counters: Counters::default(),
        publisher: Publisher::default(),
        asked: Vec::new(),
        detachers: Vec::new(),
        // A volume is not settled before its job is known.
        events: vec![ControlEvent::Start, ControlEvent::JobChanged],
        ended: None,
    };
    let result = control.run(&mailbox);
    control.goodbye(&result);
    result.map_err(ControlFailure::from)
}

impl Control {
    fn run(&mut self, mailbox: &Mailbox<ControlInput>) -> Result<(), ControlError> {
        let mut ready: Vec<Readiness> = Vec::new();
        let mut next_tick = clock::now();
        loop {
            self.drain();
            if let Some(result) = &self.ended
                && self.frontend != Frontend::Serving
            {
                return result.clone();
            }
            let wait = self.poller.wait(TICK, &mut ready);
            // A broken epoll descriptor is a bug of ours, not a condition to live with.
            wait.unwrap_or_else(|error| panic!("epoll_wait: {error}"));
            let now = clock::now();
            for event in ready.drain(..) {
                if event.token == MAILBOX {
                    mailbox.event().clear();
                } else if let Some(peer) = self.nodes.of_token(event.token) {
                    let ready = (event.read, event.write);
                    self.nodes
                        .ready(now, peer, ready, &self.poller, &mut self.events);
                }
            }
            while let Some(input) = mailbox.try_recv() {
                self.input(input);
            }
            if now >= next_tick {
                next_tick = clock::after(now, TICK);
                self.events.push(ControlEvent::Tick);
                self.nodes.tick(now, &self.poller, &mut self.events);
                self.answer_asked(now);
                self.publish(now);
            }
        }
    }

    /// Runs the core on everything that has happened, and does what it wants.
    fn drain(&mut self) {
        let mut actions = Vec::new();
        while !self.events.is_empty() {
            for event in std::mem::take(&mut self.events) {
                self.core.handle(clock::now(), event, &mut actions);
                for action in actions.drain(..) {
                    self.act(action);
                }
            }
            self.nodes
                .flush(clock::now(), &self.poller, &mut self.events);
        }
    }

    fn act(&mut self, action: ControlAction) {
        match action {
            ControlAction::Peers(peers) => {
                self.nodes.set_peers(peers);
                self.nodes
                    .tick(clock::now(), &self.poller, &mut self.events);
            }
            ControlAction::MetaLoad(id) => self.work(Work::Load(id)),
            ControlAction::MetaCommit(id, update) => self.work(Work::Commit(id, update)),
            ControlAction::JobLoad(id) => self.work(Work::JobLoad(id)),
            ControlAction::JobStore(id, job, guard) => {
                self.work(Work::JobStore(id, job, guard));
            }
            ControlAction::Send { peer, header, aux } => self.nodes.send(peer, &header, &aux),
            ControlAction::Order(lane, order) => {
                if let LaneOrder::Install { config, .. } = &order {
                    self.entries.clone_from(&config.nodes);
                }
                if let Some(post) = self.lanes.get(&lane) {
                    post.send(LaneMail::Order(order));
                }
            }
            ControlAction::Ready(presented) => {
                if let Some(ready) = self.ready.take()
                    && self.detachers.is_empty()
                    && ready.send(presented).is_ok()
                {
                    self.frontend = Frontend::Serving;
                }
            }
            ControlAction::Resized { size_bytes } => {
                self.frontend_orders
                    .send(FrontendOrder::Resized { size_bytes });
            }
            ControlAction::Ended(result) => {
                self.ready = None;
                if let Err(error) = &result {
                    tracing::error!("volume {}: {error}", self.name);
                    if self.frontend == Frontend::Serving {
                        let (refused, _) = flume::bounded(1);
                        self.frontend_orders.send(FrontendOrder::Stop {
                            force: true,
                            refused,
                        });
                    }
                }
                self.ended = Some(result);
            }
            ControlAction::Note(text) => tracing::info!("{text}"),
        }
    }

    fn work(&self, work: Work) {
        // The worker lives as long as this sender; control has few requests under way.
        if self.works.send(work).is_err() {
            panic!("the metadata worker has died");
        }
    }

    fn input(&mut self, input: ControlInput) {
        match input {
            ControlInput::LaneAdded(lane, post) => {
                self.lanes.insert(lane, post);
                self.events.push(ControlEvent::LaneAdded(lane));
            }
            ControlInput::LaneRemoved(lane) => {
                self.lanes.remove(&lane);
                self.asked
                    .iter_mut()
                    .for_each(|(_, lanes, _)| lanes.retain(|l| *l != lane));
                self.events.push(ControlEvent::LaneRemoved(lane));
            }
            ControlInput::Lane(lane, report) => self.events.push(ControlEvent::Lane(lane, report)),
            ControlInput::Window(lane, window) => {
                self.events.push(ControlEvent::Window(lane, window));
            }
            ControlInput::Stats { lane, stats, last } => {
                self.counters.told(lane, *stats, last);
                self.asked
                    .iter_mut()
                    .for_each(|(_, lanes, _)| lanes.retain(|l| *l != lane));
                self.answer_asked(clock::now());
            }
            ControlInput::Attached { device, tell } => {
                self.tell = tell;
                self.attached(device);
            }
            ControlInput::Announced => {
                if let Some(device) = self.device.as_ref().filter(|_| self.tell) {
                    process::say(&format!("attached {} {device}", self.name));
                    process::notify_ready(&format!("volume {} is {device}", self.name));
                }
            }
            ControlInput::FrontendEnded => {
                self.frontend = Frontend::Ended;
                self.events.push(ControlEvent::Detach);
            }
            ControlInput::Meta(id, outcome) => self.events.push(ControlEvent::Meta(id, outcome)),
            ControlInput::MapChanged => self.events.push(ControlEvent::MapChanged),
            ControlInput::JobChanged => self.events.push(ControlEvent::JobChanged),
            ControlInput::Note(text) => tracing::warn!("{text}"),
            ControlInput::Detach {
                force,
                refused,
                done,
            } => {
                self.detachers.retain(|done| !done.is_disconnected());
                self.detachers.extend(done);
                if self.frontend == Frontend::Serving {
                    self.frontend_orders
                        .send(FrontendOrder::Stop { force, refused });
                } else {
                    self.ready = None;
                    self.events.push(ControlEvent::Detach);
                }
            }
            ControlInput::Ask(Question::Status, reply) => {
                // Whoever asked may be gone.
                let _ = reply.send(self.status());
            }
            ControlInput::Ask(Question::Stats, reply) => {
                let lanes: Vec<LaneId> = self.lanes.keys().copied().collect();
                self.lanes.values().for_each(|post| {
                    post.send(LaneMail::Stats);
                });
                let until = clock::after(clock::now(), STATS_MAX);
                self.asked.push((reply, lanes, until));
                self.answer_asked(clock::now());
            }
        }
    }

    fn attached(&mut self, device: String) {
        let record = FrontRecord {
            host: self.host.clone(),
            control: self.control_path.display().to_string(),
            device: device.clone(),
            pid: std::process::id(),
        };
        self.device = Some(device);
        // The announcer ends only after this sender.
        let _ = self.announce.send(Announce::Set(record));
    }

    fn status(&self) -> Value {
        json!({
            "ok": true,
            "volume": self.name,
            "device": self.device,
            "host": self.host,
            "pid": std::process::id(),
            "control": self.core.status(),
        })
    }

    fn answer_asked(&mut self, now: Now) {
        if self.asked.is_empty() {
            return;
        }
        let names: BTreeMap<_, _> = self
            .core
            .status()
            .nodes
            .into_iter()
            .map(|node| (node.node, node.name))
            .collect();
        let name = |slot: usize| {
            let node = self.entries.get(slot).map(|entry| entry.node);
            node.and_then(|node| names.get(&node).cloned())
                .unwrap_or_default()
        };
        let answer = |lanes: &[LaneId], until| lanes.is_empty() || now >= until;
        let due = |(_, lanes, until): &mut (_, Vec<LaneId>, _)| answer(lanes, *until);
        let due: Vec<_> = self.asked.extract_if(.., due).collect();
        for (reply, ..) in due {
            let mut json = self.counters.json(&self.entries, name);
            json["volume"] = self.name.clone().into();
            // Whoever asked may be gone.
            let _ = reply.send(json);
        }
    }

    /// Takes the announcement back and tells those who asked for the detach.
    fn goodbye(&mut self, result: &Result<(), ControlError>) {
        self.record_last();
        let (done, cleared) = flume::bounded(1);
        if self.announce.send(Announce::Clear(done)).is_ok() {
            // Disconnected is the good case; time runs out if the store does not answer.
            let _ = cleared.recv_timeout(GOODBYE_MAX);
        }
        for done in self.detachers.drain(..) {
            let result = result.as_ref().map_err(ToString::to_string);
            // Whoever asked may be gone.
            let _ = done.send(result.copied());
        }
    }
}
