//! The search: the fewest bytes that meet all demands.
//!
//! Each demand is a sum that has to be reached (see `model`), each choice for a chunk adds a known share
//! to each sum at a known cost in bytes: a covering problem. With one demand, take for each class of chunks
//! the upper hull of (bytes, share): its steps, most share per byte first, until the sum is reached. All
//! chunks of a class are alike, so nothing is left to try inside it, and where each step costs one chunk
//! the result is exactly the least. Where steps cost different numbers of copies, the last one may overshoot:
//! a clean-up gives back what is not needed and swaps steps at the edge. With several demands the shares are
//! added with weights, and the weights are tried until the dearest demands weigh most.
//!
//! The same steps, taken in fractions, give a *lower bound*: no plan at all does with fewer bytes.
//!
//! Space is a limit on the way: a step that fills a node is taken as far as it goes, then choices are made
//! anew without that node.

use super::choice::{Choice, Choices};
use super::problem::{Class, Demand, NodeIndex, Problem};

/// Sums of shares are this exact.
const NEED_EPSILON: f64 = 1e-9;
/// Rounds of weights. Each costs one search; later ones changed nothing in any case tried.
const WEIGHT_ROUNDS: usize = 10;
/// A plan that is so near to the lower bound is good enough: a thousandth.
const BOUND_NEAR: u64 = 1000;
/// Steps on each side of the edge that the clean-up tries to swap: their number squared is tried.
const SWAP_WINDOW: usize = 64;

/// Chunks of one class for which the same was chosen.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Piece {
    pub(crate) class: usize,
    /// Chunks of the class before this piece's.
    pub(crate) offset: u64,
    pub(crate) chunks: u64,
    /// Index into [`Cover::choices`].
    pub(crate) choice: usize,
}

/// A state of the search, and its result.
#[derive(Clone, Debug)]
pub(crate) struct Cover<'a> {
    pub(crate) problem: &'a Problem,
    pub(crate) choices: Vec<Choice>,
    pub(crate) pieces: Vec<Piece>,
    /// For each demand what its sum still lacks; not positive: met.
    pub(crate) need: Vec<f64>,
    /// Bytes left on each node.
    pub(crate) free: Vec<u64>,
    pub(crate) bytes: u64,
    pub(crate) wan_bytes: u64,
    /// No plan does with less.
    pub(crate) bytes_min: u64,
    /// By set: choices possible with the space there is now.
    open: Vec<Open>,
}

#[derive(Clone, Debug, Default)]
struct Open {
    /// Indices into `choices`, fewest copies first.
    list: Vec<usize>,
    may_stay: bool,
}

/// A demand, or a rule, that cannot be met.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Failure {
    /// Chunks that the rules do not leave where they are have nowhere to go: so many.
    NoPlace { chunks: u64 },
    /// Everything that helps was moved, and it is not enough.
    Short,
}

/// More of one choice, less of another.
#[derive(Clone, Copy, Debug)]
struct Step {
    piece: usize,
    from: usize,
    to: usize,
    /// Weighted share per byte.
    worth: f64,
    wan: u32,
}

