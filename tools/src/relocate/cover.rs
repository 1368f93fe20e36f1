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
        bytes_min = bytes_min.max(unlimited.lower_bound(&weights));
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
    // Every plan moves whole chunks; sums of shares are off by a little.
    let whole = (bytes_min - bytes_min / 1_000_000).next_multiple_of(problem.chunk_bytes);
    best.bytes_min = whole.min(best.bytes);
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

mod clean_up;
mod steps;
#[cfg(test)]
mod tests;
