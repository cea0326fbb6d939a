//! Arguments, tracing, exit code; nothing else.

use std::process::ExitCode;

fn main() -> ExitCode {
    sgwall::cli::main()
}
