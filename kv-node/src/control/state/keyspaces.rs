//! How the commands about keyspaces change the agreed state.

use kv_core::config::{Available, Keyspace, Mode};
use kv_core::types::KeyspaceId;

use super::ClusterState;
use super::command::{Done, KeyspaceSpec, Refusal, RefusalKind};
use super::members::{check_name, invalid, precondition};
use super::operation::Asked;
use super::operations::check_by;

/// The most copies that a keyspace may ask for; it gets those that a partition has.
const QUORUM_MAX: u8 = 16;

/// The most keyspaces.
pub const KEYSPACES_MAX: usize = 1024;

impl ClusterState {
    pub(super) fn create_keyspace(&mut self, spec: KeyspaceSpec, asked: &Asked) -> Result<Done, Refusal> {
        self.check_formed()?;
        check_by(asked)?;
        check_name("keyspace", &spec.name)?;
        check_mode(&spec.mode)?;
        if let Some(existing) = self.keyspace_named(&spec.name) {
            let (mode, wanted) = (existing.mode.name(), spec.mode.name());
            let is = if mode == wanted { String::new() } else { format!(" and is {mode}, not {wanted}") };
            return Err(Refusal::new(
                RefusalKind::Exists,
                format!("keyspace {} exists already{is}; use it, drop it, or choose another name", spec.name),
            ));
        }
        if self.keyspaces.len() >= KEYSPACES_MAX {
            return Err(Refusal::new(
                RefusalKind::Exhausted,
                format!("there are {KEYSPACES_MAX} keyspaces, the most there can be; drop one first"),
            ));
        }
        let id = KeyspaceId(self.next_keyspace);
        self.next_keyspace = self.next_keyspace.checked_add(1).ok_or_else(|| {
            Refusal::new(RefusalKind::Exhausted, "all keyspace numbers were used; keep the keyspaces that exist")
        })?;
        let KeyspaceSpec { name, mode } = spec;
        self.keyspaces.insert(id, Keyspace { id, name, mode });
        self.changed();
        Ok(Done::KeyspaceCreated { id })
    }

    pub(super) fn drop_keyspace(&mut self, name: &str, asked: &Asked) -> Result<Done, Refusal> {
        self.check_formed()?;
        check_by(asked)?;
        let Some(id) = self.keyspace_named(name).map(|keyspace| keyspace.id) else {
            return Err(Refusal::new(
                RefusalKind::NotFound,
                format!("there is no keyspace {name}; list the keyspaces to see their names"),
            ));
        };
        if id == Keyspace::initial().id {
            return Err(precondition(format!("keyspace {name} is there from the start and stays; delete its keys")));
        }
        self.keyspaces.remove(&id);
        self.changed();
        Ok(Done::KeyspaceDropped { id })
    }
}

/// Whether a keyspace can be of this mode.
fn check_mode(mode: &Mode) -> Result<(), Refusal> {
    match mode {
        Mode::Available(Available { r, w, strict: _, conflict: _ }) => {
            for (field, value) in [("r", *r), ("w", *w)] {
                if !(1..=QUORUM_MAX).contains(&value) {
                    return Err(invalid(format!("{field} is {value}; it must be from 1 to {QUORUM_MAX}")));
                }
            }
            Ok(())
        }
        Mode::Consistent => Ok(()),
    }
}
