//! Rule D2: how far a store is, is durably known to every other member soon after.

use kv_core::types::Point;

use crate::settings::node_id;
use crate::world::World;

/// How far the store of each machine is.
pub(crate) fn points(world: &World) -> Vec<(usize, Point)> {
    let point = |index: usize| {
        let machine = &world.machines[index];
        let commit = machine.core.as_ref()?.commit();
        Some((index, Point { incarnation: machine.incarnation, commit }))
    };
    world.living().into_iter().filter_map(point).collect()
}

/// Whether every other machine durably remembers what was shown.
pub(crate) fn by_all(world: &World, points: &[(usize, Point)]) -> Result<(), String> {
    for (index, point) in points {
        for peer in world.living().into_iter().filter(|peer| peer != index) {
            let seen = world.machines[peer].disk.durable_seen(node_id(*index)).map(|(seen, _)| seen);
            if seen.is_none_or(|seen| seen.incarnation != point.incarnation || seen.commit < point.commit) {
                return Err(format!(
                    "D2: {} does not durably remember that {} was at {point}, but {seen:?}",
                    node_id(peer),
                    node_id(*index)
                ));
            }
        }
    }
    Ok(())
}
