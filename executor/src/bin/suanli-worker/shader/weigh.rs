//! What a module costs a driver to compile, told from naga's form of it.
//!
//! Drivers put a function's body in place of each call of it, so that a page of
//! source can become more than any of them compiles in a day. What it would
//! become is added up here without making it: functions come after those that
//! they call, and there is no recursion in WGSL. Sums saturate.
//!
//! Absent: the depth of expressions. `let` makes chains of any length, nothing
//! here or in a driver was seen to recurse over them, and what the parser
//! recurses into has its bound in [`super::scan`].

use suanli_executor::limits::{
    BLOCK_DEPTH_MAX, CALL_DEPTH_MAX, CALLS_MAX, CHAIN_BYTES_MAX, DECLARATIONS_MAX, LOCAL_BYTES_MAX,
    WORK_MAX, WORKGROUP_BYTES_MAX,
};
use wgpu::naga::{
    AddressSpace, BinaryOperator, Block, EntryPoint, Expression, Function, GlobalVariable, Handle,
    MathFunction, Module, ScalarKind, Statement, Type, TypeInner,
    proc::TypeResolution,
    valid::{FunctionInfo, ModuleInfo},
};

/// Of a software driver's time, which is the slowest to compile: what these take
/// more than a sum does.
const LOOP: u64 = 12;
const CASE: u64 = 4;
const BARRIER: u64 = 16;
const PACKING: u64 = 8;
/// Of each component.
const INTEGER_DIVISION: u64 = 3;
const ARRAY_WORD: u64 = 6;
/// A word of a structure is moved in a register.
const WORDS_AT_ONCE: u64 = 4;
/// Words of an array are also looked at in pairs.
const PAIRS_AT_ONCE: u64 = 512;

/// What a function is when all of its calls are inlined.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Weight {
    /// Functions, itself included.
    calls: u64,
    /// Calls in one another, itself included.
    depth: u64,
    /// Statements, expressions, and words that are moved as parts of larger
    /// values.
    pub(super) work: u64,
    /// Bytes of variables along the deepest chain of calls.
    chain_bytes: u64,
}

/// Weighs every function and entry point of a valid module: those of entry
/// points, in their order.
pub(super) fn weigh(module: &Module, info: &ModuleInfo) -> Result<Vec<Weight>, String> {
    if module.types.len() > DECLARATIONS_MAX {
        return Err(format!(
            "the source has {} different types, at most {DECLARATIONS_MAX} are allowed; leave out what no pass uses",
            module.types.len()
        ));
    }
    let mut weighed = Vec::with_capacity(module.functions.len());
    for (handle, function) in module.functions.iter() {
        let name = function.name.as_deref().unwrap_or("a function");
        weighed.push(Body::new(module, &info[handle], function, name, &weighed)?.weight()?);
    }
    let entries = module.entry_points.iter().enumerate();
    entries
        .map(|(index, entry)| {
            let uses = info.get_entry_point(index);
            let body = Body::new(module, uses, &entry.function, &entry.name, &weighed)?;
            let private = variables(module, uses, AddressSpace::Private);
            body.with_private(private)?.weight()
        })
        .collect()
}

/// Bytes of the workgroup variables of an entry point without `override`s.
pub(super) fn workgroup_bytes(
    module: &Module,
    info: &ModuleInfo,
    entry: &EntryPoint,
    index: usize,
) -> Result<u64, String> {
    let uses = info.get_entry_point(index);
    let mut bytes = 0_u64;
    for variable in variables(module, uses, AddressSpace::WorkGroup) {
        bytes = bytes.saturating_add(bytes_of(module, variable.ty));
        if bytes > WORKGROUP_BYTES_MAX {
            return Err(format!(
                "`{}` uses workgroup variables of {bytes} bytes up to `{}`, at most {WORKGROUP_BYTES_MAX} are allowed; share less at once",
                entry.name,
                shown(variable)
            ));
        }
    }
    Ok(bytes)
}

