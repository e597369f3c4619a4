//! What happens to the nodes while clients ask them.

use std::time::Duration;

use kv_core::topology::Change;
use kv_core::types::NodeId;
use kv_proto::client::Client;
use kv_proto::v1::{self, OperationState};
use kv_testing::recording::Recorder;
use parking_lot::Mutex;
use tokio::time::sleep;

use super::health::reasons;
use super::hosts::{Hosts, until};
use super::{FAULT, NODES, Outcome, RECOVERY_MAX};

/// How fast nodes copy while something is done to them, so that there is time for it.
const COPY_BYTES_PER_SECOND: u64 = 64 * 1024;

/// What happens in a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing.
    None,
    /// SIGKILL of one node, and a start at the end.
    Kill,
    /// The same with two.
    KillTwo,
    /// The same with all, at once.
    Power,
    /// SIGSTOP, and SIGCONT at the end.
    Freeze,
    /// The same with a majority.
    FreezeMost,
    /// All packets of a node are lost.
    Cut,
    /// A node hears nobody and is heard.
    Deaf,
    /// A node is heard by nobody and hears.
    Mute,
    /// Two nodes and the others do not hear each other. Clients hear all of them.
    Split,
    /// One node does not hear another one, which hears it.
    Bridge,
    /// A cut of half a second each second.
    Flap,
    /// The directory of a node is lost, and the node comes back with another one.
    Wipe,
    /// Three copies become five, or five three.
    Copies,
    /// A node joins; if it has, one leaves.
    Members,
    /// A node takes the places of another one.
    Replace,
}

pub(crate) const FAULTS: [(Fault, &str); 16] = [
    (Fault::None, "none"),
    (Fault::Kill, "kill"),
    (Fault::Copies, "copies"),
    (Fault::Cut, "cut"),
    (Fault::Split, "split"),
    (Fault::Members, "members"),
    (Fault::Freeze, "freeze"),
    (Fault::Deaf, "deaf"),
    (Fault::Replace, "replace"),
    (Fault::Mute, "mute"),
    (Fault::KillTwo, "kill-two"),
    (Fault::Flap, "flap"),
    (Fault::Wipe, "wipe"),
    (Fault::Bridge, "bridge"),
    (Fault::Power, "power"),
    (Fault::FreezeMost, "freeze-most"),
];

/// What can happen beside a change of the topology.
const BESIDE: [Fault; 9] = [
    Fault::None,
    Fault::Kill,
    Fault::Freeze,
    Fault::Cut,
    Fault::Deaf,
    Fault::Mute,
    Fault::Split,
    Fault::KillTwo,
    Fault::Power,
];

/// A plain generator (SplitMix64): what happens follows from the seed.
pub(crate) struct Chance(pub(crate) u64);

