//! What `plan` and `relocate` are told alike.

use super::target::{LatencyArg, Target};
use crate::place::PlaceArg;
use crate::range::RangeArg;
use crate::scrub::rate::RateArg;
use clap::Args;
use std::fmt;
use std::str::FromStr;

/// From where a volume shall be fast, how fast, and what must hold meanwhile and afterwards.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct PlanArgs {
    /// The host that uses the volume (default: the one that has it attached)
    #[arg(long, value_name = "HOST")]
    pub(crate) host: Option<String>,
    /// What latency is wanted there: "p99-read<=2ms", "p50-write<=1ms", "p99<=3ms" (both); may be
    /// given several times
    #[arg(long, value_name = "TARGET")]
    pub(crate) target: Vec<Target>,
    /// Copies that each chunk must have in a site, for example site-b:1. Never fewer copies in all
    /// than now; without this, also in no fewer sites than now
    #[arg(long, value_delimiter = ',', value_name = "SITE:COPIES")]
    pub(crate) copies: Vec<PlaceArg>,
    /// Copies may lie in these sites only; others are moved out
    #[arg(long, value_delimiter = ',', value_name = "SITE")]
    pub(crate) only_sites: Vec<String>,
    /// Move all copies to this site, but those that --copies wants elsewhere
    #[arg(long, visible_alias = "to", value_name = "SITE")]
    pub(crate) to_site: Option<String>,
    /// Move everything off these nodes (names or uuids)
    #[arg(long, value_delimiter = ',', value_name = "NODE")]
    pub(crate) evacuate: Vec<String>,
    /// Only chunks of this part may move
    #[arg(long, default_value = "all")]
    pub(crate) range: RangeArg,
    /// How fast the data may be copied
    #[arg(long, value_name = "SIZE/s")]
    pub(crate) rate: Option<RateArg>,
    /// Round trip to a node, or to all of a site, from where nothing was measured: NODE=2ms
    #[arg(long, value_delimiter = ',', value_name = "NODE|SITE=LATENCY")]
    pub(crate) assume: Vec<AssumeArg>,
    /// `prepare-move`: copies are added, none is taken away
    #[arg(skip)]
    pub(crate) only_add: bool,
    /// `prepare-move --share`: in place of what the targets need
    #[arg(skip)]
    pub(crate) share: Option<f64>,
}

/// One `who=latency` of `--assume`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct AssumeArg {
    /// A node or a site.
    pub(crate) who: String,
    pub(crate) latency: LatencyArg,
}

impl FromStr for AssumeArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (who, latency) = text
            .split_once('=')
            .filter(|(who, _)| !who.trim().is_empty())
            .ok_or_else(|| format!("{text:?} is no assumption; write NODE=2ms or SITE=2ms"))?;
        Ok(Self {
            who: who.trim().into(),
            latency: latency.parse()?,
        })
    }
}

impl fmt::Display for AssumeArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.who, self.latency)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assumptions() {
        let assume: AssumeArg = "site-b=10ms".parse().unwrap();
        assert_eq!((assume.who.as_str(), assume.latency.us), ("site-b", 10_000));
        assert_eq!(assume.to_string(), "site-b=10ms");
        for bad in ["site-b", "=2ms", "site-b=fast"] {
            assert!(bad.parse::<AssumeArg>().is_err(), "{bad}");
        }
    }
}
