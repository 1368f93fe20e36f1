//! Nodes, the client and the files: what is asked for is really done.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

const PROGRAM: &str = env!("CARGO_BIN_EXE_ukai-bound");
const DATA_BYTES: u64 = 2 << 20;
const LOG_BYTES: u64 = 64 << 10;
const BLOCK: u64 = 4096;

struct Daemon(Child);

impl Daemon {
    fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(PROGRAM);
        let mut child = command
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .expect("start");
        let mut line = String::new();
        let out = child.stdout.as_mut().expect("piped");
        BufReader::new(out).read_line(&mut line).expect("a line");
        assert_eq!(line, "ready\n");
        Self(child)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn node(folder: &Path, name: &str) -> (Daemon, File, String) {
    let file = File::create_new(folder.join(name)).expect("create");
    file.set_len(DATA_BYTES + LOG_BYTES).expect("size");
    let path = |name: &str| folder.join(name).display().to_string();
    let socket = path(&format!("{name}.sock"));
    let log = LOG_BYTES.to_string();
    let arguments = [
        "node",
        "--unix",
        &socket,
        "--file",
        &path(name),
        "--log-bytes",
        &log,
    ];
    let daemon = Daemon::start(&arguments);
    (daemon, File::open(folder.join(name)).expect("open"), socket)
}

fn drive(arguments: &[&str]) -> Output {
    Command::new(PROGRAM)
        .arg("drive")
        .args(arguments)
        .output()
        .expect("run")
}

fn figures(arguments: &[&str]) -> serde_json::Value {
    let output = drive(arguments);
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn word(file: &File, position: u64) -> u64 {
    let mut word = [0; 8];
    file.read_exact_at(&mut word, position).expect("read");
    u64::from_le_bytes(word)
}

#[test]
fn writes_reach_every_file_and_its_log_and_reads_bring_them_back() {
    // The build directory, not /tmp: that may be memory, which has no O_DIRECT.
    let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("temporary directory");
    let (_one, first, one) = node(folder.path(), "one");
    let (_two, second, two) = node(folder.path(), "two");
    let both = format!("{one},{two}");

    let blank = figures(&["--unix", &one, "--ios", "20", "--depth", "4"]);
    assert_eq!(
        (&blank["ios"], &blank["errors"]),
        (&0.into(), &20.into()),
        "nothing is written yet"
    );
    let fill = [
        "--unix",
        &both,
        "--fill",
        "--rw",
        "randwrite",
        "--ios",
        "300",
        "--depth",
        "128",
        "--fsync",
    ];
    let written = figures(&fill);
    assert_eq!(
        (&written["ios"], &written["errors"]),
        (&300.into(), &0.into())
    );
    for file in [&first, &second] {
        for position in (0..DATA_BYTES).step_by(4096) {
            assert_eq!(word(file, position), !position);
        }
        let logged =
            (0..LOG_BYTES / BLOCK).filter(|block| word(file, DATA_BYTES + block * BLOCK) != 0);
        assert!(logged.count() > 2, "each turn with writes has a log block");
    }
    for (load, bs, ios) in [("randread", "4096", 1000), ("read", "65536", 64)] {
        let read = figures(&[
            "--unix",
            &both,
            "--rw",
            load,
            "--bs",
            bs,
            "--ios",
            &ios.to_string(),
            "--depth",
            "32",
        ]);
        assert_eq!(
            (&read["ios"], &read["errors"]),
            (&ios.into(), &0.into()),
            "{load}"
        );
        assert!(read["p50_us"].as_f64() <= read["p999_us"].as_f64());
    }
}

#[test]
fn bad_input_is_an_error_that_says_what_is_wrong() {
    let says = |arguments: &[&str], word: &str| {
        let output = drive(arguments);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && text.contains(word),
            "{arguments:?}: {text}"
        );
    };
    says(&["--unix", "/nowhere/at-all"], "connect to /nowhere/at-all");
    says(&["--unix", "/nowhere", "--bs", "100"], "--bs");
    says(&["--unix", "/nowhere", "--depth", "0"], "--depth");
    says(&["--unix", "/nowhere", "--seconds=-1"], "--seconds");
}
