// The Mandelbrot set in smooth colours.
//
// `iterate` moves each pixel's orbit z -> z^2 + c some steps further, and is
// repeated: no dispatch is long. `colour` turns the time of escape into a colour.
// The escape time is made continuous, so that no bands show:
//
//     steps + 1 - log2(log2 |z|)
//
// The same driver paints the same picture each time. Two drivers may round
// differently, and an orbit magnifies that: their pictures look alike, and are
// not equal byte for byte.

const WIDTH: u32 = 1024u;
const HEIGHT: u32 = 768u;
const ESCAPE: f32 = 65536.0;   // |z|^2: the further out, the smoother the colours

override STEPS: u32 = 100u;    // steps in one dispatch

struct View {
    centre_re: f32,
    centre_im: f32,
    height: f32,
}

struct Orbit {
    z: vec2<f32>,
    steps: u32,
    escaped: u32,
}

// ---- iterate --------------------------------------------------------------

@group(0) @binding(0) var<storage, read> view: View;
@group(0) @binding(1) var<storage, read_write> orbits: array<Orbit>;

@compute @workgroup_size(8, 8)
fn iterate(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= WIDTH || id.y >= HEIGHT {
        return;
    }
    let pixel = id.y * WIDTH + id.x;
    var orbit = orbits[pixel];
    if orbit.escaped != 0u {
        return;
    }
    // Rows grow downwards, the imaginary axis upwards.
    let scale = view.height / f32(HEIGHT);
    let c = vec2(
        view.centre_re + (f32(id.x) + 0.5 - f32(WIDTH) * 0.5) * scale,
        view.centre_im - (f32(id.y) + 0.5 - f32(HEIGHT) * 0.5) * scale,
    );
    var z = orbit.z;
    for (var i = 0u; i < STEPS; i++) {
        z = vec2(z.x * z.x - z.y * z.y, 2.0 * z.x * z.y) + c;
        orbit.steps += 1u;
        if dot(z, z) > ESCAPE {
            orbit.escaped = 1u;
            break;
        }
    }
    orbit.z = z;
    orbits[pixel] = orbit;
}

// ---- colour ---------------------------------------------------------------

@group(0) @binding(0) var<storage, read> orbits_in: array<Orbit>;
@group(0) @binding(1) var<storage, read_write> picture: array<u32>;

@compute @workgroup_size(8, 8)
fn colour(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= WIDTH || id.y >= HEIGHT {
        return;
    }
    let pixel = id.y * WIDTH + id.x;
    let orbit = orbits_in[pixel];
    var rgb = vec3(0.0);
    if orbit.escaped != 0u {
        let time = f32(orbit.steps) + 1.0 - log2(0.5 * log2(dot(orbit.z, orbit.z)));
        rgb = palette(log2(max(time, 1.0)));
    }
    // One byte each of red, green, blue and alpha, red first in memory.
    picture[pixel] = pack4x8unorm(vec4(rgb, 1.0));
}

// Night blue, ivory and amber in turn: a cosine for each channel, out of phase.
fn palette(t: f32) -> vec3<f32> {
    let wave = 0.5 - 0.5 * cos(6.2831853 * (0.55 * t + vec3(0.02, 0.09, 0.17)));
    return wave * wave * vec3(1.0, 0.92, 0.85) + vec3(0.02, 0.03, 0.08);
}
