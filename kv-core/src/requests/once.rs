//! Whether a write takes effect at its coordinator, when, and what it replaces (rule A7).
//!
//! Every replacement leads from a lower stamp to a higher one. So of all writes that replace each other, wherever and in
//! whatever order, the one with the highest stamp stays.

use xxhash_rust::xxh3::xxh3_64;

use crate::config::{ClusterConfig, Mode};
use crate::error::{Kind, RequestError};
use crate::event;
use crate::message::{Attempt, KeyRequest, Operation};
use crate::rule::Rule;
use crate::shell::ClockState;
use crate::types::{Hlc, RequestId};
use crate::version::{Conflict, ContextToken, Record, Replaces};
use crate::wiring::Ctx;

/// A write that has come to its coordinator.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    pub(super) request: RequestId,
    pub(super) attempt: Attempt,
    /// What its client was shown; `None`: it is blind.
    pub(super) token: Option<&'a ContextToken>,
}

/// What is to be done.
#[derive(Clone, Copy, Debug)]
pub(super) enum Verdict<'a> {
    /// Nothing: it has taken effect already or, where the last writer wins, something later has.
    Done,
    /// It is written so.
    Write { request: RequestId, written: Hlc, replaces: Replaces<'a> },
}

/// Gives a write that came without an identity one. Nobody repeats it.
pub(super) fn identify(ctx: &mut Ctx<'_>, request: &mut KeyRequest) {
    let KeyRequest { keyspace, key, operation, .. } = request;
    if let Operation::Write { request: id @ None, attempt, context, .. } = operation {
        // Above what its client was shown, so that no owner has to refuse it for that.
        let token = context.as_ref().and_then(|context| ContextToken::decode(context, *keyspace, key).ok());
        let shown = token.map_or(Hlc::default(), |token| credible(ctx, token.latest));
        *id = Some(own(ctx, shown));
        *attempt = Attempt::First;
    }
}

/// An identity of this loop's own, with a stamp above `seen`.
pub(super) fn own(ctx: &mut Ctx<'_>, seen: Hlc) -> RequestId {
    let (stamp, is_far) = ctx.kernel.clock.name(ctx.kernel.now.wall, seen, ctx.view.cluster.clock_skew_max);
    RequestId { stamp, client: client(ctx, is_far) }
}

/// Whether this loop has made the identity, in this run of the node.
pub(super) fn is_own(ctx: &Ctx<'_>, request: RequestId) -> bool {
    [false, true].into_iter().any(|is_far| request.client == client(ctx, is_far))
}

/// The client for which this loop draws, unlike any other: its timestamps never repeat within one run of the node, unless its clock is
/// set back, and then it is another client. So it is for stamps from too far ahead (`is_far`): the clock comes to them later.
fn client(ctx: &Ctx<'_>, is_far: bool) -> u64 {
    let (incarnation, place) = (ctx.view.incarnation, ctx.view.place);
    let mut bytes = [0; 23];
    bytes[..8].copy_from_slice(&incarnation.store.0.to_le_bytes());
    bytes[8..12].copy_from_slice(&incarnation.boot.to_le_bytes());
    bytes[12..16].copy_from_slice(&incarnation.nonce.to_le_bytes());
    bytes[16..18].copy_from_slice(&place.index.to_le_bytes());
    bytes[18..22].copy_from_slice(&ctx.kernel.clock.set_back().to_le_bytes());
    bytes[22] = u8::from(is_far);
    xxh3_64(&bytes).max(1)
}

/// Judges a write by what its coordinator holds.
pub(super) fn judge<'a>(
    ctx: &mut Ctx<'_>,
    asked: Asked<'a>,
    conflict: Conflict,
    before: Option<&Record>,
) -> Result<Verdict<'a>, RequestError> {
    let now = Hlc::at(ctx.kernel.now.wall);
    let is_old = asked.request.stamp.plus(ctx.view.cluster.repeat_within) < now;
    // What this node has promised not to write is older still, by the clock that it had then (rule A6).
    let is_settled = asked.request.stamp <= ctx.kernel.clock.floor();
    if (is_old && ctx.view.keep(Rule::RefuseOldRequests)) || is_settled {
        return Err(too_old(&ctx.view.cluster, asked.request, now));
    }
    accept_stamp(ctx, asked.request, asked.attempt)?;
    if before.is_some_and(|record| record.knows(asked.request)) && ctx.view.keep(Rule::RememberRequests) {
        return Ok(Verdict::Done);
    }
    if asked.token.is_some_and(|token| token.knows(asked.request)) {
        // What it wrote may not be held here, so nothing can be confirmed.
        return Err(RequestError::invalid(
            "the context has been shown the write of this same request; a repetition carries the context of the first attempt, and \
             another write an id of its own",
        ));
    }
    match conflict {
        Conflict::Siblings => beside_others(ctx, asked, before),
        Conflict::Lww => the_latest(ctx, asked, before),
    }
}

