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

use suanli_executor::limits::{FUNCTION_BYTES_MAX, FUNCTIONS_MAX, TABLE_ELEMENTS_MAX, TABLES_MAX};
use wasmparser::{
    BinaryReaderError, CompositeInnerType, ElementItems, ExternalKind, Parser, Payload, TypeRef,
};

/// What a host offers to modules: the name that they import it by, and its functions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Offered<'a> {
    pub(crate) module: &'a str,
    pub(crate) functions: &'a [&'a str],
}

/// What a module takes to compile, beside its bytes, and an instance of it to begin.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Weight {
    /// With a body.
    pub(crate) functions: u64,
    /// Of linear memory, 64 KiB each.
    pub(crate) memory_pages: u64,
    /// Of all tables, and items of all element segments.
    pub(crate) elements: u64,
}

/// Refuses what is too large, or built for another host. What is left can't fail
/// to become an instance but by a trap, or through the machine's fault.
pub(crate) fn weigh(code: &[u8], offered: Offered<'_>) -> Result<Weight, String> {
    if !code.starts_with(b"\0asm") {
        return Err("the file is no WebAssembly module (those begin with \\0asm)".to_owned());
    }
    let mut scales = Scales::new(offered);
    for payload in Parser::new(0).parse_all(code) {
        scales.add(payload.map_err(|error| malformed(&error))?)?;
    }
    if !scales.starts {
        return Err(
            "the module exports no function `_start`: build a command, not a library".to_owned(),
        );
    }
    Ok(Weight {
        functions: scales.bodies,
        memory_pages: scales.memory_pages,
        elements: scales.table_elements.saturating_add(scales.items),
    })
}

/// What is known of a module so far.
struct Scales<'a> {
    offered: Offered<'a>,
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

impl<'a> Scales<'a> {
    const fn new(offered: Offered<'a>) -> Self {
        Self {
            offered,
            types: Vec::new(),
            functions: Vec::new(),
            bodies: 0,
            memory_pages: 0,
            table_elements: 0,
            items: 0,
            starts: false,
        }
    }

    fn add(&mut self, payload: Payload<'_>) -> Result<(), String> {
        match payload {
            Payload::Version {
                encoding: wasmparser::Encoding::Component,
                ..
            } => {
                return Err("the file is a component; build a core module for WASI preview 1 (target wasm32-wasip1)".to_owned());
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
                    self.offered.check(import.module, import.name)?;
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

    fn add_tables_and_exports(&mut self, payload: Payload<'_>) -> Result<(), String> {
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

    fn check_start(&self, function: u32) -> Result<(), String> {
        let at = |index: u32| usize::try_from(index).unwrap_or(usize::MAX);
        let of = self.functions.get(at(function));
        if of.and_then(|of| self.types.get(at(*of))) == Some(&true) {
            return Ok(());
        }
        Err("`_start` is to take no parameters and to give no results: build a command with your compiler's own start code".to_owned())
    }
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

fn malformed(error: &BinaryReaderError) -> String {
    format!("the module is malformed: {error}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weighed(body: &str) -> Result<Weight, String> {
        let code = wat::parse_str(format!("(module {body})")).unwrap();
        let offered = Offered {
            module: "host",
            functions: &[],
        };
        weigh(&code, offered)
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
