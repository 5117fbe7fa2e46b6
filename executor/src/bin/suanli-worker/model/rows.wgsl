// What happens to rows of numbers between two products: norms, rotations, attention and
// gates. A row is a step of the batch.
//
// Numbers of a head are taken in pairs, which positions rotate: neighbours, or one of each
// half of those that are rotated. Keys and values lie in
// pages of 32 positions, with 16 bits, a pair in a word: for each page and head of keys and
// values first the keys, a row of positions for each pair, then the values, a row of pairs
// for each position. So neighbours in a group read neighbouring words of both.

struct Batch {
    rows: u32,
    span: u32,
    chunks: u32,
    unused: u32,
}

// Where a step is: the sequence's positions until it, itself included, where the list of
// its pages begins, and its own page and place in that.
struct Place {
    positions: u32,
    pages: u32,
    page: u32,
    slot: u32,
}

const PAGE: u32 = 32;
const LEAST: f32 = -3.0e38;
const HALF_MAX: f32 = 65504.0;

override WIDTH: u32 = 1;
// From one row to the next: of what goes in, and of what comes out.
override IN: u32 = 1;
override OUT: u32 = 1;
override EPSILON: f32 = 0.0;
// Whether only those rows count that are in the list.
override PICKS: bool = false;
override HEADS: u32 = 1;
override KV_HEADS: u32 = 1;
// Pairs of a head, and those of them that are rotated.
override PAIRS: u32 = 1;
override ROTATED: u32 = 1;
// Whether those are a number of the first half and its like of the second.
override HALVES: bool = false;
// Whether something is added to queries, keys and values.
override BIASED: bool = false;
override SCALE: f32 = 1.0;

@group(0) @binding(0) var<storage, read> batch: Batch;
@group(0) @binding(1) var<storage, read> numbers: array<f32>;
@group(0) @binding(2) var<storage, read> weights: array<f32>;
@group(0) @binding(3) var<storage, read> list: array<u32>;
@group(0) @binding(4) var<storage, read> places: array<Place>;
@group(0) @binding(5) var<storage, read> turns: array<vec2<f32>>;
@group(0) @binding(6) var<storage, read> past: array<u32>;
@group(0) @binding(7) var<storage, read_write> cache: array<u32>;
@group(0) @binding(8) var<storage, read_write> out: array<f32>;

var<workgroup> shared_numbers: array<f32, 256>;

// All of a group's numbers, added up or the largest; the group has a power of two of them.
fn sum_of_group(local: u32, count: u32, number: f32) -> f32 {
    workgroupBarrier();
    shared_numbers[local] = number;
    for (var half = count / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if local < half {
            shared_numbers[local] += shared_numbers[local + half];
        }
    }
    workgroupBarrier();
    return shared_numbers[0];
}

fn largest_of_group(local: u32, count: u32, number: f32) -> f32 {
    workgroupBarrier();
    shared_numbers[local] = number;
    for (var half = count / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if local < half {
            shared_numbers[local] = max(shared_numbers[local], shared_numbers[local + half]);
        }
    }
    workgroupBarrier();
    return shared_numbers[0];
}

// A row over the root of its mean square: a group for each row.
@compute @workgroup_size(256)
fn norm(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    var row = group.y;
    if PICKS {
        row = list[group.y];
    }
    var squares = 0.0;
    for (var i = local; i < WIDTH; i += 256u) {
        let number = numbers[row * IN + i];
        squares += number * number;
    }
    let scale = inverseSqrt(sum_of_group(local, 256u, squares) / f32(WIDTH) + EPSILON);
    for (var i = local; i < WIDTH; i += 256u) {
        out[group.y * OUT + i] = numbers[row * IN + i] * scale * weights[i];
    }
}

