//! What two nodes check before they talk, and what becomes of a claim that one of them runs an older copy of its store
//! (rules D2, D3 and D4).
//!
//! A greeting has the boots of its sender's store. Whoever was shown the store before looks for that boot, and how far it
//! came: a copy lacks it, however often it has been started since.

use std::collections::BTreeMap;

use crate::message::{Hello, PROTOCOL_VERSION};
use crate::rule::{Rule, Rules};
use crate::types::{Generation, Incarnation, NodeId, Point, StoreId};

/// Why two nodes do not talk.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// Another build.
    #[error("{node} speaks protocol version {theirs}, this node {PROTOCOL_VERSION}; run the same release on both")]
    Protocol {
        /// The peer.
        node: NodeId,
        /// Its version.
        theirs: u32,
    },
    /// The same cluster under another control plane: nothing that was agreed on there counts here.
    #[error(
        "{node} belongs to {theirs} of the cluster, {at} to {mine}; stop the node that belongs to the older one, or to the one that is \
         given up, and have its data directory join: kv-node recover --data-dir DIR --join ADDR:PORT"
    )]
    OtherGeneration {
        /// The peer.
        node: NodeId,
        /// What it obeys.
        theirs: Generation,
        /// Who says so.
        at: NodeId,
        /// What that one obeys.
        mine: Generation,
    },
    /// Another cluster.
    #[error("{node} belongs to another cluster; check the addresses given to --join")]
    OtherCluster {
        /// The peer.
        node: NodeId,
    },
    /// Settings on which all nodes must agree differ.
    #[error("{node} has other cluster settings (limits or clock skew); start both nodes with the same ones")]
    OtherConfig {
        /// The peer.
        node: NodeId,
    },
    /// The node meets itself.
    #[error("{node} is this node's own number; two nodes were started with copies of one data directory")]
    Myself {
        /// The number.
        node: NodeId,
    },
    /// The peer is no member, as far as this node knows.
    #[error(
        "{node} is not a member that {at} knows: it was not admitted, or {at} has not learnt of it yet; a member tries again \
         by itself"
    )]
    NotMember {
        /// The peer.
        node: NodeId,
        /// Who says so.
        at: NodeId,
    },
    /// The member has another store, as far as this node knows.
    #[error(
        "{node} is a member with store {agreed}, not with {theirs}: that one was given up, or {at} has not learnt of it yet; \
         a member tries again by itself"
    )]
    OtherStore {
        /// The peer.
        node: NodeId,
        /// The store that it shows.
        theirs: StoreId,
        /// The one that was agreed on.
        agreed: StoreId,
        /// Who says so.
        at: NodeId,
    },
    /// The peer's store is older than one that it has already shown.
    #[error(
        "{node} runs an older copy of its store: it lacks boot {} up to commit {}, which it has shown before; it must be refilled \
         under a new store id before it serves",
        .seen.incarnation.boot,
        .seen.commit
    )]
    PeerRolledBack {
        /// The peer.
        node: NodeId,
        /// What it shows.
        theirs: Incarnation,
        /// What it has shown before.
        seen: Point,
    },
    /// The peer claims that this node's store is older than one that it has already shown. What becomes of the claim,
    /// [`Claims`] decides.
    #[error(
        "{node} says that this node's store is an older copy: it has been shown boot {} up to commit {}, which this store lacks",
        .seen.incarnation.boot,
        .seen.commit
    )]
    RolledBack {
        /// The peer that noticed.
        node: NodeId,
        /// What this node shows.
        mine: Incarnation,
        /// What the peer has been shown.
        seen: Point,
    },
}

impl HandshakeError {
    /// Whether one of both takes the other's store for an older copy. Then there is no session, but each may be asked for what it
    /// holds.
    #[must_use]
    pub fn is_doubt(&self) -> bool {
        matches!(self, Self::PeerRolledBack { .. } | Self::RolledBack { .. })
    }
}

/// Checks what peers say at the beginning of a session.
#[derive(Clone, Debug, Default)]
pub struct Gate {
    rules: Rules,
}

impl Gate {
    /// Switches a rule off, to show that a checker notices.
    #[cfg(feature = "mutation")]
    pub fn break_rule(&mut self, rule: Rule) {
        self.rules.break_rule(rule);
    }

    /// Whether who greets so has been where `seen` says.
    fn has(&self, hello: &Hello, seen: Point) -> bool {
        let shown = hello.incarnation;
        if !self.rules.keep(Rule::ListOfBoots) {
            return shown.store != seen.incarnation.store || shown.boot >= seen.incarnation.boot;
        }
        let commit = if self.rules.keep(Rule::EndOfBoot) { seen.commit } else { 0 };
        hello.boots.has(shown, Point { commit, ..seen })
    }

