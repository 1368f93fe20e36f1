//! The command line: parsing only, nothing is done here.

use crate::bench::args::Bench;
use crate::jobs::args::{ProtectArg, ProtectOrNone, RateOrNone, ShareArg, SpanArg};
use crate::jobs::follow::Hours;
use crate::place::PlaceArg;
use crate::range::RangeArg;
use crate::relocate::args::PlanArgs;
use crate::scrub::rate::RateArg;
use crate::units::ByteSize;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Administration of UKAI: clusters, volumes, where their data lies, nodes.
#[derive(Parser, Debug)]
#[command(
    name = "ukai-tools",
    version,
    after_help = "Exit codes: 0 done; 1 refused or failed; 2 malformed command line, size, range or name; \
                  3 metadata store unreachable; 4 no such volume, node or file; \
                  5 in use (name taken, attached, changed by someone else meanwhile); \
                  6 a scrub left faults as they are; 7 interrupted while looking on, the work goes on.\n\
                  Sizes: 10GiB, 1.5TiB, 4096 (bytes). Ranges: 0-64GiB (end not included), 64GiB- (to the end), \
                  chunks:0-15 (both included), all."
)]
pub(crate) struct Cli {
    /// Metadata store: sqlite:/path/meta.db or zk:host:2181,host2:2181/chroot [env: UKAI_META]
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) meta: Option<String>,
    /// Print JSON instead of tables (errors too, on standard error)
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) noun: Noun,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Noun {
    /// The cluster as a whole
    #[command(subcommand)]
    Cluster(ClusterVerb),
    /// Virtual disks: create, look at, place, copy in and out
    #[command(subcommand)]
    Volume(VolumeVerb),
    /// Storage nodes
    #[command(subcommand)]
    Node(NodeVerb),
    /// Verify a volume's data on all its nodes, compare the replicas, repair what is wrong
    Scrub(Scrub),
    /// Measure the round trips from this host to the nodes, for `plan`
    Probe(Probe),
    /// Counters and latencies of a volume: of its front, if it is attached, and of its nodes
    Stats(VolumeName),
    /// Measure a volume from this host with a load of its own, in this process, through what serves guests but without
    /// a device; the volume must not be attached
    Bench(Box<Bench>),
    /// How fast a volume is, or would be, from a host, and the least to move to make it faster; moves nothing
    Plan(Plan),
    /// What would happen if sites or nodes were lost; exit code 1 if anything would not be there any more
    Whatif(Whatif),
    /// Move a volume's data while it is in use: a job that its front runs, and that survives the death of anything
    Relocate(Box<Relocate>),
    /// Before a virtual machine moves to another host: add copies of the hot part of its volume near there, and take
    /// none away
    PrepareMove(Box<PrepareMove>),
    /// Relocations: look at them, pause, resume, cancel, change their limits
    #[command(subcommand)]
    Job(JobVerb),
}

#[derive(Args, Debug)]
pub(crate) struct Relocate {
    /// Names of volumes
    #[arg(value_name = "VOLUME", required_unless_present = "all")]
    pub(crate) volume: Vec<String>,
    /// All volumes
    #[arg(long, conflicts_with = "volume")]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) ask: PlanArgs,
    /// No plan: the data shall lie on exactly these nodes (names or uuids)
    #[arg(long, value_delimiter = ',', value_name = "NODE",
          conflicts_with_all = ["target", "copies", "only_sites", "to_site", "evacuate", "assume"])]
    pub(crate) node: Vec<String>,
    /// No plan: copies beyond those that the volume was made with go, those that are slow from the host first
    /// (after `prepare-move`, from whichever host the volume is used in the end)
    #[arg(long, conflicts_with_all = ["node", "target", "copies", "only_sites", "to_site", "evacuate"])]
    pub(crate) drop_surplus: bool,
    /// Stay, and move a volume's data whenever a target has been broken for two looks on the host that has it attached
    /// then; one job per volume at a time. Ends on SIGTERM or Ctrl-C, jobs go on
    #[arg(long, conflicts_with_all = ["host", "node", "drop_surplus", "deadline", "detach_from_terminal"])]
    pub(crate) follow: bool,
    /// With --follow: the only hours, UTC, in which a move is begun (22:00-06:00)
    #[arg(long, requires = "follow", value_name = "HOURS")]
    pub(crate) quiet_hours: Option<Hours>,
    /// With --follow: time between looks (default 60s)
    #[arg(long, requires = "follow", value_name = "TIME")]
    pub(crate) every: Option<SpanArg>,
    /// With --follow: one look, which is believed at once, and end
    #[arg(long, requires = "follow")]
    pub(crate) once: bool,
    /// What the guest's 99th percentile may become: "p99<=3ms", "+20%" (above what it was before), or both:
    /// "p99<=3ms|+20%". Copies slow down at once when it is exceeded
    #[arg(long, value_name = "PROTECTION")]
    pub(crate) protect: Option<ProtectArg>,
    /// Be copied within this time (2h): then --protect gives way as far as needed, --rate never does
    #[arg(long, value_name = "TIME")]
    pub(crate) deadline: Option<SpanArg>,
    /// Keep the old copies, in sync, for so long after everything is copied (10m)
    #[arg(long, value_name = "TIME")]
    pub(crate) detach_old_after: Option<SpanArg>,
    /// Show what would be done; change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Return at once; the job goes on by itself
    #[arg(long, visible_alias = "no-wait")]
    pub(crate) detach_from_terminal: bool,
}

