//! Import, export and settle with a stand-in for `ublk-front` that serves a plain file by `qemu-nbd`:
//! what is tested is the tools' side, with the real `qemu-img`.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // a failure is the test's result

mod common;

use common::{Ran, World};
use std::os::unix::fs::PermissionsExt;
use ukai_meta::{ReplicaState, transition};

/// Attach: serve `backing` and stay until detach writes into the pipe. `$FAIL` makes it fail.
const STAND_IN: &str = r#"#!/bin/sh
verb=$1; volume=$2; shift 2
echo "$verb $volume" >> "$WORLD/calls"
while [ $# -gt 0 ]; do
  case $1 in
    --nbd-unix) socket=$2 ;; --run-dir) run=$2 ;; --frontend) [ "$2" = nbd ] || exit 9 ;;
    --meta) [ "$2" = "$UKAI_META" ] || exit 9 ;;
  esac
  shift 2
done
case $verb in
  attach)
    [ -z "$FAIL" ] || { echo "node n1 cannot be reached" >&2; exit 1; }
    mkfifo "$run/detach"
    qemu-nbd --fork --persistent --pid-file "$run/pid" -k "$socket" -x "$volume" -f raw "$WORLD/backing" || exit 1
    echo "attached $volume nbd+unix:///$volume?socket=$socket"
    read -r _ < "$run/detach"
    kill "$(cat "$run/pid")"
    echo "detached $volume" >> "$WORLD/calls" ;;
  detach) echo now > "$run/detach" ;;
  settle) [ -z "$FAIL" ] || exit 1 ;;
esac
"#;

struct Transfer {
    world: World,
    front: String,
}

impl Transfer {
    /// A volume `v` of 8 MiB.
    fn new() -> Self {
        let world = World::new();
        let front = world.path("stand-in");
        std::fs::write(&front, STAND_IN).unwrap();
        std::fs::set_permissions(&front, std::fs::Permissions::from_mode(0o755)).unwrap();
        world.ok(&[
            "volume", "create", "v", "--size", "8MiB", "--place", "site-a:1",
        ]);
        let transfer = Self { world, front };
        transfer.backing(8 << 20);
        transfer
    }

    fn backing(&self, bytes: u64) {
        std::fs::File::create(self.world.path("backing"))
            .unwrap()
            .set_len(bytes)
            .unwrap();
    }

    fn run(&self, args: &[&str], fail: &str) -> Ran {
        let folder = self.world.folder.path().display().to_string();
        self.world.run_with(
            args,
            &[
                ("UKAI_FRONT", &self.front),
                ("WORLD", &folder),
                ("FAIL", fail),
            ],
        )
    }

    fn ok(&self, args: &[&str]) -> String {
        let ran = self.run(args, "");
        assert_eq!(ran.code, 0, "{ran:?}");
        ran.stdout
    }

    fn calls(&self) -> String {
        std::fs::read_to_string(self.world.path("calls")).unwrap_or_default()
    }
}

fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes)
        .map(|at| (at / 512 * 7 + at % 251) as u8)
        .collect()
}

#[test]
fn raw_goes_in_and_comes_out() {
    let t = Transfer::new();
    let (image, copy) = (t.world.path("in.img"), t.world.path("out.img"));
    std::fs::write(&image, pattern(8 << 20)).unwrap();
    let text = t.ok(&["volume", "import", "v", &image]);
    assert!(
        text.contains("imported") && text.contains("(raw, 8MiB) into volume v"),
        "{text}"
    );
    assert_eq!(t.calls(), "attach v\ndetach v\ndetached v\n");
    assert!(std::fs::read(t.world.path("backing")).unwrap() == pattern(8 << 20));
    t.ok(&["volume", "export", "v", &copy]);
    assert!(std::fs::read(&copy).unwrap() == pattern(8 << 20));
    assert!(!std::path::Path::new(&format!("{copy}.partial")).exists());
}