fn variables<'a>(
    module: &'a Module,
    uses: &'a FunctionInfo,
    space: AddressSpace,
) -> impl Iterator<Item = &'a GlobalVariable> {
    let all = module.global_variables.iter();
    all.filter(move |(handle, variable)| variable.space == space && !uses[*handle].is_empty())
        .map(|(_, variable)| variable)
}

fn shown(variable: &GlobalVariable) -> &str {
    variable.name.as_deref().unwrap_or("a variable")
}

/// A function while it is weighed.
struct Body<'a> {
    module: &'a Module,
    info: &'a FunctionInfo,
    function: &'a Function,
    name: &'a str,
    /// The functions before this one.
    weighed: &'a [Weight],
    own_bytes: u64,
    /// Of its callees, and then of itself too.
    sum: Weight,
}

impl<'a> Body<'a> {
    fn new(
        module: &'a Module,
        info: &'a FunctionInfo,
        function: &'a Function,
        name: &'a str,
        weighed: &'a [Weight],
    ) -> Result<Self, String> {
        let mut body = Self {
            module,
            info,
            function,
            name,
            weighed,
            own_bytes: 0,
            sum: Weight::default(),
        };
        for (_, variable) in function.local_variables.iter() {
            let called = variable.name.as_deref().unwrap_or("a variable");
            body.add_variable(variable.ty, called)?;
        }
        Ok(body)
    }

    fn with_private(
        mut self,
        variables: impl Iterator<Item = &'a GlobalVariable>,
    ) -> Result<Self, String> {
        for variable in variables {
            self.add_variable(variable.ty, shown(variable))?;
        }
        Ok(self)
    }

    fn weight(mut self) -> Result<Weight, String> {
        for (handle, expression) in self.function.expressions.iter() {
            self.add_work(1);
            self.add_moves(&self.info[handle].ty);
            if is_packing(expression) {
                self.add_work(PACKING);
            }
            let inner = self.info[handle].ty.inner_with(&self.module.types);
            if is_integer_division(expression, inner) {
                self.add_work(INTEGER_DIVISION * components(inner));
            }
        }
        self.add_block(&self.function.body, 1)?;
        self.sum.calls = self.sum.calls.saturating_add(1);
        self.sum.depth += 1;
        self.sum.chain_bytes = self.sum.chain_bytes.saturating_add(self.own_bytes);
        self.check()?;
        Ok(self.sum)
    }

    /// It is zeroed, or copied to, in each inlined body.
    fn add_variable(&mut self, ty: Handle<Type>, called: &str) -> Result<(), String> {
        let bytes = bytes_of(self.module, ty);
        self.own_bytes = self.own_bytes.saturating_add(bytes);
        self.add_work(moving(self.module, ty));
        if self.own_bytes <= LOCAL_BYTES_MAX {
            return Ok(());
        }
        Err(format!(
            "`{}` has {} bytes of variables up to `{called}`, which has {bytes}; at most {LOCAL_BYTES_MAX} are allowed: put what is large into a buffer or `var<workgroup>`",
            self.name, self.own_bytes
        ))
    }

