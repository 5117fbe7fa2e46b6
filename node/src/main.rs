//! `suanli`: the daemon and its command line. All of it is in the library.

#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    suanli_node::cli::main()
}