#[test]
fn qcow2_comes_out_and_goes_into_a_volume_made_for_it() {
    let t = Transfer::new();
    let (image, back) = (t.world.path("out.qcow2"), t.world.path("back.img"));
    std::fs::write(t.world.path("backing"), pattern(8 << 20)).unwrap();
    let text = t.ok(&["volume", "export", "v", &image, "--format", "qcow2"]);
    assert!(text.contains("(qcow2, 8MiB)"), "{text}");
    assert!(std::fs::read(&image).unwrap().starts_with(b"QFI\xfb"));
    t.backing(8 << 20);
    let import = ["volume", "import", "w", &image, "--place", "site-b:2"];
    let before = t.world.dump();
    assert!(
        t.ok(&[&import[..], &["--dry-run"]].concat())
            .starts_with("would import")
    );
    assert_eq!(t.world.dump(), before);
    t.ok(&import);
    let map = t.world.map("w");
    assert_eq!((map.head.size_bytes, map.nodes().len()), (8 << 20, 2));
    t.ok(&["volume", "export", "w", &back]);
    assert!(std::fs::read(&back).unwrap() == pattern(8 << 20));
}

#[test]
fn an_image_that_is_no_multiple_of_a_sector_fits_the_next_one() {
    let t = Transfer::new();
    let image = t.world.path("odd.img");
    std::fs::write(&image, pattern(10_000 / 512 * 512)).unwrap();
    t.backing(12 << 10);
    t.ok(&["volume", "import", "w", &image, "--place", "site-a:1"]);
    assert_eq!(t.world.map("w").head.size_bytes, 12 << 10);
    let stored = std::fs::read(t.world.path("backing")).unwrap();
    assert!(stored[..9728] == pattern(9728) && stored[9728..].iter().all(|byte| *byte == 0));
}

#[test]
fn a_front_that_fails_is_reported_with_its_words() {
    let t = Transfer::new();
    let image = t.world.path("in.img");
    std::fs::write(&image, pattern(8 << 20)).unwrap();
    let ran = t.run(&["volume", "import", "v", &image], "yes");
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stderr.contains("node n1 cannot be reached"), "{ran:?}");
    let target = t.world.path("out.img");
    let ran = t.run(&["volume", "export", "v", &target], "yes");
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(!std::path::Path::new(&target).exists());
    let ran = t.run(
        &["volume", "import", "w", &image, "--place", "site-a:1"],
        "yes",
    );
    assert!(
        ran.code == 1 && ran.stderr.contains("import again without --place"),
        "{ran:?}"
    );
}

#[test]
fn a_copy_that_fails_ends_the_front_and_leaves_no_file() {
    let t = Transfer::new();
    // The export is smaller than the image: qemu-img refuses.
    t.backing(1 << 20);
    let image = t.world.path("in.img");
    std::fs::write(&image, pattern(8 << 20)).unwrap();
    let ran = t.run(&["volume", "import", "v", &image], "");
    assert!(
        ran.code == 1 && ran.stderr.contains("qemu-img convert failed"),
        "{ran:?}"
    );
    assert!(t.calls().ends_with("detached v\n"), "{}", t.calls());
}

#[test]
fn a_detached_volume_is_settled() {
    let t = Transfer::new();
    t.world.ok(&["volume", "add-location", "v", "--node", "n2"]);
    let ran = t.run(&["volume", "synchronize", "v"], "yes");
    assert!(
        ran.code == 1 && ran.stderr.contains("settle v failed"),
        "{ran:?}"
    );
    // The stand-in settles nothing, and that is seen.
    let ran = t.run(&["volume", "synchronize", "v"], "");
    assert!(
        ran.code == 1 && ran.stderr.contains("2 chunks joining on n2"),
        "{ran:?}"
    );
    t.world.transition("v", |map| {
        transition::promote(map, map.all(), common::node_id(2))
    });
    assert!(
        t.ok(&["volume", "synchronize", "v"])
            .contains("every replica of v is in sync")
    );
    assert_eq!(
        t.world
            .map("v")
            .ranges_of(common::node_id(2), ReplicaState::InSync)
            .len(),
        1
    );
    assert_eq!(t.calls(), "settle v\nsettle v\n");
}