/// The plan with the fewest bytes.
pub(crate) fn cover(problem: &Problem) -> Result<Cover<'_>, Failure> {
    let free = problem.nodes.iter().map(|node| node.free_bytes).collect();
    let base = Cover::new(problem, free)?;
    // Space taken in another way may leave room for a better plan: the bound has all the space there is.
    let unlimited = Cover::new(problem, vec![u64::MAX / 2; problem.nodes.len()])?;
    let demands = problem.demands.len();
    let mut best: Option<Cover<'_>> = None;
    let mut bytes_min = unlimited.bytes;
    let mut weights = vec![1.0; demands];
    let rounds = if demands <= 1 { 1 } else { WEIGHT_ROUNDS };
    for _ in 0..rounds {
        let mut tried = base.clone();
        let result = tried.reach(&weights);
        bytes_min = bytes_min.max(unlimited.lower_bound(&weights, &unlimited.steps(&weights)));
        if result.is_ok() {
            tried.clean_up();
            let is_near = tried.bytes - bytes_min.min(tried.bytes) <= bytes_min / BOUND_NEAR;
            // What has slack weighs too much.
            let slack = tried.need.iter().map(|need| -need).collect::<Vec<_>>();
            let least = slack.iter().copied().fold(f64::INFINITY, f64::min);
            for (weight, slack) in weights.iter_mut().zip(&slack) {
                *weight *= if *slack > least + NEED_EPSILON {
                    0.4
                } else {
                    1.5
                };
            }
            let cost = |cover: &Cover<'_>| (cover.bytes, cover.wan_bytes);
            if best.as_ref().is_none_or(|best| cost(&tried) < cost(best)) {
                best = Some(tried);
            }
            if is_near {
                break;
            }
        } else {
            for (weight, need) in weights.iter_mut().zip(&tried.need) {
                *weight *= if *need > NEED_EPSILON { 3.0 } else { 0.7 };
            }
        }
    }
    let mut best = best.ok_or(Failure::Short)?;
    best.bytes_min = bytes_min.min(best.bytes);
    Ok(best)
}

impl<'a> Cover<'a> {
    /// Nothing moved but what the rules do not leave where it is.
    pub(crate) fn new(problem: &'a Problem, free: Vec<u64>) -> Result<Self, Failure> {
        let mut cover = Self {
            problem,
            choices: problem.sets.iter().map(|set| problem.stay(set)).collect(),
            pieces: Vec::new(),
            need: problem
                .demands
                .iter()
                .map(|demand| demand.probability)
                .collect(),
            free,
            bytes: 0,
            wan_bytes: 0,
            bytes_min: 0,
            open: Vec::new(),
        };
        for (at, class) in problem.classes.iter().enumerate() {
            let choice = class.set as usize;
            cover.pieces.push(Piece {
                class: at,
                offset: 0,
                chunks: class.chunks,
                choice,
            });
            cover.change_need(class, class.chunks, None, choice);
        }
        cover.find_choices();
        cover.keep_rules()?;
        Ok(cover)
    }

    fn find_choices(&mut self) {
        self.open.clear();
        for set in &self.problem.sets {
            let free = &self.free;
            let Choices { may_stay, list } = self.problem.choices(set, |node| {
                free[usize::from(node)] >= self.problem.chunk_bytes
            });
            let mut open = Open {
                list: Vec::new(),
                may_stay,
            };
            for choice in list {
                // The set as it is has a number already.
                let at = if choice.moves_nothing() {
                    self.open.len()
                } else {
                    self.choices.len()
                };
                if !choice.moves_nothing() {
                    self.choices.push(choice);
                }
                open.list.push(at);
            }
            self.open.push(open);
        }
    }

