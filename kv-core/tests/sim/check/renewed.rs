//! Rule D2: a store is given up only if it is an older copy.

use crate::machine::Machine;
use crate::settings::node_id;

/// Whether the store that a machine gives up is an older copy.
pub(crate) fn is_older_copy(index: usize, machine: &Machine) -> Result<(), String> {
    if machine.is_older_copy {
        return Ok(());
    }
    let store = machine.disk.store;
    Err(format!("D2: {} gives up store {store}, which is no older copy", node_id(index)))
}
