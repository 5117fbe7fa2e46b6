// Gray-Scott: two substances u and v spread on a torus and react, u + 2v -> 3v.
// Every cell keeps two states, the last and the one before, and counts its steps: a
// dispatch reads those of one parity and writes those of the other, so that no cell
// sees a neighbour that is already further.

override WIDTH: u32 = 256u;
override HEIGHT: u32 = 256u;

const SPREAD_U = 0.16;
const SPREAD_V = 0.08;

@group(0) @binding(0) var<storage, read_write> cells: array<vec4f>; // u, v and u, v
@group(0) @binding(1) var<storage, read_write> steps: array<u32>;
@group(0) @binding(2) var<storage, read> rates: array<f32>; // feed, kill
@group(0) @binding(3) var<storage, read_write> picture: array<u32>;

fn at(x: u32, y: u32) -> u32 {
    return (y % HEIGHT) * WIDTH + x % WIDTH;
}

fn state(cell: u32, parity: u32) -> vec2f {
    return select(cells[cell].xy, cells[cell].zw, parity == 1u);
}

@compute @workgroup_size(8, 8)
fn seed(@builtin(global_invocation_id) id: vec3u) {
    let cell = at(id.x, id.y);
    let far = abs(vec2i(id.xy) - vec2i(i32(WIDTH), i32(HEIGHT)) / 2);
    let drop = far.x < 12 && far.y < 12;
    // Not quite even, so that the pattern is not either.
    let noise = f32((cell * 1664525u + 1013904223u) >> 24u) / 4096.0;
    let begin = select(vec2f(1.0, 0.0), vec2f(0.5 + noise, 0.25), drop);
    cells[cell] = vec4f(begin, begin);
    steps[cell] = 0u;
}

@compute @workgroup_size(8, 8)
fn react(@builtin(global_invocation_id) id: vec3u) {
    let cell = at(id.x, id.y);
    let now = steps[cell] % 2u;
    let here = state(cell, now);
    let beside = state(at(id.x + 1u, id.y), now) + state(at(id.x + WIDTH - 1u, id.y), now)
        + state(at(id.x, id.y + 1u), now) + state(at(id.x, id.y + HEIGHT - 1u), now);
    let spread = vec2f(SPREAD_U, SPREAD_V) * (beside - 4.0 * here);
    let reacts = here.x * here.y * here.y;
    let feeds = rates[0] * (1.0 - here.x);
    let decays = (rates[0] + rates[1]) * here.y;
    let next = here + spread + vec2f(feeds - reacts, reacts - decays);
    if now == 0u {
        cells[cell] = vec4f(cells[cell].xy, next);
    } else {
        cells[cell] = vec4f(next, cells[cell].zw);
    }
    steps[cell] += 1u;
}

@compute @workgroup_size(8, 8)
fn colour(@builtin(global_invocation_id) id: vec3u) {
    let cell = at(id.x, id.y);
    let v = clamp(state(cell, steps[cell] % 2u).y * 2.6, 0.0, 1.0);
    let ink = vec3f(0.07, 0.14, 0.29);
    let sand = vec3f(0.96, 0.87, 0.70);
    picture[cell] = pack4x8unorm(vec4f(mix(ink, sand, v), 1.0));
}
