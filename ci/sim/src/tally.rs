//! What happened in a run, counted: faults by kind, and *marks*, rare branches that some run must reach.
//!
//! A simulator that never reaches a branch says nothing about it. The marks below are seen from outside, in
//! frames, replies, recovery reports and maps, so that no production code has to tell.

use std::collections::BTreeMap;

macro_rules! marks {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// A branch that must be reached by some seed.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub enum Mark {
            $($(#[$doc])* $name,)*
        }

        impl Mark {
            /// All of them.
            pub const ALL: &[Mark] = &[$(Mark::$name),*];

            /// What people call it.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Mark::$name => $text,)*
                }
            }
        }
    };
}

marks! {
    /// A write was acknowledged without a replica that is recorded stale.
    DegradedAck = "degraded ack",
    /// A node refused a write of a front that another one has replaced.
    ZombieWriteRefused = "zombie write refused",
    /// The same for a read.
    ZombieReadRefused = "zombie read refused",
    /// A front learned that another one has the volume, and ended.
    FrontFenced = "front fenced",
    /// A node knew a newer map than the front that asked.
    StaleMapAnswered = "STALE_MAP answered",
    /// A node asked for FENCE first.
    NotFencedAnswered = "NOT_FENCED answered",
    /// A metadata transaction found another version than it was made for.
    CasLost = "CAS lost",
    /// A metadata transaction whose outcome was lost had been carried out.
    UnknownLanded = "unknown outcome, landed",
    /// It had not.
    UnknownLost = "unknown outcome, lost",
    /// A front read the map again after a lost outcome, and went on.
    UnknownResolved = "unknown outcome resolved",
    /// A front read an older map than the newest.
    StaleMapRead = "old map read",
    /// A new location was filled and taken into sync.
    JoiningPromoted = "joining promoted",
    /// A node came back and only what was written meanwhile was compared.
    RejoinDifferential = "rejoin differential",
    /// Replicas that left were deleted and forgotten.
    LeavingDropped = "leaving dropped",
    /// Replicas of a chunk with an open intent were compared after an attach.
    IntentReconciled = "intent reconciled",
    /// And differed.
    IntentRolledForward = "intent rolled forward",
    /// A bad sector took a good replica's content.
    RepairDone = "repair done",
    /// The copy rate of a node made a copy wait.
    CopyHeldBack = "copy held back",
    /// A guest's read met a bad sector (and had to be served from another replica).
    BadSectorAnswered = "bad sector answered",
    /// I/O waited for the only in-sync replica.
    LastInSyncHeld = "last in-sync held",
    /// Recovery went back to an older version: its data had not reached the medium.
    SectorReverted = "sector reverted",
    /// Recovery kept content whose record was lost.
    SectorAdopted = "sector adopted",
    /// A sector whose content recovery had adopted was compared with other replicas.
    AdoptedCompared = "adopted sector compared",
    /// A slot was looked through after a crash before it was served.
    SlotSettled = "suspect slot settled",
    /// A copied sector came too late: a newer write was there.
    CopyLost = "copy lost to newer write",
    /// A write came that was not newer than what was there.
    WriteIgnored = "older write ignored",
    /// A node that had only died, not lost power, was taken on as it was.
    RestartTakenOn = "restart taken on",
    /// A shard whose flush had failed refused a change.
    PoisonRefused = "poisoned shard refused",
    /// A node without membership refused.
    NoLeaseRefused = "NO_LEASE answered",
    /// Someone who is no proper peer was refused.
    StrangerRefused = "stranger refused",
    /// A guest gave its requests again to the next front.
    Reissued = "requests reissued",
    /// A volume was detached cleanly and attached elsewhere.
    HandedOver = "handed over",
    /// The log was checkpointed.
    Checkpointed = "checkpoint",
    /// A node that was formatted anew holds in-sync replicas.
    Replaced = "wiped node replaced",
    /// A node without room refused a change.
    NoSpaceAnswered = "NO_SPACE answered",
    /// A node without room refused what was to be copied to it.
    CopyNoSpace = "copy to a full node refused",
    /// A write of the guest ended with ENOSPC.
    GuestNoSpace = "guest told ENOSPC",
    /// A replica on a node without room was recorded stale.
    FullStale = "full node recorded stale",
    /// It came back in sync.
    FullReturned = "full node back in sync",
    /// The guest discarded to make room for replicas.
    RoomGiven = "room given by discards",
    /// Someone who speaks another version of the protocol was refused.
    VersionRefused = "other version refused",
    /// A node that was started in another version takes writes again in the right one.
    VersionReturned = "node back from another version",
    /// A front of another version gave way to one of the right version.
    FrontReturned = "front back from another version",
    /// A location that was being filled was given up.
    JoinCancelled = "join cancelled",
    /// A move came to its end: added, filled, the old location removed.
    Moved = "moved",
    /// The same command was run twice.
    RunTwice = "command run twice",
    /// A move was cancelled.
    MoveCancelled = "move cancelled",
    /// A command was killed in the middle of a move and run again.
    MoveResumed = "move killed and resumed",
    /// `synchronize` ended with everything in sync.
    Synchronized = "synchronized",
    /// `synchronize` was killed and run again.
    SynchronizeAgain = "synchronize killed and run again",
    /// A relocation job came to its end.
    JobFinished = "relocation finished",
    /// By another front than the one that had begun it.
    JobResumed = "relocation resumed",
    /// A relocation job was cancelled.
    JobCancelled = "relocation cancelled",
    /// A front that was cut off with its host was replaced meanwhile.
    HostReplaced = "front of a cut-off host replaced",
}

/// Counts by name.
#[derive(Clone, PartialEq, Eq, Debug, Default, serde::Serialize)]
#[serde(transparent)]
pub struct Tally(BTreeMap<&'static str, u64>);

impl Tally {
    /// One more.
    pub fn hit(&mut self, name: &'static str) {
        self.add(name, 1);
    }

    /// So many more.
    pub fn add(&mut self, name: &'static str, count: u64) {
        *self.0.entry(name).or_default() += count;
    }

    /// All counts of another tally, too.
    pub fn merge(&mut self, other: &Self) {
        for (name, count) in &other.0 {
            self.add(name, *count);
        }
    }

    /// How often.
    #[must_use]
    pub fn get(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// Of everything.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }
}
