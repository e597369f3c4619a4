//! What follows from what directories hold: what may be done there, and what may be missing. A pure function.

use kv_core::types::{Generation, NodeId, StoreId, WallTime};

use super::RecoverError;
use super::directory::{CONTROL, Directory};
use super::flags::Aim;
use super::others;
use crate::control::{Origin, last_change};

/// What may be done.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) places: Vec<Place>,
    /// The directory on which the next generation should be founded, if several were looked at.
    pub(super) best: Option<usize>,
}

/// One directory, and what may be done there.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) directory: Directory,
    /// The name of its node.
    pub(super) name: Option<String>,
    /// Its number as a member.
    pub(super) node: Option<NodeId>,
    /// The generation of the cluster to which it belongs.
    pub(super) generation: Option<Generation>,
    /// When its cluster was changed last.
    pub(super) changed: Option<WallTime>,
    /// What may be missing, and what else is to be known.
    pub(super) notes: Vec<String>,
    /// Why it cannot found a generation, if it cannot.
    pub(super) cannot_found: Option<String>,
    /// Why it cannot join one, if it cannot.
    pub(super) cannot_join: Option<String>,
}

impl Plan {
    /// The plan for these directories. `name`: what the node is called, if its directory does not tell.
    pub(super) fn of(directories: Vec<Directory>, name: Option<&str>) -> Self {
        let compared = compare(&directories);
        let places: Vec<Place> = directories
            .into_iter()
            .zip(compared)
            .map(|(directory, compared)| {
                let mut place = Place::of(directory, name);
                place.notes.extend(compared);
                place
            })
            .collect();
        let may = places.iter().enumerate().filter(|(_, place)| place.cannot_found.is_none());
        let best = may.max_by_key(|(at, place)| (place.age(), std::cmp::Reverse(*at))).map(|(at, _)| at);
        Self { best: best.filter(|_| places.len() > 1), places }
    }

    /// The one directory that is to be changed, and the name of its node.
    ///
    /// # Errors
    /// If what is wanted is not possible there.
    pub(super) fn check(&self, aim: &Aim) -> Result<String, RecoverError> {
        let place = self.place()?;
        let cannot = match aim {
            Aim::Look | Aim::SetAside => &None,
            Aim::Found => &place.cannot_found,
            Aim::Join(_) => &place.cannot_join,
        };
        match (cannot, &place.name) {
            (Some(why), _) => Err(RecoverError::Refused(format!("{}: {why}", place.directory.path.display()))),
            (None, Some(name)) => Ok(name.clone()),
            (None, None) => Err(RecoverError::Refused(NO_NAME.to_owned())),
        }
    }

    /// Notes what nodes that run have to say.
    ///
    /// # Errors
    /// If they say that it is wrong.
    pub(super) fn ask_others(&mut self, aim: &Aim) -> Result<(), RecoverError> {
        let Some(place) = self.places.first_mut() else { return Ok(()) };
        match aim {
            Aim::Look | Aim::SetAside => {}
            Aim::Found => {
                let notes = others::check_lost(place)?;
                place.notes.extend(notes);
            }
            Aim::Join(contacts) => others::check_later(place, contacts)?,
        }
        Ok(())
    }

    /// The directory that is to be changed.
    pub(super) fn place(&self) -> Result<&Place, RecoverError> {
        self.places.first().ok_or_else(|| RecoverError::Usage("data-dir: no directory is named".to_owned()))
    }
}

const NO_NAME: &str = "the directory does not tell what its node is called; say so with --name NAME";