impl Chance {
    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut drawn = self.0;
        drawn = (drawn ^ (drawn >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        drawn = (drawn ^ (drawn >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let drawn = drawn ^ (drawn >> 31);
        usize::try_from(drawn % u64::try_from(end).unwrap_or(1).max(1)).unwrap_or(0)
    }

    /// So many of some things, in any order.
    fn choose(&mut self, mut from: Vec<usize>, count: usize) -> Vec<usize> {
        while from.len() > count {
            let at = self.below(from.len());
            from.swap_remove(at);
        }
        from
    }
}

/// The cluster under test.
pub(crate) struct Cluster<'a> {
    pub(crate) hosts: Hosts,
    pub(crate) client: Client,
    pub(crate) recorder: &'a Recorder,
    pub(crate) chance: Chance,
    pub(crate) copies: u8,
}

impl Cluster<'_> {
    /// The hosts on which nodes run.
    fn running(&self) -> Vec<usize> {
        (0..self.hosts.hosts.len()).filter(|index| self.hosts.hosts[*index].runs()).collect()
    }

    fn some(&mut self, count: usize) -> Vec<usize> {
        let running = self.running();
        self.chance.choose(running, count)
    }

    /// Waits until all is well; how long that took, and what was the last to become well.
    pub(crate) async fn recover(&self) -> Outcome<(Duration, String)> {
        let (nodes, last) = (self.running().len(), Mutex::new(String::new()));
        let is_well = || async {
            let reasons = reasons(&self.client, nodes).await;
            let is_well = reasons.is_empty();
            if !is_well {
                *last.lock() = reasons;
            }
            is_well
        };
        let well = until(RECOVERY_MAX, is_well).await;
        let last = last.into_inner();
        well.map(|after| (after, last.clone())).ok_or_else(|| format!("the cluster does not recover: {last}").into())
    }

    /// Waits until clients are told more.
    async fn go_on(&self) -> Outcome<()> {
        let before = self.recorder.counts().known();
        let gone_on = until(RECOVERY_MAX, || async { self.recorder.counts().known() > before + 50 }).await;
        gone_on.map(drop).ok_or_else(|| "no client is told anything".into())
    }

    /// Carries a fault out, from its beginning to its end. In words, what it met.
    pub(crate) async fn provoke(&mut self, fault: Fault) -> Outcome<String> {
        match fault {
            Fault::Copies | Fault::Members | Fault::Replace => return self.change(fault).await,
            Fault::Wipe => return self.wipe().await,
            _ => {}
        }
        let victims = match fault {
            Fault::None => Vec::new(),
            Fault::KillTwo | Fault::Split | Fault::Bridge => self.some(2),
            Fault::FreezeMost => self.some(self.running().len() / 2 + 1),
            Fault::Power => self.running(),
            _ => self.some(1),
        };
        self.set(fault, &victims, true)?;
        if fault == Fault::Flap {
            for round in 0..2 * FAULT.as_secs() {
                sleep(Duration::from_millis(500)).await;
                self.set(Fault::Cut, &victims, round % 2 == 1)?;
            }
        } else if fault != Fault::Power {
            sleep(FAULT).await;
        }
        self.set(fault, &victims, false)?;
        let names: Vec<&str> = victims.iter().map(|victim| self.hosts.hosts[*victim].name.as_str()).collect();
        Ok(names.join(" "))
    }

    /// Begins a fault, or ends it.
    fn set(&mut self, fault: Fault, victims: &[usize], begins: bool) -> Outcome<()> {
        match fault {
            Fault::Split => {
                let others: Vec<usize> = self.running().into_iter().filter(|other| !victims.contains(other)).collect();
                for (one, other) in others.iter().flat_map(|other| victims.iter().map(move |one| (*one, *other))) {
                    let (one, other) = (&self.hosts.hosts[one], &self.hosts.hosts[other]);
                    one.ignore(other, begins)?;
                    other.ignore(one, begins)?;
                }
            }
            Fault::Bridge => {
                if let [one, other] = *victims {
                    self.hosts.hosts[one].ignore(&self.hosts.hosts[other], begins)?;
                }
            }
            _ => {
                // At once: those that are killed before any of them starts.
                for victim in victims {
                    let host = &mut self.hosts.hosts[*victim];
                    match fault {
                        Fault::Kill | Fault::KillTwo | Fault::Power if begins => host.kill()?,
                        Fault::Kill | Fault::KillTwo | Fault::Power => host.start()?,
                        Fault::Freeze | Fault::FreezeMost => host.signal(if begins { "STOP" } else { "CONT" })?,
                        Fault::Cut | Fault::Flap => host.cut(begins)?,
                        Fault::Deaf => host.deafen(begins)?,
                        Fault::Mute => host.mute(begins)?,
                        _ => {}
                    }
                }
            }
        }
        Ok(())
    }

    /// A node loses its directory, and comes back with another one as an operator would have it.
    async fn wipe(&mut self) -> Outcome<String> {
        let Some(&victim) = self.some(1).first() else { return Ok(String::new()) };
        let name = self.hosts.hosts[victim].name.clone();
        let (_, store) = self.member(&name).await?;
        self.hosts.hosts[victim].kill()?;
        sleep(FAULT).await;
        let addresses = self.hosts.addresses();
        self.hosts.hosts[victim].start_empty(&addresses, Some(store))?;
        Ok(name)
    }

    /// The number of a member, and its store.
    async fn member(&self, name: &str) -> Outcome<(NodeId, u64)> {
        let description = self.client.refresh().await?;
        let found = description.members.iter().find(|view| view.member.name == name);
        let found = found.ok_or_else(|| format!("{name} is no member"))?;
        Ok((found.id, found.member.store.0))
    }

    /// Changes the topology, while something else happens.
    async fn change(&mut self, fault: Fault) -> Outcome<String> {
        let out = (0..self.hosts.hosts.len()).find(|index| !self.hosts.hosts[*index].runs());
        let mut leaves = None;
        let change = match (fault, out) {
            (Fault::Copies, _) => Change::Copies { copies: if self.copies == 3 { 5 } else { 3 } },
            (Fault::Members, Some(joins)) if self.running().len() == NODES => {
                Change::Add { node: self.spare(joins).await? }
            }
            (Fault::Replace, Some(joins)) => {
                let old = self.some(1)[0];
                let new = self.spare(joins).await?;
                leaves = Some(old);
                let (old, _) = self.member(&self.hosts.hosts[old].name).await?;
                Change::Replace { old, new }
            }
            _ => {
                let old = self.some(1)[0];
                leaves = Some(old);
                Change::Remove { node: self.member(&self.hosts.hosts[old].name).await?.0 }
            }
        };
        self.throttle(Some(COPY_BYTES_PER_SECOND)).await?;
        let request =
            v1::ApplyRequest { changes: vec![(&change).into()], by: "bench".to_owned(), ..Default::default() };
        let operation = self.client.apply(request).await?;
        self.go_on().await?;
        // Whoever leaves may end at any moment.
        let beside = BESIDE[self.chance.below(BESIDE.len())];
        let victims = match beside {
            Fault::None => 0,
            Fault::KillTwo | Fault::Split => 2,
            Fault::Power => usize::MAX,
            _ => 1,
        };
        let others = self.running().into_iter().filter(|index| Some(*index) != leaves).collect();
        let victims = self.chance.choose(others, victims);
        self.set(beside, &victims, true)?;
        if beside != Fault::Power {
            sleep(FAULT).await;
        }
        self.set(beside, &victims, false)?;
        self.throttle(None).await?;
        let request = v1::OperationsRequest { id: operation.id, details: false };
        let is_done = || async {
            let told = self.client.operations(request).await.ok();
            let found = told.and_then(|told| told.operations.into_iter().next());
            found.is_some_and(|found| found.state() == OperationState::Done)
        };
        until(RECOVERY_MAX, is_done).await.ok_or_else(|| format!("{change:?} does not end"))?;
        if let Change::Copies { copies } = change {
            self.copies = copies;
        }
        if let Some(leaves) = leaves {
            let host = &mut self.hosts.hosts[leaves];
            let ends = tokio::time::Instant::now() + RECOVERY_MAX;
            while !host.gone()? {
                if tokio::time::Instant::now() > ends {
                    return Err(format!("{} does not leave", host.name).into());
                }
                sleep(Duration::from_millis(100)).await;
            }
        }
        self.recorder.ask_at(&self.hosts.addresses());
        let names: Vec<&str> = victims.iter().map(|victim| self.hosts.hosts[*victim].name.as_str()).collect();
        Ok(format!("{change:?} beside {beside:?} {}", names.join(" ")))
    }

    /// Starts a node that owns nothing yet.
    async fn spare(&mut self, index: usize) -> Outcome<NodeId> {
        let addresses = self.hosts.addresses();
        self.hosts.hosts[index].start_empty(&addresses, None)?;
        self.recover().await?;
        Ok(self.member(&self.hosts.hosts[index].name).await?.0)
    }

    async fn throttle(&self, limit: Option<u64>) -> Outcome<()> {
        let request = v1::ThrottleRequest { bytes_per_second_max: limit, by: "bench".to_owned() };
        // Until there is a majority again.
        let set = until(RECOVERY_MAX, || async { self.client.throttle(request.clone()).await.is_ok() }).await;
        set.map(drop).ok_or_else(|| "the speed of copies cannot be set".into())
    }
}
