//! What a module is, before anything is compiled: its sizes, what it imports,
//! what it exports.
//!
//! A compiler's time grows faster than a function does, so the parts of a
//! module are bounded one by one. Messages name what to do: most modules that
//! are refused here were built for another world.

use suanli_executor::{
    ipc::Failure,
    limits::{FUNCTION_BYTES_MAX, FUNCTIONS_MAX, TABLE_ELEMENTS_MAX, TABLES_MAX},
};
use wasmparser::{
    BinaryReaderError, CompositeInnerType, ElementItems, ExternalKind, Parser, Payload, TypeRef,
};

use super::wasi;
use crate::Fault;

/// What a module takes to compile, beside its bytes, and an instance of it to begin.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Weight {
    /// With a body.
    pub(super) functions: u64,
    /// Of linear memory, 64 KiB each.
    pub(super) memory_pages: u64,
    /// Of all tables, and items of all element segments.
    pub(super) elements: u64,
}

/// Refuses what is too large, or built for another host. What is left can't fail
/// to become an instance but by a trap, or through the machine's fault.
pub(super) fn weigh(code: &[u8]) -> Result<Weight, Fault> {
    if !code.starts_with(b"\0asm") {
        return Err(invalid(
            "the file is no WebAssembly module (those begin with \\0asm)",
        ));
    }
    let mut scales = Scales::default();
    for payload in Parser::new(0).parse_all(code) {
        scales.add(payload.map_err(|error| malformed(&error))?)?;
    }
    if !scales.starts {
        return Err(invalid(
            "the module exports no function `_start`: build a command, not a library",
        ));
    }
    Ok(Weight {
        functions: scales.bodies,
        memory_pages: scales.memory_pages,
        elements: scales.table_elements.saturating_add(scales.items),
    })
}

/// What is known of a module so far.
#[derive(Default)]
struct Scales {
    /// Whether a type is that of a function that takes and gives nothing.
    types: Vec<bool>,
    /// The types of functions, those of imported ones first.
    functions: Vec<u32>,
    bodies: u64,
    memory_pages: u64,
    table_elements: u64,
    /// Of element segments.
    items: u64,
    starts: bool,
}

impl Scales {
    fn add(&mut self, payload: Payload<'_>) -> Result<(), Fault> {
        match payload {
            Payload::Version {
                encoding: wasmparser::Encoding::Component,
                ..
            } => {
                return Err(invalid(
                    "the file is a component; build a core module for WASI preview 1 (target wasm32-wasip1)",
                ));
            }
            Payload::TypeSection(groups) => {
                for group in groups {
                    let types = group.map_err(|error| malformed(&error))?.into_types();
                    self.types
                        .extend(types.map(|of| match of.composite_type.inner {
                            CompositeInnerType::Func(of) => {
                                of.params().is_empty() && of.results().is_empty()
                            }
                            _ => false,
                        }));
                }
            }
            Payload::ImportSection(imports) => {
                for import in imports.into_imports() {
                    let import = import.map_err(|error| malformed(&error))?;
                    offered(import.module, import.name)?;
                    if let TypeRef::Func(of) | TypeRef::FuncExact(of) = import.ty {
                        self.functions.push(of);
                    }
                }
            }
            Payload::FunctionSection(functions) => {
                at_most(functions.count(), FUNCTIONS_MAX, "functions")?;
                self.bodies = functions.count().into();
                for of in functions {
                    self.functions.push(of.map_err(|error| malformed(&error))?);
                }
            }
            Payload::CodeSectionEntry(body) => {
                let range = body.range();
                at_most(
                    range.end.saturating_sub(range.start),
                    FUNCTION_BYTES_MAX,
                    "bytes in one function",
                )?;
            }
            Payload::MemorySection(memories) => {
                for memory in memories {
                    let initial = memory.map_err(|error| malformed(&error))?.initial;
                    self.memory_pages = self.memory_pages.saturating_add(initial);
                }
            }
            other => self.add_tables_and_exports(other)?,
        }
        Ok(())
    }

