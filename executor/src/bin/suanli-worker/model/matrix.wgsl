// A matrix times rows of numbers, and rows of a matrix by their numbers.
//
// A matrix is rows of blocks of 32 numbers, as `layout.rs` writes them. What goes in is
// rows of numbers, each as many blocks long; what comes out is written into rows that
// others write into as well.

struct Batch {
    // Rows that go in.
    rows: u32,
    // Positions that a group attends to, and groups for each row and head.
    span: u32,
    chunks: u32,
    unused: u32,
}

// How numbers are written: 0 with 32 bits, 1 with 16, 2 with the upper 16 of 32, 3 with 8
// and a scale for a block, 4 with 4, a scale and a least number, 5 with 5 and these. Eight
// blocks share a scale and a least number in 6, with 4 bits, and 7, with 5; a scale in 8,
// with 6.
override KIND: u32 = 0;
// Of the matrix.
override ROWS: u32 = 1;
override BLOCKS: u32 = 1;
// Its first row's number among those of the embedding.
override FIRST: u32 = 0;
// From one row that comes out to the next, and where in it this matrix begins.
override OUT: u32 = 1;
override AT: u32 = 0;
// Whether what comes out is added to what is there.
override ADDS: bool = false;
// Rows that go in, at most: 1 to 8.
override FEW: u32 = 1;

@group(0) @binding(0) var<storage, read> batch: Batch;
@group(0) @binding(1) var<storage, read> quants: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> scales: array<u32>;
@group(0) @binding(3) var<storage, read> numbers: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> out: array<f32>;
@group(0) @binding(5) var<storage, read> tokens: array<u32>;

// Four of a block's numbers: the i-th four of eight.
fn four(block: u32, i: u32) -> vec4<f32> {
    switch KIND {
        case 0u: {
            return bitcast<vec4<f32>>(quants[block * 8u + i]);
        }
        case 1u: {
            let two = pair(block, i);
            return vec4<f32>(unpack2x16float(two.x), unpack2x16float(two.y));
        }
        case 2u: {
            let two = pair(block, i);
            let upper = two & vec2<u32>(0xffff0000u);
            let lower = two << vec2<u32>(16u);
            return bitcast<vec4<f32>>(vec4<u32>(lower.x, upper.x, lower.y, upper.y));
        }
        case 3u: {
            let two = scales[block / 2u];
            let scale = wide(select(two & 0xffffu, two >> 16u, block % 2u == 1u));
            let word = quants[block * 2u + i / 4u][i % 4u];
            return vec4<f32>(unpack4xI8(word)) * scale;
        }
        case 4u: {
            let scale = both(scales[block]);
            return bytes(low(block, i)) * scale.x + scale.y;
        }
        case 5u: {
            let scale = both(scales[block * 2u]);
            let upper = fifth(scales[block * 2u + 1u], i);
            return bytes(low(block, i) | upper) * scale.x + scale.y;
        }
        case 6u, 7u: {
            let begin = block / 8u * select(5u, 13u, KIND == 7u);
            let factors = factors_of(begin, block % 8u);
            let own = vec2<f32>(f32(factors & 0xffu), f32((factors >> 8u) & 0xffu));
            let scale = both(scales[begin]) * own;
            var word = low(block, i);
            if KIND == 7u {
                word |= fifth(scales[begin + 5u + block % 8u], i);
            }
            return bytes(word) * scale.x + scale.y;
        }
        default: {
            let begin = block / 8u * 21u;
            let factors = bitcast<i32>(factors_of(begin, block % 8u));
            let own = f32(extractBits(factors, 8u * (i / 4u), 8u));
            let upper = scales[begin + 5u + block % 8u * 2u + i / 4u] >> (2u * (i % 4u));
            let word = low(block, i) | ((upper & 0x03030303u) << 4u);
            return (bytes(word) - 32.0) * (wide(scales[begin] & 0xffffu) * own);
        }
    }
}

// Their lower four bits, where those lie in sixteen bytes.
fn low(block: u32, i: u32) -> u32 {
    return (quants[block][i % 4u] >> (4u * (i / 4u))) & 0x0f0f0f0fu;
}

// Their fifth bits.
fn fifth(word: u32, i: u32) -> u32 {
    return ((word >> i) & 0x01010101u) << 4u;
}

// The two bytes that one of eight blocks has beside what they share.
fn factors_of(begin: u32, own: u32) -> u32 {
    return scales[begin + 1u + own / 2u] >> (16u * (own % 2u));
}

fn bytes(word: u32) -> vec4<f32> {
    return vec4<f32>(unpack4xU8(word));
}

fn both(word: u32) -> vec2<f32> {
    return vec2<f32>(wide(word & 0xffffu), wide(word >> 16u));
}

// A float of 16 bits, also one so small that a device may take it for 0 by itself: scales
// of weights are often that small. Infinities, which no scale is, become large numbers.
fn wide(half: u32) -> f32 {
    let small = f32(half & 0x3ffu) * 5.9604644775390625e-8;
    let other = bitcast<f32>(((half & 0x7fffu) << 13u) + 0x38000000u);
    let size = select(other, small, (half & 0x7c00u) == 0u);
    return select(size, -size, (half & 0x8000u) != 0u);
}

