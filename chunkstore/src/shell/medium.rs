//! Is this a medium that keeps data? Refusals that `format` and `run` share.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::linux::fs::MetadataExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What is wrong with it.
#[derive(Debug, thiserror::Error)]
pub enum MediumError {
    /// An operating system call failed.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Memory, or another machine's page cache.
    #[error(
        "{path} lies on {kind}, which keeps no data through a power cut; use a disk file system \
         (ext4, xfs) or a block device"
    )]
    Volatile {
        /// The path.
        path: PathBuf,
        /// The file system.
        kind: &'static str,
    },
    /// O_DIRECT does not work.
    #[error("{path}: O_DIRECT does not work here ({problem}); use ext4, xfs or a block device")]
    NotDirect {
        /// The path.
        path: PathBuf,
        /// How it showed.
        problem: String,
    },
    /// In use.
    #[error("{path} is in use: {by}")]
    InUse {
        /// The path.
        path: PathBuf,
        /// By what.
        by: String,
    },
}

pub(super) fn io_error<'a>(
    action: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> MediumError + 'a {
    move |source| MediumError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

/// Magic numbers of file systems that only live in memory or ignore O_DIRECT.
const VOLATILE: [(i64, &str); 5] = [
    (0x0102_1994, "tmpfs"),
    (0x8584_58f6, "ramfs"),
    (0x9fa0, "procfs"),
    (0x6265_6572, "sysfs"),
    (0x00c0_ffee, "hostfs"),
];
const OVERLAY: i64 = 0x794c_7630;

/// Refuse file systems known to keep nothing. `path` exists (a file, a device or a directory).
pub fn check_file_system(path: &Path) -> Result<(), MediumError> {
    let meta = fs::metadata(path).map_err(io_error("look at", path))?;
    if meta.file_type().is_block_device() {
        return Ok(());
    }
    let magic = file_system_magic(path).map_err(io_error("look at the file system of", path))?;
    let mut kind = VOLATILE.iter().find(|(known, _)| *known == magic);
    if magic == OVERLAY {
        // What an overlay writes to decides. Inside a container that directory may be out of sight;
        // then the O_DIRECT test below has to do.
        let upper = overlay_upper(path).and_then(|upper| file_system_magic(&upper).ok());
        kind = VOLATILE.iter().find(|(known, _)| Some(*known) == upper);
    }
    match kind {
        None => Ok(()),
        Some((_, kind)) => Err(MediumError::Volatile {
            path: path.to_owned(),
            kind,
        }),
    }
}

fn file_system_magic(path: &Path) -> io::Result<i64> {
    let text = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: all-zero is a valid statfs.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path is a terminated string and `stat` a place for the answer; both outlive the
    // call.
    if unsafe { libc::statfs(text.as_ptr(), &raw mut stat) } != 0 {
        return Err(io::Error::last_os_error());
    }
    #[allow(clippy::unnecessary_cast)] // its type differs between C libraries
    Ok(stat.f_type as i64 & 0xffff_ffff)
}

/// The writable directory under the overlay mount that holds `path`.
fn overlay_upper(path: &Path) -> Option<PathBuf> {
    let path = path.canonicalize().ok()?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let mut best: Option<(usize, PathBuf)> = None;
    for line in mounts.lines().filter(|line| line.contains(" - overlay ")) {
        let mount = line.split(' ').nth(4)?;
        let upper = line
            .split(',')
            .find_map(|option| option.strip_prefix("upperdir="));
        if path.starts_with(mount)
            && let Some(upper) = upper
            && best
                .as_ref()
                .is_none_or(|(length, _)| *length < mount.len())
        {
            best = Some((mount.len(), upper.split(' ').next()?.into()));
        }
    }
    best.map(|(_, upper)| upper)
}

/// An aligned write and read with O_DIRECT of a file made for it in `dir`, or of nothing for devices.
pub fn check_direct(dir: &Path) -> Result<(), MediumError> {
    let path = dir.join(format!(".chunkstore-direct-{}", std::process::id()));
    let result = try_direct(&path);
    let _ = fs::remove_file(&path);
    result.map_err(|error| MediumError::NotDirect {
        path: dir.to_owned(),
        problem: error.to_string(),
    })
}

fn try_direct(path: &Path) -> io::Result<()> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)?;
    let mut memory = vec![0u8; 3 * 4096];
    let start = memory.as_ptr().align_offset(4096);
    let block = &mut memory[start..start + 4096];
    block.fill(0xa5);
    file.write_all_at(block, 0)?;
    file.sync_data()?;
    block.fill(0);
    file.read_exact_at(block, 0)?;
    if block.iter().all(|byte| *byte == 0xa5) {
        Ok(())
    } else {
        Err(io::Error::other("what was written did not come back"))
    }
}

/// Refuse a device that is mounted, or a file that is mounted through a loop device.
pub fn check_not_mounted(path: &Path) -> Result<(), MediumError> {
    let in_use = |by: String| {
        Err(MediumError::InUse {
            path: path.to_owned(),
            by,
        })
    };
    let meta = fs::metadata(path).map_err(io_error("look at", path))?;
    let mut devices = Vec::new();
    if meta.file_type().is_block_device() {
        devices.push(meta.st_rdev());
    } else if let Ok(own) = path.canonicalize() {
        for entry in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
            let backing = fs::read_to_string(entry.path().join("loop/backing_file"));
            if backing.is_ok_and(|backing| Path::new(backing.trim_end()) == own) {
                let device = Path::new("/dev").join(entry.file_name());
                return in_use(format!("it backs {}", device.display()));
            }
        }
    }
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for line in mounts.lines() {
        let mut fields = line.split(' ');
        let (Some(source), Some(target)) = (fields.next(), fields.next()) else {
            continue;
        };
        let mounted = source.starts_with('/')
            && fs::metadata(source).is_ok_and(|source| {
                source.file_type().is_block_device() && devices.contains(&source.st_rdev())
            });
        if mounted {
            return in_use(format!("it is mounted at {target}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_refused_and_the_build_directory_is_not() {
        let error = check_file_system(Path::new("/proc")).expect_err("procfs");
        assert!(error.to_string().contains("procfs"), "{error}");
        if Path::new("/dev/shm").is_dir() {
            let error = check_file_system(Path::new("/dev/shm")).expect_err("tmpfs");
            assert!(error.to_string().contains("tmpfs"), "{error}");
        }
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        check_file_system(here).expect("a disk");
        check_direct(here).expect("O_DIRECT");
    }
}
