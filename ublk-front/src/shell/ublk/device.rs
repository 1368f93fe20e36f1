//! The life of one device: made or taken over, started, resized, removed.
//!
//! Control commands go out on the thread that owns the [`Device`], never on a queue's: STOP waits
//! for requests that only the queues can answer.
//!
//! A front that dies any other way than by [`Device::remove`] leaves its device in the kernel, where
//! it keeps its users' requests for a successor. That is also what a front does to itself when
//! something impossible happens on a queue: it aborts, and is started again.

use super::error::{DeviceError, check, plain};
use super::lane::Lane;
use super::leftover::{Leftover, LeftoverState, delete, find, fingerprint, remove};
use super::params::{DeviceShape, IO_BYTES_MAX};
use super::threads::QueueThreads;
use crate::shell::wake::EventFd;
use libublk::ctrl::{UblkCtrl, UblkCtrlBuilder};
use libublk::io::UblkDev;
use libublk::{UblkError, UblkFlags, sys};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use ukai_proto::VolumeId;

/// Type of our devices in `/run/ublksrvd/NNNN.json` and in what tools show.
const TARGET_TYPE: &str = "ukai";

/// Queues end within a lane's tick (100 ms) after the device has been stopped; asking more often is
/// no use.
const STOP_AGAIN_MS: i32 = 50;

/// See [`Device::shorten_timeout`].
const REQUEST_TIMEOUT_MS: &str = "1000";

/// Is there a driver, and may this process use it? The reason if not, for the operator.
pub fn available() -> Result<(), DeviceError> {
    let path = Path::new("/dev/ublk-control");
    if !path.exists() {
        let why = "there is no /dev/ublk-control (kernel 6.0 or later, modprobe ublk_drv)";
        return Err(DeviceError::Unavailable(why.into()));
    }
    let open = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path);
    open.map_err(|error| DeviceError::Unavailable(format!("open /dev/ublk-control: {error}")))?;
    // GET_FEATURES came with Linux 6.5, one release after the last of what a front needs.
    let features = UblkCtrl::get_features().ok_or_else(|| {
        DeviceError::Unavailable(
            "the driver does not tell its features (Linux 6.5 or later)".into(),
        )
    })?;
    if features & DeviceShape::flags() != DeviceShape::flags() {
        let why = format!("the driver lacks user recovery (features {features:#x})");
        return Err(DeviceError::Unavailable(why));
    }
    Ok(())
}

/// Was the device there before?
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// Made for this front.
    Made,
    /// Taken over from a front that died; its users did not notice.
    TakenOver,
}

/// A device that is being served.
pub struct Device {
    queues: QueueThreads,
    origin: Origin,
    device: Arc<UblkDev>,
    /// Dropped last: a device that is not disowned yet is deleted then, which waits until nobody
    /// has its character device open.
    control: UblkCtrl,
}

impl Device {
    /// Presents a volume: takes over the device that a dead front of it left on this host, else
    /// makes one. `make_lane` is called on each queue's thread. Returns when the device is live.
    ///
    /// A device that cannot be started is removed again, but one that cannot be taken over stays
    /// for the next attempt: it has users.
    pub fn start<L, M>(
        volume: VolumeId,
        name: &str,
        shape: &DeviceShape,
        make_lane: M,
    ) -> Result<Self, DeviceError>
    where
        L: Lane + 'static,
        M: Fn(u16) -> Result<L, String> + Send + Sync + 'static,
    {
        available()?;
        let waiting = Self::waiting(volume)?;
        let (count, depth, io_bytes) = match &waiting {
            Some(leftover) => (leftover.queues, leftover.depth, leftover.io_bytes),
            None => (shape.queues, shape.depth, IO_BYTES_MAX),
        };
        let queues = QueueThreads::prepare(count, depth, io_bytes, make_lane)?;
        let (control, origin) = match &waiting {
            Some(leftover) => (Self::take_over(leftover)?, Origin::TakenOver),
            None => (Self::add(volume, shape)?, Origin::Made),
        };
        let target = UblkDev::new(
            TARGET_TYPE.to_owned(),
            |device: &mut UblkDev| {
                device.tgt.dev_size = shape.size_bytes;
                device.tgt.params = shape.params();
                device.set_target_json(serde_json::json!({
                    "volume": volume.to_string(),
                    "name": name,
                }));
                Ok(())
            },
            &control,
        );
        let device = target.map_err(|error| DeviceError::Refused {
            doing: format!("open {}", control.get_cdev_path()),
            source: plain(error),
        })?;
        let mut this = Self {
            queues,
            origin,
            device: Arc::new(device),
            control,
        };
        if let Err(error) = this.go_live() {
            match origin {
                Origin::Made => drop(this.remove()),
                Origin::TakenOver => this.leave(),
            }
            return Err(error);
        }
        // From here on only `remove` removes it.
        this.control.disown();
        this.shorten_timeout();
        if origin == Origin::TakenOver {
            this.adopt_size(shape)?;
        }
        Ok(this)
    }

    /// The queues join the device, each on the CPUs whose requests it gets, and it starts.
    fn go_live(&mut self) -> Result<(), DeviceError> {
        self.queues.keep(self.device.dev_info.nr_hw_queues);
        self.queues.give(&self.device);
        for (queue, thread) in self.queues.ids() {
            self.control.set_thread_affinity(*queue, *thread);
            let configured = self.control.configure_queue(&self.device, *queue, *thread);
            check("record a queue's thread", configured)?;
        }
        let started = check("start the device", self.control.start_dev(&self.device));
        self.queues.failure().map_or(started, Err)
    }

    /// Its block device.
    #[must_use]
    pub fn path(&self) -> String {
        self.control.get_bdev_path()
    }

