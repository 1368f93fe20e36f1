//! What happens in a round.

mod outage;
mod place;
mod restarts;
mod takeover;

use crate::fault::{Fault, draw_time};
use crate::wait::{Outcome, last};
use crate::world::World;
use rand::RngExt;

/// Every scenario has a name, so that it can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Scenario {
    /// One drawn fault, healed.
    Fault,
    /// Two drawn faults that overlap.
    TwoFaults,
    /// A front stopped beyond its lease wakes up when another has its volume.
    Zombie,
    /// The same, and it wakes up alone with one node.
    ZombieAlone,
    /// Attach elsewhere by force while the old front serves.
    ForcedAttach,
    /// SIGKILL of the front; attach on the same host or, forced, on the other one.
    FrontKill,
    /// Clean detach, attach on the other host.
    HandOver,
    /// Detach under the guests' feet, attach.
    DetachUnderLoad,
    /// SIGKILL of all nodes at once.
    AllNodesKill,
    /// A node is killed and started again and again.
    RestartStorm,
    /// SIGTERM and start of each node in turn.
    RollingRestart,
    /// Two of three ZooKeeper servers die.
    QuorumLoss,
    /// The front is cut off from ZooKeeper only, until its session ends.
    FrontExpiry,
    /// A node is cut off from ZooKeeper only, until its session ends.
    NodeExpiry,
    /// A node is stopped until its session ends.
    NodeStoppedLong,
    /// The front is stopped until its session ends.
    FrontStoppedLong,
    /// Locations are added and removed.
    Move,
    /// Nodes run out of space.
    DiskFull,
}

/// Always first: what fencing is for.
pub(crate) const FIRST: [Scenario; 2] = [Scenario::Zombie, Scenario::ZombieAlone];

/// Those that are drawn, with their weights.
const DRAWN: [(Scenario, u32); 18] = [
    (Scenario::Fault, 10),
    (Scenario::TwoFaults, 8),
    (Scenario::Zombie, 1),
    (Scenario::ZombieAlone, 1),
    (Scenario::ForcedAttach, 2),
    (Scenario::FrontKill, 3),
    (Scenario::HandOver, 2),
    (Scenario::DetachUnderLoad, 2),
    (Scenario::AllNodesKill, 2),
    (Scenario::RestartStorm, 2),
    (Scenario::RollingRestart, 1),
    (Scenario::QuorumLoss, 2),
    (Scenario::FrontExpiry, 1),
    (Scenario::NodeExpiry, 1),
    (Scenario::NodeStoppedLong, 1),
    (Scenario::FrontStoppedLong, 1),
    (Scenario::Move, 3),
    (Scenario::DiskFull, 1),
];

impl Scenario {
    /// Draws one.
    pub(crate) fn draw(world: &mut World) -> Self {
        let sum = DRAWN.iter().map(|(_, weight)| weight).sum();
        let mut at = world.rng.random_range(0..sum);
        for (scenario, weight) in DRAWN {
            if at < weight {
                return scenario;
            }
            at -= weight;
        }
        unreachable!("the weights cover what is drawn")
    }

    /// From a whole system under load to a system that gets whole by itself.
    pub(crate) fn run(self, world: &mut World) -> Outcome {
        match self {
            Self::Fault => {
                let fault = Fault::draw(world)?;
                with_faults(world, &[fault])
            }
            Self::TwoFaults => {
                let first = Fault::draw(world)?;
                let second = loop {
                    let second = Fault::draw(world)?;
                    if !second.conflicts(&first) {
                        break second;
                    }
                };
                with_faults(world, &[first, second])
            }
            Self::Zombie => takeover::zombie(world, false),
            Self::ZombieAlone => takeover::zombie(world, true),
            Self::ForcedAttach => takeover::forced_attach(world),
            Self::FrontKill => takeover::front_kill(world),
            Self::HandOver => takeover::hand_over(world),
            Self::DetachUnderLoad => takeover::detach_under_load(world),
            Self::AllNodesKill => restarts::all_nodes_kill(world),
            Self::RestartStorm => restarts::restart_storm(world),
            Self::RollingRestart => restarts::rolling_restart(world),
            Self::QuorumLoss => outage::quorum_loss(world),
            Self::FrontExpiry => outage::front_expiry(world),
            Self::NodeExpiry => outage::node_expiry(world),
            Self::NodeStoppedLong => outage::node_stopped_long(world),
            Self::FrontStoppedLong => outage::front_stopped_long(world),
            Self::Move => place::move_chunks(world),
            Self::DiskFull => place::disk_full(world),
        }
    }
}

/// Faults begin one after the other and end in any order.
fn with_faults(world: &mut World, faults: &[Fault]) -> Outcome {
    let mut open = Vec::new();
    for fault in faults {
        fault.begin(world)?;
        open.push(fault);
        let time = draw_time(world);
        last(time)?;
    }
    while !open.is_empty() {
        let index = world.rng.random_range(0..open.len());
        open.swap_remove(index).heal(world)?;
        if !open.is_empty() {
            let time = draw_time(world);
            last(time)?;
        }
    }
    for fault in faults {
        fault.recovered(world)?;
    }
    Ok(())
}
