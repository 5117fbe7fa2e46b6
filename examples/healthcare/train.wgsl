// Logistic regression by gradient descent with momentum, one configuration a unit, and
// how good what comes of it is on rows that it was not trained on.
//
//     p(row)   = 1 / (1 + exp(-weights . row))
//     gradient = mean over training rows of (p - truth) * row,  + l2 * weights
//     velocity = momentum * velocity - rate * gradient
//     weights  = weights + velocity
//
// All rows are used in each step. `train` does STEPS of them a dispatch and keeps weights
// and velocity in a buffer; `repeat` in job.toml says how many dispatches there are. So
// no dispatch is long and no invocation loops long, on any adapter. `score` comes once,
// afterwards.
//
// Floats, and yet the same bits everywhere, as far as a program can see to that, so that
// replicas and audits can be compared. Multiplications and additions are rounded alike by
// all devices; what differs is left out or undone:
//
// - Division, `exp` and `log` are made of multiplications and additions, below.
// - A driver may join a product and a sum to one operation (`fma`), which rounds once and
//   not twice. `times` keeps it from doing so: between the two it does something with the
//   product's bits that changes nothing, but that only we know.
// - Sums have an order that the program states, whatever the device runs side by side.
//
// Some devices round the smallest numbers to zero. Only a velocity ever gets that small,
// where training has come to rest; it then is too small to change a weight, either way.

const QUADS: u32 = 8u;          // vec4<f32> in a row: 30 features, a one, and the truth
const TRAINING: u32 = 342u;     // rows, first in the file
const VALIDATION: u32 = 114u;   // then these
const TEST: u32 = 113u;         // and then these
const LANES: u32 = 64u;         // invocations of the one workgroup
const SLICES: u32 = LANES / QUADS;

override STEPS: u32 = 100u;     // in one dispatch

struct Config {
    rate: f32,
    l2: f32,
    momentum: f32,
    zero: u32,                  // 0, which no compiler knows
}

struct State {
    weights: array<vec4<f32>, QUADS>,    // the last two words: intercept, nothing
    velocity: array<vec4<f32>, QUADS>,
}

@group(0) @binding(0) var<storage, read> config: Config;
@group(0) @binding(1) var<storage, read> rows: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> state: State;

var<workgroup> weights: array<vec4<f32>, QUADS>;
var<private> zero: u32;

// ---- train: some steps of gradient descent --------------------------------

var<workgroup> errors: array<f32, TRAINING>;
var<workgroup> sums: array<vec4<f32>, LANES>;

@compute @workgroup_size(LANES)
fn train(@builtin(local_invocation_index) lane: u32) {
    zero = config.zero;
    // The first invocations own four weights each.
    var velocity = vec4<f32>();
    if lane < QUADS {
        weights[lane] = state.weights[lane];
        velocity = state.velocity[lane];
    }
    workgroupBarrier();

    for (var step = 0u; step < STEPS; step++) {
        for (var row = lane; row < TRAINING; row += LANES) {
            errors[row] = probability(score_of(row)) - truth(row);
        }
        workgroupBarrier();

        // Each invocation sums four columns over an eighth of the rows.
        let quad = lane % QUADS;
        var sum = vec4<f32>();
        for (var row = lane / QUADS; row < TRAINING; row += SLICES) {
            sum += times4(vec4(errors[row]), rows[row * QUADS + quad]);
        }
        sums[lane] = sum;
        workgroupBarrier();

        if lane < QUADS {
            sum = vec4<f32>();
            for (var slice = 0u; slice < SLICES; slice++) {
                sum += sums[slice * QUADS + lane];
            }
            // No penalty on the intercept, and the truth has no weight at all.
            let is_last = lane == QUADS - 1u;
            let penalty = select(vec4(config.l2), vec4(config.l2, config.l2, 0.0, 0.0), is_last);
            let learned = select(vec4(1.0), vec4(1.0, 1.0, 1.0, 0.0), is_last);
            let gradient = times4(sum, vec4(1.0 / f32(TRAINING))) + times4(penalty, weights[lane]);
            velocity = times4(vec4(config.momentum), velocity)
                - times4(times4(vec4(config.rate), gradient), learned);
            weights[lane] += velocity;
        }
        workgroupBarrier();
    }

    if lane < QUADS {
        state.weights[lane] = weights[lane];
        state.velocity[lane] = velocity;
    }
}

// ---- score: on rows that were held back -----------------------------------

// All of it floats: counts of rows are exact in them.
struct Model {
    weights: array<f32, 30>,
    intercept: f32,
    validation_right: f32,      // rows of which the likelier class is the true one
    validation_loss: f32,       // mean of -ln(what was given to the true class)
    test_right: f32,
}

@group(0) @binding(3) var<storage, read_write> model: Model;