    /// Checks the peer's greeting against one's own. `seen` in each is the newest that was seen of the other; `agreed`
    /// is the store under which the peer is a member, as far as this node knows what was agreed on (rule D4).
    ///
    /// # Errors
    /// If the two must not talk.
    pub fn check(&self, mine: &Hello, theirs: &Hello, agreed: Option<StoreId>) -> Result<(), HandshakeError> {
        let node = theirs.node;
        if theirs.protocol != mine.protocol {
            return Err(HandshakeError::Protocol { node, theirs: theirs.protocol });
        }
        if theirs.cluster != mine.cluster || theirs.seed != mine.seed {
            return Err(HandshakeError::OtherCluster { node });
        }
        if theirs.generation != mine.generation {
            let (theirs, mine, at) = (theirs.generation, mine.generation, mine.node);
            return Err(HandshakeError::OtherGeneration { node, theirs, at, mine });
        }
        if theirs.config != mine.config {
            return Err(HandshakeError::OtherConfig { node });
        }
        if node == mine.node {
            return Err(HandshakeError::Myself { node });
        }
        if self.rules.keep(Rule::MembersOnly) {
            let (at, theirs) = (mine.node, theirs.incarnation.store);
            match agreed {
                None => return Err(HandshakeError::NotMember { node, at }),
                Some(agreed) if agreed != theirs => {
                    return Err(HandshakeError::OtherStore { node, theirs, agreed, at });
                }
                Some(_) => {}
            }
        }
        if let Some(seen) = mine.seen
            && !self.has(theirs, seen)
        {
            return Err(HandshakeError::PeerRolledBack { node, theirs: theirs.incarnation, seen });
        }
        if let Some(seen) = theirs.seen
            && !self.has(mine, seen)
        {
            return Err(HandshakeError::RolledBack { node, mine: mine.incarnation, seen });
        }
        Ok(())
    }
}

/// What members say of this node's store: that it is an older copy, or that it was given up. A single one of them may be
/// wrong or lie, so it takes the agreed state or a majority to make a node give up its store (rule D2).
#[derive(Clone, Debug)]
pub struct Claims<C> {
    rules: Rules,
    /// The last claim of each author.
    claims: BTreeMap<NodeId, C>,
}

impl<C> Default for Claims<C> {
    fn default() -> Self {
        Self { rules: Rules::default(), claims: BTreeMap::new() }
    }
}

impl<C: Copy> Claims<C> {
    /// Switches a rule off, to show that a checker notices.
    #[cfg(feature = "mutation")]
    pub fn break_rule(&mut self, rule: Rule) {
        self.rules.break_rule(rule);
    }

    /// Notes the claim of a member, in place of an earlier one of the same member. Returns whether that is new.
    pub fn note(&mut self, author: NodeId, claim: C) -> bool {
        self.claims.insert(author, claim).is_none()
    }

    /// A member talks to this node: it claims nothing any more.
    pub fn withdraw(&mut self, author: NodeId) {
        self.claims.remove(&author);
    }

    /// The claims, by author.
    pub fn all(&self) -> impl Iterator<Item = (NodeId, C)> {
        self.claims.iter().map(|(author, claim)| (*author, *claim))
    }

    /// A claim that more than half of `electorate` share, this node counted as one of them. Nobody else's word counts.
    #[must_use]
    pub fn proven(&self, electorate: impl IntoIterator<Item = NodeId>) -> Option<C> {
        if !self.rules.keep(Rule::ProvenClaims) {
            return self.claims.values().next().copied();
        }
        let (mut size, mut said, mut claim) = (0, 0, None);
        for member in electorate {
            size += 1;
            if let Some(theirs) = self.claims.get(&member) {
                said += 1;
                claim = Some(*theirs);
            }
        }
        claim.filter(|_| said * 2 > size)
    }
}

