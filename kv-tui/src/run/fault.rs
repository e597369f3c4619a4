//! fault: what nodes of a local cluster act out.
//!
//! Each node acts out what happens on the connections that it opens, so a link is told to both of its nodes.

use std::time::Duration;

use kv_core::error::{Kind, RequestError};
use kv_core::types::NodeId;
use kv_proto::client::Client;
use kv_proto::describe::Description;
use kv_proto::limits::FAULT_DELAY_MS_MAX;
use kv_proto::v1;
use serde_json::json;

use super::preview::member;
use crate::asker::asker;
use crate::command::{CutArgs, FaultCommand, SlowArgs, duration};
use crate::error::{Class, CommandError};
use crate::observe::faults::Faults;
use crate::observe::snapshot::ClusterSnapshot;
use crate::output::{Human, Item, Sink};

const HEADER: &[&str] = &["WHERE", "FAULT"];

/// How long a node may take to say what it acts out.
const PATIENCE: Duration = Duration::from_secs(2);

pub(super) async fn execute(command: &FaultCommand, client: &Client, sink: &mut dyn Sink) -> Result<(), CommandError> {
    let description = client.refresh().await?;
    let told = client.faults(PATIENCE).await;
    let known = told.iter().filter_map(|(node, told)| Some((*node, told.as_ref().ok()?)));
    let before = Faults::told(&description, known);
    if matches!(command, FaultCommand::Ls) {
        return list(&before, &description, sink);
    }
    if told.iter().all(|(_, told)| told.as_ref().is_err_and(|error| error.kind == Kind::Conflict)) {
        return Err(CommandError::new(
            Class::Refused,
            "no node of this cluster takes faults: only those that were started with --allow-faults on one machine do, as kv-tui local \
             starts them",
        ));
    }
    let cluster = ClusterSnapshot { description, reports: Vec::new() };
    let after = changed(command, &before, &cluster)?;
    let unreached = tell(&after, &told, &cluster.description, client).await?;
    list(&after, &cluster.description, sink)?;
    if unreached.is_empty() {
        return Ok(());
    }
    Err(CommandError::new(
        Class::Unavailable,
        format!(
            "not told, so what it has to do with is half done: {}; repeat it when they answer",
            unreached.join("; ")
        ),
    ))
}

/// The faults after a command.
fn changed(command: &FaultCommand, before: &Faults, cluster: &ClusterSnapshot) -> Result<Faults, CommandError> {
    let mut faults = before.clone();
    let find = |name: &String| member(cluster, name);
    let others = |node: NodeId| cluster.description.members.iter().map(|other| other.id).filter(move |id| *id != node);
    match command {
        FaultCommand::Ls => {}
        FaultCommand::Cut(args) => cut(args, &mut faults, cluster)?,
        FaultCommand::Slow(args) => slow(args, &mut faults, cluster)?,
        FaultCommand::Drop(args) => {
            let node = find(&args.node)?;
            for other in others(node) {
                for (from, to) in [(node, other), (other, node)] {
                    faults.on_path(from, to, |path| path.drop_percent = args.percent);
                }
            }
        }
        FaultCommand::PauseDisk(args) => faults.pause_disk(find(&args.node)?),
        FaultCommand::FillDisk(args) => faults.fill_disk(find(&args.node)?),
        FaultCommand::Clock(args) => faults.set_clock(find(&args.node)?, args.ahead_ms),
        FaultCommand::Heal(args) if args.nodes.is_empty() => faults = Faults::default(),
        FaultCommand::Heal(args) => {
            for node in args.nodes.iter().map(find).collect::<Result<Vec<_>, _>>()? {
                faults.heal(node);
            }
        }
    }
    Ok(faults)
}