var<workgroup> losses: array<f32, VALIDATION>;
var<workgroup> validation_right: atomic<u32>;
var<workgroup> test_right: atomic<u32>;

@compute @workgroup_size(LANES)
fn score(@builtin(local_invocation_index) lane: u32) {
    zero = config.zero;
    if lane < QUADS {
        weights[lane] = state.weights[lane];
    }
    workgroupBarrier();

    for (var i = lane; i < VALIDATION; i += LANES) {
        let row = TRAINING + i;
        let score = score_of(row);
        losses[i] = loss(select(-score, score, truth(row) == 1.0));
        if is_right(score, row) {
            atomicAdd(&validation_right, 1u);
        }
    }
    for (var i = lane; i < TEST; i += LANES) {
        let row = TRAINING + VALIDATION + i;
        if is_right(score_of(row), row) {
            atomicAdd(&test_right, 1u);
        }
    }
    workgroupBarrier();

    if lane == 0u {
        for (var i = 0u; i < 30u; i++) {
            model.weights[i] = weights[i / 4u][i % 4u];
        }
        model.intercept = weights[7].z;
        var sum = 0.0;
        for (var i = 0u; i < VALIDATION; i++) {
            sum += losses[i];
        }
        model.validation_right = f32(atomicLoad(&validation_right));
        model.validation_loss = times(sum, 1.0 / f32(VALIDATION));
        model.test_right = f32(atomicLoad(&test_right));
    }
}

// ---- what both need -------------------------------------------------------

// weights . row: above zero where class 1 is the likelier one. The truth's weight is zero.
fn score_of(row: u32) -> f32 {
    var sum = vec4<f32>();
    for (var quad = 0u; quad < QUADS; quad++) {
        sum += times4(rows[row * QUADS + quad], weights[quad]);
    }
    return (sum.x + sum.y) + (sum.z + sum.w);
}

fn truth(row: u32) -> f32 {
    return rows[row * QUADS + QUADS - 1u].w;
}

fn is_right(score: f32, row: u32) -> bool {
    return (score > 0.0) == (truth(row) == 1.0);
}

// 1 / (1 + exp(-score)). The exponential is of what is below zero, so that it never is large.
fn probability(score: f32) -> f32 {
    let small = exp_below(-abs(score));
    let likelier = reciprocal(1.0 + small);
    return select(times(small, likelier), likelier, score > 0.0);
}

// ln(1 + exp(-score)): what the true class' probability costs, given its score.
fn loss(score: f32) -> f32 {
    return log_above(exp_below(-abs(score))) + max(-score, 0.0);
}

// exp(x) for x <= 0: a power of two, which is bits, times a polynomial for the rest.
fn exp_below(x: f32) -> f32 {
    let bounded = max(x, -40.0);
    let power = floor(times(bounded, 1.442695) + 0.5);
    let rest = bounded - times(power, 0.6931472);
    var sum = 1.0 / 720.0;
    sum = 1.0 / 120.0 + times(sum, rest);
    sum = 1.0 / 24.0 + times(sum, rest);
    sum = 1.0 / 6.0 + times(sum, rest);
    sum = 0.5 + times(sum, rest);
    sum = 1.0 + times(sum, rest);
    sum = 1.0 + times(sum, rest);
    return times(sum, bitcast<f32>(u32(i32(power) + 127) << 23u));
}

// ln(1 + x) for x of 0 to 1: twice the series of artanh(x / (2 + x)).
fn log_above(x: f32) -> f32 {
    let half = times(x, 0.5);
    let ratio = times(half, reciprocal(1.0 + half));
    let square = times(ratio, ratio);
    var sum = 1.0 / 13.0;
    sum = 1.0 / 11.0 + times(sum, square);
    sum = 1.0 / 9.0 + times(sum, square);
    sum = 1.0 / 7.0 + times(sum, square);
    sum = 0.2 + times(sum, square);
    sum = 1.0 / 3.0 + times(sum, square);
    sum = 1.0 + times(sum, square);
    return times(2.0, times(ratio, sum));
}

// 1 / x for x of 1 to 2: a line that is off by 0.043 at most, and Newton's method, which
// squares that three times.
fn reciprocal(x: f32) -> f32 {
    var guess = 1.457107 - times(0.5, x);
    guess = times(guess, 2.0 - times(x, guess));
    guess = times(guess, 2.0 - times(x, guess));
    return times(guess, 2.0 - times(x, guess));
}

fn times(a: f32, b: f32) -> f32 {
    return bitcast<f32>(bitcast<u32>(a * b) ^ zero);
}

fn times4(a: vec4<f32>, b: vec4<f32>) -> vec4<f32> {
    return bitcast<vec4<f32>>(bitcast<vec4<u32>>(a * b) ^ vec4(zero));
}
