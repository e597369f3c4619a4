//! The progress of an operation as lines and as JSON: what `op show`, `op watch`, `--once` and the migration screen show.

use std::collections::BTreeMap;
use std::time::Duration;

use kv_core::types::NodeId;
use kv_proto::client::Client;
use kv_proto::v1;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::operation::{NONE, item, state_word, throttle_json, waiting_for};
use super::preview;
use crate::error::{Class, CommandError};
use crate::observe::progress::{Flow, MoveId, MoveState, Progress, Step, Wait};
use crate::observe::snapshot::ClusterSnapshot;
use crate::output::time::{now_us, rfc3339, short, size};

/// The pause between the two observations that rates are computed from.
const RATE_INTERVAL: Duration = Duration::from_secs(1);

/// An operation with its moves at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    /// Its progress. Rates are known from the second observation on.
    pub(crate) progress: Progress,
    /// The limit on copying.
    pub(crate) throttle: Option<v1::ThrottleSetting>,
    /// Its moves with their receipts; only the newest operations have them.
    details: Vec<v1::OperationMove>,
    /// The cluster.
    pub(crate) cluster: ClusterSnapshot,
}

impl Report {
    /// Observes an operation; without a number the running one, else the newest.
    ///
    /// # Errors
    /// `NotFound` if there is none, or no node answers.
    pub(crate) async fn take(id: Option<u64>, client: &Client) -> Result<Self, CommandError> {
        let id = match id {
            Some(id) => id,
            None => newest(client).await?,
        };
        let (operation, throttle) = ask(id, true, client).await?;
        let cluster = ClusterSnapshot::take(client, true).await?;
        let mut report = Self { progress: Progress::new(&operation), throttle, details: Vec::new(), cluster };
        report.observe(operation);
        Ok(report)
    }

    /// Observes an operation as [`Self::take`] does, twice if it is running: rates need two observations.
    ///
    /// # Errors
    /// `NotFound` if there is none, or no node answers.
    pub(crate) async fn with_rates(id: Option<u64>, client: &Client) -> Result<Self, CommandError> {
        let mut report = Self::take(id, client).await?;
        if report.progress.operation.state() == v1::OperationState::Running {
            sleep(RATE_INTERVAL).await;
            report.refresh(client).await?;
        }
        Ok(report)
    }

    /// Observes it again.
    ///
    /// # Errors
    /// No node answers.
    pub(crate) async fn refresh(&mut self, client: &Client) -> Result<(), CommandError> {
        let known = &self.progress.operation;
        let (id, far) = (known.id, (known.moved, known.receipts, known.state));
        let (mut operation, throttle) = ask(id, false, client).await?;
        if far != (operation.moved, operation.receipts, operation.state) {
            operation = ask(id, true, client).await?.0;
        }
        self.cluster = ClusterSnapshot::take(client, true).await?;
        self.throttle = throttle;
        self.observe(operation);
        Ok(())
    }

    fn observe(&mut self, operation: v1::Operation) {
        let sizes = preview::sizes(&self.cluster);
        self.progress.observe_operation(&operation, |partition| sizes.get(&partition).copied().unwrap_or_default());
        for snapshot in self.cluster.node_reports() {
            self.progress.observe_report(snapshot);
        }
        if !operation.details.is_empty() {
            self.details = operation.details;
        }
    }

    /// The facts, and a line for each move.
    pub(crate) fn lines(&self) -> Vec<String> {
        let progress = &self.progress;
        let mut lines = self.facts();
        let receipts: BTreeMap<MoveId, &v1::OperationMove> =
            self.details.iter().map(|step| ((step.partition, step.to), step)).collect();
        lines.extend(progress.steps.iter().map(|(id, step)| self.move_line(*id, step, receipts.get(id).copied())));
        if progress.steps.is_empty() && progress.operation.moves > 0 {
            lines.push("moves     only the newest operations keep them".to_owned());
        }
        lines
    }

