//! Static checks of a graph's WGSL, by naga, against the graph's passes.
//!
//! Look at the tokens ([`scan`], [`names`]) → parse and validate → weigh what drivers will
//! make of it ([`weigh`]) → hold each pass against it. naga recurses and loops
//! over what strangers wrote: it runs in a worker process only, and its crash is
//! the worker's. What passes here may still be refused by the device (workgroup
//! sizes, its own limits).
//!
//! [`check`] is a function of a graph alone and says why not in words; nothing
//! here knows of the worker, so that a fuzzer can have this module by its path.

use suanli_executor::{
    limits::WORK_TOTAL_MAX,
    spec::{Constant, Graph, Pass},
};
use suanli_protocol::registry::Feature;
use wgpu::naga::{
    self, Module, ShaderStage,
    back::{PipelineConstants, pipeline_constants::process_overrides},
    valid::{Capabilities, ModuleInfo, ValidationFlags, Validator},
};

mod names;
mod scan;
mod weigh;

/// The features that a source can use. Subgroups are as WGSL has them, without the
/// barrier that only some devices have.
const IN_SOURCES: [(Feature, Capabilities); 2] = [
    (Feature::F16, Capabilities::SHADER_FLOAT16),
    (Feature::SUBGROUPS, Capabilities::SUBGROUP),
];

/// What every source can use: packing floats of 16 bits into words is WGSL of its own. A
/// device that can't do it refuses it when the module is made.
const ALWAYS: Capabilities = Capabilities::SHADER_FLOAT16_IN_FLOAT32;

/// The name under which messages mark lines of the source.
const SHOWN_NAME: &str = "wgsl";

/// A module that fits its graph.
pub(crate) struct Checked {
    pub(crate) module: Module,
    /// For each pass what its entry point uses.
    pub(crate) used: Vec<Used>,
}

/// What a pass uses.
pub(crate) struct Used {
    /// Bindings.
    pub(crate) bindings: Vec<u32>,
    /// Bytes of workgroup memory.
    pub(crate) workgroup_bytes: u64,
    /// The first pass that runs the same program, itself if none did before.
    pub(crate) same_as: usize,
}

/// Parses, validates and weighs the source, and holds every pass against it.
pub(crate) fn check(graph: &Graph) -> Result<Checked, String> {
    let source = &*graph.source;
    scan::scan(source)?;
    let module = naga::front::wgsl::parse_str(source)
        .map_err(|error| error.emit_to_string_with_path(source, SHOWN_NAME))?;
    let info = validate(&module, source, &graph.features)
        .map_err(|error| unnamed(&module, source, &graph.features).unwrap_or(error))?;
    let weights = weigh::weigh(&module, &info)?;
    let mut used = Vec::<Used>::with_capacity(graph.passes.len());
    let mut work = 0_u64;
    for (index, pass) in graph.passes.iter().enumerate() {
        let entry = entry_of(&module, index, pass)?;
        let bindings = check_pass(graph, &module, &info, index, entry)?;
        let before = graph.passes.iter().take(index);
        let same = before
            .into_iter()
            .position(|earlier| earlier.entry == pass.entry && earlier.constants == pass.constants);
        let workgroup_bytes = match same {
            Some(earlier) => used[earlier].workgroup_bytes,
            None => {
                work = work.saturating_add(weights[entry].work);
                workgroup_bytes(&module, &info, index, pass)?
            }
        };
        used.push(Used {
            bindings,
            workgroup_bytes,
            same_as: same.unwrap_or(index),
        });
    }
    if work > WORK_TOTAL_MAX {
        return Err(format!(
            "the passes become {work} instructions in all, at most {WORK_TOTAL_MAX} are allowed; make it several jobs"
        ));
    }
    Ok(Checked { module, used })
}

/// Holds a module to what it may use that names these features, whatever its device
/// has.
fn validate(module: &Module, source: &str, features: &[Feature]) -> Result<ModuleInfo, String> {
    let named = IN_SOURCES.into_iter();
    let named = named.filter(|(feature, _)| features.contains(feature));
    let always = Capabilities::default() | ALWAYS;
    let capabilities = named.fold(always, |all, (_, one)| all | one);
    Validator::new(ValidationFlags::all(), capabilities)
        .validate(module)
        .map_err(|error| error.emit_to_string_with_path(source, SHOWN_NAME))
}

/// What to say of a source with which nothing is wrong but that it uses features
/// which its graph does not name.
fn unnamed(module: &Module, source: &str, named: &[Feature]) -> Option<String> {
    let all = IN_SOURCES.map(|(feature, _)| feature);
    let passes = |features: &[Feature]| validate(module, source, features).is_ok();
    if !passes(&all) {
        return None;
    }
    let needed = all.into_iter().filter(|feature| {
        let others = all.into_iter().filter(|other| other != feature);
        !named.contains(feature) && !passes(&others.collect::<Vec<_>>())
    });
    let needed = needed.map(|feature| format!("`{feature}`"));
    Some(format!(
        "the source uses {}, which the job does not ask for; add it to `features` in [wgsl]",
        needed.collect::<Vec<_>>().join(" and ")
    ))
}