    fn add_block(&mut self, block: &Block, depth: usize) -> Result<(), String> {
        if depth > BLOCK_DEPTH_MAX {
            return Err(format!(
                "`{}` has more than {BLOCK_DEPTH_MAX} blocks or `else if` in one another; use `switch`, or functions",
                self.name
            ));
        }
        self.add_work(u64::try_from(block.len()).unwrap_or(u64::MAX));
        for statement in block {
            match statement {
                Statement::Block(inner) => self.add_block(inner, depth + 1)?,
                Statement::If { accept, reject, .. } => {
                    self.add_block(accept, depth + 1)?;
                    self.add_block(reject, depth + 1)?;
                }
                Statement::Switch { cases, .. } => {
                    for case in cases {
                        self.add_work(CASE);
                        self.add_block(&case.body, depth + 1)?;
                    }
                }
                Statement::Loop {
                    body, continuing, ..
                } => {
                    self.add_work(LOOP);
                    self.add_block(body, depth + 1)?;
                    self.add_block(continuing, depth + 1)?;
                }
                Statement::Call { function, .. } => self.add_call(function.index()),
                Statement::Store { value, .. } => self.add_moves(&self.info[*value].ty),
                Statement::ControlBarrier(_) | Statement::WorkGroupUniformLoad { .. } => {
                    self.add_work(BARRIER);
                }
                // One instruction each, counted with the block.
                Statement::Emit(_)
                | Statement::Break
                | Statement::Continue
                | Statement::Return { .. }
                | Statement::Kill
                | Statement::MemoryBarrier(_)
                | Statement::ImageStore { .. }
                | Statement::Atomic { .. }
                | Statement::ImageAtomic { .. }
                | Statement::RayQuery { .. }
                | Statement::RayPipelineFunction(_)
                | Statement::SubgroupBallot { .. }
                | Statement::SubgroupGather { .. }
                | Statement::SubgroupCollectiveOperation { .. }
                | Statement::CooperativeStore { .. } => {}
            }
        }
        Ok(())
    }

    fn add_call(&mut self, callee: usize) {
        // naga orders functions so that callees come first; were it ever not
        // so, the caller would weigh too much, never too little.
        let endless = Weight {
            calls: u64::MAX,
            depth: CALL_DEPTH_MAX + 1,
            work: u64::MAX,
            chain_bytes: u64::MAX,
        };
        let callee = self.weighed.get(callee).unwrap_or(&endless);
        self.sum.calls = self.sum.calls.saturating_add(callee.calls);
        self.sum.work = self.sum.work.saturating_add(callee.work);
        self.sum.depth = self.sum.depth.max(callee.depth);
        self.sum.chain_bytes = self.sum.chain_bytes.max(callee.chain_bytes);
    }

    fn add_work(&mut self, work: u64) {
        self.sum.work = self.sum.work.saturating_add(work);
    }

    /// Vectors and scalars, which most types are, count with their expression.
    fn add_moves(&mut self, resolved: &TypeResolution) {
        match resolved {
            TypeResolution::Handle(ty) => self.add_work(moving(self.module, *ty)),
            TypeResolution::Value(_) => {}
        }
    }

    fn check(&self) -> Result<(), String> {
        let Weight {
            calls,
            depth,
            work,
            chain_bytes,
        } = self.sum;
        let over = |number: u64, max: u64, of: &str, advice: &str| {
            if number <= max {
                return Ok(());
            }
            let name = self.name;
            Err(format!(
                "`{name}` becomes {number} {of}, at most {max} are allowed; {advice}"
            ))
        };
        over(
            depth,
            CALL_DEPTH_MAX,
            "functions that call one another in a chain",
            "make the chain a loop",
        )?;
        over(
            calls,
            CALLS_MAX,
            "functions when each call is replaced by what it calls",
            "call from loops instead of many places",
        )?;
        over(
            work,
            WORK_MAX,
            "instructions when all calls are inlined",
            "use loops, smaller arrays, or several passes",
        )?;
        over(
            chain_bytes,
            CHAIN_BYTES_MAX,
            "bytes of variables with those of what it calls",
            "put what is large into a buffer or `var<workgroup>`",
        )
    }
}

/// Pipeline-dependent sizes, which only workgroup variables have, count nothing.
fn bytes_of(module: &Module, ty: Handle<Type>) -> u64 {
    let size = module.types[ty].inner.try_size(module.to_ctx());
    size.map_or(u64::MAX, u64::from)
}

