// Exact 1-nearest-neighbour classification of 28 x 28 images by their squared
// Euclidean distance, in integers: every adapter gives the same answer.
//
//     |a - b|^2  =  |a|^2 + |b|^2 - 2 a.b
//
// `norms` computes |b|^2 of the training images once. `scan` then needs one dot
// product for each pair of images, four bytes at a time. |a|^2 is left out: it
// is the same for all candidates of one test image, so it decides nothing.
//
// An invocation of `scan` has four test images and one slice of the training
// images. It walks through its slice a few images a dispatch, and remembers in
// its `Slot` where it stopped and what was nearest so far. So no dispatch is
// long and no invocation loops long, on any adapter; how long the walk is,
// `repeat` in job.toml says. `label` takes the best of all slices, and `score`
// compares with the truth. Ties go to the lowest index: slices and the images in
// them are visited in order, and only a strictly nearer one replaces another.
//
// Each pass binds its own buffers, in the order of its `bind` in job.toml.

const TRAINS: u32 = 60000u;   // training images
const SLICES: u32 = 250u;     // slices of the training images
const WORDS: u32 = 49u;       // vec4<u32> in an image of 784 bytes
const TILE: u32 = 4u;         // images that are compared together, on both sides

override STEP: u32 = 8u;      // training images of a slice in one dispatch: a multiple of TILE
override TESTS: u32 = 1000u;  // test images: a multiple of TILE
override FIRST: u32 = 0u;     // the first of them

// ---- norms: |b|^2 of every training image ---------------------------------

@group(0) @binding(0) var<storage, read> images: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> norms_out: array<i32>;

@compute @workgroup_size(64)
fn norms(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= TRAINS {
        return;
    }
    var sum = 0u;
    for (var w = 0u; w < WORDS; w++) {
        let v = images[id.x * WORDS + w];
        sum += dot4U8Packed(v.x, v.x) + dot4U8Packed(v.y, v.y);
        sum += dot4U8Packed(v.z, v.z) + dot4U8Packed(v.w, v.w);
    }
    norms_out[id.x] = i32(sum);
}

// ---- scan: the nearest of a slice, for four test images -------------------

// One lane of the vectors for each test image of the tile.
struct Slot {
    distance: vec4<i32>,   // |b|^2 - 2 a.b of the nearest so far
    nearest: vec4<u32>,    // its index
    seen: u32,             // training images of the slice that are done
}

@group(0) @binding(0) var<storage, read> tests: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read> trains: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> train_norms: array<i32>;
@group(0) @binding(3) var<storage, read_write> slots: array<Slot>;

@compute @workgroup_size(64)
fn scan(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= TESTS / TILE {
        return;
    }
    let slot = id.y * (TESTS / TILE) + id.x;
    let a = (FIRST + id.x * TILE) * WORDS;
    var best = slots[slot];
    if best.seen == 0u {
        best.distance = vec4(0x7fffffff);
    }
    let first = id.y * (TRAINS / SLICES) + best.seen;
    for (var t = first; t < first + STEP; t += TILE) {
        let b = t * WORDS;
        var dots0 = vec4<u32>();
        var dots1 = vec4<u32>();
        var dots2 = vec4<u32>();
        var dots3 = vec4<u32>();
        for (var w = 0u; w < WORDS; w++) {
            // Eight loads serve sixteen products: arithmetic, not memory, decides the speed.
            let a0 = tests[a + w];
            let a1 = tests[a + WORDS + w];
            let a2 = tests[a + 2u * WORDS + w];
            let a3 = tests[a + 3u * WORDS + w];
            dots0 += dots(trains[b + w], a0, a1, a2, a3);
            dots1 += dots(trains[b + WORDS + w], a0, a1, a2, a3);
            dots2 += dots(trains[b + 2u * WORDS + w], a0, a1, a2, a3);
            dots3 += dots(trains[b + 3u * WORDS + w], a0, a1, a2, a3);
        }
        consider(&best, t, dots0);
        consider(&best, t + 1u, dots1);
        consider(&best, t + 2u, dots2);
        consider(&best, t + 3u, dots3);
    }
    best.seen += STEP;
    slots[slot] = best;
}

// The products of 16 bytes of one image with those of four others.
fn dots(b: vec4<u32>, a0: vec4<u32>, a1: vec4<u32>, a2: vec4<u32>, a3: vec4<u32>) -> vec4<u32> {
    return vec4(dot16(a0, b), dot16(a1, b), dot16(a2, b), dot16(a3, b));
}

fn dot16(a: vec4<u32>, b: vec4<u32>) -> u32 {
    return dot4U8Packed(a.x, b.x) + dot4U8Packed(a.y, b.y)
         + dot4U8Packed(a.z, b.z) + dot4U8Packed(a.w, b.w);
}

fn consider(best: ptr<function, Slot>, train: u32, dots: vec4<u32>) {
    let distance = train_norms[train] - 2 * vec4<i32>(dots);
    let nearer = distance < (*best).distance;
    (*best).distance = select((*best).distance, distance, nearer);
    (*best).nearest = select((*best).nearest, vec4(train), nearer);
}

// ---- label: the best of all slices, and what it shows ---------------------

@group(0) @binding(0) var<storage, read> slots_in: array<Slot>;
@group(0) @binding(1) var<storage, read> train_labels: array<u32>;
@group(0) @binding(2) var<storage, read_write> labels_out: array<u32>;

@compute @workgroup_size(64)
fn label(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= TESTS {
        return;
    }
    let lane = id.x % TILE;
    var distance = 0x7fffffff;
    var nearest = 0u;
    for (var s = 0u; s < SLICES; s++) {
        let slot = s * (TESTS / TILE) + id.x / TILE;
        if slots_in[slot].distance[lane] < distance {
            distance = slots_in[slot].distance[lane];
            nearest = slots_in[slot].nearest[lane];
        }
    }
    labels_out[id.x] = extractBits(train_labels[nearest / 4u], 8u * (nearest % 4u), 8u);
}

// ---- score: how many labels are right -------------------------------------

@group(0) @binding(0) var<storage, read> labels: array<u32>;
@group(0) @binding(1) var<storage, read> test_labels: array<u32>;
@group(0) @binding(2) var<storage, read_write> correct: atomic<u32>;

@compute @workgroup_size(64)
fn score(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= TESTS {
        return;
    }
    let test = FIRST + id.x;
    let truth = extractBits(test_labels[test / 4u], 8u * (test % 4u), 8u);
    if labels[id.x] == truth {
        atomicAdd(&correct, 1u);
    }
}