    /// All but the moves, a line a fact.
    pub(crate) fn facts(&self) -> Vec<String> {
        let (progress, cluster) = (&self.progress, &self.cluster);
        let operation = &progress.operation;
        let moment = |us: u64| if us > 0 { rfc3339(us) } else { NONE.to_owned() };
        let by = if operation.by.is_empty() { String::new() } else { format!(", by {}", operation.by) };
        let ((keys, bytes), (keys_all, bytes_all)) = progress.copied();
        let mut lines = vec![
            format!("operation {}: {} ({})", operation.id, operation.command, state_word(operation.state())),
            format!(
                "moved     {} of {} replicas ({:.1} %), the minimum is {}; {} receipts",
                progress.moved(),
                operation.moves,
                super::operation::part(progress.moved(), operation.moves) * 100.0,
                operation.moves_minimum,
                operation.receipts
            ),
            format!(
                "copied    {keys} of {keys_all} keys, {} of {} ({:.1} % of the work)",
                size(bytes),
                size(bytes_all),
                progress.share() * 100.0
            ),
            format!("speed     {}", speed(progress, self.throttle.as_ref())),
            format!("time      {}", time(progress, cluster, now_us())),
            format!("phases    {}", phases(progress, '→')),
            format!(
                "begun     {}{by}; plan {} for epoch {}",
                moment(operation.begun_us),
                operation.plan_hash,
                operation.parent_epoch
            ),
            format!(
                "cut over  first {}, last {}",
                moment(operation.first_cut_over_us),
                moment(operation.last_cut_over_us)
            ),
        ];
        if operation.ended_us > 0 {
            lines.push(format!("ended     {}", moment(operation.ended_us)));
        }
        if let Some(throttle) = &self.throttle {
            lines.push(format!("limits    {}", super::operation::throttle_text(throttle)));
        }
        lines.extend(waiting_for(operation, cluster).into_iter().map(|reason| format!("waits     {reason}")));
        if !operation.outcome.is_empty() {
            lines.push(format!("outcome   {}", operation.outcome));
        }
        if !operation.undo.is_empty() {
            lines.push(format!("undo      {}", operation.undo));
        }
        for ((source, to), flow) in progress.flows() {
            lines.push(format!("flow      {}", self.flow_text(source, to, &flow)));
        }
        lines
    }

    fn name(&self, node: u64) -> String {
        if node > 0 { self.cluster.description.name_of(NodeId(node)) } else { NONE.to_owned() }
    }

    fn flow_text(&self, source: u64, to: u64, flow: &Flow) -> String {
        let left = flow.eta.map_or_else(String::new, |left| format!(", about {} left", seconds(left)));
        let stalled = if flow.stalled { ", stalled" } else { "" };
        format!(
            "{} → {}  {} of {} replicas, {:.0} %, {}/s{left}{stalled}",
            self.name(source),
            self.name(to),
            flow.moved,
            flow.moves,
            (flow.share * 100.0).floor(),
            size(whole(flow.rate)),
        )
    }

    fn move_line(&self, (partition, to): MoveId, step: &Step, detail: Option<&v1::OperationMove>) -> String {
        let source = if step.source > 0 { step.source } else { step.from };
        let mut text = format!("{partition:>6}  {} → {}  ", self.name(source), self.name(to));
        if step.from > 0 && step.from != source {
            text.push_str(&format!("in the place of {}, ", self.name(step.from)));
        }
        match detail.and_then(|detail| detail.receipt.as_ref()) {
            Some(receipt) => {
                let sources: Vec<String> = receipt.sources.iter().map(|source| self.name(source.node)).collect();
                text.push_str(&format!(
                    "{}, {} keys, {}, covered by {}",
                    if step.state == MoveState::Moved { "cut over" } else { step.state.word() },
                    receipt.keys,
                    size(receipt.bytes),
                    sources.join(" ")
                ));
            }
            None if step.state == MoveState::Moved => text.push_str("cut over"),
            None => {
                text.push_str(&format!("{} {:.0} %", step.state.word(), (step.share * 100.0).floor()));
                if step.copied.1 > 0 {
                    text.push_str(&format!(", {} of {} from {}", step.copied.1, step.total.1, self.name(step.source)));
                }
            }
        }
        let reason = self.reason(step);
        if !reason.is_empty() {
            text.push_str(&format!("; {reason}"));
        }
        text
    }

