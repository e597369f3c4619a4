//! The protocol rules that a test can switch off one at a time, to show that the simulator's checkers notice.
//!
//! Without the feature `mutation` every rule holds and nothing can change that.

/// A rule of the protocol, named in docs/protocol.md.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// D1: an answer that depends on a write waits until the write is durable.
    SyncBeforeReply,
    /// A1: the first dot after a boot has a fresh actor.
    FreshActorAfterBoot,
    /// A1: the first dot in a hint has a fresh actor.
    FreshActorPerHint,
    /// D2: a node whose store was lost is refilled before it acknowledges or answers.
    RefillLostStore,
    /// D2: it takes the agreed state or a majority of the members to make a node give up its store.
    ProvenClaims,
    /// D2: a store is known by the boot that it has shown, not by how many it counts.
    ListOfBoots,
    /// D2: a boot that ends before what the store has shown of it is an older copy's.
    EndOfBoot,
    /// D2: a node tells its peers every second how far its store is.
    ShowCommits,
    /// D2: what peers have shown is durable within a second.
    RememberShown,
    /// D2: a lost store is refilled from all other owners.
    RefillFromAll,
    /// D2: an owner whose store is in doubt may still be asked for what it holds.
    PullByIdentity,
    /// D4: only members under their agreed stores get a session.
    MembersOnly,
    /// D2: a store is filled only by a layout that lists it.
    ListedStore,
    /// A2: replication sends the coordinator's whole merged record.
    WholeRecord,
    /// A read sends what it merged to the replicas that lack it.
    ReadRepair,
    /// A7: a request id that the record already carries gets no new dot.
    RememberRequests,
    /// A7: a version is written no earlier than at the stamp of its request.
    WrittenAtStamp,
    /// A7: a request that is older than repetitions may be is refused.
    RefuseOldRequests,
    /// A7: a record remembers every request whose value a write replaced.
    RetireReplaced,
    /// A7: a context token names the requests whose values were shown.
    TokensNameShown,
    /// A7: a write with a context replaces what was shown under whatever dot it stands.
    ReplaceById,
    /// A7: a write without a context replaces only what comes before it in the order of requests.
    BlindReplacesEarlier,
    /// A7: a repetition without a context spares what may have been written after its first attempt took effect.
    RepetitionSparesRecent,
    /// A7: what turns up of a retired request is dropped.
    DropRetired,
    /// A7: retired requests travel with the record.
    RetiredTravel,
    /// A7: retired requests are forgotten only when the partition has settled since.
    ForgetWhenSettled,
    /// A7: where the last writer wins a repetition counts from its stamp.
    RepetitionAtStamp,
    /// A5: a hint stays until every current owner has confirmed it.
    KeepHintUntilConfirmed,
    /// A8: a new write has a later timestamp than all that its coordinator sees on the record.
    TimestampAboveSeen,
    /// A8: a node whose clock is off coordinates nothing that timestamps decide.
    RightClockWrites,
    /// A8: a node whose clock is off goes by the time of the other members.
    TimeOfMajority,
    /// A8: nothing expires for good before the node's clock is known to be right.
    SweepWhenSure,
    /// A8: a clock goes back with a wall clock that was set back.
    ClockGoesBack,
    /// A8: a write is not lost to a timestamp from too far ahead that its coordinator had not seen.
    WriteAboveTooFar,
    /// A9: a fallback gets a write only in place of an owner that is down.
    FallbackOnlyForDown,
    /// A write that some owner has not confirmed leaves a missed-write marker.
    MarkMissedWrites,
    /// E1: a layout is durable before the node acts on it.
    DurableLayout,
    /// E2: what is asked at another epoch than that of the partition's entry is refused.
    FenceByEpoch,
    /// A3: while a partition migrates, quorums are needed among the old and among the new owners.
    BothQuorums,
    /// A4: a record is dropped by a node that left only when every current owner holds it.
    HandOverBeforeDrop,
    /// E3: progress, receipts and completeness count only for the ownership for which they were made.
    SinceCounts,
    /// M1: who enters is covered by as many old owners as the entry demands.
    CoveredByMajority,
    /// M1: a source of a copy acts on the joint epoch before it answers.
    FencedSource,
    /// M2: a copy's progress is durable no earlier than its data.
    CursorBehindData,
    /// M2: a source that was left midway does not count as covered.
    CoverageOfEachSource,
    /// Owners compare their copies when a member may have died during a write to them.
    CompareAfterCrash,
    /// R1: a page of a scan ends where the first replica that has more has stopped.
    PageEndsWhereOneStops,
    /// R2: counts do not look at clocks: a value counts until it is swept.
    CountsIgnoreClocks,
    /// A forwarded request on a keyspace that is not known here is refused as behind.
    UnknownIsBehind,
    /// Requests go on without a peer that has stalled.
    MoveOnFromStalled,
    /// A forwarded request that is not answered for a while goes to another owner, too.
    HedgeForwards,
    /// A forwarded write that no second owner may put in the place of recent values goes beside them if the first owner has stalled.
    HedgeGoesBeside,
    /// M4: what was left is dropped only after the layout that says so is durable.
    DropAfterAdoption,
    /// A9: a fallback counts only in the place of an owner that cannot be reached.
    FallbackInPlaceOfAbsent,
    /// K1: nothing of a dropped keyspace is taken any more.
    RefuseDropped,
    /// K1: a list of keyspaces takes the place of an older one only.
    NewestKeyspaces,
    /// K2: the removal of a dropped keyspace goes on after a restart.
    ResumePurge,
    /// L1: an answer that needs several loops waits for all of them.
    AskEveryLoop,
    /// A6: the owners are compared before a watermark is adopted.
    CompareBeforeSettled,
    /// A6: a member that holds hints of a partition hinders its barrier.
    HintsHinder,
    /// A6: a member that may hold residue of a partition hinders its barrier.
    ResidueHinders,
    /// A6: every member confirms, and one that is down hinders the barrier.
    EveryMemberConfirms,
    /// A6: all that take part in a barrier act on the same entry of the partition.
    SettleInOneEpoch,
    /// A6: from before the owners are compared until the watermark is adopted, they take nothing at or below it but from each other.
    HoldWhileSettling,
    /// A6: only what is older than a minimum age, by the clock of every member, settles.
    AgeBeforeSettled,
    /// A6: a watermark is durable before anything is collected by it.
    WatermarkBeforeCollection,
    /// A6: what is at or below the watermark of a copy that does not hold it is not brought back to it.
    CollectedStaysGone,
    /// A6: what an old copy holds at or below the watermark of a copy that does not hold it goes when the old one is filled.
    OldCopyLearnsOfCollection,
    /// D2: a value that an old copy loses since it was collected elsewhere is set aside.
    SetAside,
    /// A6: a copy takes over the watermarks of those from which it was filled.
    WatermarkTravels,
    /// A6: who has confirmed writes nothing at or below the watermark, after a restart neither.
    WriteAboveConfirmed,
    /// C1: a replica accepts nothing below what it has promised.
    KeepPromises,
    /// C2: what another replica has accepted is not taken over below a promise.
    InstallAbovePromise,
    /// C3: a read is done in one round only if a majority has accepted one ballot.
    ReadWantsAgreement,
    /// C4: what a majority may have accepted is proposed on.
    ProposeLatest,
    /// C4: no proposer uses a ballot twice.
    CountBallots,
    /// C5: a change that was made is not made again.
    RememberChanges,
    /// C5: a request that may have been forgotten is not taken for new.
    RefuseForgotten,
    /// C5: a request that has failed once, and may be tried again, fails for good.
    RememberFailures,
    /// C6: what is told of a register is held by a majority under one ballot.
    ConfirmBeforeFailing,
    /// C6: what was proposed and is given up is replaced before that is told.
    WithdrawBeforeFailing,
    /// C7: what a register had promised that is removed is promised for all of which nothing is held.
    RaiseFloor,
    /// C8: what has expired is deleted before it is told to be absent.
    DeleteExpired,
}

/// Which rules hold.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    #[cfg(any(test, feature = "mutation"))]
    broken: Vec<Rule>,
}

impl Rules {
    /// Whether `rule` holds.
    #[cfg(any(test, feature = "mutation"))]
    pub(crate) fn keep(&self, rule: Rule) -> bool {
        !self.broken.contains(&rule)
    }

    /// Whether `rule` holds: always.
    #[cfg(not(any(test, feature = "mutation")))]
    #[allow(clippy::unused_self, reason = "the signature is the same with the feature")]
    pub(crate) fn keep(&self, _rule: Rule) -> bool {
        true
    }

    #[cfg(any(test, feature = "mutation"))]
    pub(crate) fn break_rule(&mut self, rule: Rule) {
        self.broken.push(rule);
    }
}
