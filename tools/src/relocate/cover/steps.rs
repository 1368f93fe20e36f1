//! Steps up the hulls of all classes, best first, until what is wanted is reached.

use super::{Cover, Failure, NEED_EPSILON, count};
use crate::relocate::problem::Class;

/// More of one choice, less of another.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    piece: usize,
    from: usize,
    to: usize,
    /// Weighted share per byte.
    worth: f64,
    wan: u32,
}

impl Cover<'_> {
    /// Takes steps until every demand is met, or none is left.
    pub(crate) fn reach(&mut self, weights: &[f64]) -> Result<(), Failure> {
        let mut steps = self.steps(weights);
        while !self.is_met() {
            if steps.is_empty() {
                return Err(Failure::Short);
            }
            for step in steps {
                let whole = self.pieces[step.piece].chunks;
                let room = self.room(self.class(step.piece), step.from, step.to);
                let chunks = self.needed(&step).min(whole).min(room);
                if chunks > 0 {
                    let part = self.split(step.piece, chunks);
                    self.take(part, step.to);
                }
                if self.is_met() {
                    return Ok(());
                }
                if chunks < whole {
                    // A node is full: what else there is has to be found without it.
                    self.find_choices();
                    break;
                }
            }
            steps = self.steps(weights);
        }
        Ok(())
    }

    /// From now on no demand is ever met: steps are taken while any is left.
    pub(crate) fn want_everything(&mut self) {
        self.need.fill(f64::INFINITY);
    }

    /// Takes steps while they fit into `bytes_max` in all.
    pub(crate) fn reach_bytes(&mut self, weights: &[f64], bytes_max: u64) {
        loop {
            let mut refind = false;
            for step in self.steps(weights) {
                let class = self.class(step.piece);
                let copies = self.choices[step.to].copies() - self.choices[step.from].copies();
                let whole = self.pieces[step.piece].chunks;
                let fit = (bytes_max - self.bytes)
                    .checked_div(class.bytes * copies)
                    .unwrap_or(u64::MAX);
                let room = self.room(class, step.from, step.to);
                let chunks = whole.min(fit).min(room);
                if chunks > 0 {
                    let part = self.split(step.piece, chunks);
                    self.take(part, step.to);
                }
                if chunks < whole {
                    refind = room < whole.min(fit);
                    break;
                }
            }
            if !refind {
                return;
            }
            self.find_choices();
        }
    }

    /// Bytes at which the steps, taken in fractions, bring the weighted sum of what is needed.
    pub(super) fn lower_bound(&self, weights: &[f64]) -> u64 {
        let mut lacking: f64 = weights
            .iter()
            .zip(&self.need)
            .map(|(weight, need)| weight * need)
            .sum();
        let mut bytes = count(self.bytes);
        for step in self.steps(weights) {
            let class = self.class(step.piece);
            let share = self.weighted(class, weights, step.from, step.to);
            let chunks = (lacking / share).clamp(0.0, count(self.pieces[step.piece].chunks));
            lacking -= share * chunks;
            bytes += chunks
                * count(
                    class.bytes
                        * (self.choices[step.to].copies() - self.choices[step.from].copies()),
                );
        }
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        // below 2^53, not negative
        let bytes = bytes as u64;
        bytes
    }

    fn weighted(&self, class: &Class, weights: &[f64], from: usize, to: usize) -> f64 {
        (0..weights.len())
            .map(|at| weights[at] * self.gain(class, at, from, to))
            .sum()
    }

    /// Chunks of this step that meet all demands; all of it if it cannot do that alone.
    fn needed(&self, step: &Step) -> u64 {
        let class = self.class(step.piece);
        let mut chunks = 1u64;
        for at in 0..self.need.len() {
            let gain = self.gain(class, at, step.from, step.to);
            if self.need[at] > NEED_EPSILON {
                if gain <= 0.0 {
                    return u64::MAX;
                }
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // saturates
                let wanted = ((self.need[at] - NEED_EPSILON) / gain).ceil() as u64;
                chunks = chunks.max(wanted);
            }
        }
        let met = (0..self.need.len()).all(|at| {
            self.need[at] - self.gain(class, at, step.from, step.to) * count(chunks) <= NEED_EPSILON
        });
        if met { chunks } else { u64::MAX }
    }

    /// Steps up the hulls of all pieces, the best first.
    fn steps(&self, weights: &[f64]) -> Vec<Step> {
        let mut out = Vec::new();
        for (at, piece) in self.pieces.iter().enumerate() {
            let class = &self.problem.classes[piece.class];
            if class.movable {
                self.hull(at, class, weights, &mut out);
            }
        }
        out.sort_by(|a: &Step, b: &Step| {
            b.worth
                .total_cmp(&a.worth)
                .then(a.wan.cmp(&b.wan))
                .then(a.piece.cmp(&b.piece))
        });
        out
    }

    fn hull(&self, piece: usize, class: &Class, weights: &[f64], out: &mut Vec<Step>) {
        let mut from = self.pieces[piece].choice;
        loop {
            let best = self.open[class.set as usize]
                .list
                .iter()
                .filter(|to| self.choices[**to].copies() >= self.choices[from].copies())
                .filter_map(|&to| {
                    let share = self.weighted(class, weights, from, to);
                    let copies = self.choices[to].copies() - self.choices[from].copies();
                    let bytes = copies * class.bytes;
                    let worth = if bytes == 0 {
                        f64::INFINITY
                    } else {
                        share / count(bytes)
                    };
                    (share > 0.0).then_some((
                        worth,
                        share,
                        Step {
                            piece,
                            from,
                            to,
                            worth,
                            wan: self.choices[to].wan,
                        },
                    ))
                })
                .max_by(|a, b| {
                    a.0.total_cmp(&b.0)
                        .then(a.1.total_cmp(&b.1))
                        .then(b.2.wan.cmp(&a.2.wan))
                });
            let Some((_, _, step)) = best else { return };
            from = step.to;
            out.push(step);
        }
    }
}