// Each head of a row's queries and keys over the root of its mean square, in place: a group
// for each.
@compute @workgroup_size(64)
fn norm_heads(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let begin = group.y * OUT + group.x * 2u * PAIRS;
    // The keys' weights follow the queries'.
    let own = select(0u, 2u * PAIRS, group.x >= HEADS);
    var squares = 0.0;
    for (var i = local; i < 2u * PAIRS; i += 64u) {
        let number = out[begin + i];
        squares += number * number;
    }
    let scale = inverseSqrt(sum_of_group(local, 64u, squares) / f32(2u * PAIRS) + EPSILON);
    for (var i = local; i < 2u * PAIRS; i += 64u) {
        out[begin + i] = out[begin + i] * scale * weights[own + i];
    }
}

// Where a pair's two numbers are in a head of queries or keys.
fn places_of(pair: u32) -> vec2<u32> {
    if HALVES && pair < ROTATED {
        return vec2<u32>(pair, pair + ROTATED);
    }
    return vec2<u32>(2u * pair, 2u * pair + 1u);
}

// Rotates queries in place, and keys on their way into the cache, where values go too: one
// for each pair of a row's queries, keys and values.
@compute @workgroup_size(64)
fn rotate(@builtin(global_invocation_id) id: vec3<u32>) {
    let head = id.x / PAIRS;
    if head >= HEADS + 2u * KV_HEADS {
        return;
    }
    let pair = id.x % PAIRS;
    let begin_of_head = head * 2u * PAIRS;
    var of_head = vec2<u32>(2u * pair, 2u * pair + 1u);
    if head < HEADS + KV_HEADS {
        of_head = places_of(pair);
    }
    let at = of_head + id.y * OUT + begin_of_head;
    var both = vec2<f32>(out[at.x], out[at.y]);
    if BIASED {
        let bias = of_head + begin_of_head;
        both += vec2<f32>(weights[bias.x], weights[bias.y]);
    }
    if head < HEADS + KV_HEADS && pair < ROTATED {
        let turn = turns[id.y * ROTATED + pair];
        both = vec2<f32>(
            both.x * turn.x - both.y * turn.y,
            both.x * turn.y + both.y * turn.x,
        );
    }
    if head < HEADS {
        out[at.x] = both.x;
        out[at.y] = both.y;
        return;
    }
    let place = places[id.y];
    let own = (head - HEADS) % KV_HEADS;
    let begin = (place.page * KV_HEADS + own) * 2u * PAIRS * PAGE;
    let packed = pack2x16float(clamp(both, vec2<f32>(-HALF_MAX), vec2<f32>(HALF_MAX)));
    if head < HEADS + KV_HEADS {
        cache[begin + pair * PAGE + place.slot] = packed;
    } else {
        cache[begin + PAIRS * PAGE + place.slot * PAIRS + pair] = packed;
    }
}

// Positions that a group takes at once.
const AT_ONCE: u32 = 256;

var<workgroup> query: array<vec2<f32>, 512>;
var<workgroup> scores: array<f32, 256>;
var<workgroup> sums_of_values: array<vec2<f32>, 64>;

