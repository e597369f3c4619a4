//! What happened in a run: a checker that never met a fault has checked nothing.

use std::fmt;

macro_rules! counts {
    ($($(#[$doc:meta])* $name:ident => $text:literal,)*) => {
        /// What a run counts.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Count {
            $($(#[$doc])* $name,)*
        }

        impl Count {
            /// All of them, in the order of the report.
            pub(crate) const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The name in the report.
            pub(crate) fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

counts! {
    /// Processes that were killed.
    Crashes => "crashes",
    /// Processes that started again.
    Recoveries => "recoveries",
    /// Batches that a crash lost.
    LostBatches => "lost batches",
    /// Batches that survived a crash although an earlier one did not.
    Holes => "crashes that lost a batch before a surviving one",
    /// Frames that the network lost.
    Drops => "dropped frames",
    /// Frames that arrived twice.
    Duplicates => "duplicated frames",
    /// Frames that a later one overtook.
    Reorders => "reordered frames",
    /// Frames of closed sessions.
    StaleFrames => "frames of closed sessions",
    /// Links that were cut in both directions.
    Partitions => "partitions",
    /// Links that were cut in one direction.
    OneWayPartitions => "one-way partitions",
    /// Sessions that a node gave up.
    SessionsLost => "sessions lost",
    /// Processes that were stopped for a while.
    Freezes => "freezes",
    /// Forwarded requests that went to another owner as well.
    Hedges => "hedged forwards",
    Lags => "parts of nodes that lagged",
    /// Disks that were replaced by empty ones.
    Wipes => "wipes",
    /// Starts that failed before the node served.
    FailedStarts => "failed starts",
    /// Operations on registers, by their ends.
    RegisterGets => "gets of registers",
    RegisterWrites => "writes of registers",
    RegisterConditions => "conditions that did not hold",
    RegisterRefusals => "operations on registers refused",
    RegisterUnknown => "operations on registers of unknown outcome",
    RegisterRepetitions => "repetitions of operations on registers",
    RegistersCollected => "registers collected",
    RegistersRead => "registers read by scans",
    /// Disks that were replaced by an older copy.
    RollBacks => "roll-backs",
    /// Roll-backs to a copy that was taken in the boot that ran then.
    RollBacksOfBoot => "roll-backs within a boot",
    /// Second processes on copies of disks, which peers have met.
    Twins => "twin stores",
    /// Streams with owners whose stores are in doubt.
    Doubts => "streams with stores in doubt",
    /// Roll-backs that were noticed and proven.
    RollBacksNoticed => "roll-backs noticed",
    /// Greetings of somebody who was no member.
    Strangers => "strangers",
    /// Untrue claims of a member about the store of another.
    Lies => "lies about stores",
    /// Syncs that failed.
    FailedSyncs => "failed syncs",
    /// Wall clocks that were set, within the allowed skew.
    ClockJumps => "clock jumps",
    /// Wall clocks that were set beyond the allowed skew.
    ClockSkews => "clocks beyond the allowed skew",
    /// Newer layouts.
    Epochs => "new epochs",
    /// Operations that have begun.
    Operations => "operations",
    /// Operations that were cancelled.
    Cancels => "operations cancelled",
    /// Machines that were destroyed and declared dead.
    Deaths => "machines declared dead",
    /// Partitions that were cut over.
    CutOvers => "partitions cut over",
    /// Receipts of copies.
    Receipts => "receipts",
    /// Copies that waited and were begun again on request.
    CopiesRetried => "copies begun again on request",
    /// Records dropped after they were handed over.
    Dropped => "records dropped by nodes that left",
    /// Records whose tombstones were the first of their key to be collected.
    Collected => "records collected",
    /// Keyspaces that were created while clients worked.
    KeyspacesCreated => "keyspaces created",
    /// Keyspaces that were dropped.
    KeyspacesDropped => "keyspaces dropped",
    /// Records of dropped keyspaces that were removed.
    Purged => "records of dropped keyspaces removed",
    /// Records restored by comparing owners.
    Compared => "records restored by anti-entropy",
    /// Records restored by pending comparisons.
    Pending => "records restored by pending comparisons",
    /// Partitions refilled.
    Refills => "refills",
    /// Hints and missed-write markers delivered.
    HandedOff => "hints and missed-write markers handed off",
    /// Hints written.
    Hints => "hints written",
    /// Reads that repaired a replica.
    Repairs => "read repairs",
    /// Expired records swept.
    Swept => "expired keys swept",
    /// Requests answered.
    Answered => "requests answered",
    /// Requests forwarded.
    Forwards => "forwarded requests",
    /// Requests for which there were not enough replicas.
    Unavailable => "requests refused as unavailable",
    /// Requests with an unknown outcome.
    Unknown => "requests with unknown outcome",
    /// Requests refused at a bound.
    Exhausted => "requests refused at a bound",
    /// Requests refused for an outdated layout.
    StaleEpochs => "requests refused for an outdated epoch",
    /// Invalid requests refused.
    Invalid => "invalid requests refused",
    /// Retries with the same request id.
    Retries => "retries with the same request id",
    /// Writes that were sent again after they had ended.
    Repetitions => "repetitions of what had ended",
    /// Writes that were refused for their stamps.
    StampedAnew => "writes with another stamp",
    /// Writes without a request id.
    Unnamed => "writes without a request id",
    /// Reads that returned siblings.
    Siblings => "reads of siblings",
    /// Strict reads that were checked against earlier acknowledged writes.
    StrictReads => "strict reads checked",
    /// Pages of scans.
    Pages => "scan pages",
}

/// The counts of one run, or the sum of several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Report {
    counts: Vec<u64>,
    /// Virtual time, in microseconds.
    pub(crate) duration: u64,
    /// Events handled.
    pub(crate) events: u64,
}

impl Report {
    pub(crate) fn new() -> Self {
        Self { counts: vec![0; Count::ALL.len()], duration: 0, events: 0 }
    }

    pub(crate) fn add(&mut self, what: Count, by: u64) {
        self.counts[what as usize] += by;
    }

    pub(crate) fn get(&self, what: Count) -> u64 {
        self.counts[what as usize]
    }

    pub(crate) fn join(&mut self, other: &Self) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        self.duration += other.duration;
        self.events += other.events;
    }

    /// The kinds that never happened.
    pub(crate) fn missing(&self) -> Vec<&'static str> {
        Count::ALL.iter().filter(|what| self.get(**what) == 0).map(|what| what.name()).collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:>10} events in {} ms of virtual time", self.events, self.duration / 1000)?;
        for what in Count::ALL {
            writeln!(f, "{:>10} {}", self.get(*what), what.name())?;
        }
        Ok(())
    }
}
