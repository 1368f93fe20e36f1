//! `volume import` and `volume export`: `qemu-img` against an NBD export that lives as long as the
//! copy.

use super::volume_create;
use crate::cli::{Export, Import};
use crate::context::Context;
use crate::error::{Result, ToolError};
use crate::front::{self, NbdExport};
use crate::image::{self, ImageInfo};
use crate::progress::Progress;
use crate::units::ByteSize;
use serde_json::json;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use ukai_meta::VolumeHead;
use ukai_proto::limits::SECTOR_BYTES;

pub(super) fn import(context: &Context, args: &Import) -> Result<()> {
    let name = &args.name.volume;
    let qemu_img = image::qemu_img()?;
    let info = image::info(&qemu_img, &args.file, args.format)?;
    let size = ByteSize(info.size_bytes.next_multiple_of(SECTOR_BYTES as u64));
    let create = !args.placement.place.is_empty() || !args.placement.node.is_empty();
    let plan = if create {
        Some(volume_create::plan(context, name, size, &args.placement)?)
    } else {
        let head = context
            .volume(name)
            .map(|map| map.head)
            .map_err(advise_place)?;
        check_free(&head)?;
        check_fits(&head, size, args)?;
        None
    };
    front::binary()?;
    if args.dry_run {
        return report(context, name, &args.file, &info, "would import");
    }
    if let Some(plan) = &plan {
        plan.commit(context)?;
    }
    let copied = copy_in(context, name, args, &qemu_img, &info, create);
    copied.map_err(|error| {
        if create {
            error.next(format!(
                "volume {name} was made and holds part of the image; import again without --place, or delete it"
            ))
        } else {
            error.next(format!("volume {name} holds part of the image; import again"))
        }
    })?;
    report(context, name, &args.file, &info, "imported")
}

fn copy_in(
    context: &Context,
    name: &str,
    args: &Import,
    qemu_img: &Path,
    info: &ImageInfo,
    fresh: bool,
) -> Result<()> {
    let export = NbdExport::attach(name, &context.meta)?;
    let progress = Progress::new(&format!("import {name}"), 100);
    let mut arguments = vec!["-n", "-f", &info.format, "-O", "raw"];
    if fresh {
        // A new volume reads as zeros: the image's holes need not be written.
        arguments.push("--target-is-zero");
    }
    let (uri, log) = (export.uri(), export.folder().join("qemu-img.log"));
    image::convert(
        qemu_img,
        &arguments,
        &absolute(&args.file)?,
        OsStr::new(&uri),
        &log,
        &progress,
    )?;
    export.detach()
}

pub(super) fn export(context: &Context, args: &Export) -> Result<()> {
    let name = &args.name.volume;
    let head = context.volume(name)?.head;
    check_free(&head)?;
    let qemu_img = image::qemu_img()?;
    if args.file.exists() && !args.overwrite {
        return Err(
            ToolError::refused(format!("{} exists already", args.file.display()))
                .next("choose another file, or give --overwrite"),
        );
    }
    let target = absolute(&args.file)?;
    let folder = Path::new(&target).parent().unwrap_or(Path::new("/"));
    if !folder.is_dir() {
        return Err(ToolError::not_found(format!(
            "there is no folder {}",
            folder.display()
        )));
    }
    let info = ImageInfo {
        format: args.format.name().into(),
        size_bytes: head.size_bytes,
    };
    front::binary()?;
    if args.dry_run {
        return report(context, name, &args.file, &info, "would export");
    }
    // Under another name until it is whole: half an image must not look like one.
    let mut partial = target.clone();
    partial.push(".partial");
    let copied = copy_out(context, name, &qemu_img, &info, &partial);
    let copied = copied.and_then(|()| {
        std::fs::rename(&partial, &target).map_err(|error| {
            ToolError::refused(format!("rename to {}: {error}", args.file.display()))
        })
    });
    if copied.is_err() {
        let _ = std::fs::remove_file(&partial);
    }
    copied?;
    report(context, name, &args.file, &info, "exported")
}

fn copy_out(
    context: &Context,
    name: &str,
    qemu_img: &Path,
    info: &ImageInfo,
    target: &OsStr,
) -> Result<()> {
    let export = NbdExport::attach(name, &context.meta)?;
    let progress = Progress::new(&format!("export {name}"), 100);
    let arguments = ["-f", "raw", "-O", &info.format];
    let (uri, log) = (export.uri(), export.folder().join("qemu-img.log"));
    image::convert(
        qemu_img,
        &arguments,
        OsStr::new(&uri),
        target,
        &log,
        &progress,
    )?;
    export.detach()
}

/// qemu-img takes `nbd:x` or `json:...` for a protocol; an absolute path is always a file.
fn absolute(file: &Path) -> Result<OsString> {
    std::path::absolute(file)
        .map(PathBuf::into_os_string)
        .map_err(|error| ToolError::refused(format!("path {}: {error}", file.display())))
}

fn check_free(head: &VolumeHead) -> Result<()> {
    let name = &head.name;
    if head.deleting {
        return Err(ToolError::busy(format!("volume {name} is being deleted"))
            .next("finish it with `ukai-tools volume delete`"));
    }
    match &head.attach {
        None => Ok(()),
        Some(attach) => Err(ToolError::busy(format!(
            "volume {name} is attached on host {}",
            attach.host
        ))
        .next(format!(
            "detach it first: `ublk-front detach {name}` on {}",
            attach.host
        ))),
    }
}

fn check_fits(head: &VolumeHead, size: ByteSize, args: &Import) -> Result<()> {
    let (name, has) = (&head.name, ByteSize(head.size_bytes));
    if has < size {
        return Err(
            ToolError::refused(format!("volume {name} has {has}, the image needs {size}"))
                .next(format!("ukai-tools volume resize {name} --size {size}")),
        );
    }
    if has > size && !args.allow_larger {
        return Err(
            ToolError::refused(format!("volume {name} has {has}, the image only {size}"))
                .next("give --allow-larger: the rest of the volume keeps what it holds"),
        );
    }
    Ok(())
}

fn advise_place(error: ToolError) -> ToolError {
    if error.kind == crate::error::Kind::NotFound {
        return error.next("give --place SITE:COPIES,... to make the volume, of the image's size");
    }
    error
}

fn report(context: &Context, name: &str, file: &Path, info: &ImageInfo, done: &str) -> Result<()> {
    let value = json!({ "done": done, "volume": name, "file": file, "format": info.format,
                        "size_bytes": info.size_bytes });
    context.output.show(&value, || {
        let size = ByteSize(info.size_bytes);
        let (file, format) = (file.display(), &info.format);
        if done.ends_with("import") || done == "imported" {
            format!("{done} {file} ({format}, {size}) into volume {name}")
        } else {
            format!("{done} volume {name} into {file} ({format}, {size})")
        }
    });
    Ok(())
}
