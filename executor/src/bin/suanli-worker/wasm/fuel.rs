//! The fuel schedule, version 1: what is charged, and what it is charged for.
//!
//! Every figure that fuel follows from is here; the engine's own part is in
//! [`operators`]. Another figure, or another engine, is another
//! [`suanli_executor::program::WASM_VERSION`]. `docs/job-spec.md` says the same
//! for people.
//!
//! Fuel is taken before the work that it is for, by what was asked and not by
//! what the host happened to do: so nothing is free to a program that runs out
//! of it, and a cached module costs what a new one does. A unit stands for about
//! a nanosecond on a processor of today; `tests/wasm/prices.rs` prints what it is
//! at each call's worst arguments, beside the worst of plain instructions.

use wasmtime::OperatorCost;

use super::weigh::Weight;

/// After so much the program gives way for a moment. A trap is charged up to the last
/// call, return or end of a slice before it, and so the slice is a part of the
/// schedule; it is small, so that hardly anything is left out.
pub(super) const SLICE: u64 = 100_000;

/// A byte of the module: hashing, checking and compiling it.
const CODE_BYTE: u64 = 1000;
/// A function of the module: to a compiler an empty one is work, too.
const FUNCTION: u64 = 50_000;
/// A page of memory, at the start or by `memory.grow`: sixteen of the host's
/// come one by one when they are touched.
const PAGE: u64 = 8192;
/// What of it the instruction takes: the engine allows no more. The program owes
/// the rest until its next call or its end.
const PAGE_AT_ONCE: u8 = u8::MAX;
/// An element that a table has at the start, or of a segment.
const ELEMENT: u64 = 1;

/// Any call of WASI.
pub(super) const CALL: u64 = 100;
/// A byte that a call moves, or fills with zeros.
pub(super) const BYTE: u64 = 1;
/// A buffer of a scattered read or write: an input is read from a file of the
/// host for each.
pub(super) const VECTOR: u64 = 200;
/// A subscription of a poll.
pub(super) const SUBSCRIPTION: u64 = 50;
/// An argument or a variable, beside its bytes.
pub(super) const TEXT: u64 = 20;
/// A call that looks up a path, and may make or free a file.
pub(super) const PATH: u64 = 500;
/// A byte of a path: each second one may be a name to look up.
pub(super) const PATH_BYTE: u64 = 20;
/// An entry of a folder that is listed, beside its bytes.
pub(super) const ENTRY: u64 = 100;
/// A folder that there is, when one is moved: it must not come to lie in itself.
pub(super) const FOLDER: u64 = 20;
/// A line of standard error, which is sent to the job's log.
pub(super) const LINE: u64 = 2000;

/// What the engine charges for instructions: one for each, none for those that
/// make no code, one for each byte or element that a bulk instruction moves.
pub(super) fn operators() -> OperatorCost {
    let mut costs = OperatorCost::new();
    // They are calls into the host.
    costs.MemoryGrow = u8::MAX;
    costs.TableGrow = u8::MAX;
    costs.variable.memory_grow_per_page = PAGE_AT_ONCE;
    costs
}

/// To read so many bytes of code.
pub(super) const fn of_code(bytes: u64) -> u64 {
    bytes.saturating_mul(CODE_BYTE)
}

/// What is owed for so many pages that memory has grown by.
pub(super) fn of_growth(pages: u64) -> u64 {
    pages.saturating_mul(PAGE - u64::from(PAGE_AT_ONCE))
}

/// To make a module's functions, and an instance.
pub(super) fn of_module(weight: Weight) -> u64 {
    let functions = weight.functions.saturating_mul(FUNCTION);
    let pages = weight.memory_pages.saturating_mul(PAGE);
    let elements = weight.elements.saturating_mul(ELEMENT);
    functions.saturating_add(pages).saturating_add(elements)
}
