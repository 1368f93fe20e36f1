//! The command: exit status and output.
#![allow(clippy::unwrap_used)] // in a test a panic is the report

use std::io::Write;
use std::process::{Command, Stdio};

fn run(args: &[&str], input: &str) -> (Option<i32>, String, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_ukai-check"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The child may stop reading at the first bad line.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    (
        output.status.code(),
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

const WRITE: &str = r#"{"event":"invoke","t":1,"op":1,"kind":"write","volume":"v","sector":8,"count":1,"write":77}
{"event":"ok","t":2,"op":1}
"#;
const CUT: &str = r#"{"event":"power-cut","t":3}
"#;
const READ_ZERO: &str = r#"{"event":"invoke","t":4,"op":2,"kind":"read","volume":"v","sector":8,"count":1}
{"event":"ok","t":5,"op":2,"values":[0]}
"#;

#[test]
fn exit_status_tells_good_bad_and_no_history_apart() {
    assert_eq!(run(&["-"], WRITE).0, Some(0));
    let bad = format!("{WRITE}{CUT}{READ_ZERO}");
    let (code, out, _) = run(&["-"], &bad);
    assert_eq!(code, Some(1));
    assert!(
        out.contains("sector 8") && out.contains("write 77") && out.contains("op 2"),
        "{out}"
    );
    assert_eq!(run(&["-", "--flush-mode"], &bad).0, Some(0));
    let (code, _, err) = run(&["-"], &format!("{WRITE}nonsense\n"));
    assert_eq!(code, Some(2));
    assert!(err.contains("line 3"), "{err}");
    assert_eq!(run(&["/nonexistent/history.jsonl"], "").0, Some(2));
}

#[test]
fn json_report_names_everything() {
    let (code, out, _) = run(&["-", "--json"], &format!("{WRITE}{READ_ZERO}"));
    assert_eq!(code, Some(1));
    let report: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(report["violation_count"], 1);
    assert_eq!(report["violations"][0]["sector"], 8);
    assert_eq!(report["violations"][0]["kind"], "lost-write");
}
