//! What is left to save at the edge between what moves and what stays.

use super::{Cover, NEED_EPSILON};

/// Steps on each side of the edge that the clean-up tries to swap: their number squared is tried.
const SWAP_WINDOW: usize = 64;

impl Cover<'_> {
    /// Gives back what is not needed, and swaps steps at the edge for cheaper ones.
    pub(super) fn clean_up(&mut self) {
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
