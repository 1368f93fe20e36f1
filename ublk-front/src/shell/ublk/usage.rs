//! Who uses a device: removing it under a file system or a VM would be data loss for them.
//!
//! Nothing here opens the device. A front that held its own device open and died could never be
//! cleaned up: closing waits for I/O that only the front could serve.

use std::fs;
use std::path::Path;

/// Users of `/dev/ublkbN`, each in words; empty if nobody uses it. What cannot be looked at (other
/// users' processes) is left out.
#[must_use]
pub fn users(id: u32) -> Vec<String> {
    let device = format!("ublkb{id}");
    let mut found = Vec::new();
    let parts = with_partitions(&device);
    let numbers: Vec<String> = parts
        .iter()
        .filter_map(|part| device_number(part))
        .collect();
    for part in &parts {
        found.extend(holders(part));
    }
    let proc = Path::new("/proc");
    for (pid, table) in mount_tables(proc) {
        let points = mount_points(&table, &numbers);
        found.extend(points.into_iter().map(|point| match pid {
            1 => point,
            pid => format!("{point} for process {pid}"),
        }));
    }
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    found.extend(swap_areas(&swaps, &parts));
    found.extend(openers(proc, &parts));
    found
}

/// The device itself and its partitions, by name.
fn with_partitions(device: &str) -> Vec<String> {
    let mut parts = vec![device.to_owned()];
    if let Ok(entries) = fs::read_dir(format!("/sys/block/{device}")) {
        let names = entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok());
        parts.extend(names.filter(|name| name.starts_with(device)));
    }
    parts
}

/// `major:minor`.
fn device_number(part: &str) -> Option<String> {
    let number = fs::read_to_string(format!("/sys/class/block/{part}/dev")).ok()?;
    Some(number.trim().to_owned())
}

/// Device mapper and the like on top of it.
fn holders(part: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(format!("/sys/class/block/{part}/holders")) else {
        return Vec::new();
    };
    let names = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok());
    names.map(|name| format!("{name} is built on it")).collect()
}

/// One mountinfo table per mount namespace, with a process that lives in it: the lowest number, so
/// process 1 for that of the machine. A namespace that a front made for itself has no mounts of ublk
/// devices (`super::mounts`) and is left out.
fn mount_tables(proc: &Path) -> Vec<(u32, String)> {
    let namespace = |process: &Path| fs::read_link(process.join("ns/mnt")).ok();
    let (own, main) = (namespace(&proc.join("self")), namespace(&proc.join("1")));
    let is_own = main.is_some() && own != main;
    let mut known: Vec<_> = own.filter(|_| is_own).into_iter().collect();
    let mut processes = numbered(proc);
    processes.sort_unstable();
    let mut tables = Vec::new();
    for pid in processes {
        let process = proc.join(pid.to_string());
        let Some(name) = namespace(&process) else {
            continue;
        };
        if !known.contains(&name) {
            known.push(name);
            tables.push((
                pid,
                fs::read_to_string(process.join("mountinfo")).unwrap_or_default(),
            ));
        }
    }
    tables
}

/// The processes in `/proc`.
fn numbered(proc: &Path) -> Vec<u32> {
    let Ok(entries) = fs::read_dir(proc) else {
        return Vec::new();
    };
    let names = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok());
    names.filter_map(|name| name.parse().ok()).collect()
}

/// Mount points in a mountinfo table whose device number (third field) is one of `numbers`.
fn mount_points(table: &str, numbers: &[String]) -> Vec<String> {
    let fields = table
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>());
    let mounted = fields.filter(|fields| {
        fields
            .get(2)
            .is_some_and(|number| numbers.iter().any(|known| known == number))
    });
    mounted
        .filter_map(|fields| Some(format!("mounted at {}", fields.get(4)?)))
        .collect()
}

