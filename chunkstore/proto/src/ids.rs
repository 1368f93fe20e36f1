//! Names of things on the wire and in metadata, each its own type so that they cannot be mixed.

use core::fmt;
use core::str::FromStr;
use serde::{Deserialize, Serialize};

macro_rules! id16 {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
        pub struct $name(pub [u8; 16]);

        impl $name {
            /// The value that names nothing.
            pub const NIL: Self = Self([0; 16]);
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                for (index, byte) in self.0.iter().enumerate() {
                    if matches!(index, 4 | 6 | 8 | 10) {
                        f.write_str("-")?;
                    }
                    write!(f, "{byte:02x}")?;
                }
                Ok(())
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }
        impl FromStr for $name {
            type Err = IdParseError;
            fn from_str(text: &str) -> Result<Self, IdParseError> {
                let mut out = [0u8; 16];
                let mut nibbles = 0;
                for c in text.chars().filter(|c| *c != '-') {
                    let digit = c.to_digit(16).ok_or(IdParseError)?;
                    if nibbles == 32 {
                        return Err(IdParseError);
                    }
                    #[allow(clippy::cast_possible_truncation)] // digit < 16
                    { out[nibbles / 2] = out[nibbles / 2] << 4 | digit as u8; }
                    nibbles += 1;
                }
                if nibbles == 32 { Ok(Self(out)) } else { Err(IdParseError) }
            }
        }
        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(d)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

/// Text that is not 32 hexadecimal digits (dashes allowed).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a uuid: 32 hexadecimal digits expected, dashes allowed")]
pub struct IdParseError;

id16!(
    /// A cluster: one metadata store and the nodes formatted for it.
    ClusterId
);
id16!(
    /// A storage node, durable: written into its superblock when it is formatted.
    NodeId
);
id16!(
    /// A volume.
    VolumeId
);
id16!(
    /// One boot of a machine (`/proc/sys/kernel/random/boot_id`): while it stays, completed
    /// O_DIRECT writes cannot have been lost by a process that died.
    BootId
);

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Debug, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// 0-based position of a chunk on its volume.
    ChunkIndex(u32)
);
number!(
    /// 0-based position of a sector inside its chunk.
    SectorInChunk(u16)
);
number!(
    /// Fencing number of an attach; grows by one with each attach. 0: never attached.
    Token(u32)
);
number!(
    /// Number of a volume's replica configuration; every change of the map or of a replica's state
    /// makes a new one.
    Generation(u32)
);
number!(
    /// The front's per-volume write counter under one token; at most [`crate::limits::SEQ_MAX`].
    Seq(u64)
);
number!(
    /// One core's share of a node.
    ShardIndex(u16)
);

/// Version of a sector, compared token first. The zero version means "never written".
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Debug)]
pub struct Version {
    /// Token of the front that stamped it.
    pub token: Token,
    /// That front's write counter.
    pub seq: Seq,
}

impl Version {
    /// Never written.
    pub const ZERO: Self = Self {
        token: Token(0),
        seq: Seq(0),
    };

    /// A version; asserts that `seq` fits what the disk keeps.
    pub fn new(token: Token, seq: Seq) -> Self {
        assert!(
            seq.0 <= crate::limits::SEQ_MAX,
            "sequence {seq} above 48 bits"
        );
        Self { token, seq }
    }
}

/// One run of a node's process. A node that restarts has a new one; the boot tells whether the
/// machine restarted with it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug, Serialize, Deserialize)]
pub struct Incarnation {
    /// Boot of the machine that the process runs on.
    pub boot: BootId,
    /// Counts the starts of this node; kept in its superblock.
    pub start: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuid_text_round_trips_and_rejects_junk() {
        let id = VolumeId([0xa7; 16]);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.to_string().len(), 36);
        for junk in [
            "",
            "abc",
            "g0000000000000000000000000000000",
            &"0".repeat(33),
        ] {
            assert_eq!(junk.parse::<VolumeId>(), Err(IdParseError), "{junk}");
        }
    }

    #[test]
    fn versions_order_by_token_first() {
        let low = Version::new(Token(1), Seq(900));
        let high = Version::new(Token(2), Seq(1));
        assert!(low < high && Version::ZERO < low);
    }
}
