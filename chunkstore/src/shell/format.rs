//! `chunkstore format`: make a file or device a node.

use super::blocking::{Access, FileDisk};
use super::medium::{MediumError, check_direct, check_file_system, check_not_mounted, io_error};
use crate::disk::api::Disk;
use crate::disk::format::{
    FormatError, NodeError, NodeFormat, NodeSuperblock, format as format_disk,
};
use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use ukai_meta::catalog::{self, CatalogError};
use ukai_meta::{MetaError, MetaUrl};
use ukai_proto::{ClusterId, NodeId};

/// What to make.
#[derive(Clone, Debug)]
pub struct Options {
    /// File or block device.
    pub path: PathBuf,
    /// Size of a file; a device is used whole.
    pub size_bytes: Option<u64>,
    /// Data centre.
    pub site: String,
    /// Short name.
    pub name: String,
    /// Free labels.
    pub labels: Vec<String>,
    /// Shards.
    pub shards: u16,
    /// Metadata store.
    pub meta: MetaUrl,
    /// Begin a cluster if the store holds none.
    pub cluster_init: bool,
    /// Destroy what is there.
    pub force: bool,
}

/// It was not made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The path is no good.
    #[error(transparent)]
    Medium(#[from] MediumError),
    /// The metadata store cannot be opened.
    #[error("{0}")]
    Meta(#[from] MetaError),
    /// The cluster or the name.
    #[error("{0}")]
    Catalog(CatalogError),
    /// No cluster, and none to be begun.
    #[error(
        "the metadata store holds no cluster yet: say --cluster-init to begin one, or check --meta"
    )]
    NoCluster,
    /// The name is taken.
    #[error("the name {name} belongs to node {node} of this cluster; choose another")]
    NameTaken {
        /// The name.
        name: String,
        /// Whose it is.
        node: NodeId,
    },
    /// A name or site that metadata cannot keep.
    #[error("{what} {text:?}: 1 to 64 of the characters A-Z a-z 0-9 . _ - are allowed")]
    BadName {
        /// Which.
        what: &'static str,
        /// As given.
        text: String,
    },
    /// A file needs a size.
    #[error("{0} does not exist; say --size to create it")]
    NoSize(PathBuf),
    /// A device has its own.
    #[error("{0} is a block device and is used whole; leave --size out")]
    DeviceSize(PathBuf),
    /// Something else is there.
    #[error("{0} holds data that is not a node's: say --force to destroy it")]
    Foreign(PathBuf),
    /// The disk layer refused.
    #[error("{path}: {source}")]
    Format {
        /// The path.
        path: PathBuf,
        /// Why.
        source: FormatError,
    },
}

impl Error {
    /// Refused because of what is there, not broken: tells exit codes apart.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Medium(MediumError::Io { .. }) | Self::Meta(_) | Self::Catalog(_) => false,
            Self::Format { source, .. } => !matches!(source, FormatError::Device(_)),
            _ => true,
        }
    }
}

fn valid_name(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// Make it. Everything that can be refused is refused before the first byte is written.
pub fn format(options: &Options) -> Result<NodeSuperblock, Error> {
    for (what, text) in [("name", &options.name), ("site", &options.site)] {
        if !valid_name(text) {
            let text = text.clone();
            return Err(Error::BadName { what, text });
        }
    }
    let path = &options.path;
    let existed = check_path(options)?;

    let store = ukai_meta::open(&options.meta)?;
    let cluster = match catalog::cluster(store.as_ref()) {
        Ok(record) => record.cluster,
        Err(CatalogError::NoCluster) if options.cluster_init => {
            let id = ClusterId(random().map_err(io_error("read", Path::new(RANDOM)))?);
            catalog::init_cluster(store.as_ref(), id)
                .map_err(Error::Catalog)?
                .cluster
        }
        Err(CatalogError::NoCluster) => return Err(Error::NoCluster),
        Err(error) => return Err(Error::Catalog(error)),
    };
    let namesake = catalog::node_by_name(store.as_ref(), &options.name).map_err(Error::Catalog)?;
    if let Some(other) = namesake {
        return Err(Error::NameTaken {
            name: options.name.clone(),
            node: other.record.node,
        });
    }

    let made = make(options, cluster);
    if made.is_err() && !existed {
        let _ = fs::remove_file(path);
    }
    made
}

/// Refusals that need no metadata; tells whether the path exists.
fn check_path(options: &Options) -> Result<bool, Error> {
    let path = &options.path;
    let parent = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let meta = match fs::metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if options.size_bytes.is_none() {
                return Err(Error::NoSize(path.clone()));
            }
            check_file_system(parent)?;
            check_direct(parent)?;
            return Ok(false);
        }
        Err(error) => return Err(io_error("look at", path)(error).into()),
    };
    check_file_system(path)?;
    if meta.file_type().is_block_device() {
        if options.size_bytes.is_some() {
            return Err(Error::DeviceSize(path.clone()));
        }
    } else {
        check_direct(parent)?;
    }
    // Also with --force: what is mounted or served is in use, not merely left over.
    check_not_mounted(path)?;
    drop(open_exclusive(path)?);
    if !options.force {
        check_empty(path)?;
    }
    Ok(true)
}