/// What it costs to move a value of this type, in instructions.
fn moving(module: &Module, ty: Handle<Type>) -> u64 {
    match &module.types[ty].inner {
        TypeInner::Array { .. } => {
            let words = bytes_of(module, ty).div_ceil(4);
            let pairs = words.saturating_mul(words) / PAIRS_AT_ONCE;
            words.saturating_mul(ARRAY_WORD).saturating_add(pairs)
        }
        TypeInner::Struct { members, span } => {
            let arrays = members
                .iter()
                .map(|member| match module.types[member.ty].inner {
                    TypeInner::Array { .. } | TypeInner::Struct { .. } => moving(module, member.ty),
                    _ => 0,
                });
            arrays.fold(u64::from(*span) / 4 / WORDS_AT_ONCE, u64::saturating_add)
        }
        TypeInner::Matrix { .. } => bytes_of(module, ty) / 4 / WORDS_AT_ONCE,
        _ => 0,
    }
}

/// Drivers take these apart into a dozen instructions.
fn is_packing(expression: &Expression) -> bool {
    use MathFunction as M;
    let Expression::Math { fun, .. } = expression else {
        return false;
    };
    matches!(
        fun,
        M::Pack4x8snorm
            | M::Pack4x8unorm
            | M::Pack2x16snorm
            | M::Pack2x16unorm
            | M::Pack2x16float
            | M::Pack4xI8
            | M::Pack4xU8
            | M::Pack4xI8Clamp
            | M::Pack4xU8Clamp
            | M::Unpack4x8snorm
            | M::Unpack4x8unorm
            | M::Unpack2x16snorm
            | M::Unpack2x16unorm
            | M::Unpack2x16float
            | M::Unpack4xI8
            | M::Unpack4xU8
    )
}

/// Each is guarded against zero and overflow.
fn is_integer_division(expression: &Expression, inner: &TypeInner) -> bool {
    let divides = matches!(
        expression,
        Expression::Binary {
            op: BinaryOperator::Divide | BinaryOperator::Modulo,
            ..
        }
    );
    divides
        && matches!(
            inner.scalar_kind(),
            Some(ScalarKind::Sint | ScalarKind::Uint)
        )
}

