//! File systems on ublk devices, as seen in the front's own mount namespace.
//!
//! A front that takes over a device starts while users have it mounted, so its namespace begins with
//! copies of their mounts. Such a copy keeps the file system alive after the user has unmounted it,
//! and then the device cannot be removed: the front would wait for itself.

use std::ffi::{CString, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Devices on devices on devices (partition, device mapper): deeper stacks are not followed.
const STACK_MAX: u32 = 8;

/// Detaches every file system that lies on a ublk device, in this process's mount namespace. Only
/// to be called in a namespace of its own with private mounts, else users would lose their mounts.
pub fn forget_mounts() {
    let table = fs::read("/proc/self/mountinfo").unwrap_or_default();
    let on_ublk = |number: &str, source: &[u8]| {
        let known = Path::new("/sys/dev/block").join(number).exists();
        let number = if known {
            Some(number.to_owned())
        } else {
            number_of(source)
        };
        number.is_some_and(|number| stands_on_ublk(&number, 0))
    };
    // Later mounts may lie inside earlier ones.
    for path in mounted_on(&table, on_ublk).into_iter().rev() {
        // SAFETY: a string that ends with zero.
        let done = unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
        if done < 0 {
            let error = io::Error::last_os_error();
            tracing::warn!(?path, %error, "stays mounted for this front: detaching may hang");
        }
    }
}

/// Mount points of a mountinfo table whose file system's device (`major:minor`, and the source as
/// it was given to mount) is wanted.
fn mounted_on(table: &[u8], wanted: impl Fn(&str, &[u8]) -> bool) -> Vec<CString> {
    let mut found = Vec::new();
    for line in table.split(|byte| *byte == b'\n') {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        let dash = fields.iter().position(|field| *field == b"-");
        let (Some(number), Some(point), Some(dash)) = (fields.get(2), fields.get(4), dash) else {
            continue;
        };
        let Ok(number) = std::str::from_utf8(number) else {
            continue;
        };
        let source = fields
            .get(dash + 2)
            .map(|source| plain(source))
            .unwrap_or_default();
        if wanted(number, &source) {
            found.extend(CString::new(plain(point)));
        }
    }
    found
}

/// Undoes the table's octal escapes (`\040` is a space).
fn plain(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        let digits = tail
            .get(..3)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match (first, byte) {
            (b'\\', Some(byte)) => {
                out.push(byte);
                rest = &tail[3..];
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

/// Device number of a device file: some file systems (btrfs) show a number of their own.
fn number_of(source: &[u8]) -> Option<String> {
    let path = OsString::from_vec(source.to_vec());
    let number = fs::metadata(path).ok()?.rdev();
    (number != 0).then(|| format!("{}:{}", libc::major(number), libc::minor(number)))
}

/// Is it a ublk device, a partition of one, or built on one?
fn stands_on_ublk(number: &str, depth: u32) -> bool {
    let Ok(device) = fs::canonicalize(Path::new("/sys/dev/block").join(number)) else {
        return false;
    };
    let named =
        |part: &std::ffi::OsStr| part.to_str().is_some_and(|part| part.starts_with("ublkb"));
    if device.iter().any(named) {
        return true;
    }
    let Ok(slaves) = fs::read_dir(device.join("slaves")) else {
        return false;
    };
    depth < STACK_MAX
        && slaves.flatten().any(|slave| {
            let number = fs::read_to_string(slave.path().join("dev")).unwrap_or_default();
            stands_on_ublk(number.trim(), depth + 1)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lies_on_the_device_is_found_and_names_are_plain() {
        let table = b"22 1 259:3 / / rw shared:1 - ext4 /dev/root rw\n\
            40 22 259:0 / /mnt/my\\040disk rw master:1 - ext4 /dev/ublkb0 rw\n\
            41 22 0:50 /sub /mnt/b rw - btrfs /dev/ublkb0p1 rw\n\
            42 22 0:51 / /tmp rw - tmpfs tmpfs rw\n\nnonsense\n";
        let found = mounted_on(table, |number, source| {
            number == "259:0" || source == b"/dev/ublkb0p1"
        });
        assert_eq!(found, [c"/mnt/my disk".to_owned(), c"/mnt/b".to_owned()]);
    }

    #[test]
    fn escapes_that_are_none_stay() {
        assert_eq!(plain(b"a\\040b\\134\\"), b"a b\\\\");
        assert_eq!(plain(b"\\9"), b"\\9");
    }

    #[test]
    fn the_root_file_system_stands_on_something_else() {
        let root = fs::metadata("/").expect("there is a root");
        let number = format!("{}:{}", libc::major(root.dev()), libc::minor(root.dev()));
        assert!(!stands_on_ublk(&number, 0));
        assert_eq!(number_of(b"/nowhere"), None);
    }
}
