//! The fence gate: may a request with this token and generation touch this volume here?
//!
//! What is durable is the store's [`Fence`]; the gate adds only what must act before it is durable:
//! from the moment a FENCE is admitted, lower tokens are refused, although the FENCE itself still
//! waits for their submitted disk writes. The fenced token is admitted once its record is durable.

use crate::disk::api::Fence;
use std::collections::BTreeMap;
use ukai_proto::{Generation, Status, Token, VolumeId};

/// What an operation must satisfy (table in `docs/protocol.md`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rule {
    /// FENCE: the token is not below any fenced or closing one.
    Fence,
    /// The token is the fenced one.
    Token,
    /// The token is the fenced one and the generation not below the recorded one.
    TokenAndMap,
}

/// Tokens of FENCEs in progress, per volume. Bounded by the FENCE requests in flight.
#[derive(Debug, Default)]
pub struct Gate {
    closing: BTreeMap<VolumeId, Vec<Token>>,
}

impl Gate {
    /// Judge a request against `recorded`, the durable fence of the volume.
    pub fn check(
        &self,
        rule: Rule,
        volume: VolumeId,
        token: Token,
        generation: Generation,
        recorded: Option<Fence>,
    ) -> Result<(), Status> {
        let durable = recorded.map_or(Token(0), |fence| fence.token);
        let closing = self
            .closing
            .get(&volume)
            .and_then(|tokens| tokens.iter().max().copied())
            .unwrap_or_default();
        if token < durable.max(closing) {
            return Err(Status::StaleToken);
        }
        if rule == Rule::Fence {
            return Ok(());
        }
        let Some(recorded) = recorded else {
            return Err(Status::NotFenced);
        };
        if token > recorded.token {
            return Err(Status::NotFenced);
        }
        if rule == Rule::TokenAndMap && generation < recorded.generation {
            return Err(Status::StaleMap);
        }
        Ok(())
    }

    /// A FENCE was admitted: lower tokens are refused from now on.
    pub fn close(&mut self, volume: VolumeId, token: Token) {
        self.closing.entry(volume).or_default().push(token);
    }

    /// That FENCE ended. If it failed, the fence did not happen and the recorded token is the
    /// front again, as its sender was told.
    pub fn closed(&mut self, volume: VolumeId, token: Token) {
        let tokens = self.closing.get_mut(&volume);
        let Some(tokens) = tokens else {
            panic!("gate: FENCE of {volume} with token {token} ended but never began")
        };
        let Some(at) = tokens.iter().position(|held| *held == token) else {
            panic!("gate: FENCE of {volume} with token {token} ended, in progress: {tokens:?}")
        };
        tokens.swap_remove(at);
        if tokens.is_empty() {
            self.closing.remove(&volume);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const V: VolumeId = VolumeId([1; 16]);

    fn fence(token: u32, generation: u32) -> Option<Fence> {
        Some(Fence {
            token: Token(token),
            generation: Generation(generation),
        })
    }

    #[test]
    fn a_fence_in_progress_refuses_the_old_token_and_not_yet_admits_the_new() {
        let mut gate = Gate::default();
        gate.close(V, Token(5));
        let check = |token| {
            gate.check(
                Rule::TokenAndMap,
                V,
                Token(token),
                Generation(9),
                fence(4, 9),
            )
        };
        assert_eq!(check(4), Err(Status::StaleToken));
        assert_eq!(check(5), Err(Status::NotFenced));
        gate.closed(V, Token(5));
        assert_eq!(
            gate.check(Rule::Token, V, Token(4), Generation(9), fence(4, 9)),
            Ok(())
        );
    }

    #[test]
    fn other_volumes_are_not_touched() {
        let mut gate = Gate::default();
        gate.close(V, Token(5));
        let other = VolumeId([2; 16]);
        assert_eq!(
            gate.check(Rule::Token, other, Token(1), Generation(0), fence(1, 0)),
            Ok(())
        );
    }

    /// The obvious oracle: the rules of the protocol page, one sentence each.
    fn oracle(
        rule: Rule,
        token: u32,
        generation: u32,
        recorded: Option<(u32, u32)>,
        closing: &[u32],
    ) -> Result<(), Status> {
        for &higher in closing {
            if token < higher {
                return Err(Status::StaleToken);
            }
        }
        match (rule, recorded) {
            (Rule::Fence, Some((t, _))) if token < t => Err(Status::StaleToken),
            (Rule::Fence, _) => Ok(()),
            (_, None) => Err(Status::NotFenced),
            (_, Some((t, _))) if token < t => Err(Status::StaleToken),
            (_, Some((t, _))) if token > t => Err(Status::NotFenced),
            (Rule::TokenAndMap, Some((_, g))) if generation < g => Err(Status::StaleMap),
            _ => Ok(()),
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_protocol_page(
            rule in prop::sample::select(vec![Rule::Fence, Rule::Token, Rule::TokenAndMap]),
            token in 0u32..5, generation in 0u32..5,
            recorded in prop::option::of((0u32..5, 0u32..5)),
            began in prop::collection::vec((0u32..5, any::<bool>()), 0..6),
        ) {
            let mut gate = Gate::default();
            began.iter().for_each(|(t, _)| gate.close(V, Token(*t)));
            began.iter().filter(|(_, ended)| *ended).for_each(|(t, _)| gate.closed(V, Token(*t)));
            let open: Vec<u32> = began.iter().filter(|(_, ended)| !ended).map(|(t, _)| *t).collect();
            let got = gate.check(rule, V, Token(token), Generation(generation),
                recorded.and_then(|(t, g)| fence(t, g)));
            prop_assert_eq!(got, oracle(rule, token, generation, recorded, &open));
        }

        #[test]
        fn once_a_fence_was_admitted_no_lower_token_passes_again(
            steps in prop::collection::vec((0u32..6, any::<bool>()), 1..40),
        ) {
            // FENCEs begin (if admitted) and end in any order; each end makes its token durable
            // if it is the highest so far, as the store does.
            let (mut gate, mut durable, mut running, mut highest) =
                (Gate::default(), None::<u32>, Vec::new(), 0);
            for (token, begin) in steps {
                let recorded = durable.and_then(|t| fence(t, 0));
                if begin {
                    if gate.check(Rule::Fence, V, Token(token), Generation(0), recorded).is_ok() {
                        gate.close(V, Token(token));
                        running.push(token);
                        highest = highest.max(token);
                    } else {
                        prop_assert!(token < highest);
                    }
                } else if let Some(token) = running.pop() {
                    durable = Some(durable.unwrap_or(0).max(token));
                    gate.closed(V, Token(token));
                }
                let recorded = durable.and_then(|t| fence(t, 0));
                for lower in 0..highest {
                    prop_assert_eq!(
                        gate.check(Rule::TokenAndMap, V, Token(lower), Generation(0), recorded),
                        Err(Status::StaleToken)
                    );
                }
            }
        }
    }
}
