// A and B of a capacity challenge, made where they are needed. The same numbers as
// `suanli_protocol::challenge::entry`: each step has a result that FP32 can hold.
override DEPTH: u32;
override COLUMNS: u32;
override FIRST: u32;
override SECOND: u32;

@group(0) @binding(0) var<storage, read_write> factor: array<vec4<f32>>;

fn mix(x: u32) -> u32 {
    var h = x;
    h ^= h >> 16u;
    h *= 0x85ebca6bu;
    h ^= h >> 13u;
    h *= 0xc2b2ae35u;
    return h ^ (h >> 16u);
}

fn entry(n: u32) -> f32 {
    let bits = mix(mix(n ^ FIRST) + SECOND) >> 8u;
    return f32(bits) * (1.0 / 8388608.0) - 1.0;
}

@compute @workgroup_size(64)
fn fill(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let place = id.x + id.y * groups.x * 64u;
    if place < arrayLength(&factor) {
        let n = place * 4u;
        factor[place] = vec4(entry(n), entry(n + 1u), entry(n + 2u), entry(n + 3u));
    }
}

@group(0) @binding(0) var<storage, read> a: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> b: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> c: array<vec4<f32>>;
