
// C = A·B in tiles of 128 × 128: 16 × 16 invocations bring 8 of the depth at a time
// into workgroup memory, and each makes 8 × 8 numbers of the tile. UNROLLED lines are
// written out by the program: which number an invocation works on must not depend on a
// loop, or they would not stay in registers.
var<workgroup> tile_a: array<vec4<f32>, 256>; // 8 of depth, by 128 rows
var<workgroup> tile_b: array<vec4<f32>, 256>; // 8 of depth, by 128 columns

@compute @workgroup_size(16, 16)
fn multiply(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let depth = DEPTH / 4u;
    let columns = COLUMNS / 4u;
    // What this invocation brings into the tiles.
    let row = lane / 2u;
    let half = lane % 2u;
    var a_at = (group.y * 128u + row) * depth + half;
    var b_at = (lane / 32u) * columns + group.x * 32u + lane % 32u;
    let place = half * 128u + row / 4u;
    let part = row % 4u;
    UNROLLED_SUMS
    for (var step = 0u; step < depth / 2u; step++) {
        let from_a = a[a_at];
        let from_b = b[b_at];
        workgroupBarrier();
        tile_a[place][part] = from_a.x;
        tile_a[place + 32u][part] = from_a.y;
        tile_a[place + 64u][part] = from_a.z;
        tile_a[place + 96u][part] = from_a.w;
        tile_b[lane] = from_b;
        workgroupBarrier();
        UNROLLED_PRODUCTS
        a_at += 2u;
        b_at += 8u * columns;
    }
    let out = (group.y * 128u + local.y * 8u) * columns + group.x * 32u + local.x;
    UNROLLED_STORES
}
