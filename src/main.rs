//! The binary: everything is in the library.

use opsward::cli;
use opsward::settings::Source;
use std::io::Write;
use std::process::ExitCode;

/// The node beside it is to have the machine.
const WORKERS: usize = 2;
/// A debug build's futures do not fit into the usual 2 MiB.
const STACK_BYTES: usize = 8 << 20;

fn main() -> ExitCode {
    // One provider for peers and for Postgres; nothing else installs one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .thread_stack_size(STACK_BYTES)
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => {
            let exit = runtime.block_on(cli::main(std::env::args_os(), Source::process()));
            // A name that is still being looked up must not keep the process.
            runtime.shutdown_background();
            exit.into()
        }
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "opsward: cannot start: {error}");
            ExitCode::FAILURE
        }
    }
}
