;; Prints how many primes there are below a million.
(module
    (import "wasi_snapshot_preview1" "fd_write"
        (func $fd_write (param $fd i32) (param $pieces i32) (param $count i32) (param $written i32)
            (result i32)))

    ;; Page 0 is for printing; a byte for each number follows.
    (memory (export "memory") 17)
    (global $sieve i32 (i32.const 65536))
    (global $below i32 (i32.const 1000000))
    (data (i32.const 64) "\n")

    (func $cross_out (param $prime i32)
        (local $n i32)
        (local.set $n (i32.mul (local.get $prime) (local.get $prime)))
        (block $done
            (loop $next
                (br_if $done (i32.ge_u (local.get $n) (global.get $below)))
                (i32.store8 (i32.add (global.get $sieve) (local.get $n)) (i32.const 1))
                (local.set $n (i32.add (local.get $n) (local.get $prime)))
                (br $next))))

    (func $is_prime (param $n i32) (result i32)
        (i32.eqz (i32.load8_u (i32.add (global.get $sieve) (local.get $n)))))

    (func $count (result i32)
        (local $n i32) (local $found i32)
        (local.set $n (i32.const 2))
        (loop $next
            (if (call $is_prime (local.get $n)) (then
                (local.set $found (i32.add (local.get $found) (i32.const 1)))
                ;; Beyond the root every multiple is crossed out already.
                (if (i32.lt_u (local.get $n) (i32.const 1000)) (then
                    (call $cross_out (local.get $n))))))
            (local.set $n (i32.add (local.get $n) (i32.const 1)))
            (br_if $next (i32.lt_u (local.get $n) (global.get $below))))
        (local.get $found))

    ;; Digits are made from the last one, downwards from the line end.
    (func $print (param $value i32)
        (local $at i32)
        (local.set $at (i32.const 64))
        (loop $digit
            (local.set $at (i32.sub (local.get $at) (i32.const 1)))
            (i32.store8 (local.get $at)
                (i32.add (i32.const 48) (i32.rem_u (local.get $value) (i32.const 10))))
            (local.set $value (i32.div_u (local.get $value) (i32.const 10)))
            (br_if $digit (local.get $value)))
        (i32.store (i32.const 0) (local.get $at))
        (i32.store (i32.const 4) (i32.sub (i32.const 65) (local.get $at)))
        (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))))

    (func (export "_start")
        (call $print (call $count))))