fn open_exclusive(path: &Path) -> Result<FileDisk, Error> {
    FileDisk::open(path, Access::Exclusive).map_err(|error| {
        if error.raw_os_error() == Some(libc::EBUSY) {
            let (path, by) = (path.to_owned(), "another process has it open".to_owned());
            MediumError::InUse { path, by }.into()
        } else {
            io_error("open", path)(error).into()
        }
    })
}

/// Something that is neither empty nor ours is somebody's.
fn check_empty(path: &Path) -> Result<(), Error> {
    let mut disk = FileDisk::open(path, Access::Read).map_err(io_error("open", path))?;
    let node = match NodeSuperblock::read(&mut disk) {
        Err(NodeError::NotFormatted) => None,
        Ok(NodeSuperblock {
            node, name, site, ..
        }) => Some(FormatError::Formatted { node, name, site }),
        Err(error) => Some(FormatError::Unreadable(error)),
    };
    if let Some(source) = node {
        let path = path.to_owned();
        return Err(Error::Format { path, source });
    }
    let mut head = vec![0u8; 1 << 20];
    let bytes = usize::try_from(disk.size())
        .unwrap_or(head.len())
        .min(head.len());
    disk.read(0, &mut head[..bytes])
        .map_err(|error| io_error("read", path)(io::Error::from_raw_os_error(error.0)))?;
    if head.iter().all(|byte| *byte == 0) {
        Ok(())
    } else {
        Err(Error::Foreign(path.to_owned()))
    }
}

fn make(options: &Options, cluster: ClusterId) -> Result<NodeSuperblock, Error> {
    let path = &options.path;
    if let Some(bytes) = options.size_bytes {
        allocate(path, bytes - bytes % 4096).map_err(io_error("allocate", path))?;
    }
    let mut disk = open_exclusive(path)?;
    disk.wait_for_former_run()
        .map_err(io_error("wait for the former run on", path))?;
    let what = NodeFormat {
        cluster,
        node: NodeId(random().map_err(io_error("read", Path::new(RANDOM)))?),
        name: options.name.clone(),
        site: options.site.clone(),
        labels: options.labels.clone(),
        shard_count: options.shards,
        log_bytes: None,
    };
    format_disk(&mut disk, &what, options.force).map_err(|source| Error::Format {
        path: path.clone(),
        source,
    })
}

/// Create the file, or change its size, with all its space reserved.
fn allocate(path: &Path, bytes: u64) -> io::Result<()> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)?;
    let length = i64::try_from(bytes).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
    file.set_len(bytes)?;
    // SAFETY: no memory is passed; the descriptor is this file's.
    let result = unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, length) };
    if result != 0 {
        return Err(io::Error::from_raw_os_error(result));
    }
    file.sync_all()
}

const RANDOM: &str = "/dev/urandom";

/// A random (version 4) uuid.
fn random() -> io::Result<[u8; 16]> {
    let mut bytes = [0; 16];
    fs::File::open(RANDOM)?.read_exact(&mut bytes)?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Ok(bytes)
}
