//! Both directions of the link: interfaces, addresses, threads.

use crate::carry::{Carried, carry};
use crate::line::LineSetting;
use crate::space::Space;
use crate::tun;
use serde_json::{Value, json};
use std::io::{PipeWriter, pipe};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;
use std::time::Duration;

/// What waits at an interface for the thread to read it: more than it reads in the longest time that the
/// scheduler keeps it waiting, or packets are lost before the queue of the link is full.
const INTERFACE_QUEUE_PACKETS: u32 = 10_000;

/// One end: a namespace and the address that it gets on the link.
#[derive(Clone, Debug)]
pub(crate) struct End {
    pub space: Space,
    pub address: Ipv4Addr,
}

/// `NETNS=ADDRESS`.
pub(crate) fn end(text: &str) -> Result<End, String> {
    let (name, address) = text.split_once('=').ok_or("write NETNS=ADDRESS")?;
    // It becomes a path.
    if name.is_empty() || name.contains('/') {
        return Err(format!("{name:?} is no name of a namespace"));
    }
    Ok(End {
        space: Space::named(name),
        address: address.parse().map_err(|e| format!("{address:?}: {e}"))?,
    })
}

/// What the link is like.
#[derive(Clone, Debug)]
pub(crate) struct LinkSetting {
    pub line: LineSetting,
    /// Each packet is late by up to this, evenly distributed.
    pub jitter: Duration,
    pub mtu: u16,
    /// Name of the interfaces.
    pub interface: String,
    /// For the jitter.
    pub seed: u64,
}

/// A link that works.
pub(crate) struct Link {
    stop: PipeWriter,
    directions: [JoinHandle<Result<Carried, String>>; 2],
}

impl Link {
    /// Starts it. `ended` hears of a direction that ends, by itself or not.
    ///
    /// # Errors
    /// Text that says what could not be made.
    pub(crate) fn start(
        left: &End,
        right: &End,
        setting: &LinkSetting,
        ended: &Sender<()>,
    ) -> Result<Self, String> {
        let failed = |e: std::io::Error| e.to_string();
        let a = Arc::new(tun::open_in(&left.space, &setting.interface)?);
        let b = Arc::new(tun::open_in(&right.space, &setting.interface)?);
        configure(left, right.address, setting)?;
        configure(right, left.address, setting)?;
        let (stopped, stop) = pipe().map_err(failed)?;
        let stopped = Arc::new(OwnedFd::from(stopped));
        let direction = |name: &str, from: &Arc<OwnedFd>, to: &Arc<OwnedFd>, seed: u64| {
            let (from, to, stopped) = (from.clone(), to.clone(), stopped.clone());
            let (line, jitter, ended) = (setting.line, setting.jitter, ended.clone());
            let work = move || {
                let result = carry((&from, &to, &stopped), line, jitter, seed);
                // Nobody listens when the link is being stopped.
                let _ = ended.send(());
                result
            };
            std::thread::Builder::new()
                .name(name.into())
                .spawn(work)
                .map_err(failed)
        };
        let there = direction("left-to-right", &a, &b, setting.seed)?;
        let back = direction("right-to-left", &b, &a, setting.seed.wrapping_add(1))?;
        Ok(Self {
            stop,
            directions: [there, back],
        })
    }

    /// Stops it: the interfaces are gone afterwards, and with them what was on the way.
    ///
    /// # Errors
    /// Why a direction had ended before.
    pub(crate) fn stop(self) -> Result<[Carried; 2], String> {
        drop(self.stop);
        let [there, back] = self.directions.map(|thread| match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        Ok([there?, back?])
    }
}

/// Address, MTU, up.
fn configure(end: &End, peer: Ipv4Addr, setting: &LinkSetting) -> Result<(), String> {
    let (name, address, mtu) = (&setting.interface, end.address, setting.mtu);
    end.space.ip_batch(&format!(
        "address add {address} peer {peer}/32 dev {name}\n\
         link set {name} mtu {mtu} txqueuelen {INTERFACE_QUEUE_PACKETS} up\n"
    ))
}

/// What both directions did, for people and scripts.
#[must_use]
pub(crate) fn report(carried: &[Carried; 2]) -> Value {
    let direction = |c: &Carried| {
        json!({
            "packets": c.counts.taken_packets, "bytes": c.counts.taken_bytes,
            "dropped_packets": c.counts.dropped_packets, "refused_packets": c.refused_packets,
            "held_bytes_most": c.counts.held_bytes_most,
            "late_us": {
                "p50": c.late_us.value_at_quantile(0.5), "p99": c.late_us.value_at_quantile(0.99),
                "max": c.late_us.max(),
            },
        })
    };
    json!({ "left_to_right": direction(&carried[0]), "right_to_left": direction(&carried[1]) })
}
