//! The libublk frontend: the volume as `/dev/ublkbN`.
//!
//! One thread per queue runs a [`Lane`] on the queue's own ring, together with the driver's commands
//! (`queue`). The thread that calls [`serve`] makes the device, waits for orders and removes it
//! (`device`). What a kernel has to say about taking over a device is in `docs/ublk-recovery.md`.

mod buffers;
mod device;
mod error;
mod lane;
mod leftover;
mod mounts;
mod params;
mod queue;
mod request;
mod threads;
mod usage;

pub use buffers::QueueBuffers;
pub use device::{Device, Origin, available};
pub use error::DeviceError;
pub use lane::Lane;
pub use leftover::{Leftover, LeftoverState, find, remove_leftover};
pub use mounts::forget_mounts;
pub use params::DeviceShape;
pub use usage::users;

use super::context::{FrontContext, FrontendError, FrontendOrder};
use super::lane::LaneDriver;
use super::wake::EventFd;
use crate::core::LaneLimits;
use std::io;
use std::os::fd::AsRawFd;

/// Presents the volume until [`FrontendOrder::Stop`].
pub fn serve(context: FrontContext) -> Result<(), FrontendError> {
    let FrontContext {
        presented,
        settings,
        control,
        ..
    } = &context;
    let shape = DeviceShape::new(presented, settings.queues, settings.depth);
    let port = control.clone();
    let device = Device::start(presented.volume, &presented.name, &shape, move |_queue| {
        let seat = port.add_lane().map_err(|error| error.to_string())?;
        Ok(LaneDriver::new(seat, LaneLimits::default()))
    })?;
    tracing::info!(device = device.path(), origin = ?device.origin(), "presented");
    context.attached(&device.path());
    loop {
        if wait(context.orders.event(), device.closed())? {
            let path = device.path();
            device.remove()?;
            return Err(FrontendError::Failed(format!(
                "another program removed {path}"
            )));
        }
        while let Some(order) = context.orders.try_recv() {
            match order {
                FrontendOrder::Stop { force, refused } => {
                    let users = if force {
                        Vec::new()
                    } else {
                        users(device.id())
                    };
                    if users.is_empty() {
                        drop(refused);
                        return Ok(device.remove()?);
                    }
                    let _ = refused.send(refusal(&device.path(), &users));
                }
                FrontendOrder::Resized { size_bytes } => {
                    if let Err(error) = device.resize(size_bytes) {
                        tracing::warn!("{error}; it keeps its size until the next attach");
                    }
                }
            }
        }
    }
}

fn refusal(path: &str, users: &[String]) -> String {
    format!(
        "{path} is in use: {}; unmount or close it first, or force the detach",
        users.join(", ")
    )
}

/// Waits for an order or for the end of the device; `true`: it has ended.
fn wait(orders: &EventFd, closed: &EventFd) -> Result<bool, FrontendError> {
    let mut polls = [orders, closed].map(|event| libc::pollfd {
        fd: event.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    });
    loop {
        // SAFETY: two valid pollfds.
        let ready = unsafe { libc::poll(polls.as_mut_ptr(), 2, -1) };
        if ready >= 0 {
            break;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(FrontendError::io("wait for orders")(error));
        }
    }
    orders.clear();
    Ok(polls[1].revents != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_every_user() {
        let users = [
            "mounted at /mnt".to_owned(),
            "open in qemu (process 9)".to_owned(),
        ];
        let text = refusal("/dev/ublkb0", &users);
        assert!(text.contains("/mnt") && text.contains("process 9") && text.contains("force"));
    }

    #[test]
    fn waiting_tells_orders_from_the_end_of_the_device() -> io::Result<()> {
        let (orders, closed) = (EventFd::new(false)?, EventFd::new(false)?);
        orders.wake();
        assert!(!wait(&orders, &closed).expect("poll"));
        closed.wake();
        assert!(wait(&orders, &closed).expect("poll"));
        Ok(())
    }
}
