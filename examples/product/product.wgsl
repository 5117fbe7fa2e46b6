// A product of two matrices, one tile after the other: each workgroup makes 16 x 16 numbers
// of it, and loads each number of the factors once for sixteen that need it. Sides need be
// no multiple of 16: beyond an edge there are zeros, which change no sum.

override ROWS: u32 = 1u;
override INNER: u32 = 1u;
override COLUMNS: u32 = 1u;

const TILE = 16u;

@group(0) @binding(0) var<storage, read> a: array<f32>;
@group(0) @binding(1) var<storage, read> b: array<f32>;
@group(0) @binding(2) var<storage, read_write> c: array<f32>;

var<workgroup> left: array<array<f32, 16>, 16>;
var<workgroup> right: array<array<f32, 16>, 16>;

@compute @workgroup_size(16, 16)
fn main(
    @builtin(global_invocation_id) id: vec3<u32>,
    @builtin(local_invocation_id) at: vec3<u32>,
) {
    let row = id.y;
    let column = id.x;
    var sum = 0.0;
    for (var first = 0u; first < INNER; first += TILE) {
        let across = first + at.x;
        let down = first + at.y;
        var number = 0.0;
        if row < ROWS && across < INNER {
            number = a[row * INNER + across];
        }
        left[at.y][at.x] = number;
        number = 0.0;
        if down < INNER && column < COLUMNS {
            number = b[down * COLUMNS + column];
        }
        right[at.y][at.x] = number;
        workgroupBarrier();
        for (var k = 0u; k < TILE; k++) {
            sum += left[at.y][k] * right[k][at.x];
        }
        workgroupBarrier();
    }
    if row < ROWS && column < COLUMNS {
        c[row * COLUMNS + column] = sum;
    }
}