// What a head of a row makes of some of the positions before it: the largest score, the sum
// of all scores' powers, and the values' sum weighed by those.
@compute @workgroup_size(64)
fn attend(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let head = group.x;
    let row = group.y;
    let place = places[row];
    let begin = group.z * batch.span;
    let end = min(begin + batch.span, place.positions);
    let own = head / (HEADS / KV_HEADS);
    for (var pair = local; pair < PAIRS; pair += 64u) {
        let at = places_of(pair) + row * IN + head * 2u * PAIRS;
        query[pair] = vec2<f32>(numbers[at.x], numbers[at.y]) * SCALE;
    }
    workgroupBarrier();
    // Where there are fewer pairs than lanes, several lanes share a pair.
    let shares = max(64u / PAIRS, 1u);
    let share = local / PAIRS;
    var largest = LEAST;
    var sum = 0.0;
    var values: array<vec2<f32>, 8>;
    for (var base = begin; base < end; base += AT_ONCE) {
        let count = min(AT_ONCE, end - base);
        var best = LEAST;
        for (var i = local; i < AT_ONCE; i += 64u) {
            var score = LEAST;
            if i < count {
                score = score_of(place.pages, base + i, own);
            }
            scores[i] = score;
            best = max(best, score);
        }
        let before = largest;
        largest = max(before, largest_of_group(local, 64u, best));
        var powers = 0.0;
        for (var i = local; i < AT_ONCE; i += 64u) {
            var power = 0.0;
            if i < count {
                power = exp(scores[i] - largest);
            }
            scores[i] = power;
            powers += power;
        }
        let shrink = exp(before - largest);
        sum = sum * shrink + sum_of_group(local, 64u, powers);
        for (var n = 0u; n * 64u < PAIRS; n++) {
            let pair = select(local + n * 64u, local % PAIRS, shares > 1u);
            if pair < PAIRS && (shares == 1u || share < shares) {
                var more = values[n] * shrink;
                let first = select(0u, share, shares > 1u);
                for (var i = first; i < count; i += shares) {
                    more += scores[i] * value_of(place.pages, base + i, own, pair);
                }
                values[n] = more;
            }
        }
        workgroupBarrier();
    }
    let to = ((row * HEADS + head) * batch.chunks + group.z) * (2u * PAIRS + 2u);
    if local == 0u {
        out[to] = largest;
        out[to + 1u] = sum;
    }
    if shares == 1u {
        for (var n = 0u; n * 64u < PAIRS; n++) {
            let pair = local + n * 64u;
            if pair < PAIRS {
                out[to + 2u + pair * 2u] = values[n].x;
                out[to + 3u + pair * 2u] = values[n].y;
            }
        }
        return;
    }
    sums_of_values[local] = values[0];
    workgroupBarrier();
    if local < PAIRS {
        var all = vec2<f32>();
        for (var other = 0u; other < shares; other++) {
            all += sums_of_values[other * PAIRS + local];
        }
        out[to + 2u + local * 2u] = all.x;
        out[to + 3u + local * 2u] = all.y;
    }
}

fn score_of(pages: u32, position: u32, own: u32) -> f32 {
    let page = list[pages + position / PAGE];
    let at = (page * KV_HEADS + own) * 2u * PAIRS * PAGE + position % PAGE;
    var score = 0.0;
    for (var pair = 0u; pair < PAIRS; pair++) {
        score += dot(query[pair], unpack2x16float(past[at + pair * PAGE]));
    }
    return score;
}

fn value_of(pages: u32, position: u32, own: u32, pair: u32) -> vec2<f32> {
    let page = list[pages + position / PAGE];
    let begin = ((page * KV_HEADS + own) * 2u + 1u) * PAIRS * PAGE;
    return unpack2x16float(past[begin + position % PAGE * PAIRS + pair]);
}

// Puts together what groups made of a head of a row.
@compute @workgroup_size(64)
fn merge(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let part = 2u * PAIRS + 2u;
    let begin = (group.y * HEADS + group.x) * batch.chunks * part;
    var largest = LEAST;
    for (var chunk = 0u; chunk < batch.chunks; chunk++) {
        largest = max(largest, numbers[begin + chunk * part]);
    }
    for (var i = local; i < 2u * PAIRS; i += 64u) {
        var sum = 0.0;
        var number = 0.0;
        for (var chunk = 0u; chunk < batch.chunks; chunk++) {
            let at = begin + chunk * part;
            let weight = exp(numbers[at] - largest);
            sum += weight * numbers[at + 1u];
            number += weight * numbers[at + 2u + i];
        }
        out[group.y * OUT + group.x * 2u * PAIRS + i] = number / sum;
    }
}

// What went through the gate: its first half, bent, times its second.
@compute @workgroup_size(64)
fn gate(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= WIDTH {
        return;
    }
    let gate = numbers[id.y * IN + id.x];
    let up = numbers[id.y * IN + WIDTH + id.x];
    out[id.y * OUT + id.x] = gate / (1.0 + exp(-gate)) * up;
}
