//! Reports to the nodes that the volume is written to: heat, page by page, and what the shell measured.
//! Everything here may be lost: it is told again.

use super::request::Want;
use super::{ControlCore, Phase};
use crate::core::api::{ControlAction, Now, PeerIndex};
use crate::core::heat::{Decay, HeatTable};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use ukai_meta::LatencyPoints;
use ukai_proto::crc::crc32c;
use ukai_proto::heat::HeatPage;
use ukai_proto::message::{REPORT_BYTES_MAX, Report, ReportKind};
use ukai_proto::{ChunkIndex, Incarnation, NodeId, Opcode};

/// Between rounds over all pages of the heat.
const HEAT_EVERY: Duration = Duration::from_secs(5);
/// Between two pages: spreads the load of a large volume; 4 TiB of 4 MiB chunks take 3 s.
const PAGE_EVERY: Duration = Duration::from_millis(25);
/// Reports that a node has not answered: beyond them it gets none.
const UNANSWERED_MAX: usize = 4;
/// What earlier fronts told of the heat is asked for so long at most; then this front begins anew.
const SEED_MAX: Duration = Duration::from_secs(60);
/// Round trips remembered per node: one minute, at two questions per second.
const ROUND_TRIPS_MAX: usize = 120;

/// The latest round trips of questions that cost the node nothing.
#[derive(Debug, Default)]
pub(super) struct RoundTrips {
    us: Vec<f32>,
    next: usize,
}

impl RoundTrips {
    pub(super) fn add(&mut self, sample: Duration) {
        let us = sample.as_secs_f32() * 1e6;
        if self.us.len() < ROUND_TRIPS_MAX {
            self.us.push(us);
        } else {
            self.us[self.next] = us;
        }
        self.next = (self.next + 1) % ROUND_TRIPS_MAX;
    }

    fn points(&self) -> Option<LatencyPoints> {
        let mut sorted = self.us.clone();
        sorted.sort_by(f32::total_cmp);
        LatencyPoints::from_quantiles(sorted.len() as u64, |quantile| {
            #[allow(
                clippy::cast_precision_loss,
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss
            )] // an index among a hundred
            let at = (quantile * (sorted.len() - 1) as f64).round() as usize;
            f64::from(sorted[at])
        })
    }
}

/// Asking nodes for what earlier fronts told.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Seed {
    /// This page, next; these nodes had nothing of it.
    Page {
        page: u32,
        asked: Vec<NodeId>,
    },
    /// Asked for.
    Waiting {
        page: u32,
        asked: Vec<NodeId>,
    },
    Done,
}

#[derive(Debug)]
pub(super) struct Publish {
    table: Arc<HeatTable>,
    decay: Decay,
    /// Since when this front counts.
    since: Now,
    /// For how long others did before it.
    age_before: Duration,
    seed: Seed,
    page: u32,
    round_at: Now,
    page_at: Now,
    /// Checksums of the pages as told; absent: all zero, or not told.
    told: BTreeMap<u32, u32>,
    /// To whom; others have got nothing of it.
    told_to: Vec<(NodeId, Incarnation)>,
}

impl Default for Publish {
    fn default() -> Self {
        Self {
            table: Arc::new(HeatTable::default()),
            decay: Decay::default(),
            since: Now(0),
            age_before: Duration::ZERO,
            seed: Seed::Page {
                page: 0,
                asked: Vec::new(),
            },
            page: 0,
            round_at: Now(0),
            page_at: Now(0),
            told: BTreeMap::new(),
            told_to: Vec::new(),
        }
    }
}

impl ControlCore {
    /// The table for the map as it is now. Lanes get it with their configuration.
    pub(super) fn heat_table(&mut self, now: Now) -> Arc<HeatTable> {
        let count = self.map().chunk_count();
        let publish = &mut self.publish;
        if publish.table.chunk_count() != count {
            if publish.table.chunk_count() > 0 {
                publish.age_before += now.since(publish.since);
            }
            publish.table = Arc::new(publish.table.resized(count));
            publish.decay = Decay::default();
            publish.since = now;
        }
        Arc::clone(&publish.table)
    }

    /// Round trips of control's own questions to a node, over about a minute: network alone, since
    /// the node does nothing for them.
    #[must_use]
    pub fn network(&self, node: NodeId) -> Option<LatencyPoints> {
        self.seen.get(&node)?.round_trips.points()
    }

    /// Time passes: heat fades, and is told.
    pub(super) fn drive_publish(&mut self, now: Now, out: &mut Vec<ControlAction>) {
        if self.phase != Phase::Serving || !self.config.reports {
            return;
        }
        let publish = &mut self.publish;
        publish
            .table
            .decay(&mut publish.decay, now.since(publish.since));
        if publish.seed != Seed::Done {
            self.drive_seed(now, out);
            return;
        }
        let round_due = publish.page > 0 || now.since(publish.round_at) >= HEAT_EVERY;
        if round_due && now.since(publish.page_at) >= PAGE_EVERY {
            self.tell_page(now, out);
        }
    }