    fn add_tables_and_exports(&mut self, payload: Payload<'_>) -> Result<(), Fault> {
        let elements_max = u64::try_from(TABLE_ELEMENTS_MAX).unwrap_or(u64::MAX);
        match payload {
            Payload::TableSection(tables) => {
                let count = usize::try_from(tables.count()).unwrap_or(usize::MAX);
                at_most(count, TABLES_MAX, "tables")?;
                for table in tables {
                    let initial = table.map_err(|error| malformed(&error))?.ty.initial;
                    self.table_elements = self.table_elements.saturating_add(initial);
                }
                at_most(self.table_elements, elements_max, "elements of tables")?;
            }
            Payload::ElementSection(segments) => {
                for segment in segments {
                    let items = match segment.map_err(|error| malformed(&error))?.items {
                        ElementItems::Functions(items) => items.count(),
                        ElementItems::Expressions(_, items) => items.count(),
                    };
                    // One for the segment.
                    self.items = self.items.saturating_add(u64::from(items) + 1);
                    at_most(self.items, elements_max, "items of element segments")?;
                }
            }
            Payload::ExportSection(exports) => {
                for export in exports {
                    let export = export.map_err(|error| malformed(&error))?;
                    if export.name == "_start" && export.kind == ExternalKind::Func {
                        self.starts = true;
                        self.check_start(export.index)?;
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn check_start(&self, function: u32) -> Result<(), Fault> {
        let at = |index: u32| usize::try_from(index).unwrap_or(usize::MAX);
        let of = self.functions.get(at(function));
        if of.and_then(|of| self.types.get(at(*of))) == Some(&true) {
            return Ok(());
        }
        Err(invalid(
            "`_start` is to take no parameters and to give no results: build a command with your compiler's own start code",
        ))
    }
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

fn malformed(error: &BinaryReaderError) -> Fault {
    invalid(&format!("the module is malformed: {error}"))
}

fn invalid(detail: &str) -> Fault {
    Fault::new(Failure::InvalidModule, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weighed(body: &str) -> Result<Weight, String> {
        let code = wat::parse_str(format!("(module {body})")).unwrap();
        weigh(&code).map_err(|fault| fault.detail)
    }

    const START: &str = r#"(func (export "_start"))"#;

    #[test]
    fn what_an_instance_begins_with_is_counted() {
        let body = format!(
            "{START} (memory 3) (table 5 funcref) (table 7 funcref)
            (elem (i32.const 0) func 0 0) (elem funcref (ref.func 0))"
        );
        let wanted = Weight {
            functions: 1,
            memory_pages: 3,
            elements: 5 + 7 + (2 + 1) + (1 + 1),
        };
        assert_eq!(weighed(&body), Ok(wanted));
        let wanted = Weight {
            functions: 1,
            ..Weight::default()
        };
        assert_eq!(weighed(START), Ok(wanted));
    }

    #[test]
    fn tables_and_segments_are_bounded_together() {
        let half = "(table 600000 funcref)";
        assert!(weighed(&format!("{START} {half}")).is_ok());
        let said = weighed(&format!("{START} {half} {half}")).unwrap_err();
        assert!(said.contains("1200000 elements of tables"), "{said}");
        let segment = format!("(elem func {})", "0 ".repeat(600_000));
        assert!(weighed(&format!("{START} {segment}")).is_ok());
        let said = weighed(&format!("{START} {segment} {segment}")).unwrap_err();
        assert!(said.contains("items of element segments"), "{said}");
        let said = weighed(&format!("{START} {}", "(table 1 funcref)".repeat(17))).unwrap_err();
        assert!(said.contains("17 tables"), "{said}");
    }

    #[test]
    fn a_start_that_cannot_be_called_is_refused_before_it_is_compiled() {
        for start in [
            r#"(func (export "_start") (param i32))"#,
            r#"(func (export "_start") (result i32) i32.const 0)"#,
        ] {
            let said = weighed(start).unwrap_err();
            assert!(said.contains("`_start` is to take"), "{said}");
        }
        let said = weighed(r#"(memory (export "_start") 1)"#).unwrap_err();
        assert!(said.contains("exports no function"), "{said}");
    }
}