fn cut(args: &CutArgs, faults: &mut Faults, cluster: &ClusterSnapshot) -> Result<(), CommandError> {
    let (first, second) = args.parts().map_err(CommandError::usage)?;
    let ids = |names: &[String]| names.iter().map(|name| member(cluster, name)).collect::<Result<Vec<_>, _>>();
    let (first, mut second) = (ids(&first)?, ids(&second)?);
    if let Some(both) = second.iter().find(|node| first.contains(node)) {
        let name = cluster.description.name_of(*both);
        return Err(CommandError::usage(format!("{name} stands on both sides of the cut; name it once")));
    }
    if second.is_empty() {
        second = cluster.description.members.iter().map(|other| other.id).filter(|id| !first.contains(id)).collect();
    }
    if second.is_empty() {
        return Err(CommandError::usage("nobody is left on the other side of the cut; name fewer nodes"));
    }
    for &one in &first {
        for &other in &second {
            faults.on_path(one, other, |path| path.cut = true);
            if !args.one_way {
                faults.on_path(other, one, |path| path.cut = true);
            }
        }
        if args.clients {
            faults.cut_clients(one);
        }
    }
    Ok(())
}

fn slow(args: &SlowArgs, faults: &mut Faults, cluster: &ClusterSnapshot) -> Result<(), CommandError> {
    let Some((time, places)) = args.what.split_last() else { return Ok(()) };
    // What is read with a unit elsewhere may stand here without one, as milliseconds.
    let delay = match time.parse::<u64>() {
        Ok(millis) => Duration::from_millis(millis),
        Err(_) => duration(time).map_err(CommandError::usage)?,
    };
    let jitter = args.jitter.unwrap_or_default();
    let most = Duration::from_millis(FAULT_DELAY_MS_MAX.into());
    if let Some(long) = [delay, jitter].into_iter().find(|time| *time > most) {
        return Err(CommandError::usage(format!("{long:?} is too long; up to {most:?} is allowed")));
    }
    let members = &cluster.description.members;
    let in_zone = |zone: &String| -> Result<Vec<NodeId>, CommandError> {
        let nodes = members.iter().filter(|node| node.member.zone == *zone).map(|node| node.id).collect::<Vec<_>>();
        if nodes.is_empty() {
            return Err(CommandError::new(
                Class::NotFound,
                format!("no node is in a zone {zone:?}; node ls shows the zones"),
            ));
        }
        Ok(nodes)
    };
    let (first, second) = match places {
        [node] => {
            let node = member(cluster, node)?;
            (vec![node], members.iter().map(|other| other.id).filter(|id| *id != node).collect())
        }
        [one, other] if one == other => {
            return Err(CommandError::usage(format!("{one} stands there twice; name two zones")));
        }
        [one, other] => (in_zone(one)?, in_zone(other)?),
        _ => return Err(CommandError::usage("name a node, or two zones, and behind that a time such as 40ms")),
    };
    let millis = |time: Duration| u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
    for &one in &first {
        for &other in &second {
            for (from, to) in [(one, other), (other, one)] {
                faults.on_path(from, to, |path| (path.delay_ms, path.jitter_ms) = (millis(delay), millis(jitter)));
            }
        }
    }
    Ok(())
}

/// Tells each member its part. Those that were not told, and why.
async fn tell(
    after: &Faults,
    told: &[(NodeId, Result<v1::Faults, RequestError>)],
    description: &Description,
    client: &Client,
) -> Result<Vec<String>, CommandError> {
    let mut unreached = Vec::new();
    for (node, before) in told {
        let wanted = after.of_node(description, *node);
        if before.as_ref() == Ok(&wanted) {
            continue;
        }
        match client.set_faults(*node, wanted.clone(), &asker()).await {
            Ok(_) => {}
            // A process that has ended acts out nothing, and one that takes no faults has none.
            Err(error)
                if wanted == v1::Faults::default() && matches!(error.kind, Kind::Unavailable | Kind::Conflict) => {}
            Err(error) if matches!(error.kind, Kind::Unavailable | Kind::Unknown | Kind::Conflict) => {
                unreached.push(format!("{} ({})", description.name_of(*node), error.message));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(unreached)
}

fn list(faults: &Faults, cluster: &Description, sink: &mut dyn Sink) -> Result<(), CommandError> {
    if faults.is_empty() {
        return sink.item(Item {
            json: json!({"schema": 1, "kind": "none"}),
            raw: Vec::new(),
            human: Human::Text("no faults".to_owned()),
        });
    }
    for fault in faults.list(cluster) {
        let mut json = fault.json;
        json["schema"] = json!(1);
        sink.item(Item {
            raw: format!("{}\t{}\n", fault.place, fault.what).into_bytes(),
            human: Human::Row { header: HEADER, cells: vec![fault.place, fault.what] },
            json,
        })?;
    }
    Ok(())
}
