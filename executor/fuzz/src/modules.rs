//! The worker's look at WebAssembly modules, and what must hold of its answer.

use suanli_executor::limits::{FUNCTION_BYTES_MAX, FUNCTIONS_MAX};
use wasmparser::{Parser, Payload, Validator, WasmFeatures};

use crate::{memory::most_held, show};

#[path = "../../src/bin/suanli-worker/wasm/weigh.rs"]
mod weigh;

/// What modules may import here. The worker has more names in its list.
pub const OFFERED: &[&str] = &["proc_exit", "fd_write", "fd_read", "args_get"];
/// The name that they import it by.
pub const HOST: &str = "wasi_snapshot_preview1";

/// A weighing reads in place, and keeps a number for each function, which may be a
/// byte of the module, in lists that double.
const MEMORY_MAX: usize = 1 << 16;
const MEMORY_PER_BYTE: usize = 16;

/// Weighs a module.
///
/// # Panics
/// That is a finding.
pub fn check(code: &[u8]) {
    let offered = weigh::Offered {
        module: HOST,
        functions: OFFERED,
    };
    let (weighed, held) = most_held(|| weigh::weigh(code, offered));
    show(|| format!("{} bytes: {weighed:?}", code.len()));
    assert!(
        held <= MEMORY_MAX + code.len() * MEMORY_PER_BYTE,
        "weighing held {held} bytes"
    );
    let valid = Validator::new_with_features(features())
        .validate_all(code)
        .is_ok();
    match weighed {
        Ok(_) if valid => hold_to_limits(code),
        Ok(_) => {}
        Err(detail) => assert!(
            !valid || !detail.contains("malformed"),
            "valid, but called malformed: {detail}"
        ),
    }
}

/// What the worker's engine has switched on, but for what needs its compiler.
fn features() -> WasmFeatures {
    WasmFeatures::WASM2
        | WasmFeatures::TAIL_CALL
        | WasmFeatures::EXTENDED_CONST
        | WasmFeatures::FLOATS
}

fn hold_to_limits(code: &[u8]) {
    let (mut functions, mut starts) = (0_u32, false);
    for payload in Parser::new(0).parse_all(code) {
        match payload.expect("a valid module can be read") {
            Payload::ImportSection(imports) => {
                for import in imports.into_imports() {
                    let import = import.expect("a valid import can be read");
                    assert_eq!(import.module, HOST);
                    assert!(OFFERED.contains(&import.name), "{}", import.name);
                }
            }
            Payload::CodeSectionEntry(body) => {
                functions += 1;
                assert!(body.range().len() <= FUNCTION_BYTES_MAX);
            }
            Payload::ExportSection(exports) => {
                for export in exports {
                    starts |= export.expect("a valid export can be read").name == "_start";
                }
            }
            _ => {}
        }
    }
    assert!(functions <= FUNCTIONS_MAX && starts);
}
