//! Rule A7: a request takes effect once. Most of it is judged where dots are made (`history`) and where values are shown
//! (`deleted`).

use std::time::Duration;

use kv_core::types::Hlc;

use crate::clock::Time;
use crate::history::OpId;
use crate::world::World;

/// What is older than repetitions may be, by every clock when it was sent, is not carried out.
pub(crate) fn is_not_too_old(world: &World, id: OpId, sent: Time) -> Result<(), String> {
    let write = world.history.op(id);
    let stamp = write.request.stamp;
    let earliest = world.wall_at_least(sent);
    let limit = stamp.plus(world.settings.cluster.repeat_within).plus(Duration::from_millis(1));
    // What names no request gets a stamp when it comes.
    if limit < Hlc::at(earliest) && !write.unnamed && !world.history.clocks_are_wrong {
        return Err(format!("A7: {id:?} is carried out although it is older than repetitions may be"));
    }
    Ok(())
}