/// Whether a request needs a clock that is right, and this node's is not: a timestamp decides whether the write stays, or when its value
/// expires.
pub(super) fn needs_right_clock(ctx: &Ctx<'_>, request: &KeyRequest) -> bool {
    let Operation::Write { ttl, .. } = &request.operation else { return false };
    let decides = || ctx.view.mode(request.keyspace).is_some_and(Mode::timestamps_decide);
    ctx.view.clock.is_off() && (ttl.is_some() || decides()) && ctx.view.keep(Rule::RightClockWrites)
}

/// What a client is told whose request needs a right clock.
pub(super) fn clock_is_off(ctx: &Ctx<'_>) -> String {
    let ClockState::Off { ahead_us } = ctx.view.clock else { return String::new() };
    format!(
        "the clock of {} is {} those of most members, {} ms are allowed, and timestamps decide what the request does; nothing \
         was done; set the clock (for instance with NTP)",
        ctx.me(),
        event::ahead(ahead_us),
        ctx.view.cluster.clock_skew_max.as_millis()
    )
}

/// A stamp from too far ahead is refused; any other sets this node's clock.
pub(super) fn accept_stamp(ctx: &mut Ctx<'_>, request: RequestId, attempt: Attempt) -> Result<(), RequestError> {
    if is_own(ctx, request) {
        return Ok(());
    }
    let (wall, limit) = (ctx.kernel.now.wall, ctx.view.cluster.clock_skew_max);
    ctx.kernel.clock.observe(wall, request.stamp, limit).map_err(|skew| {
        let message = format!("the request's stamp is no time: {skew}; nothing was done");
        match attempt {
            Attempt::First | Attempt::Hedge => RequestError::stamp(ctx.kernel.clock.reading(wall), message),
            Attempt::Plain | Attempt::Repeated => RequestError::unavailable(message),
        }
    })
}

/// What stands beside a write that does not replace it stays.
fn beside_others<'a>(
    ctx: &mut Ctx<'_>,
    asked: Asked<'a>,
    before: Option<&Record>,
) -> Result<Verdict<'a>, RequestError> {
    let Asked { mut request, attempt, token } = asked;
    let latest = latest(ctx, asked, before);
    if is_own(ctx, request) {
        // It was sent nowhere yet: the stamp is drawn when what it replaces is known.
        request = own(ctx, credible(ctx, latest));
    }
    let replaces = match token {
        Some(token) => {
            let shown =
                if ctx.view.keep(Rule::TimestampAboveSeen) { credible(ctx, token.latest) } else { Hlc::default() };
            if request.stamp <= shown {
                return Err(match attempt {
                    Attempt::First | Attempt::Hedge => overtaken(request, ctx.newest(shown)),
                    Attempt::Plain | Attempt::Repeated => not_above_context(request, shown),
                });
            }
            Replaces::Shown(token)
        }
        None => {
            let replaces = blind(ctx, request, attempt);
            let siblings = before.map_or(&[][..], |record| &record.siblings);
            let stays = |sibling: &&_| !replaces.replaces(request, sibling);
            if matches!(attempt, Attempt::First | Attempt::Hedge)
                && let Some(newest) = siblings.iter().filter(stays).map(|sibling| sibling.written).max()
                && credible(ctx, newest) == newest
            {
                return Err(overtaken(request, ctx.newest(newest)));
            }
            replaces
        }
    };
    let stamp = if ctx.view.keep(Rule::WrittenAtStamp) { request.stamp } else { Hlc::at(ctx.kernel.now.wall) };
    Ok(Verdict::Write { request, written: stamp.max(latest.next()), replaces })
}

