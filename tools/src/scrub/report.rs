//! What a scrub found and did.

use super::compare::Fault;
use crate::table::{Align, table};
use crate::units::ByteSize;
use serde::Serialize;
use ukai_proto::NodeId;

/// Sectors that are left as they are, as listed; more are only counted.
const LEFT_SHOWN: usize = 100;

/// Found, and what became of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub(crate) struct Count {
    pub(crate) found: u64,
    pub(crate) repaired: u64,
    pub(crate) left: u64,
}

impl Count {
    fn add(&mut self, repaired: bool) {
        self.found += 1;
        if repaired {
            self.repaired += 1;
        } else {
            self.left += 1;
        }
    }
}

/// Of one node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct NodeReport {
    #[serde(skip)]
    pub(crate) id: NodeId,
    pub(crate) node: String,
    pub(crate) site: String,
    pub(crate) chunks: u64,
    pub(crate) sectors: u64,
    pub(crate) bytes_read: u64,
    /// Sectors that do not match their checksums.
    pub(crate) bad: Count,
    /// Sectors that differ from a replica with a later write.
    pub(crate) different: Count,
    /// Why it was not looked at, or not to the end.
    pub(crate) problem: Option<String>,
}

/// A sector that is left.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct Left {
    pub(crate) chunk: u32,
    pub(crate) sector: u16,
    /// Position in the volume.
    pub(crate) byte: u64,
    pub(crate) node: String,
    pub(crate) why: String,
}

/// The whole.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub(crate) struct Report {
    pub(crate) volume: String,
    pub(crate) range: String,
    pub(crate) repair: bool,
    /// Every in-sync replica of the range was looked at.
    pub(crate) complete: bool,
    pub(crate) chunks: u64,
    /// Sectors of which the replicas were compared.
    pub(crate) sectors: u64,
    pub(crate) bad: Count,
    pub(crate) different: Count,
    /// Differences that may be writes under way; not counted as found.
    pub(crate) unsettled: u64,
    pub(crate) bytes_read: u64,
    pub(crate) seconds: f64,
    /// The bound, and what the busiest node read.
    pub(crate) rate_max_bytes_per_second: u64,
    pub(crate) rate_bytes_per_second: u64,
    pub(crate) nodes: Vec<NodeReport>,
    pub(crate) left: Vec<Left>,
}

impl Report {
    pub(crate) fn node(&mut self, id: NodeId) -> &mut NodeReport {
        let at = self.nodes.iter().position(|node| node.id == id);
        let at = at.unwrap_or_else(|| panic!("node {id} is not of this scrub"));
        &mut self.nodes[at]
    }

    /// A fault of a node's replica of a sector.
    pub(crate) fn fault(&mut self, id: NodeId, fault: Fault, repaired: bool) {
        let node = self.node(id);
        match fault {
            Fault::Bad => {
                node.bad.add(repaired);
                self.bad.add(repaired);
            }
            Fault::Behind => {
                node.different.add(repaired);
                self.different.add(repaired);
            }
        }
    }

    pub(crate) fn leave(&mut self, left: Left) {
        if self.left.len() < LEFT_SHOWN {
            self.left.push(left);
        }
    }

    /// Sums and averages, at the end.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss
    )]
    // Figures for people.
    pub(crate) fn finish(&mut self, seconds: f64) {
        self.seconds = seconds;
        self.bytes_read = self.nodes.iter().map(|node| node.bytes_read).sum();
        let busiest = self.nodes.iter().map(|node| node.bytes_read).max();
        let rate = busiest.unwrap_or(0) as f64 / seconds.max(1e-9);
        self.rate_bytes_per_second = rate as u64;
        self.complete = self.nodes.iter().all(|node| node.problem.is_none());
    }

    /// Faults that are left.
    pub(crate) fn faults_left(&self) -> u64 {
        self.bad.left + self.different.left
    }

    pub(crate) fn text(&self) -> String {
        let count = |n: u64| if n == 0 { "-".into() } else { n.to_string() };
        let rows = self.nodes.iter().map(|node| {
            vec![
                node.node.clone(),
                node.site.clone(),
                node.chunks.to_string(),
                node.sectors.to_string(),
                ByteSize(node.bytes_read).about(),
                count(node.bad.found),
                count(node.bad.repaired),
                count(node.different.found),
                count(node.different.repaired),
            ]
        });
        let columns = [
            ("node", Align::Left),
            ("site", Align::Left),
            ("chunks", Align::Right),
            ("sectors", Align::Right),
            ("read", Align::Right),
            ("bad", Align::Right),
            ("repaired", Align::Right),
            ("different", Align::Right),
            ("repaired", Align::Right),
        ];
        let mut text = table(&columns, rows.collect());
        for node in &self.nodes {
            if let Some(problem) = &node.problem {
                text.push_str(&format!("\nnode {}: {problem}", node.node));
            }
        }
        for left in &self.left {
            let Left {
                chunk,
                sector,
                byte,
                node,
                why,
            } = left;
            text.push_str(&format!(
                "\nleft: chunk {chunk} sector {sector} (byte {byte}) on node {node}: {why}"
            ));
        }
        let more = self.faults_left().saturating_sub(self.left.len() as u64);
        if more > 0 {
            text.push_str(&format!("\nleft: {more} more"));
        }
        if self.unsettled > 0 {
            text.push_str(&format!(
                "\n{} sectors were being written whenever they were looked at and were not compared",
                self.unsettled
            ));
        }
        text.push_str(&format!(
            "\n{} chunks, {} sectors compared, {} read in {:.1} s ({}/s of at most {}/s per node)",
            self.chunks,
            self.sectors,
            ByteSize(self.bytes_read).about(),
            self.seconds,
            ByteSize(self.rate_bytes_per_second).about(),
            ByteSize(self.rate_max_bytes_per_second).about(),
        ));
        text
    }
}
