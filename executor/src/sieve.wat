;; A program of the kind that people write, for measuring: a sieve that walks
;; through memory, with arithmetic, branches, loads and stores. ROUNDS stands for
;; how often.
(module
    (memory (export "memory") 4)
    (func (export "_start") (local $round i32) (local $p i32) (local $n i32)
        (loop $rounds
            (memory.fill (i32.const 0) (i32.const 0) (i32.const 262144))
            (local.set $p (i32.const 2))
            (loop $primes
                (if (i32.eqz (i32.load8_u (local.get $p))) (then
                    (local.set $n (i32.mul (local.get $p) (local.get $p)))
                    (loop $multiples
                        (i32.store8 (local.get $n) (i32.const 1))
                        (local.set $n (i32.add (local.get $n) (local.get $p)))
                        (br_if $multiples (i32.lt_u (local.get $n) (i32.const 262144))))))
                (local.set $p (i32.add (local.get $p) (i32.const 1)))
                (br_if $primes (i32.lt_u (local.get $p) (i32.const 512))))
            (local.set $round (i32.add (local.get $round) (i32.const 1)))
            (br_if $rounds (i32.lt_u (local.get $round) (i32.const ROUNDS))))))
