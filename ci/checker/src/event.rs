//! The lines of a history.

use serde::{Deserialize, Serialize};

/// What a sector was read as.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum SectorValue {
    /// The write with this id; 0: all zeros.
    Write(u64),
    /// Neither: two writes mixed, damaged, or another sector's content.
    Torn {
        /// What was found, for the explanation.
        torn: String,
    },
}

/// What a guest asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Kind {
    /// Read a range; its `ok` carries the values.
    Read {
        /// Volume.
        volume: String,
        /// First sector.
        sector: u64,
        /// Sectors.
        count: u32,
    },
    /// Write a range: every sector gets the value `write`.
    Write {
        /// Volume.
        volume: String,
        /// First sector.
        sector: u64,
        /// Sectors.
        count: u32,
        /// The value.
        write: u64,
        /// The front's token.
        #[serde(default)]
        token: u32,
        /// Durable when acknowledged.
        #[serde(default)]
        fua: bool,
    },
    /// Discard or write-zeroes: every sector gets zero.
    Zero {
        /// Volume.
        volume: String,
        /// First sector.
        sector: u64,
        /// Sectors.
        count: u32,
        /// The front's token.
        #[serde(default)]
        token: u32,
        /// Durable when acknowledged.
        #[serde(default)]
        fua: bool,
    },
    /// Flush of a volume.
    Flush {
        /// Volume.
        volume: String,
    },
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "event")]
pub enum Event {
    /// A guest operation starts.
    Invoke {
        /// Time.
        t: u64,
        /// Names the operation; unique.
        op: u64,
        /// What.
        #[serde(flatten)]
        kind: Kind,
    },
    /// It succeeded.
    Ok {
        /// Time.
        t: u64,
        /// Which.
        op: u64,
        /// Reads: one per sector.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        values: Vec<SectorValue>,
    },
    /// The guest saw an error: the interval ends.
    Fail {
        /// Time.
        t: u64,
        /// Which.
        op: u64,
    },
    /// An open operation was taken over by a front with this token.
    Reissue {
        /// Time.
        t: u64,
        /// Which.
        op: u64,
        /// The new token.
        token: u32,
    },
    /// From now on no write under a lower token can take effect.
    Fenced {
        /// Time.
        t: u64,
        /// Volume.
        volume: String,
        /// The token that holds.
        token: u32,
    },
    /// All nodes lost power.
    PowerCut {
        /// Time.
        t: u64,
    },
    /// Content of one replica, read directly at quiescence.
    Replica {
        /// Time.
        t: u64,
        /// Volume.
        volume: String,
        /// Where.
        node: String,
        /// First sector.
        sector: u64,
        /// One per sector.
        values: Vec<SectorValue>,
    },
}

impl Event {
    /// Its time.
    #[must_use]
    pub fn time(&self) -> u64 {
        match self {
            Event::Invoke { t, .. }
            | Event::Ok { t, .. }
            | Event::Fail { t, .. }
            | Event::Reissue { t, .. }
            | Event::Fenced { t, .. }
            | Event::PowerCut { t }
            | Event::Replica { t, .. } => *t,
        }
    }
}
