//! `ukai-tools`: the administrator's side of UKAI.

use std::process::ExitCode;

fn main() -> ExitCode {
    ukai_tools::run()
}
