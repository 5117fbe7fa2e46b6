//! The worker's static checks of shaders, and what must hold of their answer.

use std::time::Duration;

use naga::{
    ShaderStage,
    back::{
        PipelineConstants,
        pipeline_constants::process_overrides,
        spv::{self, ZeroInitializeWorkgroupMemoryMode},
    },
    proc::{BoundsCheckPolicies, BoundsCheckPolicy},
};
use rustix::time::{ClockId, clock_gettime};
use suanli_executor::{
    limits::CHECK_TIME_MAX,
    spec::{Constant, Graph, Pass},
};

use crate::{memory::most_held, show};

#[path = "../../src/bin/suanli-worker/shader/mod.rs"]
mod shader;

/// What a check may take, of the 2 GiB that its worker has for everything.
const MEMORY_MAX: usize = 1 << 30;
/// Bytes of SPIR-V that a pass may become. Weights are of what a driver makes of it.
const SPIRV_BYTES_MAX: usize = 64 << 20;

/// Checks a graph as a worker does. Whatever passes must go through what the worker
/// does next: naga's way to SPIR-V, as wgpu has it done for each pass.
///
/// # Panics
/// That is a finding.
pub fn check(graph: &Graph) {
    show(|| {
        format!(
            "{}\n--\n{:#?}\n{:#?}",
            &*graph.source, graph.buffers, graph.passes
        )
    });
    let began = thread_time();
    let (checked, held) = most_held(|| shader::check(graph));
    let took = thread_time() - began;
    show(|| {
        format!(
            "checked in {took:?} with {held} bytes: {:?}",
            checked.as_ref().map(|_| ())
        )
    });
    assert!(held <= MEMORY_MAX, "the check held {held} bytes");
    // The fuzzer is slower than a worker: what takes it so long takes a worker a part.
    assert!(took < CHECK_TIME_MAX, "the check took {took:?}");
    let Ok(checked) = checked else {
        return;
    };
    assert_eq!(checked.used.len(), graph.passes.len());
    for (index, (pass, used)) in graph.passes.iter().zip(&checked.used).enumerate() {
        assert!(used.same_as <= index, "a pass is the same as a later one");
        for binding in &used.bindings {
            assert!(
                pass.bindings.len() > *binding as usize,
                "binding {binding} has no buffer"
            );
        }
        if used.same_as == index {
            translate(&checked.module, pass);
        }
    }
}

fn translate(module: &naga::Module, pass: &Pass) {
    let began = thread_time();
    let mut validator = naga::valid::Validator::new(
        naga::valid::ValidationFlags::all(),
        naga::valid::Capabilities::all(),
    );
    let info = validator
        .validate(module)
        .expect("what was checked is valid");
    let constants = pass.constants.iter();
    let constants = constants
        .map(|Constant { name, bits }| (name.to_string(), f64::from_bits(*bits)))
        .collect::<PipelineConstants>();
    let stage = Some((ShaderStage::Compute, &*pass.entry));
    let (module, info) =
        process_overrides(module, &info, stage, &constants).expect("constants were checked");
    let options = spv::PipelineOptions {
        entry_point: pass.entry.to_string(),
        shader_stage: ShaderStage::Compute,
    };
    let words = spv::write_vec(&module, &info, &as_wgpu_has_it(), Some(&options))
        .expect("what was checked can be written");
    let took = thread_time() - began;
    show(|| format!("{} words of SPIR-V in {took:?}", words.len()));
    assert!(
        words.len() * 4 <= SPIRV_BYTES_MAX,
        "{} words of SPIR-V",
        words.len()
    );
    assert!(took < CHECK_TIME_MAX, "SPIR-V took {took:?}");
}

/// wgpu-hal's options for Vulkan, on a driver that has nothing of its own.
fn as_wgpu_has_it() -> spv::Options<'static> {
    spv::Options {
        lang_version: (1, 3),
        flags: spv::WriterFlags::LABEL_VARYINGS | spv::WriterFlags::FORCE_POINT_SIZE,
        bounds_check_policies: BoundsCheckPolicies {
            index: BoundsCheckPolicy::Restrict,
            buffer: BoundsCheckPolicy::Restrict,
            image_load: BoundsCheckPolicy::Restrict,
            binding_array: BoundsCheckPolicy::Unchecked,
        },
        zero_initialize_workgroup_memory: ZeroInitializeWorkgroupMemoryMode::Polyfill,
        force_loop_bounding: true,
        ray_query_initialization_tracking: true,
        emit_int_div_checks: true,
        ..spv::Options::default()
    }
}

/// Of the processor: a busy machine changes nothing.
fn thread_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    let second = |count: i64| u64::try_from(count).unwrap_or(0);
    Duration::new(second(now.tv_sec), u32::try_from(now.tv_nsec).unwrap_or(0))
}
