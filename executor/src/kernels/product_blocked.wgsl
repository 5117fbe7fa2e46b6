
// C = A·B: four rows and four columns each, straight from the buffers. Processors
// have caches, and pay for barriers.
@compute @workgroup_size(8, 8)
fn multiply(@builtin(global_invocation_id) id: vec3<u32>) {
    let depth = DEPTH / 4u;
    let columns = COLUMNS / 4u;
    let row = id.y * 4u;
    var c0 = vec4<f32>();
    var c1 = vec4<f32>();
    var c2 = vec4<f32>();
    var c3 = vec4<f32>();
    for (var k = 0u; k < depth; k++) {
        let a0 = a[row * depth + k];
        let a1 = a[(row + 1u) * depth + k];
        let a2 = a[(row + 2u) * depth + k];
        let a3 = a[(row + 3u) * depth + k];
        let at = k * 4u * columns + id.x;
        let b0 = b[at];
        let b1 = b[at + columns];
        let b2 = b[at + 2u * columns];
        let b3 = b[at + 3u * columns];
        c0 += a0.x * b0 + a0.y * b1 + a0.z * b2 + a0.w * b3;
        c1 += a1.x * b0 + a1.y * b1 + a1.z * b2 + a1.w * b3;
        c2 += a2.x * b0 + a2.y * b1 + a2.z * b2 + a2.w * b3;
        c3 += a3.x * b0 + a3.y * b1 + a3.z * b2 + a3.w * b3;
    }
    let out = row * columns + id.x;
    c[out] = c0;
    c[out + columns] = c1;
    c[out + 2u * columns] = c2;
    c[out + 3u * columns] = c3;
}
