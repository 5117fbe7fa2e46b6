// Heights of a landscape: noise in nine octaves, each half as wide and half as high as
// the one before, folded where it crosses zero, which makes ridges.

const SIDE = 2048u;

@group(0) @binding(0) var<storage, read_write> heights: array<f32>;

// Whole numbers only, so that every device draws the same landscape.
fn scatter(x: u32, y: u32, octave: u32) -> f32 {
    var h = x * 0x9e3779b1u ^ y * 0x85ebca77u ^ octave * 0xc2b2ae3du;
    h = (h ^ (h >> 15u)) * 0x2c1b3c6du;
    h = (h ^ (h >> 12u)) * 0x297a2d39u;
    h ^= h >> 15u;
    return f32(h >> 8u) / 8388608.0 - 1.0;
}

fn noise(at: vec2f, octave: u32) -> f32 {
    let cell = vec2u(floor(at));
    let part = fract(at);
    let smooth_part = part * part * (3.0 - 2.0 * part);
    let top = mix(scatter(cell.x, cell.y, octave), scatter(cell.x + 1u, cell.y, octave), smooth_part.x);
    let low = mix(scatter(cell.x, cell.y + 1u, octave), scatter(cell.x + 1u, cell.y + 1u, octave), smooth_part.x);
    return mix(top, low, smooth_part.y);
}

@compute @workgroup_size(16, 16)
fn main(@builtin(global_invocation_id) id: vec3u) {
    var at = vec2f(id.xy) / f32(SIDE) * 3.0;
    var height = 0.0;
    var weight = 0.5;
    for (var octave = 0u; octave < 9u; octave++) {
        let ridge = 1.0 - abs(noise(at, octave));
        height += weight * ridge * ridge;
        at *= 2.0;
        weight *= 0.5;
    }
    heights[id.y * SIDE + id.x] = height;
}
