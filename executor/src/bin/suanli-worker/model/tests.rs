//! Small random models, on whatever device there is, beside the processor.

use suanli_executor::model::{
    cpu::{self, EngineOptions, Weights},
    engine::{Engine, EngineError, PAGE, SequenceId, Step},
    gguf::{Gguf, TensorType},
    llama::Llama,
    testing::model_and_its_floats,
};

use super::device::Device;
use crate::device::{Gpu, adapters};

const CACHE_BYTES: u64 = 16 << 20;

/// The device's engine of a model, and the processor's of the same with wide numbers; none
/// on a machine without a device.
fn engines(kind: TensorType, head_width: u64) -> Option<(Device, cpu::Engine)> {
    engines_of("llama", kind, head_width)
}

fn engines_of(
    architecture: &str,
    kind: TensorType,
    head_width: u64,
) -> Option<(Device, cpu::Engine)> {
    let Some((adapter, _)) = adapters().into_iter().next() else {
        println!("skipped: no Vulkan adapter");
        return None;
    };
    let [narrow, wide] = model_and_its_floats(architecture, kind, head_width);
    let gpu = Gpu::open(adapter.index).unwrap();
    let file = Gguf::parse(&narrow).unwrap();
    let device = Device::new(gpu, &Llama::read(&file).unwrap(), CACHE_BYTES).unwrap();
    let file = Gguf::parse(&wide).unwrap();
    let weights = Weights::new(&Llama::read(&file).unwrap());
    let options = EngineOptions {
        threads: 1,
        cache_bytes_max: usize::try_from(CACHE_BYTES).unwrap(),
    };
    let processor = cpu::Engine::new(weights.into(), options).unwrap();
    Some((device, processor))
}

fn steps(sequence: u64, from: u32, count: u32) -> Vec<Step> {
    let step = |position: u32| Step {
        sequence: SequenceId(sequence),
        token: (position * 37 + 11 + u32::try_from(sequence).unwrap()) % 262,
        position,
        wants_logits: position % 3 != 1,
    };
    (from..from + count).map(step).collect()
}

/// How far two engines are apart on these steps, of the numbers' size.
fn apart(one: &mut dyn Engine, other: &mut dyn Engine, steps: &[Step]) -> f64 {
    let one = one.forward(steps).unwrap();
    let other = other.forward(steps).unwrap();
    assert_eq!(one.len(), other.len());
    let (mut apart, mut size) = (0.0, f64::MIN_POSITIVE);
    for (one, other) in one.rows().zip(other.rows()) {
        for (one, other) in one.iter().zip(other) {
            apart += f64::from(one - other).powi(2);
            size += f64::from(*other).powi(2);
        }
    }
    (apart / size).sqrt()
}

#[test]
fn every_type_and_number_of_rows_gives_what_the_processor_gives() {
    for (architecture, kind, head_width) in [
        ("llama", TensorType::F32, 16),
        ("llama", TensorType::F16, 80),
        ("llama", TensorType::Bf16, 160),
        ("llama", TensorType::Q8_0, 16),
        ("llama", TensorType::Q4_0, 64),
        ("llama", TensorType::Q4_1, 32),
        ("llama", TensorType::Q5_0, 16),
        ("llama", TensorType::Q5_1, 64),
        ("llama", TensorType::Q4K, 128),
        ("llama", TensorType::Q5K, 16),
        ("llama", TensorType::Q6K, 32),
        ("qwen2", TensorType::F32, 64),
        ("qwen2", TensorType::Q4K, 16),
        // Some of a head's numbers are rotated, and all of them.
        ("qwen3", TensorType::Q6K, 128),
        ("qwen3", TensorType::Q8_0, 16),
    ] {
        let Some((mut device, mut processor)) = engines_of(architecture, kind, head_width) else {
            return;
        };
        let mut from = 0;
        // Each number of rows that has a kernel of its own, and one position more than a
        // group of attention takes at once.
        for count in [1, 2, 3, 4, 7, 8, 9, 33, 100, 130, 1, 6] {
            let steps = steps(1, from, count);
            let apart = apart(&mut device, &mut processor, &steps);
            assert!(
                apart < 2e-3,
                "{architecture}, {kind:?}, {count} rows from {from}: {apart}"
            );
            from += count;
        }
    }
}

#[test]
fn sequences_beside_each_other_do_not_meet() {
    let Some((mut device, mut processor)) = engines(TensorType::Q8_0, 16) else {
        return;
    };
    let mut at = [0; 5];
    for round in 0_u32..12 {
        let mut mixed = Vec::new();
        for (sequence, at) in (0..).zip(&mut at) {
            let count = (round * 7 + u32::try_from(sequence).unwrap() * 3) % 11;
            mixed.extend(steps(sequence, *at, count));
            *at += count;
        }
        let apart = apart(&mut device, &mut processor, &mixed);
        assert!(apart < 2e-3, "round {round}: {apart}");
        // Pages of who ended are others' next.
        if round % 4 == 3 {
            let ended = round / 4;
            let id = SequenceId(ended.into());
            device.end(id);
            processor.end(id);
            at[usize::try_from(ended).unwrap()] = 0;
        }
    }
}

#[test]
fn long_texts_are_cut_among_groups() {
    let Some((mut device, mut processor)) = engines(TensorType::Q4_1, 16) else {
        return;
    };
    let mut from = 0;
    for count in [500, 500, 1, 2, 300, 1] {
        let steps = steps(1, from, count);
        let apart = apart(&mut device, &mut processor, &steps);
        assert!(apart < 2e-3, "{count} rows from {from}: {apart}");
        from += count;
    }
}

#[test]
fn what_cannot_be_computed_changes_nothing() {
    let Some((mut device, mut processor)) = engines(TensorType::F32, 16) else {
        return;
    };
    let pages = device.positions_left() / PAGE;
    assert_eq!(
        pages,
        usize::try_from(CACHE_BYTES).unwrap() / (2 * 2 * 32 * PAGE * 2)
    );
    device.forward(&steps(1, 0, 40)).unwrap();
    processor.forward(&steps(1, 0, 40)).unwrap();
    let wrong = device.forward(&steps(1, 41, 1)).unwrap_err();
    assert_eq!(
        wrong,
        EngineError::Position {
            position: 41,
            next: 40
        }
    );
    let wrong = device.forward(&[]).unwrap_err();
    assert_eq!(wrong, EngineError::Steps(0));
    // What was taken back is written again.
    device.truncate(SequenceId(1), 10);
    processor.truncate(SequenceId(1), 10);
    assert!(apart(&mut device, &mut processor, &steps(1, 10, 50)) < 2e-3);
    device.end(SequenceId(1));
    assert_eq!(device.positions_left(), pages * PAGE);
}
