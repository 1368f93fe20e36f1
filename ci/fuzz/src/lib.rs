//! The fuzz targets: each takes any bytes and must neither panic nor break what it asserts.
//!
//! The bodies are here, without libFuzzer, so that `tests/corpus.rs` replays every committed input in
//! a plain test; `libfuzzer/` is a workspace of its own that only links them to the fuzzer. Inputs are
//! scripts: [`input::Input`] reads numbers off the front and gives zeros when nothing is left, so that
//! every prefix and every splice of inputs means something.
//!
//! | target | what it feeds |
//! |-|-|
//! | `header` | the 64 bytes of a wire header, with and without a checksum that fits |
//! | `message` | the auxiliary section of each message |
//! | `stream` | frames, damage and junk, cut anywhere |
//! | `node` | a shard on a device in memory: clients, peers, failing I/O, ticks, a power cut |
//! | `lane`, `control` | the front's two cores, with nodes that answer anything |
//! | `archive` | heads, map shards and records of the metadata store |
//! | `nbd` | an NBD client |
//! | `block` | each structure of the disk, with a checksum that fits |
//! | `device` | a whole device, damaged or forged, opened and used |

mod alloc;
mod archive;
mod block;
mod control;
mod device;
mod frames;
mod front;
mod header;
mod input;
mod lane;
mod message;
mod nbd;
mod node;
mod stream;

/// A target by its name, which is also the name of its corpus folder and of its program.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// The name.
    pub name: &'static str,
    /// Runs one input; a panic is a finding.
    pub run: fn(&[u8]),
}

macro_rules! targets {
    ($($name:ident),+ $(,)?) => {
        /// All of them.
        pub const TARGETS: &[Target] = &[$(Target { name: stringify!($name), run: $name::run }),+];
    };
}

targets!(
    header, message, stream, node, lane, control, archive, nbd, block, device
);

/// Runs one input of the target with this name.
pub fn run(name: &str, data: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name);
    let target = target.unwrap_or_else(|| panic!("there is no target {name}"));
    (target.run)(data);
}
