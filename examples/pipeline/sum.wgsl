// Adds the counts of all parts.

@group(0) @binding(0) var<storage, read> a: array<u32>;
@group(0) @binding(1) var<storage, read> b: array<u32>;
@group(0) @binding(2) var<storage, read> c: array<u32>;
@group(0) @binding(3) var<storage, read> d: array<u32>;
@group(0) @binding(4) var<storage, read_write> sum: array<u32>;

@compute @workgroup_size(1)
fn main() {
    sum[0] = a[0] + b[0] + c[0] + d[0];
}