    /// Why a move makes no progress; empty: it does, or has ended.
    fn reason(&self, step: &Step) -> String {
        reason(&self.progress, self.throttle.as_ref(), step)
    }

    /// The same for scripts: what `op ls` shows, and all moves.
    pub(crate) fn json(&self) -> Value {
        let (progress, cluster) = (&self.progress, &self.cluster);
        let operation = &progress.operation;
        let mut json = item(operation, cluster).json;
        let ((keys, bytes), (keys_all, bytes_all)) = progress.copied();
        let eta = progress.eta();
        let count = |state: MoveState| progress.count(state);
        // The number that the moves below show as well.
        json["moved"] = json!(progress.moved());
        json["copied"] = json!({"keys": keys, "keys_total": keys_all, "bytes": bytes, "bytes_total": bytes_all});
        json["share"] = json!(rounded(progress.share()));
        json["rate"] = json!(whole(progress.rate()));
        json["eta_seconds"] = json!(eta.map(|(left, _)| left.as_secs_f64().ceil()));
        json["slowest"] = json!(eta.map(|(_, node)| self.name(node)));
        json["limit"] = self.throttle.as_ref().map_or(Value::Null, throttle_json);
        json["phases"] = json!({
            "waiting": count(MoveState::Waiting),
            "copying": count(MoveState::Copying),
            "stalled": count(MoveState::Stalled),
            "verifying": count(MoveState::Verifying),
            "covered": count(MoveState::Covered),
            "moved": count(MoveState::Moved),
            "undone": count(MoveState::Undone),
        });
        let flows = progress.flows();
        let flow = |((source, to), flow): (&(u64, u64), &Flow)| {
            json!({
                "source": self.name(*source),
                "to": self.name(*to),
                "moves": flow.moves,
                "moved": flow.moved,
                "share": rounded(flow.share),
                "rate": whole(flow.rate),
                "eta_seconds": flow.eta.map(|left| left.as_secs_f64().ceil()),
                "stalled": flow.stalled,
            })
        };
        json["flow"] = flows.iter().map(flow).collect();
        json["moves_detail"] = self.details.iter().map(|detail| self.move_json(detail)).collect();
        json["transfers"] = Value::from(super::operation::transfers(operation, cluster));
        json
    }

    fn move_json(&self, detail: &v1::OperationMove) -> Value {
        let mut json = super::operation::move_json(detail, &self.cluster.description);
        if let Some(step) = self.progress.steps.get(&(detail.partition, detail.to)) {
            let reason = self.reason(step);
            json["state"] = json!(step.state.word());
            json["share"] = json!(rounded(step.share));
            json["waiting_for"] = json!((!reason.is_empty()).then_some(reason));
        }
        json
    }
}

/// The operation under way, else the newest: only one is carried out at a time.
async fn newest(client: &Client) -> Result<u64, CommandError> {
    let known = client.operations(v1::OperationsRequest::default()).await?.operations;
    known.last().map(|operation| operation.id).ok_or_else(|| {
        CommandError::new(Class::NotFound, "no operation was ever begun; node add begins one, for instance")
    })
}

async fn ask(
    id: u64,
    details: bool,
    client: &Client,
) -> Result<(v1::Operation, Option<v1::ThrottleSetting>), CommandError> {
    let answer = client.operations(v1::OperationsRequest { id, details }).await?;
    let operation = answer.operations.into_iter().next().ok_or_else(|| {
        CommandError::new(Class::NotFound, format!("there is no operation {id}; op ls lists those that are kept"))
    })?;
    Ok((operation, answer.throttle))
}

