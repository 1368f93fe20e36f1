//! Every committed input of every target, without libFuzzer: what a fuzzer found once stays found.
//!
//! A failure names the file; `ci/fuzz/run TARGET FILE` repeats it under the fuzzer.

use std::panic::catch_unwind;
use std::path::Path;
use ukai_fuzz::{TARGETS, Target};

fn replay(target: &Target) -> usize {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target.name);
    let files = std::fs::read_dir(&folder);
    let files = files.unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<_> = files.map(|file| file.expect("listed").path()).collect();
    files.sort();
    for file in &files {
        let data = std::fs::read(file).expect("readable");
        let run = target.run;
        if catch_unwind(|| run(&data)).is_err() {
            panic!("{} fails", file.display());
        }
    }
    (target.run)(&[]);
    files.len()
}

macro_rules! targets {
    ($($name:ident),+ $(,)?) => {
        $(#[test]
        fn $name() {
            let target = TARGETS.iter().find(|target| target.name == stringify!($name));
            let count = replay(target.expect("a target of that name"));
            assert!(count >= 5, "the corpus of {} has {count} files", stringify!($name));
        })+

        #[test]
        fn no_target_is_left_out() {
            let mut names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
            assert_eq!(names, [$(stringify!($name)),+]);
            let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
            let mut folders: Vec<String> = std::fs::read_dir(corpus)
                .expect("is there")
                .map(|folder| folder.expect("listed").file_name().into_string().expect("plain"))
                .collect();
            folders.sort();
            names.sort_unstable();
            assert_eq!(folders, names);
        }
    };
}

targets!(
    header, message, stream, node, lane, control, archive, nbd, block, device
);
