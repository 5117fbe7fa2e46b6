//! Modules by a grammar that knows types and scopes.
//!
//! Values are mostly read from variables, so that little is decided while compiling
//! (where an overflow or a division by zero is an error). A module has structures,
//! constants, variables of every address space, functions that call the ones before
//! them, and entry points. What the first choices make is small.

use std::{fmt::Write as _, rc::Rc};

use super::deep;
use crate::cursor::Cursor;

/// Levels of expressions and of statements in one another; [`deep`] has more.
const EXPRESSION_DEPTH: u8 = 5;
const BLOCK_DEPTH: u8 = 4;
/// The source ends soon after it has so many bytes.
const SOURCE_BYTES: usize = 64 << 10;

/// A module's text, and what a graph needs to know of it.
#[derive(Debug)]
pub(super) struct Module {
    pub(super) source: String,
    /// At least one.
    pub(super) entries: Vec<String>,
    /// As passes set them.
    pub(super) overrides: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scalar {
    U32,
    I32,
    F32,
    Bool,
    F16,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Ty {
    Scalar(Scalar),
    Vector(u8, Scalar),
    Matrix(u8, u8),
    /// 0 elements: as many as the buffer has.
    Array(Rc<Ty>, u32),
    Struct(usize),
}

const U32: Ty = Ty::Scalar(Scalar::U32);
const I32: Ty = Ty::Scalar(Scalar::I32);
const F32: Ty = Ty::Scalar(Scalar::F32);
const BOOL: Ty = Ty::Scalar(Scalar::Bool);

#[derive(Debug, Clone)]
struct Variable {
    name: String,
    ty: Ty,
    writable: bool,
    /// A reference to function memory, whose address functions take.
    local: bool,
}

#[derive(Debug, Clone)]
struct Function {
    name: String,
    parameters: Vec<(Ty, bool)>,
    returns: Option<Ty>,
}

struct Grammar<'a, 'b> {
    cursor: &'a mut Cursor<'b>,
    text: String,
    structs: Vec<Vec<(String, Ty)>>,
    scope: Vec<Variable>,
    functions: Vec<Function>,
    overrides: Vec<String>,
    has_f16: bool,
    has_extra: bool,
    atomics: Vec<(String, Scalar)>,
    names: usize,
    in_loop: bool,
    returns: Option<Ty>,
}

/// The module that these bytes choose.
pub(super) fn module(cursor: &mut Cursor<'_>) -> Module {
    let has_f16 = cursor.one_in(24);
    let mut grammar = Grammar {
        cursor,
        text: String::new(),
        structs: Vec::new(),
        scope: Vec::new(),
        functions: Vec::new(),
        overrides: Vec::new(),
        has_f16,
        has_extra: false,
        atomics: Vec::new(),
        names: 0,
        in_loop: false,
        returns: None,
    };
    grammar.directives();
    grammar.structures();
    grammar.globals();
    if grammar.cursor.one_in(4) {
        grammar.has_extra = true;
        let declarations = deep::declarations(grammar.cursor);
        grammar.text.push_str(&declarations);
    }
    for _ in 0..grammar.cursor.below(6) {
        grammar.function();
    }
    let entries = (0..=grammar.cursor.below(3)).map(|index| grammar.entry(index));
    let entries = entries.collect();
    Module {
        source: grammar.text,
        entries,
        overrides: grammar.overrides,
    }
}

impl Grammar<'_, '_> {
    // ---- declarations -------------------------------------------------

    fn directives(&mut self) {
        if self.has_f16 {
            self.text.push_str("enable f16;\n");
        }
        if self.cursor.one_in(32) {
            self.text
                .push_str("diagnostic(off, derivative_uniformity);\n");
        }
    }

    fn structures(&mut self) {
        for number in 0..self.cursor.below(4) {
            let mut text = format!("struct S{number} {{\n");
            let mut members = Vec::new();
            for member in 0..=self.cursor.below(5) {
                let ty = self.constructible(2);
                let attribute = match (self.cursor.below(16), &ty) {
                    (14, _) => "@align(16) ",
                    (15, Ty::Scalar(_)) => "@size(64) ",
                    _ => "",
                };
                let _ = writeln!(text, "    {attribute}m{member}: {},", name(&ty));
                members.push((format!("m{member}"), ty));
            }
            text.push_str("}\n");
            self.text.push_str(&text);
            self.structs.push(members);
        }
    }

    fn globals(&mut self) {
        self.text
            .push_str("@group(0) @binding(0) var<storage, read_write> out: array<u32>;\n");
        self.global("out", Ty::Array(Rc::new(U32), 0), true);
        for binding in 1..=self.cursor.below(5) {
            let ty = self.host_shareable();
            let called = format!("b{binding}");
            let (space, writable) = self.cursor.pick(&[
                ("storage, read_write", true),
                ("storage", false),
                ("storage, read", false),
                ("uniform", false),
            ]);
            let ty = if space != "uniform" && self.cursor.one_in(2) {
                Ty::Array(Rc::new(ty), 0)
            } else {
                ty
            };
            let shown = name(&ty);
            let _ = writeln!(
                self.text,
                "@group(0) @binding({binding}) var<{space}> {called}: {shown};"
            );
            self.global(&called, ty, writable);
        }
        for _ in 0..self.cursor.below(5) {
            self.module_variable();
        }
        if self.cursor.one_in(40) {
            let odd = self.cursor.pick(&[
                "@group(0) @binding(6) var odd: texture_2d<f32>;",
                "@group(0) @binding(6) var odd: sampler;",
                "@group(1) @binding(0) var<uniform> odd: vec4<f32>;",
                "@group(0) @binding(6) var<storage> odd: binding_array<array<u32>, 4>;",
                "@group(0) @binding(99) var<storage> odd: array<u32>;",
                "@group(0) @binding(6) var odd: texture_storage_2d<r32uint, read_write>;",
                "@vertex fn odd() -> @builtin(position) vec4<f32> { return vec4<f32>(); }",
                "@fragment fn odd() -> @location(0) vec4<f32> { return vec4<f32>(); }",
            ]);
            self.text.push_str(odd);
            self.text.push('\n');
        }
    }

    fn module_variable(&mut self) {
        let called = self.fresh("g");
        match self.cursor.below(7) {
            0 => {
                let ty = self.constructible(2);
                let _ = writeln!(self.text, "var<private> {called}: {};", name(&ty));
                self.global(&called, ty, true);
            }
            1 => {
                let ty = self.constructible(2);
                let _ = writeln!(self.text, "var<workgroup> {called}: {};", name(&ty));
                self.global(&called, ty, true);
            }
            2 => {
                let scalar = self.cursor.pick(&[Scalar::U32, Scalar::I32]);
                let shown = scalar_name(scalar);
                let _ = writeln!(self.text, "var<workgroup> {called}: atomic<{shown}>;");
                self.atomics.push((called, scalar));
            }
            3 => {
                let ty = self.constructible(1);
                let value = zero(&ty);
                let _ = writeln!(self.text, "const {called}: {} = {value};", name(&ty));
                self.global(&called, ty, false);
            }
            4 => {
                let scalar =
                    self.cursor
                        .pick(&[Scalar::U32, Scalar::I32, Scalar::F32, Scalar::Bool]);
                let ty = Ty::Scalar(scalar);
                let value = self.literal(scalar);
                let id = self.overrides.len();
                if self.cursor.one_in(2) {
                    let _ = writeln!(
                        self.text,
                        "@id({id}) override {called}: {} = {value};",
                        name(&ty)
                    );
                    self.overrides.push(id.to_string());
                } else {
                    let _ = writeln!(self.text, "override {called}: {};", name(&ty));
                    self.overrides.push(called.clone());
                }
                self.global(&called, ty, false);
            }
            5 => {
                let size = self.cursor.pick(&["64", "4u * 8u", "256"]);
                let _ = writeln!(
                    self.text,
                    "override {called}_size = {size};\nvar<workgroup> {called}: array<f32, {called}_size>;"
                );
                let ty = Ty::Array(Rc::new(F32), 16);
                self.scope.push(Variable {
                    name: called,
                    ty,
                    writable: true,
                    local: false,
                });
            }
            _ => {
                let ty = self.constructible(2);
                let _ = writeln!(self.text, "alias {called} = {};", name(&ty));
            }
        }
    }

    fn global(&mut self, called: &str, ty: Ty, writable: bool) {
        self.scope.push(Variable {
            name: called.to_owned(),
            ty,
            writable,
            local: false,
        });
    }

    fn function(&mut self) {
        let called = format!("f{}", self.functions.len());
        let outside = self.scope.len();
        let mut parameters = Vec::new();
        let mut shown = Vec::new();
        for index in 0..self.cursor.below(4) {
            let ty = self.constructible(1);
            let by_pointer = self.cursor.one_in(4);
            if by_pointer {
                shown.push(format!("a{index}: ptr<function, {}>", name(&ty)));
            } else {
                shown.push(format!("a{index}: {}", name(&ty)));
            }
            let reached = if by_pointer {
                format!("(*a{index})")
            } else {
                format!("a{index}")
            };
            self.scope.push(Variable {
                name: reached,
                ty: ty.clone(),
                writable: by_pointer,
                local: false,
            });
            parameters.push((ty, by_pointer));
        }
        let returns = (!self.cursor.one_in(4)).then(|| self.constructible(1));
        self.returns.clone_from(&returns);
        let mut text = format!("fn {called}({})", shown.join(", "));
        if let Some(ty) = &returns {
            let _ = write!(text, " -> {}", name(ty));
        }
        text.push_str(" {\n");
        self.locals(&mut text);
        self.block(&mut text, BLOCK_DEPTH);
        if let Some(ty) = &returns {
            let value = self.expression(ty, EXPRESSION_DEPTH);
            let _ = writeln!(text, "return {value};");
        }
        text.push_str("}\n");
        self.text.push_str(&text);
        self.scope.truncate(outside);
        self.functions.push(Function {
            name: called,
            parameters,
            returns,
        });
    }

    fn entry(&mut self, index: usize) -> String {
        let called = if index == 0 {
            "main".to_owned()
        } else {
            format!("main{index}")
        };
        let size = self
            .cursor
            .pick(&["1", "64", "8, 8", "4, 4, 4", "2 * 8", "1, 1, 1"]);
        let outside = self.scope.len();
        let mut text = format!("@compute @workgroup_size({size}) fn {called}(");
        for (builtin, ty) in [
            ("global_invocation_id", Ty::Vector(3, Scalar::U32)),
            ("local_invocation_index", U32),
            ("num_workgroups", Ty::Vector(3, Scalar::U32)),
        ] {
            if self.cursor.one_in(2) {
                let parameter = self.fresh("i");
                let _ = write!(text, "@builtin({builtin}) {parameter}: {}, ", name(&ty));
                self.scope.push(Variable {
                    name: parameter,
                    ty,
                    writable: false,
                    local: false,
                });
            }
        }
        text.push_str(") {\n");
        self.returns = None;
        self.locals(&mut text);
        if self.cursor.one_in(3) {
            text.push_str("workgroupBarrier();\n");
        }
        self.block(&mut text, BLOCK_DEPTH);
        let value = self.expression(&U32, EXPRESSION_DEPTH);
        let _ = writeln!(text, "out[0] = {value};\n}}");
        self.text.push_str(&text);
        self.scope.truncate(outside);
        called
    }

    /// One of each scalar, so that there is always something to read.
    fn locals(&mut self, text: &mut String) {
        for (ty, value) in [
            (U32, "out[0]"),
            (I32, "i32(out[1])"),
            (F32, "f32(out[2])"),
            (BOOL, "out[3] > 4u"),
        ] {
            let called = self.fresh("v");
            let _ = writeln!(text, "var {called} = {value};");
            self.scope.push(Variable {
                name: called,
                ty,
                writable: true,
                local: true,
            });
        }
    }

    // ---- statements ---------------------------------------------------

    fn block(&mut self, text: &mut String, depth: u8) {
        let outside = self.scope.len();
        for _ in 0..self.cursor.below(6) {
            if self.cursor.is_done() || self.text.len() + text.len() > SOURCE_BYTES {
                break;
            }
            self.statement(text, depth);
        }
        self.scope.truncate(outside);
    }

    fn statement(&mut self, text: &mut String, depth: u8) {
        let nested = depth.saturating_sub(1);
        match self.cursor.below(if depth > 0 { 21 } else { 13 }) {
            0 | 1 => self.assignment(text),
            2 | 3 => self.declaration(text),
            4 => self.call_statement(text),
            5 => self.atomic(text),
            6 => {
                let ty = self.constructible(1);
                let value = self.expression(&ty, EXPRESSION_DEPTH);
                let _ = writeln!(text, "_ = {value};");
            }
            7 => self.through_pointer(text),
            8 => {
                let leaf = self.read(&U32);
                if self.cursor.one_in(3) {
                    text.push_str(&deep::statements(&leaf, self.cursor));
                }
            }
            9 if self.in_loop => {
                let condition = self.expression(&BOOL, 2);
                let word = self.cursor.pick(&["break", "continue"]);
                let _ = writeln!(text, "if {condition} {{ {word}; }}");
            }
            10 => {
                let condition = self.expression(&BOOL, 2);
                let value = self.returns.clone().map(|ty| self.expression(&ty, 2));
                let _ = writeln!(
                    text,
                    "if {condition} {{ return {}; }}",
                    value.unwrap_or_default()
                );
            }
            11 => {
                let place = self.place(&[U32, I32]);
                let how = self.cursor.pick(&["++", "--"]);
                let _ = writeln!(text, "{place}{how};");
            }
            13 | 14 => self.alternatives(text, nested),
            15 | 16 => self.repetition(text, nested),
            17 => self.choice(text, nested),
            18 => {
                text.push_str("{\n");
                self.block(text, nested);
                text.push_str("}\n");
            }
            19 if self.cursor.one_in(4) => {
                let barrier = self
                    .cursor
                    .pick(&["workgroupBarrier();\n", "storageBarrier();\n"]);
                text.push_str(barrier);
            }
            _ => self.assignment(text),
        }
    }

    fn assignment(&mut self, text: &mut String) {
        let ty = self.constructible(1);
        let Some(place) = self.find(&ty, true) else {
            let value = self.expression(&U32, EXPRESSION_DEPTH);
            let index = self.expression(&U32, 2);
            let _ = writeln!(text, "out[{index}] = {value};");
            return;
        };
        let number = matches!(
            ty,
            Ty::Scalar(Scalar::U32 | Scalar::I32 | Scalar::F32)
                | Ty::Vector(_, Scalar::U32 | Scalar::F32)
        );
        let how = if number {
            self.cursor.pick(&["=", "+=", "-=", "*=", "/=", "%="])
        } else {
            "="
        };
        let value = self.expression(&ty, EXPRESSION_DEPTH);
        let _ = writeln!(text, "{place} {how} {value};");
    }

    fn declaration(&mut self, text: &mut String) {
        let ty = self.constructible(2);
        let called = self.fresh("v");
        match self.cursor.below(4) {
            0 => {
                let value = self.expression(&ty, EXPRESSION_DEPTH);
                let _ = writeln!(text, "let {called} = {value};");
                self.scope.push(Variable {
                    name: called,
                    ty,
                    writable: false,
                    local: false,
                });
            }
            1 => {
                let value = self.expression(&ty, EXPRESSION_DEPTH);
                let _ = writeln!(text, "var {called}: {} = {value};", name(&ty));
                self.scope.push(Variable {
                    name: called,
                    ty,
                    writable: true,
                    local: true,
                });
            }
            2 => {
                let _ = writeln!(text, "var {called}: {};", name(&ty));
                self.scope.push(Variable {
                    name: called,
                    ty,
                    writable: true,
                    local: true,
                });
            }
            _ => {
                let _ = writeln!(text, "const {called} = {};", zero(&ty));
                self.scope.push(Variable {
                    name: called,
                    ty,
                    writable: false,
                    local: false,
                });
            }
        }
    }

    fn call_statement(&mut self, text: &mut String) {
        if self.functions.is_empty() {
            return self.assignment(text);
        }
        let function = self.functions[self.cursor.below(self.functions.len())].clone();
        let call = self.call(&function, 2);
        if function.returns.is_some() {
            text.push_str("_ = ");
        }
        let _ = writeln!(text, "{call};");
    }

    fn atomic(&mut self, text: &mut String) {
        if self.atomics.is_empty() {
            return self.assignment(text);
        }
        let at = self.cursor.below(self.atomics.len());
        let (called, scalar) = self.atomics[at].clone();
        let value = self.expression(&Ty::Scalar(scalar), 2);
        let function = self.cursor.pick(&[
            "atomicAdd",
            "atomicSub",
            "atomicMax",
            "atomicMin",
            "atomicAnd",
            "atomicOr",
            "atomicXor",
            "atomicExchange",
            "atomicStore",
            "atomicLoad",
            "atomicCompareExchangeWeak",
        ]);
        let _ = match function {
            "atomicStore" => writeln!(text, "atomicStore(&{called}, {value});"),
            "atomicLoad" => writeln!(text, "_ = atomicLoad(&{called});"),
            "atomicCompareExchangeWeak" => writeln!(
                text,
                "_ = {function}(&{called}, {value}, {value}).exchanged;"
            ),
            _ => writeln!(text, "_ = {function}(&{called}, {value});"),
        };
    }

    fn through_pointer(&mut self, text: &mut String) {
        let locals = self
            .scope
            .iter()
            .filter(|variable| variable.local)
            .cloned()
            .collect::<Vec<_>>();
        if locals.is_empty() {
            return;
        }
        let variable = locals[self.cursor.below(locals.len())].clone();
        let pointer = self.fresh("p");
        let value = self.expression(&variable.ty, 3);
        let _ = writeln!(
            text,
            "let {pointer} = &{};\n*{pointer} = {value};",
            variable.name
        );
        self.scope.push(Variable {
            name: format!("(*{pointer})"),
            ty: variable.ty,
            writable: true,
            local: false,
        });
    }

    fn alternatives(&mut self, text: &mut String, depth: u8) {
        let condition = self.expression(&BOOL, EXPRESSION_DEPTH);
        let _ = writeln!(text, "if {condition} {{");
        self.block(text, depth);
        for _ in 0..self.cursor.below(3) {
            let condition = self.expression(&BOOL, 2);
            let _ = writeln!(text, "}} else if {condition} {{");
            self.block(text, depth);
        }
        if self.cursor.one_in(2) {
            text.push_str("} else {\n");
            self.block(text, depth);
        }
        text.push_str("}\n");
    }

    fn repetition(&mut self, text: &mut String, depth: u8) {
        let around = std::mem::replace(&mut self.in_loop, true);
        let bound = self.expression(&U32, 2);
        match self.cursor.below(4) {
            0 => {
                let counter = self.fresh("n");
                let _ = writeln!(
                    text,
                    "for (var {counter} = 0u; {counter} < {bound}; {counter}++) {{"
                );
                self.scope.push(Variable {
                    name: counter,
                    ty: U32,
                    writable: false,
                    local: false,
                });
                self.block(text, depth);
                self.scope.pop();
                text.push_str("}\n");
            }
            1 => {
                let condition = self.expression(&BOOL, 2);
                let _ = writeln!(text, "while {condition} {{");
                self.block(text, depth);
                text.push_str("}\n");
            }
            2 => {
                let _ = writeln!(text, "loop {{ if {bound} > 3u {{ break; }}");
                self.block(text, depth);
                text.push_str("}\n");
            }
            _ => {
                let _ = writeln!(text, "loop {{");
                self.in_loop = false;
                self.block(text, depth);
                let _ = writeln!(
                    text,
                    "continuing {{ out[7] += 1u; break if {bound} > 9u; }} }}"
                );
            }
        }
        self.in_loop = around;
    }

    fn choice(&mut self, text: &mut String, depth: u8) {
        let around = std::mem::replace(&mut self.in_loop, false);
        let signed = self.cursor.one_in(3);
        let (ty, suffix) = if signed { (I32, "i") } else { (U32, "u") };
        let selector = self.expression(&ty, 3);
        let _ = writeln!(text, "switch {selector} {{");
        for case in 0..self.cursor.below(5) {
            let _ = writeln!(
                text,
                "case {}{suffix}, {}{suffix}: {{",
                case * 2,
                case * 2 + 1
            );
            self.block(text, depth);
            text.push_str("}\n");
        }
        text.push_str("default: {\n");
        self.block(text, depth);
        text.push_str("}\n}\n");
        self.in_loop = around;
    }

    // ---- expressions --------------------------------------------------

    fn expression(&mut self, ty: &Ty, depth: u8) -> String {
        if depth == 0 || self.cursor.is_done() {
            return self.read(ty);
        }
        if self.cursor.one_in(8)
            && let Some(call) = self.call_for(ty, depth - 1)
        {
            return call;
        }
        match ty {
            Ty::Scalar(Scalar::Bool) => self.truth(depth - 1),
            Ty::Scalar(scalar) => self.number(*scalar, depth - 1),
            Ty::Vector(size, scalar) => self.vector(*size, *scalar, depth - 1),
            Ty::Matrix(columns, rows) => self.matrix(*columns, *rows, depth - 1),
            Ty::Array(element, count) if (1..=4).contains(count) && self.cursor.one_in(3) => {
                let parts = (0..*count).map(|_| self.expression(element, depth - 1));
                let parts = parts.collect::<Vec<_>>().join(", ");
                format!("{}({parts})", name(ty))
            }
            Ty::Struct(number) if self.cursor.one_in(3) => {
                let members = self.structs[*number].clone();
                let parts = members.iter().map(|(_, ty)| self.expression(ty, depth - 1));
                let parts = parts.collect::<Vec<_>>().join(", ");
                format!("S{number}({parts})")
            }
            Ty::Array(..) | Ty::Struct(_) => self.read(ty),
        }
    }

    fn truth(&mut self, depth: u8) -> String {
        match self.cursor.below(7) {
            0 => self.read(&BOOL),
            1 | 2 => {
                let ty = self.cursor.pick(&[0, 1, 2]);
                let ty = [U32, I32, F32][ty].clone();
                let (a, b) = (self.expression(&ty, depth), self.expression(&ty, depth));
                let how = self.cursor.pick(&["<", "<=", ">", ">=", "==", "!="]);
                format!("({a} {how} {b})")
            }
            3 => {
                let (a, b) = (self.expression(&BOOL, depth), self.expression(&BOOL, depth));
                let how = self.cursor.pick(&["&&", "||", "&", "|", "==", "!="]);
                format!("({a} {how} {b})")
            }
            4 => format!("!{}", self.expression(&BOOL, depth)),
            5 => {
                let function = self.cursor.pick(&["any", "all"]);
                let vector = self.expression(&Ty::Vector(3, Scalar::Bool), depth);
                format!("{function}({vector})")
            }
            _ => format!("bool({})", self.expression(&F32, depth)),
        }
    }

    fn number(&mut self, scalar: Scalar, depth: u8) -> String {
        let ty = Ty::Scalar(scalar);
        let is_float = matches!(scalar, Scalar::F32 | Scalar::F16);
        let a = self.expression(&ty, depth);
        match self.cursor.below(12) {
            0 => self.read(&ty),
            1 => self.literal(scalar),
            2 | 3 => {
                let b = self.expression(&ty, depth);
                let float = &["+", "-", "*", "/", "%"];
                let integer = &["+", "-", "*", "/", "%", "&", "|", "^"];
                let how = if is_float {
                    self.cursor.pick(float)
                } else {
                    self.cursor.pick(integer)
                };
                format!("({a} {how} {b})")
            }
            4 if !is_float => {
                let b = self.expression(&U32, depth);
                let how = self.cursor.pick(&["<<", ">>"]);
                format!("({a} {how} ({b} & 31u))")
            }
            4 | 5 => self.function_of(scalar, &a, depth),
            6 => {
                let from = self
                    .cursor
                    .pick(&[Scalar::U32, Scalar::I32, Scalar::F32, Scalar::Bool]);
                let value = self.expression(&Ty::Scalar(from), depth);
                format!("{}({value})", scalar_name(scalar))
            }
            7 => {
                let condition = self.expression(&BOOL, depth);
                let b = self.expression(&ty, depth);
                format!("select({a}, {b}, {condition})")
            }
            8 => {
                let size = self.cursor.pick(&[2_u8, 3, 4]);
                let vector = self.expression(&Ty::Vector(size, scalar), depth);
                if self.cursor.one_in(2) {
                    let index = self.expression(&U32, 1);
                    return format!("{vector}[{index}]");
                }
                let member = self.cursor.pick(&[".x", ".y", ".r", ".g"]);
                format!("{vector}{member}")
            }
            9 if scalar == Scalar::U32 && self.cursor.one_in(3) => {
                deep::expression(&a, self.cursor)
            }
            10 if scalar == Scalar::U32 => self.packed(&a, depth),
            11 if scalar == Scalar::F32 => {
                let (a, b) = (
                    self.expression(&Ty::Vector(3, scalar), depth),
                    self.expression(&Ty::Vector(3, scalar), depth),
                );
                let function = self.cursor.pick(&["dot", "distance"]);
                format!("{function}({a}, {b})")
            }
            _ if is_float => format!("-({a})"),
            _ => format!("~({a})"),
        }
    }

    fn function_of(&mut self, scalar: Scalar, a: &str, depth: u8) -> String {
        let ty = Ty::Scalar(scalar);
        let b = self.expression(&ty, depth);
        let float = [
            "abs",
            "floor",
            "ceil",
            "fract",
            "sqrt",
            "sin",
            "cos",
            "exp",
            "log2",
            "sign",
            "trunc",
            "round",
            "saturate",
            "inverseSqrt",
            "tanh",
            "degrees",
        ];
        let integer = [
            "abs",
            "countOneBits",
            "reverseBits",
            "firstLeadingBit",
            "firstTrailingBit",
            "countLeadingZeros",
        ];
        match self.cursor.below(4) {
            0 | 1 if matches!(scalar, Scalar::F32 | Scalar::F16) => {
                format!("{}({a})", self.cursor.pick(&float))
            }
            0 | 1 => format!("{}({a})", self.cursor.pick(&integer)),
            2 => format!("{}({a}, {b})", self.cursor.pick(&["min", "max"])),
            _ => match scalar {
                Scalar::F32 => match self.cursor.below(6) {
                    0 => format!("modf({a}).fract"),
                    1 => format!("frexp({a}).fract"),
                    2 => format!("ldexp({a}, i32({b}))"),
                    3 => format!("fma({a}, {b}, {a})"),
                    4 => format!("bitcast<f32>(u32({a}))"),
                    _ => format!("unpack2x16float(u32({a})).y"),
                },
                Scalar::U32 => format!("extractBits({a}, {b} & 7u, 4u)"),
                Scalar::I32 => format!("insertBits({a}, {b}, 2u, 5u)"),
                Scalar::Bool | Scalar::F16 => format!("clamp({a}, {b}, {a})"),
            },
        }
    }

    fn packed(&mut self, a: &str, depth: u8) -> String {
        let size = self.cursor.pick(&[2_u8, 4]);
        let function = match size {
            2 => self
                .cursor
                .pick(&["pack2x16float", "pack2x16snorm", "pack2x16unorm"]),
            _ => self.cursor.pick(&["pack4x8snorm", "pack4x8unorm"]),
        };
        match self.cursor.below(5) {
            0 => {
                let value = self.expression(&Ty::Vector(4, Scalar::U32), depth);
                format!("pack4xU8({value})")
            }
            1 => format!("dot4U8Packed({a}, {a})"),
            2 => "arrayLength(&out)".to_owned(),
            _ => {
                let value = self.expression(&Ty::Vector(size, Scalar::F32), depth);
                format!("{function}({value})")
            }
        }
    }

    fn vector(&mut self, size: u8, scalar: Scalar, depth: u8) -> String {
        let ty = Ty::Vector(size, scalar);
        let shown = name(&ty);
        let is_float = matches!(scalar, Scalar::F32 | Scalar::F16);
        match self.cursor.below(8) {
            0 => self.read(&ty),
            1 => format!("{shown}({})", self.expression(&Ty::Scalar(scalar), depth)),
            2 => {
                let parts = (0..size).map(|_| self.expression(&Ty::Scalar(scalar), depth));
                format!("{shown}({})", parts.collect::<Vec<_>>().join(", "))
            }
            3 if scalar != Scalar::Bool => {
                let (a, b) = (self.expression(&ty, depth), self.expression(&ty, depth));
                let how = self.cursor.pick(&["+", "-", "*", "/", "%"]);
                format!("({a} {how} {b})")
            }
            3 => {
                let other = Ty::Vector(size, Scalar::F32);
                let (a, b) = (
                    self.expression(&other, depth),
                    self.expression(&other, depth),
                );
                format!("({a} < {b})")
            }
            4 => {
                let from = self.expression(
                    &Ty::Vector(self.cursor.clone().pick(&[2, 3, 4]), scalar),
                    depth,
                );
                let letters = (0..size).map(|_| self.cursor.pick(&["x", "y"]));
                format!("{from}.{}", letters.collect::<String>())
            }
            5 if scalar == Scalar::F32 => {
                let matrix = self.expression(&Ty::Matrix(2, size), depth);
                let vector = self.expression(&Ty::Vector(2, scalar), depth);
                format!("({matrix} * {vector})")
            }
            5 | 6 if is_float => {
                let a = self.expression(&ty, depth);
                let function =
                    self.cursor
                        .pick(&["normalize", "abs", "floor", "exp2", "saturate", "sin"]);
                format!("{function}({a})")
            }
            _ => {
                let (a, b) = (self.expression(&ty, depth), self.expression(&ty, depth));
                let condition = self.expression(&BOOL, depth);
                format!("select({a}, {b}, {condition})")
            }
        }
    }

    fn matrix(&mut self, columns: u8, rows: u8, depth: u8) -> String {
        let ty = Ty::Matrix(columns, rows);
        match self.cursor.below(5) {
            0 => self.read(&ty),
            1 => format!(
                "transpose({})",
                self.expression(&Ty::Matrix(rows, columns), depth)
            ),
            2 => {
                let (a, b) = (self.expression(&ty, depth), self.expression(&F32, depth));
                format!("({a} * {b})")
            }
            3 => {
                let (a, b) = (self.expression(&ty, depth), self.expression(&ty, depth));
                format!("({a} + {b})")
            }
            _ => {
                let parts =
                    (0..columns).map(|_| self.expression(&Ty::Vector(rows, Scalar::F32), depth));
                format!("{}({})", name(&ty), parts.collect::<Vec<_>>().join(", "))
            }
        }
    }

    fn call_for(&mut self, ty: &Ty, depth: u8) -> Option<String> {
        if *ty == U32 && self.has_extra && self.cursor.one_in(2) {
            return Some("extra()".to_owned());
        }
        let fitting = self
            .functions
            .iter()
            .filter(|function| function.returns.as_ref() == Some(ty));
        let fitting = fitting.cloned().collect::<Vec<_>>();
        let function = fitting.get(self.cursor.below(fitting.len().max(1)))?;
        Some(self.call(function, depth))
    }

    fn call(&mut self, function: &Function, depth: u8) -> String {
        let arguments = function.parameters.iter().map(|(ty, by_pointer)| {
            if !by_pointer {
                return self.expression(ty, depth);
            }
            let local = self
                .scope
                .iter()
                .rev()
                .find(|variable| variable.local && variable.ty == *ty);
            // Without a variable of that type the module is not valid, which is worth a few.
            local.map_or_else(
                || "&out".to_owned(),
                |variable| format!("&{}", variable.name),
            )
        });
        let arguments = arguments.collect::<Vec<_>>().join(", ");
        format!("{}({arguments})", function.name)
    }

    // ---- reading ------------------------------------------------------

    /// A value of this type that is there, or one of scalars that are: a constant would
    /// be calculated with while compiling.
    fn read(&mut self, ty: &Ty) -> String {
        if let Some(found) = self.find(ty, false) {
            return found;
        }
        match ty {
            Ty::Vector(_, scalar) if *scalar != Scalar::F16 => {
                format!("{}({})", name(ty), self.read(&Ty::Scalar(*scalar)))
            }
            Ty::Matrix(columns, rows) => {
                let column = self.read(&Ty::Vector(*rows, Scalar::F32));
                let columns = vec![column; usize::from(*columns)];
                format!("{}({})", name(ty), columns.join(", "))
            }
            Ty::Scalar(_) | Ty::Vector(..) | Ty::Array(..) | Ty::Struct(_) => zero(ty),
        }
    }

    /// A place of one of these types; there are locals of them.
    fn place(&mut self, of: &[Ty]) -> String {
        let ty = of[self.cursor.below(of.len())].clone();
        self.find(&ty, true).unwrap_or_else(|| "out[5]".to_owned())
    }

    fn find(&mut self, ty: &Ty, to_write: bool) -> Option<String> {
        let mut found = Vec::new();
        for variable in self
            .scope
            .iter()
            .rev()
            .filter(|variable| variable.writable || !to_write)
        {
            self.reach(&variable.name, &variable.ty, ty, 3, &mut found);
            if found.len() > 16 {
                break;
            }
        }
        if found.is_empty() {
            return None;
        }
        let mut path = found.swap_remove(self.cursor.below(found.len()));
        while let Some(at) = path.find('#') {
            let index = match self.cursor.below(3) {
                0 => "0".to_owned(),
                1 => self.find_index(),
                _ => format!("({} & 3u)", self.find_index()),
            };
            path.replace_range(at..=at, &index);
        }
        Some(path)
    }

    /// An unsigned value without an index in it.
    fn find_index(&mut self) -> String {
        let plain = |variable: &&Variable| variable.ty == U32;
        let found = self.scope.iter().rev().find(plain);
        found.map_or_else(|| "1u".to_owned(), |variable| variable.name.clone())
    }

    /// Ways from a variable to a value of a type; `#` stands for an index.
    fn reach(&self, path: &str, ty: &Ty, wanted: &Ty, depth: u8, found: &mut Vec<String>) {
        if ty == wanted && !matches!(ty, Ty::Array(_, 0)) {
            found.push(path.to_owned());
        }
        if depth == 0 {
            return;
        }
        match ty {
            Ty::Scalar(_) => {}
            Ty::Vector(_, scalar) => {
                if *wanted == Ty::Scalar(*scalar) {
                    found.push(format!("{path}.x"));
                    found.push(format!("{path}[#]"));
                }
            }
            Ty::Matrix(_, rows) => {
                self.reach(
                    &format!("{path}[#]"),
                    &Ty::Vector(*rows, Scalar::F32),
                    wanted,
                    depth - 1,
                    found,
                );
            }
            Ty::Array(element, _) => {
                self.reach(&format!("{path}[#]"), element, wanted, depth - 1, found)
            }
            Ty::Struct(number) => {
                for (member, ty) in &self.structs[*number] {
                    self.reach(&format!("{path}.{member}"), ty, wanted, depth - 1, found);
                }
            }
        }
    }

    // ---- types and literals -------------------------------------------

    fn constructible(&mut self, depth: u8) -> Ty {
        match self.cursor.below(if depth == 0 { 10 } else { 13 }) {
            0 | 1 => U32,
            2 => I32,
            3 | 4 => F32,
            5 => BOOL,
            6 | 7 => Ty::Vector(self.cursor.pick(&[2, 3, 4]), self.scalar()),
            8 => Ty::Matrix(self.cursor.pick(&[2, 3, 4]), self.cursor.pick(&[2, 3, 4])),
            9 if self.has_f16 => Ty::Scalar(Scalar::F16),
            9 => Ty::Vector(4, Scalar::F32),
            10 | 11 => {
                let element = self.constructible(depth - 1);
                let count = self.cursor.pick(&[1, 2, 3, 4, 4, 7, 16, 33, 256]);
                Ty::Array(Rc::new(element), count)
            }
            _ if self.structs.is_empty() => F32,
            _ => Ty::Struct(self.cursor.below(self.structs.len())),
        }
    }

    /// Without truth values, which no buffer holds, and in a layout that most accept.
    fn host_shareable(&mut self) -> Ty {
        match self.cursor.below(7) {
            0 => U32,
            1 => F32,
            2 => Ty::Vector(
                4,
                self.cursor.pick(&[Scalar::F32, Scalar::U32, Scalar::I32]),
            ),
            3 => Ty::Matrix(4, 4),
            4 => Ty::Array(
                Rc::new(Ty::Vector(4, Scalar::F32)),
                self.cursor.pick(&[1, 4, 64]),
            ),
            5 if !self.structs.is_empty() => Ty::Struct(self.cursor.below(self.structs.len())),
            _ => I32,
        }
    }

    fn scalar(&mut self) -> Scalar {
        let wide = self.cursor.pick(&[
            Scalar::U32,
            Scalar::F32,
            Scalar::I32,
            Scalar::F32,
            Scalar::Bool,
            Scalar::F16,
        ]);
        if wide == Scalar::F16 && !self.has_f16 {
            return Scalar::F32;
        }
        wide
    }

    fn literal(&mut self, scalar: Scalar) -> String {
        match scalar {
            Scalar::U32 => {
                self.cursor
                    .pick(&["1u", "0u", "2u", "7u", "255u", "0x80000000u", "4294967295u"])
            }
            Scalar::I32 => self.cursor.pick(&[
                "1i",
                "0i",
                "2i",
                "-1i",
                "127i",
                "2147483647i",
                "i32(-2147483648)",
            ]),
            Scalar::F32 => self.cursor.pick(&[
                "1.0f",
                "0.0f",
                "0.5f",
                "-2.25f",
                "1e10f",
                "3.4e38f",
                "1e-40f",
                "0x1p-149f",
            ]),
            Scalar::Bool => self.cursor.pick(&["true", "false"]),
            Scalar::F16 => self.cursor.pick(&["1.0h", "0.0h", "65504.0h", "-0.5h"]),
        }
        .to_owned()
    }

    fn fresh(&mut self, letter: &str) -> String {
        self.names += 1;
        format!("{letter}{}_", self.names)
    }
}

fn scalar_name(scalar: Scalar) -> &'static str {
    match scalar {
        Scalar::U32 => "u32",
        Scalar::I32 => "i32",
        Scalar::F32 => "f32",
        Scalar::Bool => "bool",
        Scalar::F16 => "f16",
    }
}

fn name(ty: &Ty) -> String {
    match ty {
        Ty::Scalar(scalar) => scalar_name(*scalar).to_owned(),
        Ty::Vector(size, scalar) => format!("vec{size}<{}>", scalar_name(*scalar)),
        Ty::Matrix(columns, rows) => format!("mat{columns}x{rows}<f32>"),
        Ty::Array(element, 0) => format!("array<{}>", name(element)),
        Ty::Array(element, count) => format!("array<{}, {count}>", name(element)),
        Ty::Struct(number) => format!("S{number}"),
    }
}

fn zero(ty: &Ty) -> String {
    format!("{}()", name(ty))
}
