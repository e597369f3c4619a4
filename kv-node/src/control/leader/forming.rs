//! How the leader founds and forms the cluster.

use kv_core::ring::{FirstLayout, Layout, LayoutError, first_layout};
use kv_core::types::{ClusterId, Epoch, HashSeed};

use super::Leader;
use crate::control::state::{ClusterState, Command, Founding};

pub(super) fn is_complete(state: &ClusterState, founding: Founding) -> bool {
    usize::try_from(founding.expect).is_ok_and(|expect| state.members.len() >= expect)
}

/// Commits what is to be formed. Returns whether the state has changed.
pub(super) async fn found(leader: &Leader) -> bool {
    let Some(founding) = leader.group.founding else { return false };
    let command = Command::Found { founding, config: leader.group.cluster.clone(), founder: leader.group.me.clone() };
    leader.commit(command).await
}

/// Commits the cluster's identity and first layout. Returns whether the state has changed.
pub(super) async fn form(leader: &Leader, state: &ClusterState, founding: Founding) -> bool {
    match draw_layout(state, founding) {
        Ok(layout) => leader.commit(Command::Form { layout }).await,
        Err(error) => {
            tracing::error!(%error, "no first layout is possible");
            false
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum DrawError {
    #[error(transparent)]
    Layout(#[from] LayoutError),
    #[error("no random numbers: {0}")]
    Random(getrandom::Error),
}

fn draw_layout(state: &ClusterState, founding: Founding) -> Result<Layout, DrawError> {
    let mut drawn = [0_u8; 24];
    getrandom::fill(&mut drawn).map_err(DrawError::Random)?;
    let [id @ .., s0, s1, s2, s3, s4, s5, s6, s7] = drawn;
    Ok(first_layout(FirstLayout {
        cluster: ClusterId(u128::from_le_bytes(id)),
        seed: HashSeed(u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7])),
        epoch: Epoch(1),
        copies: founding.copies,
        partitions: founding.partitions,
        members: state.layout_members(),
    })?)
}