    /// Its number.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.control.dev_info().dev_id
    }

    /// Made or taken over?
    #[must_use]
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// Fires when a queue has ended, which without [`Device::remove`] means that someone else
    /// stopped the device. Nonblocking.
    #[must_use]
    pub fn closed(&self) -> &Arc<EventFd> {
        self.queues.closed()
    }

    /// Changes the size under its users. Kernels before 6.16 cannot.
    pub fn resize(&self, size_bytes: u64) -> Result<(), DeviceError> {
        let features = self.control.get_driver_features().unwrap_or(0);
        if features & u64::from(sys::UBLK_F_UPDATE_SIZE) == 0 {
            return Err(DeviceError::Refused {
                doing: format!("resize {} without detaching it", self.path()),
                source: std::io::Error::other("the kernel is too old (6.16 or later)"),
            });
        }
        check(
            &format!("resize {}", self.path()),
            self.control.update_size(size_bytes),
        )
    }

    /// Stops the device (requests in flight are answered first), ends the queues, removes it. Its
    /// users, if there are any, get errors from now on.
    pub fn remove(mut self) -> Result<(), DeviceError> {
        let path = self.path();
        let stopped = self.stop(&path);
        self.queues.wait();
        let Self {
            control, device, ..
        } = self;
        drop(device);
        delete(&control, &path).and(stopped)
    }

    /// Stops the device and waits until its queues have ended.
    fn stop(&self, path: &str) -> Result<(), DeviceError> {
        let doing = format!("stop {path}");
        let result = check(&doing, self.control.kill_dev());
        let closed = self.queues.closed();
        while !self.queues.ended() {
            let fd = closed.as_raw_fd();
            let mut poll = libc::pollfd {
                fd,
                events: libc::POLLIN,
                revents: 0,
            };
            // SAFETY: one valid pollfd. Whether an event came or time passed is the same.
            let _ = unsafe { libc::poll(&raw mut poll, 1, STOP_AGAIN_MS) };
            closed.clear();
            // A queue that was still joining gave its commands to the driver only now.
            let _ = self.control.kill_dev();
        }
        result
    }

    /// Lets go of the device without removing it. The queues serve on until the process ends, and
    /// then the device waits for a successor.
    pub fn leave(self) {
        self.control.disown();
    }

    /// A device of this volume to be taken over. Clears away a dead one.
    fn waiting(volume: VolumeId) -> Result<Option<Leftover>, DeviceError> {
        let Some(leftover) = find(volume)? else {
            return Ok(None);
        };
        match leftover.state {
            LeftoverState::Waiting => Ok(Some(leftover)),
            LeftoverState::Served => Err(DeviceError::Served {
                path: leftover.path(),
                pid: leftover.pid,
            }),
            LeftoverState::Dead => remove(&leftover).map(|()| None),
        }
    }

    fn add(volume: VolumeId, shape: &DeviceShape) -> Result<UblkCtrl, DeviceError> {
        Self::builder(shape.queues, shape.depth)
            .ctrl_target_flags(fingerprint(volume))
            .dev_flags(UblkFlags::UBLK_DEV_F_ADD_DEV)
            .build()
            .map_err(Self::refused("add a device"))
    }

    fn take_over(leftover: &Leftover) -> Result<UblkCtrl, DeviceError> {
        let id = i32::try_from(leftover.id);
        let id = id.unwrap_or_else(|_| panic!("the driver numbers devices from 0"));
        let path = leftover.path();
        let first = UblkCtrl::new_simple(id).map_err(Self::refused(&format!("look at {path}")))?;
        // Waits while the dead front is being cleaned up.
        match check(&format!("take over {path}"), first.start_user_recover()) {
            Err(DeviceError::Refused { source, .. })
                if source.raw_os_error() == Some(libc::EINVAL) =>
            {
                return Err(DeviceError::Lost { path });
            }
            begun => begun?,
        }
        Self::builder(leftover.queues, leftover.depth)
            .id(id)
            .dev_flags(UblkFlags::UBLK_DEV_F_RECOVER_DEV)
            .build()
            .map_err(Self::refused(&format!("take over {path}")))
    }

    fn builder(queues: u16, depth: u16) -> UblkCtrlBuilder<'static> {
        UblkCtrlBuilder::default()
            .name(TARGET_TYPE)
            .nr_queues(queues)
            .depth(depth)
            .io_buf_bytes(IO_BYTES_MAX)
            .ctrl_flags(DeviceShape::flags())
    }

    fn refused(doing: &str) -> impl FnOnce(UblkError) -> DeviceError {
        let doing = doing.to_owned();
        move |error| DeviceError::Refused {
            doing,
            source: plain(error),
        }
    }

    /// How long the kernel waits before it asks whether the front that holds a request has died.
    /// Older kernels (6.12) find out only so if the front was killed with all requests of a queue in
    /// flight; its default of 30 s would be added to the time a successor needs. A front that lives
    /// may take longer: the timer is started again.
    fn shorten_timeout(&self) {
        let path = format!("/sys/block/ublkb{}/queue/io_timeout", self.id());
        if let Err(error) = std::fs::write(&path, REQUEST_TIMEOUT_MS) {
            tracing::warn!(path, %error, "taking over this device may take half a minute");
        }
    }

    /// The volume may have been resized while nobody served the device.
    fn adopt_size(&self, shape: &DeviceShape) -> Result<(), DeviceError> {
        let mut params = sys::ublk_params::default();
        check(
            "read the device's parameters",
            self.control.get_params(&mut params),
        )?;
        if params.basic.dev_sectors * 512 == shape.size_bytes {
            return Ok(());
        }
        self.resize(shape.size_bytes)
    }
}
