//! Faults that begin, last and end: several of them can overlap.

use crate::net::{Member, between};
use crate::wait::Outcome;
use crate::world::World;
use rand::RngExt;
use std::time::Duration;

/// One fault that can be healed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// SIGKILL of a node, then a start.
    NodeKill(usize),
    /// SIGSTOP of a node, then SIGCONT.
    NodeStop(usize),
    /// SIGSTOP of the front, then SIGCONT.
    FrontStop,
    /// SIGKILL of a ZooKeeper server, then a start.
    ZooKeeperKill {
        /// Which.
        server: usize,
        /// It led.
        leader: bool,
    },
    /// SIGSTOP of a ZooKeeper server, then SIGCONT.
    ZooKeeperStop(usize),
    /// Packets get lost between members.
    Cut {
        /// For the table.
        kind: &'static str,
        /// (from, to).
        pairs: Vec<(Member, Member)>,
    },
}

impl Fault {
    /// For the table.
    #[must_use]
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::NodeKill(_) => "node killed",
            Self::NodeStop(_) => "node stopped",
            Self::FrontStop => "front stopped",
            Self::ZooKeeperKill { leader: true, .. } => "ZooKeeper leader killed",
            Self::ZooKeeperKill { .. } => "ZooKeeper follower killed",
            Self::ZooKeeperStop(_) => "ZooKeeper server stopped",
            Self::Cut { kind, .. } => kind,
        }
    }

    /// Draws one for the current state of the system.
    pub(crate) fn draw(world: &mut World) -> Outcome<Self> {
        let node = world.rng.random_range(0..world.nodes.len());
        let server = world.rng.random_range(0..world.zk.len());
        Ok(match world.rng.random_range(0..16u32) {
            0..=2 => Self::NodeKill(node),
            3..=4 => Self::NodeStop(node),
            5 => Self::FrontStop,
            6 => match world.zk.leader() {
                Some(server) => Self::ZooKeeperKill {
                    server,
                    leader: true,
                },
                None => Self::ZooKeeperKill {
                    server,
                    leader: false,
                },
            },
            7 => Self::ZooKeeperKill {
                server,
                leader: world.zk.leader() == Some(server),
            },
            8 => Self::ZooKeeperStop(server),
            _ => Self::draw_cut(world, node)?,
        })
    }

    fn draw_cut(world: &mut World, node: usize) -> Outcome<Self> {
        let host = world.front()?.host;
        let other = (node + 1) % world.nodes.len();
        let (node, other) = (world.nodes[node].member, world.nodes[other].member);
        let zk: Vec<Member> = (0..world.zk.len()).map(|n| world.zk.member(n)).collect();
        let nodes: Vec<Member> = world.nodes.iter().map(|node| node.member).collect();
        let server = zk[world.rng.random_range(0..zk.len())];
        let all: Vec<Member> = world.net.members().skip(1).collect();
        let but = |one: Member| -> Vec<Member> {
            all.iter()
                .copied()
                .filter(|member| *member != one)
                .collect()
        };
        let (kind, pairs) = match world.rng.random_range(0..10u32) {
            0 => ("cut: front and node", between(&[host], &[node])),
            1 => ("cut: front to node, one way", vec![(host, node)]),
            2 => ("cut: node to front, one way", vec![(node, host)]),
            3 => ("cut: node and all", between(&[node], &but(node))),
            4 => ("cut: node and ZooKeeper", between(&[node], &zk)),
            5 => ("cut: node and node", between(&[node], &[other])),
            6 => ("cut: front and ZooKeeper", between(&[host], &zk)),
            7 => ("cut: front and all nodes", between(&[host], &nodes)),
            8 => ("cut: front and all", between(&[host], &but(host))),
            _ => (
                "cut: ZooKeeper server and all",
                between(&[server], &but(server)),
            ),
        };
        Ok(Self::Cut { kind, pairs })
    }

    /// Do the two touch the same thing, so that they must not overlap?
    #[must_use]
    pub(crate) fn conflicts(&self, other: &Self) -> bool {
        let node = |fault: &Self| match fault {
            Self::NodeKill(node) | Self::NodeStop(node) => Some(*node),
            _ => None,
        };
        let server = |fault: &Self| match fault {
            Self::ZooKeeperKill { server, .. } | Self::ZooKeeperStop(server) => Some(*server),
            _ => None,
        };
        // What both cut would be mended by the first that ends.
        let cuts = match (self, other) {
            (Self::Cut { pairs, .. }, Self::Cut { pairs: others, .. }) => {
                pairs.iter().any(|pair| others.contains(pair))
            }
            _ => false,
        };
        (node(self).is_some() && node(self) == node(other))
            || (server(self).is_some() && server(self) == server(other))
            || cuts
            || self == other
    }

    /// It begins.
    pub(crate) fn begin(&self, world: &mut World) -> Outcome {
        world.tally.fault(self.kind());
        world.tell(&format!("begins: {}", self.text(world)));
        match self {
            Self::NodeKill(node) => world.nodes[*node].kill(),
            Self::NodeStop(node) => world.nodes[*node].running()?.stop(),
            Self::FrontStop => world.front()?.process.stop(),
            Self::ZooKeeperKill { server, .. } => world.zk.kill(*server),
            Self::ZooKeeperStop(server) => world.zk.process(*server)?.stop(),
            Self::Cut { pairs, .. } => world.net.cut(pairs.iter().copied()),
        }
    }

    /// It ends.
    pub(crate) fn heal(&self, world: &mut World) -> Outcome {
        world.tell(&format!("ends: {}", self.text(world)));
        match self {
            Self::NodeKill(node) => world.nodes[*node].launch(&world.net, &world.stable),
            Self::NodeStop(node) => world.nodes[*node].running()?.go_on(),
            Self::FrontStop => world.front()?.process.go_on(),
            Self::ZooKeeperKill { server, .. } => world.zk.run(&world.net, *server),
            Self::ZooKeeperStop(server) => world.zk.process(*server)?.go_on(),
            Self::Cut { pairs, .. } => world.net.mend(pairs.iter().copied()),
        }
    }

    /// After everything was healed: wait for what must come by itself.
    pub(crate) fn recovered(&self, world: &mut World) -> Outcome {
        match self {
            Self::NodeKill(node) => world.nodes[*node].wait_ready(),
            Self::ZooKeeperKill { .. } | Self::ZooKeeperStop(_) => world.zk.wait_serving(),
            Self::NodeStop(_) | Self::FrontStop | Self::Cut { .. } => Ok(()),
        }
    }

    fn text(&self, world: &World) -> String {
        match self {
            Self::NodeKill(node) | Self::NodeStop(node) => {
                format!("{}: {}", self.kind(), world.nodes[*node].name)
            }
            Self::ZooKeeperKill { server, .. } | Self::ZooKeeperStop(server) => {
                format!("{}: z{}", self.kind(), server + 1)
            }
            Self::Cut { pairs, .. } => {
                let (from, to) = pairs[0];
                let names = (world.net.name(from), world.net.name(to));
                format!("{} ({}, {}...)", self.kind(), names.0, names.1)
            }
            Self::FrontStop => self.kind().to_owned(),
        }
    }
}

/// How long a fault lasts: half of them are over before anybody gives up on anything, the others
/// outlast the silence that a lane bears (5 s) and a session of ZooKeeper (6 s).
pub(crate) fn draw_time(world: &mut World) -> Duration {
    let ms = if world.rng.random_range(0..2u32) == 0 {
        world.rng.random_range(50..2000)
    } else {
        world.rng.random_range(5500..10_000)
    };
    Duration::from_millis(ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_on_one_thing_do_not_overlap() {
        let cut = |from, to| Fault::Cut {
            kind: "cut",
            pairs: between(&[Member(from)], &[Member(to)]),
        };
        assert!(Fault::NodeKill(1).conflicts(&Fault::NodeStop(1)));
        assert!(!Fault::NodeKill(1).conflicts(&Fault::NodeStop(2)));
        assert!(Fault::FrontStop.conflicts(&Fault::FrontStop));
        assert!(cut(1, 2).conflicts(&cut(2, 1)));
        assert!(!cut(1, 2).conflicts(&cut(1, 3)));
        assert!(!cut(1, 2).conflicts(&Fault::ZooKeeperStop(1)));
    }
}
