//! What a module is, before anything is compiled: its sizes, what it imports,
//! what it exports.
//!
//! A compiler's time grows faster than a function does, so the parts of a
//! module are bounded one by one. Messages name what to do: most modules that
//! are refused here were built for another world.
//!
//! [`weigh`] is a function of a module and of what is offered to it, and says why
//! not in words; nothing here knows of the worker, so that a fuzzer can have this
//! module by its path.

use suanli_executor::limits::{FUNCTION_BYTES_MAX, FUNCTIONS_MAX, TABLE_ELEMENTS_MAX};
use wasmparser::{ExternalKind, Parser, Payload};

/// What a host offers to modules: the name that they import it by, and its functions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Offered<'a> {
    pub(crate) module: &'a str,
    pub(crate) functions: &'a [&'a str],
}

/// Refuses what is too large, or built for another host.
pub(crate) fn weigh(code: &[u8], offered: Offered<'_>) -> Result<(), String> {
    if !code.starts_with(b"\0asm") {
        return Err("the file is no WebAssembly module (those begin with \\0asm)".to_owned());
    }
    let mut starts = false;
    for payload in Parser::new(0).parse_all(code) {
        match payload.map_err(|error| malformed(&error))? {
            Payload::Version {
                encoding: wasmparser::Encoding::Component,
                ..
            } => {
                return Err(
                    "the file is a component; build a core module for WASI preview 1 (target wasm32-wasip1)"
                        .to_owned(),
                );
            }
            Payload::ImportSection(imports) => {
                for import in imports.into_imports() {
                    let import = import.map_err(|error| malformed(&error))?;
                    offered.check(import.module, import.name)?;
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
    Err("the module exports no function `_start`: build a command, not a library".to_owned())
}

impl Offered<'_> {
    fn check(self, module: &str, name: &str) -> Result<(), String> {
        if module == self.module && self.functions.contains(&name) {
            return Ok(());
        }
        Err(format!(
            "the module imports `{}.{}`, which is not offered; programs get the functions of {} (WASI preview 1) and nothing else",
            module.escape_debug(),
            name.escape_debug(),
            self.module
        ))
    }
}

fn at_most<T: PartialOrd + std::fmt::Display>(have: T, most: T, what: &str) -> Result<(), String> {
    if have <= most {
        return Ok(());
    }
    Err(format!("{have} {what}, {most} are allowed"))
}

fn malformed(error: &wasmparser::BinaryReaderError) -> String {
    format!("the module is malformed: {error}")
}
