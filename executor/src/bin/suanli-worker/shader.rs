//! Static checks of a graph's WGSL, by naga, against the graph's passes.
//!
//! naga recurses and loops over what strangers wrote: it runs in a worker
//! process only, and its crash is the worker's. What passes here may still be
//! refused by the device (workgroup sizes, buffer sizes against `override`s).

use suanli_executor::{
    ipc::Failure,
    limits::DETAIL_BYTES_MAX,
    spec::{Graph, Pass},
};
use wgpu::naga::{
    self, Module, ShaderStage,
    valid::{Capabilities, ModuleInfo, ValidationFlags, Validator},
};

use crate::Fault;

/// The name under which messages mark lines of the source.
const SHOWN_NAME: &str = "wgsl";

/// A module that fits its graph.
pub(crate) struct Checked {
    pub(crate) module: Module,
    /// For each pass the bindings that its entry point uses.
    pub(crate) used: Vec<Vec<u32>>,
}

/// Parses and validates the source and holds every pass against it.
pub(crate) fn check(graph: &Graph) -> Result<Checked, Fault> {
    let source = &*graph.source;
    let module = naga::front::wgsl::parse_str(source)
        .map_err(|error| invalid(error.emit_to_string_with_path(source, SHOWN_NAME)))?;
    let info = Validator::new(ValidationFlags::all(), Capabilities::default())
        .validate(&module)
        .map_err(|error| invalid(error.emit_to_string_with_path(source, SHOWN_NAME)))?;
    let passes = graph.passes.iter().enumerate();
    let used = passes
        .map(|(index, pass)| check_pass(graph, &module, &info, index, pass))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Checked { module, used })
}

fn check_pass(
    graph: &Graph,
    module: &Module,
    info: &ModuleInfo,
    index: usize,
    pass: &Pass,
) -> Result<Vec<u32>, Fault> {
    let entries = || {
        let computes = module.entry_points.iter().enumerate();
        computes.filter(|(_, entry)| entry.stage == ShaderStage::Compute)
    };
    let Some((position, _)) = entries().find(|(_, entry)| entry.name == *pass.entry) else {
        let names = entries()
            .map(|(_, entry)| format!("`{}`", entry.name))
            .collect::<Vec<_>>();
        return Err(invalid(format!(
            "pass {index} runs `{}`, but the source's @compute functions are: {}",
            &*pass.entry,
            if names.is_empty() {
                "none".to_owned()
            } else {
                names.join(", ")
            },
        )));
    };
    check_constants(module, index, pass)?;
    let uses = info.get_entry_point(position);
    let mut used = Vec::new();
    for (handle, variable) in module.global_variables.iter() {
        let Some(binding) = variable.binding.filter(|_| !uses[handle].is_empty()) else {
            continue;
        };
        let shown = variable.name.as_deref().unwrap_or("a variable");
        let slot = usize::try_from(binding.binding).unwrap_or(usize::MAX);
        let Some(buffer) = pass.bindings.get(slot).filter(|_| binding.group == 0) else {
            return Err(invalid(format!(
                "pass {index} (`{}`) binds {} buffers to @group(0) @binding(0..), but `{shown}` is at @group({}) @binding({})",
                &*pass.entry,
                pass.bindings.len(),
                binding.group,
                binding.binding,
            )));
        };
        check_kind(module, variable, shown)?;
        check_size(graph, module, variable, *buffer, shown)?;
        used.push(binding.binding);
    }
    Ok(used)
}

fn check_kind(module: &Module, variable: &naga::GlobalVariable, shown: &str) -> Result<(), Fault> {
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
    Err(invalid(format!(
        "`{shown}` is no buffer: only `var<storage>` and `var<uniform>` can be bound"
    )))
}

/// A buffer must hold the fixed part of its type.
fn check_size(
    graph: &Graph,
    module: &Module,
    variable: &naga::GlobalVariable,
    buffer: u32,
    shown: &str,
) -> Result<(), Fault> {
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
    Err(invalid(format!(
        "`{shown}` needs {least} bytes, its buffer `{}` has {}",
        &*buffer.name, buffer.size
    )))
}

fn check_constants(module: &Module, index: usize, pass: &Pass) -> Result<(), Fault> {
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
            return Err(invalid(format!(
                "pass {index} sets the constant `{name}`, but the source declares no such `override` (one with an @id is set by its number)"
            )));
        }
    }
    Ok(())
}

fn invalid(mut message: String) -> Fault {
    if message.len() > DETAIL_BYTES_MAX {
        message = crate::detail(&message).to_string();
    }
    Fault::new(Failure::InvalidShader, message.trim_end())
}