/// Whether `shown` is certainly an older copy of the store that has shown `seen`: a lower boot, or the same boot under another
/// nonce. A higher boot may be one as well, which only the list of its boots tells. Another store id is not an older copy but a
/// new store.
#[must_use]
pub fn is_rolled_back(shown: Incarnation, seen: Incarnation) -> bool {
    shown.store == seen.store && (shown.boot < seen.boot || (shown.boot == seen.boot && shown.nonce != seen.nonce))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boots::Boots;
    use crate::config::ClusterConfig;
    use crate::types::{ClusterId, HashSeed};

    fn hello(node: u64, boot: u32, seen: Option<u32>) -> Hello {
        let other = if node == 1 { 2 } else { 1 };
        Hello {
            protocol: PROTOCOL_VERSION,
            cluster: Some(ClusterId(1)),
            seed: HashSeed(1),
            config: ClusterConfig::default(),
            node: NodeId(node),
            incarnation: Incarnation { store: StoreId(node * 10), boot, nonce: boot },
            seen: seen.map(|boot| Point {
                incarnation: Incarnation { store: StoreId(other * 10), boot, nonce: boot },
                commit: 0,
            }),
            boots: {
                let mut boots = Boots::default();
                (1..=boot).for_each(|boot| boots.begin(boot, boot, 100));
                boots
            },
            commit: 0,
            generation: Generation { number: 1, founder: StoreId(10) },
        }
    }

    #[test]
    fn nodes_of_two_generations_do_not_talk() {
        let (gate, mine) = (Gate::default(), hello(1, 5, None));
        let check = |theirs: &Hello| gate.check(&mine, theirs, Some(StoreId(20)));
        for generation in
            [Generation { number: 2, founder: StoreId(10) }, Generation { number: 1, founder: StoreId(11) }]
        {
            // Not even what it claims is looked at: a node that was left behind has seen stores that are gone.
            let theirs = Hello { generation, ..hello(2, 1, Some(9)) };
            let error = check(&theirs).unwrap_err();
            assert!(matches!(error, HandshakeError::OtherGeneration { .. }), "{error}");
            assert!(error.to_string().contains("kv-node recover --data-dir DIR --join"), "{error}");
        }
        assert_eq!(check(&hello(2, 1, None)), Ok(()));
    }

    #[test]
    fn only_members_under_their_agreed_stores_are_talked_to() {
        let (gate, mine) = (Gate::default(), hello(1, 5, None));
        let check = |theirs: &Hello, agreed: Option<u64>| gate.check(&mine, theirs, agreed.map(StoreId));
        assert_eq!(check(&hello(2, 1, None), Some(20)), Ok(()));
        assert!(matches!(check(&hello(2, 1, None), None), Err(HandshakeError::NotMember { .. })));
        assert!(matches!(check(&hello(2, 1, None), Some(21)), Err(HandshakeError::OtherStore { .. })));
        // What somebody claims who is no member is not even looked at.
        assert!(matches!(check(&hello(2, 1, Some(9)), None), Err(HandshakeError::NotMember { .. })));
        assert!(matches!(check(&hello(2, 1, Some(9)), Some(20)), Err(HandshakeError::RolledBack { .. })));
        assert_eq!(check(&hello(2, 1, Some(5)), Some(20)), Ok(()));
    }

    #[test]
    fn an_older_copy_is_known_by_what_it_lacks() {
        let gate = Gate::default();
        let check = |mine: &Hello, theirs: &Hello| gate.check(mine, theirs, Some(theirs.incarnation.store));
        let seen = |boot, nonce, commit| {
            let incarnation = Incarnation { store: StoreId(20), boot, nonce };
            Hello { seen: Some(Point { incarnation, commit }), ..hello(1, 5, None) }
        };
        assert_eq!(check(&seen(3, 3, 100), &hello(2, 4, None)), Ok(()));
        assert_eq!(check(&seen(4, 4, 999), &hello(2, 4, None)), Ok(()), "it runs, and may come further");
        for lacks in [seen(3, 3, 101), seen(3, 9, 0), seen(5, 5, 0)] {
            assert!(matches!(check(&lacks, &hello(2, 4, None)), Err(HandshakeError::PeerRolledBack { .. })));
            let claim = check(&hello(2, 4, None), &lacks);
            assert!(
                matches!(claim, Err(HandshakeError::RolledBack { .. })),
                "the other end notices as well: {claim:?}"
            );
        }
    }

    #[test]
    fn it_takes_a_majority_to_prove_a_claim() {
        let proven = |authors: &[u64], members: u64| {
            let mut claims = Claims::default();
            for author in authors {
                claims.note(NodeId(*author), *author);
            }
            claims.proven((1..=members).map(NodeId)).is_some()
        };
        // Node 1 is the one that the claims are about.
        assert!(!proven(&[], 0) && !proven(&[2], 0), "nobody is known to count");
        assert!(!proven(&[2], 2) && !proven(&[2], 3) && proven(&[2, 3], 3));
        assert!(!proven(&[2, 3], 4) && !proven(&[2, 3], 5) && proven(&[2, 3, 5], 5));
        assert!(!proven(&[7, 8, 9], 3), "who is no member says nothing");
        let mut claims = Claims::default();
        assert!(claims.note(NodeId(2), 1) && !claims.note(NodeId(2), 4) && claims.note(NodeId(3), 4));
        assert_eq!(claims.proven([1, 2, 3].map(NodeId)), Some(4));
        claims.withdraw(NodeId(2));
        assert_eq!(claims.proven([1, 2, 3].map(NodeId)), None);
    }
}