impl Place {
    fn of(directory: Directory, given: Option<&str>) -> Self {
        let member = directory.member();
        let coming = directory.known.coming.as_ref().map(|coming| coming.0.clone());
        let node = member.map(|(node, _)| node);
        let listed = directory.store.examined.layout.as_ref().and_then(|layout| {
            let stores = directory.stores();
            layout.members.values().find(|member| stores.contains(&member.store)).map(|member| member.name.clone())
        });
        let known = member.map(|(_, member)| member.name.clone()).or(coming).or(listed);
        let name = given.map(str::to_owned).or_else(|| known.clone());
        let mut place = Self {
            name: name.clone(),
            node,
            generation: directory.known.generation(),
            changed: directory.known.state.as_ref().and_then(last_change),
            notes: notes(&directory),
            cannot_found: cannot_found(&directory),
            cannot_join: None,
            directory,
        };
        if place.name.is_none() {
            place.cannot_join = Some(NO_NAME.to_owned());
        } else if place.directory.cluster().is_none() {
            place.cannot_join =
                Some("its node has never belonged to a cluster; there is nothing to bring along".to_owned());
        }
        if let (Some(given), Some(known)) = (given, &known)
            && given != known
        {
            let text = format!("its node is called {known}; as {given} it does not take that one's place");
            place.notes.push(text.clone());
            place.cannot_found = place.cannot_found.or(Some(text));
        }
        place
    }

    /// How new what its control plane knew is: of two the greater one is newer.
    fn age(&self) -> (usize, u64, Option<u64>) {
        let known = &self.directory.known;
        let state = known.state.as_ref();
        (state.map_or(0, |state| state.generations.len()), state.map_or(0, |state| state.revision), known.voting.last)
    }

    /// Where its node comes from, if it joins another generation.
    pub(super) fn origin(&self) -> Option<Origin> {
        let directory = &self.directory;
        let (records, hints) = directory.store.held();
        let Some(state) = &directory.known.state else {
            // It was prepared before, or nothing but its store is left.
            let (cluster, _) = directory.cluster()?;
            let before = directory.known.coming.as_ref().map(|coming| coming.1.clone());
            let origin = before.unwrap_or_else(|| Origin {
                cluster,
                generation: Generation { number: 0, founder: StoreId(0) },
                revision: 0,
                epoch: directory.store.examined.layout.as_ref().map(|layout| layout.epoch).unwrap_or_default(),
                next_node: 0,
                keyspaces: directory.store.examined.keyspaces.clone(),
                stores: Vec::new(),
                records: 0,
                hints: 0,
            });
            return Some(Origin { stores: directory.stores(), records, hints, ..origin });
        };
        let (cluster, _) = state.identity()?;
        Some(Origin {
            cluster,
            generation: self.generation.unwrap_or_default(),
            revision: state.revision,
            epoch: state.layout.as_ref().map(|layout| layout.epoch).unwrap_or_default(),
            next_node: state.next_node(),
            keyspaces: self.keyspaces(),
            stores: directory.stores(),
            records,
            hints,
        })
    }

    /// The keyspaces that are known there: the newer of the two lists that a node keeps.
    pub(super) fn keyspaces(&self) -> kv_core::config::KeyspaceList {
        let of_store = &self.directory.store.examined.keyspaces;
        match self.directory.known.state.as_ref().map(|state| state.keyspace_list()) {
            Some(agreed) if !of_store.is_newer_than(&agreed) => agreed,
            _ => of_store.clone(),
        }
    }
}

fn cannot_found(directory: &Directory) -> Option<String> {
    let known = &directory.known;
    let Some(state) = &known.state else {
        return Some(
            "nothing is left of the agreed state; found on another node, and have this one join it (--join)".to_owned(),
        );
    };
    if state.identity().is_none() {
        return Some(format!("its cluster has not formed ({state}); there is nothing to recover"));
    }
    if known.founder.is_none() {
        return Some("it does not tell to which control plane its node belonged; found on another node".to_owned());
    }
    if directory.member().is_none() {
        return Some(
            "its node is no member of the cluster, as far as it knows; found on a member, and have this one join it (--join)"
                .to_owned(),
        );
    }
    if let Some((cluster, _)) = directory.store.cluster
        && state.identity().is_some_and(|(agreed, _)| agreed != cluster)
    {
        return Some(format!(
            "its store belongs to cluster {cluster} and its control plane to another; {CONTROL}/ and store/ are not of one node"
        ));
    }
    None
}