    fn class(&self, piece: usize) -> &'a Class {
        &self.problem.classes[self.pieces[piece].class]
    }

    /// Moves what may not stay, as cheaply as the rules allow.
    fn keep_rules(&mut self) -> Result<(), Failure> {
        let mut at = 0;
        while at < self.pieces.len() {
            let class = self.class(at);
            let open = &self.open[class.set as usize];
            let stays = self.pieces[at].choice == class.set as usize;
            if !class.movable || open.may_stay || !stays {
                at += 1;
                continue;
            }
            let Some(to) = open.list.first().copied() else {
                let stuck = |piece: &&Piece| {
                    let class = &self.problem.classes[piece.class];
                    let stays = piece.choice == class.set as usize;
                    class.movable && stays && self.open[class.set as usize].list.is_empty()
                };
                return Err(Failure::NoPlace {
                    chunks: self
                        .pieces
                        .iter()
                        .filter(stuck)
                        .map(|piece| piece.chunks)
                        .sum(),
                });
            };
            let chunks = self
                .room(class, self.pieces[at].choice, to)
                .min(self.pieces[at].chunks);
            if chunks > 0 {
                let moved = self.split(at, chunks);
                self.take(moved, to);
            }
            if self.filled() {
                self.find_choices();
            }
        }
        Ok(())
    }

    /// Whether a choice that is open needs a node that is full.
    fn filled(&self) -> bool {
        let full = |node: &NodeIndex| self.free[usize::from(*node)] < self.problem.chunk_bytes;
        self.open
            .iter()
            .flat_map(|open| &open.list)
            .any(|at| self.choices[*at].add.iter().any(full))
    }

    /// Cuts `chunks` off the piece; the cut part's number.
    fn split(&mut self, piece: usize, chunks: u64) -> usize {
        let whole = &mut self.pieces[piece];
        assert!(
            chunks > 0 && chunks <= whole.chunks,
            "{chunks} of {}",
            whole.chunks
        );
        if chunks == whole.chunks {
            return piece;
        }
        let part = Piece {
            chunks,
            ..whole.clone()
        };
        whole.offset += chunks;
        whole.chunks -= chunks;
        self.pieces.push(part);
        self.pieces.len() - 1
    }

    /// How many chunks the nodes that come new have room for.
    fn room(&self, class: &Class, from: usize, to: usize) -> u64 {
        let (from, to) = (&self.choices[from], &self.choices[to]);
        let new = to.add.iter().filter(|node| !from.add.contains(node));
        new.map(|node| {
            self.free[usize::from(*node)]
                .checked_div(class.bytes)
                .unwrap_or(u64::MAX)
        })
        .min()
        .unwrap_or(u64::MAX)
    }

    /// The whole piece goes over to another choice.
    fn take(&mut self, piece: usize, to: usize) {
        let (class, from) = (self.class(piece), self.pieces[piece].choice);
        let chunks = self.pieces[piece].chunks;
        self.change_need(class, chunks, Some(from), to);
        let bytes = chunks * class.bytes;
        let (old, new) = (&self.choices[from], &self.choices[to]);
        for node in &old.add {
            self.free[usize::from(*node)] += bytes;
        }
        for node in &new.add {
            let free = &mut self.free[usize::from(*node)];
            *free = free.checked_sub(bytes).expect("room was looked for");
        }
        self.bytes = self.bytes + bytes * new.copies() - bytes * old.copies();
        self.wan_bytes = self.wan_bytes + bytes * u64::from(new.wan) - bytes * u64::from(old.wan);
        self.pieces[piece].choice = to;
    }

    fn change_need(&mut self, class: &Class, chunks: u64, from: Option<usize>, to: usize) {
        for (at, demand) in self.problem.demands.iter().enumerate() {
            let before = from.map_or(0.0, |from| self.choices[from].within[at]);
            self.need[at] -=
                per_chunk(class, demand) * count(chunks) * (self.choices[to].within[at] - before);
        }
    }

    /// What one chunk adds to a demand's sum when it changes over.
    fn gain(&self, class: &Class, demand: usize, from: usize, to: usize) -> f64 {
        let within = |choice: usize| self.choices[choice].within[demand];
        per_chunk(class, &self.problem.demands[demand]) * (within(to) - within(from))
    }

    pub(crate) fn is_met(&self) -> bool {
        self.need.iter().all(|need| *need <= NEED_EPSILON)
    }

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
    fn lower_bound(&self, weights: &[f64], steps: &[Step]) -> u64 {
        let mut lacking: f64 = weights
            .iter()
            .zip(&self.need)
            .map(|(weight, need)| weight * need)
            .sum();
        let mut bytes = count(self.bytes);
        for step in steps {
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

    /// Gives back what is not needed, and swaps steps at the edge for cheaper ones.
    fn clean_up(&mut self) {
        // Each round that changes anything saves a chunk at least; a bound for degenerate cases.
        for _ in 0..SWAP_WINDOW {
            if !self.give_back() && !self.swap() {
                return;
            }
        }
    }

    /// Cheaper choices for a piece, with what one chunk of it saves.
    fn cheaper(&self, piece: usize) -> Vec<usize> {
        let class = self.class(piece);
        let copies = self.choices[self.pieces[piece].choice].copies();
        let open = &self.open[class.set as usize];
        let stay = open.may_stay.then_some(class.set as usize);
        let mut list: Vec<usize> = stay.into_iter().chain(open.list.iter().copied()).collect();
        list.retain(|to| self.choices[*to].copies() < copies);
        list
    }

    fn give_back(&mut self) -> bool {
        let mut changed = false;
        for piece in self.edge(true) {
            for to in self.cheaper(piece) {
                let (class, from) = (self.class(piece), self.pieces[piece].choice);
                if self.choices[to].copies() >= self.choices[from].copies() || class.bytes == 0 {
                    continue;
                }
                let mut chunks = self.pieces[piece].chunks.min(self.room(class, from, to));
                for at in 0..self.need.len() {
                    let loss = -self.gain(class, at, from, to);
                    if loss > 0.0 {
                        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
                        // saturates
                        let spare = ((NEED_EPSILON - self.need[at]).max(0.0) / loss).floor() as u64;
                        chunks = chunks.min(spare);
                    }
                }
                if chunks > 0 {
                    let part = self.split(piece, chunks);
                    self.take(part, to);
                    changed = true;
                    if part == piece {
                        break;
                    }
                }
            }
        }
        changed
    }

    /// One step given back and a cheaper one taken instead.
    fn swap(&mut self) -> bool {
        let (taken, untaken) = (self.edge(true), self.edge(false));
        for &down in &taken {
            for to_down in self.cheaper(down) {
                let from_down = self.pieces[down].choice;
                let class_down = self.class(down);
                let saved = class_down.bytes
                    * (self.choices[from_down].copies() - self.choices[to_down].copies());
                for &up in untaken.iter().filter(|up| **up != down) {
                    let class_up = self.class(up);
                    let from_up = self.pieces[up].choice;
                    for to_up in self.open[class_up.set as usize].list.clone() {
                        let (more, less) =
                            (self.choices[to_up].copies(), self.choices[from_up].copies());
                        if more <= less || class_up.bytes * (more - less) >= saved {
                            continue;
                        }
                        let holds = (0..self.need.len()).all(|at| {
                            self.need[at]
                                - self.gain(class_down, at, from_down, to_down)
                                - self.gain(class_up, at, from_up, to_up)
                                <= NEED_EPSILON
                        });
                        if !holds || self.room(class_up, from_up, to_up) == 0 {
                            continue;
                        }
                        let part_up = self.split(up, 1);
                        self.take(part_up, to_up);
                        // Both may want the last place on a node.
                        if self.room(class_down, from_down, to_down) == 0 {
                            self.take(part_up, from_up);
                            continue;
                        }
                        let part_down = self.split(down, 1);
                        self.take(part_down, to_down);
                        assert!(self.is_met(), "a swap lost a demand");
                        return true;
                    }
                }
            }
        }
        false
    }

    /// The pieces nearest to the edge between what moves and what stays: of those that move the coldest, of
    /// the others the hottest.
    fn edge(&self, moving: bool) -> Vec<usize> {
        let heat = |piece: &usize| self.class(*piece).heat();
        let mut list: Vec<usize> = (0..self.pieces.len())
            .filter(|at| {
                self.class(*at).movable
                    && self.choices[self.pieces[*at].choice].moves_nothing() != moving
            })
            .collect();
        list.sort_by(|a, b| {
            if moving {
                heat(a).total_cmp(&heat(b))
            } else {
                heat(b).total_cmp(&heat(a))
            }
        });
        list.truncate(SWAP_WINDOW);
        list
    }
}

fn per_chunk(class: &Class, demand: &Demand) -> f64 {
    class.load(demand.kind)
}

/// Chunks and bytes of one volume are below 2^53.
fn count(number: u64) -> f64 {
    #[allow(clippy::cast_precision_loss)]
    let number = number as f64;
    number
}

#[cfg(test)]
mod tests;