// The same four, where each has 16 bits.
fn pair(block: u32, i: u32) -> vec2<u32> {
    let eight = quants[block * 4u + i / 2u];
    return select(eight.xy, eight.zw, i % 2u == 1u);
}

fn put(row: u32, column: u32, number: f32) {
    let to = row * OUT + AT + column;
    if ADDS {
        out[to] += number;
    } else {
        out[to] = number;
    }
}

// Rows of the embedding: a group for 64 fours of a token.
@compute @workgroup_size(64)
fn embed(@builtin(global_invocation_id) id: vec3<u32>) {
    let token = tokens[id.y];
    if id.x >= BLOCKS * 8u || token < FIRST || token - FIRST >= ROWS {
        return;
    }
    let found = four((token - FIRST) * BLOCKS + id.x / 8u, id.x % 8u);
    let to = id.y * OUT + id.x * 4u;
    out[to] = found.x;
    out[to + 1u] = found.y;
    out[to + 2u] = found.z;
    out[to + 3u] = found.w;
}

// More groups than a dimension may have go on in the next one.
const GROUPS: u32 = 32768;

var<workgroup> sums_of_lanes: array<f32, 512>;

// A few rows: a group has eight of the matrix's, each for eight lanes, which take two blocks
// at a time: a lane the fours that lie in one word where numbers have 4 bits. So neighbours
// read neighbouring words of the matrix, and neighbouring numbers of what goes in.
@compute @workgroup_size(64)
fn few(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let first = (group.y * GROUPS + group.x) * 8u;
    let row = first + local / 8u;
    let base = group.z * FEW;
    let i = local % 4u;
    var sums: array<f32, 8>;
    if row < ROWS {
        for (var block = local % 8u / 4u; block < BLOCKS; block += 2u) {
            let low = four(row * BLOCKS + block, i);
            let high = four(row * BLOCKS + block, i + 4u);
            for (var each = 0u; each < FEW; each++) {
                let at = ((base + each) * BLOCKS + block) * 8u + i;
                sums[each] += dot(low, numbers[at]) + dot(high, numbers[at + 4u]);
            }
        }
    }
    for (var each = 0u; each < FEW; each++) {
        sums_of_lanes[each * 64u + local] = sums[each];
    }
    workgroupBarrier();
    let each = local / 8u;
    let column = first + local % 8u;
    if each < FEW && base + each < batch.rows && column < ROWS {
        var sum = 0.0;
        for (var lane = 0u; lane < 8u; lane++) {
            sum += sums_of_lanes[each * 64u + (local % 8u) * 8u + lane];
        }
        put(base + each, column, sum);
    }
}

var<workgroup> weights_tile: array<vec4<f32>, 512>;
var<workgroup> numbers_tile: array<vec4<f32>, 256>;

// Many rows: a group has 64 of the matrix's and 32 of those that go in, and goes through
// them block by block. Each of its 256 has four times two sums.
@compute @workgroup_size(256)
fn many(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let first_row = group.x * 64u;
    let first_each = group.y * 32u;
    let x = local % 16u;
    let y = local / 16u;
    var first: vec2<f32>;
    var second: vec2<f32>;
    var third: vec2<f32>;
    var fourth: vec2<f32>;
    for (var block = 0u; block < BLOCKS; block++) {
        let row = min(first_row + local % 64u, ROWS - 1u) * BLOCKS + block;
        weights_tile[local] = four(row, local / 64u);
        weights_tile[local + 256u] = four(row, local / 64u + 4u);
        let each = min(first_each + local % 32u, batch.rows - 1u);
        numbers_tile[local] = numbers[(each * BLOCKS + block) * 8u + local / 32u];
        workgroupBarrier();
        for (var i = 0u; i < 8u; i++) {
            let one = numbers_tile[i * 32u + y];
            let other = numbers_tile[i * 32u + y + 16u];
            let at = i * 64u + x;
            first += vec2<f32>(dot(weights_tile[at], one), dot(weights_tile[at], other));
            second += vec2<f32>(dot(weights_tile[at + 16u], one), dot(weights_tile[at + 16u], other));
            third += vec2<f32>(dot(weights_tile[at + 32u], one), dot(weights_tile[at + 32u], other));
            fourth += vec2<f32>(dot(weights_tile[at + 48u], one), dot(weights_tile[at + 48u], other));
        }
        workgroupBarrier();
    }
    for (var half = 0u; half < 2u; half++) {
        let each = first_each + y + half * 16u;
        if each < batch.rows {
            put_if_there(each, first_row + x, first[half]);
            put_if_there(each, first_row + x + 16u, second[half]);
            put_if_there(each, first_row + x + 32u, third[half]);
            put_if_there(each, first_row + x + 48u, fourth[half]);
        }
    }
}

fn put_if_there(row: u32, column: u32, number: f32) {
    if column < ROWS {
        put(row, column, number);
    }
}