/// What a write without a context replaces.
fn blind(ctx: &Ctx<'_>, request: RequestId, attempt: Attempt) -> Replaces<'static> {
    let apart = ctx.view.cluster.clocks_apart_max();
    if !ctx.view.keep(Rule::BlindReplacesEarlier) {
        Replaces::Held
    } else if (matches!(attempt, Attempt::Repeated | Attempt::Hedge) || is_late(ctx, request))
        && ctx.view.keep(Rule::RepetitionSparesRecent)
    {
        Replaces::LongEarlier(apart)
    } else {
        Replaces::Earlier
    }
}

/// Whether a write has been under way for so long that it is not taken for a first attempt, whatever it says.
fn is_late(ctx: &Ctx<'_>, request: RequestId) -> bool {
    request.stamp.plus(ctx.view.cluster.clocks_apart_max()) < Hlc::at(ctx.kernel.now.wall)
}

/// Where the last writer wins: the order of stamps is the order of writes, whoever carries them out when.
fn the_latest<'a>(ctx: &mut Ctx<'_>, asked: Asked<'a>, before: Option<&Record>) -> Result<Verdict<'a>, RequestError> {
    let Asked { mut request, attempt, token } = asked;
    let wall = ctx.kernel.now.wall;
    let latest = latest(ctx, asked, before);
    if let Some(token) = token
        && let Err(skew) = ctx.kernel.clock.observe(wall, token.latest, ctx.view.cluster.clock_skew_max)
    {
        return Err(RequestError::unavailable(skew.to_string()));
    }
    if is_own(ctx, request) {
        request = own(ctx, latest);
    }
    let replaces = token.map_or(Replaces::Earlier, Replaces::Shown);
    let attempt = if attempt == Attempt::Plain && is_late(ctx, request) { Attempt::Repeated } else { attempt };
    let written = if request.stamp > latest {
        if ctx.view.keep(Rule::WrittenAtStamp) { request.stamp } else { Hlc::at(wall).max(latest.next()) }
    } else {
        match attempt {
            // Whether it has taken effect under its stamp is not known here. Above the stamp it would take effect again.
            Attempt::First | Attempt::Hedge | Attempt::Plain if credible(ctx, latest) == latest => {
                return Err(overtaken(request, ctx.newest(latest)));
            }
            Attempt::Repeated if ctx.view.keep(Rule::RepetitionAtStamp) => {
                let held = before.map(Record::latest).unwrap_or_default();
                if request.stamp <= held {
                    return Ok(Verdict::Done);
                }
                return Err(not_above_context(request, latest));
            }
            Attempt::First | Attempt::Hedge | Attempt::Plain | Attempt::Repeated => ctx.kernel.clock.tick(wall, latest),
        }
    };
    Ok(Verdict::Write { request, written, replaces })
}

/// The latest timestamp that a write must exceed (rule A8).
fn latest(ctx: &Ctx<'_>, asked: Asked<'_>, before: Option<&Record>) -> Hlc {
    if !ctx.view.keep(Rule::TimestampAboveSeen) {
        return Hlc::default();
    }
    let held = before.map(Record::latest).unwrap_or_default();
    asked.token.map_or(held, |token| token.latest.max(held))
}

/// A timestamp, unless it is from too far ahead: that says nothing of the order of writes.
fn credible(ctx: &Ctx<'_>, at: Hlc) -> Hlc {
    if at <= ctx.latest_credible() { at } else { Hlc::default() }
}

fn millis(from: Hlc, to: Hlc) -> u64 {
    to.wall().0.saturating_sub(from.wall().0) / 1000
}

fn too_old(cluster: &ClusterConfig, request: RequestId, now: Hlc) -> RequestError {
    RequestError::new(
        Kind::Unknown,
        format!(
            "the outcome is unknown: the request is {} ms old by this node's clock, and one older than {} ms may not be repeated; this \
             attempt wrote nothing, an earlier one may have; read the key, then decide, and write with a new request id",
            millis(request.stamp, now),
            cluster.repeat_within.as_millis()
        ),
    )
}

fn overtaken(request: RequestId, newest: Hlc) -> RequestError {
    RequestError::stamp(
        newest,
        format!(
            "the request's stamp is not above that of a value which stands already, and is {} ms later; nothing was done; \
             draw a new request id with a stamp above the newest timestamp of this answer",
            millis(request.stamp, newest)
        ),
    )
}

fn not_above_context(request: RequestId, shown: Hlc) -> RequestError {
    RequestError::invalid(format!(
        "the request's stamp is {} ms before the newest timestamp that its context has shown; nothing was done; draw a new \
         request id with a stamp above every timestamp that the client was shown",
        millis(request.stamp, shown)
    ))
}
