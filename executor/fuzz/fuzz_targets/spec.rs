//! Bytes are a job spec: the first says for which runtime. What is accepted has one
//! encoding, and its sums fit their types.

#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};
use suanli_executor::{
    Program, Template,
    ipc::are_sent_in_frame,
    limits::{DISPATCHES_MAX, INPUTS_MAX, OUTPUTS_MAX},
};
use suanli_executor_fuzz::{memory::most_held, show};
use suanli_protocol::registry::Runtime;

/// Elements are wider in memory than on the wire, and lists grow by doubling; text is
/// read in steps of 64 KiB.
const MEMORY_FACTOR: usize = 64;
const MEMORY_BASE: usize = 128 << 10;

fuzz_target!(|bytes: &[u8]| -> Corpus {
    let Some((runtime, spec)) = bytes.split_first() else {
        return Corpus::Reject;
    };
    let runtime = match runtime % 3 {
        0 => Runtime::WGSL,
        1 => Runtime::WASM,
        _ => Runtime::MODEL,
    };
    let (template, held) = most_held(|| Template::decode(runtime, spec));
    show(|| format!("{template:#?}"));
    let held_max = MEMORY_BASE + spec.len() * MEMORY_FACTOR;
    assert!(held <= held_max, "{held} bytes held for {}", spec.len());
    if let Ok(template) = template {
        assert_eq!(template.encode().as_deref(), Ok(spec));
        for unit in [0, template.units() / 2, template.units() - 1] {
            hold(
                &template.for_unit(unit).expect("it is one of them"),
                runtime,
            );
        }
        assert!(template.for_unit(template.units()).is_err());
    }
    Corpus::Keep
});

fn hold(program: &Program, runtime: Runtime) {
    assert_eq!(program.runtime(), runtime);
    assert_eq!(program.validate(), Ok(()));
    let outputs = program.outputs();
    assert!(outputs.len() <= OUTPUTS_MAX);
    assert!(program.input_bytes_min().len() <= INPUTS_MAX);
    let sum = outputs
        .iter()
        .fold(0, |sum: u64, output| sum.saturating_add(output.bytes_max));
    assert_eq!(sum, program.output_bytes_max());
    are_sent_in_frame(outputs.iter().map(|output| output.bytes_max));
    assert!(program.memory_bytes() > 0 || program.runtime() == Runtime::WGSL);
    if let Program::Wgsl(graph) = program {
        assert!((1..=DISPATCHES_MAX).contains(&graph.dispatches()));
    }
}
