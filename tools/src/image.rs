//! Image files, through `qemu-img`.

use crate::cli::ImageFormat;
use crate::error::{Result, ToolError};
use crate::front::{find_in_path, tail_of};
use crate::progress::Progress;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where `qemu-img` is.
pub(crate) fn qemu_img() -> Result<PathBuf> {
    find_in_path("qemu-img").ok_or_else(|| {
        ToolError::not_found("qemu-img is not installed (not in PATH)")
            .next("install it: apt-get install qemu-utils")
    })
}

/// What `qemu-img info` tells of a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ImageInfo {
    pub(crate) format: String,
    pub(crate) size_bytes: u64,
}

/// Looks at an image; `format` is found out from the file if not given.
pub(crate) fn info(qemu_img: &Path, file: &Path, format: Option<ImageFormat>) -> Result<ImageInfo> {
    if !file.is_file() {
        return Err(ToolError::not_found(format!(
            "{} is no file",
            file.display()
        )));
    }
    let mut command = Command::new(qemu_img);
    command.args(["info", "--output=json"]);
    if let Some(format) = format {
        command.args(["-f", format.name()]);
    }
    let output = command
        .arg(file)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| ToolError::refused(format!("start qemu-img: {error}")))?;
    if !output.status.success() {
        return Err(ToolError::refused(format!(
            "{} is no image that qemu-img can read: {}",
            file.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        )));
    }
    parse_info(&output.stdout)
        .ok_or_else(|| ToolError::refused(format!("qemu-img tells no size of {}", file.display())))
}

fn parse_info(json: &[u8]) -> Option<ImageInfo> {
    let info: serde_json::Value = serde_json::from_slice(json).ok()?;
    Some(ImageInfo {
        format: info.get("format")?.as_str()?.into(),
        size_bytes: info.get("virtual-size")?.as_u64()?,
    })
}

/// Copies with `qemu-img convert` and its own arguments before the two ends; `log` takes its messages.
pub(crate) fn convert(
    qemu_img: &Path,
    arguments: &[&str],
    from: &OsStr,
    to: &OsStr,
    log: &Path,
    progress: &Progress,
) -> Result<()> {
    let failed = |error: std::io::Error| ToolError::refused(format!("run qemu-img: {error}"));
    let messages = File::create(log).map_err(failed)?;
    let mut child = Command::new(qemu_img)
        .args(["convert", "-p"])
        .args(arguments)
        .arg("--")
        .arg(from)
        .arg(to)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(messages)
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdout) = child.stdout.take() {
        let mut buffer = [0; 256];
        while let Ok(n @ 1..) = stdout.read(&mut buffer) {
            if let Some(percent) = last_percent(&String::from_utf8_lossy(&buffer[..n])) {
                progress.set(percent);
            }
        }
    }
    let status = child.wait().map_err(failed)?;
    if status.success() {
        return Ok(());
    }
    Err(ToolError::refused(format!(
        "qemu-img convert failed ({status}){}",
        tail_of(log)
    )))
}

/// qemu-img writes `    (12.34/100%)` and a carriage return, again and again.
fn last_percent(text: &str) -> Option<u64> {
    let end = text.rfind("/100%)")?;
    let start = text[..end].rfind('(')? + 1;
    let whole = text[start..end].split('.').next()?;
    whole.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_found_in_what_qemu_img_prints() {
        assert_eq!(last_percent("    (0.00/100%)\r    (7.25/100%)\r"), Some(7));
        assert_eq!(last_percent("    (100.00/100%)\n"), Some(100));
        assert_eq!(last_percent("   (12.3"), None);
        assert_eq!(last_percent("/100%)"), None);
    }

    #[test]
    fn info_is_read() {
        let json = br#"{"virtual-size": 1048576, "filename": "x", "format": "qcow2"}"#;
        let info = ImageInfo {
            format: "qcow2".into(),
            size_bytes: 1 << 20,
        };
        assert_eq!(parse_info(json), Some(info));
        assert_eq!(parse_info(b"{}"), None);
        assert_eq!(parse_info(b"junk"), None);
    }
}
