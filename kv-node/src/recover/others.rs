//! What other nodes say while a recovery is prepared: whether the control plane is lost at all, and whether it is the right generation
//! that a node is to come to. Who does not answer is no obstacle.

use std::time::Duration;

use kv_core::types::ClusterId;
use kv_proto::peer::cluster_from_wire;
use kv_proto::v1::cluster_client::ClusterClient;
use kv_proto::v1::{self, ControlTrouble, watch_response::Item};
use tonic::transport::Endpoint;

use super::RecoverError;
use super::plan::Place;

/// How long a node may take to answer.
const TIMEOUT: Duration = Duration::from_secs(2);

/// What a node answered.
struct Answer {
    address: String,
    name: String,
    cluster: Option<ClusterId>,
    generation: u32,
    control: v1::ControlReport,
}

/// Refuses to found a generation while another member says that its control plane works. Members that run all the same, for people.
pub(super) fn check_lost(place: &Place) -> Result<Vec<String>, RecoverError> {
    let Some(state) = &place.directory.known.state else { return Ok(Vec::new()) };
    let others = state.members.iter().filter(|(node, _)| Some(**node) != place.node);
    let addresses: Vec<String> = others.map(|(_, member)| member.address.clone()).collect();
    let cluster = place.directory.cluster().map(|cluster| cluster.0);
    let answers = ask(addresses)?;
    let answers: Vec<Answer> = answers.into_iter().filter(|answer| answer.cluster == cluster).collect();
    let leader = |answer: &&Answer| {
        let obeys = answer.control.leader != 0 && answer.control.trouble() == ControlTrouble::Unspecified;
        answer.control.leads || obeys
    };
    if let Some(Answer { name, address, .. }) = answers.iter().find(leader) {
        return Err(RecoverError::Refused(format!(
            "the control plane is not lost: {name} answers at {address} and has a leader; start this node as before, or stop all \
             other nodes first if it is to be given up"
        )));
    }
    let running = |Answer { name, address, .. }: Answer| {
        format!("{name} runs at {address}; stop it before this node is started, and have its directory join")
    };
    Ok(answers.into_iter().map(running).collect())
}

/// Refuses to have a node come to where there is no later generation of its cluster.
pub(super) fn check_later(place: &Place, contacts: &[String]) -> Result<(), RecoverError> {
    let before = place.generation.map_or(0, |generation| generation.number);
    let cluster = place.directory.cluster().map(|cluster| cluster.0);
    for Answer { address, name, cluster: theirs, generation, .. } in ask(contacts.to_vec())? {
        if theirs.is_some() && theirs != cluster {
            return Err(RecoverError::Refused(format!(
                "{name} at {address} belongs to another cluster; name a node of this one"
            )));
        }
        if generation <= before {
            return Err(RecoverError::Refused(format!(
                "{name} at {address} belongs to generation {generation} of the cluster, and this directory to {before}; name a node of \
                 the one that was founded since"
            )));
        }
    }
    Ok(())
}

/// Asks nodes at these addresses, all at once.
fn ask(addresses: Vec<String>) -> Result<Vec<Answer>, RecoverError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| RecoverError::System(format!("no runtime can be started: {error}")))?;
    Ok(runtime.block_on(async {
        let mut asking = tokio::task::JoinSet::new();
        for address in addresses {
            asking.spawn(async move { tokio::time::timeout(TIMEOUT, ask_one(address)).await.ok().flatten() });
        }
        asking.join_all().await.into_iter().flatten().collect()
    }))
}

async fn ask_one(address: String) -> Option<Answer> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).ok()?;
    let mut node = ClusterClient::new(endpoint.connect().await.ok()?);
    let described = node.describe(v1::DescribeRequest::default()).await.ok()?.into_inner();
    let request = v1::WatchRequest { once: true, ..v1::WatchRequest::default() };
    let mut stream = node.watch(request).await.ok()?.into_inner();
    let control = match stream.message().await.ok()??.item? {
        Item::Snapshot(snapshot) => snapshot.control.unwrap_or_default(),
        Item::Event(_) => v1::ControlReport::default(),
    };
    Some(Answer {
        address,
        name: described.node_name,
        cluster: cluster_from_wire(&described.cluster_id).ok().flatten(),
        generation: described.generation,
        control,
    })
}