fn swap_areas(table: &str, parts: &[String]) -> Vec<String> {
    let files = table
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().next());
    let used = files.filter(|file| is_part(file, parts));
    used.map(|file| format!("{file} is a swap area")).collect()
}

fn is_part(path: &str, parts: &[String]) -> bool {
    path.strip_prefix("/dev/")
        .is_some_and(|name| parts.iter().any(|part| part == name))
}

/// Processes that have it open. `proc` is `/proc`, or a folder made like it.
fn openers(proc: &Path, parts: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    for pid in numbered(proc) {
        let process = proc.join(pid.to_string());
        let Ok(files) = fs::read_dir(process.join("fd")) else {
            continue;
        };
        let opens = files.flatten().any(|file| {
            let target = fs::read_link(file.path());
            target.is_ok_and(|target| target.to_str().is_some_and(|path| is_part(path, parts)))
        });
        if opens {
            let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
            found.push(format!("open in {} (process {pid})", name.trim()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn mounts_are_found_by_device_number() {
        let table = "22 1 259:3 / / rw - ext4 /dev/root rw\n\
                     40 22 259:0 / /mnt/disk rw,relatime - ext4 /dev/ublkb0 rw\n\
                     41 22 259:10 / /other rw - xfs /dev/sdb rw\n";
        let numbers = ["259:0".to_owned(), "259:1".to_owned()];
        assert_eq!(mount_points(table, &numbers), ["mounted at /mnt/disk"]);
        assert!(mount_points(table, &[]).is_empty());
    }

    #[test]
    fn each_other_namespace_is_looked_at_once() -> std::io::Result<()> {
        let proc = std::env::temp_dir().join(format!("ukai-mounts-test-{}", std::process::id()));
        let processes = [
            ("self", "own"),
            ("1", "main"),
            ("9", "box"),
            ("30", "own"),
            ("41", "box"),
        ];
        for (pid, namespace) in processes {
            fs::create_dir_all(proc.join(pid).join("ns"))?;
            symlink(namespace, proc.join(pid).join("ns/mnt"))?;
            fs::write(proc.join(pid).join("mountinfo"), namespace)?;
        }
        let tables = mount_tables(&proc);
        fs::remove_file(proc.join("self/ns/mnt"))?;
        symlink("main", proc.join("self/ns/mnt"))?;
        let shared = mount_tables(&proc);
        fs::remove_dir_all(&proc)?;
        assert_eq!(tables, [(1, "main".to_owned()), (9, "box".to_owned())]);
        let pids: Vec<u32> = shared.iter().map(|(pid, _)| *pid).collect();
        assert_eq!(
            pids,
            [1, 9, 30],
            "without a namespace of its own nothing is left out"
        );
        Ok(())
    }

    #[test]
    fn swap_and_partitions_count_but_longer_names_do_not() {
        let parts = ["ublkb1".to_owned(), "ublkb1p2".to_owned()];
        let table = "Filename Type Size Used Priority\n\
                     /dev/ublkb1p2 partition 1 0 -2\n/dev/ublkb11 partition 1 0 -3\n";
        assert_eq!(swap_areas(table, &parts), ["/dev/ublkb1p2 is a swap area"]);
    }

    #[test]
    fn processes_that_hold_it_open_are_named() -> std::io::Result<()> {
        let proc = std::env::temp_dir().join(format!("ukai-usage-test-{}", std::process::id()));
        for (pid, target) in [
            ("17", "/dev/ublkb1"),
            ("18", "/dev/ublkb11"),
            ("self", "/dev/ublkb1"),
        ] {
            fs::create_dir_all(proc.join(pid).join("fd"))?;
            fs::write(proc.join(pid).join("comm"), "qemu\n")?;
            symlink(target, proc.join(pid).join("fd/3"))?;
        }
        let found = openers(&proc, &["ublkb1".to_owned()]);
        fs::remove_dir_all(&proc)?;
        assert_eq!(found, ["open in qemu (process 17)"]);
        Ok(())
    }
}
