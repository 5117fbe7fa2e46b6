//! Bytes are a shader's text; then the worker's check, with a pass for each function
//! that could be an entry point.

#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};
use suanli_executor_fuzz::{room, shaders, wgsl};

fuzz_target!(|bytes: &[u8]| -> Corpus {
    if std::str::from_utf8(bytes).is_err() {
        return Corpus::Reject;
    }
    room::with_worker_stack(target, bytes);
    Corpus::Keep
});

fn target(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    shaders::check(&wgsl::graph_of(&text));
}