    fn tell_page(&mut self, now: Now, out: &mut Vec<ControlAction>) {
        let told_to: Vec<_> = self.listeners().collect();
        let publish = &mut self.publish;
        if publish.told_to != told_to {
            publish.told_to = told_to;
            publish.told.clear();
        }
        if publish.page == 0 {
            publish.round_at = now;
        }
        publish.page_at = now;
        let page = publish.page;
        publish.page = (page + 1) % publish.table.page_count().max(1);
        let age = publish.age_before + now.since(publish.since);
        let heat = publish.table.page(page, age);
        let told = publish.told.get(&page).copied();
        if heat.is_zero() && told.is_none() {
            return;
        }
        let body = heat.encode();
        // Its age alone is no news.
        let crc = crc32c(&body[8..]);
        if told == Some(crc) {
            return;
        }
        publish.told.insert(page, crc);
        self.put_report(now, ReportKind::HEAT, page, &body, out);
    }

    /// What the shell has to tell.
    pub(super) fn publish(&mut self, now: Now, body: &[u8], out: &mut Vec<ControlAction>) {
        if self.phase == Phase::Serving && body.len() <= REPORT_BYTES_MAX {
            self.put_report(now, ReportKind::FRONT, 0, body, out);
        }
    }

    fn put_report(
        &mut self,
        now: Now,
        kind: ReportKind,
        page: u32,
        body: &[u8],
        out: &mut Vec<ControlAction>,
    ) {
        let peers: Vec<PeerIndex> = self
            .listeners()
            .filter_map(|(node, _)| self.reporter(node))
            .collect();
        for peer in peers {
            if self.requests.count_on(peer, |want| *want == Want::Report) >= UNANSWERED_MAX {
                continue;
            }
            let body = body.to_vec();
            let aux = |_: &mut ukai_proto::Header| Report { kind, page, body }.encode();
            self.ask(now, peer, Opcode::PutReport, aux, Want::Report, out);
        }
    }

    /// The shard that keeps a volume's reports on a node.
    fn reporter(&self, node: NodeId) -> Option<PeerIndex> {
        self.peer_of(node, ChunkIndex(0))
    }

    /// Nodes that the volume is written to and that admit us, and their runs.
    fn listeners(&self) -> impl Iterator<Item = (NodeId, Incarnation)> {
        let nodes = self.nodes.iter().map(|entry| entry.node);
        nodes
            .filter(|node| self.is_active(*node))
            .filter_map(|node| Some((node, self.all_fenced(node)?)))
    }

    fn drive_seed(&mut self, now: Now, out: &mut Vec<ControlAction>) {
        let publish = &mut self.publish;
        if now.since(publish.since) > SEED_MAX {
            publish.seed = Seed::Done;
        }
        let Seed::Page { page, asked } = publish.seed.clone() else {
            return;
        };
        if page >= publish.table.page_count() {
            publish.seed = Seed::Done;
            return;
        }
        let next = self
            .preference
            .iter()
            .copied()
            .find(|node| !asked.contains(node) && self.all_fenced(*node).is_some())
            .and_then(|node| Some((node, self.reporter(node)?)));
        let Some((node, peer)) = next else {
            // Nobody knows of any use of it.
            self.seed_next(page + 1, Vec::new());
            return;
        };
        let mut asked = asked;
        asked.push(node);
        self.publish.seed = Seed::Waiting { page, asked };
        let report = Report {
            kind: ReportKind::HEAT,
            page,
            body: Vec::new(),
        };
        let aux = |_: &mut ukai_proto::Header| report.encode();
        self.ask(now, peer, Opcode::GetReport, aux, Want::Heat, out);
    }

    fn seed_next(&mut self, page: u32, asked: Vec<NodeId>) {
        self.publish.seed = Seed::Page { page, asked };
    }

    /// What a node had of an earlier front's heat; `None`: nothing.
    pub(super) fn heat_told(&mut self, now: Now, aux: Option<&[u8]>, out: &mut Vec<ControlAction>) {
        let Seed::Waiting { page, asked } = self.publish.seed.clone() else {
            return;
        };
        let report = aux.and_then(|aux| Report::decode(aux).ok());
        let report = report.filter(|report| report.kind == ReportKind::HEAT && report.page == page);
        match report.and_then(|report| HeatPage::decode(&report.body).ok()) {
            Some(heat) => {
                let publish = &mut self.publish;
                publish.table.seed(page, &heat);
                let age = Duration::from_secs(heat.age_s.into());
                publish.age_before = publish.age_before.max(age);
                self.seed_next(page + 1, Vec::new());
            }
            None => self.seed_next(page, asked),
        }
        self.drive_seed(now, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_round_trips_are_told() {
        let mut trips = RoundTrips::default();
        assert_eq!(trips.points(), None);
        for ms in 0..500u64 {
            trips.add(Duration::from_millis(ms));
        }
        let points = trips.points().expect("samples");
        assert_eq!(points.count, ROUND_TRIPS_MAX as u64);
        assert_eq!(
            (points.quantile(0.0), points.quantile(1.0)),
            (380_000.0, 499_000.0)
        );
    }
}
