//! Faults that a node of a cluster on one machine acts out when it is told to, so that people and tests see what a real one does: cut,
//! slow and lossy links to other nodes, a disk that stands still or is full, a clock that is wrong, clients that cannot reach it.
//!
//! | module | concept |
//! | --- | --- |
//! | `link` | what happens on the way to and from one other node |
//! | `stream` | a connection on which that happens |
//! | `disk` | a store whose disk stands still or is full |
//!
//! A node acts out what happens on the connections that it opens; what others open to it is theirs. So whoever injects a fault between
//! two nodes tells both. Faults are kept in memory only: a node that starts has none.

mod disk;
mod link;
mod stream;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use kv_core::error::RequestError;
use kv_proto::address::check_address;
use kv_proto::v1;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::clock::Clock;
pub use disk::{Disk, FaultyCommitter, FaultyReader};
pub use link::Link;
use link::PathRule;
pub use stream::Faulty;

/// Links that may have a fault.
const LINKS_MAX: usize = 1024;

/// How far a clock may be shown wrong: ten years.
const CLOCK_AHEAD_MS_MAX: i64 = 10 * 366 * 24 * 3600 * 1000;

/// The faults of a node. Clones share them. A node that takes none has none.
#[derive(Clone, Debug, Default)]
pub struct Faults(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    set: Mutex<v1::Faults>,
    links: Mutex<BTreeMap<String, Arc<Link>>>,
    clients_cut: watch::Sender<bool>,
    disk: Disk,
    clock: Clock,
}

impl Faults {
    /// Of a node that takes faults. `clock` is set wrong by them.
    #[must_use]
    pub fn allowed(clock: Clock) -> Self {
        Self(Some(Arc::new(Inner {
            set: Mutex::new(v1::Faults { clock_ahead_ms: clock.ahead_ms(), ..v1::Faults::default() }),
            links: Mutex::default(),
            clients_cut: watch::Sender::new(false),
            disk: Disk::allowed(),
            clock,
        })))
    }

    /// The faults now; `None` if the node takes none.
    #[must_use]
    pub fn get(&self) -> Option<v1::Faults> {
        self.0.as_ref().map(|inner| inner.set.lock().clone())
    }

    fn inner(&self) -> Result<&Inner, RequestError> {
        self.0.as_deref().ok_or_else(|| {
            RequestError::conflict(
                "this node takes no faults; only nodes that were started with --allow-faults do, as those of kv-tui local are",
            )
        })
    }

    /// Whether the node takes any.
    #[must_use]
    pub fn are_taken(&self) -> bool {
        self.0.is_some()
    }

    /// The same, with what to say where it does not.
    ///
    /// # Errors
    /// `Conflict` if it does not.
    pub fn check(&self) -> Result<(), RequestError> {
        self.inner().map(drop)
    }

    /// Puts these in place of the faults before. What is acted out now; `None` if nothing changes.
    ///
    /// # Errors
    /// `Conflict` if the node takes no faults, `Invalid` if one of them cannot be; nothing is changed.
    pub fn set(&self, wanted: v1::Faults) -> Result<Option<v1::Faults>, RequestError> {
        let inner = self.inner()?;
        let (wanted, rules) = checked(wanted)?;
        let mut set = inner.set.lock();
        if *set == wanted {
            return Ok(None);
        }
        let mut links = inner.links.lock();
        for (address, link) in links.iter() {
            if !rules.contains_key(address) {
                link.set(PathRule::default(), PathRule::default());
            }
        }
        for (address, (out, back)) in rules {
            links.entry(address).or_default().set(out, back);
        }
        drop(links);
        inner.clients_cut.send_replace(wanted.clients_cut);
        inner.disk.set(wanted.disk_paused, wanted.disk_full);
        inner.clock.set_ahead(wanted.clock_ahead_ms);
        set.clone_from(&wanted);
        Ok(Some(wanted))
    }

    /// What happens on the way to the node at an address; `None` if nothing ever does.
    #[must_use]
    pub fn link(&self, address: &str) -> Option<Arc<Link>> {
        let inner = self.0.as_ref()?;
        let mut links = inner.links.lock();
        if let Some(link) = links.get(address) {
            return Some(Arc::clone(link));
        }
        if links.len() >= LINKS_MAX * 2 {
            // Addresses of nodes that were dialled once and have gone.
            links.retain(|_, link| Arc::strong_count(link) > 1 || link.is_faulty());
        }
        Some(Arc::clone(links.entry(address.to_owned()).or_default()))
    }

    /// Waits while clients cannot reach the node.
    pub async fn clients(&self) {
        if let Some(inner) = self.0.as_ref().filter(|inner| *inner.clients_cut.borrow()) {
            // The sender lives as long as this.
            drop(inner.clients_cut.subscribe().wait_for(|cut| !cut).await);
        }
    }

    /// The faults of the disk.
    #[must_use]
    pub fn disk(&self) -> Disk {
        self.0.as_ref().map(|inner| inner.disk.clone()).unwrap_or_default()
    }
}

type Rules = BTreeMap<String, (PathRule, PathRule)>;

