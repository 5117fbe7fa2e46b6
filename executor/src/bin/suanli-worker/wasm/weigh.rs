//! What a module is, before anything is compiled: its sizes, what it imports,
//! what it exports.
//!
//! A compiler's time grows faster than a function does, so the parts of a
//! module are bounded one by one. Messages name what to do: most modules that
//! are refused here were built for another world.

use suanli_executor::{
    ipc::Failure,
    limits::{FUNCTION_BYTES_MAX, FUNCTIONS_MAX, TABLE_ELEMENTS_MAX},
};
use wasmparser::{ExternalKind, Parser, Payload};

use super::wasi;
use crate::Fault;

/// Refuses what is too large, or built for another host.
pub(super) fn weigh(code: &[u8]) -> Result<(), Fault> {
    if !code.starts_with(b"\0asm") {
        return Err(invalid(
            "the file is no WebAssembly module (those begin with \\0asm)",
        ));
    }
    let mut starts = false;
    for payload in Parser::new(0).parse_all(code) {
        match payload.map_err(|error| malformed(&error))? {
            Payload::Version {
                encoding: wasmparser::Encoding::Component,
                ..
            } => {
                return Err(invalid(
                    "the file is a component; build a core module for WASI preview 1 (target wasm32-wasip1)",
                ));
            }
            Payload::ImportSection(imports) => {
                for import in imports.into_imports() {
                    let import = import.map_err(|error| malformed(&error))?;
                    offered(import.module, import.name)?;
                }
            }
            Payload::FunctionSection(functions) => {
                at_most(functions.count(), FUNCTIONS_MAX, "functions")?;
            }
            Payload::CodeSectionEntry(body) => {
                let range = body.range();
                at_most(
                    range.end.saturating_sub(range.start),
                    FUNCTION_BYTES_MAX,
                    "bytes in one function",
                )?;
            }
            Payload::ElementSection(elements) => {
                let most = u32::try_from(TABLE_ELEMENTS_MAX).unwrap_or(u32::MAX);
                at_most(elements.count(), most, "element segments")?;
            }
            Payload::ExportSection(exports) => {
                for export in exports {
                    let export = export.map_err(|error| malformed(&error))?;
                    starts |= export.name == "_start" && export.kind == ExternalKind::Func;
                }
            }
            _ => {}
        }
    }
    if starts {
        return Ok(());
    }
    Err(invalid(
        "the module exports no function `_start`: build a command, not a library",
    ))
}

fn offered(module: &str, name: &str) -> Result<(), Fault> {
    if module == wasi::MODULE && wasi::NAMES.contains(&name) {
        return Ok(());
    }
    let (module, name) = (module.escape_debug(), name.escape_debug());
    Err(invalid(&format!(
        "the module imports `{module}.{name}`, which is not offered; programs get the functions of {} (WASI preview 1) and nothing else",
        wasi::MODULE
    )))
}

fn at_most<T: PartialOrd + std::fmt::Display>(have: T, most: T, what: &str) -> Result<(), Fault> {
    if have <= most {
        return Ok(());
    }
    Err(invalid(&format!("{have} {what}, {most} are allowed")))
}

fn malformed(error: &wasmparser::BinaryReaderError) -> Fault {
    invalid(&format!("the module is malformed: {error}"))
}

fn invalid(detail: &str) -> Fault {
    Fault::new(Failure::InvalidModule, detail)
}