/// What may be missing, as far as one directory tells.
fn notes(directory: &Directory) -> Vec<String> {
    let mut notes = Vec::new();
    let Directory { store, known, .. } = directory;
    if directory.is_interrupted {
        notes.push("a recovery was begun here and not finished; the same command finishes it".to_owned());
    }
    if let Some(removed) = &directory.removed {
        notes.push(format!("its node had been removed from the cluster ({removed})"));
    }
    if let Some(what) = &store.rolled_back {
        notes.push(format!(
            "its store is older than it was: {what}; what was written since is missing unless others hold it"
        ));
    }
    for damaged in &known.damaged {
        notes.push(format!("not used, since it cannot be read: {damaged}"));
    }
    if known.is_set_aside {
        notes.push(
            "its store has a new id since it was found to be an older copy; its log of the control plane was set aside"
                .into(),
        );
    }
    if let Some((name, origin)) = &known.coming {
        let number = origin.generation.number;
        notes.push(format!("it is prepared already to come as {name} from generation {number} to a later one"));
    }
    let Some(state) = &known.state else { return notes };
    if let Some(operation) = state.active_operation() {
        let (id, command) = (operation.id, &operation.command);
        notes.push(format!("operation {id} ({command}) was under way; a recovery that is founded here cancels it"));
    }
    if known.open_entries > 0 {
        let count = known.open_entries;
        notes.push(format!(
            "{count} changes of the cluster in its log are not known to have been agreed on, and are not used"
        ));
    }
    let agreed = state.keyspace_list();
    let unknown: Vec<String> = store
        .examined
        .keyspaces
        .iter()
        .filter(|keyspace| agreed.get(keyspace.id).is_none() && !agreed.is_dropped(keyspace.id))
        .map(|keyspace| format!("{} ({})", keyspace.name, keyspace.id.0))
        .collect();
    if !unknown.is_empty() {
        notes.push(format!(
            "its store knows keyspaces that its control plane does not: {}; they are kept",
            unknown.join(", ")
        ));
    }
    let others = state.members.iter().filter(|(node, _)| directory.member().is_none_or(|me| me.0 != **node));
    let others: Vec<&str> = others.map(|(_, member)| member.name.as_str()).collect();
    if !others.is_empty() {
        notes.push(format!(
            "what only {} hold is missing until they have joined; what nobody holds is gone",
            others.join(" and ")
        ));
    }
    notes
}

/// What the directories tell of each other: which store is older than another member has seen it.
fn compare(directories: &[Directory]) -> Vec<Vec<String>> {
    let notes = |at: usize| {
        let directory = &directories[at];
        let mut notes = Vec::new();
        let Some((me, member)) = directory.member() else { return notes };
        for (other_at, other) in directories.iter().enumerate().filter(|(other_at, _)| *other_at != at) {
            let path = other.path.display();
            let theirs = other.cluster().map(|cluster| cluster.0);
            if theirs != directory.cluster().map(|cluster| cluster.0) {
                notes.push(format!("{path} belongs to another cluster"));
                continue;
            }
            if other.member().is_some_and(|(node, _)| node == me) && other_at > at {
                notes.push(format!("{path} belongs to {} as well; only one of the two takes its place", member.name));
            }
            let shown = kv_core::types::Incarnation { store: directory.store.id, boot: u32::MAX, nonce: 0 };
            if let Some(seen) = other.store.examined.seen.get(&me)
                && seen.incarnation.store == directory.store.id
                && !directory.store.boots.has(shown, *seen)
            {
                notes.push(format!(
                    "{path} has seen its store at boot {} up to commit {}, which it lacks: it is an older copy",
                    seen.incarnation.boot, seen.commit
                ));
            }
        }
        notes
    };
    (0..directories.len()).map(notes).collect()
}