/// Checks faults, and leaves out what is none.
fn checked(wanted: v1::Faults) -> Result<(v1::Faults, Rules), RequestError> {
    if wanted.links.len() > LINKS_MAX {
        let found = wanted.links.len();
        return Err(RequestError::invalid(format!("links: there are {found}, {LINKS_MAX} are allowed")));
    }
    if wanted.clock_ahead_ms.abs() > CLOCK_AHEAD_MS_MAX {
        return Err(RequestError::invalid(format!(
            "clock_ahead_ms: is {}, up to {CLOCK_AHEAD_MS_MAX} (ten years) are allowed, ahead or behind",
            wanted.clock_ahead_ms
        )));
    }
    let mut rules = Rules::new();
    for v1::LinkFault { address, out, back } in &wanted.links {
        check_address(address)?;
        let rule = (PathRule::of(out.as_ref(), "out")?, PathRule::of(back.as_ref(), "back")?);
        if rules.insert(address.clone(), rule).is_some() {
            return Err(RequestError::invalid(format!("links: {address} stands there twice; name each node once")));
        }
    }
    rules.retain(|_, (out, back)| out.is_faulty() || back.is_faulty());
    let links = rules.iter().map(|(address, (out, back))| v1::LinkFault {
        address: address.clone(),
        out: out.to_wire(),
        back: back.to_wire(),
    });
    Ok((v1::Faults { links: links.collect(), ..wanted }, rules))
}

/// Faults in words, for the log and for events.
pub struct InWords<'a>(pub &'a v1::Faults);

impl fmt::Display for InWords<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let v1::Faults { links, clients_cut, disk_paused, disk_full, clock_ahead_ms } = self.0;
        let mut parts: Vec<String> = Vec::new();
        for v1::LinkFault { address, out, back } in links {
            match (out, back) {
                (Some(out), Some(back)) if out == back => parts.push(format!("{address}: {}", link::words(out))),
                _ => {
                    parts.extend(out.as_ref().map(|path| format!("to {address}: {}", link::words(path))));
                    parts.extend(back.as_ref().map(|path| format!("from {address}: {}", link::words(path))));
                }
            }
        }
        parts.extend(clients_cut.then(|| "clients are cut off".to_owned()));
        parts.extend(disk_paused.then(|| "the disk stands still".to_owned()));
        parts.extend(disk_full.then(|| "the disk is full".to_owned()));
        match *clock_ahead_ms {
            0 => {}
            ms if ms > 0 => parts.push(format!("the clock is {ms} ms ahead")),
            ms => parts.push(format!("the clock is {} ms behind", ms.unsigned_abs())),
        }
        if parts.is_empty() { f.write_str("none") } else { f.write_str(&parts.join("; ")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(address: &str, out: v1::PathFault) -> v1::LinkFault {
        v1::LinkFault { address: address.to_owned(), out: Some(out), back: None }
    }

    #[test]
    fn a_node_that_takes_no_faults_says_how_it_would() {
        let error = Faults::default().set(v1::Faults::default()).unwrap_err();
        assert!(error.message.contains("--allow-faults"), "{error}");
        assert!(Faults::default().get().is_none() && Faults::default().link("127.0.0.1:1").is_none());
    }

    #[test]
    fn faults_that_cannot_be_are_refused_and_nothing_changes() {
        let faults = Faults::allowed(Clock::start());
        let cut = v1::PathFault { cut: true, ..v1::PathFault::default() };
        let before = faults.set(v1::Faults { links: vec![link("127.0.0.1:1", cut)], ..Default::default() }).unwrap();
        let twice = vec![link("127.0.0.1:1", cut), link("127.0.0.1:1", cut)];
        let many = (0..=LINKS_MAX).map(|n| link(&format!("127.0.0.1:{}", n + 1), cut)).collect();
        let slow = v1::PathFault { delay_ms: 60_001, ..Default::default() };
        let spread = v1::PathFault { jitter_ms: 60_001, ..Default::default() };
        let lossy = v1::PathFault { drop_percent: 91, ..Default::default() };
        let with = |links| v1::Faults { links, ..Default::default() };
        for (wanted, says) in [
            (with(twice), "stands there twice"),
            (with(many), "1024 are allowed"),
            (with(vec![link("nowhere", cut)]), "address"),
            (with(vec![link("127.0.0.1:2", slow)]), "out.delay_ms: is 60001, up to 60000"),
            (with(vec![link("127.0.0.1:2", spread)]), "out.jitter_ms: is 60001, up to 60000"),
            (with(vec![link("127.0.0.1:2", lossy)]), "out.drop_percent: is 91, up to 90"),
            (v1::Faults { clock_ahead_ms: i64::MIN + 1, ..Default::default() }, "ten years"),
        ] {
            let error = faults.set(wanted).unwrap_err();
            assert!(error.message.contains(says), "{error} lacks {says}");
            assert_eq!(faults.get(), before);
        }
    }

    #[test]
    fn what_is_set_is_in_place_of_what_was_before() {
        let clock = Clock::start();
        let faults = Faults::allowed(clock);
        let way = faults.link("127.0.0.1:1").unwrap();
        let cut = v1::PathFault { cut: true, ..v1::PathFault::default() };
        let none = link("127.0.0.1:2", v1::PathFault::default());
        let wanted =
            v1::Faults { links: vec![none, link("127.0.0.1:1", cut)], clock_ahead_ms: 5000, ..Default::default() };
        let set = faults.set(wanted.clone()).unwrap().unwrap();
        assert_eq!(InWords(&set).to_string(), "to 127.0.0.1:1: cut; the clock is 5000 ms ahead");
        assert!(way.is_faulty() && clock.ahead_ms() == 5000);
        assert_eq!(faults.set(wanted), Ok(None), "it is so already");
        faults.set(v1::Faults::default()).unwrap();
        assert!(!way.is_faulty() && clock.ahead_ms() == 0);
        assert_eq!(InWords(&faults.get().unwrap()).to_string(), "none");
    }
}