/// Why a move makes no progress; empty: it does, or has ended.
#[must_use]
pub(crate) fn reason(progress: &Progress, throttle: Option<&v1::ThrottleSetting>, step: &Step) -> String {
    if step.wait != Wait::None {
        return step.waiting_for().to_owned();
    }
    match (step.state, progress.operation.state()) {
        (MoveState::Waiting, v1::OperationState::Paused) => "the operation is paused".to_owned(),
        (MoveState::Waiting, v1::OperationState::Running) => {
            match throttle.map_or(0, |throttle| throttle.migrating_max) {
                0 => "waits for its turn".to_owned(),
                most => format!("waits for its turn: at most {most} partitions migrate at once"),
            }
        }
        (MoveState::Covered, v1::OperationState::Running) => {
            "is proven complete, and waits until its partition is cut over".to_owned()
        }
        (MoveState::Covered, v1::OperationState::Paused) => {
            "is proven complete, and is cut over when the operation is resumed".to_owned()
        }
        _ => String::new(),
    }
}

/// The rate and its limit, with who set that.
#[must_use]
pub(crate) fn speed(progress: &Progress, throttle: Option<&v1::ThrottleSetting>) -> String {
    let limit = match throttle.and_then(|throttle| Some((throttle, throttle.bytes_per_second_max?))) {
        None => "no limit".to_owned(),
        Some((throttle, limit)) => {
            let by = if throttle.by.is_empty() { String::new() } else { format!(", set by {}", throttle.by) };
            format!("limit {}/s a receiver{by}", size(limit))
        }
    };
    if progress.is_active() { format!("{}/s   {limit}", size(whole(progress.rate()))) } else { limit }
}

/// How long it has taken, and how long it needs.
#[must_use]
pub(crate) fn time(progress: &Progress, cluster: &ClusterSnapshot, now_us: u64) -> String {
    let operation = &progress.operation;
    let end = if operation.ended_us > 0 { operation.ended_us } else { now_us };
    // Whole seconds: fractions would be the only thing that moves.
    let elapsed = short(Duration::from_secs(end.saturating_sub(operation.begun_us) / 1_000_000));
    if !progress.is_active() {
        return format!("took {elapsed}");
    }
    match progress.eta() {
        _ if operation.state() == v1::OperationState::Paused => format!("{elapsed} so far, paused"),
        Some((left, slowest)) => {
            let slowest = cluster.description.name_of(NodeId(slowest));
            format!("{elapsed} so far, about {} left, {slowest} is the slowest", seconds(left))
        }
        None => format!("{elapsed} so far, ETA unknown"),
    }
}

/// How many moves are in which phase.
#[must_use]
pub(crate) fn phases(progress: &Progress, arrow: char) -> String {
    let count = |state: MoveState| progress.count(state);
    let stalled = match count(MoveState::Stalled) {
        0 => String::new(),
        stalled => format!(" ({stalled} stalled)"),
    };
    let mut text = format!(
        "{} wait {arrow} {} copy{stalled} {arrow} {} verify {arrow} {} covered {arrow} {} moved",
        count(MoveState::Waiting),
        count(MoveState::Copying) + count(MoveState::Stalled),
        count(MoveState::Verifying),
        count(MoveState::Covered),
        count(MoveState::Moved),
    );
    let undone = count(MoveState::Undone);
    if undone > 0 {
        text.push_str(&format!(", {undone} undone"));
    }
    text
}

/// A time that is left, in whole seconds.
#[must_use]
pub(crate) fn seconds(left: Duration) -> String {
    short(Duration::from_secs(left.as_secs().max(1)))
}

/// A rate in whole bytes.
#[must_use]
pub(crate) fn whole(rate: f64) -> u64 {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate above 0; casts saturate")]
    let whole = rate.max(0.0) as u64;
    whole
}

/// To six digits, which is what output shows.
fn rounded(share: f64) -> f64 {
    (share * 1e6).round() / 1e6
}