#[derive(Args, Debug)]
pub(crate) struct PrepareMove {
    /// The volume's name
    #[arg(value_name = "VOLUME")]
    pub(crate) volume: String,
    /// The host that the virtual machine will run on
    #[arg(long, value_name = "HOST")]
    pub(crate) host: String,
    /// What read latency is wanted there from the start: "p99-read<=2ms"; may be given several times
    #[arg(long, value_name = "TARGET", required_unless_present = "share")]
    pub(crate) target: Vec<crate::relocate::target::Target>,
    /// So much of the read load gets a copy where reads are fastest: 0.9 or 90% (default: what the targets need)
    #[arg(long, value_name = "SHARE")]
    pub(crate) share: Option<ShareArg>,
    /// Only chunks of this part get copies
    #[arg(long, default_value = "all")]
    pub(crate) range: RangeArg,
    /// How fast the data may be copied
    #[arg(long, value_name = "SIZE/s")]
    pub(crate) rate: Option<RateArg>,
    /// Round trip to a node, or to all of a site, from where nothing was measured: NODE=2ms
    #[arg(long, value_delimiter = ',', value_name = "NODE|SITE=LATENCY")]
    pub(crate) assume: Vec<crate::relocate::args::AssumeArg>,
    /// What the guest's 99th percentile may become while it is copied: "p99<=3ms", "+20%", or both: "p99<=3ms|+20%"
    #[arg(long, value_name = "PROTECTION")]
    pub(crate) protect: Option<ProtectArg>,
    /// Be copied within this time (2h): then --protect gives way as far as needed, --rate never does
    #[arg(long, value_name = "TIME")]
    pub(crate) deadline: Option<SpanArg>,
    /// Show what would be done; change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Look on until everything is copied (the default)
    #[arg(long, conflicts_with = "detach_from_terminal")]
    pub(crate) wait: bool,
    /// Return at once; the job goes on by itself
    #[arg(long, visible_alias = "no-wait")]
    pub(crate) detach_from_terminal: bool,
}

#[derive(Subcommand, Debug)]
pub(crate) enum JobVerb {
    /// Relocations that are under way
    List {
        /// Also those that have ended
        #[arg(long)]
        all: bool,
    },
    /// One volume's job
    Show(VolumeName),
    /// Look on until it has ended; exit code 1 if it fails or is cancelled
    Watch(VolumeName),
    /// Copy nothing for now
    Pause(VolumeName),
    /// Go on; also after a failure, once its reason is gone
    Resume(VolumeName),
    /// Give up what is not moved yet; what has moved stays where it is
    Cancel(VolumeName),
    /// Change how fast it may copy
    SetRate {
        #[command(flatten)]
        name: VolumeName,
        /// For example 200MiB/s, or none
        rate: RateOrNone,
    },
    /// Change what the guest's latency may become
    SetProtect {
        #[command(flatten)]
        name: VolumeName,
        /// For example "p99<=3ms|+20%", or none
        protect: ProtectOrNone,
    },
}

#[derive(Subcommand, Debug)]
pub(crate) enum ClusterVerb {
    /// Make the metadata store that of a new cluster
    Init,
    /// Identity, sites, nodes and space
    Show,
}

