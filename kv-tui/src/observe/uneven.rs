//! What a cancelled operation or failures left uneven, in numbers: a pure function of a snapshot.

use kv_core::ring::{Balance, Layout, Portion};
use kv_core::types::NodeId;
use kv_proto::v1;
use serde_json::{Value, json};

use super::snapshot::ClusterSnapshot;

/// Nodes that are named.
const NAMED_MAX: usize = 6;

/// How far the layout is from an even one, if it is and no operation is on its way to another one.
fn balance(cluster: &ClusterSnapshot) -> Option<(&Layout, Balance)> {
    let layout = cluster.description.layout.as_deref()?;
    let active = |operation: &v1::Operation| {
        matches!(operation.state(), v1::OperationState::Running | v1::OperationState::Paused)
    };
    let moving = layout.partitions.iter().any(|entry| entry.joint.is_some());
    if layout.settled || moving || cluster.operation().is_some_and(active) {
        return None;
    }
    Some((layout, Balance::of(layout))).filter(|(_, balance)| !balance.is_even())
}

/// What is uneven, and whether it means that partitions lack copies.
pub(super) fn reasons(cluster: &ClusterSnapshot) -> Vec<(bool, String)> {
    let Some((layout, balance)) = balance(cluster) else { return Vec::new() };
    let mut found: Vec<(bool, String)> =
        nodes(cluster, layout, &balance).map(|what| (false, what)).into_iter().collect();
    let wanted = layout.owners_per_partition();
    if balance.lacking > 0 {
        found.push((true, format!("{} partitions have fewer than {wanted} copies", balance.lacking)));
    }
    if balance.extra > 0 {
        found.push((false, format!("{} partitions have more than {wanted} copies", balance.extra)));
    }
    if balance.crowded > 0 {
        let what = format!("{} partitions have more copies in one zone than they need to", balance.crowded);
        found.push((false, what));
    }
    found
}

/// The nodes that are furthest from their fair share, with what they hold; `None`: no node is.
fn nodes(cluster: &ClusterSnapshot, layout: &Layout, balance: &Balance) -> Option<String> {
    let name = |node: NodeId| cluster.description.name_of(node);
    let owners = f64::from(u8::try_from(layout.owners_per_partition()).unwrap_or(u8::MAX));
    let percent = f64::from(layout.partition_count()) * owners / 100.0;
    let away = |portion: &Portion| (f64::from(portion.copies) - portion.fair).abs();
    let mut unfair: Vec<(NodeId, &Portion)> = balance.unfair().collect();
    unfair.sort_by(|one, other| away(other.1).total_cmp(&away(one.1)));
    let of_copies = unfair.iter().any(|(_, portion)| away(portion) > 1.0);
    unfair.retain(|(_, portion)| !of_copies || away(portion) > 1.0);
    let (named, more) = unfair.split_at(unfair.len().min(NAMED_MAX));
    let parts = named.iter().map(|(node, portion)| match of_copies {
        true => {
            let (held, fair) = (f64::from(portion.copies) / percent, portion.fair / percent);
            format!("{} holds {held:.0} % (fair {fair:.0} %)", name(*node))
        }
        false => {
            format!("{} is the primary of {} partitions (fair {:.0})", name(*node), portion.first, portion.first_fair)
        }
    });
    let mut what = format!("the copies are not spread evenly: {}", parts.collect::<Vec<_>>().join(", "));
    if !more.is_empty() {
        what.push_str(&format!(", and {} more nodes", more.len()));
    }
    (!named.is_empty()).then_some(what)
}

/// The same for scripts; `null`: the layout is even, or an operation runs.
pub(crate) fn json(cluster: &ClusterSnapshot) -> Value {
    let Some((_, balance)) = balance(cluster) else { return Value::Null };
    let nodes = balance.unfair().map(|(node, portion)| {
        json!({
            "name": cluster.description.name_of(node),
            "partitions": portion.copies,
            "fair_partitions": portion.fair,
            "primary": portion.first,
            "fair_primary": portion.first_fair,
        })
    });
    json!({
        "nodes": nodes.collect::<Vec<_>>(),
        "partitions_lacking_copies": balance.lacking,
        "partitions_with_extra_copies": balance.extra,
        "partitions_crowded": balance.crowded,
        "remedy": "rebalance",
    })
}