fn components(inner: &TypeInner) -> u64 {
    match inner {
        TypeInner::Vector { size, .. } => u64::from(*size as u8),
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use wgpu::naga::{
        front::wgsl::parse_str,
        valid::{Capabilities, ValidationFlags, Validator},
    };

    use super::*;

    const OUT: &str = "@group(0) @binding(0) var<storage, read_write> out: array<u32>;\n";

    fn weighed(functions: &str, main: &str) -> Result<Weight, String> {
        let source =
            format!("{OUT}{functions}\n@compute @workgroup_size(64) fn main() {{ {main} }}");
        let module = parse_str(&source).unwrap();
        let mut validator = Validator::new(ValidationFlags::all(), Capabilities::default());
        let info = validator.validate(&module).unwrap();
        let weights = weigh(&module, &info)?;
        workgroup_bytes(&module, &info, &module.entry_points[0], 0)?;
        Ok(weights[0])
    }

    #[track_caller]
    fn refused(functions: &str, main: &str, says: &str) {
        let message = weighed(functions, main).unwrap_err();
        assert!(message.contains(says), "{message}");
    }

    fn doubling(levels: usize) -> String {
        let mut functions = "fn f0(x: u32) -> u32 { return x * 3u + out[x]; }".to_owned();
        for level in 1..=levels {
            let below = level - 1;
            let body = format!("return f{below}(x) ^ f{below}(x + 1u);");
            write!(functions, "fn f{level}(x: u32) -> u32 {{ {body} }}").unwrap();
        }
        functions
    }

    #[test]
    fn calls_are_multiplied_without_being_made() {
        let weight = weighed(&doubling(3), "out[0] = f3(1u);").unwrap();
        assert_eq!((weight.calls, weight.depth), (16, 5));
        refused(&doubling(18), "", "`f12` becomes 8191 functions");
        // Sums that no integer holds.
        let mut functions = String::from("fn f0() {}");
        for level in 1..40 {
            let calls = format!("f{}();", level - 1).repeat(40);
            write!(functions, "fn f{level}() {{ {calls} }}").unwrap();
        }
        refused(&functions, "f39();", "functions when each call is replaced");
    }

    #[test]
    fn what_drivers_take_long_for_is_refused_by_its_name() {
        let chain = (1..80).map(|i| format!("fn f{i}() {{ f{}(); }}", i - 1));
        let chain = format!("fn f0() {{}}{}", chain.collect::<String>());
        refused(&chain, "", "`f64` becomes 65 functions that call");
        let long = "out[1] = out[2] + out[3];".repeat(10_000);
        refused("", &long, "instructions when all calls are inlined");
        let array = |name: &str, words| format!("var {name}: array<u32, {words}>;");
        let both = array("small", 4) + &array("large", 1 << 20);
        refused("", &both, "4194320 bytes of variables up to `large`");
        let private = "var<private> kept: array<vec4f, 2000>;";
        refused(private, "out[0] = u32(kept[out[1]].x);", "up to `kept`");
        let holding = |i: usize| {
            let call = match i.checked_sub(1) {
                Some(below) => format!("f{below}();"),
                None => String::new(),
            };
            format!("fn f{i}() {{ {} {call} }}", array("a", 400))
        };
        let holding = (0..30).map(holding).collect::<String>();
        refused(&holding, "f29();", "bytes of variables with those of");
        let workgroup = "var<workgroup> tile: array<u32, 16385>;";
        refused(workgroup, "out[0] = tile[1];", "up to `tile`");
        let returned = "fn f() -> array<u32, 6000> { return array<u32, 6000>(); }";
        refused(returned, "out[0] = f()[3];", "instructions");
        let alternatives = "else if out[0] == 1u { }".repeat(300);
        refused("", &format!("if true {{ }} {alternatives}"), "256 blocks");
        let types = (1..4200).map(|i| format!("let a{i} = array<u32, {i}>()[out[0]];"));
        refused("", &types.collect::<String>(), "different types");
    }

    /// An unrolled SHA-256 of two blocks, and a matrix product of eight by eight
    /// values in registers with sixteen steps of the inner loop written out.
    #[test]
    fn large_real_kernels_pass_with_a_wide_margin() {
        let round = "let s1 = ror(e, 6u) ^ ror(e, 11u) ^ ror(e, 25u);
            let t1 = h + s1 + ((e & f) ^ (~e & g)) + K[I % 64u] + w[I % 16u];
            let s0 = ror(a, 2u) ^ ror(a, 13u) ^ ror(a, 22u);
            let t2 = s0 + ((a & b) ^ (a & c) ^ (b & c));
            w[I % 16u] += w[(I + 9u) % 16u] + ror(w[(I + 1u) % 16u], 7u) + ror(w[(I + 14u) % 16u], 17u);
            h = g; g = f; f = e; e = d + t1; d = c; c = b; b = a; a = t1 + t2;";
        let rounds = (0..128).map(|i| format!("{{ {} }}", round.replace('I', &format!("{i}u"))));
        let hash = format!(
            "var w: array<u32, 16>; var a = 1u; var b = 2u; var c = 3u; var d = 4u;
             var e = 5u; var f = 6u; var g = 7u; var h = 8u; {} out[0] = a + e;",
            rounds.collect::<String>()
        );
        let tables = "var<private> K: array<u32, 64>;
             fn ror(x: u32, n: u32) -> u32 { return (x >> n) | (x << (32u - n)); }";
        let mut product = String::from("var sums: array<array<f32, 8>, 8>;");
        for (step, row, column) in (0..1024).map(|i| (i / 64, i / 8 % 8, i % 8)) {
            write!(
                product,
                "sums[{row}][{column}] += a[{}] * b[{}];",
                row * 16 + step,
                step * 8 + column
            )
            .unwrap();
        }
        let tiles = "var<workgroup> a: array<f32, 2048>; var<workgroup> b: array<f32, 2048>;";
        for (name, functions, main) in [("hash", tables, hash), ("product", tiles, product)] {
            let work = weighed(functions, &main).unwrap().work;
            println!("{name}: {work} of {WORK_MAX}");
            assert!(work < WORK_MAX / 2, "{name}: {work}");
        }
    }
}