#[derive(Subcommand, Debug)]
pub(crate) enum VolumeVerb {
    /// Make a volume; it takes no space until it is written
    Create(Create),
    /// All volumes
    List,
    /// One volume: size, placement, state, who has it attached
    Show(VolumeName),
    /// Change the size; the front presents the new one
    Resize(Resize),
    /// Delete a volume and its data on all nodes; refused while it is attached
    Delete(Delete),
    /// Where every chunk lies
    Map(Map),
    /// Which parts are used most, and their share of the load
    Heat(HeatArgs),
    /// Make copies of a range on one more node; it is filled while the volume is in use
    AddLocation(Location),
    /// Give up the copies of a range on a node
    RemoveLocation(RemoveLocation),
    /// Bring every replica in sync
    Synchronize(Synchronize),
    /// Copy an image file into a volume
    Import(Import),
    /// Copy a volume into an image file
    Export(Export),
}

#[derive(Args, Debug)]
pub(crate) struct VolumeName {
    /// The volume's name
    #[arg(value_name = "VOLUME")]
    pub(crate) volume: String,
}

#[derive(Args, Debug)]
pub(crate) struct Scrub {
    #[command(flatten)]
    pub(crate) name: VolumeName,
    /// Only this part
    #[arg(long, default_value = "all")]
    pub(crate) range: RangeArg,
    /// How much each node may read per second
    #[arg(long, default_value = "200MiB/s", value_name = "SIZE/s")]
    pub(crate) rate: RateArg,
    /// Repair what can be repaired (the default)
    #[arg(long, conflicts_with = "no_repair")]
    pub(crate) repair: bool,
    /// Only look
    #[arg(long, visible_alias = "dry-run")]
    pub(crate) no_repair: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Plan {
    #[command(flatten)]
    pub(crate) name: VolumeName,
    #[command(flatten)]
    pub(crate) ask: PlanArgs,
    /// Show what latency how many bytes buy
    #[arg(long)]
    pub(crate) curve: bool,
    /// Compare what the last relocation was to bring with what is measured now
    #[arg(long, conflicts_with_all = ["host", "target", "copies", "only_sites", "to_site", "evacuate", "rate", "assume", "curve"])]
    pub(crate) score: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Whatif {
    /// Sites or nodes (names or uuids) that are lost, all at once
    #[arg(long, value_delimiter = ',', required = true, value_name = "SITE|NODE")]
    pub(crate) lose: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum DurabilityArg {
    /// Volatile write cache: durable after a flush, as on a usual disk
    Cache,
    /// Every write is durable on every in-sync replica before it completes
    Through,
}

/// Where a new volume's copies go; shared by `create` and `import`.
#[derive(Args, Debug)]
pub(crate) struct Placement {
    /// Copies per site, for example site-a:2,site-b:1
    #[arg(long, value_delimiter = ',', value_name = "SITE:COPIES")]
    pub(crate) place: Vec<PlaceArg>,
    /// Exactly these nodes (names or uuids), one copy each
    #[arg(long, value_delimiter = ',', value_name = "NODE")]
    pub(crate) node: Vec<String>,
    /// Size of the pieces that can be placed on their own: a power of two, 1MiB to 64MiB
    #[arg(long, default_value = "4MiB", value_name = "SIZE")]
    pub(crate) chunk: ByteSize,
    /// When a write counts as done
    #[arg(long, value_enum, default_value_t = DurabilityArg::Cache)]
    pub(crate) durability: DurabilityArg,
}

#[derive(Args, Debug)]
pub(crate) struct Create {
    #[command(flatten)]
    pub(crate) name: VolumeName,
    /// Size, a multiple of 4KiB
    #[arg(long)]
    pub(crate) size: ByteSize,
    #[command(flatten)]
    pub(crate) placement: Placement,
    /// Show what would be done; change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Resize {
    #[command(flatten)]
    pub(crate) name: VolumeName,
    /// New size, a multiple of 4KiB
    #[arg(long)]
    pub(crate) size: ByteSize,
    /// Show what would be done; change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Delete {
    #[command(flatten)]
    pub(crate) name: VolumeName,
    /// Do not ask
    #[arg(long)]
    pub(crate) yes: bool,
    /// Forget the volume even if nodes that hold its data cannot be reached; their copies stay behind
    #[arg(long)]
    pub(crate) abandon_unreachable: bool,
    /// Show what would be done; change nothing
    #[arg(long, conflicts_with = "yes")]
    pub(crate) dry_run: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Map {
    #[command(flatten)]
    pub(crate) name: VolumeName,
    /// Only this part
    #[arg(long, default_value = "all")]
    pub(crate) range: RangeArg,
    /// As a picture: hue by site, brightness by heat
    #[arg(long, conflicts_with = "json")]
    pub(crate) picture: bool,
    /// With --json, also the uses per second of each chunk
    #[arg(long)]
    pub(crate) heat: bool,
}

#[derive(Args, Debug)]
pub(crate) struct HeatArgs {
    #[command(flatten)]
    pub(crate) name: VolumeName,
    /// Show so many ranges
    #[arg(long, default_value_t = 20)]
    pub(crate) limit: usize,
}

#[derive(Args, Debug)]
pub(crate) struct Probe {
    /// The name under which fronts of this host attach volumes (default: the machine's host name)
    #[arg(long)]
    pub(crate) host: Option<String>,
    /// Round trips per node, spread over its shards
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) count: u32,
    /// Only these nodes (names or uuids)
    #[arg(long, value_delimiter = ',', value_name = "NODE")]
    pub(crate) node: Vec<String>,
    /// Measure and show; write nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Location {
    #[command(flatten)]
    pub(crate) name: VolumeName,
    /// The node, by name or uuid
    #[arg(long)]
    pub(crate) node: String,
    /// Only this part
    #[arg(long, default_value = "all")]
    pub(crate) range: RangeArg,
    /// Show what would be done; change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Args, Debug)]
pub(crate) struct RemoveLocation {
    #[command(flatten)]
    pub(crate) location: Location,
    /// Allow fewer in-sync copies than the volume was created with (never fewer than one)
    #[arg(long)]
    pub(crate) force_below_copies: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Synchronize {
    #[command(flatten)]
    pub(crate) name: VolumeName,
    /// Return only when every replica is in sync (a detached volume is always waited for)
    #[arg(long)]
    pub(crate) wait: bool,
    /// With --wait: give up after so many seconds
    #[arg(long, requires = "wait", value_name = "SECONDS")]
    pub(crate) timeout: Option<u64>,
    /// Show what would be done; change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// Formats that go in and out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum ImageFormat {
    /// Bytes as they are
    Raw,
    /// QEMU's copy-on-write format
    Qcow2,
}

impl ImageFormat {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

#[derive(Args, Debug)]
pub(crate) struct Import {
    #[command(flatten)]
    pub(crate) name: VolumeName,
    /// The image file
    pub(crate) file: PathBuf,
    /// Its format; found out from the file if not given (give it for an image of unknown origin)
    #[arg(long, value_enum)]
    pub(crate) format: Option<ImageFormat>,
    /// The volume may be larger than the image; the rest keeps what it holds
    #[arg(long)]
    pub(crate) allow_larger: bool,
    /// With --place or --node the volume is made first, of the image's size
    #[command(flatten)]
    pub(crate) placement: Placement,
    /// Show what would be done; change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Export {
    #[command(flatten)]
    pub(crate) name: VolumeName,
    /// The image file to write
    pub(crate) file: PathBuf,
    /// Its format
    #[arg(long, value_enum, default_value_t = ImageFormat::Raw)]
    pub(crate) format: ImageFormat,
    /// Replace the file if it exists
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// Show what would be done; change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Subcommand, Debug)]
pub(crate) enum NodeVerb {
    /// All nodes
    List,
    /// One node: addresses, space, counters if it answers
    Show(NodeName),
    /// What would lose copies or availability if the node went away now; exit code 1 if anything would
    DrainCheck(NodeName),
    /// Take no new chunks on the node
    Drain(NodeName),
    /// Take new chunks on the node again
    Undrain(NodeName),
    /// Give up a node that never comes back: take its copies out of all volumes and free its name.
    /// Refused while it is alive, or while it has the last in-sync copy of any chunk
    Forget(Forget),
    /// Round trips to each shard of the node
    Ping(Ping),
}

#[derive(Args, Debug)]
pub(crate) struct Forget {
    #[command(flatten)]
    pub(crate) name: NodeName,
    /// Show what would be done; change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Args, Debug)]
pub(crate) struct NodeName {
    /// The node, by name or uuid
    pub(crate) node: String,
}

#[derive(Args, Debug)]
pub(crate) struct Ping {
    #[command(flatten)]
    pub(crate) name: NodeName,
    /// Round trips per shard
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) count: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