/// Which of the module's entry points a pass runs.
fn entry_of(module: &Module, index: usize, pass: &Pass) -> Result<usize, String> {
    let entries = || {
        let computes = module.entry_points.iter().enumerate();
        computes.filter(|(_, entry)| entry.stage == ShaderStage::Compute)
    };
    let found = entries().find(|(_, entry)| entry.name == *pass.entry);
    found.map(|(position, _)| position).ok_or_else(|| {
        let names = entries()
            .map(|(_, entry)| format!("`{}`", entry.name))
            .collect::<Vec<_>>();
        format!(
            "pass {index} runs `{}`, but the source's @compute functions are: {}",
            &*pass.entry,
            if names.is_empty() {
                "none".to_owned()
            } else {
                names.join(", ")
            },
        )
    })
}

/// The bindings that a pass uses, which its buffers fit.
fn check_pass(
    graph: &Graph,
    module: &Module,
    info: &ModuleInfo,
    index: usize,
    entry: usize,
) -> Result<Vec<u32>, String> {
    let pass = &graph.passes[index];
    check_constants(module, index, pass)?;
    let uses = info.get_entry_point(entry);
    let mut used = Vec::new();
    for (handle, variable) in module.global_variables.iter() {
        let Some(binding) = variable.binding.filter(|_| !uses[handle].is_empty()) else {
            continue;
        };
        let shown = variable.name.as_deref().unwrap_or("a variable");
        let slot = usize::try_from(binding.binding).unwrap_or(usize::MAX);
        let Some(buffer) = pass.bindings.get(slot).filter(|_| binding.group == 0) else {
            return Err(format!(
                "pass {index} (`{}`) binds {} buffers to @group(0) @binding(0..), but `{shown}` is at @group({}) @binding({})",
                &*pass.entry,
                pass.bindings.len(),
                binding.group,
                binding.binding,
            ));
        };
        check_kind(module, variable, shown)?;
        check_size(graph, module, variable, *buffer, shown)?;
        used.push(binding.binding);
    }
    Ok(used)
}

fn check_kind(module: &Module, variable: &naga::GlobalVariable, shown: &str) -> Result<(), String> {
    let bindable = matches!(
        variable.space,
        naga::AddressSpace::Storage { .. } | naga::AddressSpace::Uniform
    );
    if bindable
        && !matches!(
            module.types[variable.ty].inner,
            naga::TypeInner::BindingArray { .. }
        )
    {
        return Ok(());
    }
    Err(format!(
        "`{shown}` is no buffer: only `var<storage>` and `var<uniform>` can be bound"
    ))
}

/// A buffer must hold the fixed part of its type.
fn check_size(
    graph: &Graph,
    module: &Module,
    variable: &naga::GlobalVariable,
    buffer: u32,
    shown: &str,
) -> Result<(), String> {
    let least = module.types[variable.ty]
        .inner
        .try_size(module.to_ctx())
        .map_or(0, u64::from);
    let Some(buffer) = graph.buffer(buffer) else {
        return Ok(());
    };
    if buffer.size >= least {
        return Ok(());
    }
    Err(format!(
        "`{shown}` needs {least} bytes, its buffer `{}` has {}",
        &*buffer.name, buffer.size
    ))
}

fn check_constants(module: &Module, index: usize, pass: &Pass) -> Result<(), String> {
    for constant in &pass.constants {
        let name = &*constant.name;
        let known = module
            .overrides
            .iter()
            .any(|(_, declared)| match declared.id {
                Some(id) => id.to_string() == name,
                None => declared.name.as_deref() == Some(name),
            });
        if !known {
            return Err(format!(
                "pass {index} sets the constant `{name}`, but the source declares no such `override` (one with an @id is set by its number)"
            ));
        }
    }
    Ok(())
}

/// Bytes of workgroup memory, with the pass's constants put in.
fn workgroup_bytes(
    module: &Module,
    info: &ModuleInfo,
    index: usize,
    pass: &Pass,
) -> Result<u64, String> {
    let constants = pass.constants.iter();
    let constants = constants
        .map(|Constant { name, bits }| (name.to_string(), f64::from_bits(*bits)))
        .collect::<PipelineConstants>();
    let selected = Some((ShaderStage::Compute, &*pass.entry));
    let (module, info) = process_overrides(module, info, selected, &constants)
        .map_err(|error| format!("pass {index} (`{}`): {error}", &*pass.entry))?;
    let position = entry_of(&module, index, pass)?;
    let entry = &module.entry_points[position];
    weigh::workgroup_bytes(&module, &info, entry, position)
}
