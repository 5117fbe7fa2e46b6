// A picture of heights, a pixel for four of them, lit from the north-west.

const SIDE = 2048u;
const PIXELS = 1024u;

@group(0) @binding(0) var<storage, read> heights: array<f32>;
@group(0) @binding(1) var<storage, read_write> picture: array<u32>;

fn height(x: u32, y: u32) -> f32 {
    return heights[min(y, SIDE - 1u) * SIDE + min(x, SIDE - 1u)];
}

@compute @workgroup_size(16, 16)
fn main(@builtin(global_invocation_id) id: vec3u) {
    let x = id.x * 2u;
    let y = id.y * 2u;
    let here = height(x, y);
    let slope = vec2f(height(x + 2u, y) - here, height(x, y + 2u) - here) * 200.0;
    let light = dot(normalize(vec3f(-slope, 1.0)), normalize(vec3f(-1.0, -1.0, 1.2)));
    let valley = vec3f(0.16, 0.30, 0.22);
    let slope_colour = vec3f(0.52, 0.45, 0.36);
    let snow = vec3f(0.96, 0.97, 1.0);
    var colour = mix(valley, slope_colour, smoothstep(0.35, 0.60, here));
    colour = mix(colour, snow, smoothstep(0.66, 0.78, here));
    colour *= 0.25 + 0.85 * max(light, 0.0);
    picture[id.y * PIXELS + id.x] = pack4x8unorm(vec4f(colour, 1.0));
}
