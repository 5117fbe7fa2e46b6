// Counts the primes of one part of the numbers: part FIRST is the FIRST-th million.

override FIRST: u32 = 0u;

@group(0) @binding(0) var<storage, read_write> count: array<atomic<u32>>;

const MILLION: u32 = 1000000u;

fn is_prime(number: u32) -> bool {
    if number < 4u {
        return number > 1u;
    }
    if number % 2u == 0u {
        return false;
    }
    for (var divisor = 3u; divisor * divisor <= number; divisor += 2u) {
        if number % divisor == 0u {
            return false;
        }
    }
    return true;
}

@compute @workgroup_size(250)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let number = FIRST * MILLION + id.x;
    if id.x < MILLION && is_prime(number) {
        atomicAdd(&count[0], 1u);
    }
}
