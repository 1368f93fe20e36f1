//! What can go wrong with a device.

use crate::shell::context::FrontendError;
use libublk::UblkError;
use std::io;

/// A device could not be made, taken over, changed or removed.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The kernel has no ublk driver, or this process may not use it.
    #[error("no ublk here: {0}")]
    Unavailable(String),
    /// The driver or the kernel refused.
    #[error("{doing}: {source}")]
    Refused {
        /// A verb phrase.
        doing: String,
        /// What it answered.
        source: io::Error,
    },
    /// A queue's thread could not be set up.
    #[error("queue {queue}: {why}")]
    Queue {
        /// Which.
        queue: u16,
        /// Why.
        why: String,
    },
    /// Older kernels (6.12) cannot hand a device over once a successor has been killed in the middle of
    /// taking it over.
    #[error(
        "{path} cannot be taken over any more: a front was killed while it took it over, and this \
         kernel cannot begin again; `detach` removes the device"
    )]
    Lost {
        /// The device.
        path: String,
    },
    /// Another process serves the volume's device.
    #[error("{path} of this volume is served by process {pid}")]
    Served {
        /// The device.
        path: String,
        /// Who serves it.
        pid: i32,
    },
}

impl DeviceError {
    /// For `map_err` after plain system calls.
    pub(super) fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Refused { doing, source }
    }
}

impl From<DeviceError> for FrontendError {
    fn from(error: DeviceError) -> Self {
        match error {
            DeviceError::Refused { doing, source } => Self::Io { doing, source },
            other => Self::Failed(other.to_string()),
        }
    }
}

/// libublk's errors hide the errno behind a word; this brings it out.
pub(super) fn plain(error: UblkError) -> io::Error {
    match error {
        UblkError::UringIOError(code) | UblkError::OtherError(code) => {
            io::Error::from_raw_os_error(-code)
        }
        UblkError::IOError(error) => error,
        other => io::Error::other(other.to_string()),
    }
}

/// libublk reports EBUSY as success with a negative number; nothing here takes it for one.
pub(super) fn check(doing: &str, result: Result<i32, UblkError>) -> Result<(), DeviceError> {
    let source = match result {
        Ok(code) if code >= 0 => return Ok(()),
        Ok(code) => io::Error::from_raw_os_error(-code),
        Err(error) => plain(error),
    };
    Err(DeviceError::Refused {
        doing: doing.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_is_an_error_and_errno_is_told() {
        assert!(check("delete", Ok(0)).is_ok());
        let busy = check("delete", Ok(-libc::EBUSY)).expect_err("busy");
        assert!(busy.to_string().starts_with("delete: "), "{busy}");
        let refused = check("add", Err(UblkError::UringIOError(-libc::ENODEV)));
        let DeviceError::Refused { source, .. } = refused.expect_err("refused") else {
            panic!("another error")
        };
        assert_eq!(source.raw_os_error(), Some(libc::ENODEV));
    }
}
