//! Properties of versions: one file per concept.

mod clock;
mod context;
pub(crate) mod history;
mod laws;
mod retired;
mod settled;
mod token;

use proptest::prelude::*;

use super::{Actor, Context, Hlc, Retired};
use crate::types::{RequestId, StoreId};

/// An actor by its number.
fn actor(instance: u64) -> Actor {
    Actor { store: StoreId(instance % 3), boot: 1, nonce: 7, instance }
}

fn any_context() -> impl Strategy<Value = Context> {
    prop::collection::vec((0u64..6, 1u64..5), 0..6)
        .prop_map(|entries| entries.into_iter().map(|(instance, counter)| (actor(instance), counter)).collect())
}

/// A few requests.
fn any_ids() -> impl Strategy<Value = Retired> {
    let id = (0u64..20, 0u64..3).prop_map(|(stamp, client)| RequestId { stamp: Hlc(stamp), client });
    prop::collection::vec(id, 0..8).prop_map(|ids| ids.into_iter().collect())
}
